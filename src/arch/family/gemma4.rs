//! Gemma 4, text part: heads of two widths, keys and values that later layers use again or that are one, inputs for each layer, and a factor
//! on what each layer leaves.

use super::gemma4_experts::{GATED, SIDE_BY_SIDE};
use super::parts::*;
use crate::arch::describe::*;
use crate::arch::numbers::*;
use crate::gguf::keys;

pub const GEMMA4: Family = Family {
    name: "gemma4",
    models: "Gemma 4, text part",
    classes: &[
        class("Gemma4ForCausalLM", OF_GEMMA4),
        Class { roots: &["model.language_model."], ..class("Gemma4ForConditionalGeneration", OF_GEMMA4) },
        Class { roots: &["model.language_model."], ..class("Gemma4UnifiedForConditionalGeneration", OF_UNIFIED) },
    ],
    numbers: &[
        &RMS_EPS,
        &ROPE_FREQ_BASE,
        &ROPE_FREQ_BASE_SWA,
        &WIDE_KEYS,
        &WIDE_VALUES,
        &NARROW_KEYS,
        &NARROW_VALUES,
        &ROPE_DIMENSION_COUNT,
        &ROPE_DIMENSION_COUNT_SWA,
        &WINDOW,
        &SHARED_KV_LAYERS,
        &PER_LAYER_INPUT,
        &FINAL_SOFTCAP,
        &EXPERT_COUNT,
        &USED,
        &EXPERT_FF,
    ],
    keys: &[
        USUAL,
        &[
            keys::FINAL_LOGIT_SOFTCAPPING,
            keys::ATTENTION_SLIDING_WINDOW,
            keys::ATTENTION_SHARED_KV_LAYERS,
            keys::EMBEDDING_LENGTH_PER_LAYER_INPUT,
            keys::ATTENTION_SLIDING_WINDOW_PATTERN,
            keys::ATTENTION_KEY_LENGTH_SWA,
            keys::ATTENTION_VALUE_LENGTH_SWA,
            keys::EXPERT_FEED_FORWARD_LENGTH,
            keys::ROPE_DIMENSION_COUNT,
            keys::ROPE_DIMENSION_COUNT_SWA,
        ],
    ],
    fixed: &[("attention_bias", 0.0)],
    vocab: Vocab::Stated,
    spaces: Spaces::Merged("gemma4"),
    embedding: embedding(Scale::SqrtEmbd),
    source_layers: "model.layers",
    layers: Layers::Periodic {
        period: 6,
        stated: Pattern::LayerTypes,
        last: &Layer { steps: &[normed(GLOBAL), NETWORK, MIXTURE, INPUT, FACTOR] },
        others: &Layer { steps: &[normed(LOCAL), NETWORK, MIXTURE, INPUT, FACTOR] },
    },
    attention_width: AttentionWidth::One,
    output_norm: OUTPUT_NORM,
    output: OUTPUT,
    drafts: None,
    ignored_ends: &[".rotary_emb.inv_freq", "lm_head.weight"],
    left_out: &[
        "vision_tower.",
        "audio_tower.",
        "embed_vision.",
        "embed_audio.",
        "model.vision_tower.",
        "model.vision_embedder.",
        "model.audio_tower.",
        "model.embed_vision.",
        "model.embed_audio.",
    ],
};

const OF_GEMMA4: &[(&str, Assumed)] = &[
    ("max_position_embeddings", Assumed::Is(131_072.0)),
    ("num_key_value_heads", Assumed::Is(4.0)),
    ("head_dim", Assumed::Is(256.0)),
    ("global_head_dim", Assumed::Is(512.0)),
    ("rms_norm_eps", Assumed::Is(1e-6)),
    ("rope_theta", Assumed::Is(1e6)),
    ("sliding_window", Assumed::Is(512.0)),
    ("hidden_size_per_layer_input", Assumed::Is(256.0)),
    ("tie_word_embeddings", Assumed::Is(1.0)),
];

/// Of the model that looks at patches of images themselves, without a tower.
const OF_UNIFIED: &[(&str, Assumed)] = &[
    ("max_position_embeddings", Assumed::Is(262_144.0)),
    ("num_key_value_heads", Assumed::Is(4.0)),
    ("head_dim", Assumed::Is(256.0)),
    ("global_head_dim", Assumed::Is(512.0)),
    ("rms_norm_eps", Assumed::Is(1e-6)),
    ("rope_theta", Assumed::Is(1e6)),
    ("sliding_window", Assumed::Is(1024.0)),
    ("tie_word_embeddings", Assumed::Is(1.0)),
];

/// config.json has the width of heads with a window, and that of the others in one of two places.
const WIDE: &[&str] = &["global_head_dim", "per_layer_config.*.head_dim"];
const WIDE_KEYS: Number = Number { config: WIDE, ..KEY_LENGTH };
const WIDE_VALUES: Number = Number { config: WIDE, ..VALUE_LENGTH };
const NARROW_KEYS: Number = Number { config: &["head_dim"], ..KEY_LENGTH_SWA };
const NARROW_VALUES: Number = Number { config: &["head_dim"], ..VALUE_LENGTH_SWA };

const USED: Number = Number { config: &["top_k_experts"], ..EXPERT_USED_COUNT };

const GLOBAL: Attention = Attention {
    q_norm: head_rms("attn_q_norm.weight", "self_attn.q_norm.weight"),
    k_norm: head_rms("attn_k_norm.weight", "self_attn.k_norm.weight"),
    v_norm: Norm::RmsAlone,
    values: Need::Unless("attention_k_eq_v"),
    ..attention(qkv(Need::Never), Positions::Rope(RopeLayout::Halves), attn_output(Need::Never))
};
const LOCAL: Attention =
    Attention { positions: Positions::LocalRope(RopeLayout::Halves), sees: Sees::Window, values: Need::Required, ..GLOBAL };

const fn normed(attention: Attention) -> Step {
    Step {
        before: ATTN_NORM,
        body: Body::Attention(attention),
        after: rms("post_attention_norm.weight", "post_attention_layernorm.weight"),
        when: When::Always,
    }
}

const fn fed_forward(body: Body, when: When) -> Step {
    Step {
        before: rms("ffn_norm.weight", "pre_feedforward_layernorm.weight"),
        body,
        after: rms("post_ffw_norm.weight", "post_feedforward_layernorm.weight"),
        when,
    }
}
const NETWORK: Step = fed_forward(Body::Network(GATED), When::NoExperts);
const MIXTURE: Step = fed_forward(Body::Both(&SIDE_BY_SIDE), When::Experts);

const INPUT: Step = Step {
    before: Norm::None,
    body: Body::PerLayer(PerLayer {
        table: weight("per_layer_token_embd.weight", "model.embed_tokens_per_layer.weight", &[Dim::Vocab, Dim::AllPerLayer]),
        model: linear("per_layer_model_proj", &["model.per_layer_model_projection"], [Dim::AllPerLayer, Dim::Embd]),
        norm: Norm::Rms(weight("per_layer_proj_norm.weight", "model.per_layer_projection_norm.weight", &[Dim::PerLayer])),
        gate: linear("inp_gate", &["per_layer_input_gate"], [Dim::PerLayer, Dim::Embd]),
        proj: linear("proj", &["per_layer_projection"], [Dim::Embd, Dim::PerLayer]),
        activation: Activation::GeluTanh,
    }),
    after: rms("post_norm.weight", "post_per_layer_input_norm.weight"),
    when: When::PerLayer,
};

const FACTOR: Step = step(
    Norm::None,
    Body::Scale(Weight { need: Need::IfThere, ..weight("layer_output_scale.weight", "layer_scalar", &[Dim::One]) }),
);
