//! SmolLM3: a Llama in which every fourth layer has no positions.

use super::llama;
use super::parts::*;
use crate::arch::describe::*;
use crate::arch::numbers::*;

pub const SMOLLM3: Family = Family {
    name: "smollm3",
    models: "SmolLM 3",
    classes: &[class("SmolLM3ForCausalLM")],
    numbers: &[&RMS_EPS, &ROPE_FREQ_BASE],
    layers: Layers::Periodic {
        period: 4,
        last: &Layer { steps: &[attention_with(Positions::None), NETWORK] },
        others: &Layer { steps: &[attention_with(Positions::Rope(RopeLayout::Neighbours)), NETWORK] },
    },
    ..llama::LLAMA
};

const fn attention_with(positions: Positions) -> Step {
    let bias = Need::If("attention_bias");
    step(ATTN_NORM, Body::Attention(attention(qkv_interleaved(bias), positions, attn_output(bias))))
}
const NETWORK: Step = step(FFN_NORM, Body::Network(gated(Activation::Silu, Need::If("mlp_bias"))));
