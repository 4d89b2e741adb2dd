//! `Q8_K`: `w = d*q`, q in -127..=127; 9.125 bits per weight. Layout: ggml's `block_q8_K`, in which activations meet the K formats.
//!
//! ```text
//! 0        4                                260                  292
//! | d: f32 | qs: 256 x i8                   | sums: 16 x i16     |
//! ```
//!
//! `sums` are of 16 quants each: what the other side's minimums are multiplied with.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::quant::block::{Block, Dequantize, Quantize, magnitude};
use crate::quant::sink::Sink;
use crate::simd::{F32x16, I32x16, Simd};

/// The bytes of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct Q8_K {
    d: [u8; 4],
    qs: [[u8; 16]; 16],
    sums: [[u8; 2]; 16],
}

const ZERO: Q8_K = Q8_K { d: [0; 4], qs: [[0; 16]; 16], sums: [[0; 2]; 16] };

impl Block for Q8_K {
    const LEN: usize = super::LEN;
}

impl Dequantize for Q8_K {
    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, to: &mut impl Sink<S>) {
        let d = F32x16::splat(simd, f32::from_le_bytes(self.d));
        for (j, qs) in self.qs.iter().enumerate() {
            to.put(j, d * I32x16::load_i8(simd, qs).to_float());
        }
    }
}

impl Quantize for Q8_K {
    #[inline(always)]
    fn quantize<S: Simd>(simd: S, weights: &[f32], _importance: Option<&[f32]>, blocks: &mut [Q8_K]) {
        for (block, weights) in blocks.iter_mut().zip(weights.as_chunks::<256>().0) {
            *block = ZERO;
            let max = largest(simd, weights);
            if max == 0.0 {
                continue;
            }
            let inverse = -127.0 / max;
            block.d = (1.0 / inverse).to_le_bytes();
            let inverse = F32x16::splat(simd, inverse);
            for (j, chunk) in weights.as_chunks::<16>().0.iter().enumerate() {
                // Where a subnormal `max` makes the inverse infinite, ggml keeps the low byte of what its rounding gives.
                let q = (F32x16::load(simd, chunk) * inverse).nearest_int_in(-(1 << 22), 127);
                block.qs[j] = q.truncate().to_u8();
                let sum: i16 = block.qs[j].iter().map(|&q| i16::from(q as i8)).sum();
                block.sums[j] = sum.to_le_bytes();
            }
        }
    }

    #[inline(always)]
    fn is_sound(&self) -> bool {
        f32::from_le_bytes(self.d).is_finite()
    }
}

/// The weight of largest magnitude with its sign, the first of equals.
#[inline(always)]
fn largest<S: Simd>(simd: S, weights: &[f32; 256]) -> f32 {
    let max = F32x16::splat(simd, magnitude(simd, weights));
    for chunk in weights.as_chunks::<16>().0 {
        let found = F32x16::load(simd, chunk).abs().eq(max).bits();
        if found != 0 {
            return chunk[found.trailing_zeros() as usize];
        }
    }
    0.0
}
