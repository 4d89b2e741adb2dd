//! `IQ2_S`: `w = d*(sc[j] + 1/2)/4 * +-g`, g in {8, 25, 43}, 16 sub-blocks `j` of 16; 2.5625 bits per weight. Layout: ggml's
//! `block_iq2_s`.
//!
//! ```text
//! 0        2                       34                  66                     74                                 82
//! | d: f16 | points: 32 x 8 bits   | signs: 32 x 8     | qh: 32 x 2 bits      | sc: 8 x (2j low, 2j+1 high half) |
//! ```
//!
//! A point is one of 1024, and gives the magnitudes of 8 weights; `qh` holds the upper two bits of four points a byte.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{IQ2_VALUES, expand, grids, signed};
use crate::quant::block::{Block, Dequantize, Half};
use crate::simd::{F32x16, Simd};

/// The bytes of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct IQ2_S {
    d: Half,
    points: [[u8; 2]; 16],
    signs: [[u8; 2]; 16],
    qh: [u8; 8],
    scales: [u8; 8],
}

impl Block for IQ2_S {
    const LEN: usize = super::LEN;
}

static POINTS: [[u8; 8]; 1024] = expand(&grids::IQ2_S, IQ2_VALUES);

impl Dequantize for IQ2_S {
    #[inline(always)]
    fn dequantize<S: Simd>(simd: S, blocks: &[IQ2_S], weights: &mut [f32]) {
        for (block, weights) in blocks.iter().zip(weights.as_chunks_mut::<256>().0) {
            let d = block.d.to_f32(simd);
            let (chunks, _) = weights.as_chunks_mut::<16>();
            for j in 0..16 {
                let sc = block.scales[j / 2] >> (4 * (j % 2)) & 15;
                let scale = F32x16::splat(simd, d * (0.5 + f32::from(sc)) * 0.25);
                let upper = usize::from(block.qh[j / 2]) >> (4 * (j % 2));
                let low = block.points[j].map(usize::from);
                let points = [POINTS[low[0] | (upper & 3) << 8], POINTS[low[1] | (upper & 12) << 6]];
                signed(simd, scale, points, block.signs[j]).store(&mut chunks[j]);
            }
        }
    }
}
