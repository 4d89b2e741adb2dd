//! Where every weight of a model lies in its files, and reading them.
//!
//! The plan is made from names and shapes alone and refuses what is missing, misshapen, unreadable, or left over: a tensor that nothing
//! here uses would mean that the model computes something else. Weights are read by position, whole tensors or runs of their rows; those of
//! matrices when a backend takes them.

use std::collections::BTreeMap;
use std::path::Path;

use super::block::{Block, Stacked};
use super::layer::{Layer, Linear, Norm, Step};
use super::matrix::{Blocks, Matrix};
use super::needs::MatrixShape;
use crate::arch::describe::{self, Dim};
use crate::arch::{Hparams, LayerHparams, RopeScaling};
use crate::error::{Error, Fault, Place, Result};
use crate::gguf::Model;
use crate::names::{ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT, ROPE_FREQS};
use crate::simd::Level;
use crate::source::{SourceTensor, TensorSource, significant_dims};

/// Where the weights of the layers are while the model runs. Embedding and output are always in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residency {
    /// In memory: for generation, which needs all of them for every token.
    Resident,
    /// In the file, read layer by layer for every batch of tokens: for evaluation in less memory than the model has bytes.
    Streamed,
}

/// Consecutive rows of a tensor.
#[derive(Debug, Clone)]
pub(super) struct Slice {
    /// Index into the source's tensors.
    tensor: usize,
    first_row: usize,
    n_rows: usize,
    n_cols: usize,
}

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
        let site = Site { hparams, layer: None, prefix: String::new() };
        let [n_vocab, n_embd] = family.output.shape.map(|dim| site.len(dim));
        let plan = Plan {
            source,
            token_embd: catalog.weight(&family.embedding.tokens, &site)?,
            output_norm: catalog.norm(&family.output_norm, &site)?,
            position_embd: family.embedding.positions.as_ref().map(|table| catalog.weight(table, &site)).transpose()?,
            output: catalog.optional(&format!("{}.weight", family.output.name), &[n_vocab, n_embd])?,
            rope_factors: catalog.rope_factors(hparams)?,
            layers: (0..hparams.layers.len()).map(|index| catalog.layer(hparams, index)).collect::<Result<_>>()?,
        };
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
    /// `Io`, `InputChanged`; `NonFinite` for NaN or infinity.
    pub fn vector(&self, slice: &Slice) -> Result<Vec<f32>> {
        let matrix = self.matrix(slice);
        let Matrix { format, n_rows, n_cols, .. } = matrix;
        let bytes = matrix.into_bytes()?;
        let mut values = vec![0.0; n_rows * n_cols];
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

fn first_path(source: &Model) -> &Path {
    source.files().first().map_or(Path::new(""), |file| file.path())
}

/// Where names and shapes of a description are taken from: a layer, or the model as a whole.
pub(super) struct Site<'h> {
    pub hparams: &'h Hparams,
    pub layer: Option<&'h LayerHparams>,
    /// Of names: `blk.3.`.
    pub prefix: String,
}

impl Site<'_> {
    pub fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub fn len(&self, dim: Dim) -> usize {
        self.hparams.len(dim, self.layer)
    }

    fn shape(&self, dims: &[Dim]) -> Vec<usize> {
        dims.iter().map(|dim| self.len(*dim)).collect()
    }
}

/// The tensors of a model that nothing has used yet.
pub(super) struct Catalog<'a> {
    source: &'a Model,
    unused: BTreeMap<&'a str, usize>,
}

impl<'a> Catalog<'a> {
    fn new(source: &'a Model) -> Catalog<'a> {
        let unused = source.tensors().iter().enumerate().map(|(index, tensor)| (tensor.name.as_str(), index)).collect();
        Catalog { source, unused }
    }

    fn required(&mut self, name: &str, shape: &[usize]) -> Result<Slice> {
        match self.optional(name, shape)? {
            Some(slice) => Ok(slice),
            None => {
                let place = Place::Tensor(name.to_owned());
                Err(Error::malformed(first_path(self.source), place, Fault::MissingTensor, format!("is missing; shape {shape:?}")))
            }
        }
    }

    /// Takes a tensor of the name out of the catalog, if there is one.
    fn optional(&mut self, name: &str, shape: &[usize]) -> Result<Option<Slice>> {
        let Some(index) = self.unused.remove(name) else { return Ok(None) };
        let tensor = &self.source.tensors()[index];
        // llama.cpp compares so: converters write the gate of a shared expert as [1, 64], llama-quantize as [64].
        let expected: Vec<u64> = shape.iter().map(|&dim| dim as u64).collect();
        if significant_dims(&tensor.shape) != significant_dims(&expected) {
            let path = self.source.files()[tensor.file].path();
            let detail = format!("shape {:?}, but the hyperparameters make it {shape:?}", tensor.shape);
            return Err(Error::malformed(path, Place::Tensor(name.to_owned()), Fault::ShapeMismatch, detail));
        }
        if !tensor.format.can_dequantize() || tensor.format.is_for_activations() {
            let what = format!("running a model with {name} in {}", tensor.format);
            return Err(Error::unsupported(what, "weights are floats or quantized floats"));
        }
        let (n_cols, outer) = shape.split_last().expect("a vector, a matrix, or matrices");
        Ok(Some(Slice { tensor: index, first_row: 0, n_rows: outer.iter().product(), n_cols: *n_cols }))
    }

    fn layer(&mut self, hparams: &Hparams, index: usize) -> Result<PlannedLayer> {
        let layer = &hparams.layers[index];
        let site = Site { hparams, layer: Some(layer), prefix: format!("blk.{index}.") };
        let steps = layer.layer.steps.iter().map(|step| {
            Ok(Step {
                before: self.norm(&step.before, &site)?,
                block: Block::plan(&step.body, self, &site)?,
                after: self.gain(&step.after, &site)?,
            })
        });
        Ok(Layer { steps: steps.collect::<Result<_>>()? })
    }

    /// True while nothing has used a tensor of the name.
    pub fn has(&self, name: &str) -> bool {
        self.unused.contains_key(name)
    }

    /// A vector, or a table of them.
    pub fn weight(&mut self, weight: &describe::Weight, site: &Site<'_>) -> Result<Slice> {
        self.required(&site.name(weight.name), &site.shape(weight.shape))
    }

    pub fn norm(&mut self, norm: &describe::Norm, site: &Site<'_>) -> Result<Norm<Slice>> {
        match norm {
            describe::Norm::Rms(gain) => Ok(Norm { gain: self.weight(gain, site)?, bias: None }),
            describe::Norm::Layer(gain, bias) => Ok(Norm { gain: self.weight(gain, site)?, bias: Some(self.weight(bias, site)?) }),
            describe::Norm::None => Err(Error::Internal("a step without a norm before it".to_owned())),
        }
    }

    /// The gain of a norm without a bias, where there is one.
    pub fn gain(&mut self, norm: &describe::Norm, site: &Site<'_>) -> Result<Option<Slice>> {
        match norm {
            describe::Norm::None => Ok(None),
            describe::Norm::Rms(gain) => self.weight(gain, site).map(Some),
            describe::Norm::Layer(..) => Err(Error::Internal("a norm with a bias where none is computed".to_owned())),
        }
    }

    /// A matrix, and its bias where the file has one.
    pub fn linear(&mut self, linear: &describe::Linear, site: &Site<'_>) -> Result<Linear<Slice, Slice>> {
        let [n_out, n_in] = linear.shape.map(|dim| site.len(dim));
        let stem = site.name(linear.name);
        let name = format!("{stem}.weight");
        let weight = self.required(&name, &[n_out, n_in])?;
        Ok(Linear { name, n_out, weight, bias: self.optional(&format!("{stem}.bias"), &[n_out])? })
    }

    /// Several matrices of one input, each in a tensor of its own or one below the other in one.
    pub fn projections<const N: usize>(
        &mut self,
        projections: &describe::Projections<N>,
        site: &Site<'_>,
    ) -> Result<[Linear<Slice, Slice>; N]> {
        let (whole, parts) = match projections {
            describe::Projections::Apart(linears) => {
                let found: Vec<_> = linears.iter().map(|linear| self.linear(linear, site)).collect::<Result<_>>()?;
                return Ok(found.try_into().expect("as many as there are"));
            }
            describe::Projections::Fused(whole, parts) => (whole, parts),
        };
        let [n_out, n_in] = whole.shape.map(|dim| site.len(dim));
        let stem = site.name(whole.name);
        let name = format!("{stem}.weight");
        let weight = self.required(&name, &[n_out, n_in])?;
        let biases = self.column(&format!("{stem}.bias"), n_out)?;
        let mut first_row = 0;
        Ok(parts.map(|dim| {
            let n_rows = site.len(dim);
            let part = |whole: &Slice| Slice { first_row, n_rows, ..whole.clone() };
            let linear = Linear { name: name.clone(), n_out: n_rows, weight: part(&weight), bias: biases.as_ref().map(part) };
            first_row += n_rows;
            linear
        }))
    }

    /// The matrices that a tensor of three dimensions stacks.
    pub fn stacked(&mut self, stack: &describe::Stack, n_matrices: usize, site: &Site<'_>) -> Result<Stacked<Slice>> {
        let [n_out, n_in] = stack.shape.map(|dim| site.len(dim));
        let name = site.name(stack.name);
        let all = self.required(&name, &[n_matrices, n_out, n_in])?;
        let matrix = |index| Slice { first_row: index * n_out, n_rows: n_out, ..all.clone() };
        Ok(Stacked { name, n_out, matrices: (0..n_matrices).map(matrix).collect() })
    }

    /// A vector as rows of one number each, so that parts of it can be read; `None` where there is none.
    fn column(&mut self, name: &str, len: usize) -> Result<Option<Slice>> {
        let Some(vector) = self.optional(name, &[len])? else { return Ok(None) };
        let format = self.source.tensors()[vector.tensor].format;
        if format.block_len() != 1 {
            return Err(Error::unsupported(format!("running a model with {name} in {format}"), "biases are floats"));
        }
        Ok(Some(Slice { n_rows: len, n_cols: 1, ..vector }))
    }

    fn rope_factors(&mut self, hparams: &Hparams) -> Result<RopeFactors> {
        let Some(rope) = hparams.layers.iter().find_map(|layer| layer.rope) else { return Ok(RopeFactors::default()) };
        let shape = [rope.n_rot / 2];
        if let RopeScaling::Long { .. } = hparams.rope_scaling {
            let [short, long] = [ROPE_FACTORS_SHORT, ROPE_FACTORS_LONG];
            return Ok(RopeFactors { short: Some(self.required(short, &shape)?), long: Some(self.required(long, &shape)?) });
        }
        Ok(RopeFactors { short: self.optional(ROPE_FREQS, &shape)?, long: None })
    }

    /// What is left would be left out of the computation.
    fn refuse_leftovers(&self) -> Result<()> {
        let Some((name, index)) = self.unused.first_key_value() else { return Ok(()) };
        let path = self.source.files()[self.source.tensors()[*index].file].path();
        let detail = format!("has no place in the forward pass of this architecture; {} such tensors", self.unused.len());
        Err(Error::malformed(path, Place::Tensor((*name).to_owned()), Fault::UnmappedTensor, detail))
    }
}
