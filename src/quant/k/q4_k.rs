//! `Q4_K`: `w = d*sc[j]*q - dmin*m[j]`, q in 0..=15, 8 sub-blocks `j` of 32; 4.5 bits per weight. Layout: ggml's `block_q4_K`.
//!
//! ```text
//! 0        2           4                       16                                               144
//! | d: f16 | dmin: f16 | sc, m: 8 x (6+6) bits | qs: 4 x 32 x (sub-block 2c low, 2c+1 high half) |
//! ```

use std::hint::black_box;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::affine::{self, Affine, Scales, SuperBlock};
use crate::quant::block::{Block, Dequantize, Quantize};
use crate::quant::search::affine::{Error, Trials};
use crate::quant::sink::Sink;
use crate::simd::{F32x16, I32x16, Simd};

/// The bytes of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct Q4_K {
    scales: Scales,
    qs: [[[u8; 16]; 2]; 4],
}

impl Block for Q4_K {
    const LEN: usize = super::LEN;
}

impl Dequantize for Q4_K {
    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, to: &mut impl Sink<S>) {
        let [scales, mins] = self.scales.products(simd).map(F32x16::to_array);
        // Spread from memory; the compiler would shuffle lanes instead, which takes a sixth longer in a dot product.
        let (scales, mins) = (black_box(&scales), black_box(&mins));
        for c in 0..4 {
            let (scale, min) = (F32x16::splat(simd, scales[2 * c]), F32x16::splat(simd, mins[8 + 2 * c]));
            let (high_scale, high_min) = (F32x16::splat(simd, scales[2 * c + 1]), F32x16::splat(simd, mins[8 + 2 * c + 1]));
            let (low, high) = (Levels16::new(simd, scale, min), Levels16::new(simd, high_scale, high_min));
            for half in 0..2 {
                let q = I32x16::load_u8(simd, &self.qs[c][half]);
                to.put(4 * c + half, low.get(q));
                to.put(4 * c + 2 + half, high.get(q.shr::<4>()));
            }
        }
    }
}

/// What the sixteen quants of a sub-block stand for.
struct Levels16<S: Simd> {
    scale: F32x16<S>,
    min: F32x16<S>,
    levels: F32x16<S>,
}

impl<S: Simd> Levels16<S> {
    #[inline(always)]
    fn new(simd: S, scale: F32x16<S>, min: F32x16<S>) -> Self {
        let quants = F32x16::load(simd, &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0]);
        Levels16 { scale, min, levels: scale * quants - min }
    }

    /// `scale * q - min` of the low four bits of every lane: looked up where sixteen lanes are one register, and that one instruction.
    #[inline(always)]
    fn get(&self, q: I32x16<S>) -> F32x16<S> {
        if S::REGISTERS >= 32 { self.levels.lookup(q) } else { self.scale * (q & 15).to_float() - self.min }
    }
}

impl Quantize for Q4_K {
    const USES_IMPORTANCE: bool = true;

    #[inline(always)]
    fn quantize<S: Simd>(simd: S, weights: &[f32], importance: Option<&[f32]>, blocks: &mut [Q4_K]) {
        affine::quantize(simd, weights, importance, blocks);
    }

    #[inline(always)]
    fn is_sound(&self) -> bool {
        self.scales.are_finite()
    }
}

impl Affine for Q4_K {
    const WEIGHTED_SCALE_MAX: u8 = u8::MAX;
    const TRIALS: Trials = Trials { q_max: 15, first: -1.0, step: 0.1, n: 20, error: Error::Squares };

    #[inline(always)]
    fn pack<S: Simd>(_simd: S, made: &SuperBlock<S>) -> Q4_K {
        let mut qs = [[[0; 16]; 2]; 4];
        for c in 0..4 {
            for half in 0..2 {
                qs[c][half] = (made.quants[2 * c][half] | made.quants[2 * c + 1][half].shl::<4>()).to_u8();
            }
        }
        Q4_K { scales: made.scales, qs }
    }
}
