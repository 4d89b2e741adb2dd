//! What errors of columns cost that are chosen together.

use super::factor::Factor;
use crate::simd::{F32x16, Simd};

/// Columns that are chosen together at most.
pub(super) const RUN_MAX: usize = 8;

/// A number for each of them in sixteen rows; those beyond the run mean nothing.
pub(super) type Run<S> = [F32x16<S>; RUN_MAX];

/// The loss of a run by the errors of its columns: `sum_k cost_k (x_k - q_k)^2` with `x_k = t_k + sum_{i<k} (t_i - q_i) feedback_ki`, as
/// in [`Factor`].
#[derive(Clone, Copy)]
pub(super) struct Metric {
    pub feedback: [[f32; RUN_MAX]; RUN_MAX],
    pub cost: [f32; RUN_MAX],
}

impl Metric {
    const NONE: Metric = Metric { feedback: [[0.0; RUN_MAX]; RUN_MAX], cost: [0.0; RUN_MAX] };

    /// Where the columns after the run make up for its errors; `first`: its first column.
    #[inline(always)]
    pub fn of_factor(factor: &Factor, first: usize, len: usize) -> Metric {
        let mut metric = Metric::NONE;
        for k in 0..len {
            metric.cost[k] = factor.cost()[first + k];
            let row = &factor.feedback()[(first + k) * factor.n() + first..][..k];
            metric.feedback[k][..k].copy_from_slice(row);
        }
        metric
    }

    /// Where all other columns stay as they are.
    #[inline(always)]
    pub fn of_moments(factor: &Factor, first: usize, len: usize) -> Metric {
        /// A pivot is this much of its diagonal at least.
        const PIVOT_MIN: f32 = 1e-5;
        let mut h = [[0.0; RUN_MAX]; RUN_MAX];
        for k in 0..len {
            h[k][..len].copy_from_slice(&factor.moments()[(first + k) * factor.n() + first..][..len]);
        }
        let mut metric = Metric::NONE;
        for k in (0..len).rev() {
            let diagonal = factor.moments()[(first + k) * factor.n() + first + k];
            let pivot = h[k][k].max(PIVOT_MIN * diagonal);
            metric.cost[k] = pivot;
            for i in 0..k {
                metric.feedback[k][i] = h[i][k] / pivot;
            }
            for i in 0..k {
                for j in 0..k {
                    h[i][j] -= h[i][k] * metric.feedback[k][j];
                }
            }
        }
        metric
    }

    /// What is to be taken off the values of a run so that the loss becomes the least that any values give; `gradient`: half of the loss's.
    #[inline(always)]
    pub fn step<S: Simd>(&self, simd: S, gradient: &Run<S>, len: usize) -> Run<S> {
        let mut step = *gradient;
        for k in (0..len).rev() {
            for j in k + 1..len {
                step[k] = step[k] - step[j] * F32x16::splat(simd, self.feedback[j][k]);
            }
        }
        for k in 0..len {
            step[k] = step[k] * F32x16::splat(simd, 1.0 / self.cost[k]);
            for i in 0..k {
                step[k] = step[k] - step[i] * F32x16::splat(simd, self.feedback[k][i]);
            }
        }
        step
    }

    /// The loss of columns `from` to `to` by their levels; `x` of the columns after each follows its error.
    #[inline(always)]
    pub fn loss<S: Simd>(&self, simd: S, (from, to): (usize, usize), x: &mut Run<S>, t: &Run<S>, levels: &Run<S>) -> F32x16<S> {
        let mut loss = F32x16::splat(simd, 0.0);
        for k in from..to {
            let rest = x[k] - levels[k];
            loss = (rest * F32x16::splat(simd, self.cost[k])).fma(rest, loss);
            let error = t[k] - levels[k];
            for j in k + 1..RUN_MAX {
                x[j] = error.fma(F32x16::splat(simd, self.feedback[j][k]), x[j]);
            }
        }
        loss
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::Engine;
    use crate::simd::{Level, Task};

    struct Both<'a> {
        factor: &'a Factor,
        errors: [f32; RUN_MAX],
    }

    impl Task for Both<'_> {
        /// The loss of the errors, and by how much the step from them misses them.
        type Output = (f32, f32);

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> (f32, f32) {
            let metric = Metric::of_moments(self.factor, 0, RUN_MAX);
            let zero = [F32x16::splat(simd, 0.0); RUN_MAX];
            let (mut levels, mut gradient) = (zero, zero);
            for k in 0..RUN_MAX {
                levels[k] = F32x16::splat(simd, self.errors[k]);
                let row = &self.factor.moments()[k * self.factor.n()..];
                let along: f32 = (0..RUN_MAX).map(|i| row[i] * self.errors[i]).sum();
                gradient[k] = F32x16::splat(simd, along);
            }
            let loss = metric.loss(simd, (0, RUN_MAX), &mut zero.clone(), &zero, &levels).reduce_max();
            let step = metric.step(simd, &gradient, RUN_MAX);
            let missed = (0..RUN_MAX).map(|k| (step[k].reduce_max() - self.errors[k]).abs()).fold(0.0, f32::max);
            (loss, missed)
        }
    }

    /// The loss is `e H eᵀ`, and the step `e` where the gradient is that of `e`.
    #[test]
    fn a_metric_is_that_of_its_moments() {
        let n = 16;
        let engine = Engine::new(Level::detect());
        let entry = |i: usize, j: usize| if i == j { 2.0 } else { 0.9 / (1.0 + i.abs_diff(j) as f32) };
        let moments: Vec<f32> = (0..n * n).map(|at| entry(at / n, at % n)).collect();
        let factor = Factor::new(engine, moments, n, 0.1).expect("memory");
        let errors = [0.5, -1.0, 0.25, 2.0, -0.75, 1.5, 0.0, -0.5];
        let mut expected = 0.0;
        for i in 0..RUN_MAX {
            for j in 0..RUN_MAX {
                expected += f64::from(errors[i]) * f64::from(factor.moments()[i * n + j]) * f64::from(errors[j]);
            }
        }
        for level in Level::available() {
            let (loss, missed) = level.run(Both { factor: &factor, errors });
            assert!((f64::from(loss) - expected).abs() < 1e-5 * expected, "{}: {loss} for {expected}", level.name());
            assert!(missed < 1e-5, "{}: {missed}", level.name());
        }
    }
}
