//! Vocabularies come out as llama.cpp's converter writes them.

mod common;

use std::path::PathBuf;

use common::files::FileMap;
use common::{fixture, json, root, shared};
use ggforge::gguf::{self, Array, Value};
use ggforge::tokenizer::{self, Model, Options, Scores, Special, TokenType, Vocabulary};
use serde_json::json;
use sha2::{Digest, Sha256};

fn read(files: &FileMap, vocab_size: u32) -> Vocabulary {
    tokenizer::read(files, vocab_size, Options::default()).unwrap_or_else(|e| panic!("{e}"))
}

/// With the scores of llama.cpp's converter.
fn read_with_constant(files: &FileMap, vocab_size: u32) -> Vocabulary {
    let options = Options { scores: Scores::Constant, ..Options::default() };
    tokenizer::read(files, vocab_size, options).unwrap_or_else(|e| panic!("{e}"))
}

fn forge() -> FileMap {
    FileMap::of(&fixture("hf/forge-3m"))
}

/// A value as `tools/dev/reference.py` records it.
fn recorded(value: &Value) -> serde_json::Value {
    let list = |kind: &str, count: usize, bytes: &[u8]| {
        let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        json!({"type": kind, "count": count, "sha256": digest})
    };
    match value {
        Value::U32(x) => json!({"type": "UINT32", "value": x}),
        Value::Bool(x) => json!({"type": "BOOL", "value": x}),
        Value::String(x) => json!({"type": "STRING", "value": String::from_utf8_lossy(x)}),
        Value::Array(Array::F32(x)) => list("[FLOAT32]", x.len(), &x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()),
        Value::Array(Array::I32(x)) => list("[INT32]", x.len(), &x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()),
        Value::Array(Array::String(x)) => {
            let bytes = x.iter().flat_map(|text| (text.len() as u64).to_le_bytes().into_iter().chain(text.iter().copied()));
            list("[STRING]", x.len(), &bytes.collect::<Vec<u8>>())
        }
        other => panic!("{other:?} is not written by the converter"),
    }
}

#[test]
fn four_models_are_equal_to_the_converter_s_key_for_key() {
    let in_fixtures = [("forge-3m", Some(fixture("hf/forge-3m")), 2048)];
    let in_shared = [("forge-23m", 8192), ("stories260K", 512), ("tinystories-656K", 2048)];
    let folders = in_shared.map(|(model, n)| (model, shared(&format!("models/{model}")), n));
    for (model, folder, vocab_size) in in_fixtures.into_iter().chain(folders) {
        let Some(folder) = folder else { continue };
        let reference = json(&fixture(&format!("reference/{model}.json")));
        let expected: Vec<(&String, &serde_json::Value)> =
            reference["metadata"].as_object().expect("metadata").iter().filter(|(key, _)| key.starts_with("tokenizer.")).collect();
        let got: Vec<(String, serde_json::Value)> = read_with_constant(&FileMap::of(&folder), vocab_size)
            .metadata()
            .iter()
            .map(|(key, value)| (key.clone(), recorded(value)))
            .collect();
        let keys = |pairs: &[(String, serde_json::Value)]| pairs.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>();
        assert_eq!(keys(&got), expected.iter().map(|(key, _)| (*key).clone()).collect::<Vec<_>>(), "{model}");
        for ((key, got), (_, expected)) in got.iter().zip(&expected) {
            assert_eq!(got, *expected, "{model}: {key}");
        }
        println!("{model}: {} keys equal", got.len());
    }
}

fn array(file: &gguf::File, key: &str) -> Option<gguf::Array> {
    match file.get(key).map(Value::from) {
        Some(Value::Array(array)) => Some(array),
        _ => None,
    }
}

/// Vocabularies that llama.cpp ships, made from the same files by other versions of its converter.
#[test]
fn known_vocabularies_have_the_tokens_and_merges_that_llama_cpp_ships() {
    for (tokenizer, vocab, vocab_size, pre) in [
        ("gpt2", "gpt-2", 50257, "gpt-2"),
        ("llama2", "llama-spm", 32000, "default"),
        ("phi-3-mini", "phi-3", 32064, "default"),
        ("falcon", "falcon", 65024, "falcon"),
        ("qwen3", "qwen2", 151936, "qwen2"),
    ] {
        let (Some(folder), Some(file)) =
            (shared(&format!("tokenizers/{tokenizer}")), shared(&format!("vocab/ggml-vocab-{vocab}.gguf")))
        else {
            continue;
        };
        let file = gguf::File::open(file).expect("a sound file");
        let got = read(&FileMap::of(&folder), vocab_size);
        assert_eq!(got.pre, pre, "{tokenizer}");
        let Some(Array::String(tokens)) = array(&file, "tokenizer.ggml.tokens") else { panic!("{vocab}: no tokens") };
        for (id, (got, expected)) in got.tokens.iter().zip(&tokens).enumerate() {
            // Qwen3 has added tokens where Qwen2 had padding.
            let is_new = tokenizer == "qwen3" && (151_646..=151_668).contains(&id);
            assert!(got == expected || is_new, "{tokenizer}: token {id} is {:?}", String::from_utf8_lossy(got));
        }
        assert_eq!(got.tokens.len(), tokens.len(), "{tokenizer}");
        if let Some(Array::String(merges)) = array(&file, "tokenizer.ggml.merges") {
            assert!(got.merges.iter().map(String::as_bytes).eq(merges.iter().map(Vec::as_slice)), "{tokenizer}: merges");
        }
        if tokenizer == "llama2" {
            assert_eq!(Some(Array::F32(got.scores.clone())), array(&file, "tokenizer.ggml.scores"));
            let types = got.types.iter().map(|kind| *kind as i32).collect();
            assert_eq!(Some(Array::I32(types)), array(&file, "tokenizer.ggml.token_type"));
        }
        println!("{tokenizer}: {} tokens, {} merges equal", tokens.len(), got.merges.len());
    }
}

fn pre_of(files: &FileMap) -> (&'static str, Vec<String>) {
    let vocabulary = read(files, 2048);
    (vocabulary.pre, vocabulary.warnings)
}

/// forge-3m's vocabulary with another pre-tokenizer.
fn with_steps(steps: serde_json::Value, ignore_merges: bool) -> FileMap {
    forge().edit("tokenizer.json", |tokenizer| {
        tokenizer["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": steps});
        tokenizer["model"]["ignore_merges"] = ignore_merges.into();
    })
}

fn split(regex: &str) -> serde_json::Value {
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
}

fn bytes() -> serde_json::Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false})
}

#[test]
fn a_pre_tokenizer_is_known_by_its_steps_not_by_its_vocabulary() {
    let llama3 =
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let respelled = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\n\r\\p{N}\\p{L}]?+\\p{L}++|\\p{N}{1,3}| ?[^\\p{L}\\s\\p{N}]+[\n\r]*|\\s*[\\n\\r]+|\\s+(?![^\\s])|\\s+";
    let removed = json!({"type": "Split", "pattern": {"Regex": llama3}, "behavior": "Removed", "invert": true});
    let gpt2 = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true});
    let digits = json!({"type": "Digits", "individual_digits": true});
    for (steps, ignore_merges, name) in [
        (json!([split(llama3), bytes()]), true, "llama-bpe"),
        (json!([split(llama3), bytes()]), false, "smaug-bpe"),
        (json!([split(respelled), bytes()]), true, "llama-bpe"),
        (json!([{"type": "Sequence", "pretokenizers": [split(llama3)]}, bytes()]), true, "llama-bpe"),
        (json!([removed, bytes()]), false, "dbrx"),
        (json!([gpt2]), false, "gpt-2"),
        (json!([digits, gpt2]), false, "smollm"),
        (json!([split(&llama3.replace("{1,3}", "")), bytes()]), false, "qwen2"),
        (
            json!([split(r"[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split("[一-龥ࠀ-一가-퟿]+"), digits, bytes()]),
            false,
            "deepseek-coder",
        ),
    ] {
        let (pre, warnings) = pre_of(&with_steps(steps, ignore_merges));
        assert_eq!((pre, warnings), (name, vec![]));
    }
}

#[test]
fn an_unknown_pre_tokenizer_is_a_warning_that_says_what_to_do() {
    let almost =
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,4}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let files = with_steps(json!([split(almost), bytes()]), true);
    let (pre, warnings) = pre_of(&files);
    assert_eq!(pre, "llama-bpe");
    assert!(warnings[0].contains("nearest, llama-bpe,") && warnings[0].contains("--pre NAME"), "{warnings:?}");

    let chosen = tokenizer::read(&files, 2048, Options { pre: Some("tekken"), ..Options::default() }).expect("a vocabulary");
    assert_eq!((chosen.pre, chosen.warnings), ("tekken", vec![]));
    let error = tokenizer::read(&files, 2048, Options { pre: Some("llama-4"), ..Options::default() })
        .expect_err("no such name")
        .to_string();
    assert!(error.contains("\"llama-4\"") && error.contains("llama-bpe, ") && error.contains("qwen2"), "{error}");
    for name in tokenizer::known_pre_names() {
        tokenizer::read(&files, 2048, Options { pre: Some(name), ..Options::default() }).expect("a known name");
    }
}

#[test]
fn ids_without_a_token_are_padded_and_tokens_without_a_row_dropped() {
    let padded = read(&forge(), 2050);
    assert_eq!((padded.tokens[2049].as_slice(), padded.types[2049]), (&b"[PAD2049]"[..], TokenType::Unused));
    assert!(padded.warnings.is_empty());

    let added = forge().edit("tokenizer.json", |tokenizer| {
        let tokens = tokenizer["added_tokens"].as_array_mut().expect("a list");
        tokens.push(json!({"id": 2048, "content": "<tool>", "special": false, "normalized": false}));
    });
    let cut = read(&added, 2048);
    assert_eq!(cut.tokens, read(&forge(), 2048).tokens);
    assert_eq!(cut.warnings, ["1 token has an id beyond the embedding's 2048 rows and is left out"]);
    let whole = read(&added, 2049);
    assert_eq!((whole.tokens[2048].as_slice(), whole.types[2048]), (&b"<tool>"[..], TokenType::UserDefined));
}

#[test]
fn tokens_that_only_the_configuration_names_get_the_next_ids() {
    let files = forge().edit("tokenizer_config.json", |config| {
        config["pad_token"] = "<pad>".into();
        config["added_tokens_decoder"] = json!({
            "2048": {"content": "<|im_end|>", "lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": true},
            "2049": {"content": "a▁b", "lstrip": false, "normalized": true, "rstrip": false, "single_word": false, "special": false},
        });
        config["additional_special_tokens"] = json!(["<|im_end|>", {"content": "<extra>"}]);
    });
    let vocabulary = read(&files, 2056);
    let at = |id: usize| (String::from_utf8_lossy(&vocabulary.tokens[id]).into_owned(), vocabulary.types[id]);
    assert_eq!(at(2048), ("<|im_end|>".to_owned(), TokenType::Control));
    assert_eq!(at(2049), ("a b".to_owned(), TokenType::UserDefined));
    assert_eq!(at(2050), ("<pad>".to_owned(), TokenType::Control));
    assert_eq!(at(2051), ("<extra>".to_owned(), TokenType::Control));
    assert_eq!(at(2052), ("[PAD2052]".to_owned(), TokenType::Unused));
    // The converter takes the ids of roles from tokenizer.json and config.json only.
    assert_eq!(vocabulary.special_id(Special::Pad), None);
}

#[test]
fn added_tokens_are_what_users_type() {
    let files = forge().edit("tokenizer_config.json", |config| {
        let token = |text: &str, special: bool| json!({"content": text, "normalized": false, "special": special});
        config["added_tokens_decoder"] =
            json!({"2048": token("<é>", true), "2049": token("<|Ġ|>", false), "2050": token("a b", false)});
    });
    let vocabulary = read(&files, 2051);
    let added: Vec<_> = (2048..2051).map(|id| (vocabulary.tokens[id].as_slice(), vocabulary.types[id])).collect();
    let expected = [("<é>", TokenType::Control), ("<|Ġ|>", TokenType::Control), ("a b", TokenType::UserDefined)];
    assert_eq!(added, expected.map(|(text, kind)| (text.as_bytes(), kind)));
}

/// A Llama 2 kind of tokenizer.json: text tokens, byte tokens, and a decoder that joins them.
fn byte_fallback() -> FileMap {
    let tokenizer = json!({
        "added_tokens": [{"id": 0, "content": "<unk>", "special": true}, {"id": 6, "content": "<tool>"}, {"id": 7, "content": "<end>"}],
        "normalizer": {"type": "Prepend", "prepend": "▁"},
        "pre_tokenizer": null,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}]},
        "model": {
            "type": "BPE", "byte_fallback": true, "merges": ["▁ a"],
            "vocab": {"<unk>": 0, "<s>": 1, "<0x0A>": 2, "▁": 3, "a": 4, "▁a": 5},
        },
    });
    let config = json!({"tokenizer_class": "LlamaTokenizer", "eos_token": "<end>", "add_bos_token": true});
    FileMap::default().with("tokenizer.json", tokenizer.to_string()).with("tokenizer_config.json", config.to_string())
}

#[test]
fn byte_fallback_becomes_the_llama_kind_with_a_row_for_each_row_of_the_embedding() {
    use TokenType::{Byte, Control, Normal, Unused, UserDefined};
    let vocabulary = read(&byte_fallback(), 10);
    assert_eq!((vocabulary.model, vocabulary.pre, vocabulary.merges.len()), (Model::Llama, "default", 0));
    assert_eq!(vocabulary.types, [Control, Control, Byte, Normal, Normal, Normal, UserDefined, Control, Unused, Unused]);
    assert_eq!(vocabulary.scores, [-1.0, -1.0, -1.0, -1.0, -1.0, 0.0, -1.0, -1.0, -10000.0, -10000.0]);
    assert_eq!(vocabulary.tokens[9], b"[PAD9]");
    assert_eq!((vocabulary.special_id(Special::Eos), vocabulary.add.as_slice()), (Some(7), &[(Special::Bos, true)][..]));
}

#[test]
fn scores_are_the_order_of_the_merges_or_a_constant() {
    let files = byte_fallback().edit("tokenizer.json", |tokenizer| {
        tokenizer["model"]["vocab"]["aa"] = 6.into();
        tokenizer["model"]["merges"] = json!(["a a", "▁ a"]);
    });
    let vocabulary = read(&files, 10);
    assert_eq!(vocabulary.scores, [-2.0, -2.0, -2.0, -2.0, -2.0, -1.0, 0.0, -2.0, -2.0, -10000.0]);
    let constant = read_with_constant(&files, 10);
    assert!(constant.scores[..9].iter().all(|score| *score == -1000.0) && constant.scores[9] == -10000.0);
    let warns = |vocabulary: &Vocabulary| vocabulary.warnings.iter().any(|warning| warning.contains("the same score"));
    assert!(!warns(&vocabulary) && warns(&constant));
}

#[test]
fn sizes_that_mark_a_family_have_its_rules() {
    let files = byte_fallback().edit("tokenizer_config.json", |config| config["eos_token"] = "<tool>".into());
    let code_llama = read(&files, 32016);
    assert_eq!(code_llama.special_id(Special::Eot), Some(32010));
    let granite = read(&files, 49152);
    assert_eq!(granite.add, [(Special::Bos, false)]);
}

#[test]
fn a_chat_template_is_found_wherever_it_is_kept() {
    let template = |files: &FileMap| read(files, 2048).chat_templates;
    assert_eq!(template(&forge()), Default::default());
    let inside = forge().edit("tokenizer_config.json", |config| config["chat_template"] = "{{ inside }}".into());
    assert_eq!(template(&inside).default.as_deref(), Some("{{ inside }}"));
    let beside = inside.clone().with("chat_template.jinja", "{{ beside }}\r\n");
    assert_eq!(template(&beside).default.as_deref(), Some("{{ beside }}\n"));
    assert!(read(&beside, 2048).warnings[0].contains("chat_template.jinja differs"));
    let json = forge().with("chat_template.json", r#"{"chat_template": "{{ json }}"}"#);
    assert_eq!(template(&json).default.as_deref(), Some("{{ json }}"));

    let named = forge().edit("tokenizer_config.json", |config| {
        config["chat_template"] =
            json!([{"name": "tool use", "template": "T"}, {"name": "default", "template": "D"}, {"name": "rag"}]);
    });
    let found = template(&named);
    assert_eq!((found.default.as_deref(), found.named), (Some("D"), vec![("tool_use".to_owned(), "T".to_owned())]));
    let additional = beside.with("additional_chat_templates/rag.jinja", "R");
    assert_eq!(template(&additional).named, vec![("rag".to_owned(), "R".to_owned())]);
    let metadata = read(&additional, 2048).metadata();
    let has = |key: &str, value: Value| assert!(metadata.contains(&(key.to_owned(), value)), "{key}");
    has("tokenizer.chat_template.rag", "R".into());
    has("tokenizer.chat_templates", Value::Array(Array::String(vec![b"rag".to_vec()])));
    has("tokenizer.chat_template", "{{ beside }}\n".into());
}

#[test]
fn what_is_added_around_a_text_is_always_said() {
    let bos = |files: &FileMap| read(files, 2048).add.iter().find(|(special, _)| *special == Special::Bos).map(|(_, add)| *add);
    assert_eq!(bos(&forge()), Some(true));
    // llama.cpp would add bos by itself for llama-bpe; the files say nothing, so Hugging Face adds none.
    let silent = forge().edit("tokenizer.json", |tokenizer| tokenizer["post_processor"] = json!(null));
    let silent =
        silent.edit("tokenizer_config.json", |config| drop(config.as_object_mut().expect("an object").remove("add_bos_token")));
    assert_eq!(bos(&silent), Some(false));
    // A text given as an object is that text.
    let object = forge().edit("tokenizer_config.json", |config| config["bos_token"] = json!({"content": "<|begin_of_text|>"}));
    assert_eq!(read(&object, 2048).metadata(), read(&forge(), 2048).metadata());
}

#[test]
fn an_eos_that_the_template_replaces_ends_turns() {
    let files = forge().edit("tokenizer.json", |tokenizer| {
        let piece = |text: &str| json!({"SpecialToken": {"id": text, "type_id": 0}});
        tokenizer["post_processor"]["single"] = json!([{"Sequence": {"id": "A", "type_id": 0}}, piece("<|begin_of_text|>")]);
        tokenizer["post_processor"]["pair"] = json!([]);
    });
    let vocabulary = read(&files, 2048);
    assert_eq!(vocabulary.special_id(Special::Eos), Some(2046));
    assert_eq!(vocabulary.special_id(Special::Eot), Some(2047));
}

#[test]
fn bos_and_eos_are_searched_where_the_converter_does_not_look() {
    let files = forge().without("config.json").edit("tokenizer.json", |tokenizer| tokenizer["added_tokens"] = json!([]));
    let files = files.edit("tokenizer.json", |tokenizer| {
        tokenizer["model"]["vocab"]["<|begin_of_text|>"] = 2046.into();
        tokenizer["model"]["vocab"]["<|end_of_text|>"] = 2047.into();
    });
    let vocabulary = read(&files, 2048);
    assert_eq!(vocabulary.special_id(Special::Bos), Some(2046));
    let files = forge().without("tokenizer_config.json").without("config.json");
    let files = files.with("generation_config.json", r#"{"bos_token_id": 5, "eos_token_id": [7, 8]}"#);
    let vocabulary = read(&files, 2048);
    assert_eq!((vocabulary.special_id(Special::Bos), vocabulary.special_id(Special::Eos)), (Some(2046), Some(7)));
}

#[test]
fn a_tiktoken_list_called_tokenizer_model_is_passed_over() {
    let files = forge().with("tokenizer.model", "IQ== 0\nIg== 1\n");
    let vocabulary = read(&files, 2048);
    assert_eq!(vocabulary.model, Model::Gpt2);
    assert!(vocabulary.warnings[0].contains("tiktoken"), "{:?}", vocabulary.warnings);
}

#[test]
fn the_older_form_is_equal_to_tokenizer_json() {
    for tokenizer in ["gpt2", "smollm"] {
        let Some(folder) = shared(&format!("tokenizers/{tokenizer}")) else { continue };
        let files = FileMap::of(&folder);
        let (json, split) = (read(&files, 50304), read(&files.clone().without("tokenizer.json"), 50304));
        assert_eq!(json.tokens, split.tokens, "{tokenizer}");
        assert_eq!(json.types, split.types, "{tokenizer}");
        assert_eq!(json.merges, split.merges, "{tokenizer}");
    }
}

#[test]
fn a_real_folder_reads_as_its_files() {
    let path: PathBuf = root().join("fixtures/hf/forge-3m");
    let folder = ggforge::hf::Folder::open(&path).expect("a sound folder");
    let vocabulary = tokenizer::read(&folder, 2048, Options::default()).expect("a vocabulary");
    assert_eq!(vocabulary, read(&forge(), 2048));
}

/// A SentencePiece model of pieces with their type, each with a score of minus its id.
fn sentence_piece(pieces: &[(&str, u8)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (id, (text, kind)) in pieces.iter().enumerate() {
        let mut piece = vec![0x0a, text.len() as u8];
        piece.extend_from_slice(text.as_bytes());
        piece.push(0x15);
        piece.extend_from_slice(&(-(id as f32)).to_le_bytes());
        piece.extend_from_slice(&[0x18, *kind]);
        bytes.extend_from_slice(&[0x0a, piece.len() as u8]);
        bytes.extend_from_slice(&piece);
    }
    // Trained as BPE.
    bytes.extend_from_slice(&[0x12, 2, 0x18, 2]);
    bytes
}

/// The pieces that [`byte_fallback`] was made of.
const PIECES: [(&str, u8); 6] = [("<unk>", 2), ("<s>", 3), ("<0x0A>", 6), ("▁", 1), ("a", 1), ("▁a", 1)];

#[test]
fn added_tokens_of_tokenizer_json_are_placed_beside_tokenizer_model() {
    let vocabulary = read(&byte_fallback().with("tokenizer.model", sentence_piece(&PIECES)), 9);
    let tokens: Vec<&str> = vocabulary.tokens.iter().map(|text| str::from_utf8(text).expect("UTF-8")).collect();
    assert_eq!(tokens, ["<unk>", "<s>", "<0x0A>", "▁", "a", "▁a", "<tool>", "<end>", "[PAD8]"]);
    assert_eq!(vocabulary.types[6..], [TokenType::UserDefined, TokenType::Control, TokenType::Unused]);
    assert_eq!(vocabulary.scores[4..8], [-4.0, -5.0, -1000.0, -1000.0]);
    assert_eq!(vocabulary.special_id(Special::Eos), Some(7));
    assert!(!vocabulary.warnings.iter().any(|warning| warning.contains("tokenizer.json")), "{:?}", vocabulary.warnings);
    // What was an ordinary piece to SentencePiece alone stands for itself as an added token.
    let files = byte_fallback().edit("tokenizer.json", |json| {
        json["added_tokens"] = json!([{"id": 4, "content": "a", "special": false}, {"id": 1, "content": "<s>", "special": true}]);
    });
    let vocabulary = read(&files.with("tokenizer.model", sentence_piece(&PIECES)), 6);
    assert_eq!(vocabulary.types[4..], [TokenType::UserDefined, TokenType::Normal]);
}

#[test]
fn where_tokenizer_model_and_tokenizer_json_disagree_the_latter_wins_and_it_is_said() {
    // A control token of another name.
    let mut pieces = PIECES;
    pieces[1].0 = "<bos>";
    let files = byte_fallback().edit("tokenizer.json", |json| {
        json["added_tokens"].as_array_mut().expect("a list").push(json!({"id": 1, "content": "<s>", "special": true}));
    });
    let vocabulary = read(&files.with("tokenizer.model", sentence_piece(&pieces)), 8);
    assert_eq!(vocabulary.tokens[1], b"<s>");
    let expected =
        r#"tokenizer.json is used where tokenizer.model disagrees with it: 1 of its tokens, such as 1: "<s>", not "<bos>""#;
    assert_eq!(vocabulary.warnings[0], expected);
    // A token that was trained later, one that is gone, and another tokenizer altogether.
    let longer = byte_fallback().edit("tokenizer.json", |json| {
        json["model"]["vocab"]["aa"] = 6.into();
        json["model"]["merges"].as_array_mut().expect("a list").push("a a".into());
        json["added_tokens"] = json!([]);
    });
    for (files, pieces, n, said) in [
        (longer, &PIECES[..], 7, r#"token 6 is "aa" in tokenizer.json and nothing in tokenizer.model"#),
        (byte_fallback(), &[&PIECES[..], &[("aa", 1)]].concat(), 8, ""),
        (byte_fallback(), &[&PIECES[..5], &[("▁aa", 1)]].concat(), 8, r#"token 5 is "▁a" in tokenizer.json and "▁aa""#),
        (forge(), &PIECES[..], 2048, r#"token 3 is "$" in tokenizer.json and "▁""#),
    ] {
        let alone = read(&files, n);
        let mut both = read(&files.with("tokenizer.model", sentence_piece(pieces)), n);
        if said.is_empty() {
            // The added token <tool> has the id of the piece that is gone.
            assert_eq!(both.tokens, alone.tokens);
            continue;
        }
        let warning = both.warnings.remove(0);
        assert!(warning.contains(said) && warning.ends_with("tokenizer.json is used, tokenizer.model is not"), "{warning}");
        assert_eq!(both, alone);
    }
}

#[test]
fn a_byte_fallback_tokenizer_without_a_prefix_space_says_so() {
    assert_eq!(read(&byte_fallback(), 8).add_space_prefix, None);
    let with = |normalizer: serde_json::Value, pre_tokenizer: serde_json::Value| {
        let files = byte_fallback().edit("tokenizer.json", |json| {
            json["normalizer"] = normalizer;
            json["pre_tokenizer"] = pre_tokenizer;
        });
        let beside = files.clone().with("tokenizer.model", sentence_piece(&PIECES));
        assert_eq!(read(&files, 8).add_space_prefix, read(&beside, 8).add_space_prefix);
        read(&files, 8).add_space_prefix
    };
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    assert_eq!(with(replace.clone(), json!(null)), Some(false));
    assert_eq!(with(json!(null), json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never"})), Some(false));
    assert_eq!(with(json!(null), json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"})), None);
    assert_eq!(with(json!(null), json!({"type": "Metaspace", "replacement": "▁", "add_prefix_space": true})), None);
    let nested = json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]});
    assert_eq!(with(nested, json!(null)), None);
}

#[test]
fn every_id_of_an_eos_list_ends_generation() {
    let files = forge().edit("config.json", |config| config["eos_token_id"] = json!([2047, 300, 301, 302]));
    let files = files.edit("generation_config.json", |config| config["eos_token_id"] = json!([2047, 300, 301, 302]));
    let vocabulary = read(&files, 2048);
    let ids = [Special::Eos, Special::Eot, Special::Eom].map(|role| vocabulary.special_id(role));
    assert_eq!(ids, [Some(2047), Some(300), Some(301)]);
    let said: Vec<&String> = vocabulary.warnings.iter().filter(|warning| warning.contains("eos")).collect();
    assert!(said.len() == 1 && said[0].contains("no key for 1 of the ids in eos_token_id"), "{said:?}");

    let mut metadata: gguf::Metadata = vec![("general.architecture".to_owned(), "llama".into())];
    metadata.extend(vocabulary.metadata());
    let bytes = gguf::Header { metadata, tensors: Vec::new() }.layout().expect("a header").header;
    let file = gguf::File::parse("case.gguf", &bytes).expect("a sound file");
    let tokenizer = tokenizer::encode::Tokenizer::from_metadata(&file).expect("a tokenizer");
    assert_eq!([2047, 300, 301, 302].map(|id| tokenizer.ends_generation(id)), [true, true, true, false]);
}

/// Readers know this one by its spelling, so it needs no key, but other programs may not.
#[test]
fn an_end_that_is_known_by_its_spelling_leaves_the_key_to_others() {
    let named = |ids: serde_json::Value| {
        let files = forge().edit("tokenizer.json", |json| {
            let added = json["added_tokens"].as_array_mut().expect("a list");
            added.push(json!({"id": 2048, "content": "<|eot_id|>", "special": true}));
            added.push(json!({"id": 2049, "content": "<|my_end|>", "special": true}));
        });
        let files = files.edit("config.json", |config| config["eos_token_id"] = ids.clone());
        let vocabulary = read(&files.edit("generation_config.json", |config| config["eos_token_id"] = ids), 2050);
        [Special::Eot, Special::Eom].map(|role| vocabulary.special_id(role))
    };
    assert_eq!(named(json!([2047, 2048])), [Some(2048), None]);
    assert_eq!(named(json!([2047, 2048, 2049])), [Some(2049), None]);
    assert_eq!(named(json!(2047)), [None, None]);
}

#[test]
fn files_that_disagree_about_eos_are_named() {
    let said = |config: serde_json::Value, generation: serde_json::Value| {
        let files = forge().edit("config.json", |json| json["eos_token_id"] = config);
        let vocabulary = read(&files.edit("generation_config.json", |json| json["eos_token_id"] = generation), 2048);
        (vocabulary.special_id(Special::Eot), vocabulary.warnings)
    };
    assert_eq!(said(json!(2047), json!(2047)), (None, vec![]));
    assert_eq!(said(json!([2047, 300]), json!([300, 2047])), (Some(300), vec![]));
    let expected = "the files disagree about eos: 2047 in config.json; 2047, 300 in generation_config.json; 2047 in \
                    tokenizer_config.json; token 2047 is written as eos, and generation stops at the others too";
    assert_eq!(said(json!(2047), json!([2047, 300])), (Some(300), vec![expected.to_owned()]));
    assert!(said(json!(300), json!(300)).1[0].contains("300 in config.json"));
}

#[test]
fn an_older_form_does_not_say_how_text_is_cut() {
    let json: serde_json::Value = serde_json::from_slice(&forge().0["tokenizer.json"]).expect("JSON");
    let merges = json["model"]["merges"].as_array().expect("merges").iter().map(|merge| match merge.as_array() {
        Some(pair) => format!("{} {}\n", pair[0].as_str().expect("text"), pair[1].as_str().expect("text")),
        None => format!("{}\n", merge.as_str().expect("text")),
    });
    let merges = merges.collect::<String>();
    let files = FileMap::default().with("vocab.json", json["model"]["vocab"].to_string()).with("merges.txt", merges);
    let warnings = read(&files, 2048).warnings;
    for part in ["gpt-2's way is assumed, and --pre NAME", "which token is bos", "which token is eos"] {
        assert!(warnings.iter().any(|warning| warning.contains(part)), "{part}: {warnings:?}");
    }
    let about_pre = |vocabulary: Vocabulary| vocabulary.warnings.iter().any(|warning| warning.contains("--pre"));
    let given = Options { pre: Some("llama-bpe"), ..Options::default() };
    assert!(!about_pre(tokenizer::read(&files, 2048, given).expect("a vocabulary")));
    let gpt2 = files.with("tokenizer_config.json", r#"{"tokenizer_class": "GPT2Tokenizer"}"#);
    assert!(!about_pre(read(&gpt2, 2048)));
}

/// The tokenizer.json of t5-small, for one.
#[test]
fn a_model_without_a_type_is_known_by_its_parts() {
    let kind = |model: serde_json::Value| {
        let files = FileMap::default().with("tokenizer.json", json!({ "model": model }).to_string());
        tokenizer::read(&files, 8, Options::default()).expect_err("a kind that is not supported").to_string()
    };
    let t5 = json!({"unk_id": 2, "vocab": [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["▁", -2.0]]});
    assert!(kind(t5.clone()).contains("a tokenizer of kind Unigram"));
    let vocab = json!({"[UNK]": 0, "a": 1});
    let word_piece =
        json!({"unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab});
    assert!(kind(word_piece).contains("a tokenizer of kind WordPiece"));
    assert!(kind(json!({"unk_token": "[UNK]", "vocab": vocab})).contains("a tokenizer of kind WordLevel"));
    assert!(kind(json!({"unk_token": "[UNK]"})).contains("it has no type"));
    let files = FileMap::default().with("tokenizer.json", json!({ "model": t5 }).to_string());
    assert_eq!(read(&files.with("tokenizer.model", sentence_piece(&PIECES)), 6).tokens[4], b"a");
    let untyped = forge().edit("tokenizer.json", |json| drop(json["model"].as_object_mut().expect("an object").remove("type")));
    assert_eq!(read(&untyped, 2048), read(&forge(), 2048));
}

#[test]
fn special_tokens_beyond_what_is_looked_for_are_refused() {
    let with = |n_bytes: usize| {
        let files = forge().edit("tokenizer.json", |json| {
            let long = json!({"id": 2048, "content": "a".repeat(n_bytes), "special": true});
            json["added_tokens"].as_array_mut().expect("a list").push(long);
        });
        tokenizer::read(&files, 2049, Options::default())
    };
    assert_eq!(with(1 << 20).expect("a vocabulary").tokens[2048].len(), 1 << 20);
    let error = with(1 << 22).expect_err("too many bytes");
    assert!(matches!(error, ggforge::Error::Limit { .. }) && error.to_string().contains("bytes of special tokens"), "{error}");
}
