//! Two searches of the scale for `w = scale*q`, q from `-n` to `n - 1`.
//!
//! [`search`] is ggml's `make_qx_quants`, and [`refine`] its `make_q3_quants`.
//!
//! For each trial scale the quants are found first, then the scale that fits those quants best (weighted least squares). The fit is
//! best where `(sum w*x*q)^2 / (sum w*q*q)` is largest.

use super::ALL_ZERO;
use crate::simd::{F32x16, Mask, Simd};

/// What the search found for sixteen sub-blocks.
pub(in crate::quant) struct Fit<S: Simd> {
    pub scale: F32x16<S>,
    /// The quants that won are `x * inverse`, rounded and clamped; 0 stands for a sub-block that is all zero.
    pub inverse: F32x16<S>,
}

/// `w`: how much each weight counts.
#[inline(always)]
pub(in crate::quant) fn search<S: Simd, const N: usize>(simd: S, x: &[F32x16<S>; N], w: &[F32x16<S>; N], n: i32) -> Fit<S> {
    let zero = F32x16::splat(simd, 0.0);
    let (mut max, mut magnitude) = (zero, zero);
    let mut wx = *x;
    for i in 0..N {
        let larger = x[i].abs().gt(magnitude);
        magnitude = larger.select(x[i].abs(), magnitude);
        max = larger.select(x[i], max);
        wx[i] = w[i] * x[i];
    }

    let mut fit = Fit { scale: zero, inverse: F32x16::splat(simd, -n as f32) / max };
    let (sum_xq, sum_qq) = sums(simd, x, w, &wx, fit.inverse, n);
    fit.scale = sum_qq.eq(zero).select(zero, sum_xq / sum_qq);
    let mut best = fit.scale * sum_xq;
    for trial in -9..=9 {
        if trial == 0 {
            continue;
        }
        let inverse = F32x16::splat(simd, -(n as f32 + 0.1 * trial as f32)) / max;
        let (sum_xq, sum_qq) = sums(simd, x, w, &wx, inverse, n);
        let better = sum_qq.gt(zero) & (sum_xq * sum_xq).gt(best * sum_qq);
        let scale = sum_xq / sum_qq;
        fit.scale = better.select(scale, fit.scale);
        fit.inverse = better.select(inverse, fit.inverse);
        best = better.select(scale * sum_xq, best);
    }
    let all_zero = magnitude.lt(F32x16::splat(simd, ALL_ZERO));
    Fit { scale: all_zero.select(zero, fit.scale), inverse: all_zero.select(zero, fit.inverse) }
}

/// `(sum w*x*q, sum w*q*q)` for the quants of a trial; `wx` is `w*x`.
#[inline(always)]
fn sums<S: Simd, const N: usize>(
    simd: S,
    x: &[F32x16<S>; N],
    w: &[F32x16<S>; N],
    wx: &[F32x16<S>; N],
    inverse: F32x16<S>,
    n: i32,
) -> (F32x16<S>, F32x16<S>) {
    let (mut sum_xq, mut sum_qq) = (F32x16::splat(simd, 0.0), F32x16::splat(simd, 0.0));
    for i in 0..N {
        let q = (x[i] * inverse).nearest_int_in(-n, n - 1);
        sum_xq = sum_xq + wx[i] * q;
        sum_qq = sum_qq + w[i] * q * q;
    }
    (sum_xq, sum_qq)
}

/// What [`refine`] found for sixteen sub-blocks.
#[derive(Clone, Copy)]
pub(in crate::quant) struct Refined<S: Simd, const N: usize> {
    pub scale: F32x16<S>,
    /// From 0 to `2n - 1`, as they are stored; 0 in a sub-block that is all zero.
    pub quants: [F32x16<S>; N],
}

/// Sixteen sub-blocks whose quants are moved.
#[derive(Clone, Copy)]
struct Moving<S: Simd, const N: usize> {
    w: [F32x16<S>; N],
    wx: [F32x16<S>; N],
    quants: [F32x16<S>; N],
    sum_xq: F32x16<S>,
    sum_qq: F32x16<S>,
}

/// Rounds of moving the quants.
const ROUNDS: usize = 5;

/// ggml's `make_q3_quants`: starts from the scale that makes the largest weight `-n`, and moves quants, one after the other, to where
/// they fit the others best, a weight counting as much as its square. `G` groups of sixteen sub-blocks advance in step, so that one's
/// divisions do not hold up the others: with two an eighth faster with AVX-512.
#[inline(always)]
pub(in crate::quant) fn refine<S: Simd, const N: usize, const G: usize>(
    simd: S,
    groups: &[[F32x16<S>; N]; G],
    n: i32,
) -> [Refined<S, N>; G] {
    let zero = F32x16::splat(simd, 0.0);
    let mut moving = [Moving::new(simd, &groups[0], n); G];
    for g in 1..G {
        moving[g] = Moving::new(simd, &groups[g], n);
    }
    for _ in 0..ROUNDS {
        let mut changed = zero.lt(zero);
        for i in 0..N {
            for g in 0..G {
                changed = changed | moving[g].move_quant(simd, groups[g][i], i, n);
            }
        }
        if changed.bits() == 0 {
            break;
        }
    }
    let mut refined = [Refined { scale: zero, quants: [zero; N] }; G];
    for g in 0..G {
        let Moving { quants, sum_xq, sum_qq, .. } = moving[g];
        refined[g].scale = (!sum_qq.le(zero)).select(sum_xq / sum_qq, zero);
        let mut magnitude = zero;
        for x in groups[g] {
            magnitude = magnitude.max(x.abs());
        }
        let all_zero = magnitude.lt(F32x16::splat(simd, ALL_ZERO));
        refined[g].scale = all_zero.select(zero, refined[g].scale);
        for i in 0..N {
            refined[g].quants[i] = all_zero.select(zero, quants[i] + F32x16::splat(simd, n as f32));
        }
    }
    refined
}

impl<S: Simd, const N: usize> Moving<S, N> {
    #[inline(always)]
    fn new(simd: S, x: &[F32x16<S>; N], n: i32) -> Self {
        let zero = F32x16::splat(simd, 0.0);
        let (mut max, mut magnitude) = (zero, zero);
        for x in x {
            let larger = x.abs().gt(magnitude);
            magnitude = larger.select(x.abs(), magnitude);
            max = larger.select(*x, max);
        }
        let inverse = F32x16::splat(simd, -n as f32) / max;
        let mut moving = Moving { w: *x, wx: *x, quants: *x, sum_xq: zero, sum_qq: zero };
        for i in 0..N {
            let q = (inverse * x[i]).nearest_int_in(-n, n - 1);
            let w = x[i] * x[i];
            moving.quants[i] = q;
            moving.w[i] = w;
            moving.wx[i] = w * x[i];
            moving.sum_xq = moving.sum_xq + moving.wx[i] * q;
            moving.sum_qq = moving.sum_qq + w * q * q;
        }
        moving
    }

    /// Moves quant `i`, that of `x`, where that makes the fit better; true where it did.
    #[inline(always)]
    fn move_quant(&mut self, simd: S, x: F32x16<S>, i: usize, n: i32) -> Mask<S> {
        let zero = F32x16::splat(simd, 0.0);
        let (w, wx, old) = (self.w[i], self.wx[i], self.quants[i]);
        let rest_xq = self.sum_xq - wx * old;
        let rest_qq = self.sum_qq - w * old * old;
        let q = (x * rest_qq / rest_xq).nearest_int_in(-n, n - 1);
        let other = rest_xq.gt(zero) & !q.eq(old);
        // Mostly nothing moves, and with a branch that foresees it the next quant need not wait for this one: 1.8 times as fast.
        if other.bits() == 0 {
            return other;
        }
        let (sum_xq, sum_qq) = (rest_xq + wx * q, rest_qq + w * q * q);
        let better = other & sum_qq.gt(zero) & (sum_xq * sum_xq * self.sum_qq).gt(self.sum_xq * self.sum_xq * sum_qq);
        self.quants[i] = better.select(q, old);
        self.sum_xq = better.select(sum_xq, self.sum_xq);
        self.sum_qq = better.select(sum_qq, self.sum_qq);
        better
    }
}
