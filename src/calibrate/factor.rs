//! The factors of a matrix of second moments, by which the error of one column is made up for in those after it.
//!
//! `H + lambda mean(diag H) I = A D Aᵀ`, where `A` is 1 on its diagonal and 0 below it. A row's loss `e H eᵀ`, `e = w - q`, is then
//! `sum_k D_k (x_k - q_k)^2` with `x_k = w_k + sum_{i<k} e_i A_ik`: whoever rounds the columns in order, each to what is nearest to `x_k`,
//! takes into account what the columns before it have done. That is GPTQ (Frantar et al., arXiv 2210.17323) as QuIP writes it
//! (Chee et al., arXiv 2307.13304, theorem 6), which needs no inverse.

use rayon::prelude::*;

use crate::error::Result;
use crate::matmul::{Accumulate, Activations, Engine, Right, Rows};
use crate::memory::zero_rows;

/// Columns that are eliminated together.
const BLOCK: usize = 256;
/// Rows that a worker takes at a time.
const ROWS: usize = 96;
/// A pivot is this much of the mean diagonal at least: rounding can leave less than nothing.
const PIVOT_MIN: f32 = 1e-6;

/// A damped matrix of second moments and its factors.
#[derive(Debug)]
pub struct Factor {
    n: usize,
    /// `[n, n]`, symmetric: `H + lambda mean(diag H) I`.
    moments: Vec<f32>,
    /// `[n, n]`: row `k` holds `A_ik` for `i < k`, zeros from `k` on.
    feedback: Vec<f32>,
    /// `[n]`: what the squared error of a column costs once the columns after it have made up for it as well as they can.
    cost: Vec<f32>,
}

impl Factor {
    /// `moments`: `[n, n]`, symmetric and not negative.
    ///
    /// # Errors
    /// No memory.
    pub fn new(engine: Engine, moments: Vec<f32>, n: usize, lambda: f32) -> Result<Factor> {
        let mut moments = moments;
        let mean = (0..n).map(|i| f64::from(moments[i * n + i])).sum::<f64>() / n.max(1) as f64;
        // What nothing is known of counts alike.
        let mean = if mean > 0.0 { mean as f32 } else { 1.0 };
        (0..n).for_each(|i| moments[i * n + i] += lambda * mean);
        let lower = cholesky_reversed(engine, &moments, n, PIVOT_MIN * mean)?;
        let mut feedback = zero_rows(n, n)?;
        let mut cost = vec![0.0; n];
        feedback.par_chunks_exact_mut(n.max(1)).zip(&mut cost).enumerate().for_each(|(k, (row, cost))| {
            let reversed = &lower[(n - 1 - k) * n..][..n];
            let pivot = reversed[n - 1 - k];
            *cost = pivot * pivot;
            for (i, value) in row[..k].iter_mut().enumerate() {
                *value = reversed_entry(&lower, n, i, k) / pivot;
            }
        });
        Ok(Factor { n, moments, feedback, cost })
    }

    /// Columns.
    pub fn n(&self) -> usize {
        self.n
    }

    pub(super) fn moments(&self) -> &[f32] {
        &self.moments
    }

    pub(super) fn feedback(&self) -> &[f32] {
        &self.feedback
    }

    pub(super) fn cost(&self) -> &[f32] {
        &self.cost
    }
}

/// Entry `(i, k)` of the upper factor `R` with `R Rᵀ` the matrix: the lower factor of the reversed matrix, reversed.
fn reversed_entry(lower: &[f32], n: usize, i: usize, k: usize) -> f32 {
    lower[(n - 1 - i) * n + n - 1 - k]
}

/// The lower factor of the matrix with rows and columns in reverse order.
fn cholesky_reversed(engine: Engine, moments: &[f32], n: usize, pivot_min: f32) -> Result<Vec<f32>> {
    let mut a = zero_rows(n, n)?;
    a.par_chunks_exact_mut(n.max(1)).enumerate().for_each(|(i, row)| {
        row.iter_mut().zip(moments[(n - 1 - i) * n..][..n].iter().rev()).for_each(|(to, from)| *to = *from);
    });
    let mut panel = zero_rows(n, BLOCK)?;
    for first in (0..n).step_by(BLOCK) {
        let width = BLOCK.min(n - first);
        let corner = eliminate_corner(&mut a, n, first, width, pivot_min);
        let (_, below) = a.split_at_mut((first + width) * n);
        below.par_chunks_exact_mut(n).for_each(|row| solve(&mut row[first..first + width], &corner));
        let n_below = n - first - width;
        if n_below == 0 {
            break;
        }
        let panel = &mut panel[..n_below * width];
        panel
            .chunks_exact_mut(width)
            .zip(below.chunks_exact(n))
            .for_each(|(to, row)| to.copy_from_slice(&row[first..first + width]));
        let panel = &*panel;
        below.par_chunks_mut(ROWS * n).enumerate().for_each(|(chunk, rows)| {
            let n_rows = rows.len() / n;
            let negated: Vec<f32> = panel[chunk * ROWS * width..][..n_rows * width].iter().map(|x| -x).collect();
            let left = Activations::pack(engine, Rows::new(&negated, width));
            let right = Right::Rows(Rows::new(&panel[..(chunk * ROWS + n_rows) * width], width));
            engine.multiply_here(&left, right, &mut rows[first + width..], n, Accumulate::Add);
        });
    }
    Ok(a)
}

/// Factors the corner in place; what is above its diagonal becomes zero. Returns it turned round, `[width, width]`.
fn eliminate_corner(a: &mut [f32], n: usize, first: usize, width: usize, pivot_min: f32) -> Vec<f32> {
    for k in 0..width {
        let at = |i: usize, j: usize| (first + i) * n + first + j;
        let pivot = a[at(k, k)].max(pivot_min).sqrt();
        a[at(k, k)] = pivot;
        for i in k + 1..width {
            a[at(i, k)] /= pivot;
        }
        for j in k + 1..width {
            a[at(k, j)] = 0.0;
        }
        for i in k + 1..width {
            let factor = a[at(i, k)];
            for j in k + 1..=i {
                a[at(i, j)] -= factor * a[at(j, k)];
            }
        }
    }
    let mut turned = vec![0.0; width * width];
    for i in 0..width {
        for j in 0..=i {
            turned[j * width + i] = a[(first + i) * n + first + j];
        }
    }
    turned
}

/// `row` becomes the `x` with `x cornerᵀ = row`; `corner`: turned round.
fn solve(row: &mut [f32], corner: &[f32]) {
    let width = row.len();
    for k in 0..width {
        let column = &corner[k * width..][..width];
        row[k] /= column[k];
        let x = row[k];
        row[k + 1..].iter_mut().zip(&column[k + 1..]).for_each(|(to, factor)| *to -= x * factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Level;

    /// `H + lambda mean I = A D Aᵀ`, over several blocks.
    #[test]
    fn the_factors_multiply_to_the_damped_moments() {
        let n = 300;
        let x: Vec<f32> = (0..400 * n).map(|i| ((i as f32 * 0.7).sin() + (i as f32 * 0.013).cos()) / 3.0).collect();
        let mut moments = vec![0.0f32; n * n];
        for row in x.chunks_exact(n) {
            for i in 0..n {
                for j in 0..n {
                    moments[i * n + j] += row[i] * row[j] / 400.0;
                }
            }
        }
        let factor = Factor::new(Engine::new(Level::detect()), moments, n, 0.1).expect("memory");
        let a = |i: usize, k: usize| if i == k { 1.0 } else { f64::from(factor.feedback[k * n + i]) };
        let mean = (0..n).map(|i| f64::from(factor.moments[i * n + i])).sum::<f64>() / n as f64;
        for i in (0..n).step_by(7) {
            for j in (0..n).step_by(11) {
                let product: f64 = (i.max(j)..n).map(|k| a(i, k) * f64::from(factor.cost[k]) * a(j, k)).sum();
                let wanted = f64::from(factor.moments[i * n + j]);
                assert!((product - wanted).abs() < 1e-4 * mean, "({i}, {j}): {product} for {wanted}");
            }
        }
    }
}
