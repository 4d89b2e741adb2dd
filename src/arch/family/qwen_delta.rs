//! Qwen 3-Next, 3.5 and 3.6: three gated delta nets, then attention whose result is gated.

use super::parts::*;
use super::qwen::{ALL_SPARSE, QWEN2, VISION};
use super::qwen_delta_steps::*;
use crate::arch::describe::*;
use crate::arch::numbers::*;
use crate::gguf::keys;

pub const QWEN3NEXT: Family = Family {
    name: "qwen3next",
    models: "Qwen 3-Next",
    classes: &[class("Qwen3NextForCausalLM", OF_QWEN3NEXT)],
    numbers: &[
        &RMS_EPS,
        &ROPE_FREQ_BASE,
        &KEY_LENGTH,
        &VALUE_LENGTH,
        &EXPERT_COUNT,
        &EXPERT_USED_COUNT,
        &EXPERT_FF,
        &SHARED_EXPERT_FF,
        &DRAFT_LAYERS,
        &SSM_CONV_KERNEL,
        &SSM_STATE_SIZE,
        &SSM_GROUP_COUNT,
        &SSM_TIME_STEP_RANK,
        &SSM_INNER_SIZE,
    ],
    keys: &[USUAL, OF_EXPERTS, OWN],
    fixed: ALL_SPARSE,
    layers: periods(&Layer { steps: &[NEXT_DELTA, MIXTURE] }, &Layer { steps: &[ATTENTION, MIXTURE] }),
    output_norm: rms_less_one("output_norm.weight", "model.norm.weight"),
    drafts: Some(&drafts(&Layer { steps: &[ATTENTION, MIXTURE] })),
    ..QWEN2
};

pub const QWEN35: Family = Family {
    name: "qwen35",
    models: "Qwen 3.5 and 3.6, dense, text part",
    classes: &[
        class("Qwen3_5ForCausalLM", OF_QWEN35),
        Class { roots: &["model.language_model."], ..class("Qwen3_5ForConditionalGeneration", OF_QWEN35) },
    ],
    numbers: &[
        &RMS_EPS,
        &ROPE_FREQ_BASE,
        &KEY_LENGTH,
        &VALUE_LENGTH,
        &ROPE_SECTIONS,
        &DRAFT_LAYERS,
        &SSM_CONV_KERNEL,
        &SSM_STATE_SIZE,
        &SSM_GROUP_COUNT,
        &SSM_TIME_STEP_RANK,
        &SSM_INNER_SIZE,
    ],
    keys: &[USUAL, OWN],
    fixed: &[("attn_output_gate", 1.0)],
    layers: periods(&Layer { steps: &[DELTA, NETWORK] }, &Layer { steps: &[ATTENTION, NETWORK] }),
    drafts: Some(&drafts(&Layer { steps: &[ATTENTION, NETWORK] })),
    left_out: VISION,
    ..QWEN3NEXT
};

pub const QWEN35MOE: Family = Family {
    name: "qwen35moe",
    models: "Qwen 3.5 and 3.6, mixtures, text part",
    classes: &[
        class("Qwen3_5MoeForCausalLM", OF_QWEN35MOE),
        Class { roots: &["model.language_model."], ..class("Qwen3_5MoeForConditionalGeneration", OF_QWEN35MOE) },
    ],
    numbers: &[
        &RMS_EPS,
        &ROPE_FREQ_BASE,
        &KEY_LENGTH,
        &VALUE_LENGTH,
        &ROPE_SECTIONS,
        &Number { default: Default::Absent, ..FEED_FORWARD_LENGTH },
        &EXPERT_COUNT,
        &EXPERT_USED_COUNT,
        &EXPERT_FF,
        &SHARED_EXPERT_FF,
        &DRAFT_LAYERS,
        &SSM_CONV_KERNEL,
        &SSM_STATE_SIZE,
        &SSM_GROUP_COUNT,
        &SSM_TIME_STEP_RANK,
        &SSM_INNER_SIZE,
    ],
    keys: &[USUAL, OF_EXPERTS, OWN],
    layers: periods(&Layer { steps: &[DELTA, MIXTURE] }, &Layer { steps: &[ATTENTION, MIXTURE] }),
    drafts: Some(&drafts(&Layer { steps: &[ATTENTION, MIXTURE] })),
    ..QWEN35
};

const OF_EXPERTS: &[&str] = &[keys::EXPERT_FEED_FORWARD_LENGTH, keys::EXPERT_SHARED_FEED_FORWARD_LENGTH];
/// What the converter adds for delta nets.
const OWN: &[&str] = &[
    keys::NEXTN_PREDICT_LAYERS,
    keys::SSM_CONV_KERNEL,
    keys::SSM_STATE_SIZE,
    keys::SSM_GROUP_COUNT,
    keys::SSM_TIME_STEP_RANK,
    keys::SSM_INNER_SIZE,
    keys::ATTENTION_RECURRENT_LAYERS,
    keys::FULL_ATTENTION_INTERVAL,
    keys::ROPE_DIMENSION_COUNT,
];

/// Fields that only mixtures look at stand here for all; those in which the classes differ are stated in every published config.json.
const OF_QWEN3NEXT: &[(&str, Assumed)] = &assumed(2.0, 512.0, 10.0);
const OF_QWEN35: &[(&str, Assumed)] = &assumed(4.0, 256.0, 8.0);
const OF_QWEN35MOE: &[(&str, Assumed)] = &assumed(2.0, 256.0, 8.0);

const fn assumed(n_head_kv: f64, n_expert: f64, n_used: f64) -> [(&'static str, Assumed); 16] {
    [
        ("max_position_embeddings", Assumed::Is(32_768.0)),
        ("num_key_value_heads", Assumed::Is(n_head_kv)),
        ("head_dim", Assumed::Is(256.0)),
        ("rms_norm_eps", Assumed::Is(1e-6)),
        ("partial_rotary_factor", Assumed::Is(0.25)),
        ("mrope_section", Assumed::Are(&[11, 11, 10])),
        ("linear_conv_kernel_dim", Assumed::Is(4.0)),
        ("linear_key_head_dim", Assumed::Is(128.0)),
        ("linear_value_head_dim", Assumed::Is(128.0)),
        ("linear_num_key_heads", Assumed::Is(16.0)),
        ("linear_num_value_heads", Assumed::Is(32.0)),
        ("num_experts", Assumed::Is(n_expert)),
        ("num_experts_per_tok", Assumed::Is(n_used)),
        ("moe_intermediate_size", Assumed::Is(512.0)),
        ("shared_expert_intermediate_size", Assumed::Is(512.0)),
        ("norm_topk_prob", Assumed::Is(1.0)),
    ]
}

const fn periods(others: &'static Layer, last: &'static Layer) -> Layers {
    Layers::Periodic { period: 4, stated: Pattern::Recurrent, last, others }
}
