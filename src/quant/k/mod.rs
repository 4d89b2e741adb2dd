//! The K formats: super-blocks of 256 weights, cut into sub-blocks whose scales are themselves quantized.
//!
//! How the scales are found is in `search/`.

mod affine;
mod q2_k;
mod q3_k;
mod q4_k;
mod q5_k;
mod q6_k;
mod q8_k;

pub(super) use q2_k::Q2_K;
pub(super) use q3_k::Q3_K;
pub(super) use q4_k::Q4_K;
pub(super) use q5_k::Q5_K;
pub(super) use q6_k::Q6_K;
pub(super) use q8_k::Q8_K;

use super::search::SUPER_BLOCK_LEN as LEN;
use crate::simd::{I32x16, Simd};

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
