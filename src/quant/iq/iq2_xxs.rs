//! `IQ2_XXS`: `w = d*(sc[j] + 1/2)/4 * +-g`, g in {8, 25, 43}, 8 sub-blocks `j` of 32; 2.0625 bits per weight. Layout: ggml's
//! `block_iq2_xxs`.
//!
//! ```text
//! 0        2                                                                           66
//! | d: f16 | 8 x (4 points: u8 | u32: 4 x 7 sign bits, then 4 bits sc)                 |
//! ```
//!
//! A point is one of 256, and gives the magnitudes of 8 weights. The number of minus signs of a point is even.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{IQ2_VALUES, expand, grids, signed, signs};
use crate::quant::block::{Block, Dequantize, Half};
use crate::simd::{F32x16, Simd};

/// The bytes of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct IQ2_XXS {
    d: Half,
    sub_blocks: [SubBlock; 8],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct SubBlock {
    points: [u8; 4],
    signs_and_scale: [u8; 4],
}

impl Block for IQ2_XXS {
    const LEN: usize = super::LEN;
}

static POINTS: [[u8; 8]; 256] = expand(&grids::IQ2_XXS, IQ2_VALUES);

impl Dequantize for IQ2_XXS {
    #[inline(always)]
    fn dequantize<S: Simd>(simd: S, blocks: &[IQ2_XXS], weights: &mut [f32]) {
        for (block, weights) in blocks.iter().zip(weights.as_chunks_mut::<256>().0) {
            let d = block.d.to_f32(simd);
            let (chunks, _) = weights.as_chunks_mut::<16>();
            for (j, sub_block) in block.sub_blocks.iter().enumerate() {
                let bits = u32::from_le_bytes(sub_block.signs_and_scale);
                let scale = F32x16::splat(simd, d * (0.5 + (bits >> 28) as f32) * 0.25);
                for half in 0..2 {
                    let points = [2 * half, 2 * half + 1].map(|i| POINTS[usize::from(sub_block.points[i])]);
                    let signs = [2 * half, 2 * half + 1].map(|i| signs::EVEN[(bits >> (7 * i) & 127) as usize]);
                    signed(simd, scale, points, signs).store(&mut chunks[2 * j + half]);
                }
            }
        }
    }
}
