//! `IQ1_S`: `w = d*(2*sc[j] + 1) * (g +- 1/8)`, g in {-1, 0, 1}, 8 sub-blocks `j` of 32; 1.5625 bits per weight. Layout: ggml's
//! `block_iq1_s`.
//!
//! ```text
//! 0        2                       34                                                              50
//! | d: f16 | points: 32 x 8 bits   | 8 x u16: 4 x 3 upper bits of the points, 3 bits sc, 1 bit -   |
//! ```
//!
//! A point is one of 2048, and gives the values of 8 weights. The last bit is set where 1/8 is subtracted.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{IQ1_VALUES, expand, grids, shifted};
use crate::quant::block::{Block, Dequantize, Half};
use crate::simd::{F32x16, Simd};

/// The bytes of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct IQ1_S {
    d: Half,
    points: [[u8; 4]; 8],
    qh: [[u8; 2]; 8],
}

impl Block for IQ1_S {
    const LEN: usize = super::LEN;
}

/// The points that IQ1_S and IQ1_M share.
pub(super) static POINTS: [[u8; 8]; 2048] = expand(&grids::IQ1_S, IQ1_VALUES);

impl Dequantize for IQ1_S {
    #[inline(always)]
    fn dequantize<S: Simd>(simd: S, blocks: &[IQ1_S], weights: &mut [f32]) {
        for (block, weights) in blocks.iter().zip(weights.as_chunks_mut::<256>().0) {
            let d = block.d.to_f32(simd);
            let (chunks, _) = weights.as_chunks_mut::<16>();
            for j in 0..8 {
                let bits = u16::from_le_bytes(block.qh[j]);
                let scale = F32x16::splat(simd, d * f32::from(2 * (bits >> 12 & 7) + 1));
                let down = bits >> 15 == 1;
                for half in 0..2 {
                    let points = [2 * half, 2 * half + 1]
                        .map(|i| POINTS[usize::from(block.points[j][i]) | usize::from(bits >> (3 * i) & 7) << 8]);
                    shifted(simd, scale, points, [down; 2]).store(&mut chunks[2 * j + half]);
                }
            }
        }
    }
}
