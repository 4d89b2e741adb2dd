//! Models quantized with an importance matrix equal llama-quantize's, and matrices of other models are refused before any work.

mod common;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use common::Paint;
use ggforge::Error;
use ggforge::gguf::{File, Header, Metadata, Model, TensorSpec, Value, keys};
use ggforge::hf::Folder;
use ggforge::imatrix::{CHUNK_SIZE_DEFAULT, Entry, Imatrix, Wanted};
use ggforge::pipeline::{self, Options};
use ggforge::plan::recipe::preset;
use ggforge::plan::{ConvertOptions, QuantizeOptions, convert, quantize};
use ggforge::quant::Format;
use serde_json::Value as Json;
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

/// The model that `tools/dev/reference_experts.py` makes as well, by the same formula.
const EXPERTS_SHAPES: [(&str, &[u64]); 6] = [
    ("token_embd.weight", &[64, 256]),
    ("output_norm.weight", &[256]),
    ("blk.0.attn_v.weight", &[256, 256]),
    ("blk.0.ffn_gate_inp.weight", &[4, 256]),
    ("blk.0.ffn_down_exps.weight", &[4, 256, 512]),
    ("blk.0.ffn_up_exps.weight", &[4, 512, 256]),
];

/// A model with four experts.
fn experts(folder: &Path) -> PathBuf {
    let numbers = [
        (keys::BLOCK_COUNT, 1),
        (keys::EMBEDDING_LENGTH, 256),
        (keys::ATTENTION_HEAD_COUNT, 4),
        (keys::EXPERT_COUNT, 4),
        (keys::EXPERT_USED_COUNT, 2),
    ];
    let mut metadata: Metadata = vec![(keys::GENERAL_ARCHITECTURE.to_owned(), "llama".into())];
    metadata.extend(numbers.map(|(key, number)| (keys::of("llama", key), Value::U32(number))));
    let spec = |(name, shape): (&str, &[u64])| TensorSpec { name: name.to_owned(), format: Format::F32, shape: shape.to_vec() };
    let header = Header { metadata, tensors: EXPERTS_SHAPES.map(spec).to_vec() };
    let layout = header.layout().expect("a sound header");
    let mut bytes = layout.header;
    for (seed, (offset, size)) in layout.offsets_bytes.iter().zip(layout.sizes_bytes).enumerate() {
        bytes.resize(*offset as usize, 0);
        let weights = Paint::new(seed as u64).weights(size as usize / 4, Paint::bell);
        bytes.extend(weights.iter().flat_map(|weight| weight.to_le_bytes()));
    }
    let path = folder.join("experts.gguf");
    std::fs::write(&path, bytes).expect("written");
    path
}

/// A matrix for that model: expert 1 was never reached.
fn experts_matrix(folder: &Path) -> PathBuf {
    let mut imatrix = Imatrix::new(CHUNK_SIZE_DEFAULT);
    for (seed, (name, shape)) in
        EXPERTS_SHAPES.iter().enumerate().filter(|(_, (name, _))| name.contains("attn_v") || name.contains("exps"))
    {
        let counts = if shape.len() == 3 { vec![10, 0, 5, 1] } else { vec![7] };
        let n_sums = counts.len() * *shape.last().expect("columns") as usize;
        let sums = Paint::new(100 + seed as u64).weights(n_sums, Paint::bell).iter().map(|x| x * x).collect();
        imatrix.entries.insert((*name).to_owned(), Entry::new(sums, counts).expect("a sound entry"));
    }
    let path = folder.join("experts-imatrix.gguf");
    imatrix.write_gguf(&mut std::fs::File::create(&path).expect("a file")).expect("written");
    path
}

/// What `llama-quantize --imatrix` wrote for a model and a matrix.
struct Case {
    model: PathBuf,
    matrix: PathBuf,
    /// Under `file_types`, per tensor: format, dimensions, SHA-256.
    made: Json,
}

impl Case {
    /// forge-3m with a matrix of each format, and a model of experts.
    fn all(folder: &Path) -> Vec<Case> {
        let forge_3m = forge_3m(folder);
        let reference = common::json(&common::fixture("reference/forge-3m-imatrix.json"));
        let of_forge = |name: &str| Case { model: forge_3m.clone(), matrix: fixture(name), made: reference[name].clone() };
        let made = common::json(&common::fixture("reference/experts-imatrix.json"));
        let of_experts = Case { model: experts(folder), matrix: experts_matrix(folder), made };
        vec![of_forge("forge-3m.gguf"), of_forge("forge-3m.dat"), of_experts]
    }

    fn file_types(&self) -> impl Iterator<Item = (&String, &serde_json::Map<String, Json>)> {
        let tensors = |(name, made)| (name, Json::as_object(made).expect("tensors by name"));
        self.made["file_types"].as_object().expect("file types by name").iter().map(tensors)
    }

    /// Why we cannot write this file type with the matrix yet.
    fn refusal(&self, file_type: &str) -> Option<String> {
        let model = Model::open(&self.model).expect("our own file");
        let imatrix = Imatrix::open(&self.matrix).expect("a sound file");
        let presets = vec![preset(file_type).expect("a preset")];
        match quantize(&model, &QuantizeOptions { presets, imatrix: Some(&imatrix), ..QuantizeOptions::default() }) {
            Err(Error::Unsupported { what, .. }) => Some(what),
            planned => planned.map(|_| None).expect("a plan"),
        }
    }
}

#[test]
fn quantized_with_a_matrix_equals_llama_quantize() {
    let scratch = common::scratch();
    for case in Case::all(scratch.path()) {
        for (file_type, tensors) in case.file_types() {
            let context = format!("{file_type} with {}", case.matrix.display());
            if let Some(what) = case.refusal(file_type) {
                println!("refused, as it should be: {context}: {what}");
                assert!(!tensors.values().all(|tensor| can_be_weighted(&tensor[0])), "{context}: {what}");
                continue;
            }
            let output = scratch.path().join("output.gguf");
            let mut command = common::ggforge();
            command.arg("quantize").arg(&case.model).args(["--type", file_type, "--force"]);
            common::succeeds(command.arg("--imatrix").arg(&case.matrix).arg("--output").arg(&output));
            let file = File::open(&output).expect("our own file");
            for (key, value) in case.made["metadata"].as_object().into_iter().flatten() {
                let found = file.get(key).unwrap_or_else(|| panic!("{context}: {key} is missing"));
                let found = found.as_str().map_or_else(|| found.as_u64().into(), Json::from);
                assert_eq!(found, value["value"], "{context}: {key}");
            }
            for (name, expected) in tensors {
                let tensor = file.tensor(name).unwrap_or_else(|| panic!("{context}: {name} is missing"));
                assert_eq!(tensor.format.name(), expected[0], "{context}: {name}");
                let bytes = file.tensor_bytes(&tensor).expect("in the file");
                assert_eq!(sha256(bytes), expected[2], "{context}: the bytes of {name}");
            }
        }
    }
}

/// With our importances, ggml's own quantizers write what `llama-quantize --imatrix` writes, in every format.
#[test]
fn importances_are_those_of_llama_quantize() {
    let Some(ggml) = common::ggml::load() else { return };
    let scratch = common::scratch();
    let mut n_compared = 0;
    for case in Case::all(scratch.path()) {
        let input = File::open(&case.model).expect("our own file");
        let imatrix = Imatrix::open(&case.matrix).expect("a sound file");
        for (file_type, tensors) in case.file_types() {
            for (name, expected) in tensors {
                let format: Format = expected[0].as_str().expect("a name").parse().expect("a format");
                if !is_quick(name, format) {
                    continue;
                }
                let tensor = input.tensor(name).expect("a tensor of the model");
                let bytes = input.tensor_bytes(&tensor).expect("in the file");
                let weights: Vec<f32> = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
                let (n_experts, n_columns) = match tensor.shape[..] {
                    [n_experts, _, n_columns] => (n_experts as usize, n_columns as usize),
                    _ => (1, *tensor.shape.last().expect("a matrix") as usize),
                };
                let importance = imatrix.importance(Wanted { name, n_experts, n_columns }).expect("a fitting entry");
                let mut blocks = vec![0; weights.len() / format.block_len() * format.block_bytes()];
                let (n_weights, n_bytes) = (weights.len() / n_experts, blocks.len() / n_experts);
                for (expert, (weights, blocks)) in weights.chunks(n_weights).zip(blocks.chunks_mut(n_bytes)).enumerate() {
                    ggml.quantize(format, weights, n_columns, importance.as_ref().map(|columns| columns.expert(expert)), blocks);
                }
                assert_eq!(sha256(&blocks), expected[2], "{file_type} with {}: {name} in {format}", case.matrix.display());
                n_compared += 1;
            }
        }
    }
    assert_eq!(n_compared, 64 + 8 * 2);
}

/// A few tensors show it; all 725 of forge-3m that are quantized are equal too. ggml needs many seconds to build its tables for the
/// formats left out.
fn is_quick(name: &str, format: Format) -> bool {
    let names = [
        "blk.2.attn_k.weight",
        "blk.2.attn_v.weight",
        "blk.1.ffn_down.weight",
        "blk.0.ffn_down_exps.weight",
        "blk.0.ffn_up_exps.weight",
    ];
    names.contains(&name) && !matches!(format, Format::IQ1_S | Format::IQ1_M | Format::IQ2_XS | Format::IQ2_S)
}

/// True for a format that can be written, and either makes use of importances or has no use for them in ggml either.
fn can_be_weighted(format: &Json) -> bool {
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
        let done = command.arg("--imatrix").arg(&path).args(arguments).arg("--verbose").output().expect("a program that starts");
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
