//! The weights of one layer, whatever they are held as: places in a file, bytes, or matrices of a backend.

use super::block::Block;
use crate::error::Result;

/// A layer: matrices of type `M`, vectors of type `V`.
#[derive(Debug, Clone)]
pub(super) struct Layer<M, V> {
    pub steps: Vec<Step<M, V>>,
}

/// `x += after(block(before(x)))`.
#[derive(Debug, Clone)]
pub(super) struct Step<M, V> {
    pub before: Norm<V>,
    pub block: Block<M, V>,
    /// The gain of the norm of what is added, where it is normalised.
    pub after: Option<V>,
}

/// What brings states to one size, or with a bias to one mean too.
#[derive(Debug, Clone)]
pub(super) struct Norm<V> {
    pub gain: V,
    pub bias: Option<V>,
}

/// `x * weight^T + bias`.
#[derive(Debug, Clone)]
pub(super) struct Linear<M, V> {
    /// The tensor that holds the weight, maybe together with others.
    pub name: String,
    pub n_out: usize,
    pub weight: M,
    pub bias: Option<V>,
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
                before: step.before.try_map(&mut vector)?,
                block: step.block.try_map(&mut matrix, &mut vector)?,
                after: step.after.map(&mut vector).transpose()?,
            })
        });
        Ok(Layer { steps: steps.collect::<Result<_>>()? })
    }
}

impl<V> Norm<V> {
    /// The same norm, held as something else.
    pub fn try_map<V2>(self, vector: &mut impl FnMut(V) -> Result<V2>) -> Result<Norm<V2>> {
        Ok(Norm { gain: vector(self.gain)?, bias: self.bias.map(vector).transpose()? })
    }
}

impl<M, V> Linear<M, V> {
    /// The same map, held as something else.
    pub fn try_map<M2, V2>(
        self,
        matrix: &mut impl FnMut(M) -> Result<M2>,
        vector: &mut impl FnMut(V) -> Result<V2>,
    ) -> Result<Linear<M2, V2>> {
        let weight = matrix(self.weight)?;
        let bias = self.bias.map(vector).transpose()?;
        Ok(Linear { name: self.name, n_out: self.n_out, weight, bias })
    }
}
