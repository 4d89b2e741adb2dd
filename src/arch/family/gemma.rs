//! Gemma 1, 2 and 3, text part: the embedding is scaled, gains of norms are stored less 1, the network is gated by GELU. From Gemma 2 on
//! results are normalised too, and some layers see a window only, in Gemma 3 with a rotary base of their own.

use super::parts::*;
use crate::arch::describe::*;
use crate::arch::numbers::*;

pub const GEMMA: Family = Family {
    name: "gemma",
    models: "Gemma 1, CodeGemma",
    classes: &[class("GemmaForCausalLM")],
    numbers: &[&RMS_EPS, &ROPE_FREQ_BASE, &KEY_LENGTH, &VALUE_LENGTH],
    embedding: embedding(Scale::SqrtEmbd),
    source_layers: "model.layers",
    layers: Layers::All(&Layer { steps: &[step(ATTN_NORM, Body::Attention(PLAIN)), step(FFN_NORM_1, NETWORK)] }),
    attention_width: AttentionWidth::KeyDim,
    output_norm: OUTPUT_NORM,
    output: OUTPUT,
    ignored_ends: &[".rotary_emb.inv_freq"],
    left_out: &[],
};

pub const GEMMA2: Family = Family {
    name: "gemma2",
    models: "Gemma 2",
    attention_width: AttentionWidth::EmbdShareAt(46),
    classes: &[class("Gemma2ForCausalLM")],
    numbers: &[&RMS_EPS, &ROPE_FREQ_BASE, &KEY_LENGTH, &VALUE_LENGTH, &ATTN_SOFTCAP, &FINAL_SOFTCAP, &WINDOW_OR_4096],
    layers: Layers::Periodic {
        period: 2,
        last: &Layer { steps: &[normed(PLAIN), NETWORK_STEP] },
        others: &Layer { steps: &[normed(Attention { sees: Sees::Window, ..PLAIN }), NETWORK_STEP] },
    },
    ..GEMMA
};

pub const GEMMA3: Family = Family {
    name: "gemma3",
    models: "Gemma 3, MedGemma",
    attention_width: AttentionWidth::EmbdShareAt(62),
    classes: &[class("Gemma3ForCausalLM"), class("Gemma3ForConditionalGeneration")],
    numbers: &[&RMS_EPS, &ROPE_FREQ_BASE, &KEY_LENGTH, &VALUE_LENGTH, &ROPE_FREQ_BASE_SWA, &WINDOW],
    layers: Layers::Periodic {
        period: 6,
        last: &Layer { steps: &[normed(with_head_norms(Positions::Rope(RopeLayout::Halves), Sees::Past)), NETWORK_STEP] },
        others: &Layer { steps: &[normed(with_head_norms(Positions::LocalRope(RopeLayout::Halves), Sees::Window)), NETWORK_STEP] },
    },
    left_out: &["vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."],
    ..GEMMA
};

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
    }
}

const NETWORK_STEP: Step = Step {
    before: rms_less_one("ffn_norm.weight", "pre_feedforward_layernorm.weight"),
    body: NETWORK,
    after: rms_less_one("post_ffw_norm.weight", "post_feedforward_layernorm.weight"),
};
