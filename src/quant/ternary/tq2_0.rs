//! `TQ2_0`: `w = d*(q - 1)`, q in 0..=3; 2.0625 bits per weight. Layout: ggml's `block_tq2_0`.
//!
//! ```text
//! 0                                       64       66
//! | qs: 2 x 32 x (four runs of 32 weights) | d: f16 |
//! ```
//!
//! Each half of the block is four runs of 32 weights; run `r` is bits `2r` and `2r+1` of its 32 bytes. Quantizing makes trits only;
//! q = 3 is for files from elsewhere.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{largest_quant, scale, trits};
use crate::quant::block::{Block, Dequantize, Half, Quantize};
use crate::quant::lattice::{Assemble, Lattice, Levels, Mins, Parts, SubScales};
use crate::quant::sink::Sink;
use crate::simd::{F32x16, I32x16, Simd};

/// The bytes of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct TQ2_0 {
    qs: [[[u8; 16]; 2]; 2],
    d: Half,
}

impl Block for TQ2_0 {
    const LEN: usize = 256;
}

impl Dequantize for TQ2_0 {
    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, to: &mut impl Sink<S>) {
        let d = self.d.splat(simd);
        for half in 0..2 {
            for part in 0..2 {
                let mut q = I32x16::load_u8(simd, &self.qs[half][part]);
                for run in 0..4 {
                    to.put(8 * half + 2 * run + part, ((q & 3) + -1).to_float() * d);
                    q = q.shr::<2>();
                }
            }
        }
    }

    #[inline(always)]
    fn bound<S: Simd>(&self, simd: S) -> f32 {
        self.d.magnitude(simd) * largest_quant(self.qs.as_bytes())
    }
}

impl Quantize for TQ2_0 {
    #[inline(always)]
    fn quantize<S: Simd>(simd: S, weights: &[f32], _importance: Option<&[f32]>, blocks: &mut [TQ2_0]) {
        for (block, weights) in blocks.iter_mut().zip(weights.as_chunks::<256>().0) {
            let (d, inverse) = scale(simd, weights);
            let mut quants = [I32x16::splat(simd, 0); 16];
            for (quants, chunk) in quants.iter_mut().zip(weights.as_chunks::<16>().0) {
                *quants = trits(F32x16::load(simd, chunk), inverse);
            }
            *block = pack(simd, d, &quants);
        }
    }

    #[inline(always)]
    fn is_sound(&self) -> bool {
        self.d.is_finite()
    }
}

#[inline(always)]
fn pack<S: Simd>(simd: S, d: f32, quants: &[I32x16<S>; 16]) -> TQ2_0 {
    let mut block = TQ2_0 { qs: [[[0; 16]; 2]; 2], d: Half::new(simd, d) };
    for half in 0..2 {
        for part in 0..2 {
            let mut q = I32x16::splat(simd, 0);
            for run in (0..4).rev() {
                q = q.shl::<2>() | quants[8 * half + 2 * run + part];
            }
            block.qs[half][part] = q.to_u8();
        }
    }
    block
}

impl Assemble for TQ2_0 {
    const LATTICE: Lattice =
        Lattice { block_len: 256, sub_block_len: 256, levels: Levels::Integers(-1, 1), scales: SubScales::One, mins: Mins::None };

    #[inline(always)]
    fn assemble<S: Simd>(simd: S, parts: &Parts) -> TQ2_0 {
        let mut quants = [I32x16::splat(simd, 0); 16];
        for j in 0..16 {
            quants[j] = parts.sixteen(simd, j) + 1;
        }
        pack(simd, parts.d, &quants)
    }
}
