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
