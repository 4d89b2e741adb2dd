//! Qwen 2, 2.5, 3 and their mixtures: rotary pairs half a head apart; Qwen 2 has biases of q, k and v, Qwen 3 norms of heads instead.

use super::parts::*;
use crate::arch::describe::*;
use crate::arch::numbers::*;
use crate::gguf::keys;

pub const QWEN2: Family = Family {
    name: "qwen2",
    models: "Qwen 2 and 2.5, QwQ, DeepSeek-R1-Distill-Qwen",
    classes: &[class("Qwen2ForCausalLM", OF_QWEN2), Class { head: Head::States, roots: &[""], ..class("Qwen2Model", OF_QWEN2) }],
    numbers: &[&RMS_EPS, &ROPE_FREQ_BASE],
    keys: &[USUAL],
    fixed: &[],
    vocab: Vocab::Stated,
    spaces: Spaces::Stated,
    embedding: embedding(Scale::One),
    source_layers: "model.layers",
    layers: Layers::All(&Layer { steps: &[step(ATTN_NORM, Body::Attention(WITH_BIAS)), NETWORK] }),
    attention_width: AttentionWidth::KeyDim,
    output_norm: OUTPUT_NORM,
    output: OUTPUT,
    drafts: None,
    ignored_ends: &[".rotary_emb.inv_freq"],
    left_out: &[],
};

pub const QWEN2VL: Family = Family {
    name: "qwen2vl",
    models: "Qwen 2.5-VL, text part",
    classes: &[Class { roots: &["model.language_model."], ..class("Qwen2_5_VLForConditionalGeneration", OF_QWEN2VL) }],
    numbers: &[&RMS_EPS, &ROPE_FREQ_BASE, &ROPE_SECTIONS],
    left_out: VISION,
    ..QWEN2
};

pub const QWEN2MOE: Family = Family {
    name: "qwen2moe",
    models: "Qwen 1.5-MoE, Qwen 2-57B-A14B",
    classes: &[class("Qwen2MoeForCausalLM", OF_QWEN2MOE)],
    numbers: &[&RMS_EPS, &ROPE_FREQ_BASE, &EXPERT_COUNT, &EXPERT_USED_COUNT, &EXPERT_FF, &SHARED_EXPERT_FF],
    keys: &[USUAL, &[keys::EXPERT_FEED_FORWARD_LENGTH, keys::EXPERT_SHARED_FEED_FORWARD_LENGTH]],
    fixed: ALL_SPARSE,
    layers: Layers::All(&Layer {
        steps: &[
            step(ATTN_NORM, Body::Attention(WITH_BIAS)),
            step(FFN_NORM, Body::Experts(experts(Weighing::AmongAll, Some(SHARED)))),
        ],
    }),
    ..QWEN2
};

pub const QWEN3: Family = Family {
    name: "qwen3",
    models: "Qwen 3, Qwen 3 Embedding",
    classes: &[class("Qwen3ForCausalLM", OF_QWEN3), Class { head: Head::States, roots: &[""], ..class("Qwen3Model", OF_QWEN3) }],
    numbers: &[&RMS_EPS, &ROPE_FREQ_BASE, &KEY_LENGTH, &VALUE_LENGTH],
    layers: Layers::All(&Layer { steps: &[step(ATTN_NORM, Body::Attention(WITH_HEAD_NORMS)), NETWORK] }),
    ..QWEN2
};

pub const QWEN3VL: Family = Family {
    name: "qwen3vl",
    models: "Qwen 3-VL, text part",
    classes: &[Class { roots: &["model.language_model."], ..class("Qwen3VLForConditionalGeneration", OF_QWEN3VL) }],
    numbers: &[&RMS_EPS, &ROPE_FREQ_BASE, &KEY_LENGTH, &VALUE_LENGTH, &ROPE_SECTIONS, &DEEPSTACK_LAYERS],
    keys: &[USUAL, &[keys::N_DEEPSTACK_LAYERS]],
    left_out: VISION,
    ..QWEN3
};

pub const QWEN3MOE: Family = Family {
    name: "qwen3moe",
    models: "Qwen 3 30B-A3B, 235B-A22B, Qwen 3 Coder",
    classes: &[class("Qwen3MoeForCausalLM", OF_QWEN3MOE)],
    numbers: &[&RMS_EPS, &ROPE_FREQ_BASE, &KEY_LENGTH, &VALUE_LENGTH, &EXPERT_COUNT, &EXPERT_USED_COUNT, &EXPERT_FF],
    keys: &[USUAL, &[keys::EXPERT_FEED_FORWARD_LENGTH]],
    fixed: ALL_SPARSE,
    layers: Layers::All(&Layer {
        steps: &[
            step(ATTN_NORM, Body::Attention(WITH_HEAD_NORMS)),
            step(FFN_NORM, Body::Experts(experts(Weighing::AmongChosen, None))),
        ],
    }),
    ..QWEN2
};

const OF_QWEN2: &[(&str, Assumed)] = &[
    ("max_position_embeddings", Assumed::Is(32_768.0)),
    ("num_key_value_heads", Assumed::Is(32.0)),
    ("rms_norm_eps", Assumed::Is(1e-6)),
];
const OF_QWEN2VL: &[(&str, Assumed)] = &[
    ("max_position_embeddings", Assumed::Is(32_768.0)),
    ("num_key_value_heads", Assumed::Is(8.0)),
    ("rms_norm_eps", Assumed::Is(1e-5)),
    ("rope_theta", Assumed::Is(1e6)),
];
const OF_QWEN2MOE: &[(&str, Assumed)] = &[
    ("max_position_embeddings", Assumed::Is(32_768.0)),
    ("num_key_value_heads", Assumed::Is(16.0)),
    ("rms_norm_eps", Assumed::Is(1e-6)),
    ("num_experts", Assumed::Is(60.0)),
    ("num_experts_per_tok", Assumed::Is(4.0)),
    ("moe_intermediate_size", Assumed::Is(1408.0)),
    ("shared_expert_intermediate_size", Assumed::Is(5632.0)),
    ("norm_topk_prob", Assumed::Is(0.0)),
];
const OF_QWEN3: &[(&str, Assumed)] = &[
    ("max_position_embeddings", Assumed::Is(32_768.0)),
    ("num_key_value_heads", Assumed::Is(32.0)),
    ("head_dim", Assumed::Is(128.0)),
    ("rms_norm_eps", Assumed::Is(1e-6)),
];
const OF_QWEN3VL: &[(&str, Assumed)] = &[
    ("max_position_embeddings", Assumed::Is(128_000.0)),
    ("num_key_value_heads", Assumed::Is(32.0)),
    ("head_dim", Assumed::Is(128.0)),
    ("rms_norm_eps", Assumed::Is(1e-6)),
    ("rope_theta", Assumed::Is(5e6)),
];
const OF_QWEN3MOE: &[(&str, Assumed)] = &[
    ("max_position_embeddings", Assumed::Is(32_768.0)),
    ("num_key_value_heads", Assumed::Is(4.0)),
    ("rms_norm_eps", Assumed::Is(1e-6)),
    ("num_experts", Assumed::Is(128.0)),
    ("num_experts_per_tok", Assumed::Is(8.0)),
    ("moe_intermediate_size", Assumed::Is(768.0)),
    ("norm_topk_prob", Assumed::Is(0.0)),
];

/// Layers without experts have no place in these files.
pub(super) const ALL_SPARSE: &[(&str, f64)] = &[("decoder_sparse_step", 1.0), ("mlp_only_layers", 0.0)];

pub(super) const VISION: &[&str] = &["visual.", "model.visual."];

const ROPE: Positions = Positions::Rope(RopeLayout::Halves);
const WITH_BIAS: Attention = attention(qkv(Need::Required), ROPE, attn_output(Need::Never));
const WITH_HEAD_NORMS: Attention = Attention {
    q_norm: head_rms("attn_q_norm.weight", "self_attn.q_norm.weight"),
    k_norm: head_rms("attn_k_norm.weight", "self_attn.k_norm.weight"),
    ..attention(qkv(Need::If("attention_bias")), ROPE, attn_output(Need::If("attention_bias")))
};
const NETWORK: Step = step(FFN_NORM, Body::Network(gated(Activation::Silu, Need::Never)));

pub(super) const fn experts(weighing: Weighing, shared: Option<SharedExpert>) -> Experts {
    Experts {
        router: linear("ffn_gate_inp", &["mlp.gate"], [Dim::Experts, Dim::Embd]),
        router_gain: None,
        gate: Stack {
            name: "ffn_gate_exps.weight",
            each: Some("mlp.experts.{e}.gate_proj"),
            packed: &[Packed { name: "mlp.experts.gate_up_proj", part: [0, 2], order: Order::PartByPart }],
            shape: [Dim::ExpertFf, Dim::Embd],
            bias: None,
        },
        up: Some(Stack {
            name: "ffn_up_exps.weight",
            each: Some("mlp.experts.{e}.up_proj"),
            packed: &[Packed { name: "mlp.experts.gate_up_proj", part: [1, 2], order: Order::PartByPart }],
            shape: [Dim::ExpertFf, Dim::Embd],
            bias: None,
        }),
        down: Stack {
            name: "ffn_down_exps.weight",
            each: Some("mlp.experts.{e}.down_proj"),
            packed: &[Packed { name: "mlp.experts.down_proj", part: [0, 1], order: Order::PartByPart }],
            shape: [Dim::Embd, Dim::ExpertFf],
            bias: None,
        },
        scales: None,
        weighing,
        shared,
        activation: Activation::Silu,
    }
}

pub(super) const SHARED: SharedExpert = SharedExpert {
    weight: linear("ffn_gate_inp_shexp", &["mlp.shared_expert_gate"], [Dim::One, Dim::Embd]),
    network: Network {
        inner: Inner::Gated(Projections::Apart([
            linear("ffn_gate_shexp", &["mlp.shared_expert.gate_proj"], [Dim::SharedFf, Dim::Embd]),
            linear("ffn_up_shexp", &["mlp.shared_expert.up_proj"], [Dim::SharedFf, Dim::Embd]),
        ])),
        down: linear("ffn_down_shexp", &["mlp.shared_expert.down_proj"], [Dim::Embd, Dim::SharedFf]),
        activation: Activation::Silu,
    },
};
