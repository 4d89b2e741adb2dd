//! What becomes of weights as they are unpacked: they are stored as f32, or multiplied before they leave the registers.

use crate::simd::{F32x16, Simd, Sixteen};

/// Sums side by side in a dot product: 64 lanes, enough to hide how long a multiply-add takes.
pub(super) const SUMS: usize = 4;

/// Takes the weights of a block.
pub(super) trait Sink<S: Simd> {
    /// Weights `16 * at` to `16 * at + 15` of the block.
    fn put(&mut self, at: usize, weights: F32x16<S>);
}

/// Stores them.
pub(super) struct Store<'a>(pub &'a mut [[f32; 16]]);

impl<S: Simd> Sink<S> for Store<'_> {
    #[inline(always)]
    fn put(&mut self, at: usize, weights: F32x16<S>) {
        weights.store(&mut self.0[at]);
    }
}

/// Multiplies finished weights: those sixteen that are `at` in a step go to sum `at % SUMS`.
pub(super) struct Products<'a, S: Simd> {
    pub simd: S,
    pub factors: &'a [Sixteen],
    /// Where in the step the block begins, in sixteens.
    pub first: usize,
    pub sums: [F32x16<S>; SUMS],
}

impl<S: Simd> Sink<S> for Products<'_, S> {
    #[inline(always)]
    fn put(&mut self, at: usize, weights: F32x16<S>) {
        let sum = (self.first + at) % SUMS;
        self.sums[sum] = self.factors[at].load(self.simd).fma(weights, self.sums[sum]);
    }
}
