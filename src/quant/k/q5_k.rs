//! `Q5_K`: `w = d*sc[j]*q - dmin*m[j]`, q in 0..=31, 8 sub-blocks `j` of 32; 5.5 bits per weight. Layout: ggml's `block_q5_K`.
//!
//! ```text
//! 0        2           4                       16                48                                       176
//! | d: f16 | dmin: f16 | sc, m: 8 x (6+6) bits | qh: fifth bits  | qs: 4 x 32 x (2c low, 2c+1 high half)  |
//! ```
//!
//! Bit `j` of byte `i` of `qh` is the fifth bit of weight `i` of sub-block `j`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::affine::{self, Affine, Scales, SuperBlock};
use crate::quant::block::{Block, Dequantize, Quantize};
use crate::quant::lattice::{Assemble, Lattice, Levels, Mins, Parts, SubScales};
use crate::quant::search::affine::{Error, Trials};
use crate::quant::sink::Sink;
use crate::simd::{F32x16, I32x16, Simd};

/// The bytes of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct Q5_K {
    scales: Scales,
    qh: [[u8; 16]; 2],
    qs: [[[u8; 16]; 2]; 4],
}

impl Block for Q5_K {
    const LEN: usize = super::LEN;
}

impl Dequantize for Q5_K {
    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, to: &mut impl Sink<S>) {
        let mut fifth = [I32x16::load_u8(simd, &self.qh[0]).shl::<4>(), I32x16::load_u8(simd, &self.qh[1]).shl::<4>()];
        let [scales, mins] = self.scales.products(simd).map(F32x16::to_array);
        for c in 0..4 {
            let (scale, min) = (F32x16::splat(simd, scales[2 * c]), F32x16::splat(simd, mins[8 + 2 * c]));
            let (high_scale, high_min) = (F32x16::splat(simd, scales[2 * c + 1]), F32x16::splat(simd, mins[8 + 2 * c + 1]));
            for half in 0..2 {
                let q = I32x16::load_u8(simd, &self.qs[c][half]);
                let low = (q & 15) | (fifth[half] & 16);
                let high = q.shr::<4>() | (fifth[half].shr::<1>() & 16);
                fifth[half] = fifth[half].shr::<2>();
                to.put(4 * c + half, scale * low.to_float() - min);
                to.put(4 * c + 2 + half, high_scale * high.to_float() - high_min);
            }
        }
    }

    #[inline(always)]
    fn bound<S: Simd>(&self, simd: S) -> f32 {
        self.scales.bound(simd, 31.0)
    }
}

impl Quantize for Q5_K {
    const USES_IMPORTANCE: bool = true;

    #[inline(always)]
    fn quantize<S: Simd>(simd: S, weights: &[f32], importance: Option<&[f32]>, blocks: &mut [Q5_K]) {
        affine::quantize(simd, weights, importance, blocks);
    }

    #[inline(always)]
    fn is_sound(&self) -> bool {
        self.scales.are_finite()
    }
}

impl Affine for Q5_K {
    const WEIGHTED_SCALE_MAX: u8 = 63;
    const TRIALS: Trials = Trials { q_max: 31, first: -0.5, step: 0.1, n: 15, error: Error::Squares };

    #[inline(always)]
    fn pack<S: Simd>(simd: S, made: &SuperBlock<S>) -> Q5_K {
        let (mut qs, mut qh) = ([[[0; 16]; 2]; 4], [[0; 16]; 2]);
        for half in 0..2 {
            let mut fifth = I32x16::splat(simd, 0);
            for c in (0..4).rev() {
                let (low, high) = (made.quants[2 * c][half], made.quants[2 * c + 1][half]);
                qs[c][half] = ((low & 15) | (high & 15).shl::<4>()).to_u8();
                fifth = fifth.shl::<2>() | low.shr::<4>() | high.shr::<4>().shl::<1>();
            }
            qh[half] = fifth.to_u8();
        }
        Q5_K { scales: made.scales, qh, qs }
    }
}

impl Assemble for Q5_K {
    const LATTICE: Lattice = Lattice {
        block_len: super::LEN,
        sub_block_len: 32,
        levels: Levels::Integers(0, 31),
        scales: SubScales::Integers(0, 63),
        mins: Mins::Multiples(63),
    };

    #[inline(always)]
    fn assemble<S: Simd>(simd: S, parts: &Parts) -> Q5_K {
        Q5_K::pack(simd, &SuperBlock::of_parts(simd, parts))
    }
}
