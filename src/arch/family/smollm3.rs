//! SmolLM3: a Llama in which every fourth layer has no positions.

use super::llama;
use super::parts::*;
use crate::arch::describe::*;
use crate::arch::numbers::*;

pub const SMOLLM3: Family = Family {
    name: "smollm3",
    models: "SmolLM 3",
    classes: &[class("SmolLM3ForCausalLM", OF_SMOLLM3)],
    numbers: &[&RMS_EPS, &ROPE_FREQ_BASE],
    fixed: &[("use_sliding_window", 0.0)],
    layers: Layers::Periodic {
        period: 4,
        stated: Pattern::NoRopeLayers,
        last: &Layer { steps: &[attention_with(Positions::None), NETWORK] },
        others: &Layer { steps: &[attention_with(Positions::Rope(RopeLayout::Neighbours)), NETWORK] },
    },
    ..llama::LLAMA
};

const OF_SMOLLM3: &[(&str, Assumed)] = &[
    ("max_position_embeddings", Assumed::Is(32_768.0)),
    ("num_key_value_heads", Assumed::Is(4.0)),
    ("rms_norm_eps", Assumed::Is(1e-6)),
    ("rope_theta", Assumed::Is(2e6)),
    ("tie_word_embeddings", Assumed::Is(1.0)),
];

const fn attention_with(positions: Positions) -> Step {
    let bias = Need::If("attention_bias");
    step(ATTN_NORM, Body::Attention(attention(qkv_interleaved(bias), positions, attn_output(bias))))
}
const NETWORK: Step = step(FFN_NORM, Body::Network(gated(Activation::Silu, Need::If("mlp_bias"))));
