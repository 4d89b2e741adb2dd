//! Llama 1, 2, 3, 3.x, TinyLlama, SmolLM, Vicuna (`LlamaForCausalLM`), and Mistral (`MistralForCausalLM`), which differs in its
//! defaults only.
//!
//! ```text
//! token_embd -> n_layer x { attn_norm, q k v (rope, GQA), attn_output, + ; ffn_norm, down(silu(gate) * up), + } -> output_norm -> output
//! ```

use super::Arch;
use super::hparams::Class;
use super::rule::Dim::{self, Embd, Ff, Heads, HeadsKv, Vocab};
use super::rule::Need::{self, If, Required, UnlessTied};
use super::rule::Rows::{self, RopeHeads, RopeHeadsKv, Same};
use super::rule::TensorRule;
use crate::gguf::{Value, keys};

pub(super) const LLAMA: Arch = Arch {
    name: "llama",
    classes: &[
        Class { name: "LlamaForCausalLM", n_ctx: 2048, n_head_kv: None, fills_head_dim: true },
        // The spelling of the first conversions of Llama 1.
        Class { name: "LLaMAForCausalLM", n_ctx: 2048, n_head_kv: None, fills_head_dim: true },
        Class { name: "MistralForCausalLM", n_ctx: 131_072, n_head_kv: Some(8), fills_head_dim: false },
    ],
    tensors: &[
        rule("model.embed_tokens.weight", "token_embd.weight", &[Vocab, Embd], Same, Required),
        rule("model.layers.{bid}.input_layernorm.weight", "blk.{bid}.attn_norm.weight", &[Embd], Same, Required),
        rule("model.layers.{bid}.self_attn.q_proj.weight", "blk.{bid}.attn_q.weight", &[Heads, Embd], RopeHeads, Required),
        rule("model.layers.{bid}.self_attn.k_proj.weight", "blk.{bid}.attn_k.weight", &[HeadsKv, Embd], RopeHeadsKv, Required),
        rule("model.layers.{bid}.self_attn.v_proj.weight", "blk.{bid}.attn_v.weight", &[HeadsKv, Embd], Same, Required),
        rule("model.layers.{bid}.self_attn.o_proj.weight", "blk.{bid}.attn_output.weight", &[Embd, Heads], Same, Required),
        rule("model.layers.{bid}.post_attention_layernorm.weight", "blk.{bid}.ffn_norm.weight", &[Embd], Same, Required),
        rule("model.layers.{bid}.mlp.gate_proj.weight", "blk.{bid}.ffn_gate.weight", &[Ff, Embd], Same, Required),
        rule("model.layers.{bid}.mlp.up_proj.weight", "blk.{bid}.ffn_up.weight", &[Ff, Embd], Same, Required),
        rule("model.layers.{bid}.mlp.down_proj.weight", "blk.{bid}.ffn_down.weight", &[Embd, Ff], Same, Required),
        rule("model.layers.{bid}.self_attn.q_proj.bias", "blk.{bid}.attn_q.bias", &[Heads], RopeHeads, If("attention_bias")),
        rule("model.layers.{bid}.self_attn.k_proj.bias", "blk.{bid}.attn_k.bias", &[HeadsKv], RopeHeadsKv, If("attention_bias")),
        rule("model.layers.{bid}.self_attn.v_proj.bias", "blk.{bid}.attn_v.bias", &[HeadsKv], Same, If("attention_bias")),
        rule("model.layers.{bid}.self_attn.o_proj.bias", "blk.{bid}.attn_output.bias", &[Embd], Same, If("attention_bias")),
        rule("model.layers.{bid}.mlp.gate_proj.bias", "blk.{bid}.ffn_gate.bias", &[Ff], Same, If("mlp_bias")),
        rule("model.layers.{bid}.mlp.up_proj.bias", "blk.{bid}.ffn_up.bias", &[Ff], Same, If("mlp_bias")),
        rule("model.layers.{bid}.mlp.down_proj.bias", "blk.{bid}.ffn_down.bias", &[Embd], Same, If("mlp_bias")),
        rule("model.norm.weight", "output_norm.weight", &[Embd], Same, Required),
        rule("lm_head.weight", "output.weight", &[Vocab, Embd], Same, UnlessTied),
    ],
    // Buffers of old transformers versions, computed anew by every runtime.
    ignored_suffixes: &[".rotary_emb.inv_freq", ".attention.masked_bias", ".attention.bias"],
    keys: &[
        (keys::VOCAB_SIZE, |hparams| Value::U32(hparams.n_vocab)),
        (keys::ROPE_DIMENSION_COUNT, |hparams| Value::U32(hparams.head_dim)),
    ],
};

const fn rule(source: &'static str, name: &'static str, shape: &'static [Dim], rows: Rows, need: Need) -> TensorRule {
    TensorRule { source, name, shape, rows, need }
}
