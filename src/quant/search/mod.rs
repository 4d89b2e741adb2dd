//! The searches that formats share: for every sub-block some twenty scales are tried and the one of least weighted error is kept.
//! Knows nothing of how a format lays out its bytes.
//!
//! A search runs in sixteen lanes, each doing ggml's algorithm on its own sub-block in ggml's order of operations, so the bytes are
//! ggml's and neither machine nor batch shows in them. The searches never store the quants where a quant is a function of the winning
//! scale.

pub(super) mod affine;
pub(super) mod positive;
pub(super) mod symmetric;

use crate::simd::{F32x16, Simd};

/// Weights per super-block of the K and IQ formats.
pub(super) const SUPER_BLOCK_LEN: usize = 256;

/// What is largest in a run counts as zero below this.
pub(super) const ALL_ZERO: f32 = 1e-15;

/// Sixteen sub-blocks side by side: weights, and how much each counts.
#[derive(Clone, Copy)]
pub(super) struct Lanes<S: Simd, const N: usize> {
    pub x: [F32x16<S>; N],
    pub w: [F32x16<S>; N],
}

impl<S: Simd, const N: usize> Lanes<S, N> {
    /// A weight counts as much as its importance times `sqrt(sigma2 + x*x)`. `weights` and `importance` are `[16 * N]`.
    #[inline(always)]
    pub fn weighted(simd: S, weights: &[f32], importance: &[f32], sigma2: F32x16<S>) -> Self {
        let x: [F32x16<S>; N] = lanes_of_sub_blocks(simd, weights);
        let mut w: [F32x16<S>; N] = lanes_of_sub_blocks(simd, importance);
        for i in 0..N {
            w[i] = w[i] * (sigma2 + x[i] * x[i]).sqrt();
        }
        Lanes { x, w }
    }
}

/// Sixteen sub-blocks of `N` weights side by side: lane `j` of vector `i` is weight `i` of sub-block `j`. `weights` is `[16 * N]`.
#[inline(always)]
pub(super) fn lanes_of_sub_blocks<S: Simd, const N: usize>(simd: S, weights: &[f32]) -> [F32x16<S>; N] {
    let (chunks, _) = weights.as_chunks::<16>();
    assert!(N.is_multiple_of(16) && chunks.len() == N);
    let zero = F32x16::splat(simd, 0.0);
    let mut lanes = [zero; N];
    for part in 0..N / 16 {
        let mut rows = [zero; 16];
        for (j, row) in rows.iter_mut().enumerate() {
            *row = F32x16::load(simd, &chunks[j * (N / 16) + part]);
        }
        lanes[16 * part..][..16].copy_from_slice(&F32x16::transpose(rows));
    }
    lanes
}

/// The sums of the squares of up to sixteen super-blocks of 256, each added from its first weight to its last.
#[inline(always)]
pub(super) fn sums_of_squares<S: Simd>(simd: S, weights: &[f32]) -> [f32; 16] {
    let (chunks, _) = weights.as_chunks::<16>();
    let zero = F32x16::splat(simd, 0.0);
    let mut sums = zero;
    for part in 0..SUPER_BLOCK_LEN / 16 {
        let mut rows = [zero; 16];
        for (row, super_block) in rows.iter_mut().zip(chunks.chunks_exact(SUPER_BLOCK_LEN / 16)) {
            *row = F32x16::load(simd, &super_block[part]);
        }
        for x in F32x16::transpose(rows) {
            sums = sums + x * x;
        }
    }
    sums.to_array()
}

/// One float as [`F32x16::nearest_int_in`] rounds it.
#[inline(always)]
pub(super) fn nearest_int(x: f32) -> i32 {
    ((x + 12_582_912.0).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}
