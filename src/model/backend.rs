//! What a forward pass asks of the machine it runs on.
//!
//! The forward pass is written once over this trait; [`super::Cpu`] is the reference, and another backend is right where it agrees
//! with it. The types are the backend's own, so that each keeps numbers where and how it multiplies them best:
//!
//! | type | CPU | GPU |
//! |---|---|---|
//! | `Rows` | f32 `[n_rows, n_cols]` | the same, in device memory |
//! | `Operand` | f32 | halves, with a power of two per row that undoes their range |
//! | `Weight` | the file's blocks | the same, in device memory |
//!
//! Operations that end in an [`Backend::Operand`] may be fused with the rounding that makes one. Errors are those of a machine: no
//! memory, a lost device. Shapes are the caller's promise; a backend asserts them.

use std::ops::Range;

use super::matrix::Matrix;
use super::needs::{Needs, Residency, Workload, activations_per_token};
use crate::arch::describe::{Dim, Sharing};
use crate::arch::{DeltaHparams, Hparams};
use crate::error::{Error, Result};
use crate::matmul::Accumulate;

/// A machine that multiplies matrices, and the few other things a transformer needs.
pub trait Backend: Sync {
    /// f32 `[n_rows, n_cols]`.
    type Rows: Send + Sync;
    /// Activations prepared as the left side of products: `[n_rows, n_cols]`.
    type Operand: Send + Sync;
    /// A matrix in its file format.
    type Weight: Send + Sync;
    /// What every layer of a pass has to know of its rows.
    type Pass: Send + Sync;

    /// What a batch of an evaluation may take up here.
    fn batch_limits(&self) -> BatchLimits {
        BatchLimits { memory_bytes: 512 << 20, n_tokens: 4096 }
    }

    /// Refuses a model that takes operations which this machine lacks.
    ///
    /// # Errors
    /// `Unsupported`, with a machine that can.
    fn check(&self, needs: &Needs) -> Result<()> {
        let _ = needs;
        Ok(())
    }

    /// Makes ready for what is to be done, memory included, and returns where the layers of all its models are best: for an evaluation
    /// in the file, where weights are read from there as fast as they are used.
    ///
    /// # Errors
    /// As [`Backend::check`]; when there is not enough memory.
    fn prepare(&self, workload: &Workload) -> Result<Residency> {
        workload.models.iter().try_for_each(|needs| self.check(needs))?;
        Ok(workload.work.residency())
    }

    /// Does `work`, a chain of many short operations, where it need not go to the machine and back for each of them.
    fn chain<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        work()
    }

    /// Room for `[n_rows, n_cols]` values, which are anything until they are written.
    ///
    /// # Errors
    /// When there is no memory left.
    fn rows(&self, n_rows: usize, n_cols: usize) -> Result<Self::Rows>;

    /// Rows of the caller's: `values` is `[values.len() / n_cols, n_cols]`.
    ///
    /// # Errors
    /// As for every operation.
    fn upload(&self, values: &[f32], n_cols: usize) -> Result<Self::Rows>;

    /// The rows as the caller's, `[n_rows, n_cols]`.
    ///
    /// # Errors
    /// As for every operation.
    fn download(&self, rows: &Self::Rows) -> Result<Vec<f32>>;

    /// True for a machine that goes on computing while its weights are brought. Those of layers that are streamed are still in their file
    /// then when [`Backend::weight`] gets them; elsewhere another thread has read them ahead.
    fn computes_meanwhile(&self) -> bool {
        false
    }

    /// Takes a matrix over.
    ///
    /// # Errors
    /// As for every operation, and as [`Matrix::read_at`].
    fn weight(&self, matrix: Matrix<'_>) -> Result<Self::Weight>;

    /// The rows of `table` that `tokens` name, dequantized: `[tokens.len(), n_cols]`.
    ///
    /// # Errors
    /// As for every operation.
    fn embed(&self, table: &Self::Weight, tokens: &[u32]) -> Result<Self::Rows>;

    /// The rows of `x` that `rows` name, in that order.
    ///
    /// # Errors
    /// As for every operation.
    fn select(&self, x: &Self::Rows, rows: &[u32]) -> Result<Self::Rows>;

    /// Room for the keys or the values of `n_rows` tokens, as [`Backend::attention`] reads them; anything until [`Backend::heads`] writes
    /// them.
    ///
    /// # Errors
    /// When there is no memory left.
    fn kept_rows(&self, n_rows: usize, n_cols: usize) -> Result<Self::Rows>;

    /// Begins a pass.
    ///
    /// # Errors
    /// As for every operation.
    fn begin(&self, places: &Places<'_>) -> Result<Self::Pass>;

    /// Every row over its root mean square, times `gain` (`[1, n_cols]`): `x / sqrt(mean(x^2) + eps) * gain`.
    ///
    /// # Errors
    /// As for every operation.
    fn rms_norm(&self, x: &Self::Rows, gain: &Self::Rows, eps: f32) -> Result<Self::Operand>;

    /// Every row brought to a mean of 0 and a variance of 1, times `gain`, plus `bias` (both `[1, n_cols]`):
    /// `(x - mean) / sqrt(variance + eps) * gain + bias`.
    ///
    /// # Errors
    /// As for every operation.
    fn layer_norm(&self, x: &Self::Rows, gain: &Self::Rows, bias: &Self::Rows, eps: f32) -> Result<Self::Operand>;

    /// [`Backend::rms_norm`] of every head by itself, in place: `x` is `[n_rows, n_heads * head_dim]`, `gain` `[1, head_dim]`.
    ///
    /// # Errors
    /// As for every operation.
    fn rms_norm_heads(&self, x: &mut Self::Rows, gain: &Self::Rows, eps: f32) -> Result<()>;

    /// The rows as they are.
    ///
    /// # Errors
    /// As for every operation.
    fn operand(&self, x: &Self::Rows) -> Result<Self::Operand>;

    /// Adds `bias` (`[1, n_cols]`) to every row.
    ///
    /// # Errors
    /// As for every operation.
    fn add_bias(&self, x: &mut Self::Rows, bias: &Self::Rows) -> Result<()>;

    /// `x * weight^T`, stored into or added to `out`: `[n_rows, weight.n_rows]`.
    ///
    /// # Errors
    /// As for every operation.
    fn matmul(&self, x: &Self::Operand, weight: &Self::Weight, accumulate: Accumulate, out: &mut Self::Rows) -> Result<()>;

    /// [`Backend::matmul`] with several matrices, each stored into the rows beside it.
    ///
    /// # Errors
    /// As for every operation.
    fn matmuls(&self, x: &Self::Operand, products: &mut [(&Self::Weight, &mut Self::Rows)]) -> Result<()> {
        products.iter_mut().try_for_each(|(weight, out)| self.matmul(x, weight, Accumulate::Store, out))
    }

    /// [`Backend::matmul`] of rows that are some of a batch: the same bits however many of its rows come along, one alone included.
    ///
    /// # Errors
    /// As for every operation.
    fn matmul_of_batch(
        &self,
        x: &Self::Operand,
        weight: &Self::Weight,
        accumulate: Accumulate,
        out: &mut Self::Rows,
    ) -> Result<()> {
        self.matmul(x, weight, accumulate, out)
    }

    /// Adds `from` to `to`.
    ///
    /// # Errors
    /// As for every operation.
    fn add(&self, from: &Self::Rows, to: &mut Self::Rows) -> Result<()>;

    /// `x * factor`.
    ///
    /// # Errors
    /// As for every operation.
    fn scaled(&self, x: &Self::Rows, factor: f32) -> Result<Self::Rows>;

    /// Adds row `i` of `from`, times `factors[i]`, to row `rows[i]` of `to`. No row of `to` is named twice.
    ///
    /// # Errors
    /// As for every operation.
    fn add_rows(&self, from: &Self::Rows, factors: &[f32], rows: &[u32], to: &mut Self::Rows) -> Result<()>;

    /// `silu(gate) * up`, where `silu(g) = g / (1 + exp(-g))`.
    ///
    /// # Errors
    /// As for every operation.
    fn swiglu(&self, gate: &Self::Rows, up: &Self::Rows) -> Result<Self::Operand>;

    /// `g / (1 + exp(-alpha * g)) * (u + 1)`, with the gate `g = min(gate, limit)` and `u = up` between `-limit` and `limit`.
    ///
    /// # Errors
    /// As for every operation.
    fn clamped_swiglu(&self, gate: &Self::Rows, up: &Self::Rows, form: Clamped) -> Result<Self::Operand>;

    /// `gelu(gate) * up`, or `gelu(gate)` alone.
    ///
    /// # Errors
    /// As for every operation.
    fn gelu(&self, form: Gelu, gate: &Self::Rows, up: Option<&Self::Rows>) -> Result<Self::Operand>;

    /// Makes products with the matrices of queries, keys and values, at most three of them, what [`Backend::attention`] reads: adds
    /// biases, normalises heads, rotates them by their positions. What has a place to be kept goes there, and leaves its own rows anything.
    ///
    /// # Errors
    /// As for every operation.
    fn heads(&self, parts: &mut [Heads<'_, Self::Rows>], form: &HeadForm<'_, Self::Rows>, pass: &Self::Pass) -> Result<()>;

    /// Causal attention within each span of the pass: `softmax(q k^T * scale) v`, `[n_rows of q, n_head * head_dim]`.
    ///
    /// `q` is `[_, n_head * head_dim]`, keys and values `[_, n_head_kv * head_dim]`, all from [`Backend::heads`]. Query heads share key heads
    /// in equal, consecutive groups. The last query of a span sees all of its keys, the one before it all but the last, and so on; of
    /// those only the last `window` where there is one. `sinks`, `[1, n_head]`, are scores of one more key for each head that every query
    /// sees, with a value of 0.
    ///
    /// # Errors
    /// As for every operation.
    fn attention(
        &self,
        q: &Self::Rows,
        kv: [&Self::Rows; 2],
        sinks: Option<&Self::Rows>,
        shape: &AttentionShape,
        pass: &Self::Pass,
    ) -> Result<Self::Operand>;

    /// The two halves of every head: `x` is `[n_rows, n_heads * 2 * head_dim]`.
    ///
    /// # Errors
    /// As for every operation; `Unsupported` on a machine that lacks it, whose [`Backend::check`] has said so before.
    fn halves_of_heads(&self, x: &Self::Rows, head_dim: usize) -> Result<[Self::Rows; 2]> {
        let _ = (x, head_dim);
        Err(lacking())
    }

    /// `x * sigmoid(gate)`, of one shape.
    ///
    /// # Errors
    /// As [`Backend::halves_of_heads`].
    fn sigmoid_gated(&self, x: Self::Operand, gate: &Self::Rows) -> Result<Self::Operand> {
        let _ = (x, gate);
        Err(lacking())
    }

    /// The past of a sequence that has not begun.
    ///
    /// # Errors
    /// As [`Backend::halves_of_heads`].
    fn recurrent(&self, shape: &DeltaShape) -> Result<Recurrent<Self::Rows>> {
        let _ = shape;
        Err(lacking())
    }

    /// A gated delta net over each span of the pass: `[n_rows, n_value_heads * value_dim]`. With `kept`, one for each span, it goes on from
    /// there and brings it up to date; a span whose keys are its own rows begins anew. [`crate::arch::describe::DeltaNet`] has the formulas.
    /// The order of its sums does not depend on how many rows come together.
    ///
    /// # Errors
    /// As [`Backend::halves_of_heads`].
    fn delta_net(
        &self,
        inputs: &DeltaInputs<'_, Self::Rows>,
        shape: &DeltaShape,
        pass: &Self::Pass,
        kept: Option<&mut [Recurrent<Self::Rows>]>,
    ) -> Result<Self::Operand> {
        let _ = (inputs, shape, pass, kept);
        Err(lacking())
    }

    /// The sum of squares of every column, over all rows: what an importance matrix collects.
    ///
    /// # Errors
    /// As for every operation.
    fn sum_squares(&self, x: &Self::Operand) -> Result<Vec<f64>>;

    /// The scores of the vocabulary as the caller's, `[n_rows, output.weight.n_rows]`.
    ///
    /// # Errors
    /// As for every operation.
    fn logits(&self, x: &Self::Operand, output: Output<'_, Self::Weight>) -> Result<Vec<f32>>;

    /// How well each row of `x` foretells its token in `targets`: the softmax of its scores, which never exist for all tokens at
    /// once.
    ///
    /// # Errors
    /// As for every operation.
    fn score(&self, x: &Self::Operand, output: Output<'_, Self::Weight>, targets: &[u32]) -> Result<Vec<Score>>;

    /// How far model `b` is from model `a` at each row: both softmaxes as in [`Backend::score`], compared over the whole vocabulary.
    /// Equal arguments give a divergence of exactly 0.
    ///
    /// # Errors
    /// As for every operation.
    fn compare(
        &self,
        a: (&Self::Operand, Output<'_, Self::Weight>),
        b: (&Self::Operand, Output<'_, Self::Weight>),
        targets: &[u32],
    ) -> Result<Vec<Divergence>>;
}

fn lacking() -> Error {
    Error::unsupported("an operation that this machine has no code for", "use --device cpu")
}

/// What bounds a gated network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clamped {
    /// Steepness of the gate.
    pub alpha: f32,
    /// Bound of what goes in.
    pub limit: f32,
}

/// How `x * Phi(x)` of the normal distribution is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gelu {
    /// `x / (1 + exp(-2 * sqrt(2 / pi) * (x + 0.044715 * x^3)))`: nearly, by the hyperbolic tangent.
    Tanh,
    /// `x * erfc(-x / sqrt(2)) / 2`: as it is.
    Erf,
}

/// What turns states into scores of the vocabulary: `softcap * tanh(x * weight^T * scale / softcap)`, or without a softcap
/// `x * weight^T * scale`.
#[derive(Debug)]
pub struct Output<'w, W> {
    /// `[n_vocab, n_embd]`.
    pub weight: &'w W,
    /// Factor on the scores.
    pub scale: f32,
    /// A bound on the scores.
    pub softcap: Option<f32>,
}

impl<W> Clone for Output<'_, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for Output<'_, W> {}

impl<W> Output<'_, W> {
    /// True where scores are products and nothing else.
    pub fn is_plain(&self) -> bool {
        self.scale == 1.0 && self.softcap.is_none()
    }
}

/// How much is computed together. Weights are dequantized once for each batch, so it should be some thousand tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Bytes of activations.
    pub memory_bytes: usize,
    /// More tokens make nothing faster, and progress coarser.
    pub n_tokens: usize,
}

impl BatchLimits {
    /// Sequences of `n_ctx` tokens that a model takes together: one at least.
    pub fn n_sequences(&self, hparams: &Hparams, n_ctx: usize) -> usize {
        let n_tokens = (self.memory_bytes / (activations_per_token(hparams) * size_of::<f32>())).min(self.n_tokens);
        (n_tokens / n_ctx.max(1)).max(1)
    }
}

/// Queries, keys or values of all rows of a pass.
#[derive(Debug)]
pub struct Heads<'a, R> {
    /// `[n_rows, n_heads * head_dim]`.
    pub rows: &'a mut R,
    /// Heads in a row.
    pub n_heads: usize,
    /// Added to every row first: `[1, n_heads * head_dim]`.
    pub bias: Option<&'a R>,
    /// Then every head is brought over its root mean square.
    pub is_normalised: bool,
    /// And multiplied with this: `[1, head_dim]`.
    pub gain: Option<&'a R>,
    /// Then it is rotated, where the form has a rotation.
    pub rotates: bool,
    /// Where the results are kept: from the row on that [`Places::kept_from`] says.
    pub kept: Option<&'a mut R>,
}

/// What queries, keys and values have in common.
#[derive(Debug)]
pub struct HeadForm<'a, R> {
    /// Width of a head.
    pub head_dim: usize,
    /// Added to the mean square of a head that is normalised.
    pub norm_eps: f32,
    /// How heads are rotated.
    pub rotation: Option<Rotation<'a, R>>,
}

/// How heads are rotated.
#[derive(Debug)]
pub struct Rotation<'a, R> {
    /// Leading dimensions of each head that are rotated: even, at most `head_dim`.
    pub n_rot: usize,
    /// Which two of them make a pair.
    pub layout: super::RopeLayout,
    /// The angles of every position: `[n_positions, n_rot]`, the cosines of all pairs first, then their sines.
    pub table: &'a R,
}

/// Where the rows of a pass stand.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    /// The position of each row in its sequence.
    pub positions: &'a [u32],
    /// The sequences.
    pub spans: &'a [Span],
    /// Where the pass goes on with a sequence whose keys and values are kept: the row of its first token among them. Its sums may have
    /// another order than those of whole sequences, but no other bits the next time.
    pub kept_from: Option<usize>,
    /// Rows from the place of one row of the pass to that of the next: 1 for those of one sequence. Another number, where every row goes on
    /// with a sequence of its own, the CPU alone can do.
    pub kept_step: usize,
}

/// Heads of an attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub n_head: usize,
    /// Key and value heads: a divisor of `n_head`.
    pub n_head_kv: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// Keys that a query sees, itself included; all where there is no window.
    pub window: Option<usize>,
    /// A bound on the scores: each becomes `softcap * tanh(score / softcap)` before the softmax. Above 0.
    pub softcap: Option<f32>,
}

/// What a gated delta net reads.
#[derive(Debug)]
pub struct DeltaInputs<'a, R> {
    /// Queries, keys and values before the convolution: `[n_rows, n_channels]`.
    pub qkv: &'a R,
    /// What the results are multiplied with, before SiLU: `[n_rows, n_value_heads * value_dim]`.
    pub gate: &'a R,
    /// How much is forgotten and learned.
    pub rates: &'a Rates<R>,
    /// `[1, n_channels * n_kernel]`.
    pub conv: &'a R,
    /// `[1, n_value_heads]`.
    pub dt: &'a R,
    /// `[1, n_value_heads]`.
    pub a: &'a R,
    /// `[1, value_dim]`.
    pub norm: &'a R,
}

/// How much each value head of a delta net forgets and learns, before what bends it.
#[derive(Debug)]
pub enum Rates<R> {
    /// `[n_rows, n_value_heads]` each.
    Apart {
        /// Of forgetting.
        alpha: R,
        /// Of learning.
        beta: R,
    },
    /// `[n_rows, 2 * n_value_heads]`: for each key head `beta` of its value heads, then their `alpha`.
    ByKeyHead(R),
}

/// Sizes of a gated delta net.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeltaShape {
    /// Its heads.
    pub sizes: DeltaHparams,
    /// Which value heads share a key head.
    pub sharing: Sharing,
    /// Added to the mean square of a head's result.
    pub norm_eps: f32,
}

impl DeltaShape {
    /// The length of a dimension of the delta net.
    pub(super) fn len(&self, dim: Dim) -> usize {
        self.sizes.len(dim)
    }
}

/// What a sequence keeps of its past in a layer with a gated delta net, whatever its length.
#[derive(Debug)]
pub struct Recurrent<R> {
    /// The last tokens before the convolution, the newest last: `[n_kernel - 1, n_channels]`.
    pub last: R,
    /// The states of all value heads, laid out as the machine likes.
    pub state: R,
}

/// One sequence among the rows of an attention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Rows of the queries.
    pub q: Range<usize>,
    /// Rows of the keys and values, no fewer than there are queries.
    pub kv: Range<usize>,
}

/// How well a token was foretold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Negative log-likelihood of the token that came, in nats.
    pub nll: f64,
    /// The likeliest token; the first of equals.
    pub argmax: u32,
}

/// How two models foretell one token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Divergence {
    /// The first model's score.
    pub a: Score,
    /// The second model's score.
    pub b: Score,
    /// `sum(p_a * ln(p_a / p_b))` over the vocabulary, in nats.
    pub kld: f64,
}

impl Score {
    /// The probability that the model gave to the token that came.
    pub fn probability(&self) -> f64 {
        libm::exp(-self.nll)
    }
}
