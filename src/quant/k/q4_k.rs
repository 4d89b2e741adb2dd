//! `Q4_K`: `w = d*sc[j]*q - dmin*m[j]`, q in 0..=15, 8 sub-blocks `j` of 32; 4.5 bits per weight. Layout: ggml's `block_q4_K`.
//!
//! ```text
//! 0        2           4                       16                                               144
//! | d: f16 | dmin: f16 | sc, m: 8 x (6+6) bits | qs: 4 x 32 x (sub-block 2c low, 2c+1 high half) |
//! ```

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::affine::{self, Affine, Scales, SuperBlock};
use crate::quant::block::{Block, Dequantize, Quantize};
use crate::quant::dot::sum;
use crate::quant::lattice::{Assemble, Lattice, Levels, Mins, Parts, SubScales};
use crate::quant::search::affine::{Error, Trials};
use crate::quant::sink::{SUMS, Sink};
use crate::simd::{F32x16, I32x16, Simd, Sixteen};

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
        for c in 0..4 {
            let (scale, min) = (F32x16::splat(simd, scales[2 * c]), F32x16::splat(simd, mins[8 + 2 * c]));
            let (high_scale, high_min) = (F32x16::splat(simd, scales[2 * c + 1]), F32x16::splat(simd, mins[8 + 2 * c + 1]));
            for half in 0..2 {
                let q = I32x16::load_u8(simd, &self.qs[c][half]);
                to.put(4 * c + half, scale * (q & 15).to_float() - min);
                to.put(4 * c + 2 + half, high_scale * q.shr::<4>().to_float() - high_min);
            }
        }
    }

    #[inline(always)]
    fn bound<S: Simd>(&self, simd: S) -> f32 {
        self.scales.bound(simd, 15.0)
    }

    /// Sixteen times sixteen that the quants multiply, and the sums of `x` that the minimums multiply.
    const FACTORS: usize = 16 + 1;

    /// Four sub-blocks at a time are 64 bytes, of which each lane has four; their halves are multiplied in ascending order. A lane of the
    /// last sixteen from 8 on has the negative sum of a sub-block.
    fn arrange(x: &[f32], factors: &mut [Sixteen]) {
        let (sub_blocks, _) = x.as_chunks::<32>();
        for four in 0..2 {
            for lane in 0..16 {
                for nibble in 0..8 {
                    let j = 4 * four + lane / 8 * 2 + nibble % 2;
                    factors[8 * four + nibble].0[lane] = sub_blocks[j][lane % 8 * 4 + nibble / 2];
                }
            }
        }
        factors[16].0 = std::array::from_fn(|lane| if lane < 8 { 0.0 } else { -sum(&sub_blocks[lane - 8]) });
    }

    /// Sum 3 first gets `dmin*m` times the last factors. Then sum `2*four + low or high half` gets `d*sc` times four fused products.
    #[inline(always)]
    fn add_products<S: Simd>(&self, simd: S, factors: &[Sixteen], _at: usize, mut sums: [F32x16<S>; SUMS]) -> [F32x16<S>; SUMS] {
        const SCALES: [[u8; 16]; 4] = scales_of_lanes();
        let [scales, mins] = self.scales.products(simd);
        let qs: &[[u8; 32]; 4] = zerocopy::transmute_ref!(&self.qs);
        sums[3] = mins.fma(factors[16].load(simd), sums[3]);
        for four in 0..2 {
            let mut q = I32x16::load_bytes(simd, &qs[2 * four], &qs[2 * four + 1]);
            let mut products = [F32x16::splat(simd, 0.0); 2];
            for nibble in 0..8 {
                products[nibble % 2] = low_four_bits(simd, q).fma(factors[8 * four + nibble].load(simd), products[nibble % 2]);
                q = q.shr::<4>();
            }
            for half in 0..2 {
                let sum = 2 * four + half;
                sums[sum] = scales.lookup(I32x16::load_u8(simd, &SCALES[sum])).fma(products[half], sums[sum]);
            }
        }
        sums
    }
}

/// For each of the sums: of which sub-blocks its lanes are.
const fn scales_of_lanes() -> [[u8; 16]; SUMS] {
    let mut of_lanes = [[0; 16]; SUMS];
    let mut at = 0;
    while at < 16 * SUMS {
        let (sum, lane) = (at / 16, at % 16);
        of_lanes[sum][lane] = (sum / 2 * 4 + lane / 8 * 2 + sum % 2) as u8;
        at += 1;
    }
    of_lanes
}

/// As floats: looked up where sixteen lanes are one register, and that one instruction.
#[inline(always)]
fn low_four_bits<S: Simd>(simd: S, q: I32x16<S>) -> F32x16<S> {
    if S::REGISTERS < 32 {
        return (q & 15).to_float();
    }
    F32x16::load(simd, &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0]).lookup(q)
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

impl Assemble for Q4_K {
    const LATTICE: Lattice = Lattice {
        block_len: super::LEN,
        sub_block_len: 32,
        levels: Levels::Integers(0, 15),
        scales: SubScales::Integers(0, 63),
        mins: Mins::Multiples(63),
    };

    #[inline(always)]
    fn assemble<S: Simd>(simd: S, parts: &Parts) -> Q4_K {
        Q4_K::pack(simd, &SuperBlock::of_parts(simd, parts))
    }
}
