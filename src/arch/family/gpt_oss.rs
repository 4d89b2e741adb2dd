//! gpt-oss: a mixture of experts with biases everywhere, bounded SwiGLU, a sink in each head, and a window in every other layer.

use super::parts::*;
use crate::arch::describe::*;
use crate::arch::numbers::*;
use crate::gguf::keys;

pub const GPT_OSS: Family = Family {
    name: "gpt-oss",
    models: "gpt-oss 20B and 120B, also in MXFP4",
    classes: &[class("GptOssForCausalLM", OF_GPT_OSS)],
    numbers: &[&RMS_EPS, &ROPE_FREQ_BASE, &KEY_LENGTH, &VALUE_LENGTH, &WINDOW, &EXPERT_COUNT, &EXPERT_USED_COUNT, &EXPERT_WIDTH],
    keys: &[USUAL, &[keys::ATTENTION_SLIDING_WINDOW, keys::EXPERT_FEED_FORWARD_LENGTH]],
    fixed: &[("swiglu_alpha", ALPHA), ("swiglu_limit", LIMIT)],
    vocab: Vocab::Stated,
    spaces: Spaces::Stated,
    embedding: embedding(Scale::One),
    source_layers: "model.layers",
    layers: Layers::Periodic {
        period: 2,
        stated: Pattern::LayerTypes,
        last: &Layer { steps: &[step(ATTN_NORM, Body::Attention(ATTENTION)), EXPERTS] },
        others: &Layer { steps: &[step(ATTN_NORM, Body::Attention(Attention { sees: Sees::Window, ..ATTENTION })), EXPERTS] },
    },
    attention_width: AttentionWidth::KeyDim,
    output_norm: OUTPUT_NORM,
    output: OUTPUT,
    drafts: None,
    ignored_ends: &[],
    left_out: &[],
};

const ALPHA: f64 = 1.702;
const LIMIT: f64 = 7.0;

const OF_GPT_OSS: &[(&str, Assumed)] = &[
    ("max_position_embeddings", Assumed::Is(131_072.0)),
    ("num_key_value_heads", Assumed::Is(8.0)),
    ("head_dim", Assumed::Is(64.0)),
    ("rms_norm_eps", Assumed::Is(1e-5)),
    ("rope_theta", Assumed::Is(150_000.0)),
    ("sliding_window", Assumed::Is(128.0)),
    ("num_local_experts", Assumed::Is(128.0)),
    ("num_experts_per_tok", Assumed::Is(4.0)),
    ("attention_bias", Assumed::Is(1.0)),
];

/// Networks are experts in every layer.
const EXPERT_WIDTH: Number = Number { config: &["intermediate_size"], ..EXPERT_FF };

const BIAS: Need = Need::If("attention_bias");
const ATTENTION: Attention = Attention {
    sinks: Some(weight("attn_sinks.weight", "self_attn.sinks", &[Dim::Heads])),
    ..attention(qkv(BIAS), Positions::Rope(RopeLayout::Halves), attn_output(BIAS))
};

const EXPERTS: Step = step(
    rms("post_attention_norm.weight", "post_attention_layernorm.weight"),
    Body::Experts(Experts {
        router: linear("ffn_gate_inp", &["mlp.router"], [Dim::Experts, Dim::Embd]).bias(Need::Required),
        router_gain: None,
        gate: Stack {
            name: "ffn_gate_exps.weight",
            each: None,
            packed: &[
                Packed { name: "mlp.experts.gate_up_proj", part: [0, 2], order: Order::ColumnsInTurns },
                Packed { name: "mlp.experts.gate_up_proj_blocks", part: [0, 2], order: Order::InTurns },
            ],
            shape: [Dim::ExpertFf, Dim::Embd],
            bias: Some(StackBias { name: "ffn_gate_exps.bias", source: "mlp.experts.gate_up_proj_bias", part: [0, 2] }),
        },
        up: Some(Stack {
            name: "ffn_up_exps.weight",
            each: None,
            packed: &[
                Packed { name: "mlp.experts.gate_up_proj", part: [1, 2], order: Order::ColumnsInTurns },
                Packed { name: "mlp.experts.gate_up_proj_blocks", part: [1, 2], order: Order::InTurns },
            ],
            shape: [Dim::ExpertFf, Dim::Embd],
            bias: Some(StackBias { name: "ffn_up_exps.bias", source: "mlp.experts.gate_up_proj_bias", part: [1, 2] }),
        }),
        down: Stack {
            name: "ffn_down_exps.weight",
            each: None,
            packed: &[
                Packed { name: "mlp.experts.down_proj", part: [0, 1], order: Order::ColumnsInTurns },
                Packed { name: "mlp.experts.down_proj_blocks", part: [0, 1], order: Order::InTurns },
            ],
            shape: [Dim::Embd, Dim::ExpertFf],
            bias: Some(StackBias { name: "ffn_down_exps.bias", source: "mlp.experts.down_proj_bias", part: [0, 1] }),
        },
        scales: None,
        weighing: Weighing::AmongChosen,
        shared: None,
        activation: Activation::ClampedSwiglu { alpha: ALPHA as f32, limit: LIMIT as f32 },
    }),
);
