//! The architectures that can be run, as data.
//!
//! All are of one kind: RMSNorm before attention and before a SwiGLU network, rotary positions, grouped queries. A family says where it
//! differs. Biases need no entry: a linear layer has one where the file has one. In place of one feed-forward network a family may have a
//! mixture of experts, of which a router picks some for every token.

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
    /// Experts, where it can have them.
    pub mixture: Option<Mixture>,
}

/// How a family mixes its experts. All weigh them by a softmax over the scores of all.
#[derive(Debug, PartialEq, Eq)]
pub struct Mixture {
    /// Models of the family may also have one feed-forward network instead.
    pub is_optional: bool,
    /// The weights of the chosen experts are made to add up to 1.
    pub normalises_weights: bool,
    /// One more expert works for every token, by a gate of its own.
    pub has_shared: bool,
}

/// Which two dimensions of a head are a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeLayout {
    /// `2i` and `2i + 1`: what Llama's own checkpoints have, and what converters permute transformers' into.
    Neighbours,
    /// `i` and `i + n_rot / 2`, as in GPT-NeoX.
    Halves,
}

/// RMSNorm, rotation of halves, SwiGLU, nothing else.
const PLAIN: Family = Family { name: "", rope: RopeLayout::Halves, normalises_heads: false, is_fused: false, mixture: None };

const FAMILIES: &[Family] = &[
    Family {
        name: "llama",
        rope: RopeLayout::Neighbours,
        // Mixtral.
        mixture: Some(Mixture { is_optional: true, normalises_weights: true, has_shared: false }),
        ..PLAIN
    },
    Family { name: "qwen2", ..PLAIN },
    Family {
        name: "qwen2moe",
        mixture: Some(Mixture { is_optional: false, normalises_weights: false, has_shared: true }),
        ..PLAIN
    },
    Family { name: "qwen3", normalises_heads: true, ..PLAIN },
    Family {
        name: "qwen3moe",
        normalises_heads: true,
        mixture: Some(Mixture { is_optional: false, normalises_weights: true, has_shared: false }),
        ..PLAIN
    },
    Family { name: "phi3", is_fused: true, ..PLAIN },
];

/// The names of the architectures that can be run.
pub fn architectures() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|family| family.name)
}

pub(super) fn family(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.name == name)
}
