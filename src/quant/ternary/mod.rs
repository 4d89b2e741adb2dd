//! The formats of signs and trits: one scale, no search, so they run as fast as memory.
//!
//! A trit is -1, 0 or 1: a weight divided by the largest magnitude of its block, and rounded.

mod q1_0;
mod q2_0;
mod tq1_0;
mod tq2_0;

pub(super) use q1_0::Q1_0;
pub(super) use q2_0::Q2_0;
pub(super) use tq1_0::TQ1_0;
pub(super) use tq2_0::TQ2_0;

use super::block::{inverse, magnitude};
use crate::simd::{F32x16, I32x16, Simd};

/// The largest magnitude of a block, and its reciprocal in every lane.
#[inline(always)]
fn scale<S: Simd>(simd: S, weights: &[f32]) -> (f32, F32x16<S>) {
    let d = magnitude(simd, weights);
    (d, F32x16::splat(simd, inverse(d)))
}

/// The largest `q - 1` that four quants of 2 bits in each byte can stand for: 2, or 1 where none is 3.
#[inline(always)]
fn largest_quant(qs: &[u8]) -> f32 {
    let threes = qs.iter().fold(0, |threes, &byte| threes | (byte & byte >> 1 & 0x55));
    if threes == 0 { 1.0 } else { 2.0 }
}

/// 0, 1 or 2 for -1, 0 or 1. Where the reciprocal of a subnormal scale is infinite, 1, as in ggml.
#[inline(always)]
fn trits<S: Simd>(x: F32x16<S>, inverse: F32x16<S>) -> I32x16<S> {
    ((x * inverse).round_half_away() + 1) & 3
}
