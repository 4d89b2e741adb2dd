//! The scales of a block: those by which its weights, each with its own cost, are met best.
//!
//! Sixteen rows at a time, one in each lane; a column costs the same in all of them. Columns whose levels are chosen together are a run.
//!
//! ```text
//! each sub-block:  S, M  from a few trials of the range, each refitted by least squares
//! the super-block: d, dmin from the largest of them, a little less, a little more
//!                  then by turns: each sub-block's sc and m one up or down; d and dmin by least squares
//! ```

use super::grid::Grid;
use super::metric::{RUN_MAX, Run};
use super::scales::{nearest, neighbour, whole};
use crate::quant::{Lattice, Mins, SubScales};
use crate::simd::{F32x16, Simd, Sixteen};

/// Sub-blocks of a block at most.
pub(super) const SUB_BLOCKS_MAX: usize = 16;

/// Times that a trial is rounded and refitted.
const REFITS: usize = 2;
/// Times that scales and super-scales are fitted in turn.
const TURNS: usize = 3;

/// The scales of one block in sixteen rows.
#[derive(Clone, Copy)]
pub(super) struct Scales<S: Simd> {
    pub d: F32x16<S>,
    pub dmin: F32x16<S>,
    /// Of each sub-block: whole numbers.
    pub sc: [F32x16<S>; SUB_BLOCKS_MAX],
    pub m: [F32x16<S>; SUB_BLOCKS_MAX],
}

impl<S: Simd> Scales<S> {
    /// What multiplies the levels of sub-block `j`, and what is taken off.
    #[inline(always)]
    pub fn of(&self, j: usize) -> (F32x16<S>, F32x16<S>) {
        (self.d * self.sc[j], self.dmin * self.m[j])
    }
}

/// What is fitted: a lattice with its levels.
#[derive(Clone, Copy)]
pub(super) struct Fit<'a, G> {
    pub lattice: &'a Lattice,
    pub grid: G,
    /// Parts of the range of a sub-block that are tried as the range of its levels.
    pub trials: (f32, f32, usize),
}

impl<'a, G: Grid> Fit<'a, G> {
    pub fn new(lattice: &'a Lattice, grid: G) -> Fit<'a, G> {
        Fit { lattice, grid, trials: grid.trials() }
    }

    /// The scales of a block. `x`, `cost`: of each of its columns.
    #[inline(always)]
    pub fn block<S: Simd>(&self, simd: S, x: &[Sixteen], cost: &[f32]) -> Scales<S> {
        let zero = F32x16::splat(simd, 0.0);
        let len = self.lattice.sub_block_len;
        let n_sub_blocks = self.lattice.block_len / len;
        let (mut scale, mut min) = ([zero; SUB_BLOCKS_MAX], [zero; SUB_BLOCKS_MAX]);
        for j in 0..n_sub_blocks {
            let (x, cost) = (&x[j * len..][..len], &cost[j * len..][..len]);
            (scale[j], min[j]) = match self.lattice.mins {
                Mins::None => (self.symmetric(simd, x, cost), zero),
                _ => self.affine(simd, x, cost),
            };
        }
        let one = F32x16::splat(simd, 1.0);
        let ones = Scales { d: one, dmin: zero, sc: [one; SUB_BLOCKS_MAX], m: [one; SUB_BLOCKS_MAX] };
        match self.lattice.scales {
            SubScales::One => Scales { d: half(simd, scale[0]), dmin: half(simd, min[0]), ..ones },
            SubScales::Floats(_) => {
                let mut now = ones;
                for j in 0..n_sub_blocks {
                    now.sc[j] = nearest(simd, self.lattice.scales, scale[j]);
                    self.neighbours(simd, x, cost, &mut now, j);
                }
                now
            }
            SubScales::Integers(low, high) => self.super_block(simd, x, cost, (low, high), &scale, &min),
            SubScales::Odd(n) => self.super_block(simd, x, cost, (0, 2 * n + 1), &scale, &min),
        }
    }

    /// The best scale without a minimum.
    #[inline(always)]
    fn symmetric<S: Simd>(&self, simd: S, x: &[Sixteen], cost: &[f32]) -> F32x16<S> {
        let zero = F32x16::splat(simd, 0.0);
        let mut largest = zero;
        for x in x {
            largest = x.load(simd).abs().max(largest);
        }
        let (low, high) = self.grid.ends();
        let (mut best, mut best_score) = (zero, F32x16::splat(simd, -1.0));
        for sign in [1.0, -1.0] {
            if sign < 0.0 && low == -high {
                break;
            }
            for trial in 0..self.trials.2 {
                let mut scale = largest * F32x16::splat(simd, -sign * self.part(trial) / low);
                for _ in 0..REFITS {
                    let inverse = inverse(simd, scale);
                    let (mut xg, mut gg) = (zero, zero);
                    for (x, cost) in self.runs(x, cost) {
                        let levels = self.levels(simd, x, cost, zero, inverse);
                        for k in 0..x.len() {
                            let weighted = levels[k] * F32x16::splat(simd, cost[k]);
                            xg = weighted.fma(x[k].load(simd), xg);
                            gg = weighted.fma(levels[k], gg);
                        }
                    }
                    scale = xg * self::inverse(simd, gg);
                    // What the squares of the weights lose by it.
                    let score = scale * xg;
                    let better = score.gt(best_score);
                    best = better.select(scale, best);
                    best_score = better.select(score, best_score);
                }
            }
        }
        best
    }

    /// The best scale and minimum.
    #[inline(always)]
    fn affine<S: Simd>(&self, simd: S, x: &[Sixteen], cost: &[f32]) -> (F32x16<S>, F32x16<S>) {
        let zero = F32x16::splat(simd, 0.0);
        let is_free = self.lattice.mins == Mins::Free;
        let (mut least, mut most) = if is_free { (x[0].load(simd), x[0].load(simd)) } else { (zero, zero) };
        let (mut sum_w, mut sum_x) = (zero, zero);
        for (x, cost) in x.iter().zip(cost) {
            let (x, w) = (x.load(simd), F32x16::splat(simd, *cost));
            (least, most) = (x.min(least), x.max(most));
            sum_w = sum_w + w;
            sum_x = w.fma(x, sum_x);
        }
        let (_, high) = self.grid.ends();
        let range = most - least;
        let (mut best, mut best_error) = ((zero, zero), F32x16::splat(simd, f32::INFINITY));
        for trial in 0..self.trials.2 {
            let part = self.part(trial);
            let mut scale = range * F32x16::splat(simd, part / high);
            let mut min = -(least + range * F32x16::splat(simd, 0.5 * (1.0 - part)));
            if !is_free {
                min = min.max(zero);
            }
            for _ in 0..REFITS {
                let inverse = inverse(simd, scale);
                let (mut g, mut gg, mut xg) = (zero, zero, zero);
                for (x, cost) in self.runs(x, cost) {
                    let levels = self.levels(simd, x, cost, min, inverse);
                    for k in 0..x.len() {
                        let weighted = levels[k] * F32x16::splat(simd, cost[k]);
                        g = g + weighted;
                        gg = weighted.fma(levels[k], gg);
                        xg = weighted.fma(x[k].load(simd), xg);
                    }
                }
                let determinant = sum_w * gg - g * g;
                let fitted = (sum_w * xg - sum_x * g) * self::inverse(simd, determinant);
                let offset = (sum_x - fitted * g) * self::inverse(simd, sum_w);
                let below = if is_free { zero.eq(zero) } else { offset.le(zero) };
                scale = below.select(fitted, xg * self::inverse(simd, gg)).max(zero);
                min = below.select(-offset, zero);
                let error = self.error(simd, x, cost, (scale, min));
                let better = error.lt(best_error);
                best = (better.select(scale, best.0), better.select(min, best.1));
                best_error = better.select(error, best_error);
            }
        }
        best
    }

    /// Scales in whole numbers, and what multiplies them.
    #[inline(always)]
    fn super_block<S: Simd>(
        &self,
        simd: S,
        x: &[Sixteen],
        cost: &[f32],
        (low, high): (i32, i32),
        scale: &[F32x16<S>; SUB_BLOCKS_MAX],
        min: &[F32x16<S>; SUB_BLOCKS_MAX],
    ) -> Scales<S> {
        let zero = F32x16::splat(simd, 0.0);
        let n_sub_blocks = self.lattice.block_len / self.lattice.sub_block_len;
        let (mut largest, mut largest_min) = (zero, zero);
        for j in 0..n_sub_blocks {
            let larger = scale[j].abs().gt(largest.abs());
            largest = larger.select(scale[j], largest);
            largest_min = min[j].max(largest_min);
        }
        // Of scales of both signs the largest gets the lowest number, which is the farthest from zero.
        let per_scale = if low < 0 { 1.0 / low as f32 } else { 1.0 / high as f32 };
        let min_max = self.min_max();
        let has_mins = min_max > 0;
        let d = largest * F32x16::splat(simd, per_scale);
        let dmin = largest_min * F32x16::splat(simd, 1.0 / min_max.max(1) as f32);
        let starts: &[(f32, f32)] = match has_mins {
            false => &[(1.0, 1.0), (0.96, 1.0), (1.06, 1.0)],
            true => &[(1.0, 1.0), (0.96, 1.0), (1.06, 1.0), (1.0, 0.96), (1.0, 1.06)],
        };
        let nothing = Scales { d: zero, dmin: zero, sc: [zero; SUB_BLOCKS_MAX], m: [zero; SUB_BLOCKS_MAX] };
        let (mut best, mut best_error) = (nothing, F32x16::splat(simd, f32::INFINITY));
        for &(of_d, of_dmin) in starts {
            let mut now = nothing;
            now.d = half(simd, d * F32x16::splat(simd, of_d));
            now.dmin = half(simd, dmin * F32x16::splat(simd, of_dmin));
            let (per_d, per_dmin) = (inverse(simd, now.d), inverse(simd, now.dmin));
            for j in 0..n_sub_blocks {
                now.sc[j] = nearest(simd, self.lattice.scales, scale[j] * per_d);
                now.m[j] = whole(simd, min[j] * per_dmin, 0, min_max);
            }
            for _ in 0..TURNS {
                let mut error = zero;
                for j in 0..n_sub_blocks {
                    error = error + self.neighbours(simd, x, cost, &mut now, j);
                }
                let better = error.lt(best_error);
                best_error = better.select(error, best_error);
                best = chosen(better, &now, &best, n_sub_blocks);
                let refitted = self.refitted(simd, x, cost, &now);
                (now.d, now.dmin) = refitted;
            }
            let error = self.block_error(simd, x, cost, &now);
            let better = error.lt(best_error);
            best_error = better.select(error, best_error);
            best = chosen(better, &now, &best, n_sub_blocks);
        }
        best
    }

    /// The best of a sub-block's scales and minimums one up, one down and as they are; returns its error.
    #[inline(always)]
    fn neighbours<S: Simd>(&self, simd: S, x: &[Sixteen], cost: &[f32], now: &mut Scales<S>, j: usize) -> F32x16<S> {
        let len = self.lattice.sub_block_len;
        let (x, cost) = (&x[j * len..][..len], &cost[j * len..][..len]);
        let min_max = self.min_max();
        let (sc, m) = (now.sc[j], now.m[j]);
        let mut best_error = F32x16::splat(simd, f32::INFINITY);
        for a in [0, 1, -1] {
            for b in [0, 1, -1] {
                if b != 0 && min_max == 0 {
                    continue;
                }
                let tried_sc = neighbour(simd, self.lattice.scales, sc, a);
                let tried_m = whole(simd, m + F32x16::splat(simd, b as f32), 0, min_max);
                let error = self.error(simd, x, cost, (now.d * tried_sc, now.dmin * tried_m));
                let better = error.lt(best_error);
                best_error = better.select(error, best_error);
                now.sc[j] = better.select(tried_sc, now.sc[j]);
                now.m[j] = better.select(tried_m, now.m[j]);
            }
        }
        best_error
    }

    /// `d` and `dmin` by least squares for the levels that they give now.
    #[inline(always)]
    fn refitted<S: Simd>(&self, simd: S, x: &[Sixteen], cost: &[f32], now: &Scales<S>) -> (F32x16<S>, F32x16<S>) {
        let zero = F32x16::splat(simd, 0.0);
        let len = self.lattice.sub_block_len;
        let (mut ss, mut sm, mut mm, mut xs, mut xm) = (zero, zero, zero, zero, zero);
        for j in 0..self.lattice.block_len / len {
            let (scale, min) = now.of(j);
            let inverse = inverse(simd, scale);
            for (x, cost) in self.runs(&x[j * len..][..len], &cost[j * len..][..len]) {
                let levels = self.levels(simd, x, cost, min, inverse);
                for k in 0..x.len() {
                    let (x, w) = (x[k].load(simd), F32x16::splat(simd, cost[k]));
                    let of_d = now.sc[j] * levels[k];
                    ss = (w * of_d).fma(of_d, ss);
                    sm = (w * of_d).fma(now.m[j], sm);
                    mm = (w * now.m[j]).fma(now.m[j], mm);
                    xs = (w * of_d).fma(x, xs);
                    xm = (w * now.m[j]).fma(x, xm);
                }
            }
        }
        if self.min_max() == 0 {
            return (half(simd, xs * inverse(simd, ss)), zero);
        }
        let per_determinant = inverse(simd, ss * mm - sm * sm);
        let (d, dmin) = ((xs * mm - xm * sm) * per_determinant, (xs * sm - xm * ss) * per_determinant);
        let is_sound = dmin.gt(zero) & d.gt(zero);
        let alone = xs * inverse(simd, ss);
        (half(simd, is_sound.select(d, alone)), half(simd, is_sound.select(dmin, zero)))
    }

    #[inline(always)]
    fn block_error<S: Simd>(&self, simd: S, x: &[Sixteen], cost: &[f32], now: &Scales<S>) -> F32x16<S> {
        let len = self.lattice.sub_block_len;
        let mut error = F32x16::splat(simd, 0.0);
        for j in 0..self.lattice.block_len / len {
            error = error + self.error(simd, &x[j * len..][..len], &cost[j * len..][..len], now.of(j));
        }
        error
    }

    /// The squared errors of a sub-block, each times its cost.
    #[inline(always)]
    fn error<S: Simd>(&self, simd: S, x: &[Sixteen], cost: &[f32], (scale, min): (F32x16<S>, F32x16<S>)) -> F32x16<S> {
        let inverse = inverse(simd, scale);
        let mut error = F32x16::splat(simd, 0.0);
        for (x, cost) in self.runs(x, cost) {
            let levels = self.levels(simd, x, cost, min, inverse);
            for k in 0..x.len() {
                let rest = x[k].load(simd) + min - scale * levels[k];
                error = (rest * F32x16::splat(simd, cost[k])).fma(rest, error);
            }
        }
        error
    }

    /// The columns that are chosen together.
    #[inline(always)]
    fn runs<'x>(&self, x: &'x [Sixteen], cost: &'x [f32]) -> impl Iterator<Item = (&'x [Sixteen], &'x [f32])> + use<'x, G> {
        x.chunks_exact(self.grid.run_len()).zip(cost.chunks_exact(self.grid.run_len()))
    }

    /// The levels nearest to a run.
    #[inline(always)]
    fn levels<S: Simd>(&self, simd: S, x: &[Sixteen], cost: &[f32], min: F32x16<S>, inverse: F32x16<S>) -> Run<S> {
        let mut t = [F32x16::splat(simd, 0.0); RUN_MAX];
        for k in 0..x.len() {
            t[k] = (x[k].load(simd) + min) * inverse;
        }
        self.grid.nearest(simd, &t, cost)
    }

    /// Of the ranges that are tried.
    #[inline(always)]
    fn part(&self, trial: usize) -> f32 {
        let (first, last, n) = self.trials;
        first + (last - first) * trial as f32 / (n - 1) as f32
    }

    /// The largest `m`: 0 where there is none.
    #[inline(always)]
    pub fn min_max(&self) -> i32 {
        match self.lattice.mins {
            Mins::Multiples(max) => max,
            _ => 0,
        }
    }
}

#[inline(always)]
fn chosen<S: Simd>(better: crate::simd::Mask<S>, a: &Scales<S>, b: &Scales<S>, n_sub_blocks: usize) -> Scales<S> {
    let mut chosen = *b;
    chosen.d = better.select(a.d, b.d);
    chosen.dmin = better.select(a.dmin, b.dmin);
    for j in 0..n_sub_blocks {
        chosen.sc[j] = better.select(a.sc[j], b.sc[j]);
        chosen.m[j] = better.select(a.m[j], b.m[j]);
    }
    chosen
}

/// The reciprocal, or 0 for 0.
#[inline(always)]
pub(super) fn inverse<S: Simd>(simd: S, x: F32x16<S>) -> F32x16<S> {
    let zero = F32x16::splat(simd, 0.0);
    x.eq(zero).select(zero, F32x16::splat(simd, 1.0) / x)
}

/// As half precision holds it.
#[inline(always)]
pub(super) fn half<S: Simd>(simd: S, x: F32x16<S>) -> F32x16<S> {
    F32x16::load_f16(simd, &x.to_f16())
}
