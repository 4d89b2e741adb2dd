//! `Q5_1`: `w = d*q + m`, q in 0..=31; 6 bits per weight. Layout: ggml's `block_q5_1`.
//!
//! ```text
//! 0        2        4                 8                                24
//! | d: f16 | m: f16 | qh: fifth bits  | qs: 16 x (low, high half)      |
//! ```

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::weighted::{Affine, Row};
use super::{affine_bound, fifth_bits, from_fifth_bits, from_nibbles, halves, inverse, nibbles, range, to_byte};
use crate::quant::block::{Block, Dequantize, Half, Quantize};
use crate::quant::lattice::{Assemble, Lattice, Levels, Mins, Parts, SubScales};
use crate::quant::sink::Sink;
use crate::simd::{F32x16, I32x16, Simd};

/// The bytes of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct Q5_1 {
    d: Half,
    m: Half,
    qh: [u8; 4],
    qs: [u8; 16],
}

impl Block for Q5_1 {
    const LEN: usize = 32;
}

impl Dequantize for Q5_1 {
    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, to: &mut impl Sink<S>) {
        let (d, m) = (self.d.splat(simd), self.m.splat(simd));
        let ([q0, q1], [h0, h1]) = (from_nibbles(simd, &self.qs), from_fifth_bits(simd, self.qh));
        to.put(0, (q0 | h0).to_float() * d + m);
        to.put(1, (q1 | h1).to_float() * d + m);
    }

    #[inline(always)]
    fn bound<S: Simd>(&self, simd: S) -> f32 {
        affine_bound(simd, self.d, self.m, 31.0)
    }
}

impl Quantize for Q5_1 {
    const USES_IMPORTANCE: bool = true;

    #[inline(always)]
    fn quantize<S: Simd>(simd: S, weights: &[f32], importance: Option<&[f32]>, blocks: &mut [Q5_1]) {
        if let Some(row) = Row::new(weights, importance) {
            return row.affine(simd, blocks);
        }
        for (block, weights) in blocks.iter_mut().zip(weights.as_chunks::<32>().0) {
            let (min, max) = range(simd, weights);
            let d = (max - min) / 31.0;
            let (id, origin, half) = (F32x16::splat(simd, inverse(d)), F32x16::splat(simd, min), F32x16::splat(simd, 0.5));
            let [x0, x1] = halves(simd, weights);
            *block = Q5_1::pack(simd, d, min, [to_byte((x0 - origin) * id + half), to_byte((x1 - origin) * id + half)]);
        }
    }

    #[inline(always)]
    fn is_sound(&self) -> bool {
        self.d.is_finite() && self.m.is_finite()
    }
}

impl Affine for Q5_1 {
    const Q_MAX: i32 = 31;

    #[inline(always)]
    fn pack<S: Simd>(simd: S, d: f32, m: f32, [q0, q1]: [I32x16<S>; 2]) -> Q5_1 {
        Q5_1 { d: Half::new(simd, d), m: Half::new(simd, m), qh: fifth_bits(q0, q1), qs: nibbles(q0, q1) }
    }
}

impl Assemble for Q5_1 {
    const LATTICE: Lattice =
        Lattice { block_len: 32, sub_block_len: 32, levels: Levels::Integers(0, 31), scales: SubScales::One, mins: Mins::Free };

    #[inline(always)]
    fn assemble<S: Simd>(simd: S, parts: &Parts) -> Q5_1 {
        Q5_1::pack(simd, parts.d, -parts.dmin, [parts.sixteen(simd, 0), parts.sixteen(simd, 1)])
    }
}
