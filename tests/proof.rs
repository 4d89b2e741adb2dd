//! Conversion proves that its tokenizer splits text as the source's own does, and says so where it does not.

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::thread;

use common::files::FileMap;
use common::{Paint, fixture, ggforge, scratch, shared, succeeds};
use ggforge::gguf::{File, Header, Metadata};
use ggforge::tokenizer::encode::{Ends, Specials, Tokenizer};
use ggforge::tokenizer::proof::{Comparison, Outcome, Question};
use ggforge::tokenizer::{self, Options, Scores};
use serde_json::json;

const TOKENIZER: &str = "tokenizer.json";

fn forge() -> FileMap {
    FileMap::of(&fixture("hf/forge-3m"))
}

fn metadata_with(files: &FileMap, options: Options) -> Metadata {
    let vocabulary = tokenizer::read(files, 200_000, options).unwrap_or_else(|e| panic!("{e}"));
    let mut metadata: Metadata = vec![("general.architecture".to_owned(), "llama".into())];
    metadata.extend(vocabulary.metadata());
    metadata
}

fn metadata(files: &FileMap) -> Metadata {
    metadata_with(files, Options::default())
}

/// Compared in this process.
fn proof(files: &FileMap, metadata: &Metadata) -> Outcome {
    match Question::read(files, metadata).unwrap_or_else(|e| panic!("{e}")) {
        Some(question) => question.answer(),
        None => Outcome::NotCompared("there is no tokenizer.json".to_owned()),
    }
}

#[track_caller]
fn compared(outcome: Outcome) -> Comparison {
    match outcome {
        Outcome::Compared(comparison) => comparison,
        Outcome::NotCompared(why) => panic!("{why}"),
    }
}

#[test]
fn equal_tokenizers_differ_nowhere() {
    let found = compared(proof(&forge(), &metadata(&forge())));
    assert!(found.n_texts > 150 && found.n_tokens > 5_000, "{found:?}");
    assert_eq!((found.n_different, found.example.clone(), found.rate()), (0, None, 0.0), "{found:?}");
}

#[test]
fn another_pre_tokenizer_is_found_out() {
    let written = metadata_with(&forge(), Options { pre: Some("gpt-2"), ..Options::default() });
    let found = compared(proof(&forge(), &written));
    assert!(found.n_different > 10 && found.n_uncomposed == 0 && found.rate() > 0.05, "{found:?}");
    assert_eq!(found.sections.values().sum::<usize>(), found.n_different);
    let example = found.example.expect("an example");
    assert!(example.ours != example.theirs && example.text.chars().count() <= 4, "{example:?}");
}

#[test]
fn what_files_do_to_texts_in_training_is_left_out() {
    let files = forge().edit(TOKENIZER, |json| {
        json["truncation"] = json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
        json["padding"] = json!({"strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "!"});
        json["model"]["dropout"] = json!(0.5);
    });
    assert_eq!(compared(proof(&files, &metadata(&forge()))).n_different, 0);
}

#[test]
fn composed_characters_are_told_apart() {
    let files = forge().edit(TOKENIZER, |json| json["normalizer"] = json!({"type": "NFC"}));
    let found = compared(proof(&files, &metadata(&files)));
    assert!(found.n_different > 0 && found.n_uncomposed == found.n_different && found.example.is_none(), "{found:?}");
}

#[test]
fn scores_from_merges_make_the_tokens_of_the_source() {
    let Some(folder) = shared("tokenizers/phi-3-mini") else { return };
    let files = FileMap::of(&folder);
    // Its added tokens swallow the white space after them, which readers know by the model's name.
    let mut written = metadata(&files);
    written.push(("general.name".to_owned(), "phi-3-mini".into()));
    let found = compared(proof(&files, &written));
    assert_eq!(found.n_different, 0, "{found:?}");
    let constant = metadata_with(&files, Options { scores: Scores::Constant, ..Options::default() });
    assert!(compared(proof(&files, &constant)).n_different > 50);
}

/// forge-3m with more added tokens.
fn with_added(tokens: Vec<serde_json::Value>) -> FileMap {
    forge().edit(TOKENIZER, |json| json["added_tokens"].as_array_mut().expect("a list").extend(tokens))
}

fn added(id: usize, content: &str, flag: &str) -> serde_json::Value {
    let mut token = json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": true});
    token[flag] = true.into();
    token
}

#[test]
fn added_tokens_are_part_of_the_texts() {
    let proven = |files: &FileMap| compared(proof(files, &metadata(files)));
    let found = proven(&with_added(vec![added(2048, "<sep>", "special"), added(2049, "zinc oxide", "special")]));
    assert_eq!((found.n_different, &found.example), (0, &None), "{found:?}");
    assert!(found.n_added_tokens >= 4 && found.n_added_tried == found.n_added_tokens && found.n_added_texts >= 64, "{found:?}");
    // What GGUF cannot say.
    for (content, flag, shown) in [("<mask>", "lstrip", " <mask>"), ("<sep>", "rstrip", "<sep> "), ("Zinc", "single_word", "eZinc")]
    {
        let found = proven(&with_added(vec![added(2048, content, flag)]));
        assert_eq!(found.sections.keys().collect::<Vec<_>>(), ["added tokens"], "{flag}: {found:?}");
        let example = found.example.expect("an example");
        assert!(example.text.contains(content) && example.ours != example.theirs, "{flag}: {example:?}, {shown:?}");
    }
    // And what was lost on the way: the second of these tokens is not written.
    let files = with_added(vec![added(2048, "<one>", "special"), added(2049, "<two>", "special")]);
    let written = metadata(&with_added(vec![added(2048, "<one>", "special")]));
    let example = compared(proof(&files, &written)).example.expect("an example");
    assert!(example.text.contains("<two>") && example.theirs == [2049], "{example:?}");
}

#[test]
fn thousands_of_added_tokens_are_compared_by_a_bounded_number_of_texts() {
    let mut tokens: Vec<_> = (0..5000).map(|n| added(2048 + n, &format!("<extra_{n}>"), "special")).collect();
    tokens.push(added(7048, "<odd>", "rstrip"));
    let files = with_added(tokens);
    let found = compared(proof(&files, &metadata(&files)));
    assert!(found.n_added_tokens > 5000 && found.n_added_tried < 600 && found.n_added_texts <= 8192, "{found:?}");
    let example = found.example.expect("the one that GGUF cannot say is always tried");
    assert!(example.text.contains("<odd>"), "{example:?}");
}

#[test]
fn what_cannot_be_compared_is_said() {
    let not_compared = |files: &FileMap| match proof(files, &metadata(&forge())) {
        Outcome::NotCompared(why) => why,
        Outcome::Compared(found) => panic!("{found:?}"),
    };
    assert_eq!(not_compared(&forge().without(TOKENIZER)), "there is no tokenizer.json");
    assert!(not_compared(&forge().with(TOKENIZER, "{}")).contains("does not read tokenizer.json"));
    assert!(not_compared(&forge().with(TOKENIZER, "[")).contains("EOF"));
    let huge = json!({"type": "Split", "pattern": {"Regex": "((?=a){1000}){1000}"}, "behavior": "Isolated", "invert": false});
    assert!(not_compared(&forge().edit(TOKENIZER, |json| json["pre_tokenizer"] = huge)).contains("too large"));
    let no_metadata = proof(&forge(), &Metadata::new());
    assert!(matches!(no_metadata, Outcome::NotCompared(_)), "{no_metadata:?}");
}

/// Compared in a process like that which the program starts.
fn child(question: &Question) -> Output {
    let limits = [512 << 20, 5, u64::from(std::process::id())].map(|number| number.to_string());
    let mut command = ggforge();
    command.arg("--compare-tokenizers").args(limits).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("a child");
    child.stdin.take().expect("a pipe").write_all(&question.to_bytes()).expect("a question");
    child.wait_with_output().expect("an end")
}

/// Whatever the file, the child that compares answers, or ends as one that panicked or was too much: Hugging Face's library panics on
/// some of these.
#[test]
fn mutated_files_end_nothing() {
    let metadata = metadata(&forge());
    let mut small: serde_json::Value = serde_json::from_slice(&forge().0[TOKENIZER]).expect("JSON");
    // Few tokens, so that mutations hit what matters.
    let vocab = small["model"]["vocab"].as_object().expect("a vocabulary").clone();
    small["model"]["vocab"] = vocab.into_iter().take(300).collect();
    small["model"]["merges"] = json!([]);
    let seed = serde_json::to_string(&small).expect("JSON").into_bytes();
    let mut random = Paint::new(7);
    let (mut n_compared, mut n_panicked) = (0, 0);
    for _ in 0..150 {
        let mut bytes = seed.clone();
        for _ in 0..1 + random.next() % 3 {
            let at = (random.next() % bytes.len() as u64) as usize;
            match random.next() % 3 {
                0 => bytes[at] = b"0123456789\",:{}[]a-"[(random.next() % 19) as usize],
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, b"09\"{}[],"[(random.next() % 8) as usize]),
            }
        }
        let question = Question::read(&forge().with(TOKENIZER, bytes), &metadata).expect("files").expect("a tokenizer.json");
        let output = child(&question);
        match output.status.code() {
            Some(0) => {
                let outcome: Outcome = serde_json::from_slice(&output.stdout).expect("an outcome");
                n_compared += usize::from(matches!(outcome, Outcome::Compared(_)));
            }
            Some(70) => n_panicked += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(n_compared > 10, "no mutation was harmless: {n_compared}; {n_panicked} panics");
}

/// forge-3m as a folder, with another tokenizer.json.
fn folder_with(tokenizer: &FileMap, scratch: &Path) -> PathBuf {
    let folder = scratch.join("model");
    fs::create_dir_all(&folder).expect("a folder");
    for entry in fs::read_dir(fixture("hf/forge-3m")).expect("a folder") {
        let path = entry.expect("an entry").path();
        fs::copy(&path, folder.join(path.file_name().expect("a name"))).expect("a copy");
    }
    fs::write(folder.join(TOKENIZER), &tokenizer.0[TOKENIZER]).expect("a tokenizer");
    folder
}

/// Files that make Hugging Face's library take memory and time without bound: each process of the conversion is held to two seconds of
/// computing together and 256 MiB, and the conversion is whole.
#[test]
fn tokenizers_that_attack_cost_the_proof_alone() {
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let normalized = |normalizers: Vec<serde_json::Value>| {
        forge().edit(TOKENIZER, |json| json["normalizer"] = json!({"type": "Sequence", "normalizers": normalizers}))
    };
    // A trie of 4 GiB, by its length.
    let charsmap = json!({"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="});
    let long = |bytes: usize| with_added(vec![added(2048, &"long".repeat(bytes / 4), "special")]);
    let attacks = [
        ("doubled letters", normalized(vec![replace("e", "ee"); 2500])),
        ("a long replacement", normalized(vec![replace("e", &"e".repeat(1000)); 4])),
        ("texts put before", normalized(vec![json!({"type": "Prepend", "prepend": "x".repeat(90_000)}); 20])),
        ("a charsmap", forge().edit(TOKENIZER, |json| json["normalizer"] = charsmap.clone())),
        ("a token of 5 MiB", long(5 << 20)),
        ("a token of 3 MiB", long(3 << 20)),
    ];
    let scratch = scratch();
    let sound = {
        let output = scratch.path().join("sound.gguf");
        succeeds(ggforge().arg("convert").arg(fixture("hf/forge-3m")).args(["--type", "F32", "--output"]).arg(&output));
        fs::read(output).expect("a file")
    };
    for (name, files) in attacks {
        let (folder, output) = (folder_with(&files, scratch.path()), scratch.path().join("out.gguf"));
        let mut command = ggforge();
        command.arg("convert").arg(&folder).args(["--type", "F32", "--force", "--threads", "1", "--max-memory", "16M", "--output"]);
        command.arg(&output);
        let found = common::limited(&command, 1, 256 << 10).output().expect("a process");
        let told = String::from_utf8_lossy(&found.stderr);
        if found.status.code() == Some(3) {
            // Refused for what cannot be written at all.
            assert!(told.starts_with("error: ") && told.lines().count() <= 2, "{name}: {told}");
            continue;
        }
        assert!(found.status.success(), "{name}: {}: {told}", found.status);
        assert!(told.contains("warning: "), "{name}: {told}");
        let (made, n_weights) = (fs::read(&output).expect("a file"), 1 << 20);
        assert!(made[made.len() - n_weights..] == sound[sound.len() - n_weights..], "{name}: other weights");
    }
}

/// The template is part of the conversion, and so is what becomes of it.
#[test]
fn conversations_are_part_of_the_texts() {
    let scratch = scratch();
    let convert = |template: &str| {
        let folder = folder_with(&forge(), scratch.path());
        fs::write(folder.join("chat_template.jinja"), template).expect("a template");
        let mut command = ggforge();
        command.arg("convert").arg(folder).args(["--dry-run", "--json", "--output", "none.gguf"]);
        let output = succeeds(&mut command);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        (report["tokenizer"].clone(), String::from_utf8(output.stderr).expect("UTF-8"))
    };
    let (without, _) = convert("");
    let (found, told) = convert("{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}\n{% endfor %}");
    assert_eq!((&found["conversations"], &found["different"]), (&json!(3), &json!(0)), "{found} {told}");
    assert_eq!(found["texts"].as_u64(), without["texts"].as_u64().map(|n| n + 3 - without["conversations"].as_u64().unwrap_or(0)));
    // Some refuse a system's message: the others are compared.
    let (found, told) =
        convert("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages[0].content }}");
    assert!(found["conversations"] == json!(2) && told.is_empty(), "{found} {told}");
    let (found, told) = convert("{{ nothing.at.all }}");
    assert!(found["conversations"] == json!(0) && told.contains("warning: the chat template cannot be rendered"), "{found} {told}");
    // A conversation is what shows that this token is lost on the way.
    let files = with_added(vec![added(2048, "<turn>", "special")]);
    let mut question = Question::read(&files, &metadata(&forge())).expect("files").expect("a tokenizer.json");
    question.conversations = vec!["<turn>user\nWhy?".to_owned()];
    assert!(matches!(question.answer(), Outcome::Compared(found) if found.sections.contains_key("conversations")));
}

/// Where lines have other tokens than Hugging Face's, and why.
const NOT_EQUAL: &[(&str, &str)] =
    &[("models/stories260K", "its tokenizer.json makes one space of several, its tokenizer.model does not")];

/// Of long texts one line of so many: `tests/tokenize.rs` has the hashes of all of them.
const TEXTS: &[(&str, usize)] = &[
    ("wikitext-2-raw/wiki.test.raw", 6),
    ("tinystories_eval.txt", 1),
    ("tinyshakespeare.txt", 6),
    ("multilingual-lipsum/Arabic-Lipsum.txt", 1),
    ("multilingual-lipsum/Chinese-Lipsum.txt", 1),
    ("multilingual-lipsum/Emoji-Lipsum.txt", 1),
    ("multilingual-lipsum/Hebrew-Lipsum.txt", 1),
    ("multilingual-lipsum/Hindi-Lipsum.txt", 1),
    ("multilingual-lipsum/Japanese-Lipsum.txt", 1),
    ("multilingual-lipsum/Korean-Lipsum.txt", 1),
    ("multilingual-lipsum/Russian-Lipsum.txt", 1),
];

#[test]
fn lines_of_real_text_are_split_as_by_the_source() {
    let Some(folder) = shared("text") else { return };
    let data = folder.parent().expect("a folder above");
    let read = |(name, step): &(&str, usize)| (fs::read_to_string(folder.join(name)).expect("a text"), *step);
    let texts: Vec<(String, usize)> = TEXTS.iter().map(read).collect();
    let folders = ["tokenizers/falcon", "tokenizers/gpt2", "tokenizers/phi-3-mini", "tokenizers/smollm"];
    let models = ["models/forge-3m", "models/forge-23m", "models/stories260K", "models/tinystories-656K"];
    thread::scope(|scope| {
        for name in folders.into_iter().chain(models) {
            let texts = &texts;
            scope.spawn(move || {
                let n_different = lines_that_differ(&data.join(name), texts);
                let expected = NOT_EQUAL.iter().any(|(known, _)| *known == name);
                assert_eq!(n_different > 0, expected, "{name}: {n_different} lines differ");
            });
        }
    });
}

fn lines_that_differ(folder: &Path, texts: &[(String, usize)]) -> usize {
    let files = FileMap::of(folder);
    let bytes = Header { metadata: metadata(&files), tensors: Vec::new() }.layout().expect("a header").header;
    let ours = Tokenizer::from_metadata(&File::parse("converted.gguf", &bytes).expect("a file")).expect("a tokenizer");
    let mut theirs = tokenizers::Tokenizer::from_bytes(&files.0[TOKENIZER]).expect("a tokenizer");
    theirs.with_padding(None).with_truncation(None).expect("no truncation");
    let differs = |line: &&str| {
        let wanted = theirs.encode_fast(*line, false).expect("tokens");
        ours.encode(line, Specials::Parse, Ends::Omit) != wanted.get_ids()
    };
    texts.iter().flat_map(|(text, step)| text.split_inclusive('\n').step_by(*step)).filter(differs).count()
}

#[test]
fn the_program_reports_it_and_converts_all_the_same() {
    let folder = scratch();
    let run = |arguments: &[&str]| {
        let output = folder.path().join("out.gguf");
        let mut command = ggforge();
        command.arg("convert").arg(fixture("hf/forge-3m")).arg("--force").arg("--output").arg(&output).args(arguments);
        let output = succeeds(&mut command);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        (text(output.stdout), text(output.stderr))
    };
    let (stdout, stderr) = run(&[]);
    assert!(stdout.contains("are split as tokenizer.json splits them") && stderr.is_empty(), "{stdout} {stderr}");
    let (stdout, stderr) = run(&["--pre", "gpt-2"]);
    assert!(stdout.contains("are split otherwise than tokenizer.json splits them: "), "{stdout}");
    assert!(stderr.contains("warning: the tokenizer is not the source's: ") && stderr.contains("with tokenizer.json"), "{stderr}");
    let (stdout, _) = run(&["--pre", "gpt-2", "--dry-run", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    let tokenizer = &report["tokenizer"];
    assert!(tokenizer["different"].as_u64() > Some(10) && tokenizer["example"]["ids"].is_array(), "{tokenizer}");
    let (_, stderr) = run(&["--pre", "gpt-2", "--quiet"]);
    assert!(stderr.contains("the tokenizer is not the source's"), "{stderr}");
}
