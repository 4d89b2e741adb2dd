//! Token ids are those of llama.cpp, and of Hugging Face where llama.cpp's are.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::files::FileMap;
use common::{Paint, fixture, ggforge, json, scratch, shared, succeeds};
use ggforge::gguf::{File, Header, Metadata};
use ggforge::tokenizer::encode::{Ends, Specials, Tokenizer, Words, pre_names};
use ggforge::tokenizer::{self, Options};
use sha2::{Digest, Sha256};

fn tokenizer(path: &Path) -> Tokenizer {
    let file = File::open(path).unwrap_or_else(|e| panic!("{e}"));
    Tokenizer::from_metadata(&file).unwrap_or_else(|e| panic!("{e}"))
}

/// The vocabularies beside the project.
fn vocabularies() -> Option<Vec<PathBuf>> {
    let entries = fs::read_dir(shared("vocab")?).expect("a folder").map(|entry| entry.expect("an entry").path());
    let mut paths: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|e| e == "gguf")).collect();
    paths.sort();
    assert_eq!(paths.len(), 9);
    Some(paths)
}

/// A fixture's lines, cut at tabs.
fn table(name: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string(fixture("tokenizer").join(name)).expect("a fixture");
    text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hash of what is printed with spaces between.
fn sha256_of<T: ToString>(numbers: impl IntoIterator<Item = T>) -> String {
    let numbers: Vec<String> = numbers.into_iter().map(|number| number.to_string()).collect();
    hex(&Sha256::digest(numbers.join(" ")))
}

/// Texts from a formula, as `tools/dev/tokens.py` makes them.
struct Painted {
    pools: Vec<Vec<char>>,
    snippets: Vec<String>,
    specials: Vec<String>,
}

impl Painted {
    const N_TEXTS: u64 = 500;

    fn new() -> Painted {
        let json = json(&fixture("tokenizer/pools.json"));
        let list = |key: &str| -> Vec<String> { serde_json::from_value(json[key].clone()).expect("a list of strings") };
        let pools = list("pools").iter().map(|pool| pool.chars().collect()).collect();
        Painted { pools, snippets: list("snippets"), specials: list("specials") }
    }

    /// One text; with a special token at its end now and then where asked for.
    fn text(&self, seed: u64, specials: bool) -> String {
        fn pick<T>(list: &[T], number: u64) -> &T {
            &list[(number % list.len() as u64) as usize]
        }
        let mut random = Paint::new(seed);
        let (n, chosen) = (1 + random.next() % 80, random.next());
        let mut active: Vec<&[char]> = Vec::new();
        active.extend(self.pools.iter().enumerate().filter(|(i, _)| chosen >> i & 1 == 1).map(|(_, pool)| &pool[..]));
        if active.is_empty() {
            active.extend(self.pools.iter().map(|pool| &pool[..]));
        }
        let mut text = String::new();
        for _ in 0..n {
            let r = random.next();
            let pool: &[char] = pick::<&[char]>(&active, r >> 8);
            let c = *pick(pool, r >> 24);
            match (r % 16, char::from_u32(((r >> 8) % 0x11_0000) as u32)) {
                (0, _) => text.push_str(pick::<String>(&self.snippets, r >> 8)),
                (1, Some(any)) => text.push(any),
                (2, _) => text.extend(std::iter::repeat_n(c, 2 + (r >> 40) as usize % 30)),
                _ => text.push(c),
            }
        }
        let r = random.next();
        if specials && r.is_multiple_of(3) {
            text.push_str(pick::<String>(&self.specials, r >> 8));
        }
        text
    }

    /// All texts in a row.
    fn all(&self) -> String {
        (0..Painted::N_TEXTS).map(|seed| self.text(seed, true)).collect::<String>().replace('\0', "")
    }
}

/// The texts of an `.inp` file and the ids of the `.out` file beside it.
fn vectors(model: &Path) -> Vec<(String, Vec<u32>)> {
    let beside = |extension: &str| format!("{}.{extension}", model.display());
    let texts = fs::read_to_string(beside("inp")).expect("texts");
    let ids = fs::read_to_string(beside("out")).expect("ids");
    let ids = ids.lines().map(|line| line.split_whitespace().map(|id| id.parse().expect("an id")).collect());
    texts.split("\n__ggml_vocab_test__\n").map(str::to_owned).zip(ids).collect()
}

#[test]
fn ids_equal_the_vectors_of_every_vocabulary() {
    for path in vocabularies().into_iter().flatten() {
        let tokenizer = tokenizer(&path);
        let vectors = vectors(&path);
        assert_eq!(vectors.len(), 46, "{}", path.display());
        for (text, wanted) in vectors {
            let found = tokenizer.encode(&text, Specials::Literal, Ends::Omit);
            assert_eq!(found, wanted, "{}: {text:?}", path.display());
        }
    }
}

#[test]
fn every_pre_tokenizer_cuts_where_llama_cpp_cuts() {
    let painted = Painted::new();
    let texts: Vec<String> = (0..Painted::N_TEXTS).map(|seed| painted.text(seed, false)).collect();
    let wanted = table("words.tsv");
    let mut names: Vec<&str> = pre_names().collect();
    names.sort_unstable();
    assert_eq!(names, wanted.iter().map(|row| row[0].as_str()).collect::<Vec<_>>());
    for row in wanted {
        let cutter = Words::new(&row[0]).expect("a known name");
        let mut ends = String::new();
        for text in &texts {
            let places = cutter.of(text).into_iter().scan(0, |end, word| {
                *end += word.len();
                Some(end.to_string())
            });
            ends += &places.collect::<Vec<_>>().join(" ");
            ends.push('\n');
        }
        assert_eq!(hex(&Sha256::digest(&ends)), row[1], "{} cuts otherwise", row[0]);
    }
}

#[test]
fn ids_of_whole_texts_equal_llama_tokenize() {
    let Some(paths) = vocabularies() else { return };
    let texts_folder = shared("text").expect("beside the vocabularies");
    let painted = Painted::new().all();
    let tokenizers: BTreeMap<String, Tokenizer> =
        paths.iter().map(|path| (path.file_stem().expect("a name").to_string_lossy().into_owned(), tokenizer(path))).collect();
    for row in table("llama.tsv") {
        let [model, text, mode, n_ids, sha256] = &row[..] else { panic!("{row:?}") };
        let text = if text == "painted" { painted.clone() } else { fs::read_to_string(texts_folder.join(text)).expect("a text") };
        let (specials, ends) = if mode == "parse" { (Specials::Parse, Ends::Add) } else { (Specials::Literal, Ends::Omit) };
        let ids = tokenizers[model].encode(&text, specials, ends);
        assert_eq!((ids.len().to_string(), &sha256_of(&ids)), (n_ids.clone(), sha256), "{row:?}");
    }
}

/// Where Hugging Face's ids are others than llama.cpp's, by tokenizer and text, and why.
const NOT_AS_HUGGING_FACE: &[(&str, &str, &str)] = &[
    (
        "tokenizers/qwen3",
        "multilingual-lipsum/Hindi-Lipsum.txt",
        "characters are composed first (NFC), llama.cpp takes them as they are",
    ),
    ("models/stories260K", "wikitext-2-raw/wiki.test.raw", "spaces in a row are made one, llama.cpp keeps them"),
    ("models/stories260K", "tinyshakespeare.txt", "spaces in a row are made one, llama.cpp keeps them"),
];

/// The GGUF file, without tensors, that the conversion of a Hugging Face folder would begin with.
fn converted(folder: &Path) -> Vec<u8> {
    let vocabulary = tokenizer::read(&FileMap::of(folder), 200_000, Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let mut metadata: Metadata = vec![("general.architecture".to_owned(), "llama".into())];
    metadata.extend(vocabulary.metadata());
    Header { metadata, tensors: Vec::new() }.layout().expect("a header").header
}

#[test]
fn ids_of_converted_vocabularies_equal_hugging_face() {
    let Some(texts_folder) = shared("text") else { return };
    let data = texts_folder.parent().expect("a folder above");
    let mut tokenizers: BTreeMap<String, Tokenizer> = BTreeMap::new();
    for row in table("huggingface.tsv") {
        let [folder, text, n_ids, sha256] = &row[..] else { panic!("{row:?}") };
        let tokenizer = tokenizers.entry(folder.clone()).or_insert_with(|| {
            let bytes = converted(&data.join(folder));
            let file = File::parse("converted.gguf", &bytes).expect("a file");
            Tokenizer::from_metadata(&file).unwrap_or_else(|e| panic!("{e}"))
        });
        let content = fs::read_to_string(texts_folder.join(text)).expect("a text");
        let ids = tokenizer.encode(&content, Specials::Literal, Ends::Omit);
        let differs = NOT_AS_HUGGING_FACE.iter().any(|(f, t, _)| f == folder && t == text);
        let equal = (ids.len().to_string(), &sha256_of(&ids)) == (n_ids.clone(), sha256);
        assert_eq!(equal, !differs, "{row:?}: {} ids", ids.len());
    }
}

#[test]
fn the_program_shows_tokens_ids_and_json() {
    let folder = scratch();
    let model = folder.path().join("vocab.gguf");
    fs::write(&model, converted(&fixture("hf/forge-3m"))).expect("a file");
    let run = |arguments: &[&str]| {
        let output = succeeds(ggforge().arg("tokenize").arg(&model).args(arguments));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let ids = run(&["the end", "--ids"]);
    let parsed: Vec<u32> = serde_json::from_str(&ids).expect("a list");
    assert_eq!(parsed[0], 2046, "bos");
    assert_eq!(run(&["the end", "--ids", "--no-bos"]), format!("{:?}\n", &parsed[1..]));

    let lines = run(&["the end\u{1b}", "--no-bos"]);
    assert!(lines.contains("'the'") && lines.contains("\\u{1b}") && lines.ends_with("tokens\n"), "{lines:?}");
    let json: serde_json::Value = serde_json::from_str(&run(&["é<|end_of_text|>", "--json", "--no-bos"])).expect("JSON");
    let tokens = json["tokens"].as_array().expect("tokens");
    assert_eq!(json["n_tokens"], tokens.len());
    assert_eq!(tokens.last().expect("a token")["id"], 2047, "{json}");
    let literal: serde_json::Value = serde_json::from_str(&run(&["<|end_of_text|>", "--json", "--no-special"])).expect("JSON");
    assert!(literal["tokens"].as_array().expect("tokens").iter().all(|token| token["id"] != 2047), "{literal}");
}

#[test]
fn the_program_names_what_is_no_text() {
    let folder = scratch();
    let model = folder.path().join("vocab.gguf");
    fs::write(&model, converted(&fixture("hf/forge-3m"))).expect("a file");
    let text = folder.path().join("text");
    let run =
        |path: &Path| ggforge().args(["tokenize", "-v"]).arg(&model).arg("-f").arg(path).output().expect("a program that starts");
    let failed = |output: &std::process::Output| (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned());

    fs::write(&text, b"").expect("a file");
    assert_eq!(String::from_utf8_lossy(&run(&text).stdout).lines().last(), Some("1 token"), "bos alone");
    fs::write(&text, b"ab\xff").expect("a file");
    let (code, message) = failed(&run(&text));
    assert!(code == Some(3) && message.contains("byte 2") && message.contains("NotUtf8"), "{code:?} {message}");
    let (code, message) = failed(&run(&folder.path().join("none")));
    assert!(code == Some(6) && message.contains("none"), "{code:?} {message}");
    let (code, message) = failed(&ggforge().arg("tokenize").arg(&text).arg("x").output().expect("a program that starts"));
    assert_eq!(code, Some(3), "{message}");
    let (code, message) = failed(&ggforge().arg("tokenize").arg(&model).output().expect("a program that starts"));
    assert_eq!(code, Some(2), "{message}");
}
