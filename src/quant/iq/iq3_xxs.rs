//! `IQ3_XXS`: `w = d*(sc[j] + 1/2)/2 * +-g`, g in {4, 12, 20, 28, 36, 44, 52, 62}, 8 sub-blocks `j` of 32; 3.0625 bits per weight.
//! Layout: ggml's `block_iq3_xxs`.
//!
//! ```text
//! 0        2                     66                                                98
//! | d: f16 | points: 64 x 8 bits | 8 x u32: 4 x 7 sign bits, then 4 bits sc        |
//! ```
//!
//! A point is one of 256, and gives the magnitudes of 4 weights. The number of minus signs of eight weights is even.

use std::sync::LazyLock;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::fours::Fours;
use super::iq3::{self, Found, Search, Searched, pairs};
use super::{expand, grids, lattice_of_fours, scales_of_super_block, signed, signs};
use crate::quant::block::{Block, Dequantize, Half, Quantize};
use crate::quant::lattice::{Assemble, Lattice, Parts};
use crate::quant::sink::Sink;
use crate::simd::{F32x16, Simd};

/// The bytes of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct IQ3_XXS {
    d: Half,
    points: [[[u8; 4]; 2]; 8],
    signs_and_scales: [[u8; 4]; 8],
}

impl Block for IQ3_XXS {
    const LEN: usize = super::LEN;
}

static POINTS: [[u8; 4]; 256] = expand(&grids::IQ3_XXS, [4, 12, 20, 28, 36, 44, 52, 62]);

impl Dequantize for IQ3_XXS {
    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, to: &mut impl Sink<S>) {
        let d = self.d.to_f32(simd);
        for j in 0..8 {
            let bits = u32::from_le_bytes(self.signs_and_scales[j]);
            let scale = F32x16::splat(simd, d * (0.5 + (bits >> 28) as f32) * 0.5);
            for half in 0..2 {
                let points = self.points[j][half].map(|point| POINTS[usize::from(point)]);
                let signs = [2 * half, 2 * half + 1].map(|i| signs::EVEN[(bits >> (7 * i) & 127) as usize]);
                to.put(2 * j + half, signed(simd, scale, pairs(points), signs));
            }
        }
    }

    #[inline(always)]
    fn bound<S: Simd>(&self, simd: S) -> f32 {
        self.d.magnitude(simd) * (15.5 * 0.5 * 62.0)
    }
}

static SEARCH: LazyLock<Search> =
    LazyLock::new(|| Search { grid: Fours::new(&grids::IQ3_XXS, 2), n: 15, all_zero: 1e-8, even_signs: true, settle_all: false });

impl Quantize for IQ3_XXS {
    const USES_IMPORTANCE: bool = true;

    #[inline(always)]
    fn quantize<S: Simd>(simd: S, weights: &[f32], importance: Option<&[f32]>, blocks: &mut [IQ3_XXS]) {
        iq3::quantize(simd, weights, importance, blocks);
    }

    #[inline(always)]
    fn is_sound(&self) -> bool {
        self.d.is_finite()
    }
}

/// ggml makes the scale this much larger than the search found.
const LARGER: f32 = 1.0125;

impl Searched for IQ3_XXS {
    #[inline(always)]
    fn search() -> &'static Search {
        &SEARCH
    }

    #[inline(always)]
    fn pack<S: Simd>(simd: S, found: &Found, first: usize) -> IQ3_XXS {
        let mut block = IQ3_XXS { d: Half::new(simd, 0.0), points: [[[0; 4]; 2]; 8], signs_and_scales: [[0; 4]; 8] };
        let own: &[f32; 8] = found.scales[first..].first_chunk().expect("eight of sixteen lanes");
        let Some((d, sc)) = scales_of_super_block(own, 15) else { return block };
        block.d = Half::new(simd, d * LARGER);
        for j in 0..8 {
            let mut bits = u32::from(sc[j]) << 28;
            if found.zeros >> (first + j) & 1 == 0 {
                for i in 0..8 {
                    block.points[j][i / 4][i % 4] = found.points[first + j][i] as u8;
                }
                for k in 0..4 {
                    bits |= u32::from(found.signs[first + j][k] & 127) << (7 * k);
                }
            }
            block.signs_and_scales[j] = bits.to_le_bytes();
        }
        block
    }
}

impl Assemble for IQ3_XXS {
    const LATTICE: Lattice = lattice_of_fours(&[1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.5], &grids::IQ3_XXS, true);

    #[inline(always)]
    fn assemble<S: Simd>(simd: S, parts: &Parts) -> IQ3_XXS {
        let mut block = IQ3_XXS { d: Half::new(simd, parts.d), points: [[[0; 4]; 2]; 8], signs_and_scales: [[0; 4]; 8] };
        for (j, (points, signs)) in SEARCH.grid.of_parts(parts).into_iter().enumerate() {
            let mut bits = (parts.scales[j] as u32) << 28;
            for i in 0..8 {
                block.points[j][i / 4][i % 4] = points[i] as u8;
            }
            for (k, signs) in signs.iter().enumerate() {
                bits |= u32::from(signs & 127) << (7 * k);
            }
            block.signs_and_scales[j] = bits.to_le_bytes();
        }
        block
    }
}
