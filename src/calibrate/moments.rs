//! Second moments: the mean of `x xᵀ` over what goes into a matrix.

use rayon::prelude::*;

use crate::error::Result;
use crate::matmul::{Accumulate, Activations, Engine, Right, Rows};
use crate::memory::{filled, zero_rows};

/// Rows of `x xᵀ` that are computed together.
const PANEL: usize = 256;

/// Sums of `x xᵀ`, in f64 over batches, in the order in which they are added.
#[derive(Debug)]
pub struct Moments {
    n: usize,
    /// `[n, n]`: the lower triangle.
    sums: Vec<f64>,
    /// What the sums are divided by.
    weight: f64,
}

impl Moments {
    /// None yet, of vectors of `n` values.
    ///
    /// # Errors
    /// No memory for `8 n^2` bytes.
    pub fn new(n: usize) -> Result<Moments> {
        Ok(Moments { n, sums: filled(n.saturating_mul(n), 0.0)?, weight: 0.0 })
    }

    /// Length of the vectors.
    pub fn n(&self) -> usize {
        self.n
    }

    /// True before the first vector.
    pub fn is_empty(&self) -> bool {
        self.weight == 0.0
    }

    /// Adds the vectors that are rows of `x`, `[n_rows, n]`. They count as `weight` together.
    ///
    /// # Errors
    /// No memory.
    pub fn add(&mut self, engine: Engine, x: &[f32], weight: f64) -> Result<()> {
        let n = self.n;
        let n_rows = x.len() / n;
        let mut turned = zero_rows(PANEL, n_rows)?;
        let mut products = zero_rows(PANEL, n)?;
        for first in (0..n).step_by(PANEL) {
            let width = PANEL.min(n - first);
            let turned = &mut turned[..width * n_rows];
            turned.par_chunks_exact_mut(n_rows.max(1)).enumerate().for_each(|(column, of_column)| {
                for (value, row) in of_column.iter_mut().zip(x.chunks_exact(n)) {
                    *value = row[first + column];
                }
            });
            // The columns up to the diagonal: the rest is the same again.
            let n_out = first + width;
            let products = &mut products[..width * n_out];
            let left = Activations::pack(engine, Rows::new(turned, n_rows));
            engine.multiply(&left, Right::Columns(Rows::strided(x, n_rows, n_out, n)), products, Accumulate::Store);
            let sums = self.sums[first * n..][..width * n].par_chunks_exact_mut(n);
            sums.zip(products.par_chunks_exact(n_out)).for_each(|(sums, products)| {
                sums.iter_mut().zip(products).for_each(|(sum, product)| *sum += f64::from(*product));
            });
        }
        self.weight += weight;
        Ok(())
    }

    /// The mean square of each component.
    pub fn diagonal(&self) -> Vec<f32> {
        let scale = self.scale();
        (0..self.n).map(|i| (self.sums[i * self.n + i] * scale) as f32).collect()
    }

    /// The mean of all diagonal entries.
    pub fn mean_square(&self) -> f64 {
        (0..self.n).map(|i| self.sums[i * self.n + i]).sum::<f64>() * self.scale() / self.n as f64
    }

    /// `[n, n]`, symmetric.
    ///
    /// # Errors
    /// No memory.
    pub fn mean(&self) -> Result<Vec<f32>> {
        let (n, scale) = (self.n, self.scale());
        let mut mean = zero_rows(n, n)?;
        mean.par_chunks_exact_mut(n).enumerate().for_each(|(i, row)| {
            for (j, value) in row.iter_mut().enumerate() {
                *value = (self.sums[i.max(j) * n + i.min(j)] * scale) as f32;
            }
        });
        Ok(mean)
    }

    fn scale(&self) -> f64 {
        if self.weight > 0.0 { 1.0 / self.weight } else { 0.0 }
    }
}

/// Of `a` this share, of `b` the rest.
///
/// # Errors
/// No memory.
pub fn blended(a: &Moments, share: f32, b: &Moments) -> Result<Vec<f32>> {
    let mut mean = a.mean()?;
    if share < 1.0 {
        let other = b.mean()?;
        mean.par_iter_mut().zip(&other).for_each(|(a, b)| *a = share * *a + (1.0 - share) * b);
    }
    Ok(mean)
}

/// The mean of two, each over its own mean square: what neither's size decides.
///
/// # Errors
/// No memory.
pub fn balanced(a: &Moments, b: &Moments) -> Result<Vec<f32>> {
    let share = |of: &Moments| if of.mean_square() > 0.0 { (0.5 / of.mean_square()) as f32 } else { 0.0 };
    let (of_a, of_b) = (share(a), share(b));
    let mut mean = a.mean()?;
    let other = b.mean()?;
    mean.par_iter_mut().zip(&other).for_each(|(a, b)| *a = of_a * *a + of_b * b);
    Ok(mean)
}
