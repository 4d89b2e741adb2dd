//! Rows in blocks times a vector. No weight reaches memory: blocks are unpacked and multiplied in registers.

use std::marker::PhantomData;

use super::Format;
use super::block::{Dequantize, LEN_MAX, padded_units, units};
use super::sink::SUMS;
use crate::simd::{F32x16, Level, Simd, Sixteen, Task};

/// Terms that a step of a dot product takes at least.
const STEP: usize = SUMS * 16;

/// Bytes of blocks by which memory is read ahead. The CPU does so by itself, but not across pages; four cores that share a memory came
/// closest to its speed with 8 to 16 KiB.
const AHEAD: usize = 12 << 10;

/// Bytes that memory is read by.
const LINE: usize = 64;

/// A vector to multiply rows with, in the order in which the blocks of their format meet it.
#[derive(Debug, Clone)]
pub struct Factors {
    format: Format,
    len: usize,
    sixteens: Vec<Sixteen>,
}

/// The sum of a sub-block's part of a vector: eight sums side by side, then those 4 apart are added, 2 and 1.
pub(super) fn sum<const N: usize>(x: &[f32; N]) -> f32 {
    let mut sums = [0.0; 8];
    for eight in x.as_chunks::<8>().0 {
        for i in 0..8 {
            sums[i] += eight[i];
        }
    }
    for apart in [4, 2, 1] {
        for i in 0..apart {
            sums[i] += sums[i + apart];
        }
    }
    sums[0]
}

impl Factors {
    /// `x` for rows of `format`.
    ///
    /// # Panics
    /// When `x` is not whole blocks, or the format cannot be dequantized.
    pub fn new(format: Format, x: &[f32]) -> Factors {
        assert!(x.len().is_multiple_of(format.block_len()), "{format}: {} floats are not whole blocks", x.len());
        let arrange = format.traits().arrange.unwrap_or_else(|| panic!("{format} cannot be dequantized"));
        Factors { format, len: x.len(), sixteens: arrange(x) }
    }

    /// Adds to every `out[i]` the dot product with row `i` of `rows` (`[out.len(), x.len()]`, in blocks). Weights are unpacked in
    /// registers, so that this is about as fast as `rows` come from memory.
    ///
    /// The order, the same at every level: 64 sums run along the row, sum `j` over the `k` that are `j` modulo 64, in ascending order,
    /// fused, from 0. Sums `j` and `j + 16` are added, `j + 32` and `j + 48`, these two; of the sixteen then those 8 apart, 4, 2 and 1.
    /// Of `Q4_K` and `Q6_K` each of the 64 gets the products of four quants at a time, times their scale; their files say which.
    ///
    /// # Panics
    /// When lengths disagree.
    pub fn add_dots(&self, level: Level, rows: &[u8], out: &mut [f32]) {
        let n_bytes = self.format.row_bytes(self.len as u64).and_then(|bytes| bytes.checked_mul(out.len() as u64));
        assert_eq!(n_bytes, Some(rows.len() as u64), "{}: bytes of {} rows of {}", self.format, out.len(), self.len);
        let add_dots = self.format.traits().add_dots.expect("a format that can be arranged for can be multiplied");
        add_dots(level, self, rows, out);
    }
}

/// `x` as the units of a row take it, with zeros to the end of a step.
pub(super) fn arrange<U: Dequantize>(x: &[f32]) -> Vec<Sixteen> {
    let n_units = x.len().div_ceil(U::LEN).next_multiple_of(units_of_step::<U>());
    let mut sixteens = vec![Sixteen::ZERO; n_units * U::FACTORS];
    let (whole, rest) = x.split_at(x.len() - x.len() % U::LEN);
    let (of_whole, of_rest) = sixteens.split_at_mut(whole.len() / U::LEN * U::FACTORS);
    for (x, factors) in whole.chunks_exact(U::LEN).zip(of_whole.chunks_exact_mut(U::FACTORS)) {
        U::arrange(x, factors);
    }
    if !rest.is_empty() {
        let mut padded = [0.0; LEN_MAX];
        padded[..rest.len()].copy_from_slice(rest);
        U::arrange(&padded[..U::LEN], &mut of_rest[..U::FACTORS]);
    }
    sixteens
}

/// Every `out[i]` has the dot product of `x` and row `i` of `rows` added; see [`Factors::add_dots`].
pub(super) fn add_dots<U: Dequantize>(level: Level, x: &Factors, rows: &[u8], out: &mut [f32]) {
    level.run(DotsTask::<U> { x: &x.sixteens, rows, out, unit: PhantomData });
}

const fn units_of_step<U: Dequantize>() -> usize {
    STEP.div_ceil(U::LEN)
}

struct DotsTask<'a, U> {
    x: &'a [Sixteen],
    rows: &'a [u8],
    out: &'a mut [f32],
    unit: PhantomData<U>,
}

impl<U: Dequantize> Task for DotsTask<'_, U> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        if self.out.is_empty() || self.rows.is_empty() {
            return;
        }
        let row_bytes = self.rows.len() / self.out.len();
        for (index, (row, out)) in self.rows.chunks_exact(row_bytes).zip(self.out).enumerate() {
            let ahead = self.rows.get(index * row_bytes + AHEAD..).unwrap_or_default();
            *out += dot::<S, U>(simd, self.x, row, ahead);
        }
    }
}

/// `ahead`: what to fetch from memory meanwhile, as much as a row.
#[inline(always)]
fn dot<S: Simd, U: Dequantize>(simd: S, x: &[Sixteen], row: &[u8], ahead: &[u8]) -> f32 {
    let n_units = const { units_of_step::<U>() };
    let (units, _) = units::<U>(row);
    let mut sums = [F32x16::splat(simd, 0.0); SUMS];
    let n_bytes = n_units * size_of::<U>();
    let mut steps = x.chunks_exact(n_units * U::FACTORS);
    let whole = units.chunks_exact(n_units);
    for (index, (units, x)) in whole.zip(&mut steps).enumerate() {
        // Where a step is longer than its lines, one now and then is left out.
        simd.prefetch(ahead.get(index * n_bytes..index * n_bytes + n_bytes / LINE * LINE).unwrap_or_default());
        sums = add_products(simd, sums, x, units);
    }
    if let Some(x) = steps.next() {
        let done = units.len() / n_units * n_bytes;
        let units = padded_units::<U, SUMS>(&row[done..]);
        sums = add_products(simd, sums, x, &units[..n_units]);
    }
    ((sums[0] + sums[1]) + (sums[2] + sums[3])).reduce_add()
}

/// A step: `units` are `STEP` weights, or one longer block.
#[inline(always)]
fn add_products<S: Simd, U: Dequantize>(simd: S, mut sums: [F32x16<S>; SUMS], x: &[Sixteen], units: &[U]) -> [F32x16<S>; SUMS] {
    for (index, (unit, x)) in units.iter().zip(x.chunks_exact(U::FACTORS)).enumerate() {
        sums = unit.add_products(simd, x, index * (U::LEN / 16), sums);
    }
    sums
}
