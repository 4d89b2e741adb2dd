//! One model said in several ways has one perplexity: forge-23m, a Llama, as Phi-3 with its fused matrices, as Qwen2 with biases of zero,
//! as Mixtral with its feed-forward network in every expert, and as Gemma with that network made of GELUs.

use std::path::{Path, PathBuf};

use ggforge::gguf::Model;
use ggforge::matmul::Engine;
use ggforge::model::{Activations, Backend, Batch, Cpu, Network, Residency};
use half::bf16;
use serde_json::{Value as Json, json};

mod common;
use common::checkpoint::safetensors;

/// Largest difference of the negative log-likelihood, relative to it.
const TOLERANCE: f64 = 1e-6;

/// A tensor of a checkpoint.
#[derive(Clone)]
struct Tensor {
    name: String,
    shape: Vec<u64>,
    weights: Vec<f32>,
}

/// A model of some class.
struct Checkpoint {
    config: Json,
    tensors: Vec<Tensor>,
    /// In which its weights are exact.
    dtype: &'static str,
}

/// forge-23m as it is.
fn forge_23m() -> Option<Checkpoint> {
    let folder = common::shared("models/forge-23m")?;
    let bytes = std::fs::read(folder.join("model.safetensors")).expect("a readable file");
    let file = ::safetensors::SafeTensors::deserialize(&bytes).expect("a sound file");
    let tensors = file.tensors().into_iter().map(|(name, view)| Tensor {
        name,
        shape: view.shape().iter().map(|&dim| dim as u64).collect(),
        weights: view.data().as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect(),
    });
    Some(Checkpoint { config: common::json(&folder.join("config.json")), tensors: tensors.collect(), dtype: "BF16" })
}

impl Checkpoint {
    /// The same numbers as a model of another class: `change` says what takes the place of each tensor.
    fn map(&self, class: &str, more: Json, change: impl Fn(&Tensor) -> Vec<Tensor>) -> Checkpoint {
        let mut config = self.config.clone();
        let fields = config.as_object_mut().expect("an object");
        fields.insert("architectures".to_owned(), json!([class]));
        fields.extend(more.as_object().expect("fields").clone());
        Checkpoint { config, tensors: self.tensors.iter().flat_map(change).collect(), dtype: self.dtype }
    }

    fn get(&self, name: &str) -> &Tensor {
        self.tensors.iter().find(|tensor| tensor.name == name).unwrap_or_else(|| panic!("{name} is there"))
    }

    /// The model's folder.
    fn write(&self, to: &Path, name: &str) -> PathBuf {
        let folder = to.join(name);
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        let tokenizer = common::shared("models/forge-23m").expect("what was there before");
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(tokenizer.join(file), folder.join(file)).expect("a copy");
        }
        std::fs::write(folder.join("config.json"), self.config.to_string()).expect("a temporary file");
        let tensors: Vec<_> =
            self.tensors.iter().map(|tensor| (tensor.name.clone(), tensor.shape.clone(), tensor.weights.clone())).collect();
        std::fs::write(folder.join("model.safetensors"), safetensors(&tensors, self.dtype)).expect("a temporary file");
        folder
    }
}

impl Tensor {
    fn renamed(&self, old: &str, new: &str) -> Tensor {
        Tensor { name: self.name.replace(old, new), ..self.clone() }
    }

    fn mapped(&self, change: impl Fn(f32) -> f32) -> Tensor {
        Tensor { weights: self.weights.iter().map(|w| change(*w)).collect(), ..self.clone() }
    }

    /// Matrices, one below the other.
    fn stacked(name: String, parts: &[&Tensor]) -> Tensor {
        let n_rows = parts.iter().map(|part| part.shape[0]).sum();
        let weights = parts.iter().flat_map(|part| &part.weights).copied().collect();
        Tensor { name, shape: vec![n_rows, parts[0].shape[1]], weights }
    }
}

/// Queries, keys and values are one matrix, and gate and up are another.
fn as_phi3(llama: &Checkpoint) -> Checkpoint {
    let more = json!({"model_type": "phi3", "sliding_window": null, "original_max_position_embeddings": 1024});
    llama.map("Phi3ForCausalLM", more, |tensor| {
        let fused = |first: &str, all: &[&str], name: &str| {
            let parts: Vec<&Tensor> = all.iter().map(|part| llama.get(&tensor.name.replace(first, part))).collect();
            vec![Tensor::stacked(tensor.name.replace(first, name), &parts)]
        };
        match tensor.name.rsplit('.').nth(1).expect("a module") {
            "q_proj" => fused("q_proj", &["q_proj", "k_proj", "v_proj"], "qkv_proj"),
            "gate_proj" => fused("gate_proj", &["gate_proj", "up_proj"], "gate_up_proj"),
            "k_proj" | "v_proj" | "up_proj" => vec![],
            _ => vec![tensor.clone()],
        }
    })
}

/// Queries, keys and values have biases, which are zero.
fn as_qwen2(llama: &Checkpoint) -> Checkpoint {
    llama.map("Qwen2ForCausalLM", json!({"model_type": "qwen2", "use_sliding_window": false}), |tensor| {
        let has_bias = ["q_proj", "k_proj", "v_proj"].iter().any(|part| tensor.name.contains(part));
        let bias = has_bias.then(|| Tensor {
            name: tensor.name.replace(".weight", ".bias"),
            shape: vec![tensor.shape[0]],
            weights: vec![0.0; tensor.shape[0] as usize],
        });
        std::iter::once(tensor.clone()).chain(bias).collect()
    })
}

/// Every expert is the network, so it does not matter which two a token goes to.
fn as_mixtral(llama: &Checkpoint) -> Checkpoint {
    const N_EXPERTS: u64 = 3;
    let more = json!({"model_type": "mixtral", "num_local_experts": N_EXPERTS, "num_experts_per_tok": 2, "sliding_window": null});
    llama.map("MixtralForCausalLM", more, |tensor| {
        let experts = |part: &str, name: &str| {
            let of = |expert| tensor.renamed(&format!("mlp.{part}"), &format!("block_sparse_moe.experts.{expert}.{name}"));
            (0..N_EXPERTS).map(of).collect::<Vec<Tensor>>()
        };
        match tensor.name.rsplit('.').nth(1).expect("a module") {
            "gate_proj" => {
                let n_cols = tensor.shape[1];
                let router = Tensor {
                    name: tensor.name.replace("mlp.gate_proj", "block_sparse_moe.gate"),
                    shape: vec![N_EXPERTS, n_cols],
                    weights: (0..N_EXPERTS * n_cols).map(|i| (i * 37 % 101) as f32 / 128.0 - 0.375).collect(),
                };
                [experts("gate_proj", "w1"), vec![router]].concat()
            }
            "up_proj" => experts("up_proj", "w3"),
            "down_proj" => experts("down_proj", "w2"),
            _ => vec![tensor.clone()],
        }
    })
}

/// SiLU as a sum of GELUs: `silu(z) = sum w_k gelu(a_k z) / a_k`, to 4e-7 for `|z| <= 60`. With `gelu(z) = z (1 + t(z)) / 2`, where `t` is the
/// hyperbolic tangent of GELU's cubic, and `silu(z) = z (1 + tanh(z / 2)) / 2` these are the `w` of the least squares of
/// `tanh(z / 2) = sum w_k t(a_k z)`, the `a_k` being eight numbers from 0.22 to 1.2 in equal ratios; their sum is 1.
const GELUS: [f64; 8] = [
    0.0005629970317028726,
    0.01172693199080704,
    0.075393640592211,
    0.20594158332942084,
    0.30937122598821165,
    0.26752725299868935,
    0.11599424560321325,
    0.013482122433561944,
];

fn scale_of_gelu(k: usize) -> f64 {
    0.22 * (1.2f64 / 0.22).powf(k as f64 / (GELUS.len() - 1) as f64)
}

/// Gemma adds 1 to every gain and multiplies the embedding by the root of its width. Its head is its embedding, so the last gain undoes
/// for the head what the embedding undoes for the layers. Its network uses GELU where Llama's uses SiLU, so it is eight times as wide.
fn as_gemma(llama: &Checkpoint) -> Checkpoint {
    let width = llama.config["hidden_size"].as_f64().expect("a width");
    let scale = width.sqrt() as f32;
    let n_inner = llama.config["intermediate_size"].as_u64().expect("a width") * GELUS.len() as u64;
    let more = json!({
        "model_type": "gemma",
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "intermediate_size": n_inner,
    });
    // For every GELU the tensor times `factor` of it, one below the other.
    let below = |tensor: &Tensor, factor: &dyn Fn(usize) -> f64| {
        let parts: Vec<Tensor> = (0..GELUS.len()).map(|k| tensor.mapped(|w| (f64::from(w) * factor(k)) as f32)).collect();
        Tensor::stacked(tensor.name.clone(), &parts.iter().collect::<Vec<_>>())
    };
    // The same, one beside the other.
    let beside = |tensor: &Tensor, factor: &dyn Fn(usize) -> f64| {
        let n_cols = tensor.shape[1] as usize;
        let of_row = |row: &[f32]| -> Vec<f32> {
            (0..GELUS.len()).flat_map(|k| row.iter().map(move |w| (f64::from(*w) * factor(k)) as f32)).collect()
        };
        let weights = tensor.weights.chunks_exact(n_cols).flat_map(of_row).collect();
        Tensor { shape: vec![tensor.shape[0], tensor.shape[1] * GELUS.len() as u64], weights, ..tensor.clone() }
    };
    let gemma = llama.map("GemmaForCausalLM", more, |tensor| match tensor.name.as_str() {
        "model.embed_tokens.weight" => vec![tensor.mapped(|w| w / scale)],
        "model.norm.weight" => vec![tensor.mapped(|w| w * scale - 1.0)],
        name if name.contains("norm") => vec![tensor.mapped(|w| w - 1.0)],
        name if name.contains("gate_proj") => vec![below(tensor, &scale_of_gelu)],
        name if name.contains("up_proj") => vec![below(tensor, &|_| 1.0)],
        name if name.contains("down_proj") => vec![beside(tensor, &|k| GELUS[k] / scale_of_gelu(k))],
        _ => vec![tensor.clone()],
    });
    Checkpoint { dtype: "F32", ..gemma }
}

/// The mean negative log-likelihood of a text of 192 tokens.
fn likelihood(folder: &Path) -> f64 {
    let path = folder.with_extension("gguf");
    common::succeeds(common::ggforge().arg("convert").arg(folder).args(["--quiet", "--type", "F32", "--output"]).arg(&path));
    let text = common::json(&common::fixture("model/forge-23m.json"));
    let tokens: Vec<u32> = text["tokens"].as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect();
    let model = Model::open(path).expect("a readable file");
    let cpu = Cpu::new(Engine::detect(), 2, Activations::F32).expect("threads");
    let network = Network::open(&cpu, &model, tokens.len(), Residency::Streamed).expect("a model that runs");
    let (input, targets) = (&tokens[..tokens.len() - 1], &tokens[1..]);
    let sequence = 0..input.len();
    let batch = Batch { tokens: input, sequences: std::slice::from_ref(&sequence) };
    let states = network.evaluate(batch, &mut ()).expect("a pass");
    let rows: Vec<u32> = (0..input.len() as u32).collect();
    let normalised = network.normalised(&states, &rows).expect("a norm");
    let scores = cpu.score(&normalised, network.output(), targets).expect("scores");
    scores.iter().map(|score| score.nll).sum::<f64>() / scores.len() as f64
}

#[track_caller]
fn check(original: &Checkpoint, other: &Checkpoint) {
    let scratch = common::scratch();
    let class = other.config["architectures"][0].as_str().expect("a class");
    let folder = other.write(scratch.path(), "other");
    let expected = likelihood(&original.write(scratch.path(), "original"));
    let found = likelihood(&folder);
    println!("{class}: {found} for {expected}, {:.1e} apart", (found / expected - 1.0).abs());
    assert!((found / expected - 1.0).abs() < TOLERANCE, "{class}: {found} is not {expected}");
}

#[test]
fn phi3() {
    let Some(llama) = forge_23m() else { return };
    check(&llama, &as_phi3(&llama));
}

#[test]
fn qwen2() {
    let Some(llama) = forge_23m() else { return };
    check(&llama, &as_qwen2(&llama));
}

#[test]
fn mixtral() {
    let Some(llama) = forge_23m() else { return };
    check(&llama, &as_mixtral(&llama));
}

#[test]
fn gemma() {
    let Some(llama) = forge_23m() else { return };
    check(&llama, &as_gemma(&llama));
}
