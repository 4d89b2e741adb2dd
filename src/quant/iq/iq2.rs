//! The search of scale and grid points that the IQ2 formats share.
//!
//! For each trial scale every eight weights are rounded to levels, the best grid point near them is taken, and the scale that fits the
//! points best (weighted least squares) is found; it is best where `(sum w*x*q)^2 / (sum w*q*q)` is largest. Sixteen sub-blocks advance
//! together, each in its lane; only the choice of a point runs across its candidates.

use super::candidates::u16_at;
use super::eights::{Eight, Eights, LEVELS, place};
use crate::quant::search::lanes_of_sub_blocks;
use crate::simd::{F32x16, I32x16, Mask, Simd};

/// What the three levels stand for during the search.
const VALUES: [f32; 4] = [1.0, 3.0, 5.0, 0.0];

/// The largest of them.
pub(super) const MAX_Q: f32 = VALUES[2];

/// Sixteen sub-blocks of `N` weights side by side.
pub(super) struct SubBlocks<S: Simd, const N: usize> {
    /// Magnitudes; one of eight can be negative where the number of minus signs is kept even.
    pub x: [F32x16<S>; N],
    /// How much each weight counts.
    pub w: [F32x16<S>; N],
    /// Bit `i` of `signs[k]` is set where weight `8*k + i` is negative.
    signs: [I32x16<S>; 4],
    /// The largest `x`.
    pub max: F32x16<S>,
}

impl<S: Simd, const N: usize> SubBlocks<S, N> {
    /// `weights`: `[16 * N]`; `w` as above.
    #[inline(always)]
    pub fn new(simd: S, weights: &[f32], w: [F32x16<S>; N]) -> Self {
        let mut x: [F32x16<S>; N] = lanes_of_sub_blocks(simd, weights);
        let zero = F32x16::splat(simd, 0.0);
        let none = I32x16::splat(simd, 0);
        let mut signs = [none; 4];
        for i in 0..N {
            signs[i / 8] = signs[i / 8] | x[i].lt(zero).choose(I32x16::splat(simd, 1 << (i % 8)), none);
            x[i] = x[i].abs();
        }
        SubBlocks { x, w, signs, max: zero }.with_max()
    }

    #[inline(always)]
    fn with_max(mut self) -> Self {
        self.max = self.x[0];
        for i in 1..N {
            self.max = self.max.max(self.x[i]);
        }
        self
    }

    /// Where the number of minus signs among eight is odd, the weight that counts least takes the other sign.
    #[inline(always)]
    pub fn with_even_signs(mut self, simd: S) -> Self {
        for k in 0..N / 8 {
            let mut least = self.w[8 * k] * self.x[8 * k] * self.x[8 * k];
            let mut flipped = I32x16::splat(simd, 1);
            let mut parity = self.signs[k];
            for i in 1..8 {
                let cost = self.w[8 * k + i] * self.x[8 * k + i] * self.x[8 * k + i];
                let less = cost.lt(least);
                least = less.select(cost, least);
                flipped = less.choose(I32x16::splat(simd, 1 << i), flipped);
            }
            parity = parity ^ parity.shr::<4>();
            parity = parity ^ parity.shr::<2>();
            parity = parity ^ parity.shr::<1>();
            flipped = parity.has(1).choose(flipped, I32x16::splat(simd, 0));
            self.signs[k] = self.signs[k] ^ flipped;
            for i in 0..8 {
                let x = &mut self.x[8 * k + i];
                *x = flipped.has(1 << i).select(-*x, *x);
            }
        }
        self.with_max()
    }
}

/// The scale and points of sixteen sub-blocks.
#[derive(Clone, Copy)]
struct Fit<S: Simd> {
    scale: F32x16<S>,
    /// Of weights `8*k` and following, bits as in `grids.rs`.
    points: [I32x16<S>; 4],
    /// What the weights were rounded to; see [`Eights`].
    places: [I32x16<S>; 4],
    quality: F32x16<S>,
}

/// A search among sixteen sub-blocks.
pub(super) struct Search<'a, S: Simd, const N: usize> {
    simd: S,
    grid: &'a Eights,
    blocks: &'a SubBlocks<S, N>,
    eights: [[Eight; 4]; 16],
    fit: Fit<S>,
}

impl<'a, S: Simd, const N: usize> Search<'a, S, N> {
    /// Starts with `scale` and the lowest point.
    #[inline(always)]
    pub fn new(simd: S, grid: &'a Eights, blocks: &'a SubBlocks<S, N>, scale: F32x16<S>) -> Self {
        let mut roots = blocks.w;
        for i in 0..N {
            roots[i] = roots[i].sqrt();
        }
        let eights = Eight::of_sub_blocks(&blocks.x, &roots);
        let lowest = [I32x16::splat(simd, 0); 4];
        let fit = Fit { scale, points: lowest, places: lowest, quality: F32x16::splat(simd, 0.0) };
        Search { simd, grid, blocks, eights, fit }
    }

    /// Tries scales around the one that makes `max` the highest level: `max / (MAX_Q + i/10)` for `i` from `-n` to `n`.
    #[inline(always)]
    pub fn try_scales(&mut self, max: F32x16<S>, n: i32) {
        let simd = self.simd;
        for i in -n..=n {
            let inverse = F32x16::splat(simd, MAX_Q + i as f32 * 0.1) / max;
            let places = self.round(inverse);
            let points = self.points(&places, F32x16::splat(simd, 1.0) / inverse);
            let (sum_xq, sum_qq) = self.sums(&points);
            let best = &mut self.fit;
            let better = sum_qq.gt(F32x16::splat(simd, 0.0)) & (sum_xq * sum_xq).gt(best.quality * sum_qq);
            let scale = sum_xq / sum_qq;
            best.scale = better.select(scale, best.scale);
            best.quality = better.select(scale * sum_xq, best.quality);
            for k in 0..N / 8 {
                best.points[k] = better.choose(points[k], best.points[k]);
                best.places[k] = better.choose(places[k], best.places[k]);
            }
        }
    }

    /// Chooses points once more for the scale found, in the lanes and eights that `again` names, and fits the scale to them.
    #[inline(always)]
    pub fn settle(&mut self, again: [Mask<S>; 4]) {
        let zero = F32x16::splat(self.simd, 0.0);
        let positive = self.fit.scale.gt(zero);
        let places = self.round(F32x16::splat(self.simd, 1.0) / self.fit.scale);
        let points = self.points(&places, self.fit.scale);
        let mut any = zero.lt(zero);
        for k in 0..N / 8 {
            let again = again[k] & positive;
            self.fit.points[k] = again.choose(points[k], self.fit.points[k]);
            any = any | again;
        }
        let (sum_xq, sum_qq) = self.sums(&self.fit.points);
        self.fit.scale = (any & sum_qq.gt(zero)).select(sum_xq / sum_qq, self.fit.scale);
    }

    /// Every lane and eight.
    #[inline(always)]
    pub fn all(&self) -> [Mask<S>; 4] {
        let zero = I32x16::splat(self.simd, 0);
        [zero.to_float().eq(zero.to_float()); 4]
    }

    /// Where the weights were not rounded to a grid point.
    #[inline(always)]
    pub fn off_grid(&self) -> [Mask<S>; 4] {
        let mut off = self.all();
        for k in 0..N / 8 {
            let places = self.fit.places[k].to_u16();
            let mut bits = 0;
            for lane in 0..16 {
                let place = u16_at(&places, lane);
                bits |= u16::from(self.grid.index(usize::from(place)).is_none()) << lane;
            }
            off[k] = I32x16::spread(self.simd, bits, 1).has(1);
        }
        off
    }

    /// The levels that `x * inverse` is nearest to, as places.
    #[inline(always)]
    fn round(&self, inverse: F32x16<S>) -> [I32x16<S>; 4] {
        let (half, one) = (F32x16::splat(self.simd, 0.5), F32x16::splat(self.simd, 1.0));
        let mut places = [I32x16::splat(self.simd, 0); 4];
        for k in 0..N / 8 {
            let mut place = F32x16::splat(self.simd, 0.0);
            for i in 0..8 {
                let level = (half * (inverse * self.blocks.x[8 * k + i] - one)).nearest_int_in(0, LEVELS as i32 - 1);
                place = place * F32x16::splat(self.simd, LEVELS as f32) + level;
            }
            places[k] = place.truncate();
        }
        places
    }

    /// The best grid points near the places.
    #[inline(always)]
    fn points(&self, places: &[I32x16<S>; 4], scale: F32x16<S>) -> [I32x16<S>; 4] {
        let scales = scale.to_array();
        let mut points = [I32x16::splat(self.simd, 0); 4];
        for k in 0..N / 8 {
            let (places, mut chosen) = (places[k].to_u16(), [0; 32]);
            for lane in 0..16 {
                let place = u16_at(&places, lane);
                let point = self.grid.nearest(self.simd, usize::from(place), &self.eights[lane][k], scales[lane], &VALUES);
                chosen[2 * lane..][..2].copy_from_slice(&point.to_le_bytes());
            }
            points[k] = I32x16::load_u16(self.simd, &chosen);
        }
        points
    }

    /// `(sum w*x*q, sum w*q*q)`.
    #[inline(always)]
    fn sums(&self, points: &[I32x16<S>; 4]) -> (F32x16<S>, F32x16<S>) {
        let values = F32x16::load_quarters(self.simd, &VALUES);
        let (mut sum_xq, mut sum_qq) = (F32x16::splat(self.simd, 0.0), F32x16::splat(self.simd, 0.0));
        for k in 0..N / 8 {
            let mut levels = points[k];
            for i in 8 * k..8 * k + 8 {
                let (x, w, q) = (self.blocks.x[i], self.blocks.w[i], values.pick(levels));
                sum_xq = sum_xq + w * x * q;
                sum_qq = sum_qq + w * q * q;
                levels = levels.shr::<2>();
            }
        }
        (sum_xq, sum_qq)
    }

    /// What was found; nothing in the lanes that `skip` names.
    #[inline(always)]
    pub fn finish(self, skip: Mask<S>) -> Found {
        let (simd, zero, none) = (self.simd, F32x16::splat(self.simd, 0.0), I32x16::splat(self.simd, 0));
        let scale = skip.select(zero, self.fit.scale);
        let negative = scale.lt(zero);
        let mut found = Found { scales: negative.select(-scale, scale).to_array(), points: [[0; 4]; 16], signs: [[0; 4]; 16] };
        for k in 0..N / 8 {
            let points = skip.choose(none, self.fit.points[k]).to_u16();
            let signs = negative.choose(self.blocks.signs[k] ^ I32x16::splat(simd, 0xff), self.blocks.signs[k]);
            let signs = skip.choose(none, signs).to_u8();
            for lane in 0..16 {
                found.points[lane][k] = self.grid.index(place(u16_at(&points, lane))).unwrap_or(0);
                found.signs[lane][k] = signs[lane];
            }
        }
        found
    }
}

/// What the search found for sixteen sub-blocks.
pub(super) struct Found {
    /// Not negative.
    pub scales: [f32; 16],
    /// Indices in the file of the points of each sub-block.
    pub points: [[u16; 4]; 16],
    /// Bit `i` is set where weight `i` of the eight is negative.
    pub signs: [[u8; 4]; 16],
}

/// Four bits each, the first of two lowest.
#[inline(always)]
pub(super) fn pack_nibbles(of: &[u8; 16]) -> [u8; 8] {
    let (pairs, _) = of.as_chunks::<2>();
    let mut packed = [0; 8];
    for (packed, pair) in packed.iter_mut().zip(pairs) {
        *packed = pair[0] | pair[1] << 4;
    }
    packed
}
