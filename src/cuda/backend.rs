//! The operations of the forward pass on a GPU.
//!
//! What products multiply are halves: activations with a power of two for each row, weights with one for the whole matrix, sums in
//! f32. A matrix in blocks becomes halves once for all rows of a product, a run of its rows at a time; up to eight rows are multiplied
//! with the blocks themselves. Queries, keys and values are halves with powers of two for their rows, too; everything else is f32.
//!
//! No sum depends on how many rows are computed together, where memory is, or what else it holds: the same model and text give the same
//! bits however little memory there is.

mod attention;
mod products;
mod score;
mod tables;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use zerocopy::IntoBytes;

use super::can;
use super::device::{Block, Buffers, Device};
use super::kernels::{self, Scaled, Selection, View};
use super::probe::Gpu;
use super::room::Room;
use super::sizes::{BATCH_BYTES_MAX, BATCH_TOKENS_MAX, operand_ld};
use crate::error::{Error, Result};
use crate::memory;
use crate::model::{
    Accumulate, AttentionShape, Backend, BatchLimits, Clamped, Divergence, Gelu, HeadForm, Heads, Matrix, Needs, Output, Places,
    Residency, Score, Workload,
};
use crate::quant::Format;

pub use attention::Pass;

/// A GPU that runs models.
pub struct Cuda {
    pub(super) device: Arc<Device>,
    products: Products,
    /// What [`Backend::prepare`] found.
    room: Mutex<Option<Room>>,
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

impl Cuda {
    /// Takes hold of a GPU. At most `memory_bytes_max` of its memory will be used, by default nearly all that is free; it is taken when
    /// [`Backend::prepare`] tells how much is needed, or when it is.
    ///
    /// # Errors
    /// `Gpu`, when it does not start, its driver is too old for the kernels, or it has not that much memory.
    pub fn open(gpu: &Gpu, memory_bytes_max: Option<u64>, products: Products) -> Result<Cuda> {
        Ok(Cuda { device: Device::open(gpu, memory_bytes_max, Buffers::Shared)?, products, room: Mutex::new(None) })
    }

    /// The same, for tools that watch a GPU's memory: every buffer is an allocation of its own and full of NaN until it is written. Slow.
    ///
    /// # Errors
    /// As [`Cuda::open`].
    pub fn open_guarded(gpu: &Gpu, memory_bytes_max: Option<u64>, products: Products) -> Result<Cuda> {
        Ok(Cuda { device: Device::open(gpu, memory_bytes_max, Buffers::Guarded)?, products, room: Mutex::new(None) })
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

    fn room(&self) -> MutexGuard<'_, Option<Room>> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn new_rows(&self, n_rows: usize, n_cols: usize, form: Form) -> Result<Rows> {
        let scales_bytes = if form == Form::F16 { bytes_of(&[n_rows, 4])? + SCALES_ALIGNMENT } else { 0 };
        let len_bytes = bytes_of(&[n_rows, n_cols, form.element_bytes()])? + scales_bytes;
        let block = self.device.room(len_bytes, &format!("rows [{n_rows}, {n_cols}]"))?;
        Ok(Rows { block, n_rows, n_cols, form, angles: OnceLock::new() })
    }

    pub(super) fn new_operand(&self, n_rows: usize, n_cols: usize) -> Result<Operand> {
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
    pub(super) fn sent(&self, bytes: &[u8], what: &str) -> Result<Block> {
        let block = self.device.room(bytes.len() as u64, what)?;
        self.device.send(block.memory(), bytes)?;
        Ok(block)
    }

    /// The numbers of rows in halves.
    fn download_halves(&self, rows: &Rows) -> Result<Vec<f32>> {
        let mut values = memory::zero_rows(rows.n_rows, rows.n_cols)?;
        let mut halves = Vec::new();
        memory::reserve(&mut halves, values.len())?;
        halves.resize(values.len(), half::f16::ZERO);
        let mut scales = memory::zeros(rows.n_rows)?;
        self.device.fetch(rows.block.memory(), halves.as_mut_bytes())?;
        self.device.fetch(rows.row_scale()?, scales.as_mut_bytes())?;
        let n_cols = rows.n_cols.max(1);
        for ((to, row), scale) in values.chunks_exact_mut(n_cols).zip(halves.chunks_exact(n_cols)).zip(scales) {
            to.iter_mut().zip(row).for_each(|(to, half)| *to = half.to_f32() * scale);
        }
        Ok(values)
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
        if self.form != Form::F16 {
            return Err(Error::Internal("queries, keys or values that are none yet".to_owned()));
        }
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

/// The product of sizes whose result is a number of bytes.
pub(super) fn bytes_of(factors: &[usize]) -> Result<u64> {
    let product = factors.iter().try_fold(1u64, |product, &factor| product.checked_mul(factor as u64));
    product.filter(|&bytes| bytes < 1 << 60).ok_or_else(|| Error::Internal(format!("GPU memory for {factors:?}")))
}

impl Backend for Cuda {
    type Rows = Rows;
    type Operand = Operand;
    type Weight = Weight;
    type Pass = Pass;

    fn batch_limits(&self) -> BatchLimits {
        if let Some(room) = *self.room() {
            return room.limits;
        }
        let memory_bytes = usize::try_from(self.memory_bytes() / 4).unwrap_or(usize::MAX).min(BATCH_BYTES_MAX);
        BatchLimits { memory_bytes, n_tokens: BATCH_TOKENS_MAX }
    }

    fn check(&self, needs: &Needs) -> Result<()> {
        can::check(needs)
    }

    /// Takes the memory at once. What else turns out to be needed is taken when it is.
    fn prepare(&self, workload: &Workload) -> Result<Residency> {
        workload.models.iter().try_for_each(can::check)?;
        let room = Room::within(workload, self.memory_bytes())?;
        self.device.reserve(room.len_bytes, room.len_bytes_min)?;
        *self.room() = Some(room);
        Ok(room.residency)
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
        let mut values = memory::zero_rows(rows.n_rows, rows.n_cols)?;
        self.device.fetch(rows.block.memory(), values.as_mut_bytes())?;
        Ok(values)
    }

    fn computes_meanwhile(&self) -> bool {
        true
    }

    fn weight(&self, matrix: Matrix<'_>) -> Result<Weight> {
        self.store(&matrix)
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

    fn kept_rows(&self, n_rows: usize, n_cols: usize) -> Result<Rows> {
        self.new_rows(n_rows, n_cols, Form::F16)
    }

    fn begin(&self, places: &Places<'_>) -> Result<Pass> {
        self.begin_pass(places)
    }

    fn rms_norm(&self, x: &Rows, gain: &Rows, eps: f32) -> Result<Operand> {
        let out = self.new_operand(x.n_rows, x.n_cols)?;
        self.device.launch(kernels::rms_norm_f16(x.floats()?, gain.floats()?.memory, eps, out.values(), out.row_scale()?))?;
        Ok(out)
    }

    fn layer_norm(&self, x: &Rows, gain: &Rows, bias: &Rows, eps: f32) -> Result<Operand> {
        let out = self.new_operand(x.n_rows, x.n_cols)?;
        let vectors = [gain.floats()?.memory, bias.floats()?.memory];
        self.device.launch(kernels::layer_norm_f16(x.floats()?, vectors, eps, out.values(), out.row_scale()?))?;
        Ok(out)
    }

    fn rms_norm_heads(&self, x: &mut Rows, gain: &Rows, eps: f32) -> Result<()> {
        let view = x.floats()?;
        assert!(view.n_cols.is_multiple_of(gain.n_cols), "whole heads");
        let heads = View::dense(view.memory, view.n_rows * (view.n_cols / gain.n_cols), gain.n_cols);
        self.device.launch(kernels::rms_norm_f32(heads, gain.floats()?.memory, eps))
    }

    fn operand(&self, x: &Rows) -> Result<Operand> {
        let out = self.new_operand(x.n_rows, x.n_cols)?;
        self.device.launch(kernels::rows_f16(x.floats()?, out.values(), out.row_scale()?))?;
        Ok(out)
    }

    fn add_bias(&self, x: &mut Rows, bias: &Rows) -> Result<()> {
        self.device.launch(kernels::add_bias(bias.floats()?.memory, x.floats()?))
    }

    fn matmul(&self, x: &Operand, weight: &Weight, accumulate: Accumulate, out: &mut Rows) -> Result<()> {
        self.multiply(x, weight, accumulate == Accumulate::Add, out.floats()?)
    }

    fn matmuls(&self, x: &Operand, products: &mut [(&Weight, &mut Rows)]) -> Result<()> {
        let products: Vec<_> = products.iter().map(|(weight, out)| Ok((*weight, out.floats()?))).collect::<Result<_>>()?;
        self.multiply_all(x, &products)
    }

    fn matmul_of_batch(&self, x: &Operand, weight: &Weight, accumulate: Accumulate, out: &mut Rows) -> Result<()> {
        assert_eq!((x.n_cols, out.n_rows, out.n_cols), (weight.n_cols, x.n_rows, weight.n_rows), "shapes of a product");
        if weight.n_rows == 1 {
            return self.multiply_with_row(x, weight, accumulate == Accumulate::Add, out.floats()?);
        }
        self.multiply_many(x.scaled()?, weight, accumulate == Accumulate::Add, out.floats()?)
    }

    fn add(&self, from: &Rows, to: &mut Rows) -> Result<()> {
        self.device.launch(kernels::add(from.floats()?, to.floats()?))
    }

    fn scaled(&self, x: &Rows, factor: f32) -> Result<Rows> {
        let out = self.rows(x.n_rows, x.n_cols)?;
        let from = Selection { blocks: x.floats()?.memory, format: Format::F32, rows: None, scale: factor };
        self.device.launch(kernels::dequant_f32(from, out.view()))?;
        Ok(out)
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

    /// No kernel does it: [`can::check`] refuses such models before.
    fn clamped_swiglu(&self, _gate: &Rows, _up: &Rows, _form: Clamped) -> Result<Operand> {
        Err(Error::Internal("SwiGLU with bounds on a GPU".to_owned()))
    }

    fn gelu(&self, form: Gelu, gate: &Rows, up: Option<&Rows>) -> Result<Operand> {
        let out = self.new_operand(gate.n_rows, gate.n_cols)?;
        let up = up.map(Rows::floats).transpose()?;
        self.device.launch(kernels::gelu(form, gate.floats()?, up, out.values(), out.row_scale()?))?;
        Ok(out)
    }

    fn heads(&self, parts: &mut [Heads<'_, Rows>], form: &HeadForm<'_, Rows>, pass: &Pass) -> Result<()> {
        self.make_heads(parts, form, pass)
    }

    fn attention(
        &self,
        q: &Rows,
        [k, v]: [&Rows; 2],
        sinks: Option<&Rows>,
        shape: &AttentionShape,
        pass: &Pass,
    ) -> Result<Operand> {
        if sinks.is_some() {
            return Err(Error::Internal("attention with sinks on a GPU".to_owned()));
        }
        self.attend([q, k, v], shape, pass)
    }

    fn sum_squares(&self, x: &Operand) -> Result<Vec<f64>> {
        self.column_squares(x)
    }

    fn logits(&self, x: &Operand, output: Output<'_, Weight>) -> Result<Vec<f32>> {
        self.all_logits(x, output)
    }

    fn score(&self, x: &Operand, output: Output<'_, Weight>, targets: &[u32]) -> Result<Vec<Score>> {
        self.scores(x, output, targets)
    }

    fn compare(
        &self,
        a: (&Operand, Output<'_, Weight>),
        b: (&Operand, Output<'_, Weight>),
        targets: &[u32],
    ) -> Result<Vec<Divergence>> {
        self.divergences(a, b, targets)
    }
}
