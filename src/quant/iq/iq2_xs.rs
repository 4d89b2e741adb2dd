//! `IQ2_XS`: `w = d*(sc[j] + 1/2)/4 * +-g`, g in {8, 25, 43}, 16 sub-blocks `j` of 16; 2.3125 bits per weight. Layout: ggml's
//! `block_iq2_xs`.
//!
//! ```text
//! 0        2                                             66                                     74
//! | d: f16 | 32 x u16: 9 bits point, then 7 sign bits    | sc: 8 x (2j low, 2j+1 high half)     |
//! ```
//!
//! A point is one of 512, and gives the magnitudes of 8 weights. The number of minus signs of a point is even.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{IQ2_VALUES, expand, grids, signed, signs};
use crate::quant::block::{Block, Dequantize, Half};
use crate::simd::{F32x16, Simd};

/// The bytes of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct IQ2_XS {
    d: Half,
    points_and_signs: [[[u8; 2]; 2]; 16],
    scales: [u8; 8],
}

impl Block for IQ2_XS {
    const LEN: usize = super::LEN;
}

static POINTS: [[u8; 8]; 512] = expand(&grids::IQ2_XS, IQ2_VALUES);

impl Dequantize for IQ2_XS {
    #[inline(always)]
    fn dequantize<S: Simd>(simd: S, blocks: &[IQ2_XS], weights: &mut [f32]) {
        for (block, weights) in blocks.iter().zip(weights.as_chunks_mut::<256>().0) {
            let d = block.d.to_f32(simd);
            let (chunks, _) = weights.as_chunks_mut::<16>();
            for j in 0..16 {
                let sc = block.scales[j / 2] >> (4 * (j % 2)) & 15;
                let scale = F32x16::splat(simd, d * (0.5 + f32::from(sc)) * 0.25);
                let both = block.points_and_signs[j].map(|bytes| usize::from(u16::from_le_bytes(bytes)));
                let points = both.map(|bits| POINTS[bits & 511]);
                let signs = both.map(|bits| signs::EVEN[bits >> 9]);
                signed(simd, scale, points, signs).store(&mut chunks[j]);
            }
        }
    }
}
