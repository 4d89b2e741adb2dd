//! The inner loops: strips, and the tiles they are made of.

use std::ops::Range;

use zerocopy::IntoBytes;

use super::pack::{Activations, ROWS, tile_len};
use super::panel::{Panel, Runs, pack_lanes, prefetch};
use super::quad::Quad;
use super::{Accumulate, CHUNK, LANES, Right};
use crate::simd::{F32x16, Level, Simd, Sixteen, Task};

/// Vectors of a tile: its sums fill the registers but for the vectors of `w` and one of `x`.
///
/// 6 x 64 floats of AVX-512's 32 registers; 6 x 16 of the 16 of AVX2 and the 32 smaller ones of NEON.
const fn vectors<S: Simd>() -> usize {
    if S::REGISTERS >= 32 { 4 } else { 1 }
}

/// What a worker reuses from strip to strip.
pub(super) struct Scratch {
    pub runs: Box<Runs>,
    pub panels: Vec<Sixteen>,
    /// Of AMX.
    pub quads: Vec<Quad>,
}

impl Scratch {
    pub fn new() -> Scratch {
        Scratch { runs: Box::new([[0.0; CHUNK]; LANES]), panels: Vec::new(), quads: Vec::new() }
    }
}

/// Columns `first..` of a product, for all rows.
pub(super) struct Strip<'a, 'o> {
    pub level: Level,
    pub x: &'a Activations,
    pub w: &'a Right<'a>,
    pub first: usize,
    /// The part of every row of the output that is computed.
    pub out: &'a mut [&'o mut [f32]],
    pub accumulate: Accumulate,
    pub scratch: &'a mut Scratch,
}

impl Task for Strip<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Strip { level, x, w, first, out, accumulate, scratch } = self;
        let n_vectors = out[0].len().div_ceil(LANES);
        let len = x.n_cols();
        if len == 0 && accumulate == Accumulate::Store {
            out.iter_mut().for_each(|row| row.fill(0.0));
        }
        scratch.panels.resize((n_vectors * CHUNK.min(len)).max(scratch.panels.len()), Sixteen::ZERO);
        for k in (0..len).step_by(CHUNK) {
            let len = CHUNK.min(len - k);
            let panels = &mut scratch.panels[..n_vectors * len];
            for (at, width) in panel_widths::<S>(n_vectors) {
                for v in 0..width {
                    let panel = Panel { vectors: &mut panels[at * len..][..width * len], width, at: v };
                    pack_lanes(simd, level, w, first + LANES * (at + v), k..k + len, &mut scratch.runs, panel);
                }
            }
            let add = k > 0 || accumulate == Accumulate::Add;
            let mut next = Next::new(x, w, first..first + out[0].len(), k + len);
            let mut first = 0;
            while first < out.len() {
                let n_rows = tile_len(ROWS, out.len() - first);
                // Not sooner: what passes through the second-level cache meanwhile would displace it.
                if first >= out.len() / 8 * 7 {
                    next.prefetch(simd, w, out.len() - first, n_rows);
                }
                let n_left = out.len() - first - n_rows;
                let mut next_x = if n_left > 0 { x.tile(k, len, first + n_rows) } else { &[] };
                let rows = &mut out[first..][..n_rows];
                let x = x.tile(k, len, first);
                for (at, width) in panel_widths::<S>(n_vectors) {
                    // Of the next tile's rows as much as of this one's columns.
                    let (ahead, rest) = next_x.split_at((next_x.len() * width).div_ceil(n_vectors - at));
                    let factors = Factors { x, panel: &panels[at * len..][..width * len], ahead };
                    multiply_tile(simd, factors, width, rows, LANES * at, add);
                    next_x = rest;
                }
                first += rows.len();
            }
        }
    }
}

/// What is unpacked next, and is fetched from memory meanwhile, little by little: a core that waits for weights multiplies nothing.
struct Next {
    columns: Range<usize>,
    k: Range<usize>,
}

impl Next {
    /// The same columns from term `k` on, or after the last term the next strip, which most often is this worker's too.
    fn new(x: &Activations, w: &Right, columns: Range<usize>, k: usize) -> Next {
        if k < x.n_cols() {
            return Next { columns, k: k..x.n_cols().min(k + CHUNK) };
        }
        let end = w.n_out().min(columns.end + columns.len());
        Next { columns: columns.end..end, k: 0..x.n_cols().min(CHUNK) }
    }

    /// The part that is due with `n_rows` of the `n_left` rows that are left to multiply.
    #[inline(always)]
    fn prefetch<S: Simd>(&mut self, simd: S, w: &Right, n_left: usize, n_rows: usize) {
        let end = self.columns.start + (self.columns.len() * n_rows).div_ceil(n_left);
        prefetch(simd, w, self.columns.start..end, self.k.clone());
        self.columns.start = end;
    }
}

/// Where panels start and how many vectors they have: as many as a tile, but rather three and two than four and one.
#[inline(always)]
fn panel_widths<S: Simd>(n_vectors: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let width = match n_vectors - at {
            left if vectors::<S>() == 1 => left.min(1),
            5 | 6 => 3,
            left => left.min(4),
        };
        at += width;
        (width > 0).then_some((at - width, width))
    })
}

/// What a tile of `R` rows and `V` vectors is the product of.
#[derive(Clone, Copy)]
struct Factors<'a> {
    /// `[k, R]`.
    x: &'a [f32],
    /// `[k, V]`.
    panel: &'a [Sixteen],
    /// What is fetched meanwhile.
    ahead: &'a [f32],
}

/// Columns `at..` of `rows` of the output: the code for every number of rows and vectors.
#[inline(always)]
fn multiply_tile<S: Simd>(simd: S, factors: Factors, width: usize, rows: &mut [&mut [f32]], at: usize, add: bool) {
    match width {
        _ if vectors::<S>() == 1 => multiply_rows::<S, 1>(simd, factors, rows, at, add),
        1 => multiply_rows::<S, 1>(simd, factors, rows, at, add),
        2 => multiply_rows::<S, 2>(simd, factors, rows, at, add),
        3 => multiply_rows::<S, 3>(simd, factors, rows, at, add),
        _ => multiply_rows::<S, 4>(simd, factors, rows, at, add),
    }
}

#[inline(always)]
fn multiply_rows<S: Simd, const V: usize>(simd: S, factors: Factors, rows: &mut [&mut [f32]], at: usize, add: bool) {
    match rows.len() {
        1 => tile::<S, 1, V>(simd, factors, rows, at, add),
        2 => tile::<S, 2, V>(simd, factors, rows, at, add),
        4 => tile::<S, 4, V>(simd, factors, rows, at, add),
        _ => tile::<S, ROWS, V>(simd, factors, rows, at, add),
    }
}

/// Terms between which a tile fetches a little ahead: all at once would occupy the first-level cache's way to the second while the tile
/// needs it.
const STEP: usize = 32;

#[inline(always)]
fn tile<S: Simd, const R: usize, const V: usize>(simd: S, factors: Factors, rows: &mut [&mut [f32]], at: usize, add: bool) {
    let Factors { x, panel, mut ahead } = factors;
    let ahead_per_step = ahead.len().div_ceil(x.len().div_ceil(STEP * R).max(1)).next_multiple_of(LANES);
    let mut sums = [[F32x16::splat(simd, 0.0); V]; R];
    for (x, panel) in x.chunks(STEP * R).zip(panel.chunks(STEP * V)) {
        let (due, rest) = ahead.split_at(ahead_per_step.min(ahead.len()));
        simd.prefetch(due.as_bytes());
        ahead = rest;
        for (x, panel) in x.as_chunks::<R>().0.iter().zip(panel.as_chunks::<V>().0) {
            let mut w = sums[0];
            for v in 0..V {
                w[v] = panel[v].load(simd);
            }
            for r in 0..R {
                let x = F32x16::splat(simd, x[r]);
                for v in 0..V {
                    sums[r][v] = x.fma(w[v], sums[r][v]);
                }
            }
        }
    }
    // Decided once and not for each vector, so that the sums go from their registers to the output and nowhere else.
    if rows[0].len() < at + V * LANES {
        let mut part = [[[0.0; LANES]; V]; R];
        for r in 0..R {
            for v in 0..V {
                sums[r][v].store(&mut part[r][v]);
            }
        }
        put_part(rows, at, &part, add);
    } else if add {
        for r in 0..R {
            let out = vectors_at::<V>(rows[r], at);
            for v in 0..V {
                (F32x16::load(simd, &out[v]) + sums[r][v]).store(&mut out[v]);
            }
        }
    } else {
        for r in 0..R {
            let out = vectors_at::<V>(rows[r], at);
            for v in 0..V {
                sums[r][v].store(&mut out[v]);
            }
        }
    }
}

/// `V` vectors of a row that has so many.
#[inline(always)]
fn vectors_at<const V: usize>(row: &mut [f32], at: usize) -> &mut [[f32; LANES]; V] {
    let (vectors, _) = row[at..at + V * LANES].as_chunks_mut();
    vectors.try_into().expect("as many as were cut")
}

/// What of a tile lies within the rows.
#[cold]
#[inline(never)]
fn put_part<const V: usize>(rows: &mut [&mut [f32]], at: usize, part: &[[[f32; LANES]; V]], add: bool) {
    for (row, sums) in rows.iter_mut().zip(part) {
        for (out, sum) in row[at..].iter_mut().zip(sums.as_flattened()) {
            *out = if add { *out + sum } else { *sum };
        }
    }
}

/// Sixteen sums, or as many as there are columns left.
#[inline(always)]
pub(super) fn put<S: Simd>(simd: S, sums: F32x16<S>, out: &mut [f32], add: bool) {
    if let Some(out) = out.first_chunk_mut::<LANES>() {
        let sums = if add { F32x16::load(simd, out) + sums } else { sums };
        return sums.store(out);
    }
    for (out, sum) in out.iter_mut().zip(sums.to_array()) {
        *out = if add { *out + sum } else { sum };
    }
}
