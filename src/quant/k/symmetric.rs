//! The search of the scale for `w = scale*q`, q from `-n` to `n - 1`: ggml's `make_qx_quants`.
//!
//! For each trial scale the quants are found first, then the scale that fits those quants best (weighted least squares). The fit is
//! best where `(sum w*x*q)^2 / (sum w*q*q)` is largest.

use super::ALL_ZERO;
use crate::simd::{F32x16, Simd};

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
