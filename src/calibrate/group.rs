//! Sixteen rows of a tensor while they are rounded: a row in each lane.
//!
//! A panel is up to 256 columns: one super-block, or eight blocks of 32. What the columns outside of it have to say is given, as `base`
//! (the columns before it, when it is rounded first) or `gradient` (all columns, when it is improved); inside, every column follows the
//! changes of the others at once.

use std::ops::Range;

use super::factor::Factor;
use super::fit::{Fit, SUB_BLOCKS_MAX, Scales, half, inverse};
use super::grid::Grid;
use super::metric::{Metric, RUN_MAX, Run};
use super::scales::{neighbour, whole};
use crate::quant::{Lattice, Mins, Parts, SubScales};
use crate::simd::{F32x16, Simd, Sixteen, Task};

/// Columns of a panel at most.
pub(super) const PANEL: usize = 256;

/// Rows of a group.
pub(super) const ROWS: usize = 16;

/// What sixteen rows are and what they become, by columns.
pub(super) struct Group {
    /// `[n_cols]`.
    pub weights: Vec<Sixteen>,
    /// `[n_cols]`: what the blocks will hold.
    pub values: Vec<Sixteen>,
    /// `[n_cols]`: in units of scales.
    levels: Vec<Sixteen>,
    /// `[n_blocks]`.
    d: Vec<Sixteen>,
    dmin: Vec<Sixteen>,
    /// `[n_sub_blocks]`.
    scales: Vec<Sixteen>,
    mins: Vec<Sixteen>,
}

impl Group {
    /// `weights`: up to sixteen rows of `n_cols`, row-major; lanes without a row are zero.
    pub fn new(weights: &[f32], n_cols: usize, lattice: &Lattice) -> Group {
        let mut turned = vec![Sixteen::ZERO; n_cols];
        for (lane, row) in weights.chunks_exact(n_cols).enumerate() {
            turned.iter_mut().zip(row).for_each(|(to, w)| to.0[lane] = *w);
        }
        let zeros = |n| vec![Sixteen::ZERO; n];
        let (n_blocks, n_sub_blocks) = (n_cols / lattice.block_len, n_cols / lattice.sub_block_len);
        Group {
            weights: turned,
            values: zeros(n_cols),
            levels: zeros(n_cols),
            d: zeros(n_blocks),
            dmin: zeros(n_blocks),
            scales: zeros(n_sub_blocks),
            mins: zeros(n_sub_blocks),
        }
    }

    /// The parts of block `block` of row `lane`.
    pub fn parts<G: Grid>(&self, fit: &Fit<'_, G>, block: usize, lane: usize) -> Parts {
        let Lattice { block_len, sub_block_len, scales, mins, .. } = *fit.lattice;
        let n_sub_blocks = block_len / sub_block_len;
        let mut parts = Parts { d: self.d[block].0[lane], dmin: self.dmin[block].0[lane], ..Parts::ZERO };
        for j in 0..n_sub_blocks {
            parts.scales[j] = scales.number(self.scales[block * n_sub_blocks + j].0[lane]);
            parts.mins[j] = if mins == Mins::None { 0 } else { self.mins[block * n_sub_blocks + j].0[lane] as i32 };
        }
        for (quant, level) in parts.quants.iter_mut().zip(&self.levels[block * block_len..][..block_len]) {
            *quant = fit.grid.quant(level.0[lane]);
        }
        parts
    }

    #[inline(always)]
    fn scales_of<S: Simd>(&self, simd: S, block: usize, n_sub_blocks: usize) -> Scales<S> {
        let zero = F32x16::splat(simd, 0.0);
        let mut scales = Scales {
            d: self.d[block].load(simd),
            dmin: self.dmin[block].load(simd),
            sc: [zero; SUB_BLOCKS_MAX],
            m: [zero; SUB_BLOCKS_MAX],
        };
        for j in 0..n_sub_blocks {
            scales.sc[j] = self.scales[block * n_sub_blocks + j].load(simd);
            scales.m[j] = self.mins[block * n_sub_blocks + j].load(simd);
        }
        scales
    }

    #[inline(always)]
    fn set_scales<S: Simd>(&mut self, block: usize, n_sub_blocks: usize, scales: &Scales<S>) {
        scales.d.store(&mut self.d[block].0);
        scales.dmin.store(&mut self.dmin[block].0);
        for j in 0..n_sub_blocks {
            scales.sc[j].store(&mut self.scales[block * n_sub_blocks + j].0);
            scales.m[j].store(&mut self.mins[block * n_sub_blocks + j].0);
        }
    }
}

/// Rounds the columns of a panel for the first time.
pub(super) struct Round<'a, G> {
    pub fit: Fit<'a, G>,
    pub factor: &'a Factor,
    pub columns: Range<usize>,
    /// `[columns]`: the weights, and what the errors of the columns before the panel add to them.
    pub base: &'a mut [Sixteen],
    pub group: &'a mut Group,
}

impl<G: Grid> Task for Round<'_, G> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Round { fit, factor, columns, base, group } = self;
        let Lattice { block_len, sub_block_len, .. } = *fit.lattice;
        let n_sub_blocks = block_len / sub_block_len;
        let mut errors = [Sixteen::ZERO; PANEL];
        let feedback = |column: usize| &factor.feedback()[column * factor.n() + columns.start..][..columns.len()];
        for first in (0..columns.len()).step_by(block_len) {
            let block = (columns.start + first) / block_len;
            for k in first..first + block_len {
                let x = fed_back(simd, &errors[..first], &feedback(columns.start + k)[..first], base[k].load(simd));
                x.store(&mut base[k].0);
            }
            let of_block = columns.start + first..columns.start + first + block_len;
            let scales = fit.block(simd, &base[first..first + block_len], &factor.cost()[of_block]);
            group.set_scales(block, n_sub_blocks, &scales);
            for j in 0..n_sub_blocks {
                let (scale, min) = scales.of(j);
                let inverse = inverse(simd, scale);
                let of_sub_block = first + j * sub_block_len..first + (j + 1) * sub_block_len;
                for run in of_sub_block.step_by(fit.grid.run_len()) {
                    let zeros = [F32x16::splat(simd, 0.0); RUN_MAX];
                    let (mut x, mut t) = (zeros, zeros);
                    for i in 0..fit.grid.run_len() {
                        let column = columns.start + run + i;
                        let factors = &feedback(column)[first..run];
                        x[i] = (fed_back(simd, &errors[first..run], factors, base[run + i].load(simd)) + min) * inverse;
                        t[i] = (group.weights[column].load(simd) + min) * inverse;
                    }
                    let metric = Metric::of_factor(factor, columns.start + run, fit.grid.run_len());
                    let levels = fit.grid.best(simd, &x, &t, &metric, None);
                    for i in 0..fit.grid.run_len() {
                        let column = columns.start + run + i;
                        let value = scale * levels[i] - min;
                        levels[i].store(&mut group.levels[column].0);
                        value.store(&mut group.values[column].0);
                        (group.weights[column].load(simd) - value).store(&mut errors[run + i].0);
                    }
                }
            }
        }
    }
}

/// `start` and the errors of columns before, each times its factor: four sums, added up at the end.
#[inline(always)]
fn fed_back<S: Simd>(simd: S, errors: &[Sixteen], factors: &[f32], start: F32x16<S>) -> F32x16<S> {
    let zero = F32x16::splat(simd, 0.0);
    let mut sums = [start, zero, zero, zero];
    let ((errors, last_errors), (factors, last_factors)) = (errors.as_chunks::<4>(), factors.as_chunks::<4>());
    for (errors, factors) in errors.iter().zip(factors) {
        for i in 0..4 {
            sums[i] = errors[i].load(simd).fma(F32x16::splat(simd, factors[i]), sums[i]);
        }
    }
    for (error, factor) in last_errors.iter().zip(last_factors) {
        sums[0] = error.load(simd).fma(F32x16::splat(simd, *factor), sums[0]);
    }
    (sums[0] + sums[1]) + (sums[2] + sums[3])
}

/// Lowers the loss `(q - w) H (q - w)ᵀ` of a panel by turns: codes, the scales of sub-blocks, those of blocks, codes.
pub(super) struct Descend<'a, G> {
    pub fit: Fit<'a, G>,
    pub factor: &'a Factor,
    pub columns: Range<usize>,
    /// `[columns]`: `(q - w) H`.
    pub gradient: &'a mut [Sixteen],
    pub group: &'a mut Group,
}

impl<G: Grid> Task for Descend<'_, G> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let n_blocks = self.columns.len() / self.fit.lattice.block_len;
        self.codes(simd);
        let scales = self.fit.lattice.scales;
        for block in 0..n_blocks {
            if scales != SubScales::One {
                self.scales(simd, block);
            }
        }
        for block in 0..n_blocks {
            if !matches!(scales, SubScales::Floats(_)) {
                self.scale_of_block(simd, block);
            }
        }
        self.codes(simd);
    }
}

impl<G: Grid> Descend<'_, G> {
    /// Row `column` of the moments, in the panel's columns.
    #[inline(always)]
    fn moments(&self, column: usize) -> &[f32] {
        &self.factor.moments()[column * self.factor.n() + self.columns.start..][..self.columns.len()]
    }

    /// The index of a block of the panel among all.
    #[inline(always)]
    fn index(&self, block: usize) -> usize {
        self.columns.start / self.fit.lattice.block_len + block
    }

    /// Adds to the gradient what a change of a column does.
    #[inline(always)]
    fn follow<S: Simd>(&mut self, simd: S, k: usize, change: F32x16<S>) {
        let row = &self.factor.moments()[(self.columns.start + k) * self.factor.n() + self.columns.start..][..self.columns.len()];
        for (gradient, h) in self.gradient.iter_mut().zip(row) {
            change.fma(F32x16::splat(simd, *h), gradient.load(simd)).store(&mut gradient.0);
        }
    }

    /// Each code in turn, or run of codes, goes to the levels that lower the loss most.
    #[inline(always)]
    fn codes<S: Simd>(&mut self, simd: S) {
        let Lattice { block_len, sub_block_len, .. } = *self.fit.lattice;
        let zero = F32x16::splat(simd, 0.0);
        for first in (0..self.columns.len()).step_by(sub_block_len) {
            let block = (self.columns.start + first) / block_len;
            let scales = self.group.scales_of(simd, block, block_len / sub_block_len);
            let (scale, min) = scales.of(first % block_len / sub_block_len);
            let inverse = inverse(simd, scale);
            for run in (first..first + sub_block_len).step_by(self.fit.grid.run_len()) {
                let run_len = self.fit.grid.run_len();
                let (mut values, mut gradient, mut levels) = ([zero; RUN_MAX], [zero; RUN_MAX], [zero; RUN_MAX]);
                for i in 0..run_len {
                    let column = self.columns.start + run + i;
                    values[i] = self.group.values[column].load(simd);
                    levels[i] = self.group.levels[column].load(simd);
                    gradient[i] = self.gradient[run + i].load(simd);
                }
                let best = self.best_levels(simd, run, (&values, &gradient, &levels), min, inverse);
                let (mut changes, mut gain) = ([zero; RUN_MAX], zero);
                for i in 0..run_len {
                    changes[i] = scale * best[i] - min - values[i];
                }
                for i in 0..run_len {
                    let row = &self.moments(self.columns.start + run + i)[run..run + run_len];
                    let mut along = gradient[i] + gradient[i];
                    for k in 0..run_len {
                        along = changes[k].fma(F32x16::splat(simd, row[k]), along);
                    }
                    gain = changes[i].fma(along, gain);
                }
                let better = gain.lt(zero);
                if better.bits() == 0 {
                    continue;
                }
                for i in 0..run_len {
                    let column = self.columns.start + run + i;
                    let change = better.select(changes[i], zero);
                    (values[i] + change).store(&mut self.group.values[column].0);
                    better.select(best[i], levels[i]).store(&mut self.group.levels[column].0);
                    self.follow(simd, run + i, change);
                }
            }
        }
    }

    /// The best levels of the run from `run` on by what its values, gradients and levels are.
    #[inline(always)]
    fn best_levels<S: Simd>(
        &self,
        simd: S,
        run: usize,
        (values, gradient, levels): (&Run<S>, &Run<S>, &Run<S>),
        min: F32x16<S>,
        inverse: F32x16<S>,
    ) -> Run<S> {
        let run_len = self.fit.grid.run_len();
        let metric = Metric::of_moments(self.factor, self.columns.start + run, run_len);
        let step = metric.step(simd, gradient, run_len);
        let mut t = *values;
        for i in 0..run_len {
            t[i] = (values[i] - step[i] + min) * inverse;
        }
        self.fit.grid.best(simd, &t, &t, &metric, Some(levels))
    }

    /// Each sub-block's scale and minimum one up, one down or as they are, with the codes that suit each.
    #[inline(always)]
    fn scales<S: Simd>(&mut self, simd: S, block: usize) {
        let Lattice { block_len, sub_block_len, .. } = *self.fit.lattice;
        let n_sub_blocks = block_len / sub_block_len;
        let index = self.index(block);
        let zero = F32x16::splat(simd, 0.0);
        for j in 0..n_sub_blocks {
            let mut scales = self.group.scales_of(simd, index, n_sub_blocks);
            let (sc, m) = (scales.sc[j], scales.m[j]);
            let first = block * block_len + j * sub_block_len;
            let mut best = Tried::none(simd);
            for a in [-1, 0, 1] {
                for b in [-1, 0, 1] {
                    // Of a run the best levels with the scale as it is are found already.
                    if b != 0 && self.fit.min_max() == 0 || a == 0 && self.fit.grid.run_len() > 1 {
                        continue;
                    }
                    scales.sc[j] = neighbour(simd, self.fit.lattice.scales, sc, a);
                    scales.m[j] = whole(simd, m + F32x16::splat(simd, b as f32), 0, self.fit.min_max());
                    let tried = self.tried(simd, first, scales.of(j));
                    let better = tried.loss.lt(best.loss);
                    for k in 0..sub_block_len {
                        best.changes[k] = better.select(tried.changes[k], best.changes[k]);
                        best.levels[k] = better.select(tried.levels[k], best.levels[k]);
                    }
                    best.loss = better.select(tried.loss, best.loss);
                    best.sc = better.select(scales.sc[j], best.sc);
                    best.m = better.select(scales.m[j], best.m);
                }
            }
            let better = best.loss.lt(zero);
            if better.bits() == 0 {
                continue;
            }
            scales.sc[j] = better.select(best.sc, sc);
            scales.m[j] = better.select(best.m, m);
            self.group.set_scales(index, n_sub_blocks, &scales);
            for k in 0..sub_block_len {
                let column = self.columns.start + first + k;
                let change = better.select(best.changes[k], zero);
                (self.group.values[column].load(simd) + change).store(&mut self.group.values[column].0);
                let level = better.select(best.levels[k], self.group.levels[column].load(simd));
                level.store(&mut self.group.levels[column].0);
                self.follow(simd, first + k, change);
            }
        }
    }

    /// What a scale and a minimum of the sub-block from `first` on do, once two rounds of codes have followed them.
    #[inline(always)]
    fn tried<S: Simd>(&self, simd: S, first: usize, (scale, min): (F32x16<S>, F32x16<S>)) -> Tried<S> {
        let len = self.fit.lattice.sub_block_len;
        let zero = F32x16::splat(simd, 0.0);
        let inverse = inverse(simd, scale);
        let mut tried = Tried::none(simd);
        let mut gradient = [zero; SUB_BLOCK_LEN_MAX];
        for k in 0..len {
            gradient[k] = self.gradient[first + k].load(simd);
        }
        for k in 0..len {
            let column = self.columns.start + first + k;
            tried.levels[k] = self.group.levels[column].load(simd);
            tried.changes[k] = scale * tried.levels[k] - min - self.group.values[column].load(simd);
            let row = &self.moments(column)[first..first + len];
            for i in 0..len {
                gradient[i] = tried.changes[k].fma(F32x16::splat(simd, row[i]), gradient[i]);
            }
        }
        let run_len = self.fit.grid.run_len();
        for _ in 0..if run_len > 1 { 1 } else { 2 } {
            for run in (0..len).step_by(run_len) {
                let (mut values, mut of_run, mut levels) = ([zero; RUN_MAX], [zero; RUN_MAX], [zero; RUN_MAX]);
                for i in 0..run_len {
                    let before = self.group.values[self.columns.start + first + run + i].load(simd);
                    values[i] = before + tried.changes[run + i];
                    of_run[i] = gradient[run + i];
                    levels[i] = tried.levels[run + i];
                }
                let best = self.best_levels(simd, first + run, (&values, &of_run, &levels), min, inverse);
                for i in 0..run_len {
                    let column = self.columns.start + first + run + i;
                    let changed = scale * best[i] - min - self.group.values[column].load(simd);
                    let step = changed - tried.changes[run + i];
                    (tried.levels[run + i], tried.changes[run + i]) = (best[i], changed);
                    let row = &self.moments(column)[first..first + len];
                    for k in 0..len {
                        gradient[k] = step.fma(F32x16::splat(simd, row[k]), gradient[k]);
                    }
                }
            }
        }
        // The loss is a quadratic: its change is the change of the codes times the mean of the gradients before and after.
        tried.loss = zero;
        for k in 0..len {
            tried.loss = tried.changes[k].fma(self.gradient[first + k].load(simd) + gradient[k], tried.loss);
        }
        tried
    }

    /// `d`, then `dmin`, to where the loss is least for the codes as they are.
    #[inline(always)]
    fn scale_of_block<S: Simd>(&mut self, simd: S, block: usize) {
        let Lattice { block_len, sub_block_len, mins, .. } = *self.fit.lattice;
        let n_sub_blocks = block_len / sub_block_len;
        let (index, first) = (self.index(block), block * block_len);
        for of_mins in [false, true] {
            if of_mins && mins == Mins::None {
                break;
            }
            let mut scales = self.group.scales_of(simd, index, n_sub_blocks);
            // What the values are derived by.
            let mut slopes = [Sixteen::ZERO; PANEL];
            for k in 0..block_len {
                let j = k / sub_block_len;
                let slope = if of_mins {
                    -scales.m[j]
                } else {
                    scales.sc[j] * self.group.levels[self.columns.start + first + k].load(simd)
                };
                slope.store(&mut slopes[k].0);
            }
            let (mut along, mut curve) = (F32x16::splat(simd, 0.0), F32x16::splat(simd, 0.0));
            for k in 0..block_len {
                let row = &self.moments(self.columns.start + first + k)[first..first + block_len];
                let product = fed_back(simd, &slopes[..block_len], row, F32x16::splat(simd, 0.0));
                let slope = slopes[k].load(simd);
                curve = slope.fma(product, curve);
                along = slope.fma(self.gradient[first + k].load(simd), along);
            }
            let before = if of_mins { scales.dmin } else { scales.d };
            let mut after = half(simd, before - along * inverse(simd, curve));
            if of_mins && mins != Mins::Free {
                after = after.max(F32x16::splat(simd, 0.0));
            }
            let step = after - before;
            let gain = step * (along + along + step * curve);
            let better = gain.lt(F32x16::splat(simd, 0.0));
            if better.bits() == 0 {
                continue;
            }
            let after = better.select(after, before);
            if of_mins {
                scales.dmin = after;
            } else {
                scales.d = after;
            }
            self.group.set_scales(index, n_sub_blocks, &scales);
            for k in 0..block_len {
                let column = self.columns.start + first + k;
                let (scale, min) = scales.of(k / sub_block_len);
                let before = self.group.values[column].load(simd);
                let value = better.select(scale * self.group.levels[column].load(simd) - min, before);
                value.store(&mut self.group.values[column].0);
                self.follow(simd, first + k, value - before);
            }
        }
    }
}

/// Weights of a sub-block at most.
const SUB_BLOCK_LEN_MAX: usize = 32;

/// Other scales of a sub-block, with their codes.
#[derive(Clone, Copy)]
struct Tried<S: Simd> {
    sc: F32x16<S>,
    m: F32x16<S>,
    levels: [F32x16<S>; SUB_BLOCK_LEN_MAX],
    /// Of the values.
    changes: [F32x16<S>; SUB_BLOCK_LEN_MAX],
    /// The change of the loss.
    loss: F32x16<S>,
}

impl<S: Simd> Tried<S> {
    #[inline(always)]
    fn none(simd: S) -> Tried<S> {
        let zero = F32x16::splat(simd, 0.0);
        let loss = F32x16::splat(simd, f32::INFINITY);
        Tried { sc: zero, m: zero, levels: [zero; SUB_BLOCK_LEN_MAX], changes: [zero; SUB_BLOCK_LEN_MAX], loss }
    }
}
