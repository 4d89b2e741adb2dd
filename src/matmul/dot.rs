//! One token: every output is a dot product of the activations with a row of weights that is read from memory once.
//!
//! Turning weights round to use them once would cost more than the product, so here the lanes lie along the row, and the order of the
//! sum is another than in [`tile`](super::tile), though as fixed: see [`Engine::multiply_token`](super::Engine::multiply_token).

use super::{Accumulate, LANES, Weights};
use crate::simd::{F32x16, Level, Simd, Task};

/// Sums side by side: 64 lanes, enough to hide how long a multiply-add takes.
const SUMS: usize = 4;

/// Terms that a step takes.
pub(super) const STEP: usize = SUMS * LANES;

/// Weights unpacked at a time: whole blocks of every format, whole steps, and a small part of the first-level cache.
const RUN: usize = 1024;

/// A few outputs of one token.
pub(super) struct Dots<'a> {
    pub level: Level,
    /// `n_cols` activations, then zeros to a whole step.
    pub x: &'a [f32],
    /// As many rows as outputs.
    pub w: Weights<'a>,
    pub out: &'a mut [f32],
    pub accumulate: Accumulate,
}

impl Task for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Dots { level, x, w, out, accumulate } = self;
        let mut run = [0.0; RUN];
        for (row, out) in out.iter_mut().enumerate() {
            let blocks = &w.bytes[row * w.row_bytes..][..w.row_bytes];
            let mut sums = [F32x16::splat(simd, 0.0); SUMS];
            for (x, blocks) in x.chunks(RUN).zip(blocks.chunks(RUN / w.format.block_len() * w.format.block_bytes())) {
                let len = blocks.len() / w.format.block_bytes() * w.format.block_len();
                w.format.dequantize(level, blocks, &mut run[..len]);
                run[len..x.len()].fill(0.0);
                sums = add_products(sums, x, &run, simd);
            }
            let sum = ((sums[0] + sums[1]) + (sums[2] + sums[3])).reduce_add();
            *out = if accumulate == Accumulate::Add { *out + sum } else { sum };
        }
    }
}

#[inline(always)]
fn add_products<S: Simd>(mut sums: [F32x16<S>; SUMS], x: &[f32], w: &[f32], simd: S) -> [F32x16<S>; SUMS] {
    for (x, w) in x.as_chunks::<STEP>().0.iter().zip(w.as_chunks::<STEP>().0) {
        let (x, w) = (x.as_chunks().0, w.as_chunks().0);
        for i in 0..SUMS {
            sums[i] = F32x16::load(simd, &x[i]).fma(F32x16::load(simd, &w[i]), sums[i]);
        }
    }
    sums
}
