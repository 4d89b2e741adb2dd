//! The K formats: super-blocks of 256 weights, cut into sub-blocks whose scales are themselves quantized.
//!
//! Quantizing is a search: for every sub-block some twenty scales are tried and the one of least weighted error is kept. The search
//! runs in sixteen lanes, each doing ggml's algorithm on its own sub-block in ggml's order of operations, so the bytes are ggml's
//! and neither machine nor batch shows in them. The searches never store the quants: a quant is a function of the winning scale.

pub(super) mod affine;
pub(super) mod positive;
mod q2_k;
mod q3_k;
mod q4_k;
mod q5_k;
mod q6_k;
mod q8_k;
pub(super) mod symmetric;

pub(super) use q2_k::Q2_K;
pub(super) use q3_k::Q3_K;
pub(super) use q4_k::Q4_K;
pub(super) use q5_k::Q5_K;
pub(super) use q6_k::Q6_K;
pub(super) use q8_k::Q8_K;

use crate::simd::{F32x16, I32x16, Simd};

/// Weights per super-block.
const LEN: usize = 256;

/// What is largest in a run counts as zero below this.
const ALL_ZERO: f32 = 1e-15;

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

/// The sums of the squares of up to sixteen super-blocks, each added from its first weight to its last.
#[inline(always)]
pub(super) fn sums_of_squares<S: Simd>(simd: S, weights: &[f32]) -> [f32; 16] {
    let (chunks, _) = weights.as_chunks::<16>();
    let zero = F32x16::splat(simd, 0.0);
    let mut sums = zero;
    for part in 0..LEN / 16 {
        let mut rows = [zero; 16];
        for (row, super_block) in rows.iter_mut().zip(chunks.chunks_exact(LEN / 16)) {
            *row = F32x16::load(simd, &super_block[part]);
        }
        for x in F32x16::transpose(rows) {
            sums = sums + x * x;
        }
    }
    sums.to_array()
}

/// The low two bits of the quants of sixteen sub-blocks of 16, as Q2_K and Q3_K hold them: each half of the super-block is four runs of 32
/// weights, and run `r` is bits `2r` and `2r+1` of the half's 32 bytes.
type TwoBits = [[[u8; 16]; 2]; 2];

/// `quants`: of sub-block `j`, of two bits.
#[inline(always)]
fn pack_two_bits<S: Simd>(quants: &[I32x16<S>; 16]) -> TwoBits {
    let mut packed = [[[0; 16]; 2]; 2];
    for half in 0..2 {
        for part in 0..2 {
            let [q0, q1, q2, q3] = [0, 1, 2, 3].map(|run| quants[8 * half + 2 * run + part]);
            packed[half][part] = (q0 | q1.shl::<2>() | q2.shl::<4>() | q3.shl::<6>()).to_u8();
        }
    }
    packed
}

/// Undoes [`pack_two_bits`].
#[inline(always)]
fn unpack_two_bits<S: Simd>(simd: S, packed: &TwoBits) -> [I32x16<S>; 16] {
    let mut quants = [I32x16::splat(simd, 0); 16];
    for half in 0..2 {
        for part in 0..2 {
            let mut rest = I32x16::load_u8(simd, &packed[half][part]);
            for run in 0..4 {
                quants[8 * half + 2 * run + part] = rest & 3;
                rest = rest.shr::<2>();
            }
        }
    }
    quants
}

/// One float as [`F32x16::nearest_int_in`] rounds it.
#[inline(always)]
pub(super) fn nearest_int(x: f32) -> i32 {
    ((x + 12_582_912.0).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}
