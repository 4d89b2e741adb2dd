//! The CPU backend: everything in f32, and the reference for the others.
//!
//! Every number is one fixed chain of operations, the same at every level, for any number of threads and for any number of tokens
//! computed together: lanes are sixteen everywhere, sums have a fixed order, work is split by rows and heads and never inside a sum.
//! One exception: a token that goes through the layers alone, as in generation, is multiplied by another fixed order of sums, which is
//! as fast as weights come from memory; its last bits differ from those of the same token among others.
//! Exponentials are made of plain arithmetic ([`exp`]), logarithms and angles come from `libm`, so the digits are also the same on
//! every machine.

// The index is the lane, and often indexes several arrays.
#![allow(clippy::needless_range_loop)]

mod activations;
mod attention;
mod awake;
mod buffers;
mod delta;
mod exp;
mod norm;
mod rope;
mod score;

use std::ops::Range;
use std::sync::OnceLock;

use rayon::prelude::*;

use super::backend::{AttentionShape, Backend, Clamped, Divergence, Gelu, HeadForm, Heads, Output, Places, Score, Span};
use super::backend::{DeltaInputs, DeltaShape, Recurrent};
use super::matrix::Matrix;
use crate::error::Result;
use crate::matmul::{self, Accumulate, Engine, Weights, ceiling};
use crate::memory::copied;
use crate::quant::Format;
use crate::simd::Level;
use crate::threads::{self, Pool};
use buffers::{Buffer, Buffers, Packed, Packs};

pub use activations::Activations;

/// The cores of this machine.
pub struct Cpu {
    engine: Engine,
    pool: Pool,
    buffers: Buffers,
    packs: Packs,
    activations: Activations,
}

/// What a machine could do at best, all threads together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceilings {
    /// Floating-point operations per second in registers, two for each multiply-add.
    pub flops: f64,
    /// Bytes per second read from memory.
    pub bytes_read: f64,
}

/// Several times the largest cache of most machines.
const MEMORY_BYTES: usize = 256 << 20;

/// f32 `[n_rows, n_cols]`.
pub struct Rows {
    values: Buffer,
    n_cols: usize,
}

/// The left side of products: its rows, and once they are needed, packed for products.
pub struct Operand {
    rows: Rows,
    packed: OnceLock<Packed>,
}

/// A matrix in its file format, `[n_rows, n_cols]`.
pub struct Weight {
    format: Format,
    n_rows: usize,
    n_cols: usize,
    bytes: Vec<u8>,
}

/// What a pass knows of its rows.
pub struct Pass {
    positions: Vec<u32>,
    spans: Vec<Span>,
    kept_from: Option<usize>,
    kept_step: usize,
}

impl Operand {
    /// `[n_rows, n_cols]`, row-major.
    pub fn values(&self) -> &[f32] {
        &self.rows.values
    }
}

impl From<Rows> for Operand {
    fn from(rows: Rows) -> Operand {
        Operand { rows, packed: OnceLock::new() }
    }
}

impl Rows {
    fn n_rows(&self) -> usize {
        self.values.len() / self.n_cols
    }

    /// `[n_rows, n_cols]`, row-major.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    fn as_matrix(&self) -> matmul::Rows<'_> {
        matmul::Rows::new(&self.values, self.n_cols)
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.n_cols..][..self.n_cols]
    }
}

impl Cpu {
    /// A backend of `n_threads` threads, or of as many as the system grants; where it grants none, the calling thread computes. The results
    /// do not depend on their number, nor on the engine's level.
    ///
    /// # Errors
    /// None so far.
    pub fn new(engine: Engine, n_threads: usize, activations: Activations) -> Result<Cpu> {
        Ok(Cpu { engine, pool: threads::pool(n_threads), buffers: Buffers::default(), packs: Packs::default(), activations })
    }

    /// Does `work` on its threads.
    pub fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.pool.install(work)
    }

    /// What computes its products.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// Measures what its threads could do at best: a second or two.
    pub fn ceilings(&self) -> Ceilings {
        self.pool.install(|| Ceilings {
            flops: ceiling::flops_of_pool(self.engine),
            bytes_read: ceiling::bytes_read(self.engine, MEMORY_BYTES),
        })
    }

    fn level(&self) -> Level {
        self.engine.level()
    }

    fn new_rows(&self, n_rows: usize, n_cols: usize) -> Result<Rows> {
        assert!(n_cols > 0, "rows without columns");
        Ok(Rows { values: self.buffers.take(n_rows, n_cols)?, n_cols })
    }

    /// Rows of which each is made by `fill`, in parallel.
    fn fill_rows(&self, n_rows: usize, n_cols: usize, fill: impl Fn(usize, &mut [f32]) + Sync) -> Result<Rows> {
        let mut out = self.new_rows(n_rows, n_cols)?;
        self.each_row(&mut out, fill);
        Ok(out)
    }

    fn each_row(&self, rows: &mut Rows, change: impl Fn(usize, &mut [f32]) + Sync) {
        let n_cols = rows.n_cols;
        // Waking other threads for a few rows costs more than the rows.
        if rows.values.len() <= SERIAL_MAX {
            rows.values.chunks_exact_mut(n_cols).enumerate().for_each(|(index, row)| change(index, row));
        } else {
            self.pool.install(|| {
                rows.values.par_chunks_exact_mut(n_cols).enumerate().for_each(|(index, row)| change(index, row));
            });
        }
    }

    /// `out` becomes, or has added, the columns `outputs` of `x * weight^T`.
    fn multiply(&self, x: &Operand, weight: &Weight, outputs: Range<usize>, accumulate: Accumulate, out: &mut Rows) -> Result<()> {
        let weights = weights_of(weight).rows(outputs.start, outputs.len());
        self.pool.install(|| {
            let packed = match x.packed.get() {
                Some(packed) => packed,
                None => {
                    let packed = self.packs.pack(self.engine, x.rows.as_matrix())?;
                    x.packed.get_or_init(|| packed)
                }
            };
            self.engine.multiply(packed, weights, &mut out.values, accumulate);
            Ok(())
        })
    }
}

fn weights_of(weight: &Weight) -> Weights<'_> {
    Weights::new(weight.format, weight.n_rows, weight.n_cols, &weight.bytes)
}

/// Values that one thread handles alone.
const SERIAL_MAX: usize = 1 << 14;

impl Backend for Cpu {
    type Rows = Rows;
    type Operand = Operand;
    type Weight = Weight;
    type Pass = Pass;

    /// On a thread of the pool: from any other, every operation would wake the pool and wait for it.
    fn chain<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        awake::run(&self.pool, work)
    }

    fn rows(&self, n_rows: usize, n_cols: usize) -> Result<Rows> {
        self.new_rows(n_rows, n_cols)
    }

    fn upload(&self, values: &[f32], n_cols: usize) -> Result<Rows> {
        assert!(values.len().is_multiple_of(n_cols), "{} values are not rows of {n_cols}", values.len());
        let mut rows = self.new_rows(values.len() / n_cols, n_cols)?;
        rows.values.copy_from_slice(values);
        Ok(rows)
    }

    fn download(&self, rows: &Rows) -> Result<Vec<f32>> {
        copied(&rows.values)
    }

    fn weight(&self, matrix: Matrix<'_>) -> Result<Weight> {
        let Matrix { format, n_rows, n_cols, .. } = matrix;
        Ok(Weight { format, n_rows, n_cols, bytes: matrix.into_bytes()? })
    }

    fn embed(&self, table: &Weight, tokens: &[u32]) -> Result<Rows> {
        let row_bytes = table.bytes.len() / table.n_rows;
        self.fill_rows(tokens.len(), table.n_cols, |index, row| {
            let blocks = &table.bytes[tokens[index] as usize * row_bytes..][..row_bytes];
            table.format.dequantize(self.level(), blocks, row);
        })
    }

    fn select(&self, x: &Rows, rows: &[u32]) -> Result<Rows> {
        self.fill_rows(rows.len(), x.n_cols, |index, row| row.copy_from_slice(x.row(rows[index] as usize)))
    }

    fn kept_rows(&self, n_rows: usize, n_cols: usize) -> Result<Rows> {
        self.new_rows(n_rows, n_cols)
    }

    fn begin(&self, places: &Places<'_>) -> Result<Pass> {
        let Places { positions, spans, kept_from, kept_step } = *places;
        Ok(Pass { positions: positions.to_vec(), spans: spans.to_vec(), kept_from, kept_step })
    }

    fn rms_norm(&self, x: &Rows, gain: &Rows, eps: f32) -> Result<Operand> {
        let rows = self.fill_rows(x.n_rows(), x.n_cols, |index, row| {
            row.copy_from_slice(x.row(index));
            norm::rms_norm(self.level(), row, Some(&gain.values), eps);
        })?;
        Ok(rows.into())
    }

    fn layer_norm(&self, x: &Rows, gain: &Rows, bias: &Rows, eps: f32) -> Result<Operand> {
        let rows = self.fill_rows(x.n_rows(), x.n_cols, |index, row| {
            row.copy_from_slice(x.row(index));
            norm::layer_norm(self.level(), row, [&gain.values, &bias.values], eps);
        })?;
        Ok(rows.into())
    }

    fn rms_norm_heads(&self, x: &mut Rows, gain: &Rows, eps: f32) -> Result<()> {
        assert!(x.n_cols.is_multiple_of(gain.n_cols), "whole heads");
        self.each_row(x, |_, row| {
            row.chunks_exact_mut(gain.n_cols).for_each(|head| norm::rms_norm(self.level(), head, Some(&gain.values), eps));
        });
        Ok(())
    }

    fn operand(&self, x: &Rows) -> Result<Operand> {
        Ok(self.fill_rows(x.n_rows(), x.n_cols, |index, row| row.copy_from_slice(x.row(index)))?.into())
    }

    fn add_bias(&self, x: &mut Rows, bias: &Rows) -> Result<()> {
        assert_eq!(x.n_cols, bias.values.len(), "a bias for every column");
        self.each_row(x, |_, row| row.iter_mut().zip(bias.values.iter()).for_each(|(x, b)| *x += b));
        Ok(())
    }

    fn matmul(&self, x: &Operand, weight: &Weight, accumulate: Accumulate, out: &mut Rows) -> Result<()> {
        if x.rows.n_rows() > 1 {
            return self.matmul_of_batch(x, weight, accumulate, out);
        }
        let rounded = self.rounded(x, weight)?;
        let x = rounded.as_ref().unwrap_or(x);
        self.pool.install(|| self.engine.multiply_token(&x.rows.values, weights_of(weight), &mut out.values, accumulate));
        Ok(())
    }

    fn matmul_of_batch(&self, x: &Operand, weight: &Weight, accumulate: Accumulate, out: &mut Rows) -> Result<()> {
        let rounded = self.rounded(x, weight)?;
        self.multiply(rounded.as_ref().unwrap_or(x), weight, 0..weight.n_rows, accumulate, out)
    }

    fn add(&self, from: &Rows, to: &mut Rows) -> Result<()> {
        assert_eq!((from.n_rows(), from.n_cols), (to.n_rows(), to.n_cols), "rows of one shape");
        self.each_row(to, |index, to| to.iter_mut().zip(from.row(index)).for_each(|(to, x)| *to += x));
        Ok(())
    }

    fn scaled(&self, x: &Rows, factor: f32) -> Result<Rows> {
        self.fill_rows(x.n_rows(), x.n_cols, |index, row| row.iter_mut().zip(x.row(index)).for_each(|(to, x)| *to = x * factor))
    }

    fn add_rows(&self, from: &Rows, factors: &[f32], rows: &[u32], to: &mut Rows) -> Result<()> {
        assert_eq!((from.n_rows(), from.n_cols), (factors.len(), to.n_cols), "a factor for every row");
        assert_eq!(factors.len(), rows.len(), "a place for every row");
        // For each row of `to`, which row is added.
        let mut places = vec![usize::MAX; to.n_rows()];
        rows.iter().enumerate().for_each(|(index, &row)| places[row as usize] = index);
        self.each_row(to, |row, to| {
            let index = places[row];
            if index != usize::MAX {
                to.iter_mut().zip(from.row(index)).for_each(|(to, x)| *to += factors[index] * x);
            }
        });
        Ok(())
    }

    fn swiglu(&self, gate: &Rows, up: &Rows) -> Result<Operand> {
        let rows = self.fill_rows(gate.n_rows(), gate.n_cols, |index, row| {
            row.copy_from_slice(gate.row(index));
            exp::swiglu(self.level(), row, up.row(index));
        })?;
        Ok(rows.into())
    }

    fn clamped_swiglu(&self, gate: &Rows, up: &Rows, form: Clamped) -> Result<Operand> {
        let rows = self.fill_rows(gate.n_rows(), gate.n_cols, |index, row| {
            row.copy_from_slice(gate.row(index));
            exp::clamped_swiglu(self.level(), form, row, up.row(index));
        })?;
        Ok(rows.into())
    }

    fn gelu(&self, form: Gelu, gate: &Rows, up: Option<&Rows>) -> Result<Operand> {
        let ones = if up.is_none() { vec![1.0; gate.n_cols] } else { Vec::new() };
        let rows = self.fill_rows(gate.n_rows(), gate.n_cols, |index, row| {
            row.copy_from_slice(gate.row(index));
            exp::geglu(self.level(), form, row, up.map_or(&ones, |up| up.row(index)));
        })?;
        Ok(rows.into())
    }

    fn heads(&self, parts: &mut [Heads<'_, Rows>], form: &HeadForm<'_, Rows>, pass: &Pass) -> Result<()> {
        let HeadForm { head_dim, norm_eps, ref rotation } = *form;
        for part in parts {
            let Heads { rows, n_heads, bias, is_normalised, gain, rotates, kept } = part;
            let (bias, gain, is_normalised) = (*bias, gain.map(|gain| &gain.values[..]), *is_normalised);
            assert_eq!((rows.n_rows(), rows.n_cols), (pass.positions.len(), *n_heads * head_dim), "heads of every row");
            let rotation = rotation.as_ref().filter(|_| *rotates);
            assert!(rotation.is_none_or(|rotation| rotation.table.n_cols == rotation.n_rot), "an angle for every pair");
            if bias.is_some() || is_normalised || rotation.is_some() {
                self.each_row(rows, |index, row| {
                    if let Some(bias) = bias {
                        row.iter_mut().zip(bias.values.iter()).for_each(|(x, b)| *x += b);
                    }
                    if is_normalised {
                        row.chunks_exact_mut(head_dim).for_each(|head| norm::rms_norm(self.level(), head, gain, norm_eps));
                    }
                    if let Some(rotation) = rotation {
                        rope::rotate(row, head_dim, rotation, pass.positions[index]);
                    }
                });
            }
            if let Some(kept) = kept {
                assert_eq!(rows.n_cols, kept.n_cols, "rows of one length");
                let first = pass.kept_from.expect("a pass that keeps");
                for (index, row) in rows.values.chunks_exact(rows.n_cols).enumerate() {
                    kept.values[(first + index * pass.kept_step) * rows.n_cols..][..rows.n_cols].copy_from_slice(row);
                }
            }
        }
        Ok(())
    }

    fn attention(
        &self,
        q: &Rows,
        [k, v]: [&Rows; 2],
        sinks: Option<&Rows>,
        shape: &AttentionShape,
        pass: &Pass,
    ) -> Result<Operand> {
        let mut out = self.new_rows(q.n_rows(), q.n_cols)?;
        let rounded = self.rounded_heads([q, k, v])?;
        let [q, k, v] = rounded.as_ref().map_or([q, k, v], |rows| rows.each_ref());
        let inputs = attention::Inputs { q, k, v, sinks: sinks.map(Rows::values), shape };
        self.pool.install(|| attention::attention(self.level(), &inputs, &pass.spans, &mut out));
        Ok(out.into())
    }

    fn halves_of_heads(&self, x: &Rows, head_dim: usize) -> Result<[Rows; 2]> {
        let half = |second: usize| {
            self.fill_rows(x.n_rows(), x.n_cols / 2, |row, out| {
                let heads = out.chunks_exact_mut(head_dim).zip(x.row(row).chunks_exact(2 * head_dim));
                heads.for_each(|(head, both)| head.copy_from_slice(&both[second * head_dim..][..head_dim]));
            })
        };
        Ok([half(0)?, half(1)?])
    }

    fn sigmoid_gated(&self, x: Operand, gate: &Rows) -> Result<Operand> {
        let rows = self.fill_rows(gate.n_rows(), gate.n_cols, |row, out| {
            out.copy_from_slice(gate.row(row));
            exp::sigmoid_gated(self.level(), out, x.rows.row(row));
        })?;
        Ok(rows.into())
    }

    fn recurrent(&self, shape: &DeltaShape) -> Result<Recurrent<Rows>> {
        delta::recurrent(self, shape)
    }

    fn delta_net(
        &self,
        inputs: &DeltaInputs<'_, Rows>,
        shape: &DeltaShape,
        pass: &Pass,
        kept: Option<&mut [Recurrent<Rows>]>,
    ) -> Result<Operand> {
        delta::delta_net(self, inputs, shape, pass, kept)
    }

    fn sum_squares(&self, x: &Operand) -> Result<Vec<f64>> {
        Ok(self.pool.install(|| norm::column_sums_of_squares(&x.rows)))
    }

    fn logits(&self, x: &Operand, output: Output<'_, Weight>) -> Result<Vec<f32>> {
        let mut out = self.new_rows(x.rows.n_rows(), output.weight.n_rows)?;
        self.matmul(x, output.weight, Accumulate::Store, &mut out)?;
        self.scale_and_cap(&mut out, output);
        copied(&out.values)
    }

    fn score(&self, x: &Operand, output: Output<'_, Weight>, targets: &[u32]) -> Result<Vec<Score>> {
        self.scores(x, output, targets)
    }

    fn compare(
        &self,
        a: (&Operand, Output<'_, Weight>),
        b: (&Operand, Output<'_, Weight>),
        targets: &[u32],
    ) -> Result<Vec<Divergence>> {
        self.divergences(a, b, targets)
    }
}
