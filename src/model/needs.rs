//! What running models asks of a machine, from metadata and shapes alone: which operations, over how many weights, for how many tokens.
//! So a machine can be chosen, and memory taken, before a weight is read.

use std::collections::BTreeSet;

use crate::arch::Hparams;
use crate::quant::Format;

/// Tokens of a prompt that go through the layers together: as fast as more, in less memory.
pub(super) const PROMPT_BATCH: usize = 512;

/// Where the weights of the layers are while the model runs. Embedding and output are always in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residency {
    /// In memory: for generation, which needs all of them for every token.
    Resident,
    /// In the file, read layer by layer for every batch of tokens: for evaluation in less memory than the model has bytes.
    Streamed,
}

/// An operation that a machine may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Norms that bring rows to a mean of 0 and a variance of 1, with a bias.
    LayerNorm,
    /// GELU, with a gate or without.
    Gelu,
    /// Attention that sees a window of the last keys only.
    Windows,
    /// Attention whose scores are bounded.
    BoundedAttention,
    /// Attention with a score for each head that mixes nothing.
    Sinks,
    /// Layers that use the keys and values of others.
    SharedKeys,
    /// A network beside experts, and routers of states that have norms of their own.
    NetworkBesideExperts,
    /// Norms of value heads.
    NormalisedValues,
    /// Products with states that are not normalised.
    PlainInputs,
    /// Gated networks whose inner values are bounded.
    ClampedSwiglu,
    /// Attention whose result is gated.
    GatedAttention,
    /// Gated delta nets.
    DeltaNet,
    /// Scores of tokens times a factor.
    ScaledScores,
    /// Scores of tokens that are bounded.
    BoundedScores,
    /// Rotation and attention of heads of this width.
    Heads(usize),
    /// So many heads side by side in a row.
    HeadsInARow(usize),
    /// Rows of a table, by their numbers.
    Rows(MatrixShape),
    /// Products with a matrix, into rows of as many numbers as it has rows.
    Product(MatrixShape),
    /// Products with the output matrix.
    Logits(MatrixShape),
}

/// A matrix before it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MatrixShape {
    /// How its weights are stored.
    pub format: Format,
    /// Outputs.
    pub n_rows: usize,
    /// Inputs.
    pub n_cols: usize,
}

/// Bytes of some weights: matrices as in the file, vectors as f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WeightBytes {
    /// All of them together.
    pub n_bytes: u64,
    /// Matrices and vectors, each of which a machine may have to round up.
    pub n_tensors: u64,
}

/// What running one model takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Needs {
    /// Its sizes.
    pub hparams: Hparams,
    /// Tokens of its longest sequence.
    pub n_ctx: usize,
    /// Every operation, once, in a fixed order.
    pub operations: BTreeSet<Operation>,
    /// Weights that are in memory wherever the layers are: embedding, output, positions.
    pub kept: WeightBytes,
    /// The weights of each layer.
    pub layers: Vec<WeightBytes>,
}

/// Models that run side by side over the same tokens, and what they do.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// The models.
    pub models: Vec<Needs>,
    /// What they do.
    pub work: Work,
}

/// What models do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// They take sequences of `n_ctx` tokens through their layers, many at a time.
    Evaluation {
        /// Sequences in all.
        n_sequences: usize,
        /// Tokens of each whose predictions are scored, of one model or of two beside each other.
        n_scored: usize,
    },
    /// They read a prompt, then one token after the other.
    Generation {
        /// Tokens of the prompt.
        n_prompt: usize,
    },
}

impl Needs {
    /// All layers together.
    pub fn layers_bytes(&self) -> WeightBytes {
        self.layers.iter().fold(WeightBytes::default(), |sum, layer| WeightBytes {
            n_bytes: sum.n_bytes.saturating_add(layer.n_bytes),
            n_tensors: sum.n_tensors + layer.n_tensors,
        })
    }
}

/// Numbers that exist at once for each token on its way through a layer.
pub fn activations_per_token(hparams: &Hparams) -> usize {
    let widest = hparams.layers.iter().map(|layer| {
        // With gates, queries exist as the product of their matrix, too.
        let n_queries = if layer.has_gate() { 5 } else { 2 };
        let attention = match layer.delta {
            None => (n_queries * layer.n_head + 2 * layer.n_head_kv) * layer.key_dim.max(layer.value_dim),
            Some(delta) => 2 * delta.n_channels() + 3 * delta.n_value_heads * delta.value_dim.next_multiple_of(16),
        };
        let feed_forward = match layer.experts {
            None => 3 * layer.n_ff,
            // What all experts read, and if all tokens choose one, its input and its result.
            Some(experts) => 3 * hparams.n_embd + 3 * experts.n_ff.max(experts.n_ff_shared.unwrap_or(0)),
        };
        attention.max(feed_forward)
    });
    // The residual stream, its norm, and the widest of what comes between.
    2 * hparams.n_embd + widest.max().unwrap_or(0)
}

impl Work {
    /// Where layers are best on a machine whose memory is the file's cache: generation needs all of them for every token.
    pub fn residency(&self) -> Residency {
        match self {
            Work::Evaluation { .. } => Residency::Streamed,
            Work::Generation { .. } => Residency::Resident,
        }
    }
}

impl Workload {
    /// Tokens that go through the layers together at least, and at most.
    pub fn batch_tokens(&self) -> (usize, usize) {
        let n_ctx = self.models.iter().map(|model| model.n_ctx).max().unwrap_or(0);
        match self.work {
            Work::Evaluation { n_sequences, .. } => (n_ctx, n_ctx.saturating_mul(n_sequences.max(1))),
            Work::Generation { n_prompt } => {
                let n_tokens = n_prompt.clamp(1, PROMPT_BATCH);
                (n_tokens, n_tokens)
            }
        }
    }
}
