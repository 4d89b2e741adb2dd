//! The search of scale and minimum for `w = scale*q - min`.
//!
//! For each trial scale the quants are found first, then the scale and minimum that fit those quants best (weighted least squares),
//! then the error of that fit: ggml's `make_qkx2_quants`, and `make_qkx3_quants`, which differs only in the weighting it is given.

use super::Lanes;
use crate::simd::{F32x16, Mask, Simd};

/// What is tried: `(first + i * step + q_max) / range` for `i` from 0 to `n`, `q_max` being the largest quant.
pub(in crate::quant) struct Trials {
    pub q_max: i32,
    pub first: f32,
    pub step: f32,
    pub n: u32,
    pub error: Error,
}

/// What a search makes small: the weighted sum of these.
pub(in crate::quant) enum Error {
    Squares,
    Magnitudes,
}

impl Error {
    #[inline(always)]
    fn of<S: Simd>(&self, miss: F32x16<S>) -> F32x16<S> {
        match self {
            Error::Squares => miss * miss,
            Error::Magnitudes => miss.abs(),
        }
    }
}

impl Trials {
    /// What every format tries with importance.
    pub const fn weighted(q_max: i32) -> Trials {
        Trials { q_max, first: -0.9, step: 0.05, n: 36, error: Error::Squares }
    }
}

/// How far the search among sixteen sub-blocks has come.
#[derive(Clone, Copy)]
struct Search<S: Simd> {
    sum_wx: F32x16<S>,
    max: F32x16<S>,
    best_error: F32x16<S>,
    best: Fit<S>,
}

/// A scale and minimum, and what makes the quants they go with: `(x - origin) * inverse`, rounded and clamped.
#[derive(Clone, Copy)]
pub(in crate::quant) struct Fit<S: Simd> {
    pub scale: F32x16<S>,
    /// Not positive; the format stores its negative.
    pub min: F32x16<S>,
    pub inverse: F32x16<S>,
    pub origin: F32x16<S>,
    /// How much the sub-block counts.
    pub sum_w: F32x16<S>,
    /// False where the quants are all equal and fit nothing.
    valid: Mask<S>,
}

impl<S: Simd> Fit<S> {
    /// Of sub-blocks that are not there.
    #[inline(always)]
    pub fn none(simd: S) -> Self {
        let zero = F32x16::splat(simd, 0.0);
        Fit { scale: zero, min: zero, inverse: zero, origin: zero, sum_w: zero, valid: zero.eq(zero) }
    }
}

impl<S: Simd> Search<S> {
    /// Starts from the scale that maps minimum and maximum to the first and last quant.
    #[inline(always)]
    fn new<const N: usize>(simd: S, Lanes { x, w }: &Lanes<S, N>, trials: &Trials) -> Self {
        let zero = F32x16::splat(simd, 0.0);
        let (mut min, mut max) = (x[0], x[0]);
        let (mut sum_w, mut sum_wx) = (w[0], w[0] * x[0]);
        for i in 1..N {
            min = x[i].min(min);
            max = x[i].max(max);
            sum_w = sum_w + w[i];
            sum_wx = sum_wx + w[i] * x[i];
        }
        min = zero.min(min);
        let inverse = F32x16::splat(simd, trials.q_max as f32) / (max - min);
        let scale = F32x16::splat(simd, 1.0) / inverse;
        let mut best_error = zero;
        for i in 0..N {
            let q = ((x[i] - min) * inverse).nearest_int_in(0, trials.q_max);
            best_error = best_error + w[i] * trials.error.of(scale * q + min - x[i]);
        }
        let best = Fit { scale, min, inverse, origin: min, sum_w, valid: zero.eq(zero) };
        Search { sum_wx, max, best_error, best }
    }

    /// The quants for a scale of `range / steps`, and the scale and minimum that fit them best.
    #[inline(always)]
    fn fit<const N: usize>(
        &self,
        simd: S,
        Lanes { x, w }: &Lanes<S, N>,
        steps: f32,
        q_max: i32,
        quants: &mut [F32x16<S>; N],
    ) -> Fit<S> {
        let zero = F32x16::splat(simd, 0.0);
        let Fit { min: origin, sum_w, .. } = self.best;
        let inverse = F32x16::splat(simd, steps) / (self.max - origin);
        let (mut sum_wq, mut sum_wqq, mut sum_wqx) = (zero, zero, zero);
        for i in 0..N {
            let q = ((x[i] - origin) * inverse).nearest_int_in(0, q_max);
            let wq = w[i] * q;
            sum_wq = sum_wq + wq;
            sum_wqq = sum_wqq + wq * q;
            sum_wqx = sum_wqx + wq * x[i];
            quants[i] = q;
        }
        let determinant = sum_w * sum_wqq - sum_wq * sum_wq;
        let mut scale = (sum_w * sum_wqx - self.sum_wx * sum_wq) / determinant;
        let mut min = (sum_wqq * self.sum_wx - sum_wq * sum_wqx) / determinant;
        let positive = min.gt(zero);
        if positive.bits() != 0 {
            min = positive.select(zero, min);
            scale = positive.select(sum_wqx / sum_wqq, scale);
        }
        Fit { scale, min, inverse, origin, sum_w, valid: determinant.gt(zero) }
    }

    /// Keeps the fit of `quants` in the lanes where its error is smaller.
    #[inline(always)]
    fn keep_if_better<const N: usize>(
        &mut self,
        simd: S,
        Lanes { x, w }: &Lanes<S, N>,
        fit: Fit<S>,
        quants: &[F32x16<S>; N],
        trials: &Trials,
    ) {
        let mut error = F32x16::splat(simd, 0.0);
        for i in 0..N {
            error = error + w[i] * trials.error.of(fit.scale * quants[i] + fit.min - x[i]);
        }
        let better = fit.valid & error.lt(self.best_error);
        let best = &mut self.best;
        self.best_error = better.select(error, self.best_error);
        best.scale = better.select(fit.scale, best.scale);
        best.min = better.select(fit.min, best.min);
        best.inverse = better.select(fit.inverse, best.inverse);
        best.origin = better.select(fit.origin, best.origin);
    }
}

/// The best fits of `G` times sixteen sub-blocks. Two groups advance in step, because while one waits for its divisions the other
/// keeps the adders busy: a sixth faster with AVX-512 on Zen 5.
#[inline(always)]
pub(in crate::quant) fn search<S: Simd, const N: usize, const G: usize>(
    simd: S,
    groups: &[Lanes<S, N>; G],
    trials: &Trials,
) -> [Fit<S>; G] {
    let zero = F32x16::splat(simd, 0.0);
    let mut searches = [Search::new(simd, &groups[0], trials); G];
    for g in 1..G {
        searches[g] = Search::new(simd, &groups[g], trials);
    }
    let mut quants = [[zero; N]; G];
    let mut fits = [searches[0].best; G];
    for i in 0..=trials.n {
        let steps = trials.first + trials.step * i as f32 + trials.q_max as f32;
        for g in 0..G {
            fits[g] = searches[g].fit(simd, &groups[g], steps, trials.q_max, &mut quants[g]);
        }
        for g in 0..G {
            searches[g].keep_if_better(simd, &groups[g], fits[g], &quants[g], trials);
        }
    }
    for g in 0..G {
        // Without a range there is nothing to scale, every quant is 0, and no trial was better.
        let Search { best, max, .. } = searches[g];
        let flat = max.eq(best.origin);
        fits[g] = Fit { scale: flat.select(zero, best.scale), inverse: flat.select(zero, best.inverse), ..best };
    }
    fits
}
