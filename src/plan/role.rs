//! What a tensor is for, read from its GGUF name. Knows names and shapes; does not know formats.
//!
//! The classes are those that llama-quantize distinguishes, found by the same substrings, because its per-tensor choices are
//! what we promise to reproduce. Finer roles (norm, router) exist for reports and for the reason "never quantized".

use std::cmp::Ordering;

use crate::source::significant_dims;

/// What a tensor does in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Token embedding table, also per-layer tables.
    TokenEmbd,
    /// The head: hidden state to logits.
    Output,
    /// Query projection.
    AttnQ,
    /// Key projection.
    AttnK,
    /// Value projection.
    AttnV,
    /// Query, key and value fused.
    AttnQkv,
    /// Key and value, expanded from a latent vector.
    AttnKvB,
    /// Projection of the attention result.
    AttnOutput,
    /// Feed-forward gate, also stacked and shared experts.
    FfnGate,
    /// Feed-forward up projection, also stacked and shared experts.
    FfnUp,
    /// Feed-forward down projection, also stacked and shared experts.
    FfnDown,
    /// Weight of a normalisation.
    Norm,
    /// Chooses experts.
    Router,
    /// Learned positions or token types.
    Position,
    /// Frequency factors of rotary positions.
    RopeFreqs,
    /// Anything else.
    Other,
}

/// Substrings that decide, in this order: the first that occurs in the name wins.
const BY_SUBSTRING: &[(&str, Role)] = &[
    ("_norm.weight", Role::Norm),
    ("ffn_gate_inp.weight", Role::Router),
    ("attn_qkv.weight", Role::AttnQkv),
    ("attn_kv_b.weight", Role::AttnKvB),
    ("attn_v.weight", Role::AttnV),
    ("attn_k.weight", Role::AttnK),
    ("attn_q.weight", Role::AttnQ),
    ("attn_output.weight", Role::AttnOutput),
    ("ffn_up", Role::FfnUp),
    ("ffn_gate", Role::FfnGate),
    ("ffn_down", Role::FfnDown),
    ("rope_freqs", Role::RopeFreqs),
    ("rope_factors", Role::RopeFreqs),
];

impl Role {
    /// The role of the tensor with this GGUF name.
    pub fn of(name: &str) -> Role {
        match name {
            "output.weight" => Role::Output,
            "token_embd.weight" | "per_layer_token_embd.weight" => Role::TokenEmbd,
            "position_embd.weight" | "token_types.weight" => Role::Position,
            _ => BY_SUBSTRING.iter().find(|(part, _)| name.contains(part)).map_or(Role::Other, |&(_, role)| role),
        }
    }

    /// True for the projections that carry values: they decide quality more than their size suggests.
    pub fn carries_values(self) -> bool {
        matches!(self, Role::AttnV | Role::AttnQkv | Role::AttnKvB)
    }

    /// The field's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Role::TokenEmbd => "token_embd",
            Role::Output => "output",
            Role::AttnQ => "attn_q",
            Role::AttnK => "attn_k",
            Role::AttnV => "attn_v",
            Role::AttnQkv => "attn_qkv",
            Role::AttnKvB => "attn_kv_b",
            Role::AttnOutput => "attn_output",
            Role::FfnGate => "ffn_gate",
            Role::FfnUp => "ffn_up",
            Role::FfnDown => "ffn_down",
            Role::Norm => "norm",
            Role::Router => "router",
            Role::Position => "position",
            Role::RopeFreqs => "rope_freqs",
            Role::Other => "other",
        }
    }
}

/// The block that a tensor belongs to: `blk.12.ffn_up.weight` -> 12.
pub fn block_of(name: &str) -> Option<u32> {
    let rest = name.strip_prefix("blk.")?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..digits].parse().ok()
}

/// The order in which tensors are written: those of no block first, then block by block, each by name.
///
/// It depends on nothing but the names, so the order of shards cannot change an output. llama-quantize writes the same order.
pub fn file_order(a: &str, b: &str) -> Ordering {
    block_of(a).cmp(&block_of(b)).then_with(|| a.cmp(b))
}

/// Parts of names whose tensors stay as they are: small, or harmed more than the bytes are worth. Mostly convolutions, low-rank
/// state-space matrices, position tables and projectors of images and audio.
const NEVER_BY_SUBSTRING: &[&str] = &[
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
];

/// The same for one architecture only.
const NEVER_IN_ARCH: &[(&str, &[&str])] = &[(
    "glm5-next",
    &[
        "hc_",
        "indexer.attn_q_b",
        "indexer.attn_k",
        "indexer.proj",
        "indexer_compressor_gate",
        "indexer_compressor_ape",
        "ssm_f_a.weight",
        "ssm_f_b.weight",
        "ssm_g_a.weight",
        "ssm_g_b.weight",
        "ssm_beta.weight",
        "attn_kv_a_mqa.weight",
        "attn_k_b.weight",
        "attn_v_b.weight",
    ],
)];

/// Why a tensor is never quantized, whatever the recipe; `None` when it may be.
pub fn never_quantized(name: &str, shape: &[u64], arch: &str) -> Option<&'static str> {
    if significant_dims(shape).len() < 2 {
        return Some("one-dimensional");
    }
    if !name.ends_with("weight") {
        return Some("not a weight");
    }
    match Role::of(name) {
        Role::Norm => return Some("norm"),
        Role::Router => return Some("router"),
        Role::Position => return Some("position table"),
        _ => {}
    }
    let in_arch = NEVER_IN_ARCH.iter().filter(|(of, _)| *of == arch).flat_map(|(_, parts)| *parts);
    NEVER_BY_SUBSTRING.iter().chain(in_arch).any(|part| name.contains(part)).then_some("small or sensitive")
}

/// True for the few tensors that no recipe takes below Q8_0 by itself.
pub fn wants_eight_bits(name: &str, arch: &str) -> bool {
    arch == "glm5-next" && ["attn_q_a", "attn_q_b", "nextn.eh_proj"].iter().any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_follow_the_names() {
        for (name, role) in [
            ("token_embd.weight", Role::TokenEmbd),
            ("output.weight", Role::Output),
            ("output_norm.weight", Role::Norm),
            ("blk.0.attn_v.weight", Role::AttnV),
            ("blk.0.attn_v.bias", Role::Other),
            ("blk.0.attn_k_norm.weight", Role::Norm),
            ("blk.0.attn_qkv.weight", Role::AttnQkv),
            ("blk.3.ffn_down_exps.weight", Role::FfnDown),
            ("blk.3.ffn_up_shexp.weight", Role::FfnUp),
            ("blk.3.ffn_gate_inp.weight", Role::Router),
            ("position_embd.weight", Role::Position),
            ("rope_freqs.weight", Role::RopeFreqs),
            ("blk.1.ssm_out.weight", Role::Other),
        ] {
            assert_eq!(Role::of(name), role, "{name}");
        }
    }

    #[test]
    fn blocks_are_read_from_names_and_nothing_else() {
        assert_eq!(block_of("blk.12.ffn_up.weight"), Some(12));
        for name in ["token_embd.weight", "blk.", "blk.x.y", "blk.-1.y", "blk.99999999999.y", "enc.blk.3.y"] {
            assert_eq!(block_of(name), None, "{name}");
        }
    }

    #[test]
    fn order_is_by_block_number_not_by_text() {
        let mut names = ["blk.10.a", "blk.2.b", "token_embd.weight", "blk.2.a", "output.weight"];
        names.sort_by(|a, b| file_order(a, b));
        assert_eq!(names, ["output.weight", "token_embd.weight", "blk.2.a", "blk.2.b", "blk.10.a"]);
    }

    #[test]
    fn small_and_sensitive_tensors_are_kept() {
        let kept = |name: &str, shape: &[u64]| never_quantized(name, shape, "llama");
        assert_eq!(kept("blk.0.attn_norm.weight", &[256]), Some("one-dimensional"));
        assert_eq!(kept("x.weight", &[1, 1, 256]), Some("one-dimensional"));
        assert_eq!(kept("blk.0.attn_q.bias", &[4, 4]), Some("not a weight"));
        assert_eq!(kept("blk.0.ffn_gate_inp.weight", &[8, 4096]), Some("router"));
        assert_eq!(kept("blk.0.ssm_conv1d.weight", &[8192, 4]), Some("small or sensitive"));
        assert_eq!(kept("blk.0.attn_k_b.weight", &[16, 512, 128]), None);
        assert!(never_quantized("blk.0.attn_k_b.weight", &[16, 512, 128], "glm5-next").is_some());
    }
}
