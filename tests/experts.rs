//! Mixtures of experts run as in llama.cpp: perplexity, greedy text and importance matrices of small models of three architectures.
//!
//! `tools/dev/experts.py` makes the same models and ran llama.cpp's tools on them, with keys and values in F32.

mod common;

use std::path::PathBuf;

use ggforge::gguf::{Model, Value};
use ggforge::imatrix::Imatrix;
use ggforge::source::TensorSource;
use serde_json::Value as Json;

use common::tiny::Tiny;

const ARCHITECTURES: [&str; 3] = ["llama", "qwen2moe", "qwen3moe"];

/// Relative. llama-perplexity prints four decimals of some thousands, and sums in f32.
const PPL_TOLERANCE: f64 = 1e-5;

/// Relative, on average over columns; llama-imatrix adds up in f32.
const SUMS_TOLERANCE: f64 = 1e-5;

/// The models, with the vocabulary of forge-3m.
struct Models {
    folder: tempfile::TempDir,
}

impl Models {
    fn new() -> Models {
        let folder = common::scratch();
        let forge = folder.path().join("forge.gguf");
        let folder_of_forge = common::fixture("hf/forge-3m");
        common::succeeds(
            common::ggforge().arg("convert").arg(folder_of_forge).args(["--quiet", "--type", "F32", "--output"]).arg(&forge),
        );
        let metadata = Model::open(&forge).expect("a model").to_metadata();
        for architecture in ARCHITECTURES {
            let mut tiny = Tiny::with_experts(architecture);
            for name in ["token_embd.weight", "output.weight"] {
                tiny.tensors.retain(|tensor| tensor.0 != name);
                tiny.add(name, &[2048, 32]);
            }
            tiny.set(&format!("{architecture}.vocab_size"), Value::U32(2048));
            tiny.set(&format!("{architecture}.context_length"), Value::U32(512));
            tiny.metadata.extend(metadata.iter().filter(|(key, _)| key.starts_with("tokenizer.")).cloned());
            tiny.write(folder.path(), architecture);
        }
        Models { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn model(&self, architecture: &str) -> PathBuf {
        self.path(&format!("{architecture}.gguf"))
    }

    /// What `imatrix` prints, and the file it writes.
    fn imatrix(&self, architecture: &str, output: &str, n_chunks: &str) -> (String, PathBuf) {
        let path = self.path(output);
        let mut command = common::ggforge();
        command
            .arg("imatrix")
            .arg(self.model(architecture))
            .arg("--file")
            .arg(prose())
            .args(["--ctx", "128", "--chunks", n_chunks]);
        let printed = common::succeeds(command.arg("--output").arg(&path)).stdout;
        (String::from_utf8(printed).expect("UTF-8"), path)
    }
}

fn prose() -> PathBuf {
    common::fixture("text/prose.txt")
}

fn json(command: &mut std::process::Command) -> Json {
    serde_json::from_slice(&common::succeeds(command.arg("--json")).stdout).expect("JSON")
}

#[test]
fn perplexity_and_greedy_text_equal_those_of_llama_cpp() {
    let (models, expected) = (Models::new(), common::json(&common::fixture("model/experts.json")));
    for architecture in ARCHITECTURES {
        let (model, expected) = (models.model(architecture), &expected[architecture]);
        let mut perplexity = common::ggforge();
        perplexity.arg("perplexity").arg(&model).arg("--file").arg(prose()).args(["--ctx", "128", "--chunks", "12"]);
        let found = json(&mut perplexity)["perplexity"].as_f64().expect("a perplexity");
        let expected_ppl = expected["ppl"].as_f64().expect("a perplexity");
        println!("{architecture}: {found} beside {expected_ppl}");
        assert!((found / expected_ppl - 1.0).abs() < PPL_TOLERANCE, "{architecture}: {found} is not {expected_ppl}");
        let mut generate = common::ggforge();
        generate.arg("generate").arg(&model).args(["--prompt", "Once upon a time", "-n", "48"]);
        let (found, expected) = (json(&mut generate)["text"].clone(), expected["text"].as_str().expect("a text"));
        // llama-completion may stop a token early.
        assert!(found.as_str().is_some_and(|text| text.starts_with(expected)), "{architecture}: {found} is not {expected:?}");
        assert!(expected.len() > 120, "{architecture}: the text of some fifty tokens");
    }
}

#[test]
fn every_expert_has_the_sums_of_llama_imatrix() {
    let models = Models::new();
    for architecture in ARCHITECTURES {
        for ending in ["gguf", "dat"] {
            let (_, path) = models.imatrix(architecture, &format!("{architecture}-imatrix.{ending}"), "3");
            let [ours, theirs] = [path, common::fixture(&format!("imatrix/experts-{architecture}.{ending}"))]
                .map(|path| Imatrix::open(path).expect("an importance matrix"));
            assert_eq!((ours.chunk_count, ours.chunk_size), (theirs.chunk_count, theirs.chunk_size));
            assert!(ours.entries.keys().eq(theirs.entries.keys()), "{architecture}: the same tensors");
            for (name, entry) in &ours.entries {
                let other = &theirs.entries[name];
                assert_eq!(entry.counts(), other.counts(), "{architecture}.{ending}: {name}");
                let off = entry.sums().iter().zip(other.sums()).map(|(a, b)| f64::from(a - b).abs() / f64::from(*b).max(1e-30));
                let mean = off.sum::<f64>() / entry.sums().len() as f64;
                assert!(mean < SUMS_TOLERANCE, "{architecture}.{ending}: {name} is off by {mean:e} on average");
            }
            let down = &ours.entries["blk.1.ffn_down_exps.weight"];
            assert_eq!(down.counts().len(), if ending == "gguf" { 8 } else { 1 });
        }
    }
}

/// qwen2moe's second block has experts that see 22 and 16 of 384 tokens; its first one of 27 and one of 81.
#[test]
fn experts_that_saw_few_tokens_are_named_and_quantizing_takes_the_others() {
    let models = Models::new();
    let (printed, path) = models.imatrix("qwen2moe", "imatrix.gguf", "3");
    let line = "4 of 16 experts saw fewer than 100 tokens; a longer text helps: blk.1 expert 2 (16), blk.1 expert 0 (22), \
                blk.0 expert 1 (27), blk.0 expert 6 (81)";
    assert!(printed.contains(line), "{printed}");
    let short = json(common::ggforge().args(["imatrix", "show"]).arg(&path))["experts_short_of_tokens"].clone();
    assert_eq!(short[0], serde_json::json!({ "block": "blk.1", "expert": 2, "tokens": 16 }));
    let (printed, _) = models.imatrix("llama", "enough.gguf", "8");
    assert!(!printed.contains("fewer than"), "{printed}");

    let quantized = |name: &str, more: &[&str]| {
        let to = models.path(name);
        let mut command = common::ggforge();
        command.arg("quantize").arg(models.model("qwen2moe")).args(["--type", "Q4_0"]).args(more).arg("--output").arg(&to);
        common::succeeds(&mut command);
        std::fs::read(&to).expect("a file")
    };
    let with = quantized("with.gguf", &["--imatrix", path.to_str().expect("UTF-8")]);
    assert_ne!(with, quantized("without.gguf", &[]));
    let tensors = Model::open(models.path("with.gguf")).expect("a model");
    assert!(tensors.get("quantize.imatrix.entries_count").is_some());
}

/// The shapes of a file's tensors, by name.
fn shapes(path: &std::path::Path) -> std::collections::BTreeMap<String, Vec<u64>> {
    let model = Model::open(path).expect("a model");
    model.tensors().iter().map(|tensor| (tensor.name.clone(), tensor.shape.clone())).collect()
}

/// The gate of a shared expert is `[1, n_embd]` in what the converter writes, `[n_embd]` in what llama-quantize makes of that. Both are
/// the same weights to everything that compares them.
#[test]
fn quantizing_drops_dimensions_of_one() {
    let folder = common::scratch();
    let gates = ["blk.0.ffn_gate_inp_shexp.weight", "blk.1.ffn_gate_inp_shexp.weight"];
    let mut tiny = Tiny::with_experts("qwen2moe");
    let plain = tiny.write(folder.path(), "plain");
    gates.iter().for_each(|gate| tiny.tensor(gate).1.insert(0, 1));
    let padded = tiny.write(folder.path(), "padded");
    assert_ne!(shapes(&padded), shapes(&plain));
    for file_type in ["Q8_0", "F16", "COPY"] {
        let [a, b] = [&plain, &padded].map(|input| {
            let output = folder.path().join("quantized.gguf");
            let mut command = common::ggforge();
            command.arg("quantize").arg(input).args(["--quiet", "--force", "--type", file_type, "--output"]).arg(&output);
            common::succeeds(&mut command);
            assert_eq!(shapes(&output), shapes(&plain), "{file_type}");
            let report = json(common::ggforge().arg("error").arg(input).arg(&output));
            assert!(!report["files"].as_array().expect("files").is_empty(), "{report}");
            std::fs::read(&output).expect("a file")
        });
        assert!(a == b, "{file_type}: other bytes");
    }
}
