//! The inner loops: strips, and the tiles they are made of.

use super::amx::Quad;
use super::pack::{Panel, Runs, pack_lanes, tile_len};
use super::{Accumulate, Activations, CHUNK, LANES, Right};
use crate::simd::{F32x16, Level, Simd, Task};

/// Rows and vectors of a tile: its sums fill the registers but for the vectors of `w` and one of `x`.
///
/// 8 x 48 floats of AVX-512's 32 registers; 6 x 16 of the 16 of AVX2 and the 32 smaller ones of NEON.
const fn shape<S: Simd>() -> (usize, usize) {
    if S::REGISTERS >= 32 { (8, 3) } else { (6, 1) }
}

/// Asks a level how many rows its tiles have.
pub(super) struct Rows;

impl Task for Rows {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) -> usize {
        shape::<S>().0
    }
}

/// What a worker reuses from strip to strip.
pub(super) struct Scratch {
    pub runs: Box<Runs>,
    pub panels: Vec<[f32; LANES]>,
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
        let (len, tile_rows) = (x.n_cols(), shape::<S>().0);
        if len == 0 && accumulate == Accumulate::Store {
            out.iter_mut().for_each(|row| row.fill(0.0));
        }
        scratch.panels.resize((n_vectors * CHUNK.min(len)).max(scratch.panels.len()), [0.0; LANES]);
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
            let mut first = 0;
            while first < out.len() {
                let n_rows = tile_len(tile_rows, out.len() - first);
                let rows = &mut out[first..][..n_rows];
                let x = x.tile(k, len, first);
                for (at, width) in panel_widths::<S>(n_vectors) {
                    multiply_tile(simd, x, &panels[at * len..][..width * len], width, rows, LANES * at, add);
                }
                first += rows.len();
            }
        }
    }
}

/// Where panels start and how many vectors they have: three, but two and two rather than three and one.
#[inline(always)]
fn panel_widths<S: Simd>(n_vectors: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let left = n_vectors - at;
        let width = if shape::<S>().1 == 1 {
            left.min(1)
        } else if left == 4 {
            2
        } else {
            left.min(3)
        };
        at += width;
        (width > 0).then_some((at - width, width))
    })
}

/// Columns `at..` of `rows` of the output: the code for every number of rows and vectors.
#[inline(always)]
fn multiply_tile<S: Simd>(simd: S, x: &[f32], panel: &[[f32; LANES]], width: usize, rows: &mut [&mut [f32]], at: usize, add: bool) {
    match width {
        _ if shape::<S>().1 == 1 => multiply_rows::<S, 1>(simd, x, panel, rows, at, add),
        1 => multiply_rows::<S, 1>(simd, x, panel, rows, at, add),
        2 => multiply_rows::<S, 2>(simd, x, panel, rows, at, add),
        _ => multiply_rows::<S, 3>(simd, x, panel, rows, at, add),
    }
}

#[inline(always)]
fn multiply_rows<S: Simd, const V: usize>(
    simd: S,
    x: &[f32],
    panel: &[[f32; LANES]],
    rows: &mut [&mut [f32]],
    at: usize,
    add: bool,
) {
    match rows.len() {
        1 => tile::<S, 1, V>(simd, x, panel, rows, at, add),
        2 => tile::<S, 2, V>(simd, x, panel, rows, at, add),
        4 => tile::<S, 4, V>(simd, x, panel, rows, at, add),
        _ if shape::<S>().0 == 6 => tile::<S, 6, V>(simd, x, panel, rows, at, add),
        _ => tile::<S, 8, V>(simd, x, panel, rows, at, add),
    }
}

/// `R` rows times `V` vectors: `x` is `[k, R]`, `panel` is `[k, V]`.
#[inline(always)]
fn tile<S: Simd, const R: usize, const V: usize>(
    simd: S,
    x: &[f32],
    panel: &[[f32; LANES]],
    rows: &mut [&mut [f32]],
    at: usize,
    add: bool,
) {
    let mut sums = [[F32x16::splat(simd, 0.0); V]; R];
    for (x, panel) in x.as_chunks::<R>().0.iter().zip(panel.as_chunks::<V>().0) {
        let mut w = sums[0];
        for v in 0..V {
            w[v] = F32x16::load(simd, &panel[v]);
        }
        for r in 0..R {
            let x = F32x16::splat(simd, x[r]);
            for v in 0..V {
                sums[r][v] = x.fma(w[v], sums[r][v]);
            }
        }
    }
    for r in 0..R {
        for v in 0..V {
            put(simd, sums[r][v], &mut rows[r][at + LANES * v..], add);
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
