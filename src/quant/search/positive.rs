//! The search of the scale for `x = scale*q` where hardly an `x` is negative, q from 0 to `n`: ggml's `make_qp_quants`. With
//! importance it makes the scales and minimums of sub-blocks into whole numbers; IQ2_XXS starts from its scale.
//!
//! The scale of least weighted error among nine is only where it starts. Then the scale is the one that fits the quants best (weighted
//! least squares), and quants are moved, one after the other, to where they fit the others best.

use super::ALL_ZERO;
use crate::simd::{F32x16, Simd};

/// What the search found for sixteen runs of numbers.
pub(in crate::quant) struct Fit<S: Simd, const N: usize> {
    /// NaN where the sums of the search overflowed; ggml would write something that is no scale.
    pub scale: F32x16<S>,
    /// From 0 to 255: ggml keeps them in bytes, in which the quant of a negative number wraps round.
    pub quants: [F32x16<S>; N],
}

/// Where [`F32x16::nearest_int_in`] clamps nothing.
const LOW: i32 = -(1 << 22);

/// Rounds of moving the quants.
const ROUNDS: usize = 5;

/// `w`: how much each number counts.
#[inline(always)]
pub(in crate::quant) fn search<S: Simd, const N: usize>(simd: S, x: &[F32x16<S>; N], w: &[F32x16<S>; N], n: i32) -> Fit<S, N> {
    let zero = F32x16::splat(simd, 0.0);
    let mut max = zero;
    for i in 0..N {
        max = max.max(x[i]);
    }
    let inverse = best_inverse(simd, x, w, max, n);
    let mut quants = [zero; N];
    let (mut sum_xq, mut sum_qq) = (zero, zero);
    for i in 0..N {
        let q = (inverse * x[i]).nearest_int_in(LOW, n);
        sum_xq = sum_xq + w[i] * x[i] * q;
        sum_qq = sum_qq + w[i] * q * q;
        quants[i] = as_byte(q);
    }
    for _ in 0..ROUNDS {
        let mut changed = zero.lt(zero);
        for i in 0..N {
            let rest_xq = sum_xq - w[i] * x[i] * quants[i];
            let rest_qq = sum_qq - w[i] * quants[i] * quants[i];
            let q = (x[i] * rest_qq / rest_xq).nearest_int_in(LOW, n);
            let (moved_xq, moved_qq) = (rest_xq + w[i] * x[i] * q, rest_qq + w[i] * q * q);
            let better = rest_xq.gt(zero)
                & rest_qq.gt(zero)
                & !q.eq(quants[i])
                & (moved_xq * moved_xq * sum_qq).gt(sum_xq * sum_xq * moved_qq);
            quants[i] = better.select(as_byte(q), quants[i]);
            sum_xq = better.select(moved_xq, sum_xq);
            sum_qq = better.select(moved_qq, sum_qq);
            changed = changed | better;
        }
        if changed.bits() == 0 {
            break;
        }
    }
    let finite = sum_xq.abs().le(F32x16::splat(simd, f32::MAX)) & sum_qq.abs().le(F32x16::splat(simd, f32::MAX));
    let mut scale = sum_qq.gt(zero).select(sum_xq / sum_qq, zero);
    scale = finite.select(scale, F32x16::splat(simd, f32::NAN));
    let all_zero = max.lt(F32x16::splat(simd, ALL_ZERO));
    for quant in &mut quants {
        *quant = all_zero.select(zero, *quant);
    }
    Fit { scale: all_zero.select(zero, scale), quants }
}

/// Of nine scales around `max / n`, the reciprocal of the one with the least weighted error.
#[inline(always)]
fn best_inverse<S: Simd, const N: usize>(simd: S, x: &[F32x16<S>; N], w: &[F32x16<S>; N], max: F32x16<S>, n: i32) -> F32x16<S> {
    let one = F32x16::splat(simd, 1.0);
    let mut best = F32x16::splat(simd, n as f32) / max;
    let mut best_error = F32x16::splat(simd, 0.0);
    let scale = one / best;
    for i in 0..N {
        let miss = x[i] - scale * as_byte((best * x[i]).nearest_int_in(LOW, !LOW));
        best_error = best_error + w[i] * miss * miss;
    }
    for trial in -4..=4 {
        if trial == 0 {
            continue;
        }
        let inverse = F32x16::splat(simd, 0.1 * trial as f32 + n as f32) / max;
        let scale = one / inverse;
        let mut error = F32x16::splat(simd, 0.0);
        for i in 0..N {
            let miss = x[i] - scale * (inverse * x[i]).nearest_int_in(LOW, n);
            error = error + w[i] * miss * miss;
        }
        let better = error.lt(best_error);
        best = better.select(inverse, best);
        best_error = better.select(error, best_error);
    }
    best
}

/// A whole number as C's conversion to an unsigned byte leaves it.
#[inline(always)]
fn as_byte<S: Simd>(q: F32x16<S>) -> F32x16<S> {
    (q.truncate() & 0xff).to_float()
}
