//! The left side of a product in the order in which tiles read it.

use std::collections::TryReserveError;

use rayon::prelude::*;

use super::quad::{self, Quad};
use super::{CHUNK, Engine, Rows};

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

/// Rows of a tile.
pub(super) const ROWS: usize = 6;

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
        let pack_quads = |(chunk, quads)| engine.level.run(quad::PackRows { x, chunk, quads });
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

    /// Makes room for `x`, so that [`repack`](Activations::repack) of it takes no more memory.
    ///
    /// # Errors
    /// When there is none.
    pub fn try_reserve(&mut self, engine: Engine, x: Rows) -> Result<(), TryReserveError> {
        match engine.amx.is_some() {
            true => self.quads.try_reserve(quad::n_quads(x.n_rows, x.n_cols).saturating_sub(self.quads.len())),
            false => self.packed.try_reserve((x.n_rows * x.n_cols).saturating_sub(self.packed.len())),
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
        self.quads.resize(if is_tiled { quad::n_quads(x.n_rows, x.n_cols) } else { 0 }, quad::EMPTY);
        // What was there before is overwritten to the last float.
        self.packed.resize(if is_tiled { 0 } else { x.n_rows * x.n_cols }, 0.0);
    }

    fn quads_per_chunk(&self) -> usize {
        quad::n_quads(self.n_rows, CHUNK).max(1)
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
            _ => interleave::<ROWS>(x, first, k, tile),
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
