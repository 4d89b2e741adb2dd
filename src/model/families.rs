//! The architectures that can be run, as data.
//!
//! All are of one kind: RMSNorm before attention and before a SwiGLU network, rotary positions, grouped queries. A family says where it
//! differs. Biases need no entry: a linear layer has one where the file has one.

/// What the tensors of an architecture look like.
#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    /// `general.architecture`.
    pub name: &'static str,
    /// Which dimensions of a head are rotated together.
    pub rope: RopeLayout,
    /// Queries and keys are normalised head by head before they are rotated.
    pub normalises_heads: bool,
    /// `attn_qkv` holds queries, keys and values, `ffn_up` gate and up, one below the other.
    pub is_fused: bool,
}

/// Which two dimensions of a head are a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeLayout {
    /// `2i` and `2i + 1`: what Llama's own checkpoints have, and what converters permute transformers' into.
    Neighbours,
    /// `i` and `i + n_rot / 2`, as in GPT-NeoX.
    Halves,
}

const FAMILIES: &[Family] = &[
    Family { name: "llama", rope: RopeLayout::Neighbours, normalises_heads: false, is_fused: false },
    Family { name: "qwen2", rope: RopeLayout::Halves, normalises_heads: false, is_fused: false },
    Family { name: "qwen3", rope: RopeLayout::Halves, normalises_heads: true, is_fused: false },
    Family { name: "phi3", rope: RopeLayout::Halves, normalises_heads: false, is_fused: true },
];

/// The names of the architectures that can be run.
pub fn architectures() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|family| family.name)
}

pub(super) fn family(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.name == name)
}
