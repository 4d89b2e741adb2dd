//! `IQ2_XS`: `w = d*(sc[j] + 1/2)/4 * +-g`, g in {8, 25, 43}, 16 sub-blocks `j` of 16; 2.3125 bits per weight. Layout: ggml's
//! `block_iq2_xs`.
//!
//! ```text
//! 0        2                                             66                                     74
//! | d: f16 | 32 x u16: 9 bits point, then 7 sign bits    | sc: 8 x (2j low, 2j+1 high half)     |
//! ```
//!
//! A point is one of 512, and gives the magnitudes of 8 weights. The number of minus signs of a point is even.

use std::sync::LazyLock;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::eights::Eights;
use super::iq2::{Found, MAX_Q, Search, SubBlocks, pack_nibbles};
use super::{IQ2_VALUES, batches, expand, grids, lattice_of_eights, scales_of_super_block, signed, signs, sums_of_squares};
use crate::quant::block::{Block, Dequantize, Half, Quantize};
use crate::quant::lattice::{Assemble, Lattice, Parts};
use crate::quant::search::Lanes;
use crate::quant::sink::Sink;
use crate::simd::{F32x16, Simd};

/// The bytes of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct IQ2_XS {
    d: Half,
    points_and_signs: [[[u8; 2]; 2]; 16],
    scales: [u8; 8],
}

impl Block for IQ2_XS {
    const LEN: usize = super::LEN;
}

static POINTS: [[u8; 8]; 512] = expand(&grids::IQ2_XS, IQ2_VALUES);

impl Dequantize for IQ2_XS {
    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, to: &mut impl Sink<S>) {
        let d = self.d.to_f32(simd);
        for j in 0..16 {
            let sc = self.scales[j / 2] >> (4 * (j % 2)) & 15;
            let scale = F32x16::splat(simd, d * (0.5 + f32::from(sc)) * 0.25);
            let both = self.points_and_signs[j].map(|bytes| usize::from(u16::from_le_bytes(bytes)));
            let points = both.map(|bits| POINTS[bits & 511]);
            let signs = both.map(|bits| signs::EVEN[bits >> 9]);
            to.put(j, signed(simd, scale, points, signs));
        }
    }

    #[inline(always)]
    fn bound<S: Simd>(&self, simd: S) -> f32 {
        self.d.magnitude(simd) * (15.5 * 0.25) * f32::from(IQ2_VALUES[2])
    }
}

static GRID: LazyLock<Eights> = LazyLock::new(|| Eights::new(&grids::IQ2_XS, 2));

/// Sub-blocks whose largest magnitude is below this count as all zero.
const ALL_ZERO: f32 = 1e-15;

impl Quantize for IQ2_XS {
    const USES_IMPORTANCE: bool = true;
    const NEEDS_IMPORTANCE: bool = true;

    #[inline(always)]
    fn quantize<S: Simd>(simd: S, weights: &[f32], importance: Option<&[f32]>, blocks: &mut [IQ2_XS]) {
        for ((weights, importance), blocks) in batches(weights, importance).zip(blocks.chunks_mut(16)) {
            let importance = importance.expect("a format that needs importance gets it");
            let squares = sums_of_squares(simd, weights);
            for (i, block) in blocks.iter_mut().enumerate() {
                let own = super::LEN * i..super::LEN * (i + 1);
                let sigma2 = F32x16::splat(simd, squares[i] / 256.0);
                let w = Lanes::<S, 16>::weighted(simd, &weights[own.clone()], &importance[own.clone()], sigma2).w;
                *block = pack(simd, &search(simd, &SubBlocks::new(simd, &weights[own], w).with_even_signs(simd)));
                if !squares[i].is_finite() {
                    // Everything counts infinitely much; ggml can take the weight that matters for a zero.
                    block.d = Half::NAN;
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
fn search<S: Simd>(simd: S, blocks: &SubBlocks<S, 16>) -> Found {
    let mut search = Search::new(simd, &GRID, blocks, blocks.max / F32x16::splat(simd, MAX_Q));
    search.try_scales(blocks.max, 9);
    search.settle(search.off_grid());
    search.finish(blocks.max.lt(F32x16::splat(simd, ALL_ZERO)))
}

#[inline(always)]
fn pack<S: Simd>(simd: S, found: &Found) -> IQ2_XS {
    let mut block = IQ2_XS { d: Half::new(simd, 0.0), points_and_signs: [[[0; 2]; 2]; 16], scales: [0; 8] };
    let Some((d, scales)) = scales_of_super_block(&found.scales, 15) else { return block };
    block.d = Half::new(simd, d);
    block.scales = pack_nibbles(&scales);
    for j in 0..16 {
        for k in 0..2 {
            block.points_and_signs[j][k] = (found.points[j][k] | u16::from(found.signs[j][k] & 127) << 9).to_le_bytes();
        }
    }
    block
}

impl Assemble for IQ2_XS {
    const LATTICE: Lattice = lattice_of_eights(16, &grids::IQ2_XS, true);

    #[inline(always)]
    fn assemble<S: Simd>(simd: S, parts: &Parts) -> IQ2_XS {
        let scales = pack_nibbles(&parts.scales.map(|sc| sc as u8));
        let mut block = IQ2_XS { d: Half::new(simd, parts.d), points_and_signs: [[[0; 2]; 2]; 16], scales };
        let both = block.points_and_signs.as_flattened_mut();
        for (both, (point, signs)) in both.iter_mut().zip(GRID.of_parts(parts)) {
            *both = (point | u16::from(signs & 127) << 9).to_le_bytes();
        }
        block
    }
}
