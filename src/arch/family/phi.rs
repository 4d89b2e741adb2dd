//! Phi-3, 3.5, 4 and 4-mini: queries, keys and values in one tensor, gate and up in another.

use super::parts::*;
use crate::arch::describe::*;
use crate::arch::numbers::*;
use crate::gguf::keys;

pub const PHI3: Family = Family {
    name: "phi3",
    models: "Phi-3, 3.5, 4, 4-mini",
    classes: &[class("Phi3ForCausalLM", OF_PHI3)],
    numbers: &[&RMS_EPS, &ROPE_DIMENSION_COUNT, &ROPE_FREQ_BASE, &WINDOW],
    keys: &[OWN],
    fixed: &[],
    vocab: Vocab::Stated,
    spaces: Spaces::Stated,
    embedding: embedding(Scale::One),
    source_layers: "model.layers",
    layers: Layers::All(&Layer { steps: &[step(ATTN_NORM, Body::Attention(ATTENTION)), step(FFN_NORM, Body::Network(NETWORK))] }),
    attention_width: AttentionWidth::KeyDim,
    output_norm: OUTPUT_NORM,
    output: OUTPUT,
    drafts: None,
    ignored_ends: &[".rotary_emb.inv_freq"],
    left_out: &[],
};

/// The order of its converter.
const OWN: &[&str] = &[
    keys::ROPE_SCALING_ATTN_FACTOR,
    keys::CONTEXT_LENGTH,
    keys::ROPE_SCALING_ORIGINAL_CONTEXT_LENGTH,
    keys::EMBEDDING_LENGTH,
    keys::FEED_FORWARD_LENGTH,
    keys::BLOCK_COUNT,
    keys::ATTENTION_HEAD_COUNT,
    keys::ATTENTION_HEAD_COUNT_KV,
    keys::ATTENTION_LAYER_NORM_RMS_EPSILON,
    keys::ROPE_DIMENSION_COUNT,
    keys::ROPE_FREQ_BASE,
    keys::ATTENTION_SLIDING_WINDOW,
];

const OF_PHI3: &[(&str, Assumed)] = &[
    ("max_position_embeddings", Assumed::Is(4096.0)),
    ("original_max_position_embeddings", Assumed::Is(4096.0)),
    ("rms_norm_eps", Assumed::Is(1e-5)),
];

const ATTENTION: Attention = Attention {
    sees: Sees::Window,
    ..attention(
        Projections::Fused(linear("attn_qkv", &["self_attn.qkv_proj"], [Dim::Qkv, Dim::Embd]), [Dim::Q, Dim::K, Dim::V]),
        Positions::Rope(RopeLayout::Halves),
        attn_output(Need::Never),
    )
};
const NETWORK: Network = Network {
    inner: Inner::Gated(Projections::Fused(linear("ffn_up", &["mlp.gate_up_proj"], [Dim::GateUp, Dim::Embd]), [Dim::Ff, Dim::Ff])),
    down: linear("ffn_down", &["mlp.down_proj"], [Dim::Embd, Dim::Ff]),
    activation: Activation::Silu,
};
