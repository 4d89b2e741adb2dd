//! `Q4_K`: `w = d*sc[j]*q - dmin*m[j]`, q in 0..=15, 8 sub-blocks `j` of 32; 4.5 bits per weight. Layout: ggml's `block_q4_K`.
//!
//! ```text
//! 0        2           4                       16                                               144
//! | d: f16 | dmin: f16 | sc, m: 8 x (6+6) bits | qs: 4 x 32 x (sub-block 2c low, 2c+1 high half) |
//! ```

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::affine::{self, Affine, Scales, SuperBlock};
use crate::quant::block::{Block, Dequantize, Quantize};
use crate::quant::search::affine::{Error, Trials};
use crate::simd::{I32x16, Simd};

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
    fn dequantize<S: Simd>(simd: S, blocks: &[Q4_K], weights: &mut [f32]) {
        for (block, weights) in blocks.iter().zip(weights.as_chunks_mut::<256>().0) {
            let (chunks, _) = weights.as_chunks_mut::<16>();
            for c in 0..4 {
                let (scale, min) = block.scales.lanes(simd, 2 * c);
                let (high_scale, high_min) = block.scales.lanes(simd, 2 * c + 1);
                for half in 0..2 {
                    let q = I32x16::load_u8(simd, &block.qs[c][half]);
                    (scale * (q & 15).to_float() - min).store(&mut chunks[4 * c + half]);
                    (high_scale * q.shr::<4>().to_float() - high_min).store(&mut chunks[4 * c + 2 + half]);
                }
            }
        }
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
