//! The steps of Qwen 3-Next, 3.5 and 3.6. Qwen 3-Next keeps the rows of a key head together; Qwen 3.5 has a matrix each for queries, keys and
//! values, for gates and for rates, and GGUF has its value heads in another order.

use super::parts::*;
use super::qwen::{SHARED, experts};
use crate::arch::describe::*;

const ATTN_NORM: Norm = rms_less_one("attn_norm.weight", "input_layernorm.weight");
const FFN_NORM: Norm = rms_less_one("post_attention_norm.weight", "post_attention_layernorm.weight");
pub(super) const NETWORK: Step = step(FFN_NORM, Body::Network(gated(Activation::Silu, Need::Never)));
pub(super) const MIXTURE: Step = step(FFN_NORM, Body::Experts(experts(Weighing::AmongChosen, Some(SHARED))));

const BIAS: Need = Need::If("attention_bias");
pub(super) const ATTENTION: Step = step(
    ATTN_NORM,
    Body::Attention(Attention {
        q_norm: head_rms_less_one("attn_q_norm.weight", "self_attn.q_norm.weight"),
        k_norm: head_rms_less_one("attn_k_norm.weight", "self_attn.k_norm.weight"),
        gate: OutputGate::BelowQueries,
        ..attention(
            Projections::Apart([
                linear("attn_q", &["self_attn.q_proj"], [Dim::GatedQ, Dim::Embd]).bias(BIAS),
                linear("attn_k", &["self_attn.k_proj"], [Dim::K, Dim::Embd]).bias(BIAS),
                linear("attn_v", &["self_attn.v_proj"], [Dim::V, Dim::Embd]).bias(BIAS),
            ]),
            Positions::Rope(RopeLayout::Halves),
            attn_output(BIAS),
        )
    }),
);

/// Rows of `in_proj_qkvz` for a key head: its query, itself, its values, their gates.
const PARTS: &[Dim] = &[Dim::DeltaKey, Dim::DeltaKey, Dim::DeltaGroup, Dim::DeltaGroup];
const HEADS: Rows = Rows::ByRank { after: None, width: Dim::One };
const VALUES: Rows = Rows::ByRank { after: None, width: Dim::DeltaValue };
const CHANNELS: Rows = Rows::ByRank { after: Some(Dim::DeltaQueriesKeys), width: Dim::DeltaValue };

pub(super) const NEXT_DELTA: Step = step(
    ATTN_NORM,
    Body::Delta(DeltaNet {
        qkv: linear("attn_qkv", &["linear_attn.in_proj_qkvz"], [Dim::DeltaQkv, Dim::Embd])
            .rows(Rows::ByKeyHead { heights: PARTS, take: &[0, 1, 2] }),
        gate: linear("attn_gate", &["linear_attn.in_proj_qkvz"], [Dim::DeltaValues, Dim::Embd])
            .rows(Rows::ByKeyHead { heights: PARTS, take: &[3] }),
        rates: Rates::ByKeyHead(linear("ssm_ba", &["linear_attn.in_proj_ba"], [Dim::TwiceDeltaHeads, Dim::Embd])),
        out: linear("ssm_out", &["linear_attn.out_proj"], [Dim::Embd, Dim::DeltaValues]),
        sharing: Sharing::Grouped,
        ..delta(Rows::Same, Rows::Same)
    }),
);
pub(super) const DELTA: Step = step(ATTN_NORM, Body::Delta(delta(HEADS, CHANNELS)));

/// Qwen 3.5's, but for what happens to numbers of each value head and to channels of the convolution.
const fn delta(heads: Rows, channels: Rows) -> DeltaNet {
    DeltaNet {
        qkv: linear("attn_qkv", &["linear_attn.in_proj_qkv"], [Dim::DeltaQkv, Dim::Embd]).rows(CHANNELS),
        gate: linear("attn_gate", &["linear_attn.in_proj_z"], [Dim::DeltaValues, Dim::Embd]).rows(VALUES),
        rates: Rates::Apart {
            alpha: linear("ssm_alpha", &["linear_attn.in_proj_a"], [Dim::DeltaHeads, Dim::Embd]).rows(HEADS),
            beta: linear("ssm_beta", &["linear_attn.in_proj_b"], [Dim::DeltaHeads, Dim::Embd]).rows(HEADS),
        },
        conv: Weight {
            rows: channels,
            ..weight("ssm_conv1d.weight", "linear_attn.conv1d.weight", &[Dim::DeltaQkv, Dim::ConvKernel])
        },
        dt: Weight { rows: heads, ..weight("ssm_dt.bias", "linear_attn.dt_bias", &[Dim::DeltaHeads]) },
        a: Weight { rows: heads, edit: Edit::NegExp, ..weight("ssm_a", "linear_attn.A_log", &[Dim::DeltaHeads]) },
        norm: weight("ssm_norm.weight", "linear_attn.norm.weight", &[Dim::DeltaValue]),
        out: Linear {
            columns: Columns::ByRank(Dim::DeltaValue),
            ..linear("ssm_out", &["linear_attn.out_proj"], [Dim::Embd, Dim::DeltaValues])
        },
        sharing: Sharing::Tiled,
    }
}

const DRAFT_NORMS: &[Weight] = &[
    less_one("nextn.enorm.weight", "pre_fc_norm_embedding.weight"),
    less_one("nextn.hnorm.weight", "pre_fc_norm_hidden.weight"),
    less_one("nextn.shared_head_norm.weight", "norm.weight"),
];

pub(super) const fn drafts(layer: &'static Layer) -> Drafts {
    Drafts {
        root: "mtp.",
        source_layers: "layers",
        layer,
        joint: linear("nextn.eh_proj", &["fc"], [Dim::Embd, Dim::TwiceEmbd]),
        norms: DRAFT_NORMS,
    }
}

const fn less_one(name: &'static str, source: &'static str) -> Weight {
    Weight { edit: Edit::AddOne, ..weight(name, source, &[Dim::Embd]) }
}
