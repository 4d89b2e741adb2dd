//! The architectures that can be run, as data.
//!
//! Most are of one kind: RMSNorm before attention and before a SwiGLU network, rotary positions, grouped queries. A family says where it
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
    /// How states are normalised.
    pub norm: Norm,
    /// What bends the feed-forward network.
    pub activation: Activation,
    /// Half of that network is a gate for the other.
    pub is_gated: bool,
    /// Positions are vectors added to the embedding, not rotations.
    pub learns_positions: bool,
    /// The embedding is multiplied by the root of its width.
    pub scales_embedding: bool,
    /// What attention and the feed-forward network make is normalised before it is added.
    pub normalises_results: bool,
    /// Some layers see a window of the last tokens only, and rotate by another base.
    pub has_windows: bool,
}

/// How states are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// Over their root mean square.
    Rms,
    /// To a mean of 0 and a variance of 1, with a bias.
    Layer,
}

/// What bends a feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `x * Phi(x)` of the normal distribution, by the hyperbolic tangent.
    Gelu,
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
const PLAIN: Family = Family {
    name: "",
    rope: RopeLayout::Halves,
    normalises_heads: false,
    is_fused: false,
    mixture: None,
    norm: Norm::Rms,
    activation: Activation::Silu,
    is_gated: true,
    learns_positions: false,
    scales_embedding: false,
    normalises_results: false,
    has_windows: false,
};

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
    Family { name: "gemma", activation: Activation::Gelu, scales_embedding: true, ..PLAIN },
    Family {
        name: "gemma3",
        normalises_heads: true,
        activation: Activation::Gelu,
        scales_embedding: true,
        normalises_results: true,
        has_windows: true,
        ..PLAIN
    },
    Family {
        name: "gpt2",
        is_fused: true,
        norm: Norm::Layer,
        activation: Activation::Gelu,
        is_gated: false,
        learns_positions: true,
        ..PLAIN
    },
];

/// The names of the architectures that can be run.
pub fn architectures() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|family| family.name)
}

pub(super) fn family(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.name == name)
}
