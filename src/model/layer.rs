//! The weights of one layer, whatever they are held as: places in a file, bytes, or matrices of a backend.

use super::block::Block;
use super::linear::Norm;
use crate::error::Result;

/// A layer: matrices of type `M`, vectors of type `V`.
#[derive(Debug, Clone)]
pub(super) struct Layer<M, V> {
    pub steps: Vec<Step<M, V>>,
}

/// `x += after(block(before(x)))`.
#[derive(Debug, Clone)]
pub(super) struct Step<M, V> {
    /// Norm of what goes in, where there is one.
    pub before: Option<Norm<V>>,
    pub block: Block<M, V>,
    /// The gain of the norm of what is added, where it is normalised.
    pub after: Option<V>,
}

impl<M, V> Layer<M, V> {
    /// The same layer, held as something else.
    pub fn try_map<M2, V2>(
        self,
        mut matrix: impl FnMut(M) -> Result<M2>,
        mut vector: impl FnMut(V) -> Result<V2>,
    ) -> Result<Layer<M2, V2>> {
        let steps = self.steps.into_iter().map(|step| {
            Ok(Step {
                before: step.before.map(|norm| norm.try_map(&mut vector)).transpose()?,
                block: step.block.try_map(&mut matrix, &mut vector)?,
                after: step.after.map(&mut vector).transpose()?,
            })
        });
        Ok(Layer { steps: steps.collect::<Result<_>>()? })
    }
}
