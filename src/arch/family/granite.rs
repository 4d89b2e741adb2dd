//! Granite 3: a Llama with factors on the embedding, on what each step adds, on attention and on the scores.

use super::llama;
use super::parts::*;
use crate::arch::describe::*;
use crate::arch::numbers::*;

pub const GRANITE: Family = Family {
    name: "granite",
    models: "Granite 3",
    classes: &[class("GraniteForCausalLM")],
    numbers: &[&RMS_EPS, &ROPE_FREQ_BASE, &ATTENTION_SCALE, &EMBEDDING_SCALE, &RESIDUAL_SCALE, &LOGIT_SCALE],
    embedding: embedding(Scale::Stated),
    layers: Layers::All(&Layer { steps: &[ATTENTION, NETWORK] }),
    ..llama::LLAMA
};

const ATTENTION: Step = step(
    ATTN_NORM,
    Body::Attention(attention(
        qkv_interleaved(Need::If("attention_bias")),
        Positions::Rope(RopeLayout::Neighbours),
        attn_output(Need::If("attention_bias")),
    )),
);
const NETWORK: Step = step(FFN_NORM, Body::Network(gated(Activation::Silu, Need::If("mlp_bias"))));
