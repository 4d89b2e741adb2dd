//! Small models made by a formula, as GGUF files: for tests of what a model may be.

use std::path::{Path, PathBuf};

use ggforge::gguf::{Header, Metadata, TensorSpec, Value};
use ggforge::quant::Format;

/// A GGUF file in the making.
#[derive(Clone)]
pub struct Tiny {
    /// Every entry.
    pub metadata: Metadata,
    /// Names, shapes and F32 weights.
    pub tensors: Vec<(String, Vec<u64>, Vec<f32>)>,
}

/// Weight `i` of the tensor `name`, between -0.5 and 0.5: a multiplicative hash, which tools/dev/families.py computes too.
fn weight(name: &str, i: u64) -> f32 {
    let seed: u64 = name.bytes().enumerate().map(|(at, byte)| (at as u64 + 1) * u64::from(byte)).sum();
    let hash = (seed * 1_000_003 + i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    (hash as f64 / f64::from(1u32 << 24) - 0.5) as f32
}

impl Tiny {
    /// Adds a tensor: norms near 1, the others around 0.
    pub fn add(&mut self, name: &str, shape: &[u64]) {
        let n: u64 = shape.iter().product();
        let offset = if name.contains("norm") { 1.0 } else { 0.0 };
        let weights = (0..n).map(|i| weight(name, i) + offset).collect();
        self.tensors.push((name.to_owned(), shape.to_vec(), weights));
    }

    /// Sets a metadata entry.
    pub fn set(&mut self, key: &str, value: Value) {
        match self.metadata.iter_mut().find(|(name, _)| name == key) {
            Some((_, old)) => *old = value,
            None => self.metadata.push((key.to_owned(), value)),
        }
    }

    /// Removes a metadata entry.
    pub fn unset(&mut self, key: &str) {
        self.metadata.retain(|(name, _)| name != key);
    }

    /// The tensor of a name.
    pub fn tensor(&mut self, name: &str) -> &mut (String, Vec<u64>, Vec<f32>) {
        self.tensors.iter_mut().find(|tensor| tensor.0 == name).expect("a tensor of the model")
    }

    /// Writes the file.
    pub fn write(&self, folder: &Path, name: &str) -> PathBuf {
        let specs = self.tensors.iter().map(|(name, shape, _)| TensorSpec {
            name: name.clone(),
            format: Format::F32,
            shape: shape.clone(),
        });
        let layout = Header { metadata: self.metadata.clone(), tensors: specs.collect() }.layout().expect("a sound header");
        let mut bytes = layout.header.clone();
        bytes.resize(layout.file_bytes as usize, 0);
        for ((_, _, weights), offset) in self.tensors.iter().zip(&layout.offsets_bytes) {
            let to = &mut bytes[*offset as usize..][..4 * weights.len()];
            to.chunks_exact_mut(4).zip(weights).for_each(|(to, w)| to.copy_from_slice(&w.to_le_bytes()));
        }
        let path = folder.join(format!("{name}.gguf"));
        std::fs::write(&path, bytes).expect("a temporary file");
        path
    }

    /// A model of two layers, 32 wide, with four query heads and two key heads of 8, and 64 tokens.
    pub fn new(architecture: &str) -> Tiny {
        let mut tiny = Tiny { metadata: Vec::new(), tensors: Vec::new() };
        tiny.set("general.architecture", Value::from(architecture));
        let counts = [
            ("block_count", 2),
            ("embedding_length", 32),
            ("feed_forward_length", 48),
            ("attention.head_count", 4),
            ("attention.head_count_kv", 2),
            ("context_length", 64),
            ("vocab_size", 64),
        ];
        for (key, value) in counts {
            tiny.set(&format!("{architecture}.{key}"), Value::U32(value));
        }
        tiny.set(&format!("{architecture}.attention.layer_norm_rms_epsilon"), Value::F32(1e-5));
        tiny.set(&format!("{architecture}.rope.freq_base"), Value::F32(10_000.0));
        tiny.add("token_embd.weight", &[64, 32]);
        tiny.add("output_norm.weight", &[32]);
        match architecture {
            "gemma" | "gemma2" | "gemma3" => {}
            "gpt2" => {
                tiny.unset("gpt2.attention.layer_norm_rms_epsilon");
                tiny.set("gpt2.attention.layer_norm_epsilon", Value::F32(1e-5));
                tiny.set("gpt2.attention.head_count_kv", Value::U32(4));
                tiny.add("output_norm.bias", &[32]);
                tiny.add("position_embd.weight", &[64, 32]);
            }
            _ => tiny.add("output.weight", &[64, 32]),
        }
        for layer in 0..2 {
            for (part, shape) in parts(architecture) {
                tiny.add(&format!("blk.{layer}.{part}"), shape);
            }
        }
        tiny
    }
}

impl Tiny {
    /// [`Tiny::new`] with eight experts in each layer, of which a token uses three.
    pub fn with_experts(architecture: &str) -> Tiny {
        let mut tiny = Tiny::new(architecture);
        tiny.tensors.retain(|(name, ..)| !["ffn_gate.", "ffn_up.", "ffn_down."].iter().any(|part| name.contains(part)));
        let n_ff = if architecture == "llama" { 48 } else { 24 };
        let mut set = |key: &str, value| tiny.set(&format!("{architecture}.{key}"), Value::U32(value));
        set("expert_count", 8);
        set("expert_used_count", 3);
        if architecture != "llama" {
            set("expert_feed_forward_length", n_ff);
        }
        if architecture == "qwen2moe" {
            set("expert_shared_feed_forward_length", 40);
        }
        let n_ff = u64::from(n_ff);
        for layer in 0..2 {
            let mut add = |part: &str, shape: &[u64]| tiny.add(&format!("blk.{layer}.{part}.weight"), shape);
            add("ffn_gate_inp", &[8, 32]);
            add("ffn_gate_exps", &[8, n_ff, 32]);
            add("ffn_up_exps", &[8, n_ff, 32]);
            add("ffn_down_exps", &[8, 32, n_ff]);
            if architecture == "qwen2moe" {
                add("ffn_gate_inp_shexp", &[32]);
                add("ffn_gate_shexp", &[40, 32]);
                add("ffn_up_shexp", &[40, 32]);
                add("ffn_down_shexp", &[32, 40]);
            }
        }
        tiny
    }
}

/// The model of a case of tools/dev/families.py.
pub fn family_case(case: &str, expected: &serde_json::Value) -> Tiny {
    let architecture = case.split('-').next().expect("as the script writes it");
    let mut tiny = match case {
        "llama-experts" | "qwen2moe" | "qwen3moe" => Tiny::with_experts(architecture),
        _ => Tiny::new(architecture),
    };
    let mut set = |key: &str, value: Value| tiny.set(&format!("{architecture}.{key}"), value);
    match case {
        "qwen2-linear" => {
            set("rope.scaling.type", Value::from("linear"));
            set("rope.scaling.factor", Value::F32(4.0));
        }
        "qwen2-yarn" => {
            set("rope.scaling.type", Value::from("yarn"));
            set("rope.scaling.factor", Value::F32(4.0));
            set("rope.scaling.original_context_length", Value::U32(16));
        }
        "gemma3" => {
            set("rope.freq_base", Value::F32(1e6));
            set("attention.sliding_window", Value::U32(8));
            set("attention.sliding_window_pattern", Value::U32(2));
        }
        "phi3-short" | "phi3-long" => {
            set("rope.scaling.type", Value::from("longrope"));
            set("rope.scaling.original_context_length", Value::U32(16));
            // As the converter has it: sqrt(1 + ln(64 / 16) / ln(16)).
            set("rope.scaling.attn_factor", Value::F32(1.5f32.sqrt()));
            let mut factors = |name: &str, factors: [f32; 4]| tiny.tensors.push((name.to_owned(), vec![4], factors.to_vec()));
            factors("rope_factors_short.weight", [1.0, 1.25, 1.5, 2.0]);
            factors("rope_factors_long.weight", [1.5, 2.0, 4.0, 8.0]);
        }
        "llama" => {
            let shapes = [("attn_q", 32), ("attn_k", 16), ("attn_v", 16), ("attn_output", 32)];
            let shapes = shapes.into_iter().chain([("ffn_gate", 48), ("ffn_up", 48), ("ffn_down", 32)]);
            for (part, len) in shapes {
                (0..2).for_each(|layer| tiny.add(&format!("blk.{layer}.{part}.bias"), &[len]));
            }
            let factors: Vec<f32> = expected["rope_freqs"]
                .as_array()
                .expect("as the script writes it")
                .iter()
                .map(|x| x.as_f64().expect("as the script writes it") as f32)
                .collect();
            tiny.tensors.push(("rope_freqs.weight".to_owned(), vec![4], factors));
        }
        _ => {}
    }
    tiny
}

/// The tensors of a layer.
fn parts(architecture: &str) -> Vec<(&'static str, &'static [u64])> {
    let mut parts: Vec<(&str, &[u64])> = vec![
        ("attn_norm.weight", &[32]),
        ("attn_output.weight", &[32, 32]),
        ("ffn_norm.weight", &[32]),
        ("ffn_down.weight", &[32, 48]),
    ];
    if architecture == "gpt2" {
        parts.extend([
            ("attn_norm.bias", &[32][..]),
            ("attn_output.bias", &[32]),
            ("ffn_norm.bias", &[32]),
            ("ffn_down.bias", &[32]),
        ]);
        parts.extend([("attn_qkv.weight", &[96, 32][..]), ("attn_qkv.bias", &[96])]);
        parts.extend([("ffn_up.weight", &[48, 32][..]), ("ffn_up.bias", &[48])]);
        return parts;
    }
    if architecture == "phi3" {
        parts.extend([("attn_qkv.weight", &[64, 32][..]), ("ffn_up.weight", &[96, 32])]);
        return parts;
    }
    parts.extend([
        ("attn_q.weight", &[32, 32][..]),
        ("attn_k.weight", &[16, 32]),
        ("attn_v.weight", &[16, 32]),
        ("ffn_gate.weight", &[48, 32]),
        ("ffn_up.weight", &[48, 32]),
    ]);
    match architecture {
        "qwen2" | "qwen2moe" => parts.extend([("attn_q.bias", &[32][..]), ("attn_k.bias", &[16]), ("attn_v.bias", &[16])]),
        "gemma2" => parts.extend([("post_attention_norm.weight", &[32][..]), ("post_ffw_norm.weight", &[32])]),
        "gemma3" => parts.extend([
            ("attn_q_norm.weight", &[8][..]),
            ("attn_k_norm.weight", &[8]),
            ("post_attention_norm.weight", &[32]),
            ("post_ffw_norm.weight", &[32]),
        ]),
        "qwen3" | "qwen3moe" => parts.extend([("attn_q_norm.weight", &[8][..]), ("attn_k_norm.weight", &[8])]),
        _ => {}
    }
    parts
}
