//! Hyperparameters, each said once: its GGUF key, its names in config.json, its bounds, what holds where nothing is said.

use super::describe::{Default, Kind, Number};
use crate::gguf::keys;

/// Layers, as llama.cpp bounds them; the deepest known model has 126.
pub const LAYERS_MAX: u64 = 512;
/// Experts of a layer, as llama.cpp bounds them.
pub const EXPERTS_MAX: u64 = 1024;
/// Widths: the largest known is 53 248. A bound on products of two of them.
pub const WIDTH_MAX: u64 = 1 << 24;
/// Tokens of context; the longest known is 10 million.
pub const CTX_MAX: u64 = 1 << 30;

const fn number(key: &'static str, config: &'static [&'static str], kind: Kind, default: Default) -> Number {
    Number { key, config, kind, default }
}

// Those that every family has.
/// Layers.
pub const BLOCK_COUNT: Number =
    number(keys::BLOCK_COUNT, &["num_hidden_layers", "n_layer", "n_layers"], Kind::Count(1, LAYERS_MAX), Default::Required);
/// Tokens of context that the model was trained for.
pub const CONTEXT_LENGTH: Number = number(
    keys::CONTEXT_LENGTH,
    &["max_position_embeddings", "n_positions", "n_ctx", "max_length"],
    Kind::Count(1, CTX_MAX),
    Default::Required,
);
/// Width of states.
pub const EMBEDDING_LENGTH: Number =
    number(keys::EMBEDDING_LENGTH, &["hidden_size", "n_embd", "dim"], Kind::Count(1, WIDTH_MAX), Default::Required);
/// Inner width of the feed-forward network.
pub const FEED_FORWARD_LENGTH: Number = number(
    keys::FEED_FORWARD_LENGTH,
    &["intermediate_size", "n_inner", "hidden_dim"],
    Kind::PerLayer(1, WIDTH_MAX),
    Default::Required,
);
/// Query heads.
pub const HEAD_COUNT: Number = number(
    keys::ATTENTION_HEAD_COUNT,
    &["num_attention_heads", "n_head", "n_heads"],
    Kind::PerLayer(1, WIDTH_MAX),
    Default::Required,
);
/// Key and value heads.
pub const HEAD_COUNT_KV: Number = number(
    keys::ATTENTION_HEAD_COUNT_KV,
    &["num_key_value_heads"],
    Kind::PerLayer(1, WIDTH_MAX),
    Default::As(keys::ATTENTION_HEAD_COUNT),
);

// Those that some have.
/// Added to the mean square of RMS norms.
pub const RMS_EPS: Number = number(keys::ATTENTION_LAYER_NORM_RMS_EPSILON, &["rms_norm_eps"], Kind::Positive, Default::Required);
/// Added to the variance of layer norms.
pub const LAYER_NORM_EPS: Number = number(
    keys::ATTENTION_LAYER_NORM_EPSILON,
    &["layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"],
    Kind::Positive,
    Default::Required,
);
/// Width of a key head.
pub const KEY_LENGTH: Number = number(keys::ATTENTION_KEY_LENGTH, &["head_dim"], Kind::Count(2, WIDTH_MAX), Default::Absent);
/// Width of a value head.
pub const VALUE_LENGTH: Number = number(keys::ATTENTION_VALUE_LENGTH, &["head_dim"], Kind::Count(2, WIDTH_MAX), Default::Absent);
/// Width of a key head of layers with a window.
pub const KEY_LENGTH_SWA: Number = number(keys::ATTENTION_KEY_LENGTH_SWA, &[], Kind::Count(2, WIDTH_MAX), Default::Required);
/// Width of a value head of layers with a window.
pub const VALUE_LENGTH_SWA: Number = number(keys::ATTENTION_VALUE_LENGTH_SWA, &[], Kind::Count(2, WIDTH_MAX), Default::Required);
/// Layers at the end that use the keys and values of others.
pub const SHARED_KV_LAYERS: Number =
    number(keys::ATTENTION_SHARED_KV_LAYERS, &["num_kv_shared_layers"], Kind::Count(0, LAYERS_MAX), Default::Absent);
/// Width of what each layer gets of the tokens.
pub const PER_LAYER_INPUT: Number =
    number(keys::EMBEDDING_LENGTH_PER_LAYER_INPUT, &["hidden_size_per_layer_input"], Kind::Count(0, WIDTH_MAX), Default::Absent);
/// Dimensions of a head that are rotated, of layers with a window.
pub const ROPE_DIMENSION_COUNT_SWA: Number =
    number(keys::ROPE_DIMENSION_COUNT_SWA, &[], Kind::Count(2, WIDTH_MAX), Default::Absent);
/// Dimensions of a head that are rotated.
pub const ROPE_DIMENSION_COUNT: Number = number(keys::ROPE_DIMENSION_COUNT, &[], Kind::Count(2, WIDTH_MAX), Default::Absent);
/// Base of the rotary frequencies.
pub const ROPE_FREQ_BASE: Number = number(keys::ROPE_FREQ_BASE, &["rope_theta"], Kind::Positive, Default::Is(10_000.0));
/// The same of layers with a window.
pub const ROPE_FREQ_BASE_SWA: Number =
    number(keys::ROPE_FREQ_BASE_SWA, &["rope_local_base_freq"], Kind::Positive, Default::Is(10_000.0));
/// Pairs that follow time, height and width.
pub const ROPE_SECTIONS: Number =
    number(keys::ROPE_DIMENSION_SECTIONS, &["mrope_section"], Kind::Count(0, WIDTH_MAX), Default::Absent);
/// Tokens that attention sees, where it is not all.
pub const WINDOW: Number = number(keys::ATTENTION_SLIDING_WINDOW, &["sliding_window"], Kind::Count(0, CTX_MAX), Default::Absent);
/// Bound of the scores of attention.
pub const ATTN_SOFTCAP: Number =
    number(keys::ATTN_LOGIT_SOFTCAPPING, &["attn_logit_softcapping"], Kind::NotNegative, Default::Absent);
/// Bound of the scores of tokens.
pub const FINAL_SOFTCAP: Number =
    number(keys::FINAL_LOGIT_SOFTCAPPING, &["final_logit_softcapping"], Kind::NotNegative, Default::Absent);
/// Experts of a layer.
pub const EXPERT_COUNT: Number = number(
    keys::EXPERT_COUNT,
    &["num_local_experts", "num_experts", "n_routed_experts"],
    Kind::Count(0, EXPERTS_MAX),
    Default::Absent,
);
/// Experts that a token uses.
pub const EXPERT_USED_COUNT: Number =
    number(keys::EXPERT_USED_COUNT, &["num_experts_per_tok"], Kind::Count(1, EXPERTS_MAX), Default::Absent);
/// Inner width of an expert.
pub const EXPERT_FF: Number =
    number(keys::EXPERT_FEED_FORWARD_LENGTH, &["moe_intermediate_size"], Kind::Count(1, WIDTH_MAX), Default::Absent);
/// Inner width of the expert that every token uses.
pub const SHARED_EXPERT_FF: Number = number(
    keys::EXPERT_SHARED_FEED_FORWARD_LENGTH,
    &["shared_expert_intermediate_size"],
    Kind::Count(1, WIDTH_MAX),
    Default::Absent,
);
/// Factor on the scores of attention.
pub const ATTENTION_SCALE: Number = number(keys::ATTENTION_SCALE, &["attention_multiplier"], Kind::Positive, Default::Absent);
/// Factor on the embedding.
pub const EMBEDDING_SCALE: Number = number(keys::EMBEDDING_SCALE, &["embedding_multiplier"], Kind::Positive, Default::Absent);
/// Factor on what a step adds.
pub const RESIDUAL_SCALE: Number = number(keys::RESIDUAL_SCALE, &["residual_multiplier"], Kind::Positive, Default::Absent);
/// Divisor of the scores of tokens.
pub const LOGIT_SCALE: Number = number(keys::LOGIT_SCALE, &["logits_scaling"], Kind::Positive, Default::Absent);
/// Blocks after the layers that foretell more tokens. config.json may state some that the source does not have.
pub const DRAFT_LAYERS: Number = number(keys::NEXTN_PREDICT_LAYERS, &[], Kind::Count(0, LAYERS_MAX), Default::Absent);
/// Tokens that the convolution of a delta net sees.
pub const SSM_CONV_KERNEL: Number =
    number(keys::SSM_CONV_KERNEL, &["linear_conv_kernel_dim"], Kind::Count(2, 1 << 10), Default::Required);
/// Width of its queries and keys.
pub const SSM_STATE_SIZE: Number =
    number(keys::SSM_STATE_SIZE, &["linear_key_head_dim"], Kind::Count(1, WIDTH_MAX), Default::Required);
/// Its key heads.
pub const SSM_GROUP_COUNT: Number =
    number(keys::SSM_GROUP_COUNT, &["linear_num_key_heads"], Kind::Count(1, WIDTH_MAX), Default::Required);
/// Its value heads.
pub const SSM_TIME_STEP_RANK: Number =
    number(keys::SSM_TIME_STEP_RANK, &["linear_num_value_heads"], Kind::Count(1, WIDTH_MAX), Default::Required);
/// Its values; config.json has the width of one head.
pub const SSM_INNER_SIZE: Number =
    number(keys::SSM_INNER_SIZE, &["linear_value_head_dim"], Kind::Count(1, WIDTH_MAX), Default::Required);
/// Layers that images are added to.
pub const DEEPSTACK_LAYERS: Number = number(keys::N_DEEPSTACK_LAYERS, &[], Kind::Count(0, LAYERS_MAX), Default::Absent);
