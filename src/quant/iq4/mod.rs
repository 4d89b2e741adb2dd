//! The formats of four bits whose sixteen levels are not evenly spaced: closer together near zero, where most weights are.
//!
//! Quantizing tries sixteen scales for every 32 weights, in sixteen lanes, each on its own 32 weights. The level nearest to a value
//! is found by table: the value's bucket tells the one midpoint that can lie in it, and the levels on both sides.

mod iq4_nl;
mod iq4_xs;

pub(super) use iq4_nl::IQ4_NL;
pub(super) use iq4_xs::IQ4_XS;

use super::block::inverse;
use crate::simd::{F32x16, I32x16, Simd};

/// The levels of a weight in units of its scale. Facts of the format, from ggml's `kvalues_iq4nl`.
const LEVELS: [f32; 16] =
    [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];

/// The largest magnitude among them.
const LEVEL_MAX: f32 = -LEVELS[0];

/// The places of the levels in the list: what a file holds.
const PLACES: [f32; 16] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

/// Magnitudes below this count as zero.
const ALL_ZERO: f32 = 1e-15;

/// The largest magnitude given to [`Nearest::get`]: a trial maps the largest weight to 127 + 7, and rounding adds little.
const VALUE_MAX: f32 = 135.0;

/// Width of a bucket. Midpoints are 11 and more apart, so that there is at most one in a bucket; 32 buckets reach to 139.
const BUCKET: f32 = 9.0;

/// Bucket `b` is what rounds to `b` in units of its width, the entry `b % 32`.
struct Buckets {
    /// The midpoint of two levels in the bucket, edges included; infinity where there is none.
    midpoint: [[f32; 16]; 2],
    /// What stands for the level below the midpoint, and from the midpoint on.
    below: [[f32; 16]; 2],
    above: [[f32; 16]; 2],
}

/// `names`: what stands for each level.
const fn buckets(names: &[f32; 16]) -> Buckets {
    let mut buckets = Buckets { midpoint: [[f32::INFINITY; 16]; 2], below: [[0.0; 16]; 2], above: [[0.0; 16]; 2] };
    let mut entry = 0;
    while entry < 32 {
        let centre = BUCKET * if entry < 16 { entry as f32 } else { entry as f32 - 32.0 };
        let (half, at) = (entry / 16, entry % 16);
        let (mut level, mut below) = (0, 0);
        while level < 15 {
            let midpoint = 0.5 * (LEVELS[level] + LEVELS[level + 1]);
            if midpoint < centre - 0.5 * BUCKET {
                below = level + 1;
            } else if midpoint <= centre + 0.5 * BUCKET {
                buckets.midpoint[half][at] = midpoint;
            }
            level += 1;
        }
        buckets.below[half][at] = names[below];
        buckets.above[half][at] = names[if below < 15 { below + 1 } else { 15 }];
        entry += 1;
    }
    buckets
}

/// Finds what stands for the nearest level.
#[derive(Clone, Copy)]
struct Nearest<S: Simd> {
    midpoint: [F32x16<S>; 2],
    below: [F32x16<S>; 2],
    above: [F32x16<S>; 2],
}

impl<S: Simd> Nearest<S> {
    /// The levels themselves.
    #[inline(always)]
    fn level(simd: S) -> Self {
        const BUCKETS: Buckets = buckets(&LEVELS);
        Nearest::load(simd, &BUCKETS)
    }

    /// The places of the levels.
    #[inline(always)]
    fn place(simd: S) -> Self {
        const BUCKETS: Buckets = buckets(&PLACES);
        Nearest::load(simd, &BUCKETS)
    }

    #[inline(always)]
    fn load(simd: S, buckets: &Buckets) -> Self {
        let pair = |halves: &[[f32; 16]; 2]| -> [F32x16<S>; 2] { [F32x16::load(simd, &halves[0]), F32x16::load(simd, &halves[1])] };
        Nearest { midpoint: pair(&buckets.midpoint), below: pair(&buckets.below), above: pair(&buckets.above) }
    }

    /// A value on a midpoint goes up. ggml compares the distances to both levels; near a midpoint both differences are exact, so that
    /// is the same. Values beyond [`VALUE_MAX`] give something else.
    #[inline(always)]
    fn get(&self, simd: S, value: F32x16<S>) -> F32x16<S> {
        let bucket = (value * F32x16::splat(simd, 1.0 / BUCKET)).nearest_low_bits();
        let is_below = value.lt(F32x16::lookup_in(self.midpoint, bucket));
        is_below.select(F32x16::lookup_in(self.below, bucket), F32x16::lookup_in(self.above, bucket))
    }

    /// Any value; NaN goes to the highest level.
    #[inline(always)]
    fn get_clamped(&self, simd: S, value: F32x16<S>) -> F32x16<S> {
        let max = F32x16::splat(simd, VALUE_MAX);
        self.get(simd, value.min(max).max(-max))
    }
}

/// How much each weight counts: its square, or with importance `importance * sqrt(sigma2 + x^2)`.
#[inline(always)]
fn weighting<S: Simd>(x: &[F32x16<S>; 32], importance: Option<&[F32x16<S>; 32]>, sigma2: F32x16<S>) -> [F32x16<S>; 32] {
    let mut w = *x;
    for i in 0..32 {
        w[i] = match importance {
            Some(importance) => importance[i] * (sigma2 + x[i] * x[i]).sqrt(),
            None => x[i] * x[i],
        };
    }
    w
}

/// The scales that fit 32 weights each best.
#[inline(always)]
fn search<S: Simd>(simd: S, x: &[F32x16<S>; 32], w: &[F32x16<S>; 32]) -> F32x16<S> {
    let (zero, one) = (F32x16::splat(simd, 0.0), F32x16::splat(simd, 1.0));
    let (mut max, mut magnitude) = (zero, zero);
    for i in 0..32 {
        let larger = x[i].abs().gt(magnitude);
        magnitude = larger.select(x[i].abs(), magnitude);
        max = larger.select(x[i], max);
    }

    let nearest = Nearest::level(simd);
    let (sum_xq, sum_qq) = sums(simd, &nearest, x, w, one / (-max / F32x16::splat(simd, LEVELS[0])));
    let mut scale = sum_qq.gt(zero).select(sum_xq / sum_qq, zero);
    let mut best = scale * sum_xq;
    for trial in -7..=7 {
        let (sum_xq, sum_qq) = sums(simd, &nearest, x, w, F32x16::splat(simd, LEVELS[0] + trial as f32) / max);
        let better = sum_qq.gt(zero) & (sum_xq * sum_xq).gt(best * sum_qq);
        let fit = sum_xq / sum_qq;
        scale = better.select(fit, scale);
        best = better.select(fit * sum_xq, best);
    }
    magnitude.lt(F32x16::splat(simd, ALL_ZERO)).select(zero, scale)
}

/// `(sum w*x*q, sum w*q*q)` where `q` is the level nearest to `x * inverse`.
#[inline(always)]
fn sums<S: Simd>(
    simd: S,
    nearest: &Nearest<S>,
    x: &[F32x16<S>; 32],
    w: &[F32x16<S>; 32],
    inverse: F32x16<S>,
) -> (F32x16<S>, F32x16<S>) {
    let (mut sum_xq, mut sum_qq) = (F32x16::splat(simd, 0.0), F32x16::splat(simd, 0.0));
    for i in 0..32 {
        let q = nearest.get(simd, x[i] * inverse);
        let wq = w[i] * q;
        sum_xq = sum_xq + wq * x[i];
        sum_qq = sum_qq + wq * q;
    }
    (sum_xq, sum_qq)
}

/// The places of the levels nearest to 32 weights times `inverse`: the first 16 in the low halves, the others in the high halves.
#[inline(always)]
fn pack<S: Simd>(simd: S, nearest: &Nearest<S>, weights: &[[f32; 16]; 2], inverse: f32) -> [u8; 16] {
    let inverse = F32x16::splat(simd, inverse);
    let [low, high] = [F32x16::load(simd, &weights[0]) * inverse, F32x16::load(simd, &weights[1]) * inverse];
    let (low, high) = (nearest.get_clamped(simd, low).truncate(), nearest.get_clamped(simd, high).truncate());
    (low | high.shl::<4>()).to_u8()
}

/// Undoes [`pack`].
#[inline(always)]
fn unpack<S: Simd>(simd: S, qs: &[u8; 16], scale: F32x16<S>) -> [F32x16<S>; 2] {
    let levels = F32x16::load(simd, &LEVELS) * scale;
    let places = I32x16::load_u8(simd, qs);
    [levels.lookup(places), levels.lookup(places.shr::<4>())]
}

/// Sixteen times 32 weights, the missing ones zero.
#[inline(always)]
fn padded(weights: &[f32]) -> [f32; 512] {
    let mut padded = [0.0; 512];
    padded[..weights.len()].copy_from_slice(weights);
    padded
}
