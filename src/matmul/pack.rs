//! Both sides of a product in the order in which a tile reads them.

use std::ops::Range;

use rayon::prelude::*;

use super::{CHUNK, Engine, LANES, Right, Rows};
use crate::simd::{F32x16, Level, Simd};

/// The left side of products, packed: made once, used for every matrix that takes the same input.
///
/// By chunks of 256 columns; in a chunk by tiles of rows; in a tile by columns. The last chunk and the last tile are smaller, so that
/// packing moves floats and adds none.
#[derive(Debug, Clone)]
pub struct Activations {
    n_rows: usize,
    n_cols: usize,
    tile_rows: usize,
    packed: Vec<f32>,
}

/// Fewer floats than these are packed on the calling thread: waking the others takes longer.
const PARALLEL_LEN: usize = 1 << 16;

impl Activations {
    /// Packs `x`, `[n_tokens, n_in]`, on the current rayon pool where there is much of it.
    pub fn pack(engine: Engine, x: Rows) -> Activations {
        let mut packed = Activations { n_rows: 0, n_cols: 0, tile_rows: 0, packed: Vec::new() };
        if x.n_rows * x.n_cols < PARALLEL_LEN {
            packed.repack(engine, x);
        } else {
            packed.set_shape(engine, x);
            let chunks = packed.packed.par_chunks_mut(CHUNK * x.n_rows).enumerate();
            chunks.for_each(|(index, chunk)| pack_chunk(engine.tile_rows, x, index, chunk));
        }
        packed
    }

    /// [`pack`](Activations::pack) on the calling thread, into the memory of `self`.
    pub fn repack(&mut self, engine: Engine, x: Rows) {
        self.set_shape(engine, x);
        let chunks = self.packed.chunks_mut((CHUNK * x.n_rows).max(1)).enumerate();
        chunks.for_each(|(index, chunk)| pack_chunk(engine.tile_rows, x, index, chunk));
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

    /// Tile `tile` of the chunk that starts at column `k` and has `len`: `[len, rows of the tile]`.
    #[inline(always)]
    pub(super) fn tile(&self, k: usize, len: usize, tile: usize) -> &[f32] {
        let first = tile * self.tile_rows;
        let n_rows = self.tile_rows.min(self.n_rows - first);
        &self.packed[k * self.n_rows + first * len..][..n_rows * len]
    }

    fn set_shape(&mut self, engine: Engine, x: Rows) {
        (self.n_rows, self.n_cols, self.tile_rows) = (x.n_rows, x.n_cols, engine.tile_rows);
        self.packed.resize(x.n_rows * x.n_cols, 0.0);
    }
}

fn pack_chunk(tile_rows: usize, x: Rows, index: usize, chunk: &mut [f32]) {
    let (k, len) = (index * CHUNK, chunk.len() / x.n_rows);
    for (tile, packed) in chunk.chunks_mut(tile_rows * len).enumerate() {
        let n_rows = packed.len() / len;
        for row in 0..n_rows {
            let from = &x.row(tile * tile_rows + row)[k..k + len];
            packed[row..].iter_mut().step_by(n_rows).zip(from).for_each(|(to, from)| *to = *from);
        }
    }
}

/// Sixteen rows of weights, as many of each as a chunk has.
pub(super) type Runs = [[f32; CHUNK]; LANES];

/// Where sixteen columns of a product go in a panel of `width` vectors: vector `k * width + at` is what `k` multiplies.
pub(super) struct Panel<'a> {
    pub vectors: &'a mut [[f32; LANES]],
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
        Right::Blocks(w) => {
            let (block_len, block_bytes) = (w.format.block_len(), w.format.block_bytes());
            let (start, end) = (k.start / block_len * block_bytes, k.end / block_len * block_bytes);
            for (row, run) in runs[..n].iter_mut().enumerate() {
                let bytes = &w.bytes[(first + row) * w.row_bytes..][start..end];
                w.format.dequantize(level, bytes, &mut run[..k.len()]);
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
                    Some(from) => *to = *from,
                    None => {
                        *to = [0.0; LANES];
                        to[..n].copy_from_slice(from);
                    }
                }
            }
            return;
        }
    }
    runs[n..].iter_mut().for_each(|run| run[..k.len()].fill(0.0));
    turn(simd, runs, k.len(), &mut panel);
}

/// Writes the columns of `runs` as vectors.
#[inline(always)]
fn turn<S: Simd>(simd: S, runs: &Runs, len: usize, panel: &mut Panel) {
    let mut vectors = panel.vectors[panel.at..].iter_mut().step_by(panel.width);
    for start in (0..len).step_by(LANES) {
        let mut rows = [F32x16::splat(simd, 0.0); LANES];
        for (row, run) in rows.iter_mut().zip(runs) {
            *row = F32x16::load(simd, &run.as_chunks().0[start / LANES]);
        }
        for column in F32x16::transpose(rows).into_iter().take(len - start) {
            if let Some(to) = vectors.next() {
                column.store(to);
            }
        }
    }
}
