//! Granite 3: a Llama with factors on the embedding, on what each step adds, on attention and on the scores.

use super::llama;
use super::parts::*;
use crate::arch::describe::*;
use crate::arch::numbers::*;
use crate::gguf::keys;

pub const GRANITE: Family = Family {
    name: "granite",
    models: "Granite 3",
    classes: &[class("GraniteForCausalLM", OF_GRANITE)],
    numbers: &[&RMS_EPS, &ROPE_FREQ_BASE, &ATTENTION_SCALE, &EMBEDDING_SCALE, &RESIDUAL_SCALE, &LOGIT_SCALE],
    keys: &[USUAL, LIKE_LLAMA, &[keys::ATTENTION_SCALE, keys::EMBEDDING_SCALE, keys::RESIDUAL_SCALE, keys::LOGIT_SCALE]],
    embedding: embedding(Scale::Stated),
    layers: Layers::All(&Layer { steps: &[ATTENTION, NETWORK] }),
    ..llama::LLAMA
};

const OF_GRANITE: &[(&str, Assumed)] = &[
    ("max_position_embeddings", Assumed::Is(2048.0)),
    ("rms_norm_eps", Assumed::Is(1e-6)),
    ("attention_multiplier", Assumed::Is(1.0)),
    ("embedding_multiplier", Assumed::Is(1.0)),
    ("residual_multiplier", Assumed::Is(1.0)),
    ("logits_scaling", Assumed::Is(1.0)),
];

const ATTENTION: Step = step(
    ATTN_NORM,
    Body::Attention(attention(
        qkv_interleaved(Need::If("attention_bias")),
        Positions::Rope(RopeLayout::Neighbours),
        attn_output(Need::If("attention_bias")),
    )),
);
const NETWORK: Step = step(FFN_NORM, Body::Network(gated(Activation::Silu, Need::If("mlp_bias"))));
