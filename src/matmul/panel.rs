//! The right side of a product: sixteen of its columns at a time, in the order in which tiles read them.

use std::ops::Range;

use super::{CHUNK, LANES, Right};
use crate::quant::Format;
use crate::simd::{F32x16, Level, Simd, Sixteen};

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
