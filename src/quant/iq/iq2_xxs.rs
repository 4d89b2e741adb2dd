//! `IQ2_XXS`: `w = d*(sc[j] + 1/2)/4 * +-g`, g in {8, 25, 43}, 8 sub-blocks `j` of 32; 2.0625 bits per weight. Layout: ggml's
//! `block_iq2_xxs`.
//!
//! ```text
//! 0        2                                                                           66
//! | d: f16 | 8 x (4 points: u8 | u32: 4 x 7 sign bits, then 4 bits sc)                 |
//! ```
//!
//! A point is one of 256, and gives the magnitudes of 8 weights. The number of minus signs of a point is even.

use std::sync::LazyLock;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::eights::Eights;
use super::iq2::{Found, Search, SubBlocks};
use super::{IQ2_VALUES, LEN, batches, expand, grids, lattice_of_eights, scales_of_super_block, signed, signs, sums_of_squares};
use crate::quant::block::{Block, Dequantize, Half, Quantize};
use crate::quant::lattice::{Assemble, Lattice, Parts};
use crate::quant::search::{Lanes, positive};
use crate::quant::sink::Sink;
use crate::simd::{F32x16, Simd};

/// The bytes of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct IQ2_XXS {
    d: Half,
    sub_blocks: [SubBlock; 8],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct SubBlock {
    points: [u8; 4],
    signs_and_scale: [u8; 4],
}

impl Block for IQ2_XXS {
    const LEN: usize = super::LEN;
}

static POINTS: [[u8; 8]; 256] = expand(&grids::IQ2_XXS, IQ2_VALUES);

impl Dequantize for IQ2_XXS {
    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, to: &mut impl Sink<S>) {
        let d = self.d.to_f32(simd);
        for (j, sub_block) in self.sub_blocks.iter().enumerate() {
            let bits = u32::from_le_bytes(sub_block.signs_and_scale);
            let scale = F32x16::splat(simd, d * (0.5 + (bits >> 28) as f32) * 0.25);
            for half in 0..2 {
                let points = [2 * half, 2 * half + 1].map(|i| POINTS[usize::from(sub_block.points[i])]);
                let signs = [2 * half, 2 * half + 1].map(|i| signs::EVEN[(bits >> (7 * i) & 127) as usize]);
                to.put(2 * j + half, signed(simd, scale, points, signs));
            }
        }
    }

    #[inline(always)]
    fn bound<S: Simd>(&self, simd: S) -> f32 {
        self.d.magnitude(simd) * (15.5 * 0.25) * f32::from(IQ2_VALUES[2])
    }
}

static GRID: LazyLock<Eights> = LazyLock::new(|| Eights::new(&grids::IQ2_XXS, 2));

/// Sub-blocks whose largest magnitude is below this count as all zero.
const ALL_ZERO: f32 = 1e-15;

impl Quantize for IQ2_XXS {
    const USES_IMPORTANCE: bool = true;
    const NEEDS_IMPORTANCE: bool = true;

    #[inline(always)]
    fn quantize<S: Simd>(simd: S, weights: &[f32], importance: Option<&[f32]>, blocks: &mut [IQ2_XXS]) {
        for ((weights, importance), blocks) in batches(weights, importance).zip(blocks.chunks_mut(16)) {
            let importance = importance.expect("a format that needs importance gets it");
            let squares = sums_of_squares(simd, weights);
            for (i, pair) in blocks.chunks_mut(2).enumerate() {
                let own = 2 * LEN * i..weights.len().min(2 * LEN * (i + 1));
                let mut padded = [[0.0; 2 * LEN]; 2];
                padded[0][..own.len()].copy_from_slice(&weights[own.clone()]);
                padded[1][..own.len()].copy_from_slice(&importance[own]);
                let mut sigma2 = [squares[2 * i] / 256.0; 16];
                sigma2[8..].fill(squares[2 * i + 1] / 256.0);
                let w = Lanes::<S, 32>::weighted(simd, &padded[0], &padded[1], F32x16::load(simd, &sigma2)).w;
                let found = search(simd, &SubBlocks::new(simd, &padded[0], w).with_even_signs(simd));
                for (at, block) in pair.iter_mut().enumerate() {
                    *block = pack(simd, &found, 8 * at);
                    if !squares[2 * i + at].is_finite() {
                        // Everything counts infinitely much; ggml can take the weight that matters for a zero.
                        block.d = Half::NAN;
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn is_sound(&self) -> bool {
        self.d.is_finite()
    }
}

#[inline(always)]
fn search<S: Simd>(simd: S, blocks: &SubBlocks<S, 32>) -> Found {
    let scale = positive::search(simd, &blocks.x, &blocks.w, 4).scale;
    let max = scale * F32x16::splat(simd, 3.0);
    let mut search = Search::new(simd, &GRID, blocks, scale);
    search.try_scales(max, 6);
    search.settle(search.all());
    search.finish(blocks.max.lt(F32x16::splat(simd, ALL_ZERO)) | max.le(F32x16::splat(simd, 0.0)))
}

/// The super-block whose eight sub-blocks begin at lane `first`.
#[inline(always)]
fn pack<S: Simd>(simd: S, found: &Found, first: usize) -> IQ2_XXS {
    let mut block = IQ2_XXS { d: Half::new(simd, 0.0), sub_blocks: [SubBlock { points: [0; 4], signs_and_scale: [0; 4] }; 8] };
    let own: &[f32; 8] = found.scales[first..].first_chunk().expect("eight of sixteen lanes");
    let Some((d, scales)) = scales_of_super_block(own, 15) else { return block };
    block.d = Half::new(simd, d);
    for (j, sub_block) in block.sub_blocks.iter_mut().enumerate() {
        sub_block.points = found.points[first + j].map(|point| point as u8);
        let mut bits = u32::from(scales[j]) << 28;
        for k in 0..4 {
            bits |= u32::from(found.signs[first + j][k] & 127) << (7 * k);
        }
        sub_block.signs_and_scale = bits.to_le_bytes();
    }
    block
}

impl Assemble for IQ2_XXS {
    const LATTICE: Lattice = lattice_of_eights(32, &grids::IQ2_XXS, true);

    #[inline(always)]
    fn assemble<S: Simd>(simd: S, parts: &Parts) -> IQ2_XXS {
        let empty = SubBlock { points: [0; 4], signs_and_scale: [0; 4] };
        let mut block = IQ2_XXS { d: Half::new(simd, parts.d), sub_blocks: [empty; 8] };
        let eights = GRID.of_parts(parts);
        for (j, eights) in eights.as_chunks::<4>().0.iter().enumerate() {
            let mut bits = (parts.scales[j] as u32) << 28;
            for (k, (point, signs)) in eights.iter().enumerate() {
                block.sub_blocks[j].points[k] = *point as u8;
                bits |= u32::from(signs & 127) << (7 * k);
            }
            block.sub_blocks[j].signs_and_scale = bits.to_le_bytes();
        }
        block
    }
}
