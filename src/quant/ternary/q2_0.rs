//! `Q2_0`: `w = d*(q - 1)`, q in 0..=3; 2.25 bits per weight. Layout: ggml's `block_q2_0`.
//!
//! ```text
//! 0        2                          18
//! | d: f16 | qs: 16 x four of 2 bits  |
//! ```
//!
//! `d` is the largest magnitude, so quantizing as ggml does makes trits only; calibrated rounding uses all four, and `d` of either sign.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{largest_quant, scale};
use crate::quant::block::{Block, Dequantize, Half, Quantize};
use crate::quant::lattice::{Assemble, Lattice, Levels, Mins, Parts, SubScales};
use crate::quant::sink::Sink;
use crate::simd::{F32x16, I32x16, Simd};

/// The bytes of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct Q2_0 {
    d: Half,
    qs: [[u8; 4]; 4],
}

impl Block for Q2_0 {
    const LEN: usize = 64;
}

impl Dequantize for Q2_0 {
    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, to: &mut impl Sink<S>) {
        let d = self.d.splat(simd);
        for (j, qs) in self.qs.iter().enumerate() {
            let q = I32x16::load_u8(simd, &unpacked(*qs));
            to.put(j, (q + -1).to_float() * d);
        }
    }

    #[inline(always)]
    fn bound<S: Simd>(&self, simd: S) -> f32 {
        self.d.magnitude(simd) * largest_quant(self.qs.as_bytes())
    }
}

impl Quantize for Q2_0 {
    #[inline(always)]
    fn quantize<S: Simd>(simd: S, weights: &[f32], _importance: Option<&[f32]>, blocks: &mut [Q2_0]) {
        for (block, weights) in blocks.iter_mut().zip(weights.as_chunks::<64>().0) {
            let (d, inverse) = scale(simd, weights);
            block.d = Half::new(simd, d);
            for (qs, chunk) in block.qs.iter_mut().zip(weights.as_chunks::<16>().0) {
                let q = (F32x16::load(simd, chunk) * inverse).round_half_away() + 1;
                *qs = packed(q.max(0).min(3).to_u8());
            }
        }
    }

    #[inline(always)]
    fn is_sound(&self) -> bool {
        self.d.is_finite()
    }
}

impl Assemble for Q2_0 {
    const LATTICE: Lattice =
        Lattice { block_len: 64, sub_block_len: 64, levels: Levels::Integers(-1, 2), scales: SubScales::One, mins: Mins::None };

    #[inline(always)]
    fn assemble<S: Simd>(simd: S, parts: &Parts) -> Q2_0 {
        let mut block = Q2_0 { d: Half::new(simd, parts.d), qs: [[0; 4]; 4] };
        for j in 0..4 {
            block.qs[j] = packed((parts.sixteen(simd, j) + 1).to_u8());
        }
        block
    }
}

/// Sixteen values of two bits, four to a byte, the first in the lowest bits.
#[inline(always)]
fn packed(q: [u8; 16]) -> [u8; 4] {
    let pack = |eight: u64| -> u16 {
        let pairs = (eight | eight >> 6) & 0x000f_000f_000f_000f;
        let fours = (pairs | pairs >> 12) & 0x0000_00ff_0000_00ff;
        (fours | fours >> 24) as u16
    };
    let q = u128::from_le_bytes(q);
    (u32::from(pack(q as u64)) | u32::from(pack((q >> 64) as u64)) << 16).to_le_bytes()
}

/// Undoes [`packed`].
#[inline(always)]
fn unpacked(qs: [u8; 4]) -> [u8; 16] {
    let unpack = |sixteen_bits: u32| -> u64 {
        let fours = u64::from(sixteen_bits);
        let fours = (fours | fours << 24) & 0x0000_00ff_0000_00ff;
        let pairs = (fours | fours << 12) & 0x000f_000f_000f_000f;
        (pairs | pairs << 6) & 0x0303_0303_0303_0303
    };
    let qs = u32::from_le_bytes(qs);
    (u128::from(unpack(qs & 0xffff)) | u128::from(unpack(qs >> 16)) << 64).to_le_bytes()
}
