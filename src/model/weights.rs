//! Where every weight of a model lies in its files, and reading them.
//!
//! The plan is made from names and shapes alone and refuses what is missing, misshapen, unreadable, or left over: a tensor that nothing
//! here uses would mean that the model computes something else. Weights are read by position, whole tensors or runs of their rows; those of
//! matrices when a backend takes them.

use std::path::Path;

use super::block::Block;
use super::catalog::{Catalog, Site, Slice, first_path};
use super::layer::{Layer, Step};
use super::linear::Norm;
use super::matrix::{Blocks, Matrix};
use super::needs::MatrixShape;
use crate::arch::{Hparams, RopeScaling, describe};
use crate::error::{Error, Fault, Place, Result};
use crate::gguf::Model;
use crate::memory::zero_rows;
use crate::names::{ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT, ROPE_FREQS};
use crate::simd::Level;
use crate::source::{SourceTensor, TensorSource};

/// A layer that has not been read.
pub(super) type PlannedLayer = Layer<Slice, Slice>;
/// A layer that is to be handed to a backend: its vectors have been read.
pub(super) type ReadLayer<'a> = Layer<Matrix<'a>, Vec<f32>>;

/// Every weight's place.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    source: &'a Model,
    pub token_embd: Slice,
    pub output_norm: Norm<Slice>,
    /// One row for each position, where positions are learned.
    pub position_embd: Option<Slice>,
    /// What layers get of tokens: a row of each layer for each token, where there is such a table.
    pub per_layer_embd: Option<Slice>,
    /// `None` where the embedding is used.
    pub output: Option<Slice>,
    pub layers: Vec<PlannedLayer>,
    rope_factors: RopeFactors,
}

/// Divisors of the rotary frequencies.
#[derive(Debug, Default)]
struct RopeFactors {
    short: Option<Slice>,
    long: Option<Slice>,
}

impl<'a> Plan<'a> {
    /// Finds every tensor that the hyperparameters call for.
    ///
    /// # Errors
    /// `MissingTensor`, `ShapeMismatch`, `UnmappedTensor`; `Unsupported` for formats without floats.
    pub fn new(source: &'a Model, hparams: &Hparams) -> Result<Plan<'a>> {
        let mut catalog = Catalog::new(source);
        let family = hparams.family;
        let site = Site { hparams, layer: None, prefix: String::new(), index: 0 };
        let [n_vocab, n_embd] = family.output.shape.map(|dim| site.len(dim));
        let plan = Plan {
            source,
            token_embd: catalog.weight(&family.embedding.tokens, &site)?,
            output_norm: catalog.norm(&family.output_norm, &site)?,
            position_embd: family.embedding.positions.as_ref().map(|table| catalog.weight(table, &site)).transpose()?,
            per_layer_embd: table_of_layers(hparams).map(|table| catalog.table_of_layers(table, &site)).transpose()?,
            output: catalog.optional(&format!("{}.weight", family.output.name), &[n_vocab, n_embd])?,
            rope_factors: planned_factors(&mut catalog, hparams)?,
            layers: (0..hparams.layers.len()).map(|index| planned_layer(&mut catalog, hparams, index)).collect::<Result<_>>()?,
        };
        let n_layer = hparams.layers.len();
        (n_layer..n_layer + hparams.drafts.len()).for_each(|block| catalog.leave_out(block));
        catalog.refuse_leftovers()?;
        Ok(plan)
    }

    /// What a matrix or vector will be.
    pub fn shape(&self, slice: &Slice) -> MatrixShape {
        MatrixShape { format: self.source.tensors()[slice.tensor].format, n_rows: slice.n_rows, n_cols: slice.n_cols }
    }

    /// Where a matrix lies.
    pub fn matrix(&self, slice: &Slice) -> Matrix<'a> {
        let SourceTensor { format, file, offset_bytes, .. } = self.source.tensors()[slice.tensor];
        let row_bytes = format.row_bytes(slice.n_cols as u64).expect("rows of a checked file are whole blocks");
        // The product is part of a tensor's size in bytes, which the file holds.
        let offset_bytes = offset_bytes + row_bytes * slice.first_row as u64;
        let blocks = Blocks::InFile { file: &self.source.files()[file], offset_bytes };
        Matrix { format, n_rows: slice.n_rows, n_cols: slice.n_cols, blocks }
    }

    /// Reads a vector as floats.
    ///
    /// # Errors
    /// `Io`, also where there is no memory, `InputChanged`; `NonFinite` for NaN or infinity.
    pub fn vector(&self, slice: &Slice) -> Result<Vec<f32>> {
        let matrix = self.matrix(slice);
        let Matrix { format, n_rows, n_cols, .. } = matrix;
        let bytes = matrix.into_bytes()?;
        let mut values = zero_rows(n_rows, n_cols)?;
        format.dequantize(Level::detect(), &bytes, &mut values);
        match values.iter().position(|x| !x.is_finite()) {
            None => Ok(values),
            Some(at) => {
                let SourceTensor { name, file, .. } = &self.source.tensors()[slice.tensor];
                let place = Place::Weight { tensor: name.clone(), row: (at / n_cols) as u64, column: (at % n_cols) as u64 };
                let path = self.source.files()[*file].path();
                Err(Error::malformed(path, place, Fault::NonFinite, format!("is {}", values[at])))
            }
        }
    }

    /// Reads the vectors of a layer.
    ///
    /// # Errors
    /// As [`Plan::vector`].
    pub fn layer(&self, index: usize) -> Result<ReadLayer<'a>> {
        self.layers[index].clone().try_map(|slice| Ok(self.matrix(&slice)), |slice| self.vector(&slice))
    }

    /// The divisors of the rotary frequencies for a context of `n_ctx` tokens.
    ///
    /// # Errors
    /// As [`Plan::vector`]; `HparamRange` for a divisor that is not above zero.
    pub fn rope_factors(&self, hparams: &Hparams, n_ctx: usize) -> Result<Option<Vec<f32>>> {
        let RopeFactors { short, long } = &self.rope_factors;
        let is_long = matches!(hparams.rope_scaling, RopeScaling::Long { n_ctx_orig, .. } if n_ctx > n_ctx_orig);
        let Some(slice) = (if is_long { long } else { short }) else { return Ok(None) };
        let factors = self.vector(slice)?;
        match factors.iter().find(|factor| **factor <= 0.0) {
            None => Ok(Some(factors)),
            Some(factor) => {
                let SourceTensor { name, file, .. } = &self.source.tensors()[slice.tensor];
                let path = self.source.files()[*file].path();
                let detail = format!("holds {factor}; divisors above 0 are required here");
                Err(Error::malformed(path, Place::Tensor(name.clone()), Fault::HparamRange, detail))
            }
        }
    }

    /// # Errors
    /// `InputChanged` when a file is not what it was when it was opened.
    pub fn check_unchanged(&self) -> Result<()> {
        self.source.files().iter().try_for_each(|file| file.check_unchanged())
    }

    /// The file to name in messages about the model as a whole.
    pub fn path(&self) -> &Path {
        first_path(self.source)
    }
}

/// The table of what layers get of tokens.
fn table_of_layers(hparams: &Hparams) -> Option<&'static describe::Weight> {
    let steps = hparams.layers.first()?.layer.steps.iter().filter(|step| hparams.has(step));
    steps.into_iter().find_map(|step| match &step.body {
        describe::Body::PerLayer(per_layer) => Some(&per_layer.table),
        _ => None,
    })
}

fn planned_layer(catalog: &mut Catalog<'_>, hparams: &Hparams, index: usize) -> Result<PlannedLayer> {
    let layer = &hparams.layers[index];
    let site = Site { hparams, layer: Some(layer), prefix: format!("blk.{index}."), index };
    let steps = layer.layer.steps.iter().filter(|step| hparams.has(step)).map(|step| {
        Ok(Step {
            before: match &step.before {
                describe::Norm::None => None,
                norm => Some(catalog.norm(norm, &site)?),
            },
            block: Block::plan(&step.body, catalog, &site)?,
            after: catalog.gain(&step.after, &site)?,
        })
    });
    Ok(Layer { steps: steps.collect::<Result<_>>()? })
}

fn planned_factors(catalog: &mut Catalog<'_>, hparams: &Hparams) -> Result<RopeFactors> {
    let Some(rope) = hparams.rope() else { return Ok(RopeFactors::default()) };
    let shape = [rope.n_rot / 2];
    if let RopeScaling::Long { .. } = hparams.rope_scaling {
        let [short, long] = [ROPE_FACTORS_SHORT, ROPE_FACTORS_LONG];
        return Ok(RopeFactors { short: Some(catalog.required(short, &shape)?), long: Some(catalog.required(long, &shape)?) });
    }
    Ok(RopeFactors { short: catalog.optional(ROPE_FREQS, &shape)?, long: None })
}
