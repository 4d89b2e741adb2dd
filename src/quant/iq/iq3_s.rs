//! `IQ3_S`: `w = d*(2*sc[j] + 1) * +-g`, g in {1, 3, 5, ..., 15}, 8 sub-blocks `j` of 32; 3.4375 bits per weight. Layout: ggml's
//! `block_iq3_s`.
//!
//! ```text
//! 0        2                     66                 74             106                                110
//! | d: f16 | points: 64 x 8 bits | qh: 64 x 1 bit   | signs: 32 x 8 | sc: 4 x (2c low, 2c+1 high half) |
//! ```
//!
//! A point is one of 512, and gives the magnitudes of 4 weights; `qh` holds the ninth bits of the eight points of a sub-block.
//! ggml misplaces what follows a sub-block of 32 zeros (see `pack`), and bytes here are ggml's: with such runs another format fits better.

use std::sync::LazyLock;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::fours::Fours;
use super::iq3::{self, Found, Search, Searched, pairs};
use super::{expand, grids, lattice_of_fours, scales_of_super_block, signed};
use crate::quant::block::{Block, Dequantize, Half, Quantize};
use crate::quant::lattice::{Assemble, Lattice, Parts};
use crate::quant::sink::Sink;
use crate::simd::{F32x16, Simd};

/// The bytes of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct IQ3_S {
    d: Half,
    points: [[u8; 8]; 8],
    qh: [u8; 8],
    signs: [[u8; 4]; 8],
    scales: [u8; 4],
}

impl Block for IQ3_S {
    const LEN: usize = super::LEN;
}

static POINTS: [[u8; 4]; 512] = expand(&grids::IQ3_S, [1, 3, 5, 7, 9, 11, 13, 15]);

impl Dequantize for IQ3_S {
    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, to: &mut impl Sink<S>) {
        let d = self.d.to_f32(simd);
        for j in 0..8 {
            let sc = self.scales[j / 2] >> (4 * (j % 2)) & 15;
            let scale = F32x16::splat(simd, d * f32::from(2 * sc + 1));
            let qh = usize::from(self.qh[j]);
            for half in 0..2 {
                let at = [0, 1, 2, 3].map(|i| 4 * half + i);
                let points = at.map(|i| POINTS[usize::from(self.points[j][i]) | (qh >> i & 1) << 8]);
                let signs = [self.signs[j][2 * half], self.signs[j][2 * half + 1]];
                to.put(2 * j + half, signed(simd, scale, pairs(points), signs));
            }
        }
    }

    #[inline(always)]
    fn bound<S: Simd>(&self, simd: S) -> f32 {
        self.d.magnitude(simd) * (31.0 * 15.0)
    }
}

static SEARCH: LazyLock<Search> =
    LazyLock::new(|| Search { grid: Fours::new(&grids::IQ3_S, 3), n: 9, all_zero: 0.0, even_signs: false, settle_all: true });

impl Quantize for IQ3_S {
    const USES_IMPORTANCE: bool = true;

    #[inline(always)]
    fn quantize<S: Simd>(simd: S, weights: &[f32], importance: Option<&[f32]>, blocks: &mut [IQ3_S]) {
        iq3::quantize(simd, weights, importance, blocks);
    }

    #[inline(always)]
    fn is_sound(&self) -> bool {
        self.d.is_finite()
    }
}

/// ggml makes the scale this much larger than the search found.
const LARGER: f32 = 1.033;

impl Searched for IQ3_S {
    #[inline(always)]
    fn search() -> &'static Search {
        &SEARCH
    }

    #[inline(always)]
    fn pack<S: Simd>(simd: S, found: &Found, first: usize) -> IQ3_S {
        let mut block = IQ3_S { d: Half::new(simd, 0.0), points: [[0; 8]; 8], qh: [0; 8], signs: [[0; 4]; 8], scales: [0; 4] };
        // ggml leaves no room for a sub-block that is zero, though readers expect it: points and signs of those after it move up.
        let mut to = 0;
        for j in 0..8 {
            if found.zeros >> (first + j) & 1 == 1 {
                continue;
            }
            let points = found.points[first + j];
            block.points[to] = points.map(|point| point as u8);
            block.signs[to] = found.signs[first + j];
            block.qh[j] = (0..8).fold(0, |qh, i| qh | ((points[i] >> 8) as u8) << i);
            to += 1;
        }
        let own: &[f32; 8] = found.scales[first..].first_chunk().expect("eight of sixteen lanes");
        if let Some((d, sc)) = scales_of_super_block(own, 15) {
            block.d = Half::new(simd, d * LARGER);
            for c in 0..4 {
                block.scales[c] = sc[2 * c] | sc[2 * c + 1] << 4;
            }
        }
        block
    }
}

impl Assemble for IQ3_S {
    const LATTICE: Lattice = lattice_of_fours(&[1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0], &grids::IQ3_S, false);

    #[inline(always)]
    fn assemble<S: Simd>(simd: S, parts: &Parts) -> IQ3_S {
        let d = Half::new(simd, parts.d);
        let mut block = IQ3_S { d, points: [[0; 8]; 8], qh: [0; 8], signs: [[0; 4]; 8], scales: [0; 4] };
        for (j, (points, signs)) in SEARCH.grid.of_parts(parts).into_iter().enumerate() {
            block.points[j] = points.map(|point| point as u8);
            block.qh[j] = (0..8).fold(0, |qh, i| qh | ((points[i] >> 8) as u8) << i);
            block.signs[j] = signs;
            block.scales[j / 2] |= (parts.scales[j] as u8) << (4 * (j % 2));
        }
        block
    }
}
