//! Rounds the rows of a tensor so that what they make of its inputs changes least.
//!
//! ```text
//! 64 rows:  panel by panel from the left   x = w + (errors so far) A      scales fitted, columns rounded, each error fed on
//!           then some times, panel by panel    gradient = (q - w) H       codes and scales moved while that lowers the loss
//! ```
//!
//! Rows know nothing of each other, so the bytes are the same for any number of threads; every sum has a fixed order, so they are the same
//! at every CPU level.

use rayon::prelude::*;

use super::factor::Factor;
use super::fit::Fit;
use super::grid::{Grid, Integers, Listed};
use super::group::{Descend, Group, PANEL, ROWS, Round};
use super::points::{Points, Table};
use crate::matmul::{Accumulate, Activations, Engine, Right, Rows};
use crate::quant::{Format, Lattice, Levels};
use crate::simd::Sixteen;

/// Rows that a worker takes at a time.
const ROWS_AT_ONCE: usize = 4 * ROWS;

/// Times that all panels are improved.
const DESCENTS: usize = 3;

/// Makes blocks of rows of `factor.n()` weights. False where a block cannot hold its weights: what `blocks` hold then is nothing.
///
/// `weights`: `[n_rows, n_cols]`, finite.
///
/// # Panics
/// When the format has no lattice, or lengths disagree.
pub fn round(engine: Engine, format: Format, factor: &Factor, weights: &[f32], blocks: &mut [u8]) -> bool {
    let lattice = format.lattice().unwrap_or_else(|| panic!("{format} has no lattice"));
    let rounding = Rounding { engine, format, lattice: &lattice, factor, weights, blocks };
    match lattice.levels {
        Levels::Integers(low, high) => rounding.run(Integers { low, high }),
        Levels::Listed(levels) => rounding.run(Listed { levels }),
        Levels::Points(points) => {
            let table = Table::new(&points);
            match points.len {
                4 => rounding.run(Points::<4> { table: &table, level: engine.level() }),
                _ => rounding.run(Points::<8> { table: &table, level: engine.level() }),
            }
        }
    }
}

struct Rounding<'a> {
    engine: Engine,
    format: Format,
    lattice: &'a Lattice,
    factor: &'a Factor,
    weights: &'a [f32],
    blocks: &'a mut [u8],
}

impl Rounding<'_> {
    fn run<G: Grid>(self, grid: G) -> bool {
        let n_cols = self.factor.n();
        let row_bytes = self.format.row_bytes(n_cols as u64).expect("rows of whole blocks") as usize;
        assert_eq!(self.weights.len() / n_cols * row_bytes, self.blocks.len(), "blocks of all rows");
        let rounder = Rounder { engine: self.engine, format: self.format, fit: Fit::new(self.lattice, grid), factor: self.factor };
        let batches = self.weights.par_chunks(ROWS_AT_ONCE * n_cols).zip(self.blocks.par_chunks_mut(ROWS_AT_ONCE * row_bytes));
        batches.map(|(weights, blocks)| rounder.batch(weights, blocks)).reduce(|| true, |a, b| a & b)
    }
}

struct Rounder<'a, G> {
    engine: Engine,
    format: Format,
    fit: Fit<'a, G>,
    factor: &'a Factor,
}

impl<G: Grid> Rounder<'_, G> {
    fn batch(&self, weights: &[f32], blocks: &mut [u8]) -> bool {
        let n_cols = self.factor.n();
        let n_rows = weights.len() / n_cols;
        let mut groups: Vec<Group> = weights.chunks(ROWS * n_cols).map(|rows| Group::new(rows, n_cols, self.fit.lattice)).collect();
        // What is rounded already is away by this much; what is not counts as exact.
        let mut errors = vec![0.0; weights.len()];
        let mut products = vec![0.0; n_rows * PANEL];
        let panels = || (0..n_cols).step_by(PANEL).map(|first| first..(first + PANEL).min(n_cols));
        let mut lanes = [Sixteen::ZERO; PANEL];
        for columns in panels() {
            let width = columns.len();
            let products = &mut products[..n_rows * width];
            products.fill(0.0);
            if columns.start > 0 {
                let left = Activations::pack(self.engine, Rows::strided(&errors, n_rows, columns.start, n_cols));
                let right = Rows::strided(&self.factor.feedback()[columns.start * n_cols..], width, columns.start, n_cols);
                self.engine.multiply_here(&left, Right::Rows(right), products, width, Accumulate::Store);
            }
            for (group, products) in groups.iter_mut().zip(products.chunks(ROWS * width)) {
                let base = &mut lanes[..width];
                turn(products, width, base);
                for (base, weight) in base.iter_mut().zip(&group.weights[columns.clone()]) {
                    base.0.iter_mut().zip(weight.0).for_each(|(base, weight)| *base += weight);
                }
                let task = Round { fit: self.fit, factor: self.factor, columns: columns.clone(), base, group };
                self.engine.level().run(task);
            }
            keep_errors(&groups, &columns, n_cols, &mut errors);
        }
        for _ in 0..DESCENTS {
            for columns in panels() {
                let width = columns.len();
                let products = &mut products[..n_rows * width];
                let left = Activations::pack(self.engine, Rows::new(&errors, n_cols));
                let right = Rows::new(&self.factor.moments()[columns.start * n_cols..columns.end * n_cols], n_cols);
                self.engine.multiply_here(&left, Right::Rows(right), products, width, Accumulate::Store);
                for (group, products) in groups.iter_mut().zip(products.chunks(ROWS * width)) {
                    let gradient = &mut lanes[..width];
                    turn(products, width, gradient);
                    gradient.iter_mut().for_each(|lanes| lanes.0 = lanes.0.map(|x| -x));
                    let task = Descend { fit: self.fit, factor: self.factor, columns: columns.clone(), gradient, group };
                    self.engine.level().run(task);
                }
                keep_errors(&groups, &columns, n_cols, &mut errors);
            }
        }
        self.assemble(&groups, blocks)
    }

    /// The bytes of all rows; false where a scale is not finite.
    fn assemble(&self, groups: &[Group], blocks: &mut [u8]) -> bool {
        let (block_bytes, n_cols) = (self.format.block_bytes(), self.factor.n());
        let n_blocks = n_cols / self.fit.lattice.block_len;
        let mut is_sound = true;
        for (row, blocks) in blocks.chunks_exact_mut(n_blocks * block_bytes).enumerate() {
            let (group, lane) = (&groups[row / ROWS], row % ROWS);
            for (index, block) in blocks.chunks_exact_mut(block_bytes).enumerate() {
                let parts = group.parts(&self.fit, index, lane);
                is_sound &= parts.d.is_finite() && parts.dmin.is_finite();
                self.format.assemble(self.engine.level(), &parts, block);
            }
        }
        is_sound
    }
}

/// Up to sixteen rows of `width` become lanes; those without a row zero.
fn turn(rows: &[f32], width: usize, lanes: &mut [Sixteen]) {
    lanes.fill(Sixteen::ZERO);
    for (lane, row) in rows.chunks_exact(width).enumerate() {
        lanes.iter_mut().zip(row).for_each(|(lanes, x)| lanes.0[lane] = *x);
    }
}

/// `w - q` of a panel's columns.
fn keep_errors(groups: &[Group], columns: &std::ops::Range<usize>, n_cols: usize, errors: &mut [f32]) {
    for (row, errors) in errors.chunks_exact_mut(n_cols).enumerate() {
        let (group, lane) = (&groups[row / ROWS], row % ROWS);
        for column in columns.clone() {
            errors[column] = group.weights[column].0[lane] - group.values[column].0[lane];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::Moments;
    use crate::simd::Level;

    /// Numbers that look random, the same everywhere.
    fn noise(seed: u64, n: usize) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let uniform = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        std::iter::repeat_with(uniform).take(n).collect()
    }

    /// Inputs whose columns go together, and some of them further than others.
    fn inputs(n_tokens: usize, n_cols: usize) -> Vec<f32> {
        const CAUSES: usize = 24;
        let (causes, mixing, own) = (noise(1, n_tokens * CAUSES), noise(2, CAUSES * n_cols), noise(3, n_tokens * n_cols));
        let value = |i: usize| {
            let (token, column) = (i / n_cols, i % n_cols);
            let common: f32 = (0..CAUSES).map(|c| causes[token * CAUSES + c] * mixing[c * n_cols + column]).sum();
            (common + 0.3 * own[i]) * if column % 37 == 5 { 6.0 } else { 1.0 }
        };
        (0..n_tokens * n_cols).map(value).collect()
    }

    /// `e H eᵀ` of all rows, in f64.
    fn loss(weights: &[f32], values: &[f32], x: &[f32], n_cols: usize) -> f64 {
        let outputs = |token: &[f32], w: &[f32], q: &[f32]| -> f64 {
            let each = token.iter().zip(w.iter().zip(q));
            each.map(|(x, (w, q))| f64::from(*x) * f64::from(w - q)).sum::<f64>().powi(2)
        };
        let rows = weights.chunks_exact(n_cols).zip(values.chunks_exact(n_cols));
        rows.map(|(w, q)| x.chunks_exact(n_cols).map(|token| outputs(token, w, q)).sum::<f64>()).sum()
    }

    const N_ROWS: usize = 20;

    /// Every format with a lattice: the loss against that of ggml's rounding with importance, on inputs that were not seen.
    #[test]
    fn what_a_tensor_makes_of_its_inputs_changes_less() {
        let engine = Engine::new(Level::detect());
        for (n_cols, formats) in [(512, Format::ALL), (96, &[Format::Q4_0, Format::IQ4_NL, Format::Q8_0, Format::Q5_1][..])] {
            let x = inputs(1024, n_cols);
            let (seen, held_out) = x.split_at(768 * n_cols);
            let mut moments = Moments::new(n_cols).expect("memory");
            moments.add(engine, seen, 768.0).expect("memory");
            let weights: Vec<f32> = noise(4, N_ROWS * n_cols).iter().map(|w| w * w * w).collect();
            let factor = Factor::new(engine, moments.mean().expect("memory"), n_cols, 0.05).expect("memory");
            for &format in formats.iter().filter(|format| format.lattice().is_some()) {
                let row_bytes = format.row_bytes(n_cols as u64).expect("whole blocks") as usize;
                let (mut plain, mut blocks) = (vec![0; N_ROWS * row_bytes], vec![0; N_ROWS * row_bytes]);
                let importance = moments.diagonal();
                format.quantize_rows(engine.level(), &weights, n_cols, Some(&importance), &mut plain).expect("finite");
                assert!(round(engine, format, &factor, &weights, &mut blocks), "{format}");
                let loss_of = |blocks: &[u8]| {
                    let mut values = vec![0.0; weights.len()];
                    format.dequantize(engine.level(), blocks, &mut values);
                    loss(&weights, &values, held_out, n_cols)
                };
                let ratio = loss_of(&blocks) / loss_of(&plain);
                println!("{format}, {n_cols} columns: {ratio:.3}");
                assert!(ratio < 0.6, "{format}, {n_cols} columns: {ratio} of the loss of ggml's rounding");
            }
        }
    }

    #[test]
    fn every_level_and_any_split_of_rows_give_the_same_bytes() {
        let n_cols = 256;
        let weights = noise(7, 70 * n_cols);
        for format in [
            Format::Q4_K,
            Format::Q3_K,
            Format::IQ4_XS,
            Format::Q5_0,
            Format::NVFP4,
            Format::Q2_0,
            Format::IQ3_S,
            Format::IQ3_XXS,
            Format::IQ2_S,
            Format::IQ2_XS,
        ] {
            let row_bytes = format.row_bytes(n_cols as u64).expect("whole blocks") as usize;
            let made = |level: Level| {
                let engine = Engine::new(level);
                let mut moments = Moments::new(n_cols).expect("memory");
                moments.add(engine, &inputs(300, n_cols), 300.0).expect("memory");
                let factor = Factor::new(engine, moments.mean().expect("memory"), n_cols, 0.1).expect("memory");
                let mut blocks = vec![0; 70 * row_bytes];
                assert!(round(engine, format, &factor, &weights, &mut blocks));
                let mut last = vec![0; 3 * row_bytes];
                assert!(round(engine, format, &factor, &weights[67 * n_cols..], &mut last));
                assert!(blocks.ends_with(&last), "{format}: three rows alone");
                blocks
            };
            let levels = Level::available();
            let expected = made(levels[0]);
            for &level in &levels[1..] {
                assert!(made(level) == expected, "{format} at {}", level.name());
            }
        }
    }
}
