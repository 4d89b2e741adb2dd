//! Words for gated delta nets: attention without a softmax, whose past is a matrix of one size.

use super::{Dim, Linear, Weight};

/// Of each value head, with keys and queries of length 1 and a state `S` of `[key width, value width]`, token by token:
///
/// ```text
/// q, k, v = silu(conv(qkv(x)))                       the last few tokens of each channel
/// S = S * exp(a * softplus(alpha(x) + dt))           forget
/// S = S + k^T (sigmoid(beta(x)) * (v - k S))         correct what the state says of the key
/// out(norm(q S) * silu(gate(x)))
/// ```
#[derive(Debug, PartialEq)]
pub struct DeltaNet {
    /// All queries, then all keys, then all values.
    pub qkv: Linear,
    /// What the result is multiplied with.
    pub gate: Linear,
    /// How much is forgotten, and how much is learned.
    pub rates: Rates,
    /// Weights of the last tokens, the newest last: `[queries, keys and values, tokens]`.
    pub conv: Weight,
    /// Added to `alpha`.
    pub dt: Weight,
    /// Below 0.
    pub a: Weight,
    /// Gain of the norm of each head's result.
    pub norm: Weight,
    /// The result's projection.
    pub out: Linear,
    /// Which value heads share a key head.
    pub sharing: Sharing,
}

/// `alpha` and `beta` of every value head.
#[derive(Debug, PartialEq)]
pub enum Rates {
    /// Each by itself.
    Apart {
        /// How much is forgotten.
        alpha: Linear,
        /// How much is learned.
        beta: Linear,
    },
    /// In one matrix: for each key head `beta` of its value heads, then their `alpha`.
    ByKeyHead(Linear),
}

/// Which value heads share a key head, where there are more of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Neighbours.
    Grouped,
    /// Those whose number has the same remainder by the number of key heads.
    Tiled,
}

/// Blocks that foretell more tokens at once (multi-token prediction). In GGUF they follow the layers; they are kept, and not run.
#[derive(Debug, PartialEq)]
pub struct Drafts {
    /// What names of the source begin with.
    pub root: &'static str,
    /// What precedes a block's number in names of the source.
    pub source_layers: &'static str,
    /// What each of them does, beside the rest.
    pub layer: &'static super::Layer,
    /// Brings the state and the next token's embedding to one width. There is one, which the first block holds.
    pub joint: Linear,
    /// The norms of both, and the last one, which the first block holds, too.
    pub norms: &'static [Weight],
}

/// How the columns of a matrix come from the source's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Columns {
    /// As they are.
    Same,
    /// As [`super::Rows::ByRank`], of heads of this width.
    ByRank(Dim),
}
