//! The same formats with importance: a search of the scale, and of the minimum, in which every error is weighted.
//!
//! The searches are those of `search/`, in sixteen lanes, each on its own block. A weight counts as much as its importance times
//! `sqrt(sigma2 + w^2)`, `sigma2` being the mean square of the row.

use super::halves;
use crate::quant::block::Block;
use crate::quant::search::{Lanes, affine, symmetric};
use crate::simd::{F32x16, I32x16, Simd};

/// Weights of the sixteen blocks that are searched at a time.
const GROUP_LEN: usize = 16 * 32;

/// A format of `w = d*(q - n)`.
pub(super) trait Symmetric: Block {
    /// Half the number of quants.
    const N: i32;
    fn pack<S: Simd>(simd: S, d: f32, quants: [I32x16<S>; 2]) -> Self;
}

/// A format of `w = d*q + m`.
pub(super) trait Affine: Block {
    /// The largest quant.
    const Q_MAX: i32;
    fn pack<S: Simd>(simd: S, d: f32, m: f32, quants: [I32x16<S>; 2]) -> Self;
}

/// A row with its importance.
pub(super) struct Row<'a> {
    weights: &'a [f32],
    importance: &'a [f32],
    sigma2: f32,
}

impl<'a> Row<'a> {
    /// `None` without importance, and where the sum of squares overflows: then some weight is more than a block can hold, and
    /// quantizing without importance shows which.
    #[inline(always)]
    pub fn new(weights: &'a [f32], importance: Option<&'a [f32]>) -> Option<Row<'a>> {
        let importance = importance?;
        // From the first weight to the last, as in ggml.
        let sigma2 = weights.iter().fold(0.0, |sum, w| sum + w * w) / weights.len() as f32;
        sigma2.is_finite().then_some(Row { weights, importance, sigma2 })
    }

    #[inline(always)]
    pub fn symmetric<S: Simd, B: Symmetric>(&self, simd: S, blocks: &mut [B]) {
        for (at, blocks) in blocks.chunks_mut(16).enumerate() {
            let [lanes] = self.lanes::<S, 1>(simd, at);
            let fit = symmetric::search(simd, &lanes.x, &lanes.w, B::N);
            let (scale, inverse) = (fit.scale.to_array(), fit.inverse.to_array());
            let (all, _) = self.weights[GROUP_LEN * at..].as_chunks::<32>();
            for (i, (block, weights)) in blocks.iter_mut().zip(all).enumerate() {
                let mut quants = [I32x16::splat(simd, 0); 2];
                // Where all weights are zero, ggml leaves zeros, not the quant that stands for zero.
                if inverse[i] != 0.0 {
                    for (quants, x) in quants.iter_mut().zip(halves(simd, weights)) {
                        *quants = (x * F32x16::splat(simd, inverse[i])).nearest_int_in(-B::N, B::N - 1).truncate() + B::N;
                    }
                }
                *block = B::pack(simd, scale[i], quants);
            }
        }
    }

    #[inline(always)]
    pub fn affine<S: Simd, B: Affine>(&self, simd: S, blocks: &mut [B]) {
        for (at, blocks) in blocks.chunks_mut(32).enumerate() {
            let fits = affine::search(simd, &self.lanes::<S, 2>(simd, at), &affine::Trials::weighted(B::Q_MAX));
            let (all, _) = self.weights[2 * GROUP_LEN * at..].as_chunks::<32>();
            for (fit, (blocks, all)) in fits.iter().zip(blocks.chunks_mut(16).zip(all.chunks(16))) {
                let (scale, min) = (fit.scale.to_array(), fit.min.to_array());
                let (inverse, origin) = (fit.inverse.to_array(), fit.origin.to_array());
                for (i, (block, weights)) in blocks.iter_mut().zip(all).enumerate() {
                    let (inverse, origin) = (F32x16::splat(simd, inverse[i]), F32x16::splat(simd, origin[i]));
                    let mut quants = [I32x16::splat(simd, 0); 2];
                    for (quants, x) in quants.iter_mut().zip(halves(simd, weights)) {
                        *quants = ((x - origin) * inverse).nearest_int_in(0, B::Q_MAX).truncate();
                    }
                    *block = B::pack(simd, scale[i], min[i], quants);
                }
            }
        }
    }

    /// `G` times sixteen blocks from block `16 * G * at`; lanes without a block work on zeros.
    #[inline(always)]
    fn lanes<S: Simd, const G: usize>(&self, simd: S, at: usize) -> [Lanes<S, 32>; G] {
        let start = G * GROUP_LEN * at;
        let len = (self.weights.len() - start).min(G * GROUP_LEN);
        let (mut x, mut columns) = ([[0.0; GROUP_LEN]; G], [[0.0; GROUP_LEN]; G]);
        x.as_flattened_mut()[..len].copy_from_slice(&self.weights[start..][..len]);
        columns.as_flattened_mut()[..len].copy_from_slice(&self.importance[start..][..len]);
        let sigma2 = F32x16::splat(simd, self.sigma2);
        let mut groups = [Lanes::weighted(simd, &x[0], &columns[0], sigma2); G];
        for g in 1..G {
            groups[g] = Lanes::weighted(simd, &x[g], &columns[g], sigma2);
        }
        groups
    }
}
