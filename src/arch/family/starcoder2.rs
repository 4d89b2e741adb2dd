//! StarCoder 2: LayerNorm with biases, rotary positions, grouped queries, GELU without a gate, biases unless config.json says otherwise.

use super::parts::*;
use crate::arch::describe::*;
use crate::arch::numbers::*;
use crate::gguf::keys;

pub const STARCODER2: Family = Family {
    name: "starcoder2",
    models: "StarCoder 2",
    classes: &[class("Starcoder2ForCausalLM", OF_STARCODER2)],
    numbers: &[&LAYER_NORM_EPS, &ROPE_FREQ_BASE, &WINDOW],
    keys: &[USUAL, &[keys::ATTENTION_LAYER_NORM_EPSILON]],
    fixed: &[],
    vocab: Vocab::Stated,
    spaces: Spaces::Stated,
    embedding: embedding(Scale::One),
    source_layers: "model.layers",
    layers: Layers::All(&Layer {
        steps: &[
            step(norm(["attn_norm.weight", "attn_norm.bias"], ["input_layernorm.weight", "input_layernorm.bias"]), ATTENTION),
            step(
                norm(["ffn_norm.weight", "ffn_norm.bias"], ["post_attention_layernorm.weight", "post_attention_layernorm.bias"]),
                NETWORK,
            ),
        ],
    }),
    attention_width: AttentionWidth::KeyDim,
    output_norm: norm(["output_norm.weight", "output_norm.bias"], ["model.norm.weight", "model.norm.bias"]),
    output: OUTPUT,
    drafts: None,
    ignored_ends: &[".rotary_emb.inv_freq"],
    left_out: &[],
};

const OF_STARCODER2: &[(&str, Assumed)] = &[
    ("vocab_size", Assumed::Is(49_152.0)),
    ("hidden_size", Assumed::Is(3072.0)),
    ("intermediate_size", Assumed::Is(12_288.0)),
    ("num_hidden_layers", Assumed::Is(30.0)),
    ("num_attention_heads", Assumed::Is(24.0)),
    ("num_key_value_heads", Assumed::Is(2.0)),
    ("max_position_embeddings", Assumed::Is(4096.0)),
    ("norm_epsilon", Assumed::Is(1e-5)),
    ("tie_word_embeddings", Assumed::Is(1.0)),
];

const BIAS: Need = Need::If("use_bias");
const ATTENTION: Body = Body::Attention(Attention {
    sees: Sees::Window,
    ..attention(qkv(BIAS), Positions::Rope(RopeLayout::Halves), attn_output(BIAS))
});
const NETWORK: Body = Body::Network(Network {
    inner: Inner::Plain(linear("ffn_up", &["mlp.c_fc"], [Dim::Ff, Dim::Embd]).bias(BIAS)),
    down: linear("ffn_down", &["mlp.c_proj"], [Dim::Embd, Dim::Ff]).bias(BIAS),
    activation: Activation::GeluTanh,
});

/// Gain and bias by their names in GGUF, and in the source.
const fn norm([gain, bias]: [&'static str; 2], [source, bias_source]: [&'static str; 2]) -> Norm {
    Norm::Layer(weight(gain, source, &[Dim::Embd]), weight(bias, bias_source, &[Dim::Embd]))
}
