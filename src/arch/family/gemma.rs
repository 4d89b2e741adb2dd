//! Gemma 1, 2 and 3, text part: the embedding is scaled, gains of norms are stored less 1, the network is gated by GELU. From Gemma 2 on
//! results are normalised too, and some layers see a window only, in Gemma 3 with a rotary base of their own.

use super::parts::*;
use crate::arch::describe::*;
use crate::arch::numbers::*;
use crate::gguf::keys;

pub const GEMMA: Family = Family {
    name: "gemma",
    models: "Gemma 1, CodeGemma",
    classes: &[class("GemmaForCausalLM", OF_GEMMA)],
    numbers: &[&RMS_EPS, &ROPE_FREQ_BASE, &KEY_LENGTH, &VALUE_LENGTH],
    keys: &[OWN],
    fixed: &[("use_bidirectional_attention", 0.0)],
    vocab: Vocab::Stated,
    spaces: Spaces::None,
    embedding: embedding(Scale::SqrtEmbd),
    source_layers: "model.layers",
    layers: Layers::All(&Layer { steps: &[step(ATTN_NORM, Body::Attention(PLAIN)), step(FFN_NORM_1, NETWORK)] }),
    attention_width: AttentionWidth::KeyDim,
    output_norm: OUTPUT_NORM,
    output: OUTPUT,
    drafts: None,
    // The head is the embedding; some tools save it all the same, and llama.cpp has no place for it.
    ignored_ends: &[".rotary_emb.inv_freq", "lm_head.weight"],
    left_out: &[],
};

pub const GEMMA2: Family = Family {
    name: "gemma2",
    models: "Gemma 2",
    attention_width: AttentionWidth::EmbdShareAt(46),
    classes: &[class("Gemma2ForCausalLM", OF_GEMMA2)],
    numbers: &[&RMS_EPS, &ROPE_FREQ_BASE, &KEY_LENGTH, &VALUE_LENGTH, &ATTN_SOFTCAP, &FINAL_SOFTCAP, &WINDOW_OR_4096, &QUERY_SCALE],
    keys: &[OWN, &[keys::ATTN_LOGIT_SOFTCAPPING, keys::FINAL_LOGIT_SOFTCAPPING, keys::ATTENTION_SLIDING_WINDOW]],
    layers: Layers::Periodic {
        period: 2,
        stated: Pattern::LayerTypes,
        last: &Layer { steps: &[normed(PLAIN), NETWORK_STEP] },
        others: &Layer { steps: &[normed(Attention { sees: Sees::Window, ..PLAIN }), NETWORK_STEP] },
    },
    ..GEMMA
};

pub const GEMMA3: Family = Family {
    name: "gemma3",
    models: "Gemma 3, MedGemma",
    attention_width: AttentionWidth::EmbdShareAt(62),
    classes: &[
        class("Gemma3ForCausalLM", OF_GEMMA3),
        Class { roots: &["language_model.model.", "model.language_model."], ..class("Gemma3ForConditionalGeneration", OF_GEMMA3) },
    ],
    numbers: &[&RMS_EPS, &ROPE_FREQ_BASE, &KEY_LENGTH, &VALUE_LENGTH, &ROPE_FREQ_BASE_SWA, &WINDOW, &FINAL_SOFTCAP, &QUERY_SCALE],
    keys: &[USUAL, &[keys::FINAL_LOGIT_SOFTCAPPING, keys::ATTENTION_SLIDING_WINDOW]],
    vocab: Vocab::OfTokenizer,
    layers: Layers::Periodic {
        period: 6,
        stated: Pattern::LayerTypes,
        last: &Layer { steps: &[normed(with_head_norms(Positions::Rope(RopeLayout::Halves), Sees::Past)), NETWORK_STEP] },
        others: &Layer { steps: &[normed(with_head_norms(Positions::LocalRope(RopeLayout::Halves), Sees::Window)), NETWORK_STEP] },
    },
    left_out: &["vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."],
    ..GEMMA
};

/// The order of its converter.
const OWN: &[&str] = &[
    keys::CONTEXT_LENGTH,
    keys::EMBEDDING_LENGTH,
    keys::BLOCK_COUNT,
    keys::FEED_FORWARD_LENGTH,
    keys::ATTENTION_HEAD_COUNT,
    keys::ATTENTION_HEAD_COUNT_KV,
    keys::ATTENTION_LAYER_NORM_RMS_EPSILON,
    keys::ATTENTION_KEY_LENGTH,
    keys::ATTENTION_VALUE_LENGTH,
];

const OF_GEMMA: &[(&str, Assumed)] = &[
    ("max_position_embeddings", Assumed::Is(8192.0)),
    ("num_key_value_heads", Assumed::Is(16.0)),
    ("head_dim", Assumed::Is(256.0)),
    ("rms_norm_eps", Assumed::Is(1e-6)),
    ("tie_word_embeddings", Assumed::Is(1.0)),
];
const OF_GEMMA2: &[(&str, Assumed)] = &[
    ("max_position_embeddings", Assumed::Is(8192.0)),
    ("num_key_value_heads", Assumed::Is(4.0)),
    ("head_dim", Assumed::Is(256.0)),
    ("rms_norm_eps", Assumed::Is(1e-6)),
    ("query_pre_attn_scalar", Assumed::Is(256.0)),
    ("sliding_window", Assumed::Is(4096.0)),
    ("attn_logit_softcapping", Assumed::Is(50.0)),
    ("final_logit_softcapping", Assumed::Is(30.0)),
    ("tie_word_embeddings", Assumed::Is(1.0)),
];
const OF_GEMMA3: &[(&str, Assumed)] = &[
    ("max_position_embeddings", Assumed::Is(131_072.0)),
    // Of its smallest model, whose config.json leaves them out.
    ("num_attention_heads", Assumed::Is(8.0)),
    ("num_key_value_heads", Assumed::Is(4.0)),
    ("vocab_size", Assumed::Is(262_208.0)),
    ("head_dim", Assumed::Is(256.0)),
    ("rms_norm_eps", Assumed::Is(1e-6)),
    ("rope_theta", Assumed::Is(1e6)),
    ("query_pre_attn_scalar", Assumed::Is(256.0)),
    ("sliding_window", Assumed::Is(4096.0)),
    ("tie_word_embeddings", Assumed::Is(1.0)),
];

/// config.json says what to divide by the root of.
const QUERY_SCALE: Number = Number { config: &["query_pre_attn_scalar"], ..ATTENTION_SCALE };
/// Files made before the key was written have Gemma 2's own.
const WINDOW_OR_4096: Number = Number { default: Default::Is(4096.0), ..WINDOW };

const PLAIN: Attention = attention(qkv(Need::If("attention_bias")), Positions::Rope(RopeLayout::Halves), attn_output(Need::Never));
const NETWORK: Body = Body::Network(gated(Activation::GeluTanh, Need::Never));

const ATTN_NORM: Norm = rms_less_one("attn_norm.weight", "input_layernorm.weight");
/// Gemma 1's name for what is a norm of the result from Gemma 2 on.
const FFN_NORM_1: Norm = rms_less_one("ffn_norm.weight", "post_attention_layernorm.weight");
const OUTPUT_NORM: Norm = rms_less_one("output_norm.weight", "model.norm.weight");

const fn with_head_norms(positions: Positions, sees: Sees) -> Attention {
    Attention {
        q_norm: head_rms_less_one("attn_q_norm.weight", "self_attn.q_norm.weight"),
        k_norm: head_rms_less_one("attn_k_norm.weight", "self_attn.k_norm.weight"),
        positions,
        sees,
        ..PLAIN
    }
}

const fn normed(attention: Attention) -> Step {
    Step {
        before: ATTN_NORM,
        body: Body::Attention(attention),
        after: rms_less_one("post_attention_norm.weight", "post_attention_layernorm.weight"),
        when: When::Always,
    }
}

const NETWORK_STEP: Step = Step {
    before: rms_less_one("ffn_norm.weight", "pre_feedforward_layernorm.weight"),
    body: NETWORK,
    after: rms_less_one("post_ffw_norm.weight", "post_feedforward_layernorm.weight"),
    when: When::Always,
};
