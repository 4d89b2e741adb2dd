//! `IQ1_S`: `w = d*(2*sc[j] + 1) * (g +- 1/8)`, g in {-1, 0, 1}, 8 sub-blocks `j` of 32; 1.5625 bits per weight. Layout: ggml's
//! `block_iq1_s`.
//!
//! ```text
//! 0        2                       34                                                              50
//! | d: f16 | points: 32 x 8 bits   | 8 x u16: 4 x 3 upper bits of the points, 3 bits sc, 1 bit -   |
//! ```
//!
//! A point is one of 2048, and gives the values of 8 weights. The last bit is set where 1/8 is subtracted.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::iq1::{DOWN, Found, Sorted, Split, SubBlocks, UP, settle};
use super::{IQ1_VALUES, LEN, batches, expand, grids, scales_of_super_block, shifted, sums_of_squares};
use crate::quant::block::{Block, Dequantize, Half, Quantize};
use crate::quant::search::Lanes;
use crate::quant::sink::Sink;
use crate::simd::{F32x16, Simd};

/// The bytes of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct IQ1_S {
    d: Half,
    points: [[u8; 4]; 8],
    qh: [[u8; 2]; 8],
}

impl Block for IQ1_S {
    const LEN: usize = super::LEN;
}

/// The points that IQ1_S and IQ1_M share.
pub(super) static POINTS: [[u8; 8]; 2048] = expand(&grids::IQ1_S, IQ1_VALUES);

impl Dequantize for IQ1_S {
    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, to: &mut impl Sink<S>) {
        let d = self.d.to_f32(simd);
        for j in 0..8 {
            let bits = u16::from_le_bytes(self.qh[j]);
            let scale = F32x16::splat(simd, d * f32::from(2 * (bits >> 12 & 7) + 1));
            let down = bits >> 15 == 1;
            for half in 0..2 {
                let points = [2 * half, 2 * half + 1]
                    .map(|i| POINTS[usize::from(self.points[j][i]) | usize::from(bits >> (3 * i) & 7) << 8]);
                to.put(2 * j + half, shifted(simd, scale, points, [down; 2]));
            }
        }
    }

    #[inline(always)]
    fn bound<S: Simd>(&self, simd: S) -> f32 {
        self.d.magnitude(simd) * (15.0 * 1.125)
    }
}

/// Sub-blocks whose largest magnitude is below this count as all zero.
const ALL_ZERO: f32 = 1e-12;

impl Quantize for IQ1_S {
    const USES_IMPORTANCE: bool = true;
    const NEEDS_IMPORTANCE: bool = true;

    #[inline(always)]
    fn quantize<S: Simd>(simd: S, weights: &[f32], importance: Option<&[f32]>, blocks: &mut [IQ1_S]) {
        for ((weights, importance), blocks) in batches(weights, importance).zip(blocks.chunks_mut(16)) {
            let importance = importance.expect("a format that needs importance gets it");
            let squares = sums_of_squares(simd, weights);
            for (i, pair) in blocks.chunks_mut(2).enumerate() {
                let own = 2 * LEN * i..weights.len().min(2 * LEN * (i + 1));
                let mut padded = [[0.0; 2 * LEN]; 2];
                padded[0][..own.len()].copy_from_slice(&weights[own.clone()]);
                padded[1][..own.len()].copy_from_slice(&importance[own]);
                let mut sigma2 = [2.0 * squares[2 * i] / 256.0; 16];
                sigma2[8..].fill(2.0 * squares[2 * i + 1] / 256.0);
                let w = Lanes::<S, 32>::weighted(simd, &padded[0], &padded[1], F32x16::load(simd, &sigma2)).w;
                let sub_blocks = SubBlocks::new(simd, &padded[0], w);
                let sorted = sub_blocks.sorted(simd);
                let found = settle(simd, &sub_blocks, &sorted, split(simd, &sorted), sub_blocks.all_below(simd, ALL_ZERO));
                for (at, block) in pair.iter_mut().enumerate() {
                    *block = pack(simd, &found, 8 * at);
                }
            }
        }
    }

    #[inline(always)]
    fn is_sound(&self) -> bool {
        self.d.is_finite()
    }
}

/// What one of the three parts adds to the sums of a fit, for every boundary.
#[derive(Clone, Copy)]
struct Part<S: Simd> {
    xq: F32x16<S>,
    qq: F32x16<S>,
}

/// The best split of the sorted weights, all shifted alike.
#[inline(always)]
fn split<S: Simd>(simd: S, sorted: &Sorted<S, 32>) -> Split<S> {
    let zero = F32x16::splat(simd, 0.0);
    let (mut x, mut w) = ([zero; 33], [zero; 33]);
    for i in 0..32 {
        x[i + 1] = x[i] + sorted.w[i] * sorted.x[i];
        w[i + 1] = w[i] + sorted.w[i];
    }
    // The lowest and the highest part, shifted up and down.
    let none = Part { xq: zero, qq: zero };
    let (mut low, mut high) = ([[none; 2]; 33], [[none; 2]; 33]);
    for i in 0..33 {
        for (down, values) in [UP, DOWN].into_iter().enumerate() {
            let (q_low, q_high) = (F32x16::splat(simd, values[0]), F32x16::splat(simd, values[2]));
            low[i][down] = Part { xq: x[i] * q_low, qq: w[i] * q_low * q_low };
            high[i][down] = Part { xq: (x[32] - x[i]) * q_high, qq: (w[32] - w[i]) * q_high * q_high };
        }
    }
    let q_mid = F32x16::splat(simd, UP[1]);
    let mut best = Split::new(simd, x[32] + w[32]);
    for first in 0..33 {
        for second in first..33 {
            let xq = (x[second] - x[first]) * q_mid;
            let qq = (w[second] - w[first]) * q_mid * q_mid;
            let up = (low[first][0].xq + xq + high[second][0].xq, low[first][0].qq + qq + high[second][0].qq);
            let down = (low[first][1].xq - xq + high[second][1].xq, low[first][1].qq + qq + high[second][1].qq);
            if (best.is_worse_than(simd, up.0, up.1) | best.is_worse_than(simd, down.0, down.1)).bits() != 0 {
                best.keep_if_better(simd, up.0, up.1, [first, second], 0);
                best.keep_if_better(simd, down.0, down.1, [first, second], 0b1111);
            }
        }
    }
    best
}

/// The super-block whose eight sub-blocks begin at lane `start`.
#[inline(always)]
fn pack<S: Simd>(simd: S, found: &Found, start: usize) -> IQ1_S {
    let own: &[f32; 8] = found.scales[start..].first_chunk().expect("eight of sixteen lanes");
    let (d, scales) = match scales_of_super_block(own, 7) {
        // ggml's scale is a little larger than the fit.
        Some((d, scales)) => (d * 1.125, scales.map(Some)),
        None => (0.0, [None; 8]),
    };
    let mut block = IQ1_S { d: Half::new(simd, d), points: [[0; 4]; 8], qh: [[0; 2]; 8] };
    for j in 0..8 {
        let points = found.points[start + j];
        block.points[j] = points.map(|point| point as u8);
        let mut bits = 0;
        for k in 0..4 {
            bits |= points[k] >> 8 << (3 * k);
        }
        if let Some(sc) = scales[j] {
            bits |= u16::from(sc) << 12 | u16::from(found.down[start + j] & 1) << 15;
        }
        block.qh[j] = bits.to_le_bytes();
    }
    block
}
