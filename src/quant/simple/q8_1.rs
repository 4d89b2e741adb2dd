//! `Q8_1`: `w = d*q`, q in -127..=127; 9 bits per weight. Layout: ggml's `block_q8_1`, in which activations meet Q4_1 and Q5_1.
//!
//! ```text
//! 0        2        4                                36
//! | d: f16 | s: f16 | qs: 32 x i8                    |
//! ```
//!
//! `s` is `d` times the sum of the quants: what the other side's minimum is multiplied with.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{halves, inverse};
use crate::quant::block::{Block, Dequantize, Half, Quantize, magnitude};
use crate::quant::sink::Sink;
use crate::simd::{F32x16, I32x16, Simd};

/// The bytes of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct Q8_1 {
    d: Half,
    s: Half,
    qs: [[u8; 16]; 2],
}

impl Block for Q8_1 {
    const LEN: usize = 32;
}

impl Dequantize for Q8_1 {
    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, to: &mut impl Sink<S>) {
        let d = self.d.splat(simd);
        let (q0, q1) = (I32x16::load_i8(simd, &self.qs[0]).to_float(), I32x16::load_i8(simd, &self.qs[1]).to_float());
        to.put(0, q0 * d);
        to.put(1, q1 * d);
    }

    #[inline(always)]
    fn bound<S: Simd>(&self, simd: S) -> f32 {
        self.d.magnitude(simd) * 128.0
    }
}

impl Quantize for Q8_1 {
    #[inline(always)]
    fn quantize<S: Simd>(simd: S, weights: &[f32], _importance: Option<&[f32]>, blocks: &mut [Q8_1]) {
        for (block, weights) in blocks.iter_mut().zip(weights.as_chunks::<32>().0) {
            let d = magnitude(simd, weights) / 127.0;
            let id = F32x16::splat(simd, inverse(d));
            let [x0, x1] = halves(simd, weights);
            block.d = Half::new(simd, d);
            block.qs = [(x0 * id).round_half_away().to_u8(), (x1 * id).round_half_away().to_u8()];
            let sum: i32 = block.qs.as_flattened().iter().map(|&q| i32::from(q as i8)).sum();
            block.s = Half::new(simd, sum as f32 * d);
        }
    }

    #[inline(always)]
    fn is_sound(&self) -> bool {
        self.d.is_finite() && self.s.is_finite()
    }
}
