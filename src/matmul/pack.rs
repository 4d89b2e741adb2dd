//! Both sides of a product in the order in which a tile reads them.

use std::ops::Range;

use rayon::prelude::*;

use super::amx::{self, Quad};
use super::{CHUNK, Engine, LANES, Right, Rows, tile};
use crate::quant::Format;
use crate::simd::{F32x16, Level, Simd, Sixteen};

/// The left side of products, packed: made once, used for every matrix that takes the same input.
///
/// By chunks of 256 columns; in a chunk by tiles of rows; in a tile by columns. The last chunk and the last tiles are smaller, so that
/// packing moves floats and adds none.
#[derive(Debug, Clone, Default)]
pub struct Activations {
    n_rows: usize,
    n_cols: usize,
    tile_rows: usize,
    packed: Vec<f32>,
    /// Instead, for AMX: by chunks, in a chunk by groups of rows.
    quads: Vec<Quad>,
}

/// Fewer floats than these are packed on the calling thread: waking the others takes longer.
const PARALLEL_LEN: usize = 1 << 16;

impl Activations {
    /// Packs `x`, `[n_tokens, n_in]`, on the current rayon pool where there is much of it.
    pub fn pack(engine: Engine, x: Rows) -> Activations {
        let mut packed = Activations::default();
        packed.repack(engine, x);
        packed
    }

    /// [`pack`](Activations::pack) into the memory of `self`.
    pub fn repack(&mut self, engine: Engine, x: Rows) {
        self.set_shape(engine, x);
        let n_quads = self.quads_per_chunk();
        let pack_quads = |(chunk, quads)| engine.level.run(amx::PackRows { x, chunk, quads });
        let n_floats = (CHUNK * x.n_rows).max(1);
        let pack_floats = |(index, chunk): (usize, &mut [f32])| pack_chunk(engine.tile_rows, x, index, chunk);
        if x.n_rows * x.n_cols < PARALLEL_LEN {
            self.quads.chunks_mut(n_quads).enumerate().for_each(pack_quads);
            self.packed.chunks_mut(n_floats).enumerate().for_each(pack_floats);
        } else {
            self.quads.par_chunks_mut(n_quads).enumerate().for_each(pack_quads);
            self.packed.par_chunks_mut(n_floats).enumerate().for_each(pack_floats);
        }
    }

    /// Tokens.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Inputs.
    pub fn n_cols(&self) -> usize {
        self.n_cols
    }

    pub(super) fn tile_rows(&self) -> usize {
        self.tile_rows
    }

    /// The tile of rows from `first` in the chunk that starts at column `k` and has `len`: `[len, rows of the tile]`.
    #[inline(always)]
    pub(super) fn tile(&self, k: usize, len: usize, first: usize) -> &[f32] {
        let n_rows = tile_len(self.tile_rows, self.n_rows - first);
        &self.packed[k * self.n_rows + first * len..][..n_rows * len]
    }

    /// The group `group` of rows in the chunk from column `k`, which has `n_steps`.
    #[inline(always)]
    pub(super) fn quads(&self, k: usize, n_steps: usize, group: usize) -> &[Quad] {
        &self.quads[k / CHUNK * self.quads_per_chunk() + group * n_steps..][..n_steps]
    }

    fn set_shape(&mut self, engine: Engine, x: Rows) {
        (self.n_rows, self.n_cols, self.tile_rows) = (x.n_rows, x.n_cols, engine.tile_rows);
        let is_tiled = engine.amx.is_some();
        self.quads.clear();
        self.quads.resize(if is_tiled { amx::n_quads(x.n_rows, x.n_cols) } else { 0 }, amx::EMPTY);
        // What was there before is overwritten to the last float.
        self.packed.resize(if is_tiled { 0 } else { x.n_rows * x.n_cols }, 0.0);
    }

    fn quads_per_chunk(&self) -> usize {
        amx::n_quads(self.n_rows, CHUNK).max(1)
    }
}

/// Rows of the next tile when `n_left` are left: whole tiles, then those of 4, 2 and 1 rows, so that there is code for few sizes.
#[inline(always)]
pub(super) fn tile_len(tile_rows: usize, n_left: usize) -> usize {
    if n_left >= tile_rows { tile_rows } else { 1 << n_left.ilog2() }
}

fn pack_chunk(tile_rows: usize, x: Rows, index: usize, mut chunk: &mut [f32]) {
    let (k, len) = (index * CHUNK, chunk.len() / x.n_rows);
    let mut first = 0;
    while first < x.n_rows {
        let n_rows = tile_len(tile_rows, x.n_rows - first);
        let (tile, rest) = chunk.split_at_mut(n_rows * len);
        match n_rows {
            1 => tile.copy_from_slice(&x.row(first)[k..k + len]),
            2 => interleave::<2>(x, first, k, tile),
            4 => interleave::<4>(x, first, k, tile),
            _ => interleave::<{ tile::ROWS }>(x, first, k, tile),
        }
        (chunk, first) = (rest, first + n_rows);
    }
}

/// `tile` (`[len, N]`) becomes the columns from `k` of rows `first..`.
#[inline(always)]
fn interleave<const N: usize>(x: Rows, first: usize, k: usize, tile: &mut [f32]) {
    let (tile, _) = tile.as_chunks_mut::<N>();
    let rows: [&[f32]; N] = std::array::from_fn(|row| &x.row(first + row)[k..][..tile.len()]);
    for (column, to) in tile.iter_mut().enumerate() {
        for row in 0..N {
            to[row] = rows[row][column];
        }
    }
}

/// Sixteen rows of weights, as many of each as a chunk has.
pub(super) type Runs = [[f32; CHUNK]; LANES];

/// Where sixteen columns of a product go in a panel of `width` vectors: vector `k * width + at` is what `k` multiplies.
pub(super) struct Panel<'a> {
    pub vectors: &'a mut [Sixteen],
    pub width: usize,
    pub at: usize,
}

/// Packs output columns `first..` (sixteen, zeros where there are fewer) for the terms `k`.
#[inline(always)]
pub(super) fn pack_lanes<S: Simd>(
    simd: S,
    level: Level,
    w: &Right,
    first: usize,
    k: Range<usize>,
    runs: &mut Runs,
    mut panel: Panel,
) {
    let n = LANES.min(w.n_out() - first);
    match w {
        Right::Blocks(w) if w.format == Format::BF16 && n == LANES && k.len().is_multiple_of(2 * LANES) => {
            return turn_pairs(simd, std::array::from_fn(|row| w.blocks(first + row, k.clone()).as_chunks().0), &mut panel);
        }
        Right::Blocks(w) => {
            for (row, run) in runs[..n].iter_mut().enumerate() {
                w.format.dequantize(level, w.blocks(first + row, k.clone()), &mut run[..k.len()]);
            }
        }
        Right::Rows(w) => {
            for (row, run) in runs[..n].iter_mut().enumerate() {
                run[..k.len()].copy_from_slice(&w.row(first + row)[k.clone()]);
            }
        }
        Right::Columns(w) => {
            for (to, k) in panel.vectors[panel.at..].iter_mut().step_by(panel.width).zip(k) {
                let from = &w.row(k)[first..first + n];
                match from.as_array::<LANES>() {
                    Some(from) => to.0 = *from,
                    None => {
                        *to = Sixteen::ZERO;
                        to.0[..n].copy_from_slice(from);
                    }
                }
            }
            return;
        }
    }
    runs[n..].iter_mut().for_each(|run| run[..k.len()].fill(0.0));
    turn(simd, runs, k.len(), &mut panel);
}

/// Has the caches fetch what [`pack_lanes`] will read of output columns `columns` for the terms `k`, where that is in blocks.
#[inline(always)]
pub(super) fn prefetch<S: Simd>(simd: S, w: &Right, columns: Range<usize>, k: Range<usize>) {
    if let Right::Blocks(w) = w {
        for row in columns {
            simd.prefetch(w.blocks(row, k.clone()));
        }
    }
}

/// Two weights of BF16 that follow each other in a row.
type Pair = [u8; 4];

/// [`turn`] of sixteen rows of BF16 without making them f32 first: two weights are turned as if they were one float, and then widened. That
/// takes half of the shuffles and no detour through memory.
#[inline(always)]
fn turn_pairs<S: Simd>(simd: S, rows: [&[Pair]; LANES], panel: &mut Panel) {
    const HIGH: i32 = 0xffff_0000_u32 as i32;
    let Panel { vectors, width, at } = panel;
    for start in (0..rows[0].len()).step_by(LANES) {
        let mut pairs = [F32x16::splat(simd, 0.0); LANES];
        for row in 0..LANES {
            let of_row: &[Pair; LANES] = rows[row][start..].first_chunk().expect("whole vectors of pairs");
            pairs[row] = F32x16::load(simd, &of_row.map(f32::from_le_bytes));
        }
        let columns = F32x16::transpose(pairs);
        let vectors = &mut vectors[2 * start * *width + *at..][..(2 * LANES - 1) * *width + 1];
        for i in 0..LANES {
            let bits = columns[i].to_bits();
            bits.shl::<16>().to_float_bits().store(&mut vectors[2 * i * *width].0);
            (bits & HIGH).to_float_bits().store(&mut vectors[(2 * i + 1) * *width].0);
        }
    }
}

/// Writes the columns of `runs` as vectors.
#[inline(always)]
fn turn<S: Simd>(simd: S, runs: &Runs, len: usize, panel: &mut Panel) {
    let vectors = &mut panel.vectors[panel.at..];
    for start in (0..len).step_by(LANES) {
        let mut rows = [F32x16::splat(simd, 0.0); LANES];
        for (row, run) in rows.iter_mut().zip(runs) {
            *row = F32x16::load(simd, &run.as_chunks().0[start / LANES]);
        }
        let columns = F32x16::transpose(rows);
        let vectors = &mut vectors[start * panel.width..];
        if len - start >= LANES {
            let vectors = &mut vectors[..(LANES - 1) * panel.width + 1];
            for i in 0..LANES {
                columns[i].store(&mut vectors[i * panel.width].0);
            }
        } else {
            for i in 0..len - start {
                columns[i].store(&mut vectors[i * panel.width].0);
            }
        }
    }
}
