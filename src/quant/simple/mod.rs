//! The formats of 32 weights with one scale, and perhaps a minimum: no search, so they run as fast as memory. With importance there is
//! one (`weighted.rs`).
//!
//! `q` is a weight divided by the scale and rounded. Four bits: weight `i` is the low half of byte `i`, weight `16 + i` the high half.
//! Five bits: the fifth of weight `i` is bit `i` of `qh`.

mod q4_0;
mod q4_1;
mod q5_0;
mod q5_1;
mod q8_0;
mod q8_1;
mod weighted;

pub(super) use q4_0::Q4_0;
pub(super) use q4_1::Q4_1;
pub(super) use q5_0::Q5_0;
pub(super) use q5_1::Q5_1;
pub(super) use q8_0::Q8_0;
pub(super) use q8_1::Q8_1;

use super::block::{Half, inverse};
use crate::simd::{F32x16, I32x16, Mask, Simd};

/// The weights of a block, 16 lanes each.
#[inline(always)]
pub(super) fn halves<S: Simd>(simd: S, weights: &[f32; 32]) -> [F32x16<S>; 2] {
    let (halves, _) = weights.as_chunks::<16>();
    [F32x16::load(simd, &halves[0]), F32x16::load(simd, &halves[1])]
}

/// No weight `d*q + m` with quants up to `q_max` is larger in magnitude: the ends of the range.
#[inline(always)]
fn affine_bound<S: Simd>(simd: S, d: Half, m: Half, q_max: f32) -> f32 {
    let (d, m) = (d.to_f32(simd), m.to_f32(simd));
    (q_max * d + m).abs().max(m.abs())
}

/// The weight of largest magnitude with its sign, the first of equals; +0 when all are zero.
#[inline(always)]
fn largest<S: Simd>(simd: S, weights: &[f32; 32]) -> f32 {
    let [x0, x1] = halves(simd, weights);
    let max = x0.abs().max(x1.abs()).reduce_max();
    if max == 0.0 { 0.0 } else { first(weights, x0.abs().eq(F32x16::splat(simd, max)), x1.abs().eq(F32x16::splat(simd, max))) }
}

/// Smallest and largest weight.
#[inline(always)]
fn range<S: Simd>(simd: S, weights: &[f32; 32]) -> (f32, f32) {
    let [x0, x1] = halves(simd, weights);
    let (min, max) = (x0.min(x1).reduce_min(), x0.max(x1).reduce_max());
    if min != 0.0 {
        return (min, max);
    }
    // Zeros of both signs are equal, and the first of equals counts: its sign goes into the file.
    let zero = first(weights, x0.eq(F32x16::splat(simd, 0.0)), x1.eq(F32x16::splat(simd, 0.0)));
    (zero, if max == 0.0 { zero } else { max })
}

/// The first weight that is marked.
#[inline(always)]
fn first<S: Simd>(weights: &[f32; 32], low: Mask<S>, high: Mask<S>) -> f32 {
    let marked = u32::from(low.bits()) | u32::from(high.bits()) << 16;
    weights[marked.trailing_zeros() as usize % 32]
}

/// What C's conversion to an 8-bit integer leaves of an f32: the whole part, and 0 where it does not fit.
#[inline(always)]
fn to_byte<S: Simd>(x: F32x16<S>) -> I32x16<S> {
    x.truncate() & 0xff
}

/// Sixteen low and sixteen high halves as bytes.
#[inline(always)]
pub(super) fn nibbles<S: Simd>(low: I32x16<S>, high: I32x16<S>) -> [u8; 16] {
    ((low & 15) | (high & 15).shl::<4>()).to_u8()
}

/// The fifth bits of 32 weights.
#[inline(always)]
fn fifth_bits<S: Simd>(low: I32x16<S>, high: I32x16<S>) -> [u8; 4] {
    (u32::from(low.has(16).bits()) | u32::from(high.has(16).bits()) << 16).to_le_bytes()
}

/// The fifth bits, worth 16, of the low and the high 16 weights.
#[inline(always)]
fn from_fifth_bits<S: Simd>(simd: S, qh: [u8; 4]) -> [I32x16<S>; 2] {
    let (low, high) = (u16::from_le_bytes([qh[0], qh[1]]), u16::from_le_bytes([qh[2], qh[3]]));
    [I32x16::spread(simd, low, 16), I32x16::spread(simd, high, 16)]
}

/// Undoes [`nibbles`].
#[inline(always)]
pub(super) fn from_nibbles<S: Simd>(simd: S, qs: &[u8; 16]) -> [I32x16<S>; 2] {
    let bytes = I32x16::load_u8(simd, qs);
    [bytes & 15, bytes.shr::<4>()]
}
