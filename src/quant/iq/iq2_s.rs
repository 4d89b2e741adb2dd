//! `IQ2_S`: `w = d*(sc[j] + 1/2)/4 * +-g`, g in {8, 25, 43}, 16 sub-blocks `j` of 16; 2.5625 bits per weight. Layout: ggml's
//! `block_iq2_s`.
//!
//! ```text
//! 0        2                       34                  66                     74                                 82
//! | d: f16 | points: 32 x 8 bits   | signs: 32 x 8     | qh: 32 x 2 bits      | sc: 8 x (2j low, 2j+1 high half) |
//! ```
//!
//! A point is one of 1024, and gives the magnitudes of 8 weights; `qh` holds the upper two bits of four points a byte.

use std::sync::LazyLock;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::eights::Eights;
use super::iq2::{Found, MAX_Q, Search, SubBlocks, pack_nibbles};
use super::{IQ2_VALUES, batches, expand, grids, lattice_of_eights, scales_of_super_block, signed, sums_of_squares};
use crate::quant::block::{Block, Dequantize, Half, Quantize};
use crate::quant::lattice::{Assemble, Lattice, Parts};
use crate::quant::search::{Lanes, lanes_of_sub_blocks};
use crate::quant::sink::Sink;
use crate::simd::{F32x16, Simd};

/// The bytes of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct IQ2_S {
    d: Half,
    points: [[u8; 2]; 16],
    signs: [[u8; 2]; 16],
    qh: [u8; 8],
    scales: [u8; 8],
}

impl Block for IQ2_S {
    const LEN: usize = super::LEN;
}

static POINTS: [[u8; 8]; 1024] = expand(&grids::IQ2_S, IQ2_VALUES);

impl Dequantize for IQ2_S {
    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, to: &mut impl Sink<S>) {
        let d = self.d.to_f32(simd);
        for j in 0..16 {
            let sc = self.scales[j / 2] >> (4 * (j % 2)) & 15;
            let scale = F32x16::splat(simd, d * (0.5 + f32::from(sc)) * 0.25);
            let upper = usize::from(self.qh[j / 2]) >> (4 * (j % 2));
            let low = self.points[j].map(usize::from);
            let points = [POINTS[low[0] | (upper & 3) << 8], POINTS[low[1] | (upper & 12) << 6]];
            to.put(j, signed(simd, scale, points, self.signs[j]));
        }
    }

    #[inline(always)]
    fn bound<S: Simd>(&self, simd: S) -> f32 {
        self.d.magnitude(simd) * (15.5 * 0.25) * f32::from(IQ2_VALUES[2])
    }
}

static GRID: LazyLock<Eights> = LazyLock::new(|| Eights::new(&grids::IQ2_S, 1));

/// Sub-blocks whose largest magnitude is below this count as all zero.
const ALL_ZERO: f32 = 1e-8;

impl Quantize for IQ2_S {
    const USES_IMPORTANCE: bool = true;

    #[inline(always)]
    fn quantize<S: Simd>(simd: S, weights: &[f32], importance: Option<&[f32]>, blocks: &mut [IQ2_S]) {
        for ((weights, importance), blocks) in batches(weights, importance).zip(blocks.chunks_mut(16)) {
            let squares = sums_of_squares(simd, weights);
            for (i, block) in blocks.iter_mut().enumerate() {
                let own = super::LEN * i..super::LEN * (i + 1);
                let sigma2 = F32x16::splat(simd, 2.0 * squares[i] / 256.0);
                let w = match importance {
                    Some(importance) => Lanes::<S, 16>::weighted(simd, &weights[own.clone()], &importance[own.clone()], sigma2).w,
                    None => own_weighting(simd, &weights[own.clone()], sigma2),
                };
                *block = pack(simd, &search(simd, &SubBlocks::new(simd, &weights[own], w)));
            }
        }
    }

    #[inline(always)]
    fn is_sound(&self) -> bool {
        self.d.is_finite()
    }
}

/// How much weights count without importance.
#[inline(always)]
fn own_weighting<S: Simd>(simd: S, weights: &[f32], sigma2: F32x16<S>) -> [F32x16<S>; 16] {
    let mut w: [F32x16<S>; 16] = lanes_of_sub_blocks(simd, weights);
    for i in 0..16 {
        w[i] = F32x16::splat(simd, 0.25) * sigma2 + w[i] * w[i];
    }
    w
}

#[inline(always)]
fn search<S: Simd>(simd: S, blocks: &SubBlocks<S, 16>) -> Found {
    let mut search = Search::new(simd, &GRID, blocks, blocks.max / F32x16::splat(simd, MAX_Q));
    search.try_scales(blocks.max, 9);
    search.settle(search.off_grid());
    search.finish(blocks.max.lt(F32x16::splat(simd, ALL_ZERO)))
}

#[inline(always)]
fn pack<S: Simd>(simd: S, found: &Found) -> IQ2_S {
    let mut block = IQ2_S { d: Half::new(simd, 0.0), points: [[0; 2]; 16], signs: [[0; 2]; 16], qh: [0; 8], scales: [0; 8] };
    for j in 0..16 {
        for k in 0..2 {
            let point = found.points[j][k];
            block.points[j][k] = point as u8;
            block.qh[j / 2] |= ((point >> 8) as u8) << (4 * (j % 2) + 2 * k);
            block.signs[j][k] = found.signs[j][k];
        }
    }
    if let Some((d, scales)) = scales_of_super_block(&found.scales, 15) {
        // ggml's scale is a little smaller than the fit.
        block.d = Half::new(simd, d * 0.9875);
        block.scales = pack_nibbles(&scales);
    }
    block
}

impl Assemble for IQ2_S {
    const LATTICE: Lattice = lattice_of_eights(16, &grids::IQ2_S, false);

    #[inline(always)]
    fn assemble<S: Simd>(simd: S, parts: &Parts) -> IQ2_S {
        let scales = pack_nibbles(&parts.scales.map(|sc| sc as u8));
        let mut block = IQ2_S { d: Half::new(simd, parts.d), points: [[0; 2]; 16], signs: [[0; 2]; 16], qh: [0; 8], scales };
        for (i, (point, signs)) in GRID.of_parts(parts).into_iter().enumerate() {
            block.points.as_flattened_mut()[i] = point as u8;
            block.signs.as_flattened_mut()[i] = signs;
            block.qh[i / 4] |= ((point >> 8) as u8) << (2 * (i % 4));
        }
        block
    }
}
