//! What goes into the matrices of each expert of a mixture.
//!
//! A text brings many tokens to some experts and few to others. Moments of fewer tokens than a matrix has columns leave directions of
//! which nothing is known, and blocks that are made by them are made for these tokens alone. So they are filled up, to as many tokens as
//! there are columns, with the mean over all experts, to each of which a token counts that reaches it.
//!
//! The moments of all experts of a layer can be more than memory holds: they are collected for as many experts at a time as a bound
//! allows, and the text goes through the layer once for each such group.

use std::ops::Range;

use super::moments::{Moments, blended};
use crate::error::Result;
use crate::matmul::Engine;
use crate::model::{StepMatrix, Use};

/// Bytes of moments that are held for experts at a time, unless those of one expert are more.
const MOMENTS_MAX_BYTES: usize = 1 << 30;

/// How the tokens of a text are spread over experts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reached {
    /// Experts of all layers.
    pub n_experts: usize,
    /// Of these, those that were reached by fewer tokens than one of their matrices has columns.
    pub n_few: usize,
    /// Of these, those that no token reached.
    pub n_none: usize,
}

/// The moments of the experts of one layer.
pub(super) struct Experts {
    engine: Engine,
    /// Columns of the first matrices and of the last.
    n_cols: [usize; 2],
    /// Tokens that reached each expert.
    n_tokens: Vec<usize>,
    /// Of the tokens of all experts.
    all: [Moments; 2],
    /// Experts that have moments of their own now.
    pub group: Range<usize>,
    own: Vec<[Moments; 2]>,
    /// False once the whole text has been counted.
    pub counts: bool,
}

fn at(takes: Use) -> usize {
    usize::from(takes == Use::Result)
}

impl Experts {
    /// For a step that is a mixture.
    ///
    /// # Errors
    /// No memory.
    pub fn of(engine: Engine, matrices: &[StepMatrix]) -> Result<Option<Experts>> {
        let of_use = |last: usize| matrices.iter().find(|matrix| matrix.n_stacked > 1 && at(matrix.takes) == last);
        let (Some(first), Some(last)) = (of_use(0), of_use(1)) else { return Ok(None) };
        let n_cols = [first.n_cols, last.n_cols];
        let mut experts = Experts {
            engine,
            n_cols,
            n_tokens: vec![0; first.n_stacked],
            all: [Moments::new(n_cols[0])?, Moments::new(n_cols[1])?],
            group: 0..0,
            own: Vec::new(),
            counts: true,
        };
        experts.turn_to(experts.groups().next().expect("an expert"))?;
        Ok(Some(experts))
    }

    /// Experts whose moments are held together.
    pub fn groups(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let per_expert = self.n_cols.iter().map(|n| n.saturating_mul(8 * n)).sum::<usize>().max(1);
        let (n_experts, n) = (self.n_tokens.len(), (MOMENTS_MAX_BYTES / per_expert).max(1));
        (0..n_experts).step_by(n).map(move |first| first..(first + n).min(n_experts))
    }

    /// Forgets the moments of the experts so far, and is ready for those of others.
    pub fn turn_to(&mut self, group: Range<usize>) -> Result<()> {
        self.own.clear();
        for _ in group.clone() {
            self.own.push([Moments::new(self.n_cols[0])?, Moments::new(self.n_cols[1])?]);
        }
        self.group = group;
        Ok(())
    }

    /// Adds what goes into a matrix of an expert: `[_, n_cols]`.
    ///
    /// # Errors
    /// No memory.
    pub fn add(&mut self, expert: usize, takes: Use, x: &[f32], n_cols: usize) -> Result<()> {
        let n_rows = x.len() / n_cols;
        if self.counts {
            self.all[at(takes)].add(self.engine, x, n_rows as f64)?;
            if takes == Use::Result {
                self.n_tokens[expert] += n_rows;
            }
        }
        if self.group.contains(&expert) {
            self.own[expert - self.group.start][at(takes)].add(self.engine, x, n_rows as f64)?;
        }
        Ok(())
    }

    /// How many of them the text has reached.
    pub fn reached(&self) -> Reached {
        let columns = self.n_cols[0].max(self.n_cols[1]);
        let fewer_than = |n: usize| self.n_tokens.iter().filter(|&&n_tokens| n_tokens < n).count();
        Reached { n_experts: self.n_tokens.len(), n_few: fewer_than(columns), n_none: fewer_than(1) }
    }

    /// The moments that count for a matrix of an expert of the group, and its columns.
    ///
    /// # Errors
    /// No memory.
    pub fn moments(&self, expert: usize, takes: Use) -> Result<(Vec<f32>, usize)> {
        let (own, all, n_cols) = (&self.own[expert - self.group.start][at(takes)], &self.all[at(takes)], self.n_cols[at(takes)]);
        let share = (self.n_tokens[expert] as f32 / n_cols as f32).min(1.0);
        Ok((blended(own, share, all)?, n_cols))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Level;

    fn matrix(takes: Use, n_cols: usize) -> StepMatrix {
        StepMatrix { name: String::new(), tensor: 0, takes, rows: 0..12, n_cols, n_stacked: 3 }
    }

    /// One that many tokens reach has its own; one with half as many tokens as columns, half of its own; one without, the mean.
    #[test]
    fn experts_that_few_tokens_reach_borrow_from_all() {
        let engine = Engine::new(Level::detect());
        let matrices = [matrix(Use::Input, 4), matrix(Use::Result, 2)];
        let mut experts = Experts::of(engine, &matrices).expect("memory").expect("stacked matrices");
        let large: Vec<f32> = [2.0, 0.0, 0.0, 0.0].repeat(6);
        experts.add(0, Use::Input, &large, 4).expect("memory");
        experts.add(0, Use::Result, &[1.0; 12], 2).expect("memory");
        experts.add(1, Use::Input, &[0.0, 0.0, 0.0, 4.0].repeat(2), 4).expect("memory");
        experts.add(1, Use::Result, &[3.0; 4], 2).expect("memory");
        let diagonal = |expert: usize| -> Vec<f32> {
            let (moments, n) = experts.moments(expert, Use::Input).expect("memory");
            moments.into_iter().step_by(n + 1).collect()
        };
        assert_eq!(diagonal(0), [4.0, 0.0, 0.0, 0.0]);
        // The mean over eight tokens: 6 x 4 / 8 and 2 x 16 / 8.
        assert_eq!(diagonal(2), [3.0, 0.0, 0.0, 4.0]);
        assert_eq!(diagonal(1), [1.5, 0.0, 0.0, 10.0]);
        assert_eq!(experts.moments(1, Use::Result).expect("memory").0, [9.0; 4], "as many tokens as columns");
        assert_eq!(experts.reached(), Reached { n_experts: 3, n_few: 2, n_none: 1 });
    }
}
