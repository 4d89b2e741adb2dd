//! The scale for `w = scale*q`, q from 0 to a largest: ggml's `make_qp_quants`.
//!
//! First the scale of least error among nine is taken, then the quants are moved one by one where that makes the fit better.

use crate::simd::{F32x16, Simd};

/// The least integer that ggml's rounding knows.
const LEAST: i32 = -1 << 22;

/// The scale of sixteen sub-blocks; `w`: how much each weight counts. 0 where nothing counts.
#[inline(always)]
pub(super) fn fit<S: Simd, const N: usize>(simd: S, x: &[F32x16<S>; N], w: &[F32x16<S>; N], q_max: i32) -> F32x16<S> {
    let zero = F32x16::splat(simd, 0.0);
    let mut max = zero;
    for i in 0..N {
        max = max.max(x[i]);
    }
    let mut inverse = F32x16::splat(simd, q_max as f32) / max;
    let mut quants = [zero; N];
    for i in 0..N {
        quants[i] = as_byte((inverse * x[i]).nearest_int_in(LEAST, -LEAST - 1));
    }
    let mut least = error(simd, x, w, &quants, inverse);
    for trial in -4..=4 {
        if trial == 0 {
            continue;
        }
        let other = F32x16::splat(simd, 0.1 * trial as f32 + q_max as f32) / max;
        for i in 0..N {
            quants[i] = (other * x[i]).nearest_int_in(LEAST, q_max);
        }
        let of_other = error(simd, x, w, &quants, other);
        let better = of_other.lt(least);
        least = better.select(of_other, least);
        inverse = better.select(other, inverse);
    }

    let (mut sum_xq, mut sum_qq) = (zero, zero);
    for i in 0..N {
        let q = (inverse * x[i]).nearest_int_in(LEAST, q_max);
        quants[i] = as_byte(q);
        sum_xq = sum_xq + w[i] * x[i] * q;
        sum_qq = sum_qq + w[i] * q * q;
    }
    for _ in 0..5 {
        let mut changed = zero.lt(zero);
        for i in 0..N {
            let others_xq = sum_xq - w[i] * x[i] * quants[i];
            let others_qq = sum_qq - w[i] * quants[i] * quants[i];
            let q = (x[i] * others_qq / others_xq).nearest_int_in(LEAST, q_max);
            let (xq, qq) = (others_xq + w[i] * x[i] * q, others_qq + w[i] * q * q);
            let better = others_xq.gt(zero) & others_qq.gt(zero) & !q.eq(quants[i]) & (xq * xq * sum_qq).gt(sum_xq * sum_xq * qq);
            sum_xq = better.select(xq, sum_xq);
            sum_qq = better.select(qq, sum_qq);
            quants[i] = better.select(as_byte(q), quants[i]);
            changed = changed | better;
        }
        if changed.bits() == 0 {
            break;
        }
    }
    // A sum that has overflowed to NaN makes the scale NaN.
    sum_qq.le(zero).select(zero, sum_xq / sum_qq)
}

/// ggml keeps quants in bytes, where negative ones wrap round.
#[inline(always)]
fn as_byte<S: Simd>(q: F32x16<S>) -> F32x16<S> {
    (q.truncate() & 255).to_float()
}

/// The weighted error of the quants.
#[inline(always)]
fn error<S: Simd, const N: usize>(
    simd: S,
    x: &[F32x16<S>; N],
    w: &[F32x16<S>; N],
    quants: &[F32x16<S>; N],
    inverse: F32x16<S>,
) -> F32x16<S> {
    let scale = F32x16::splat(simd, 1.0) / inverse;
    let mut sum = F32x16::splat(simd, 0.0);
    for i in 0..N {
        let miss = x[i] - scale * quants[i];
        sum = sum + w[i] * miss * miss;
    }
    sum
}
