//! Gemma 4's mixtures: experts beside a network, scored by the states in a norm of their own.

use super::parts::*;
use crate::arch::describe::*;

/// The network of all tokens.
pub const GATED: Network = gated(Activation::GeluTanh, Need::Never);
/// What is in the place of the network where there are experts: both.
pub const SIDE_BY_SIDE: Both = Both {
    network: GATED,
    network_norm: rms("post_ffw_norm_1.weight", "post_feedforward_layernorm_1.weight"),
    experts_before: rms("pre_ffw_norm_2.weight", "pre_feedforward_layernorm_2.weight"),
    experts: EXPERTS,
    experts_norm: rms("post_ffw_norm_2.weight", "post_feedforward_layernorm_2.weight"),
};
const EXPERTS: Experts = Experts {
    router: linear("ffn_gate_inp", &["router.proj"], [Dim::Experts, Dim::Embd]),
    router_gain: Some(weight("ffn_gate_inp.scale", "router.scale", &[Dim::Embd])),
    gate: Stack {
        name: "ffn_gate_up_exps.weight",
        each: None,
        packed: &[Packed { name: "experts.gate_up_proj", part: [0, 1], order: Order::PartByPart }],
        shape: [Dim::ExpertGateUp, Dim::Embd],
        bias: None,
    },
    up: None,
    down: Stack {
        name: "ffn_down_exps.weight",
        each: None,
        packed: &[Packed { name: "experts.down_proj", part: [0, 1], order: Order::PartByPart }],
        shape: [Dim::Embd, Dim::ExpertFf],
        bias: None,
    },
    scales: Some(weight("ffn_down_exps.scale", "router.per_expert_scale", &[Dim::Experts])),
    weighing: Weighing::AmongChosen,
    shared: None,
    activation: Activation::GeluTanh,
};
