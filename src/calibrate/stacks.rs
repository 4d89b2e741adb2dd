//! The blocks of matrices that are stacked in one tensor, each with inputs of its own: those of experts.
//!
//! A layer has hundreds of them, and to ask held-out text about each alone would take a pass through all. So they are judged together:
//! a tensor is calibrated, with one damping for all of its experts, or rounded by importance.

use std::ops::Range;

use super::choice::{Choice, LAMBDAS, Made, Method, loss_is_better};
use super::experts::Experts;
use super::inputs::{Collector, Inputs};
use super::layers::{Known, Pass};
use super::round::round;
use crate::error::Result;
use crate::memory::filled;
use crate::model::{Backend, Cpu, LoadedStep, StepMatrix, Use};
use crate::quant::Format;

/// A tensor of all experts while its blocks are made.
struct Stack<'m> {
    matrix: &'m StepMatrix,
    format: Format,
    row_bytes: usize,
    /// The best blocks so far, and others that may be better.
    best: Vec<u8>,
    other: Vec<u8>,
    choice: Choice,
}

impl<'m> Stack<'m> {
    fn new(matrix: &'m StepMatrix, format: Format) -> Result<Option<Stack<'m>>> {
        let Some(row_bytes) = format.row_bytes(matrix.n_cols as u64) else { return Ok(None) };
        let size_bytes = matrix.rows.len() * row_bytes as usize;
        let choice = Choice { name: matrix.name.clone(), format, method: Method::Importance, error: 0.0, plain_error: 0.0 };
        let (best, other) = (filled(size_bytes, 0)?, filled(size_bytes, 0)?);
        Ok(Some(Stack { matrix, format, row_bytes: row_bytes as usize, best, other, choice }))
    }

    fn bytes_of(&self, expert: usize) -> Range<usize> {
        let n = self.best.len() / self.matrix.n_stacked;
        expert * n..(expert + 1) * n
    }
}

impl Pass<'_, '_> {
    /// Makes the blocks of the experts of a step in the formats that are missing of each matrix. All experts of a tensor have the same
    /// damping: that with which held-out text loses less, if any does.
    pub(super) fn experts(
        &mut self,
        (layer, step): (usize, usize),
        loaded: &LoadedStep<Cpu>,
        (matrices, missing): (&[StepMatrix], &[Vec<Format>]),
        mut experts: Experts,
        after: &[<Cpu as Backend>::Rows],
    ) -> Result<Vec<Made>> {
        experts.counts = false;
        let mut undecided = Vec::new();
        for (matrix, formats) in matrices.iter().zip(missing).filter(|(matrix, _)| matrix.n_stacked > 1) {
            for &format in formats {
                undecided.extend(Stack::new(matrix, format)?);
            }
        }
        if undecided.is_empty() {
            return Ok(Vec::new());
        }
        let reached = experts.reached();
        self.reached.n_experts += reached.n_experts;
        self.reached.n_few += reached.n_few;
        self.reached.n_none += reached.n_none;
        let mut made = Vec::new();
        for attempt in 0..LAMBDAS.len() {
            for group in experts.groups() {
                if experts.group != group {
                    experts.turn_to(group)?;
                    self.collect_experts(loaded, matrices, &mut experts)?;
                }
                self.round_group(&experts, attempt, &mut undecided)?;
            }
            let mut still = Vec::new();
            for mut stack in undecided {
                let loss = |blocks: &[u8]| self.loss((layer, step), stack.matrix, stack.format, blocks, after);
                if attempt == 0 {
                    stack.choice.plain_error = loss(&stack.best)?;
                    stack.choice.error = stack.choice.plain_error;
                }
                if stack.format.lattice().is_some() {
                    let error = loss(&stack.other)?;
                    if loss_is_better(error, stack.choice.error) {
                        stack.choice.method = Method::Calibrated { lambda: LAMBDAS[attempt] };
                        stack.choice.error = error;
                        std::mem::swap(&mut stack.best, &mut stack.other);
                    }
                }
                let is_decided = stack.choice.method != Method::Importance || stack.format.lattice().is_none();
                if is_decided || attempt + 1 == LAMBDAS.len() {
                    let Stack { matrix, best, choice, .. } = stack;
                    made.push(Made { first_row: matrix.rows.start, blocks: best, choice });
                } else {
                    still.push(stack);
                }
            }
            undecided = still;
            if undecided.is_empty() {
                break;
            }
        }
        Ok(made)
    }

    /// The moments of another group.
    fn collect_experts(&self, loaded: &LoadedStep<Cpu>, matrices: &[StepMatrix], experts: &mut Experts) -> Result<()> {
        let stacked: Vec<StepMatrix> = matrices.iter().filter(|matrix| matrix.n_stacked > 1).cloned().collect();
        let mut inputs = Inputs::new(self.engine);
        for index in 0..self.n_seen {
            self.check_stop()?;
            let sequences = self.batches[index].sequences;
            let mut collector =
                Collector { matrices: &stacked, inputs: &mut inputs, experts: Some(experts), sequences, x: Vec::new() };
            self.sweep.run(loaded, index, &mut collector)?;
        }
        Ok(())
    }

    /// Rounds the matrices of a group of experts, with one damping; first by importance, too. What cannot be held is told when the plan
    /// is carried out: it is left out of `stacks`.
    fn round_group(&self, experts: &Experts, attempt: usize, stacks: &mut Vec<Stack<'_>>) -> Result<()> {
        for expert in experts.group.clone() {
            for takes in [Use::Input, Use::Result] {
                if stacks.iter().all(|stack| stack.matrix.takes != takes) {
                    continue;
                }
                let (moments, n_cols) = experts.moments(expert, takes)?;
                let known = Known::of_moments(self.engine, moments, n_cols);
                let mut unsound = Vec::new();
                for (index, stack) in stacks.iter_mut().enumerate().filter(|(_, stack)| stack.matrix.takes == takes) {
                    self.check_stop()?;
                    let weights = self.sweep.weights(&stack.matrix.stacked(expert))?;
                    let bytes = stack.bytes_of(expert);
                    debug_assert_eq!(bytes.len() * stack.matrix.n_cols, weights.len() * stack.row_bytes);
                    let (best, other) = (&mut stack.best[bytes.clone()], &mut stack.other[bytes]);
                    let is_finite = weights.iter().all(|w| w.is_finite());
                    if attempt == 0 && !(is_finite && self.plain(stack.format, &weights, n_cols, &known.importance, best)) {
                        unsound.push(index);
                        continue;
                    }
                    let is_rounded = stack.format.lattice().is_some()
                        && round(self.engine, stack.format, known.factor(attempt)?, &weights, other);
                    if !is_rounded {
                        other.copy_from_slice(best);
                    }
                }
                unsound.into_iter().rev().for_each(|index| drop(stacks.remove(index)));
            }
        }
        Ok(())
    }
}
