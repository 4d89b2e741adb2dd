//! Parts that many families share, and short ways to say the others.

use crate::arch::describe::*;
use crate::gguf::keys;

/// A linear map without a bias.
pub const fn linear(name: &'static str, source: &'static [&'static str], shape: [Dim; 2]) -> Linear {
    Linear { name, source, shape, rows: Rows::Same, columns: Columns::Same, bias: Need::Never }
}

impl Linear {
    /// The same with rows that are rearranged.
    pub const fn rows(self, rows: Rows) -> Linear {
        Linear { rows, ..self }
    }

    /// The same with a bias, where `need` says.
    pub const fn bias(self, bias: Need) -> Linear {
        Linear { bias, ..self }
    }
}

/// A vector as wide as states, or a table of them.
pub const fn weight(name: &'static str, source: &'static str, shape: &'static [Dim]) -> Weight {
    Weight { name, source, shape, rows: Rows::Same, edit: Edit::Same, need: Need::Required }
}

/// An RMS norm.
pub const fn rms(name: &'static str, source: &'static str) -> Norm {
    Norm::Rms(weight(name, source, &[Dim::Embd]))
}

/// An RMS norm whose gain the source stores less 1.
pub const fn rms_less_one(name: &'static str, source: &'static str) -> Norm {
    Norm::Rms(Weight { edit: Edit::AddOne, ..weight(name, source, &[Dim::Embd]) })
}

/// An RMS norm of every head.
pub const fn head_rms(name: &'static str, source: &'static str) -> Norm {
    Norm::Rms(weight(name, source, &[Dim::HeadDim]))
}

/// The same, stored less 1.
pub const fn head_rms_less_one(name: &'static str, source: &'static str) -> Norm {
    Norm::Rms(Weight { edit: Edit::AddOne, ..weight(name, source, &[Dim::HeadDim]) })
}

/// `model.embed_tokens` and nothing else.
pub const fn embedding(scale: Scale) -> Embedding {
    let tokens = weight("token_embd.weight", "model.embed_tokens.weight", &[Dim::Vocab, Dim::Embd]);
    Embedding { tokens, positions: None, scale }
}

/// `lm_head`, where the embedding does not serve.
pub const OUTPUT: Linear = linear("output", &["lm_head"], [Dim::Vocab, Dim::Embd]);

/// `q_proj`, `k_proj` and `v_proj`, whose rotary halves stay apart; `bias` says whether they have one.
pub const fn qkv(bias: Need) -> Projections<3> {
    Projections::Apart([
        linear("attn_q", &["self_attn.q_proj"], [Dim::Q, Dim::Embd]).bias(bias),
        linear("attn_k", &["self_attn.k_proj"], [Dim::K, Dim::Embd]).bias(bias),
        linear("attn_v", &["self_attn.v_proj"], [Dim::V, Dim::Embd]).bias(bias),
    ])
}

/// The same for files whose pairs are neighbours.
pub const fn qkv_interleaved(bias: Need) -> Projections<3> {
    Projections::Apart([
        linear("attn_q", &["self_attn.q_proj"], [Dim::Q, Dim::Embd]).rows(Rows::RopeHeads).bias(bias),
        linear("attn_k", &["self_attn.k_proj"], [Dim::K, Dim::Embd]).rows(Rows::RopeHeadsKv).bias(bias),
        linear("attn_v", &["self_attn.v_proj"], [Dim::V, Dim::Embd]).bias(bias),
    ])
}

/// `o_proj`.
pub const fn attn_output(bias: Need) -> Linear {
    linear("attn_output", &["self_attn.o_proj"], [Dim::Embd, Dim::Attended]).bias(bias)
}

/// Attention without norms of heads, over everything before.
pub const fn attention(qkv: Projections<3>, positions: Positions, out: Linear) -> Attention {
    Attention {
        qkv,
        q_norm: Norm::None,
        k_norm: Norm::None,
        v_norm: Norm::None,
        values: Need::Required,
        sinks: None,
        positions,
        sees: Sees::Past,
        gate: OutputGate::None,
        out,
    }
}

/// `gate_proj`, `up_proj` and `down_proj`.
pub const fn gated(activation: Activation, bias: Need) -> Network {
    let gate = linear("ffn_gate", &["mlp.gate_proj"], [Dim::Ff, Dim::Embd]).bias(bias);
    let up = linear("ffn_up", &["mlp.up_proj"], [Dim::Ff, Dim::Embd]).bias(bias);
    let down = linear("ffn_down", &["mlp.down_proj"], [Dim::Embd, Dim::Ff]).bias(bias);
    Network { inner: Inner::Gated(Projections::Apart([gate, up])), down, activation }
}

/// A step with a norm before it.
pub const fn step(before: Norm, body: Body) -> Step {
    Step { before, body, after: Norm::None, when: When::Always }
}

/// The norms of most layers.
pub const ATTN_NORM: Norm = rms("attn_norm.weight", "input_layernorm.weight");
/// The one before the feed-forward network.
pub const FFN_NORM: Norm = rms("ffn_norm.weight", "post_attention_layernorm.weight");
/// The last one.
pub const OUTPUT_NORM: Norm = rms("output_norm.weight", "model.norm.weight");

/// A class with what its configuration assumes.
pub const fn class(name: &'static str, defaults: &'static [(&'static str, Assumed)]) -> Class {
    Class { name, defaults, roots: &[], head: Head::Scores }
}

/// The keys that llama.cpp's converter writes for most architectures.
pub const USUAL: &[&str] = &[
    keys::BLOCK_COUNT,
    keys::CONTEXT_LENGTH,
    keys::EMBEDDING_LENGTH,
    keys::FEED_FORWARD_LENGTH,
    keys::ATTENTION_HEAD_COUNT,
    keys::ATTENTION_HEAD_COUNT_KV,
    keys::ROPE_SCALING_TYPE,
    keys::ROPE_SCALING_FACTOR,
    keys::ROPE_SCALING_ORIGINAL_CONTEXT_LENGTH,
    keys::ROPE_SCALING_YARN_EXT_FACTOR,
    keys::ROPE_SCALING_ATTN_FACTOR,
    keys::ROPE_SCALING_YARN_BETA_FAST,
    keys::ROPE_SCALING_YARN_BETA_SLOW,
    keys::ROPE_DIMENSION_SECTIONS,
    keys::ROPE_FREQ_BASE,
    keys::ROPE_FREQ_BASE_SWA,
    keys::ATTENTION_LAYER_NORM_RMS_EPSILON,
    keys::EXPERT_COUNT,
    keys::EXPERT_USED_COUNT,
    keys::ATTENTION_KEY_LENGTH,
    keys::ATTENTION_VALUE_LENGTH,
];
/// Those that it adds for Llama and what comes from it.
pub const LIKE_LLAMA: &[&str] = &[keys::VOCAB_SIZE, keys::ROPE_DIMENSION_COUNT];
