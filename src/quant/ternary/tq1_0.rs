//! `TQ1_0`: `w = d*t`, t in -1, 0, 1; 1.6875 bits per weight. Layout: ggml's `block_tq1_0`.
//!
//! ```text
//! 0                        32                        48                    52       54
//! | 5 x 32 weights in 32   | 5 x 16 weights in 16    | 4 x 4 weights in 4  | d: f16 |
//! ```
//!
//! A byte holds five weights that lie 32 (16, 4) apart, as the digits `t + 1` of a number in base 3: the first weight is the highest
//! digit, and where there are only four the last digit is 0. The byte is that number in 256ths of `3^5`, rounded up, so that the
//! digits come off the top: three times the byte is the next digit times 256, and the rest.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{scale, trits};
use crate::quant::block::{Block, Dequantize, Half, Quantize};
use crate::quant::lattice::{Assemble, Lattice, Levels, Mins, Parts, SubScales};
use crate::quant::sink::Sink;
use crate::simd::{F32x16, I32x16, Simd};

/// The bytes of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct TQ1_0 {
    qs: [[u8; 16]; 3],
    qh: [u8; 4],
    d: Half,
}

/// Where the five chunks of 16 weights begin that each of `qs` holds, and how many chunks they lie apart.
const CHUNKS: [(usize, usize); 3] = [(0, 2), (1, 2), (10, 1)];

impl Block for TQ1_0 {
    const LEN: usize = 256;
}

impl Dequantize for TQ1_0 {
    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, to: &mut impl Sink<S>) {
        let d = self.d.splat(simd);
        for (qs, (first, apart)) in self.qs.iter().zip(CHUNKS) {
            let mut rest = I32x16::load_u8(simd, qs);
            for n in 0..5 {
                let digit = rest + rest + rest;
                to.put(first + n * apart, (digit.shr::<8>() + -1).to_float() * d);
                rest = digit & 0xff;
            }
        }
        // Four lanes are four digits of four bytes: each digit's place is reached by a multiplication.
        let mut rest = [0; 16];
        for n in 0..4 {
            for j in 0..4 {
                rest[4 * n + j] = self.qh[j].wrapping_mul([1, 3, 9, 27][n]);
            }
        }
        let rest = I32x16::load_u8(simd, &rest);
        to.put(15, ((rest + rest + rest).shr::<8>() + -1).to_float() * d);
    }

    #[inline(always)]
    fn bound<S: Simd>(&self, simd: S) -> f32 {
        self.d.magnitude(simd)
    }
}

impl Quantize for TQ1_0 {
    #[inline(always)]
    fn quantize<S: Simd>(simd: S, weights: &[f32], _importance: Option<&[f32]>, blocks: &mut [TQ1_0]) {
        for (block, weights) in blocks.iter_mut().zip(weights.as_chunks::<256>().0) {
            let (d, inverse) = scale(simd, weights);
            let mut digits = [I32x16::splat(simd, 0); 16];
            for (digits, chunk) in digits.iter_mut().zip(weights.as_chunks::<16>().0) {
                *digits = trits(F32x16::load(simd, chunk), inverse);
            }
            *block = pack(simd, d, &digits);
        }
    }

    #[inline(always)]
    fn is_sound(&self) -> bool {
        self.d.is_finite()
    }
}

/// `digits`: of each weight, `t + 1`.
#[inline(always)]
fn pack<S: Simd>(simd: S, d: f32, digits: &[I32x16<S>; 16]) -> TQ1_0 {
    let mut block = TQ1_0 { qs: [[0; 16]; 3], qh: [0; 4], d: Half::new(simd, d) };
    for (qs, (first, apart)) in block.qs.iter_mut().zip(CHUNKS) {
        let mut number = I32x16::splat(simd, 0);
        for n in 0..5 {
            number = number + number + number + digits[first + n * apart];
        }
        *qs = fraction(simd, number).to_u8();
    }
    let t = digits[15].to_u8();
    let mut numbers = [0; 16];
    for j in 0..4 {
        numbers[j] = 81 * t[j] + 27 * t[4 + j] + 9 * t[8 + j] + 3 * t[12 + j];
    }
    block.qh = *fraction(simd, I32x16::load_u8(simd, &numbers)).to_u8().first_chunk().expect("4 of 16");
    block
}

impl Assemble for TQ1_0 {
    const LATTICE: Lattice =
        Lattice { block_len: 256, sub_block_len: 256, levels: Levels::Integers(-1, 1), scales: SubScales::One, mins: Mins::None };

    #[inline(always)]
    fn assemble<S: Simd>(simd: S, parts: &Parts) -> TQ1_0 {
        let mut digits = [I32x16::splat(simd, 0); 16];
        for j in 0..16 {
            digits[j] = parts.sixteen(simd, j) + 1;
        }
        pack(simd, parts.d, &digits)
    }
}

/// `number * 256 / 243`, rounded up. The quotient is rounded correctly and less than 2^24, so what is left of it is exact.
#[inline(always)]
fn fraction<S: Simd>(simd: S, number: I32x16<S>) -> I32x16<S> {
    ((number.shl::<8>() + 242).to_float() / F32x16::splat(simd, 243.0)).truncate()
}
