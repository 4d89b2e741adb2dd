//! Matrix products on the CPU: f32 activations times weights in block formats, and f32 products for attention.
//!
//! Knows formats and levels, no models.
//!
//! ```
//! use ggforge::matmul::{Accumulate, Activations, Engine, Rows, Weights};
//! use ggforge::quant::Format;
//!
//! let engine = Engine::detect();
//! let w: Vec<f32> = (0..3 * 32).map(|i| i as f32).collect(); // [3, 32]
//! let mut blocks = vec![0; 3 * Format::Q8_0.row_bytes(32).expect("whole blocks") as usize];
//! Format::Q8_0.quantize_rows(engine.level(), &w, 32, None, &mut blocks).expect("finite weights");
//!
//! let x = Activations::pack(engine, Rows::new(&[1.0; 2 * 32], 32)); // two tokens
//! let mut y = [0.0; 2 * 3];
//! engine.multiply(&x, Weights::new(Format::Q8_0, 3, 32, &blocks), &mut y, Accumulate::Store);
//! assert!((y[1] - (32..64).sum::<i32>() as f32).abs() < 5.0);
//! ```
//!
//! # How a product is computed
//!
//! ```text
//!            n_cols = k                          one strip of columns of y, one worker
//!        +-----------------+               +------+----------+
//!   x    | tile of 6 rows  |          y    |      | 6 x 64   |   += 6 x 256 of x, 256 x 64 of w
//!        +-----------------+               +------+----------+
//!   n_   |                 |               |      |          |
//!  rows  |   256   256 ... |               |      |          |
//!        +-----------------+               +------+----------+
//! ```
//!
//! - `x` is packed once ([`Activations`]): by chunks of 256 columns, then tiles of rows, so that a tile is read front to back.
//! - Every worker takes strips of columns of `y`, which are rows of `w`. For each chunk it dequantizes its rows into panels of 16 to 64
//!   columns, turned round, and multiplies every tile of `x` with them. No weight is dequantized twice, and at most a strip is unpacked.
//!   While a tile is multiplied, the next one's part of `x` is fetched, and with the last tiles the blocks that are unpacked next.
//! - Few tokens go the same way, in tiles of 4, 2 and 1 rows. [`Engine::multiply_token`] is the fast way for one.
//!
//! # Numbers
//!
//! Every element of `y` is one chain: `c = fma(x[k], w[k], c)` from 0 over the 256 `k` of a chunk in ascending order, and the chunks'
//! results added up in order, to what `y` held before with [`Accumulate::Add`]. So the bits do not depend on level, tile, thread count, or on
//! how many tokens are computed at once. Chunks of 256 also keep the error small: it grows with 256 + k / 256, not with k.
//! [`Engine::multiply_token`] alone has another order, as fixed; and with AMX products are made of halves of the operands, to `2^-16`.

mod amx;
pub mod ceiling;
mod pack;
mod panel;
mod quad;
mod tile;

use std::ops::Range;

use rayon::prelude::*;

use crate::quant::{Factors, Format};
use crate::simd::{Level, Task};
pub use pack::Activations;
use tile::{Scratch, Strip};

/// Products are summed over this many `k` from zero; the sums are then added up.
pub const CHUNK: usize = 256;

/// Columns that one vector of lanes holds.
const LANES: usize = 16;

/// What computes products on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Engine {
    level: Level,
    /// Rows of `x` that a tile holds.
    tile_rows: usize,
    amx: Option<amx::Unit>,
}

impl Engine {
    /// The best of this machine, under the cap that [`Level::detect`] reads: AMX where it is, unless the cap is a level.
    pub fn detect() -> Engine {
        let engine = Engine::new(Level::detect());
        match amx::Unit::detect() {
            Some(unit) if Level::cap_allows("amx") => engine.with_amx(unit),
            _ => engine,
        }
    }

    /// Computes with the instructions of `level`, without AMX.
    pub fn new(level: Level) -> Engine {
        Engine { level, tile_rows: pack::ROWS, amx: None }
    }

    fn with_amx(self, unit: amx::Unit) -> Engine {
        Engine { tile_rows: quad::SIDE, amx: Some(unit), ..self }
    }

    /// All that this machine has, slowest first, whatever the cap says.
    pub fn available() -> Vec<Engine> {
        let levels = Level::available();
        let amx = amx::Unit::detect().map(|unit| Engine::new(levels[levels.len() - 1]).with_amx(unit));
        levels.into_iter().map(Engine::new).chain(amx).collect()
    }

    /// The level whose instructions are used.
    pub fn level(self) -> Level {
        self.level
    }

    /// The level's name, or `amx`.
    pub fn name(self) -> &'static str {
        if self.amx.is_some() { "amx" } else { self.level.name() }
    }

    /// `out` (`[x.n_rows, n_out]`, row-major) becomes `x wᵀ`, or has it added, on all threads of the current rayon pool.
    ///
    /// # Panics
    /// When lengths disagree, or `x` was packed for another engine.
    pub fn multiply<'a>(self, x: &Activations, w: impl Into<Right<'a>>, out: &mut [f32], accumulate: Accumulate) {
        let w = w.into();
        let n_out = w.n_out();
        self.check(x, &w);
        assert_eq!(out.len(), x.n_rows() * n_out, "out is [{}, {n_out}]", x.n_rows());
        if out.is_empty() {
            return;
        }
        let width = strip_width(x.n_rows(), n_out, rayon::current_num_threads());
        let mut strips: Vec<Vec<&mut [f32]>> = (0..n_out.div_ceil(width)).map(|_| Vec::with_capacity(x.n_rows())).collect();
        for row in out.chunks_exact_mut(n_out) {
            strips.iter_mut().zip(row.chunks_mut(width)).for_each(|(strip, part)| strip.push(part));
        }
        strips.into_par_iter().enumerate().for_each_init(Scratch::new, |scratch, (index, mut out)| {
            self.strip(x, &w, index * width, &mut out, accumulate, scratch);
        });
    }

    /// [`multiply`](Engine::multiply) on the calling thread alone, for callers that are parallel themselves; row `i` of `out` starts at
    /// `i * stride`.
    ///
    /// # Panics
    /// As [`multiply`](Engine::multiply).
    pub fn multiply_here<'a>(
        self,
        x: &Activations,
        w: impl Into<Right<'a>>,
        out: &mut [f32],
        stride: usize,
        accumulate: Accumulate,
    ) {
        let w = w.into();
        let n_out = w.n_out();
        self.check(x, &w);
        if x.n_rows() == 0 || n_out == 0 {
            return;
        }
        assert!(n_out <= stride && (x.n_rows() - 1) * stride + n_out <= out.len(), "out is [{}, {n_out}] by {stride}", x.n_rows());
        let mut scratch = Scratch::new();
        for first in (0..n_out).step_by(STRIP_MAX) {
            let width = STRIP_MAX.min(n_out - first);
            let mut rows: Vec<&mut [f32]> =
                out.chunks_mut(stride).take(x.n_rows()).map(|row| &mut row[first..first + width]).collect();
            self.strip(x, &w, first, &mut rows, accumulate, &mut scratch);
        }
    }

    /// [`multiply`](Engine::multiply) of one token by another order of the sum, as fast as weights come from memory. For generation.
    ///
    /// The order is that of [`Factors::add_dots`]: the same at every level and for any thread count, but not the last bits of
    /// [`multiply`](Engine::multiply).
    ///
    /// # Panics
    /// When lengths disagree.
    pub fn multiply_token(self, x: &[f32], w: Weights, out: &mut [f32], accumulate: Accumulate) {
        assert_eq!(x.len(), w.n_cols, "inputs");
        assert_eq!(out.len(), w.n_rows, "outputs");
        if accumulate == Accumulate::Store {
            out.fill(0.0);
        }
        let factors = Factors::new(w.format, x);
        let rows = dot_rows(w.n_cols, out.len(), rayon::current_num_threads());
        // Every piece by itself, or a worker that is late would keep half of the product to itself.
        out.par_chunks_mut(rows).enumerate().with_max_len(1).for_each(|(index, out)| {
            factors.add_dots(self.level, w.rows(index * rows, out.len()).bytes, out);
        });
    }

    fn check(self, x: &Activations, w: &Right) {
        assert_eq!(x.tile_rows(), self.tile_rows, "activations packed for another engine");
        assert_eq!(x.n_cols(), w.len(), "rows of activations and of weights are of the same length");
    }

    /// Columns `first..` of the product.
    fn strip(
        self,
        x: &Activations,
        w: &Right,
        first: usize,
        out: &mut [&mut [f32]],
        accumulate: Accumulate,
        scratch: &mut Scratch,
    ) {
        let strip = Strip { level: self.level, x, w, first, out, accumulate, scratch };
        match self.amx {
            Some(unit) => self.run(amx::TileStrip { unit, strip }),
            None => self.run(strip),
        }
    }

    fn run<T: Task>(self, task: T) -> T::Output {
        self.level.run(task)
    }
}

/// What becomes of what `out` held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accumulate {
    /// It is overwritten.
    Store,
    /// The product is added to it.
    Add,
}

/// f32 in rows that need not follow each other closely.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    data: &'a [f32],
    n_rows: usize,
    n_cols: usize,
    stride: usize,
}

impl<'a> Rows<'a> {
    /// `[data.len() / n_cols, n_cols]`, row-major.
    ///
    /// # Panics
    /// When `data` is not whole rows.
    pub fn new(data: &'a [f32], n_cols: usize) -> Rows<'a> {
        assert!(n_cols > 0 && data.len().is_multiple_of(n_cols), "{} floats are not rows of {n_cols}", data.len());
        Rows { data, n_rows: data.len() / n_cols, n_cols, stride: n_cols }
    }

    /// `n_rows` rows of `n_cols`, row `i` from `data[i * stride]`.
    ///
    /// # Panics
    /// When rows overlap or leave `data`.
    pub fn strided(data: &'a [f32], n_rows: usize, n_cols: usize, stride: usize) -> Rows<'a> {
        assert!(n_cols > 0 && n_cols <= stride, "rows of {n_cols} overlap at a stride of {stride}");
        assert!(n_rows == 0 || (n_rows - 1) * stride + n_cols <= data.len(), "{n_rows} rows by {stride} leave {}", data.len());
        Rows { data, n_rows, n_cols, stride }
    }

    #[inline(always)]
    fn row(&self, row: usize) -> &'a [f32] {
        &self.data[row * self.stride..][..self.n_cols]
    }
}

/// A weight matrix `[n_rows, n_cols]` in blocks, row-major: a row makes one output from `n_cols` inputs.
#[derive(Debug, Clone, Copy)]
pub struct Weights<'a> {
    format: Format,
    n_rows: usize,
    n_cols: usize,
    row_bytes: usize,
    bytes: &'a [u8],
}

impl<'a> Weights<'a> {
    /// The matrix whose blocks are `bytes`.
    ///
    /// # Panics
    /// When `bytes` is not `n_rows` rows of `n_cols` weights, or the format cannot be dequantized.
    pub fn new(format: Format, n_rows: usize, n_cols: usize, bytes: &'a [u8]) -> Weights<'a> {
        assert!(format.can_dequantize(), "{format} cannot be dequantized");
        let row_bytes = format.row_bytes(n_cols as u64).and_then(|bytes| usize::try_from(bytes).ok());
        let row_bytes = row_bytes.unwrap_or_else(|| panic!("{format}: rows of {n_cols} are not whole blocks"));
        assert_eq!(row_bytes.checked_mul(n_rows), Some(bytes.len()), "{format}: bytes of {n_rows} rows of {n_cols}");
        Weights { format, n_rows, n_cols, row_bytes, bytes }
    }

    /// Rows: outputs.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Columns: inputs.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// The rows from `first`, `n_rows` of them: an expert, or a part of the outputs.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn rows(&self, first: usize, n_rows: usize) -> Weights<'a> {
        assert!(first <= self.n_rows && n_rows <= self.n_rows - first, "{n_rows} rows from {first} of {}", self.n_rows);
        Weights { n_rows, bytes: &self.bytes[first * self.row_bytes..][..n_rows * self.row_bytes], ..*self }
    }

    /// The blocks of a row that hold the weights `k`: whole blocks.
    #[inline(always)]
    fn blocks(&self, row: usize, k: Range<usize>) -> &'a [u8] {
        let (block_len, block_bytes) = (self.format.block_len(), self.format.block_bytes());
        &self.bytes[row * self.row_bytes..][k.start / block_len * block_bytes..k.end / block_len * block_bytes]
    }
}

/// The right side of a product `x wᵀ`.
#[derive(Debug, Clone, Copy)]
pub enum Right<'a> {
    /// `w` in blocks: `[n_out, len]`.
    Blocks(Weights<'a>),
    /// `w` in f32: `[n_out, len]`. Of attention, the keys.
    Rows(Rows<'a>),
    /// `wᵀ` in f32: `[len, n_out]`. Of attention, the values.
    Columns(Rows<'a>),
}

impl Right<'_> {
    /// Columns of the product.
    fn n_out(&self) -> usize {
        match self {
            Right::Blocks(w) => w.n_rows,
            Right::Rows(w) => w.n_rows,
            Right::Columns(w) => w.n_cols,
        }
    }

    /// Terms of every sum.
    fn len(&self) -> usize {
        match self {
            Right::Blocks(w) => w.n_cols,
            Right::Rows(w) => w.n_cols,
            Right::Columns(w) => w.n_rows,
        }
    }
}

impl<'a> From<Weights<'a>> for Right<'a> {
    fn from(weights: Weights<'a>) -> Right<'a> {
        Right::Blocks(weights)
    }
}

/// Columns of a strip at most: a chunk of them unpacked is 192 KiB, a part of the second-level cache.
const STRIP_MAX: usize = 12 * LANES;

/// Columns of a strip: as many strips for each worker, and more than one where that costs nothing, since not all run as fast.
fn strip_width(n_rows: usize, n_out: usize, n_workers: usize) -> usize {
    // With few rows every strip is dequantized for little work, so a strip of one panel is as good as a wide one.
    let width_max = if n_rows <= 8 { 4 * LANES } else { STRIP_MAX };
    let n_vectors = n_out.div_ceil(LANES);
    let n_strips = n_out.div_ceil(width_max).next_multiple_of(n_workers.max(1));
    n_vectors.div_ceil(n_strips) * LANES
}

/// Rows that a worker takes at a time for one token: several times as many pieces as workers, but none so small that handing it over
/// takes as long as its products, some microseconds.
fn dot_rows(n_cols: usize, n_rows: usize, n_workers: usize) -> usize {
    n_rows.div_ceil(8 * n_workers).max((1 << 15) / n_cols.max(1)).max(1)
}

#[cfg(test)]
mod tests;
