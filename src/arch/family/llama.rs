//! Llama 1, 2, 3, 3.x, TinyLlama, SmolLM, Vicuna, Mistral, Mixtral: RMSNorm, rotary positions with neighbouring pairs, grouped queries, a
//! SwiGLU network or a mixture of them.

use super::parts::*;
use crate::arch::describe::*;
use crate::arch::numbers::*;

pub const LLAMA: Family = Family {
    name: "llama",
    models: "Llama 1 to 3.3, TinyLlama, SmolLM 1 and 2, Vicuna, Mistral, Mixtral",
    classes: &[
        class("LlamaForCausalLM", OF_LLAMA),
        // The spelling of the first conversions of Llama 1.
        class("LLaMAForCausalLM", OF_LLAMA),
        Class { head: Head::States, roots: &[""], ..class("LlamaModel", OF_LLAMA) },
        class("MistralForCausalLM", OF_MISTRAL),
        class("MixtralForCausalLM", OF_MIXTRAL),
    ],
    numbers: &[&RMS_EPS, &ROPE_FREQ_BASE, &WINDOW, &EXPERT_COUNT, &EXPERT_USED_COUNT],
    keys: &[USUAL, LIKE_LLAMA],
    fixed: &[],
    vocab: Vocab::Stated,
    spaces: Spaces::Stated,
    embedding: embedding(Scale::One),
    source_layers: "model.layers",
    layers: Layers::Mixture { dense: &DENSE, experts: &MIXTURE },
    attention_width: AttentionWidth::KeyDim,
    output_norm: OUTPUT_NORM,
    output: OUTPUT,
    drafts: None,
    ignored_ends: &[".rotary_emb.inv_freq", ".attention.masked_bias", ".attention.bias"],
    left_out: &[],
};

const OF_LLAMA: &[(&str, Assumed)] = &[
    ("max_position_embeddings", Assumed::Is(2048.0)),
    ("rms_norm_eps", Assumed::Is(1e-6)),
    ("head_dim", Assumed::Share),
    ("sliding_window", Assumed::Ignored),
    ("num_local_experts", Assumed::Ignored),
];
const OF_MISTRAL: &[(&str, Assumed)] = &[
    ("max_position_embeddings", Assumed::Is(131_072.0)),
    ("num_key_value_heads", Assumed::Is(8.0)),
    ("rms_norm_eps", Assumed::Is(1e-6)),
    ("sliding_window", Assumed::Is(4096.0)),
    ("num_local_experts", Assumed::Ignored),
];
const OF_MIXTRAL: &[(&str, Assumed)] = &[
    ("max_position_embeddings", Assumed::Is(131_072.0)),
    ("num_key_value_heads", Assumed::Is(8.0)),
    ("rms_norm_eps", Assumed::Is(1e-5)),
    ("rope_theta", Assumed::Is(1e6)),
    ("num_local_experts", Assumed::Is(8.0)),
    ("num_experts_per_tok", Assumed::Is(2.0)),
];

const ATTENTION: Step = step(
    ATTN_NORM,
    Body::Attention(Attention {
        sees: Sees::Window,
        ..attention(
            qkv_interleaved(Need::If("attention_bias")),
            Positions::Rope(RopeLayout::Neighbours),
            attn_output(Need::If("attention_bias")),
        )
    }),
);
const DENSE: Layer = Layer { steps: &[ATTENTION, step(FFN_NORM, Body::Network(gated(Activation::Silu, Need::If("mlp_bias"))))] };
const MIXTURE: Layer = Layer { steps: &[ATTENTION, step(FFN_NORM, Body::Experts(EXPERTS))] };

const EXPERTS: Experts = Experts {
    router: linear("ffn_gate_inp", &["block_sparse_moe.gate", "mlp.gate"], [Dim::Experts, Dim::Embd]),
    router_gain: None,
    gate: Stack {
        name: "ffn_gate_exps.weight",
        each: Some("block_sparse_moe.experts.{e}.w1"),
        packed: &[Packed { name: "mlp.experts.gate_up_proj", part: [0, 2], order: Order::PartByPart }],
        shape: [Dim::ExpertFf, Dim::Embd],
        bias: None,
    },
    up: Some(Stack {
        name: "ffn_up_exps.weight",
        each: Some("block_sparse_moe.experts.{e}.w3"),
        packed: &[Packed { name: "mlp.experts.gate_up_proj", part: [1, 2], order: Order::PartByPart }],
        shape: [Dim::ExpertFf, Dim::Embd],
        bias: None,
    }),
    down: Stack {
        name: "ffn_down_exps.weight",
        each: Some("block_sparse_moe.experts.{e}.w2"),
        packed: &[Packed { name: "mlp.experts.down_proj", part: [0, 1], order: Order::PartByPart }],
        shape: [Dim::Embd, Dim::ExpertFf],
        bias: None,
    },
    scales: None,
    weighing: Weighing::AmongChosen,
    shared: None,
    activation: Activation::Silu,
};
