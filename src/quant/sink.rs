//! What becomes of weights as they are unpacked: they are stored as f32, or multiplied with activations before they leave the registers.

use std::marker::PhantomData;

use zerocopy::{FromBytes, IntoBytes};

use super::block::Dequantize;
use crate::simd::{F32x16, Level, Simd, Task};

/// Takes the weights of a block.
pub(super) trait Sink<S: Simd> {
    /// Weights `16 * at` to `16 * at + 15` of the block.
    fn put(&mut self, at: usize, weights: F32x16<S>);
}

/// Sums side by side in a dot product: 64 lanes, enough to hide how long a multiply-add takes.
const SUMS: usize = 4;

/// Terms that a step of a dot product takes at least.
const STEP: usize = SUMS * 16;

/// Bytes of blocks by which memory is read ahead. The CPU does so by itself, but not across pages; four cores that share a memory came
/// closest to its speed with 8 to 16 KiB.
const AHEAD: usize = 12 << 10;

/// Bytes that memory is read by.
const LINE: usize = 64;

/// Weights of the longest block.
const LEN_MAX: usize = 256;

/// `blocks` become as many `weights` as they hold.
pub(super) fn dequantize<U: Dequantize>(level: Level, blocks: &[u8], weights: &mut [f32]) {
    level.run(DequantizeTask::<U> { blocks, weights, unit: PhantomData });
}

/// Every `out[i]` has the dot product of `x` and row `i` of `rows` added; see [`Format::add_dots`](super::Format::add_dots).
pub(super) fn add_dots<U: Dequantize>(level: Level, x: &[f32], rows: &[u8], out: &mut [f32]) {
    level.run(DotsTask::<U> { x, rows, out, unit: PhantomData });
}

struct DequantizeTask<'a, U> {
    blocks: &'a [u8],
    weights: &'a mut [f32],
    unit: PhantomData<U>,
}

impl<U: Dequantize> Task for DequantizeTask<'_, U> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (units, rest) = units::<U>(self.blocks);
        let (weights, weights_rest) = self.weights.split_at_mut(units.len() * U::LEN);
        for (unit, weights) in units.iter().zip(weights.chunks_exact_mut(U::LEN)) {
            unit.dequantize(simd, &mut Store(weights.as_chunks_mut().0));
        }
        if !rest.is_empty() {
            let mut padded = [0.0; LEN_MAX];
            padded_units::<U, 1>(rest)[0].dequantize(simd, &mut Store(padded.as_chunks_mut().0));
            weights_rest.copy_from_slice(&padded[..weights_rest.len()]);
        }
    }
}

struct Store<'a>(&'a mut [[f32; 16]]);

impl<S: Simd> Sink<S> for Store<'_> {
    #[inline(always)]
    fn put(&mut self, at: usize, weights: F32x16<S>) {
        weights.store(&mut self.0[at]);
    }
}

struct DotsTask<'a, U> {
    x: &'a [f32],
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
fn dot<S: Simd, U: Dequantize>(simd: S, x: &[f32], row: &[u8], ahead: &[u8]) -> f32 {
    let n_units = const { STEP.div_ceil(U::LEN) };
    let (x_steps, x_rest) = x.split_at(x.len() - x.len() % (n_units * U::LEN));
    let (units, _) = units::<U>(row);
    let mut sums = [F32x16::splat(simd, 0.0); SUMS];
    let n_bytes = n_units * size_of::<U>();
    for (index, (units, x)) in units.chunks_exact(n_units).zip(x_steps.chunks_exact(n_units * U::LEN)).enumerate() {
        // Where a step is longer than its lines, one now and then is left out.
        simd.prefetch(ahead.get(index * n_bytes..index * n_bytes + n_bytes / LINE * LINE).unwrap_or_default());
        sums = add_products(simd, sums, x, units);
    }
    if !x_rest.is_empty() {
        let mut x = [0.0; LEN_MAX];
        x[..x_rest.len()].copy_from_slice(x_rest);
        let done = units.len() / n_units * n_units * size_of::<U>();
        let units = padded_units::<U, SUMS>(&row[done..]);
        sums = add_products(simd, sums, &x[..n_units * U::LEN], &units[..n_units]);
    }
    ((sums[0] + sums[1]) + (sums[2] + sums[3])).reduce_add()
}

/// A step: `units` and `x` are `STEP` weights, or one longer block.
#[inline(always)]
fn add_products<S: Simd, U: Dequantize>(simd: S, sums: [F32x16<S>; SUMS], x: &[f32], units: &[U]) -> [F32x16<S>; SUMS] {
    let mut products = Products { simd, x: x.as_chunks().0, first: 0, sums };
    for (index, unit) in units.iter().enumerate() {
        products.first = index * (U::LEN / 16);
        unit.dequantize(simd, &mut products);
    }
    products.sums
}

struct Products<'a, S: Simd> {
    simd: S,
    x: &'a [[f32; 16]],
    /// Where in `x` the block begins, in sixteens.
    first: usize,
    sums: [F32x16<S>; SUMS],
}

impl<S: Simd> Sink<S> for Products<'_, S> {
    #[inline(always)]
    fn put(&mut self, at: usize, weights: F32x16<S>) {
        let at = self.first + at;
        self.sums[at % SUMS] = F32x16::load(self.simd, &self.x[at]).fma(weights, self.sums[at % SUMS]);
    }
}

/// The whole units in `bytes`, and what follows them.
#[inline(always)]
fn units<U: Dequantize>(bytes: &[u8]) -> (&[U], &[u8]) {
    <[U]>::ref_from_prefix(bytes).expect("bytes are aligned as blocks are")
}

/// Units whose last are zero where `bytes` end.
#[inline(always)]
fn padded_units<U: Dequantize, const N: usize>(bytes: &[u8]) -> [U; N] {
    let mut units = [U::new_zeroed(); N];
    units.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
    units
}
