//! Conversion proves that its tokenizer splits text as the source's own does, and says so where it does not.

mod common;

use std::fs;
use std::path::Path;
use std::thread;

use common::files::FileMap;
use common::{Paint, fixture, ggforge, scratch, shared, succeeds};
use ggforge::gguf::{File, Header, Metadata};
use ggforge::tokenizer::encode::{Ends, Specials, Tokenizer};
use ggforge::tokenizer::proof::{Comparison, Outcome, Proof};
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

#[track_caller]
fn compared(outcome: Outcome) -> Comparison {
    match outcome {
        Outcome::Compared(comparison) => comparison,
        Outcome::NotCompared(why) => panic!("{why}"),
    }
}

#[test]
fn equal_tokenizers_differ_nowhere() {
    let found = compared(Proof::start(&forge(), &metadata(&forge())).finish());
    assert!(found.n_texts > 150 && found.n_tokens > 5_000, "{found:?}");
    assert_eq!((found.n_different, found.example.clone(), found.rate()), (0, None, 0.0), "{found:?}");
}

#[test]
fn another_pre_tokenizer_is_found_out() {
    let written = metadata_with(&forge(), Options { pre: Some("gpt-2"), ..Options::default() });
    let found = compared(Proof::start(&forge(), &written).finish());
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
    assert_eq!(compared(Proof::start(&files, &metadata(&forge())).finish()).n_different, 0);
}

#[test]
fn composed_characters_are_told_apart() {
    let files = forge().edit(TOKENIZER, |json| json["normalizer"] = json!({"type": "NFC"}));
    let found = compared(Proof::start(&files, &metadata(&files)).finish());
    assert!(found.n_different > 0 && found.n_uncomposed == found.n_different && found.example.is_none(), "{found:?}");
}

#[test]
fn scores_from_merges_make_the_tokens_of_the_source() {
    let Some(folder) = shared("tokenizers/phi-3-mini") else { return };
    let files = FileMap::of(&folder);
    // Its added tokens swallow the white space after them, which readers know by the model's name.
    let mut written = metadata(&files);
    written.push(("general.name".to_owned(), "phi-3-mini".into()));
    let found = compared(Proof::start(&files, &written).finish());
    assert_eq!(found.n_different, 0, "{found:?}");
    let constant = metadata_with(&files, Options { scores: Scores::Constant, ..Options::default() });
    assert!(compared(Proof::start(&files, &constant).finish()).n_different > 50);
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
    let proven = |files: &FileMap| compared(Proof::start(files, &metadata(files)).finish());
    let found = proven(&with_added(vec![added(2048, "<sep>", "special"), added(2049, "zinc oxide", "special")]));
    assert_eq!((found.n_different, &found.example), (0, &None), "{found:?}");
    assert!(found.n_added_tokens >= 4 && found.n_added_tried == found.n_added_tokens && found.n_added_texts >= 64, "{found:?}");
    // What GGUF cannot say.
    for (content, flag, shown) in [("<mask>", "lstrip", " <mask>"), ("<sep>", "rstrip", "<sep> "), ("Zinc", "single_word", "eZinc")]
    {
        let found = proven(&with_added(vec![added(2048, content, flag)]));
        assert_eq!(found.sections.keys().collect::<Vec<_>>(), [&"added tokens"], "{flag}: {found:?}");
        let example = found.example.expect("an example");
        assert!(example.text.contains(content) && example.ours != example.theirs, "{flag}: {example:?}, {shown:?}");
    }
    // And what was lost on the way: the second of these tokens is not written.
    let files = with_added(vec![added(2048, "<one>", "special"), added(2049, "<two>", "special")]);
    let written = metadata(&with_added(vec![added(2048, "<one>", "special")]));
    let example = compared(Proof::start(&files, &written).finish()).example.expect("an example");
    assert!(example.text.contains("<two>") && example.theirs == [2049], "{example:?}");
}

#[test]
fn thousands_of_added_tokens_are_compared_by_a_bounded_number_of_texts() {
    let mut tokens: Vec<_> = (0..5000).map(|n| added(2048 + n, &format!("<extra_{n}>"), "special")).collect();
    tokens.push(added(7048, "<odd>", "rstrip"));
    let files = with_added(tokens);
    let found = compared(Proof::start(&files, &metadata(&files)).finish());
    assert!(found.n_added_tokens > 5000 && found.n_added_tried < 600 && found.n_added_texts <= 8192, "{found:?}");
    let example = found.example.expect("the one that GGUF cannot say is always tried");
    assert!(example.text.contains("<odd>"), "{example:?}");
}

#[test]
fn what_cannot_be_compared_is_said() {
    let not_compared = |files: &FileMap| match Proof::start(files, &metadata(&forge())).finish() {
        Outcome::NotCompared(why) => why,
        Outcome::Compared(found) => panic!("{found:?}"),
    };
    assert_eq!(not_compared(&forge().without(TOKENIZER)), "there is no tokenizer.json");
    assert!(not_compared(&forge().with(TOKENIZER, "{}")).contains("does not read tokenizer.json"));
    assert!(not_compared(&forge().with(TOKENIZER, "[")).contains("EOF"));
    let huge = json!({"type": "Split", "pattern": {"Regex": "((?=a){1000}){1000}"}, "behavior": "Isolated", "invert": false});
    assert!(not_compared(&forge().edit(TOKENIZER, |json| json["pre_tokenizer"] = huge)).contains("too large"));
    let no_metadata = Proof::start(&forge(), &Metadata::new()).finish();
    assert!(matches!(no_metadata, Outcome::NotCompared(_)), "{no_metadata:?}");
}

/// Whatever the file, the outcome is a value: Hugging Face's library panics on some of these, in its own thread.
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
    let mut n_compared = 0;
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
        let outcome = Proof::start(&forge().with(TOKENIZER, bytes), &metadata).finish();
        n_compared += usize::from(matches!(outcome, Outcome::Compared(_)));
    }
    assert!(n_compared > 10, "no mutation was harmless: {n_compared}");
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
