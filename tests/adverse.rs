//! Calibration by what teaches little or misleads: no file is worse than without, no matrix loses more on held-out text, nothing panics.

mod common;

use std::path::{Path, PathBuf};

use common::tiny::Tiny;
use ggforge::gguf::{Model, Value};
use ggforge::quant::Format;
use ggforge::simd::Level;
use ggforge::source::TensorSource;
use serde_json::Value as Json;

/// A file may be this much worse on another text: the divergences of files that differ by chance do.
const BY_CHANCE: f64 = 1.15;

fn prose() -> String {
    std::fs::read_to_string(common::fixture("text/prose.txt")).expect("a text")
}

/// A trained model, with weights that can be changed.
fn forge_3m(folder: &Path) -> Tiny {
    let path = folder.join("forge.gguf");
    let mut convert = common::ggforge();
    convert.arg("convert").arg(common::fixture("hf/forge-3m")).args(["--quiet", "--force", "--type", "F32", "--output"]).arg(&path);
    common::succeeds(&mut convert);
    let model = Model::open(&path).expect("a model");
    let weights = |tensor: &ggforge::source::SourceTensor| {
        let mut bytes = vec![0; tensor.size_bytes as usize];
        model.files()[tensor.file].read_exact_at(&mut bytes, tensor.offset_bytes).expect("its bytes");
        let mut weights = vec![0.0; tensor.shape.iter().product::<u64>() as usize];
        Format::F32.dequantize(Level::detect(), &bytes, &mut weights);
        (tensor.name.clone(), tensor.shape.clone(), weights)
    };
    Tiny { metadata: model.to_metadata(), tensors: model.tensors().iter().map(weights).collect() }
}

/// A mixture of eight experts of random weights, with the vocabulary of the trained model.
fn mixture(folder: &Path, architecture: &str) -> Tiny {
    let forge = forge_3m(folder);
    let mut tiny = Tiny::with_experts(architecture);
    for name in ["token_embd.weight", "output.weight"] {
        tiny.tensors.retain(|tensor| tensor.0 != name);
        tiny.add(name, &[2048, 32]);
    }
    tiny.set(&format!("{architecture}.vocab_size"), Value::U32(2048));
    tiny.set(&format!("{architecture}.context_length"), Value::U32(128));
    tiny.metadata.extend(forge.metadata.iter().filter(|(key, _)| key.starts_with("tokenizer.")).cloned());
    tiny
}

/// Quantizes with a text and without; what was chosen, and both divergences from the base on another text.
fn tried(folder: &Path, name: &str, model: &Tiny, format: &str, text: &str) -> (Json, [f64; 2]) {
    let base = model.write(folder, name);
    let file = |ending: &str| folder.join(format!("{name}{ending}"));
    let (plain, calibrated, calibration) = (file("-plain.gguf"), file("-calibrated.gguf"), file(".txt"));
    std::fs::write(&calibration, text).expect("a text");
    let quantize = |to: &PathBuf| {
        let mut command = common::ggforge();
        command.arg("quantize").arg(&base).args(["--type", format, "--json", "--output"]).arg(to);
        command
    };
    common::succeeds(&mut quantize(&plain));
    let said = common::succeeds(quantize(&calibrated).args(["--calibrate-chunks", "8", "--calibrate"]).arg(&calibration));
    let json: Json = serde_json::from_slice(&said.stdout).expect("JSON");
    let choices = json["calibration"]["matrices"].as_array().expect("choices");
    for choice in choices {
        let [error, before] = ["held_out_error", "held_out_error_by_importance"]
            .map(|key| choice[key].as_f64().unwrap_or_else(|| panic!("{name}: a number: {choice}")));
        assert!(error <= before, "{name}: {choice}");
    }
    let mut command = common::ggforge();
    command.arg("compare").arg(&base).args([&plain, &calibrated]).args(["--json", "--ctx", "128", "--chunks", "8", "--file"]);
    let compared = common::succeeds(command.arg(common::fixture("text/prose.txt"))).stdout;
    let compared: Json = serde_json::from_slice(&compared).expect("JSON");
    let of = |at: usize| compared["files"][at]["kld"]["mean"]["value"].as_f64().expect("a mean divergence");
    let [before, after] = [of(0), of(1)];
    println!("{name}: {after:.3e} calibrated, {before:.3e} without, {} matrices", choices.len());
    assert!(after <= BY_CHANCE * before, "{name}: {after} calibrated, {before} without");
    (json, [before, after])
}

#[test]
fn texts_that_teach_little() {
    let folder = common::scratch();
    let model = forge_3m(folder.path());
    let start: String = prose().chars().take(5000).collect();
    tried(folder.path(), "few-tokens", &model, "Q4_0", &start);
    tried(folder.path(), "one-word", &model, "Q4_0", &"the ".repeat(4000));
    tried(folder.path(), "one-character", &model, "Q4_K", &"0".repeat(8000));
    tried(folder.path(), "two-chunks", &model, "Q2_K", &start);
}

#[test]
fn weights_and_inputs_of_zeros_and_outliers() {
    let folder = common::scratch();
    let trained = forge_3m(folder.path());
    let changed = |change: &dyn Fn(&mut Tiny)| {
        let mut model = trained.clone();
        change(&mut model);
        model
    };
    let text = prose();
    let zeros = changed(&|model| {
        model.tensor("blk.1.attn_v.weight").2.fill(0.0);
        model.tensor("blk.2.ffn_norm.weight").2.fill(0.0);
        model.tensor("blk.0.attn_norm.weight").2[..40].fill(0.0);
        model.tensor("blk.0.ffn_up.weight").2[..2000].fill(0.0);
    });
    tried(folder.path(), "zeros", &zeros, "Q4_0", &text);
    let outliers = changed(&|model| {
        for (name, value) in [("blk.0.ffn_down.weight", 40.0), ("blk.1.attn_q.weight", -300.0), ("blk.2.ffn_gate.weight", 9.0)] {
            model.tensor(name).2.iter_mut().step_by(1009).for_each(|w| *w = value);
        }
    });
    tried(folder.path(), "outliers", &outliers, "Q4_K", &text);
    let huge = changed(&|model| {
        model.tensor("blk.1.ffn_norm.weight").2.iter_mut().step_by(50).for_each(|w| *w = 1e12);
        model.tensor("blk.2.ffn_up.weight").2[77] = 6e4;
        model.tensor("blk.2.attn_norm.weight").2.fill(1e-20);
    });
    tried(folder.path(), "huge-inputs", &huge, "Q5_0", &text);
}

/// Every expert is calibrated; one that no token reaches has the mean of the others, which is said.
#[test]
fn experts_that_few_tokens_reach_or_none() {
    let folder = common::scratch();
    for (architecture, n_matrices) in [("llama", 15), ("qwen2moe", 21), ("qwen3moe", 15)] {
        let model = mixture(folder.path(), architecture);
        let format = "Q4_0";
        let (made, _) = tried(folder.path(), architecture, &model, format, &prose());
        assert_eq!(made["calibration"]["experts"]["count"], 16, "{architecture}");
        let experts: Vec<&Json> = made["calibration"]["matrices"].as_array().expect("choices").iter().collect();
        assert!(experts.len() <= n_matrices, "{architecture}: {}", experts.len());
        for part in ["ffn_gate_exps", "ffn_up_exps"] {
            let name = format!("blk.1.{part}.weight");
            let choice =
                experts.iter().find(|choice| choice["tensor"] == *name).unwrap_or_else(|| panic!("{name} of {architecture}"));
            assert_eq!(choice["method"], "calibrated", "{choice}");
        }
    }
    // Of two opposite scores one is never below 0, and of equals the first wins: the third to eighth expert are never the best.
    let mut model = mixture(folder.path(), "qwen3moe");
    model.set("qwen3moe.expert_used_count", Value::U32(1));
    let router = &mut model.tensor("blk.0.ffn_gate_inp.weight").2;
    let (first, others) = router.split_at_mut(32);
    others[..32].iter_mut().zip(first).for_each(|(w, other)| *w = -*other);
    others[32..].fill(0.0);
    let (made, _) = tried(folder.path(), "unused", &model, "Q4_0", &prose());
    let none = made["calibration"]["experts"]["reached_by_none"].as_u64().expect("a number");
    assert!((6..=14).contains(&none), "{none} experts without a token");
    tried(folder.path(), "experts-one-word", &model, "Q4_0", &"the ".repeat(600));
}
