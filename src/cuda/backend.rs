//! The operations of the forward pass on a GPU.
//!
//! What products multiply are halves: activations with a power of two for each row, weights with one for the whole matrix, sums in
//! f32. A matrix in blocks becomes halves once for all rows of a product, a run of its rows at a time; up to eight rows are multiplied
//! with the blocks themselves. Queries, keys and values are halves with powers of two for their rows, too; everything else is f32.
//!
//! No sum depends on how many rows are computed together, where memory is, or what else it holds: the same model and text give the same
//! bits however little memory there is.

mod products;
mod score;
mod tables;

use std::sync::{Arc, OnceLock};

use zerocopy::IntoBytes;

use super::device::{Block, Device};
use super::kernels::{self, Heads, Scaled, Selection, Sequences, Turn, View};
use super::probe::Gpu;
use crate::error::{Error, Result};
use crate::model::{
    Accumulate, Activation, AttentionShape, Backend, BatchLimits, Divergence, Family, HeadShape, Matrix, Norm, Residency,
    RopeLayout, RopeShape, Score, Span,
};
use crate::quant::Format;

/// A GPU that runs models.
pub struct Cuda {
    pub(super) device: Arc<Device>,
    products: Products,
}

/// Which kernels multiply many rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Products {
    /// The fastest that the GPU has.
    #[default]
    Best,
    /// Those of compute capability 8.0, also on later GPUs: to compare with.
    Portable,
}

/// Rows in device memory, `[n_rows, n_cols]`.
pub struct Rows {
    block: Block,
    n_rows: usize,
    n_cols: usize,
    form: Form,
    /// What [`Backend::rope`] reads instead, where these are angles.
    angles: OnceLock<Block>,
}

/// How numbers lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    F32,
    /// Queries, keys and values: halves, and behind all rows an f32 for each that it is to be multiplied with.
    F16,
}

/// Of the powers of two behind rows of halves.
const SCALES_ALIGNMENT: u64 = 16;

/// Activations as halves: `[n_rows, n_cols]`, a row every `ld`, and behind them an f32 for each row that it is to be multiplied with.
pub struct Operand {
    block: Block,
    n_rows: usize,
    n_cols: usize,
}

/// A matrix in blocks.
pub struct Weight {
    block: Block,
    format: Format,
    n_rows: usize,
    n_cols: usize,
    /// The power of two that brings its largest weight to the upper end of halves.
    scale: f32,
}

/// Activations of a batch: so many that a weight is used for thousands of tokens each time it is dequantized or sent.
const BATCH_BYTES_MAX: usize = 4 << 30;
const BATCH_TOKENS_MAX: usize = 16_384;

impl Cuda {
    /// Takes hold of a GPU, and of its memory: at most `memory_bytes_max`, by default nearly all that is free.
    ///
    /// # Errors
    /// `Gpu`, when it does not start, its driver is too old for the kernels, or it has not that much memory.
    pub fn open(gpu: &Gpu, memory_bytes_max: Option<u64>, products: Products) -> Result<Cuda> {
        Ok(Cuda { device: Device::open(gpu, memory_bytes_max)?, products })
    }

    /// The GPU.
    pub fn gpu(&self) -> &Gpu {
        self.device.gpu()
    }

    /// Bytes of its memory that may be used.
    pub fn memory_bytes(&self) -> u64 {
        self.device.memory_bytes()[0]
    }

    /// The most of them that was ever in use.
    pub fn memory_bytes_peak(&self) -> u64 {
        self.device.memory_bytes()[2]
    }

    /// Waits for all that was started; a kernel that failed shows here at the latest.
    ///
    /// # Errors
    /// `Gpu`, when the device is lost.
    pub fn synchronize(&self) -> Result<()> {
        self.device.synchronize()
    }

    fn new_rows(&self, n_rows: usize, n_cols: usize, form: Form) -> Result<Rows> {
        let scales_bytes = if form == Form::F16 { bytes_of(&[n_rows, 4])? + SCALES_ALIGNMENT } else { 0 };
        let len_bytes = bytes_of(&[n_rows, n_cols, form.element_bytes()])? + scales_bytes;
        let block = self.device.room(len_bytes, &format!("rows [{n_rows}, {n_cols}]"))?;
        Ok(Rows { block, n_rows, n_cols, form, angles: OnceLock::new() })
    }

    fn new_operand(&self, n_rows: usize, n_cols: usize) -> Result<Operand> {
        let len_bytes = bytes_of(&[n_rows, operand_ld(n_cols) * 2 + 4])? + 16;
        let block = self.device.room(len_bytes, &format!("halves of rows [{n_rows}, {n_cols}]"))?;
        Ok(Operand { block, n_rows, n_cols })
    }

    /// Numbers of rows, tokens or positions, all below `end`, for a kernel to read.
    fn numbers(&self, numbers: &[u32], end: usize, what: &str) -> Result<Block> {
        if let Some(number) = numbers.iter().find(|&&number| number as usize >= end || number > i32::MAX as u32) {
            return Err(Error::Internal(format!("{what} {number} of {end}")));
        }
        self.sent(numbers.as_bytes(), what)
    }

    /// The caller's bytes in device memory.
    fn sent(&self, bytes: &[u8], what: &str) -> Result<Block> {
        let block = self.device.room(bytes.len() as u64, what)?;
        self.device.send(block.memory(), bytes)?;
        Ok(block)
    }

    /// Queries, keys or values as halves: themselves, or a copy of the first `n_rows` of them.
    fn halves<'r>(&self, x: &'r Rows, n_rows: usize, head_dim: usize) -> Result<Halves<'r>> {
        if x.form == Form::F16 {
            return Ok(Halves::Own(x));
        }
        let out = self.new_rows(n_rows, x.n_cols, Form::F16)?;
        self.device.launch(kernels::rope(View { n_rows, ..x.view() }, head_dim, None, out.heads()?))?;
        Ok(Halves::Copy(out))
    }

    /// Writes keys or values to a place among others.
    fn copy_heads(&self, from: &Rows, to: Scaled) -> Result<()> {
        if from.form == Form::F32 {
            return self.device.launch(kernels::rope(from.view(), from.n_cols, None, to));
        }
        let Scaled { values, row_scale } = from.heads()?;
        self.device.copy(values.memory, to.values.memory, (from.n_rows * from.n_cols * 2) as u64)?;
        let both = row_scale.zip(to.row_scale);
        both.map_or(Ok(()), |(from_scale, to_scale)| self.device.copy(from_scale, to_scale, from.n_rows as u64 * 4))
    }

    /// The numbers of rows in halves.
    fn download_halves(&self, rows: &Rows) -> Result<Vec<f32>> {
        let mut halves = vec![half::f16::ZERO; rows.n_rows * rows.n_cols];
        let mut scales = vec![0.0f32; rows.n_rows];
        self.device.fetch(rows.block.memory(), halves.as_mut_bytes())?;
        self.device.fetch(rows.row_scale()?, scales.as_mut_bytes())?;
        let rows = halves.chunks_exact(rows.n_cols.max(1)).zip(scales);
        Ok(rows.flat_map(|(row, scale)| row.iter().map(move |half| half.to_f32() * scale)).collect())
    }
}

enum Halves<'r> {
    Own(&'r Rows),
    Copy(Rows),
}

impl Halves<'_> {
    fn heads(&self, n_rows: usize) -> Result<Scaled> {
        let rows = match self {
            Halves::Own(rows) => rows,
            Halves::Copy(rows) => rows,
        };
        let Scaled { values, row_scale } = rows.heads()?;
        Ok(Scaled { values: View { n_rows, ..values }, row_scale })
    }
}

impl Form {
    fn element_bytes(self) -> usize {
        match self {
            Form::F32 => 4,
            Form::F16 => 2,
        }
    }
}

impl Rows {
    fn view(&self) -> View {
        View::dense(self.block.memory(), self.n_rows, self.n_cols)
    }

    /// As halves with their powers of two.
    fn heads(&self) -> Result<Scaled> {
        assert_eq!(self.form, Form::F16, "rows as halves");
        Ok(Scaled { values: self.view(), row_scale: Some(self.row_scale()?) })
    }

    /// Behind the halves, at the next multiple of 16 bytes.
    fn row_scale(&self) -> Result<kernels::Memory> {
        self.block.memory().from(((self.n_rows * self.n_cols * 2) as u64).next_multiple_of(SCALES_ALIGNMENT))
    }

    /// As f32.
    fn floats(&self) -> Result<View> {
        match self.form {
            Form::F32 => Ok(self.view()),
            Form::F16 => Err(Error::Internal("queries, keys or values where f32 is needed".to_owned())),
        }
    }
}

impl Operand {
    fn values(&self) -> View {
        View { memory: self.block.memory(), n_rows: self.n_rows, n_cols: self.n_cols, ld: operand_ld(self.n_cols) }
    }

    fn row_scale(&self) -> Result<kernels::Memory> {
        // Rows of halves are multiples of 16 bytes, so this is aligned.
        self.block.memory().from((self.n_rows * operand_ld(self.n_cols) * 2) as u64)
    }

    fn scaled(&self) -> Result<Scaled> {
        Ok(Scaled { values: self.values(), row_scale: Some(self.row_scale()?) })
    }
}

/// The stride of `n_cols` halves that kernels read sixteen bytes at a time.
fn operand_ld(n_cols: usize) -> usize {
    n_cols.next_multiple_of(8)
}

/// The product of sizes whose result is a number of bytes.
pub(super) fn bytes_of(factors: &[usize]) -> Result<u64> {
    let product = factors.iter().try_fold(1u64, |product, &factor| product.checked_mul(factor as u64));
    product.filter(|&bytes| bytes < 1 << 60).ok_or_else(|| Error::Internal(format!("GPU memory for {factors:?}")))
}

fn cpu_only(what: &str) -> Error {
    Error::unsupported(what, "--device cpu can")
}

impl Backend for Cuda {
    type Rows = Rows;
    type Operand = Operand;
    type Weight = Weight;

    fn batch_limits(&self) -> BatchLimits {
        let memory_bytes = usize::try_from(self.memory_bytes() / 4).unwrap_or(usize::MAX).min(BATCH_BYTES_MAX);
        BatchLimits { memory_bytes, n_tokens: BATCH_TOKENS_MAX }
    }

    fn residency(&self, weights_bytes: u64) -> Residency {
        if weights_bytes <= self.memory_bytes() / 2 { Residency::Resident } else { Residency::Streamed }
    }

    fn check_family(&self, family: &Family) -> Result<()> {
        if family.norm == Norm::Rms && family.activation == Activation::Silu && !family.has_windows {
            return Ok(());
        }
        Err(cpu_only(&format!("running architecture {} on a GPU", family.name)))
    }

    fn rows(&self, n_rows: usize, n_cols: usize) -> Result<Rows> {
        self.new_rows(n_rows, n_cols, Form::F32)
    }

    fn upload(&self, values: &[f32], n_cols: usize) -> Result<Rows> {
        let n_rows = values.len().checked_div(n_cols).unwrap_or(0);
        let rows = self.rows(n_rows, n_cols)?;
        self.device.send(rows.block.memory(), values.as_bytes())?;
        Ok(rows)
    }

    fn download(&self, rows: &Rows) -> Result<Vec<f32>> {
        if rows.form == Form::F16 {
            return self.download_halves(rows);
        }
        let mut values = vec![0.0f32; rows.n_rows * rows.n_cols];
        self.device.fetch(rows.block.memory(), values.as_mut_bytes())?;
        Ok(values)
    }

    fn weight(&self, matrix: Matrix) -> Result<Weight> {
        self.store(matrix)
    }

    fn embed(&self, table: &Weight, tokens: &[u32]) -> Result<Rows> {
        let out = self.rows(tokens.len(), table.n_cols)?;
        let rows = self.numbers(tokens, table.n_rows, "token")?;
        let from = Selection { blocks: table.block.memory(), format: table.format, rows: Some(rows.memory()), scale: 1.0 };
        self.device.launch(kernels::dequant_f32(from, out.view()))?;
        Ok(out)
    }

    fn select(&self, x: &Rows, rows: &[u32]) -> Result<Rows> {
        let out = self.rows(rows.len(), x.n_cols)?;
        let rows = self.numbers(rows, x.n_rows, "row")?;
        let from = Selection { blocks: x.floats()?.memory, format: Format::F32, rows: Some(rows.memory()), scale: 1.0 };
        self.device.launch(kernels::dequant_f32(from, out.view()))?;
        Ok(out)
    }

    /// Keys and values, which is what rows are copied for: they become halves, once.
    fn copy_rows(&self, from: &Rows, to: &mut Rows, at: usize) -> Result<()> {
        assert!(from.n_cols == to.n_cols && at + from.n_rows <= to.n_rows, "room for the rows");
        if to.form == Form::F32 {
            assert_eq!(at, 0, "the first rows come first");
            *to = self.new_rows(to.n_rows, to.n_cols, Form::F16)?;
        }
        self.copy_heads(from, to.heads()?.rows(at, from.n_rows)?)
    }

    fn rms_norm(&self, x: &Rows, gain: &Rows, eps: f32) -> Result<Operand> {
        let out = self.new_operand(x.n_rows, x.n_cols)?;
        self.device.launch(kernels::rms_norm_f16(x.floats()?, gain.floats()?.memory, eps, out.values(), out.row_scale()?))?;
        Ok(out)
    }

    fn layer_norm(&self, _: &Rows, _: &Rows, _: &Rows, _: f32) -> Result<Operand> {
        Err(cpu_only("a norm with a bias on a GPU"))
    }

    fn rms_norm_heads(&self, x: &mut Rows, gain: &Rows, eps: f32) -> Result<()> {
        let view = x.floats()?;
        assert!(view.n_cols.is_multiple_of(gain.n_cols), "whole heads");
        let heads = View::dense(view.memory, view.n_rows * (view.n_cols / gain.n_cols), gain.n_cols);
        self.device.launch(kernels::rms_norm_f32(heads, gain.floats()?.memory, eps))
    }

    fn add_bias(&self, x: &mut Rows, bias: &Rows) -> Result<()> {
        self.device.launch(kernels::add_bias(bias.floats()?.memory, x.floats()?))
    }

    fn matmul(&self, x: &Operand, weight: &Weight, accumulate: Accumulate, out: &mut Rows) -> Result<()> {
        self.multiply(x, weight, accumulate == Accumulate::Add, out.floats()?)
    }

    fn matmul_of_batch(&self, x: &Operand, weight: &Weight, accumulate: Accumulate, out: &mut Rows) -> Result<()> {
        assert_eq!((x.n_cols, out.n_rows, out.n_cols), (weight.n_cols, x.n_rows, weight.n_rows), "shapes of a product");
        if weight.n_rows == 1 {
            return self.multiply_with_row(x, weight, accumulate == Accumulate::Add, out.floats()?);
        }
        self.multiply_many(x.scaled()?, weight, accumulate == Accumulate::Add, out.floats()?)
    }

    fn add_rows(&self, from: &Rows, factors: &[f32], rows: &[u32], to: &mut Rows) -> Result<()> {
        assert_eq!((factors.len(), rows.len()), (from.n_rows, from.n_rows), "a factor and a place for every row");
        let rows = self.numbers(rows, to.n_rows, "row")?;
        let factors = self.sent(factors.as_bytes(), "factors of rows")?;
        self.device.launch(kernels::add_rows(from.floats()?, rows.memory(), factors.memory(), to.floats()?))
    }

    fn swiglu(&self, gate: &Rows, up: &Rows) -> Result<Operand> {
        let out = self.new_operand(gate.n_rows, gate.n_cols)?;
        self.device.launch(kernels::swiglu(gate.floats()?, up.floats()?, out.values(), out.row_scale()?))?;
        Ok(out)
    }

    fn gelu(&self, _: &Rows, _: Option<&Rows>) -> Result<Operand> {
        Err(cpu_only("GELU on a GPU"))
    }

    fn rope(&self, x: &mut Rows, shape: &RopeShape, table: &Rows, positions: &[u32]) -> Result<()> {
        let RopeShape { heads: HeadShape { n_heads, head_dim }, n_rot, layout } = *shape;
        assert_eq!((x.n_rows, x.n_cols), (positions.len(), n_heads * head_dim), "a position for each row");
        let positions = self.numbers(positions, table.n_rows, "position")?;
        let turn = Turn {
            angles: self.angles(table)?,
            n_positions: table.n_rows,
            positions: positions.memory(),
            n_rot,
            is_neox: match layout {
                RopeLayout::Halves => true,
                RopeLayout::Neighbours => false,
            },
        };
        let out = self.new_rows(x.n_rows, x.n_cols, Form::F16)?;
        self.device.launch(kernels::rope(x.floats()?, head_dim, Some(turn), out.heads()?))?;
        *x = out;
        Ok(())
    }

    fn attention(&self, q: &Rows, k: &Rows, v: &Rows, spans: &[Span], shape: &AttentionShape) -> Result<Operand> {
        let AttentionShape { n_head, n_head_kv, head_dim, scale, window } = *shape;
        if window.is_some() {
            return Err(cpu_only("attention in windows on a GPU"));
        }
        let inside = |span: &Span| span.q.end <= q.n_rows && span.kv.end <= k.n_rows.min(v.n_rows) && span.q.len() <= span.kv.len();
        assert!(spans.iter().all(inside), "sequences within the rows");
        let n_kv = spans.iter().map(|span| span.kv.end).max().unwrap_or(0);
        let longest = spans.iter().map(|span| span.q.len()).max().unwrap_or(0);
        let out = self.rows(q.n_rows, q.n_cols)?;
        if spans.iter().map(|span| span.q.len()).sum::<usize>() < q.n_rows {
            self.device.clear(out.block.memory())?;
        }
        if longest > 0 {
            let table: Vec<[u32; 4]> =
                spans.iter().map(|span| [span.q.start, span.q.len(), span.kv.start, span.kv.len()].map(|n| n as u32)).collect();
            let table = self.sent(table.as_bytes(), "sequences")?;
            let halves = [self.halves(q, q.n_rows, head_dim)?, self.halves(k, n_kv, head_dim)?, self.halves(v, n_kv, head_dim)?];
            let sequences = Sequences { spans: table.memory(), n: spans.len(), longest };
            let heads = Heads { n_head, n_head_kv, head_dim };
            let [q, k, v] = [halves[0].heads(q.n_rows)?, halves[1].heads(n_kv)?, halves[2].heads(n_kv)?];
            self.device.launch(kernels::attention(q, k, v, sequences, heads, scale, out.view()))?;
        }
        let operand = self.new_operand(out.n_rows, out.n_cols)?;
        self.device.launch(kernels::rows_f16(out.view(), operand.values(), operand.row_scale()?))?;
        Ok(operand)
    }

    fn sum_squares(&self, x: &Operand) -> Result<Vec<f64>> {
        self.column_squares(x)
    }

    fn logits(&self, x: &Operand, weight: &Weight) -> Result<Vec<f32>> {
        self.all_logits(x, weight)
    }

    fn score(&self, x: &Operand, weight: &Weight, targets: &[u32]) -> Result<Vec<Score>> {
        self.scores(x, weight, targets)
    }

    fn compare(&self, a: (&Operand, &Weight), b: (&Operand, &Weight), targets: &[u32]) -> Result<Vec<Divergence>> {
        self.divergences(a, b, targets)
    }
}
