//! GPT-2: learned positions, LayerNorm, GELU without a gate, biases everywhere, matrices stored transposed.

use super::parts::{class, linear, step, weight};
use crate::arch::describe::*;
use crate::arch::numbers::*;
use crate::gguf::keys;

pub const GPT2: Family = Family {
    name: "gpt2",
    models: "GPT-2, DistilGPT-2",
    classes: &[class("GPT2LMHeadModel", OF_GPT2)],
    numbers: &[&LAYER_NORM_EPS],
    keys: &[&[
        keys::BLOCK_COUNT,
        keys::CONTEXT_LENGTH,
        keys::EMBEDDING_LENGTH,
        keys::FEED_FORWARD_LENGTH,
        keys::ATTENTION_HEAD_COUNT,
        keys::ATTENTION_LAYER_NORM_EPSILON,
    ]],
    fixed: &[("scale_attn_weights", 1.0), ("scale_attn_by_inverse_layer_idx", 0.0), ("add_cross_attention", 0.0)],
    vocab: Vocab::Stated,
    spaces: Spaces::Stated,
    embedding: Embedding {
        tokens: weight("token_embd.weight", "transformer.wte.weight", &[Dim::Vocab, Dim::Embd]),
        positions: Some(weight("position_embd.weight", "transformer.wpe.weight", &[Dim::Ctx, Dim::Embd])),
        scale: Scale::One,
    },
    source_layers: "transformer.h",
    layers: Layers::All(&Layer {
        steps: &[
            step(norm("attn_norm.weight", "ln_1.weight", "attn_norm.bias", "ln_1.bias"), Body::Attention(ATTENTION)),
            step(norm("ffn_norm.weight", "ln_2.weight", "ffn_norm.bias", "ln_2.bias"), Body::Network(NETWORK)),
        ],
    }),
    attention_width: AttentionWidth::KeyDim,
    output_norm: norm("output_norm.weight", "transformer.ln_f.weight", "output_norm.bias", "transformer.ln_f.bias"),
    output: super::parts::OUTPUT,
    drafts: None,
    // The causal mask.
    ignored_ends: &[".attn.bias", ".attn.masked_bias"],
    left_out: &[],
};

const OF_GPT2: &[(&str, Assumed)] = &[
    ("vocab_size", Assumed::Is(50_257.0)),
    ("n_positions", Assumed::Is(1024.0)),
    ("n_embd", Assumed::Is(768.0)),
    ("n_layer", Assumed::Is(12.0)),
    ("n_head", Assumed::Is(12.0)),
    ("n_inner", Assumed::Times("n_embd", 4.0)),
    ("layer_norm_epsilon", Assumed::Is(1e-5)),
    ("tie_word_embeddings", Assumed::Is(1.0)),
];

const fn norm(name: &'static str, source: &'static str, bias_name: &'static str, bias_source: &'static str) -> Norm {
    Norm::Layer(weight(name, source, &[Dim::Embd]), weight(bias_name, bias_source, &[Dim::Embd]))
}

const fn conv1d(name: &'static str, source: &'static [&'static str], shape: [Dim; 2]) -> Linear {
    linear(name, source, shape).rows(Rows::Transposed).bias(Need::Required)
}

const ATTENTION: Attention = Attention {
    qkv: Projections::Fused(conv1d("attn_qkv", &["attn.c_attn"], [Dim::Qkv, Dim::Embd]), [Dim::Q, Dim::K, Dim::V]),
    q_norm: Norm::None,
    k_norm: Norm::None,
    v_norm: Norm::None,
    values: Need::Required,
    sinks: None,
    positions: Positions::None,
    sees: Sees::Past,
    gate: OutputGate::None,
    out: conv1d("attn_output", &["attn.c_proj"], [Dim::Embd, Dim::Attended]),
};
const NETWORK: Network = Network {
    inner: Inner::Plain(conv1d("ffn_up", &["mlp.c_fc"], [Dim::Ff, Dim::Embd])),
    down: conv1d("ffn_down", &["mlp.c_proj"], [Dim::Embd, Dim::Ff]),
    activation: Activation::GeluTanh,
};
