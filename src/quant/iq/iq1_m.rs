//! `IQ1_M`: `w = d*(2*sc[j] + 1) * (g +- 1/8)`, g in {-1, 0, 1}, 16 sub-blocks `j` of 16; 1.75 bits per weight. Layout: ggml's
//! `block_iq1_m`.
//!
//! ```text
//! 0                       32                                                      48                                   56
//! | points: 32 x 8 bits   | qh: 32 x 4 bits: 3 upper bits of the point, 1 bit -   | 4 x u16: 4 x 3 bits sc, 4 bits d   |
//! ```
//!
//! A point is one of IQ1_S's 2048, and gives the values of 8 weights. The last bit is set where 1/8 is subtracted. The half `d` is cut
//! into four, its lowest bits first.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{iq1_s, shifted};
use crate::quant::block::{Block, Dequantize, Half};
use crate::simd::{F32x16, Simd};

/// The bytes of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct IQ1_M {
    points: [[u8; 2]; 16],
    qh: [u8; 16],
    scales_and_d: [[u8; 2]; 4],
}

impl Block for IQ1_M {
    const LEN: usize = super::LEN;
}

impl IQ1_M {
    #[inline(always)]
    fn d(&self) -> Half {
        let [a, b, c, d] = self.scales_and_d.map(|bytes| bytes[1] >> 4);
        Half([a | b << 4, c | d << 4])
    }
}

impl Dequantize for IQ1_M {
    #[inline(always)]
    fn dequantize<S: Simd>(simd: S, blocks: &[IQ1_M], weights: &mut [f32]) {
        for (block, weights) in blocks.iter().zip(weights.as_chunks_mut::<256>().0) {
            let d = block.d().to_f32(simd);
            let (chunks, _) = weights.as_chunks_mut::<16>();
            for j in 0..16 {
                let sc = u16::from_le_bytes(block.scales_and_d[j / 4]) >> (3 * (j % 4)) & 7;
                let scale = F32x16::splat(simd, d * f32::from(2 * sc + 1));
                let upper = usize::from(block.qh[j]);
                let low = block.points[j].map(usize::from);
                let points = [iq1_s::POINTS[low[0] | (upper & 7) << 8], iq1_s::POINTS[low[1] | (upper & 0x70) << 4]];
                shifted(simd, scale, points, [upper & 8 != 0, upper & 0x80 != 0]).store(&mut chunks[j]);
            }
        }
    }
}
