//! A converted file equals llama.cpp's, tensor for tensor and key for key, and llama.cpp runs it.
//!
//! `fixtures/reference/` holds what `convert_hf_to_gguf.py` and `llama-quantize` write for four models (made by
//! `tools/dev/reference.py`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use ggforge::gguf::{File, Value};
use serde_json::Value as Json;

mod common;
use common::described::{described, sha256};

const FILE_TYPES: &[&str] =
    &["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K"];

/// Keys whose values differ on purpose.
const OWN_VALUES: &[&str] = &[
    // The reference's metadata is that of one file type; the ids are checked against `FILE_TYPE_IDS`.
    "general.file_type",
];

/// Keys of one model whose values differ on purpose: what our own value is held to is in `tests/proof.rs`.
const OWN_VALUES_OF: &[(&str, &str)] = &[
    // The converter gives every token the same score where tokenizer.json has only merges, and llama.cpp then makes other tokens than
    // the model was trained with. `--token-scores constant` writes the converter's.
    ("tinystories-656K", "tokenizer.ggml.scores"),
];

/// llama.cpp's `general.file_type` ids.
const FILE_TYPE_IDS: &[(&str, u32)] = &[
    ("F32", 0),
    ("F16", 1),
    ("Q4_0", 2),
    ("Q4_1", 3),
    ("Q8_0", 7),
    ("Q5_0", 8),
    ("Q5_1", 9),
    ("Q4_K_S", 14),
    ("Q4_K_M", 15),
    ("Q5_K_S", 16),
    ("Q5_K_M", 17),
    ("Q6_K", 18),
    ("BF16", 32),
];

#[test]
fn forge_3m_equals_llama_cpp() {
    equals_llama_cpp("forge-3m", &common::fixture("hf/forge-3m"));
}

#[test]
fn forge_23m_equals_llama_cpp() {
    on_shared("forge-23m");
}

#[test]
fn stories260k_equals_llama_cpp() {
    on_shared("stories260K");
}

#[test]
fn tinystories_656k_equals_llama_cpp() {
    on_shared("tinystories-656K");
}

fn on_shared(model: &str) {
    if let Some(folder) = common::shared(&format!("models/{model}")) {
        equals_llama_cpp(model, &folder);
    }
}

fn equals_llama_cpp(model: &str, folder: &Path) {
    let reference = common::json(&common::fixture(&format!("reference/{model}.json")));
    let scratch = common::scratch();
    let files = convert_to_all(folder, scratch.path());
    for (file_type, path) in &files {
        let file = File::open(path).expect("a readable file");
        tensors_equal(&file, &reference["file_types"][file_type], &format!("{model} {file_type}"));
        metadata_equal(&file, &reference["metadata"], model, &format!("{model} {file_type}"));
        let id = FILE_TYPE_IDS.iter().find(|(name, _)| name == file_type).expect("a known file type").1;
        assert_eq!(file.get("general.file_type").and_then(|value| value.as_u64()), Some(id.into()), "{model} {file_type}");
    }
    llama_cpp_generates(files.values());
}

/// One run of the program for every file type.
fn convert_to_all(folder: &Path, scratch: &Path) -> BTreeMap<&'static str, PathBuf> {
    let mut command = common::ggforge();
    command.arg("convert").arg(folder).arg("--output").arg(scratch.join("{type}.gguf"));
    for file_type in FILE_TYPES {
        command.args(["--type", file_type]);
    }
    common::succeeds(&mut command);
    FILE_TYPES.iter().map(|&file_type| (file_type, scratch.join(format!("{file_type}.gguf")))).collect()
}

fn tensors_equal(file: &File<'_>, expected: &Json, context: &str) {
    let expected = expected.as_object().expect("tensors by name");
    let names: Vec<&str> = file.tensors().map(|tensor| tensor.name).collect();
    for name in expected.keys() {
        assert!(names.contains(&name.as_str()), "{context}: {name} is missing");
    }
    for tensor in file.tensors() {
        let name = tensor.name;
        let want = expected.get(name).unwrap_or_else(|| panic!("{context}: {name} is not in llama.cpp's file"));
        assert_eq!(tensor.format.name(), want[0].as_str().expect("a type"), "{context}: {name}");
        let dims: Vec<u64> = tensor.shape.iter().rev().copied().collect();
        let want_dims: Vec<u64> = want[1].as_array().expect("dims").iter().map(|dim| dim.as_u64().expect("a dim")).collect();
        assert_eq!(dims, want_dims, "{context}: {name}");
        let bytes = file.tensor_bytes(&tensor).expect("data inside the file");
        assert_eq!(sha256(bytes), want[2].as_str().expect("a hash"), "{context}: the bytes of {name} differ");
    }
}

fn metadata_equal(file: &File<'_>, expected: &Json, model: &str, context: &str) {
    let ours: BTreeMap<String, Json> =
        file.metadata().map(|(key, value)| (key.to_owned(), described(&Value::from(value)))).collect();
    let theirs = expected.as_object().expect("metadata by key");
    for (key, want) in theirs {
        let got = ours.get(key).unwrap_or_else(|| panic!("{context}: {key} is missing"));
        if OWN_VALUES.contains(&key.as_str()) || OWN_VALUES_OF.contains(&(model, key)) {
            continue;
        }
        assert_eq!(got["type"], want["type"], "{context}: type of {key}");
        match want.get("sha256") {
            Some(hash) => assert_eq!((&got["count"], &got["sha256"]), (&want["count"], hash), "{context}: {key}"),
            None => assert_eq!(got["value"], want["value"], "{context}: {key}"),
        }
    }
    let extra: Vec<&String> = ours.keys().filter(|key| !theirs.contains_key(*key)).collect();
    assert!(extra.is_empty(), "{context}: keys that llama.cpp does not write: {extra:?}");
}

/// llama.cpp loads every file and produces 64 tokens from it.
fn llama_cpp_generates<'a>(files: impl Iterator<Item = &'a PathBuf>) {
    let Some(peers) = common::peers("npm/node_modules/node-llama-cpp") else { return };
    let mut command = Command::new("node");
    command.env("GGFORGE_PEERS", peers).arg(common::root().join("tools/dev/generate.mjs")).args(files);
    let output = common::succeeds(&mut command);
    for line in String::from_utf8(output.stdout).expect("UTF-8").lines() {
        let report: Json = serde_json::from_str(line).expect("a JSON line");
        assert_eq!(report["error"], Json::Null, "llama.cpp does not run {}", report["path"]);
        let tokens = report["tokens"].as_array().expect("token ids").len();
        assert!(tokens > 0 && tokens <= 64, "{line}");
    }
}
