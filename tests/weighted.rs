//! Models quantized with an importance matrix equal llama-quantize's, and matrices of other models are refused before any work.

mod common;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use ggforge::Error;
use ggforge::gguf::{File, Model};
use ggforge::hf::Folder;
use ggforge::imatrix::{Entry, Imatrix, Wanted};
use ggforge::pipeline::{self, Options};
use ggforge::plan::recipe::preset;
use ggforge::plan::{ConvertOptions, QuantizeOptions, convert, quantize};
use ggforge::quant::Format;
use sha2::{Digest, Sha256};

fn fixture(name: &str) -> PathBuf {
    common::fixture("imatrix").join(name)
}

fn open(name: &str) -> Imatrix {
    Imatrix::open(fixture(name)).expect("a sound file")
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// forge-3m in F32, as convert writes it.
fn forge_3m(folder: &Path) -> PathBuf {
    let path = folder.join("forge-3m-F32.gguf");
    let source = Folder::open(common::fixture("hf/forge-3m")).expect("the fixture");
    let options = ConvertOptions { presets: vec![preset("F32").expect("a preset")], ..ConvertOptions::default() };
    let plan = convert(&source, &options).expect("a model that can be converted");
    let paths = std::slice::from_ref(&path);
    pipeline::run(&plan, &source, paths, &Options::default(), &|_| {}, &AtomicBool::new(false)).expect("written");
    path
}

/// `fixtures/reference/forge-3m-imatrix.json` holds what `llama-quantize --imatrix` writes.
#[test]
fn quantized_with_a_matrix_equals_llama_quantize() {
    let scratch = common::scratch();
    let input = forge_3m(scratch.path());
    let model = Model::open(&input).expect("our own file");
    let reference = common::json(&common::fixture("reference/forge-3m-imatrix.json"));
    for (matrix, made) in reference.as_object().expect("matrices by name") {
        let imatrix = open(matrix);
        for (file_type, tensors) in made["file_types"].as_object().expect("file types by name") {
            let options = QuantizeOptions {
                presets: vec![preset(file_type).expect("a preset")],
                imatrix: Some(&imatrix),
                ..QuantizeOptions::default()
            };
            let refused = match quantize(&model, &options) {
                Err(Error::Unsupported { what, .. }) => Some(what),
                planned => planned.map(|_| None).expect("a plan"),
            };
            if let Some(what) = refused {
                println!("skipped: {file_type} with {matrix}: {what}");
                assert!(!tensors.as_object().expect("tensors").values().all(|tensor| can_be_weighted(&tensor[0])), "{what}");
                continue;
            }
            let output = scratch.path().join("output.gguf");
            let mut command = common::ggforge();
            command.arg("quantize").arg(&input).args(["--type", file_type, "--force"]);
            common::succeeds(command.arg("--imatrix").arg(fixture(matrix)).arg("--output").arg(&output));
            let file = File::open(&output).expect("our own file");
            for (key, value) in made["metadata"].as_object().expect("metadata by key") {
                let found = file.get(key).unwrap_or_else(|| panic!("{file_type} with {matrix}: {key} is missing"));
                let found = found.as_str().map_or_else(|| found.as_u64().into(), serde_json::Value::from);
                assert_eq!(found, value["value"], "{file_type} with {matrix}: {key}");
            }
            for (name, expected) in tensors.as_object().expect("tensors by name") {
                let tensor = file.tensor(name).unwrap_or_else(|| panic!("{file_type} with {matrix}: {name} is missing"));
                assert_eq!(tensor.format.name(), expected[0], "{file_type} with {matrix}: {name}");
                let bytes = file.tensor_bytes(&tensor).expect("in the file");
                assert_eq!(sha256(bytes), expected[2], "{file_type} with {matrix}: the bytes of {name}");
            }
        }
    }
}

/// With our importances, ggml's own quantizers write what `llama-quantize --imatrix` writes, in every format.
#[test]
fn importances_are_those_of_llama_quantize() {
    let Some(ggml) = common::ggml::Ggml::load() else { return };
    let scratch = common::scratch();
    let input = File::open(forge_3m(scratch.path())).expect("our own file");
    let reference = common::json(&common::fixture("reference/forge-3m-imatrix.json"));
    let mut n_compared = 0;
    for (matrix, made) in reference.as_object().expect("matrices by name") {
        let imatrix = open(matrix);
        for (file_type, tensors) in made["file_types"].as_object().expect("file types by name") {
            for (name, expected) in tensors.as_object().expect("tensors by name") {
                let format: Format = expected[0].as_str().expect("a name").parse().expect("a format");
                // A few show it; all 725 that differ are equal too. ggml needs many seconds to build its tables for the rest.
                let is_quick = !matches!(format, Format::F32 | Format::IQ1_S | Format::IQ1_M | Format::IQ2_XS | Format::IQ2_S);
                let names = ["blk.2.attn_k.weight", "blk.2.attn_v.weight", "blk.1.ffn_down.weight"];
                if !is_quick || !names.contains(&name.as_str()) {
                    continue;
                }
                let tensor = input.tensor(name).expect("a tensor of the model");
                let bytes = input.tensor_bytes(&tensor).expect("in the file");
                let weights: Vec<f32> = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
                let row_len = *tensor.shape.last().expect("a matrix") as usize;
                let importance = imatrix.importance(Wanted { name, n_experts: 1, n_columns: row_len }).expect("a fitting entry");
                let mut blocks = vec![0; weights.len() / format.block_len() * format.block_bytes()];
                ggml.quantize(format, &weights, row_len, importance.as_ref().map(|importance| importance.expert(0)), &mut blocks);
                assert_eq!(sha256(&blocks), expected[2], "{file_type} with {matrix}: {name} in {format}");
                n_compared += 1;
            }
        }
    }
    assert_eq!(n_compared, 64);
}

/// True for a format that can be written, and either makes use of importances or has no use for them in ggml either.
fn can_be_weighted(format: &serde_json::Value) -> bool {
    let format: Format = format.as_str().expect("a name").parse().expect("a format");
    let ignores = matches!(format, Format::F32 | Format::Q8_0 | Format::TQ1_0 | Format::TQ2_0);
    format.can_quantize() && (ignores || format.uses_importance())
}

#[test]
fn the_program_refuses_matrices_that_do_not_fit() {
    let scratch = common::scratch();
    let input = forge_3m(scratch.path());
    let output = scratch.path().join("output.gguf");
    let run = |matrix: &Imatrix, arguments: &[&str]| {
        let path = scratch.path().join("matrix.gguf");
        matrix.write_gguf(&mut std::fs::File::create(&path).expect("a file")).expect("written");
        let mut command = common::ggforge();
        command.arg("quantize").arg(&input).args(["--type", "Q8_0", "--dry-run", "--output"]).arg(&output);
        let done = command.arg("--imatrix").arg(&path).args(arguments).output().expect("a program that starts");
        (done.status.code(), String::from_utf8(done.stdout).expect("text"), String::from_utf8(done.stderr).expect("text"))
    };
    let mut matrix = open("forge-3m.gguf");
    matrix.entries.insert("blk.2.ffn_up.weight".to_owned(), Entry::new(vec![1.0; 128], vec![1]).expect("a sound entry"));
    let (code, _, said) = run(&matrix, &[]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("blk.2.ffn_up.weight") && said.contains("ImatrixLength"), "{said}");
    let (code, report, said) = run(&matrix, &["--exclude-weights", "blk.2.ffn_up"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(report.contains("importance for 27 of 29 tensors; none for token_embd.weight, blk.2.ffn_up.weight\n"), "{report}");

    matrix.entries.insert("blk.2.ffn_up.weight".to_owned(), Entry::new(vec![0.0; 256], vec![1]).expect("a sound entry"));
    let (code, _, said) = run(&matrix, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("warning: blk.2.ffn_up.weight: its entry in the importance matrix holds no data"), "{said}");
    assert_eq!(run(&matrix, &["--exclude-weights", "a", "--include-weights", "b"]).0, Some(2));
}
