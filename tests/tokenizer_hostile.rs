//! Broken and malicious tokenizer files: a typed error or a vocabulary, never a panic, and no more heap than the files justify.

mod common;
#[path = "common/heap.rs"]
mod heap;

use common::files::FileMap;
use common::{fixture, shared};
use ggforge::error::Fault;
use ggforge::tokenizer::{self, Model, Options, Special, TokenType, Vocabulary};
use ggforge::{Error, Result};
use heap::peak_bytes;
use serde_json::{Value, json};

/// A value of JSON takes up to 17 times its text, once parsed; the vocabulary made of it is there at the same time.
const HEAP_PER_BYTE: u64 = 32;
/// The table of known expressions, and the expressions of the file: classes of the Unicode tables.
const HEAP_BASE_BYTES: u64 = 8 << 20;

/// Reads, within the heap that the files justify.
fn read(files: &FileMap, vocab_size: u32) -> Result<Vocabulary> {
    let (result, peak) = peak_bytes(|| tokenizer::read(files, vocab_size, Options::default()));
    let n_bytes: usize = files.0.values().map(Vec::len).sum();
    let bound = HEAP_PER_BYTE * n_bytes as u64 + HEAP_BASE_BYTES;
    assert!(peak <= bound, "{peak} bytes of heap for {n_bytes} bytes of files");
    result
}

#[track_caller]
fn fault(files: &FileMap, vocab_size: u32) -> Fault {
    match read(files, vocab_size) {
        Err(Error::Malformed { fault, .. }) => fault,
        other => panic!("expected a malformed file, found {:?}", other.map(|v| (v.tokens.len(), v.warnings))),
    }
}

fn forge() -> FileMap {
    FileMap::of(&fixture("hf/forge-3m"))
}

fn forge_with(change: impl FnOnce(&mut Value)) -> FileMap {
    forge().edit("tokenizer.json", change)
}

/// A small byte-level tokenizer of these tokens and merges.
fn tiny(vocab: Value, merges: Value) -> FileMap {
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true});
    let tokenizer = json!({
        "added_tokens": [], "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    });
    FileMap::default().with("tokenizer.json", tokenizer.to_string())
}

#[test]
fn merges_join_two_known_tokens_into_a_known_one() {
    let vocab = json!({"a": 0, "b": 1, "ab": 2, "abab": 3});
    assert!(read(&tiny(vocab.clone(), json!(["a b", ["ab", "ab"]])), 4).is_ok());
    for bad in [
        json!(["ab"]),
        json!(["a b ab"]),
        json!(["a  b"]),
        json!([" b"]),
        json!(["a "]),
        json!(["a c"]),
        json!(["c a"]),
        json!(["b a"]),
        json!([["a"]]),
        json!([["a", "b", "ab"]]),
        json!([["a", 1]]),
        json!([7]),
        json!([null]),
        json!([]),
        json!(null),
    ] {
        assert_eq!(fault(&tiny(vocab.clone(), bad.clone()), 4), Fault::MergeInvalid, "{bad}");
    }
    assert_eq!(fault(&tiny(vocab.clone(), json!("a b")), 4), Fault::TokenizerInvalid);
    // Merges longer than any token, which make Hugging Face's library panic.
    assert_eq!(fault(&tiny(json!({"a": 0, "b": 1}), json!(["a b"])), 2), Fault::MergeInvalid);

    let split = |merges: &[u8]| FileMap::default().with("vocab.json", vocab.to_string()).with("merges.txt", merges);
    assert_eq!(read(&split(b"#version: 0.2\r\na b\r\n\nab ab\n"), 4).expect("sound").merges, ["a b", "ab ab"]);
    for bad in [&b"a"[..], b"a b ab", b"#v\n#x", b"a c", b"\xff b", b""] {
        assert_eq!(fault(&split(bad), 4), Fault::MergeInvalid, "{bad:?}");
    }
}

#[test]
fn ids_are_whole_unique_and_near_their_number() {
    for bad in [
        json!(u32::MAX),
        json!(1u64 << 32),
        json!(-1),
        json!(1.5),
        json!("1"),
        json!(null),
        json!([1]),
        json!(1_000_000),
        json!(1e300),
    ] {
        let vocab = json!({"a": 0, "b": bad, "ab": 2});
        assert_eq!(fault(&tiny(vocab, json!(["a b"])), 3), Fault::TokenIdRange, "{bad}");
        let added = forge_with(|tokenizer| tokenizer["added_tokens"][0]["id"] = bad.clone());
        assert_eq!(fault(&added, 2048), Fault::TokenIdRange, "{bad}");
    }
    assert_eq!(fault(&tiny(json!({"a": 0, "b": 0, "ab": 2}), json!(["a b"])), 3), Fault::TokenIdRange);
    // The library gives an added token the id 3, which a token of the model has already.
    let taken = tiny(json!({"a": 0, "b": 1, "ab": 3}), json!(["a b"]));
    let taken = taken.edit("tokenizer.json", |tokenizer| tokenizer["added_tokens"] = json!([{"id": 4, "content": "<x>"}]));
    assert_eq!(fault(&taken, 8), Fault::TokenIdRange);
    let key =
        |key: &str| forge().edit("tokenizer_config.json", |config| config["added_tokens_decoder"] = json!({key: {"content": "x"}}));
    for bad in ["-1", "x", "4294967296", "1.0", ""] {
        assert_eq!(fault(&key(bad), 2048), Fault::TokenIdRange, "{bad}");
    }
    assert_eq!(fault(&forge().with("added_tokens.json", r#"{"<x>": 999999999}"#), 2048), Fault::TokenIdRange);
}

#[test]
fn a_vocabulary_has_about_as_many_rows_as_tokens() {
    for bad in [0, 1_000_000_000, u32::MAX] {
        assert_eq!(fault(&forge(), bad), Fault::HparamRange, "{bad}");
        assert_eq!(fault(&spm(&[]), bad), Fault::HparamRange, "{bad}");
    }
}

#[test]
fn json_is_strict() {
    let text = String::from_utf8(forge().0["tokenizer.json"].clone()).expect("UTF-8");
    let twice = |what: &str| text.replacen('{', &format!("{{\"{what}\": {{}},"), 1);
    assert_eq!(fault(&forge().with("tokenizer.json", twice("model")), 2048), Fault::DuplicateKey);
    let token = text.replacen("\"vocab\":{", "\"vocab\":{\"t\":0,\"\\u0074\":1,", 1);
    let token = if token == text { text.replacen("\"vocab\": {", "\"vocab\": {\"t\":0,\"\\u0074\":1,", 1) } else { token };
    assert_ne!(token, text);
    assert_eq!(fault(&forge().with("tokenizer.json", token), 2048), Fault::DuplicateKey);
    assert_eq!(fault(&forge().with("tokenizer.json", "[".repeat(100_000)), 2048), Fault::JsonDepth);
    assert_eq!(fault(&forge().with("tokenizer_config.json", "{\"a\":".repeat(100_000)), 2048), Fault::JsonDepth);
    for bad in ["", "[]", "null", "{", "{}}", "\u{feff}{}"] {
        assert_eq!(
            fault(&forge().with("tokenizer.json", bad), 2048),
            if bad == "{}" { Fault::TokenizerInvalid } else { Fault::Json },
            "{bad}"
        );
    }
    for change in [
        |t: &mut Value| t["model"] = json!(null),
        |t: &mut Value| t["model"]["vocab"] = json!([]),
        |t: &mut Value| t["model"]["vocab"] = json!({}),
        |t: &mut Value| t["model"]["type"] = json!(7),
        |t: &mut Value| t["added_tokens"] = json!({}),
        |t: &mut Value| t["added_tokens"] = json!([7]),
        |t: &mut Value| t["added_tokens"] = json!([{"id": 1}]),
    ] {
        assert_eq!(fault(&forge_with(change), 2048), Fault::TokenizerInvalid);
    }
    assert_eq!(fault(&forge().with("chat_template.jinja", b"\xff".to_vec()), 2048), Fault::TokenizerInvalid);
}

#[test]
fn other_kinds_of_tokenizer_are_named() {
    for (files, what) in [
        (forge_with(|t| t["model"] = json!({"type": "WordPiece", "vocab": {"a": 0}})), "kind WordPiece"),
        (forge_with(|t| t["model"] = json!({"type": "Unigram", "vocab": [["a", -1.0]]})), "kind Unigram"),
        (forge_with(|t| t["model"]["end_of_word_suffix"] = json!("</w>")), "end_of_word_suffix"),
        (forge_with(|t| (t["pre_tokenizer"], t["decoder"]) = (json!({"type": "Metaspace"}), json!(null))), "neither byte-level"),
        (FileMap::default(), "no tokenizer in folder"),
    ] {
        match read(&files, 2048) {
            Err(error @ Error::Unsupported { .. }) => assert!(error.to_string().contains(what), "{error}"),
            other => panic!("{what}: {:?}", other.map(|v| v.warnings)),
        }
    }
}

#[test]
fn special_ids_name_a_token() {
    let with = |field: &str, id: Value| {
        let unnamed = forge().without("tokenizer_config.json").with("tokenizer_config.json", "{}");
        unnamed.edit("config.json", |config| config[field] = id)
    };
    for bad in [json!(4_000_000_000u32), json!(2048), json!(-2), json!(u64::MAX), json!(i64::MIN)] {
        for role in ["bos_token_id", "eos_token_id"] {
            assert_eq!(fault(&with(role, bad.clone()), 2048), Fault::SpecialIdRange, "{role} {bad}");
        }
    }
    let none = read(&with("bos_token_id", json!(-1)), 2048).expect("-1 is none");
    assert!(none.special_ids.iter().all(|(special, id)| *special != Special::Bos || *id == 2046));
    let pad = read(&with("pad_token_id", json!(2048)), 2048).expect("a model can do without");
    assert_eq!((pad.special_id(Special::Pad), pad.warnings.len()), (None, 1));
    for odd in [json!("7"), json!(1.5), json!(true), json!({}), json!(null)] {
        assert!(read(&with("unk_token_id", odd), 2048).is_ok());
    }
}

#[test]
fn a_text_is_one_token() {
    let twice = forge().edit("tokenizer_config.json", |config| {
        let token = |text: &str| json!({"content": text, "special": false});
        config["added_tokens_decoder"] = json!({"2048": token("x▁y"), "2049": token("x y")});
    });
    assert_eq!(fault(&twice, 2050), Fault::DuplicateToken);
    assert_eq!(fault(&spm(&[piece(b"a", 0.0, 1), piece(b"a", 0.0, 1)]), 3), Fault::DuplicateToken);
    let pad = spm(&[piece(b"[PAD2]", 0.0, 1)]);
    assert_eq!(fault(&pad, 3), Fault::DuplicateToken);
}

#[test]
fn strange_expressions_are_only_unknown() {
    for regex in ["(a+)+$".to_owned(), "(((".to_owned(), "a".repeat(1 << 20), "\\p{L}".repeat(128), "(?i:\\p{L})+".repeat(128)] {
        let step = json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated"});
        let bytes = json!({"type": "ByteLevel", "use_regex": false});
        for n in [1, 1000] {
            let mut steps = vec![step.clone(); if regex.len() > 4096 { 1 } else { n }];
            steps.push(bytes.clone());
            let files = forge_with(|t| t["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": steps}));
            let vocabulary = read(&files, 2048).expect("a warning at most");
            assert!(vocabulary.warnings[0].contains("--pre NAME"), "{:?}", vocabulary.warnings);
        }
    }
}

#[test]
fn warnings_are_few_and_safe_to_print() {
    let files = forge_with(|tokenizer| {
        let odd = |i: u32| json!({"id": 3000 + i, "content": format!("\u{1b}[2J{i}"), "special": true});
        tokenizer["added_tokens"].as_array_mut().expect("a list").extend((0..1000).map(odd));
    });
    let vocabulary = read(&files, 5000).expect("odd but sound");
    assert!(vocabulary.warnings.len() < 20);
    assert!(vocabulary.warnings.iter().all(|warning| warning.chars().all(ggforge::error::is_harmless)));
}

// SentencePiece. The message is written by hand here, so that it can be broken.

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn field(number: u64, content: &[u8]) -> Vec<u8> {
    [varint(number << 3 | 2), varint(content.len() as u64), content.to_vec()].concat()
}

fn piece(text: &[u8], score: f32, kind: u64) -> Vec<u8> {
    let message = [field(1, text), vec![0x15], score.to_le_bytes().to_vec(), vec![0x18], varint(kind)].concat();
    field(1, &message)
}

/// A model of an unknown token and these pieces.
fn spm(pieces: &[Vec<u8>]) -> FileMap {
    FileMap::default().with("tokenizer.model", [piece(b"<unk>", 0.0, 2), pieces.concat()].concat())
}

#[test]
fn pieces_become_tokens() {
    let model = spm(&[
        piece(b"<s>", 0.0, 3),
        piece("▁a".as_bytes(), -1.5, 1),
        piece(b"<0x0A>", 0.0, 6),
        piece(b"u", 0.0, 4),
        piece(b"n", 0.0, 5),
    ]);
    let vocabulary = read(&model, 7).expect("sound");
    assert_eq!(vocabulary.model, Model::Llama);
    use TokenType::{Byte, Control, Normal, Unknown, Unused};
    assert_eq!(vocabulary.types, [Unknown, Control, Normal, Byte, Normal, Unused, Unused]);
    assert_eq!(vocabulary.scores, [0.0, 0.0, -1.5, 0.0, 0.0, 0.0, -10000.0]);
    assert_eq!(vocabulary.tokens[6], b"[PAD6]");
}

#[test]
fn odd_pieces_are_kept_and_impossible_ones_refused() {
    let odd = spm(&[piece(b"\xff\xfe", 0.0, 1), piece(b"", 0.0, 1), piece(&vec![b'a'; 1 << 20], 0.0, 1)]);
    let vocabulary = read(&odd, 4).expect("odd but sound");
    assert_eq!(vocabulary.tokens[1], b"\xff\xfe");
    assert!(vocabulary.warnings.iter().any(|warning| warning.contains("token 2 is empty")));
    for text in [&b"<0x-1>"[..], b"<0xZZ>", b"<0x1>", b"<0x001>", b"0x00", b""] {
        assert_eq!(fault(&spm(&[piece(text, 0.0, 6)]), 2), Fault::TokenizerInvalid, "{text:?}");
    }
    for kind in [0, 7, 99, u64::MAX] {
        assert_eq!(fault(&spm(&[piece(b"a", 0.0, kind)]), 2), Fault::TokenizerInvalid, "{kind}");
    }
    for score in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(fault(&spm(&[piece(b"a", score, 1)]), 2), Fault::NonFinite);
    }
    assert_eq!(fault(&spm(&[piece(b"<u2>", 0.0, 2)]), 2), Fault::TokenizerInvalid);
    assert_eq!(fault(&FileMap::default().with("tokenizer.model", ""), 2), Fault::TokenizerInvalid);
    assert_eq!(fault(&FileMap::default().with("tokenizer.model", piece(b"a", 0.0, 1)), 2), Fault::TokenizerInvalid);
}

#[test]
fn a_broken_message_is_refused() {
    let groups = [0x1b].repeat(10_000);
    for bad in [
        [vec![0x0a], vec![0xff; 11]].concat(),
        [vec![0x0a], varint(100), b"short".to_vec()].concat(),
        [vec![0x0a], varint(u64::MAX)].concat(),
        vec![0x08, 0x01],
        vec![0x0e],
        vec![0x00],
        field(1, &[0x08, 0x01]),
        field(1, &field(2, b"abcd")),
        groups,
    ] {
        let files = spm(&[]).edit_bytes("tokenizer.model", |bytes| bytes.extend(&bad));
        assert_eq!(fault(&files, 2), Fault::ProtobufInvalid, "{:02x?}", &bad[..bad.len().min(16)]);
    }
}

/// xorshift, with a fixed seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

#[test]
fn cut_anywhere_is_an_error_or_a_smaller_vocabulary() {
    let pieces = [piece(b"<s>", 0.0, 3), piece("▁a".as_bytes(), -1.5, 1), piece(b"<0x0A>", 0.0, 6)];
    let model = spm(&pieces);
    // A message ends wherever one of its fields does; protobuf cannot tell that from the end.
    let ends: Vec<usize> = (0..=pieces.len()).map(|n| spm(&pieces[..n]).0["tokenizer.model"].len()).collect();
    for len in 0..=model.0["tokenizer.model"].len() {
        let cut = model.clone().edit_bytes("tokenizer.model", |bytes| bytes.truncate(len));
        assert_eq!(read(&cut, 4).is_ok(), ends.contains(&len), "{len}");
    }
    let text = forge().0["tokenizer.json"].len();
    for len in (0..text).step_by(text / 200) {
        let cut = forge().edit_bytes("tokenizer.json", |bytes| bytes.truncate(len));
        assert_eq!(fault(&cut, 2048), Fault::Json, "{len}");
    }
}

#[test]
fn mutations_never_panic() {
    let mut random = Random(0x5EED);
    let model = match shared("models/stories260K") {
        Some(folder) => FileMap::of(&folder),
        None => spm(&[piece(b"<s>", 0.0, 3), piece("▁a".as_bytes(), -1.5, 1)]),
    };
    for (files, name, vocab_size, n) in [(&model, "tokenizer.model", 512, 2000), (&forge(), "tokenizer.json", 2048, 150)] {
        let mut n_sound = 0;
        for _ in 0..n {
            let mutated = files.clone().edit_bytes(name, |bytes| {
                for _ in 0..=random.below(4) {
                    let at = random.below(bytes.len());
                    match random.below(4) {
                        0 => bytes[at] = random.below(256) as u8,
                        1 => bytes[at] ^= 1 << random.below(8),
                        2 => drop(bytes.remove(at)),
                        _ => bytes.insert(at, b"\"{}[]:,0-9\x80\xff"[random.below(12)]),
                    }
                }
            });
            n_sound += usize::from(read(&mutated, vocab_size).is_ok());
        }
        println!("{name}: {n_sound} of {n} mutations are still read");
        assert!(n_sound < n);
    }
}
