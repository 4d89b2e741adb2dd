//! Which tensors no recipe touches: small ones, and those harmed more than the bytes are worth.
//!
//! These are llama-quantize's own lists, by the substrings that it looks for, because its choices are what we promise to reproduce, for
//! architectures too that nothing here describes. What it knows of one architecture is [`crate::arch::family::Quirks`].

use crate::arch::family::quirks;
use crate::names::Role;
use crate::source::significant_dims;

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
    NEVER_BY_SUBSTRING.iter().chain(quirks(arch).kept).any(|part| name.contains(part)).then_some("small or sensitive")
}

/// True for the few tensors that no recipe takes below Q8_0 by itself.
pub fn wants_eight_bits(name: &str, arch: &str) -> bool {
    quirks(arch).eight_bits.iter().any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

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
