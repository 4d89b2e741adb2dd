//! `Q8_0`: `w = d*q`, q in -127..=127; 8.5 bits per weight. Layout: ggml's `block_q8_0`.
//!
//! ```text
//! 0        2                                34
//! | d: f16 | qs: 32 x i8                    |
//! ```

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{halves, inverse};
use crate::quant::block::{Block, Dequantize, Half, Quantize};
use crate::quant::lattice::{Assemble, Lattice, Levels, Mins, Parts, SubScales};
use crate::quant::sink::Sink;
use crate::simd::{F32x16, I32x16, Simd};

/// The bytes of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct Q8_0 {
    d: Half,
    qs: [[u8; 16]; 2],
}

impl Block for Q8_0 {
    const LEN: usize = 32;
}

impl Dequantize for Q8_0 {
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

impl Quantize for Q8_0 {
    #[inline(always)]
    fn quantize<S: Simd>(simd: S, weights: &[f32], _importance: Option<&[f32]>, blocks: &mut [Q8_0]) {
        for (block, weights) in blocks.iter_mut().zip(weights.as_chunks::<32>().0) {
            let [x0, x1] = halves(simd, weights);
            let d = x0.abs().max(x1.abs()).reduce_max() / 127.0;
            let id = F32x16::splat(simd, inverse(d));
            block.d = Half::new(simd, d);
            block.qs = [(x0 * id).round_half_away().to_u8(), (x1 * id).round_half_away().to_u8()];
        }
    }

    #[inline(always)]
    fn is_sound(&self) -> bool {
        self.d.is_finite()
    }
}

impl Assemble for Q8_0 {
    const LATTICE: Lattice =
        Lattice { block_len: 32, sub_block_len: 32, levels: Levels::Integers(-127, 127), scales: SubScales::One, mins: Mins::None };

    #[inline(always)]
    fn assemble<S: Simd>(simd: S, parts: &Parts) -> Q8_0 {
        Q8_0 { d: Half::new(simd, parts.d), qs: [parts.sixteen(simd, 0).to_u8(), parts.sixteen(simd, 1).to_u8()] }
    }
}
