//! Phi-3, 3.5, 4 and 4-mini: queries, keys and values in one tensor, gate and up in another.

use super::parts::*;
use crate::arch::describe::*;
use crate::arch::numbers::*;

pub const PHI3: Family = Family {
    name: "phi3",
    models: "Phi-3, 3.5, 4, 4-mini",
    classes: &[class("Phi3ForCausalLM")],
    numbers: &[&RMS_EPS, &ROPE_DIMENSION_COUNT, &ROPE_FREQ_BASE, &WINDOW],
    embedding: embedding(Scale::One),
    source_layers: "model.layers",
    layers: Layers::All(&Layer { steps: &[step(ATTN_NORM, Body::Attention(ATTENTION)), step(FFN_NORM, Body::Network(NETWORK))] }),
    attention_width: AttentionWidth::KeyDim,
    output_norm: OUTPUT_NORM,
    output: OUTPUT,
    ignored_ends: &[".rotary_emb.inv_freq"],
    left_out: &[],
};

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
