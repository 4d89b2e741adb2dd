//! `Q5_0`: `w = d*(q - 16)`, q in 0..=31; 5.5 bits per weight. Layout: ggml's `block_q5_0`.
//!
//! ```text
//! 0        2                 6                                22
//! | d: f16 | qh: fifth bits  | qs: 16 x (low, high half)      |
//! ```
//!
//! `d` is the weight of largest magnitude divided by -16, so that this weight is exact.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::weighted::{Row, Symmetric};
use super::{fifth_bits, from_fifth_bits, from_nibbles, halves, inverse, largest, nibbles, to_byte};
use crate::quant::block::{Block, Dequantize, Half, Quantize};
use crate::quant::lattice::{Assemble, Lattice, Levels, Mins, Parts, SubScales};
use crate::quant::sink::Sink;
use crate::simd::{F32x16, I32x16, Simd};

/// The bytes of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct Q5_0 {
    d: Half,
    qh: [u8; 4],
    qs: [u8; 16],
}

impl Block for Q5_0 {
    const LEN: usize = 32;
}

impl Dequantize for Q5_0 {
    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, to: &mut impl Sink<S>) {
        let d = self.d.splat(simd);
        let ([q0, q1], [h0, h1]) = (from_nibbles(simd, &self.qs), from_fifth_bits(simd, self.qh));
        to.put(0, ((q0 | h0) + -16).to_float() * d);
        to.put(1, ((q1 | h1) + -16).to_float() * d);
    }

    #[inline(always)]
    fn bound<S: Simd>(&self, simd: S) -> f32 {
        self.d.magnitude(simd) * 16.0
    }
}

impl Quantize for Q5_0 {
    const USES_IMPORTANCE: bool = true;

    #[inline(always)]
    fn quantize<S: Simd>(simd: S, weights: &[f32], importance: Option<&[f32]>, blocks: &mut [Q5_0]) {
        if let Some(row) = Row::new(weights, importance) {
            return row.symmetric(simd, blocks);
        }
        for (block, weights) in blocks.iter_mut().zip(weights.as_chunks::<32>().0) {
            let d = largest(simd, weights) / -16.0;
            let (id, half) = (F32x16::splat(simd, inverse(d)), F32x16::splat(simd, 16.5));
            let [x0, x1] = halves(simd, weights);
            *block = Q5_0::pack(simd, d, [to_byte(x0 * id + half).min(31), to_byte(x1 * id + half).min(31)]);
        }
    }

    #[inline(always)]
    fn is_sound(&self) -> bool {
        self.d.is_finite()
    }
}

impl Symmetric for Q5_0 {
    const N: i32 = 16;

    #[inline(always)]
    fn pack<S: Simd>(simd: S, d: f32, [q0, q1]: [I32x16<S>; 2]) -> Q5_0 {
        Q5_0 { d: Half::new(simd, d), qh: fifth_bits(q0, q1), qs: nibbles(q0, q1) }
    }
}

impl Assemble for Q5_0 {
    const LATTICE: Lattice =
        Lattice { block_len: 32, sub_block_len: 32, levels: Levels::Integers(-16, 15), scales: SubScales::One, mins: Mins::None };

    #[inline(always)]
    fn assemble<S: Simd>(simd: S, parts: &Parts) -> Q5_0 {
        Q5_0::pack(simd, parts.d, [parts.sixteen(simd, 0) + 16, parts.sixteen(simd, 1) + 16])
    }
}
