//! The tensors of a file by the names that a description gives them: each is taken once, with its shape checked.

use std::collections::BTreeMap;
use std::path::Path;

use super::linear::{Linear, Norm, Stacked};
use crate::arch::describe::{self, Dim};
use crate::arch::{Hparams, LayerHparams};
use crate::error::{Error, Fault, Place, Result};
use crate::gguf::Model;
use crate::names::in_block;
use crate::source::{TensorSource, significant_dims};

/// Consecutive rows of a tensor.
#[derive(Debug, Clone)]
pub(super) struct Slice {
    /// Index into the source's tensors.
    pub tensor: usize,
    pub first_row: usize,
    pub n_rows: usize,
    pub n_cols: usize,
}

pub(super) fn first_path(source: &Model) -> &Path {
    source.files().first().map_or(Path::new(""), |file| file.path())
}

/// Where names and shapes of a description are taken from: a layer, or the model as a whole.
pub(super) struct Site<'h> {
    pub hparams: &'h Hparams,
    pub layer: Option<&'h LayerHparams>,
    /// Of names: `blk.3.`.
    pub prefix: String,
    /// The layer's number; 0 for the model as a whole.
    pub index: usize,
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
    /// What all layers use.
    of_all: BTreeMap<String, Slice>,
}

impl<'a> Catalog<'a> {
    pub fn new(source: &'a Model) -> Catalog<'a> {
        let unused = source.tensors().iter().enumerate().map(|(index, tensor)| (tensor.name.as_str(), index)).collect();
        Catalog { source, unused, of_all: BTreeMap::new() }
    }

    pub fn required(&mut self, name: &str, shape: &[usize]) -> Result<Slice> {
        match self.optional(name, shape)? {
            Some(slice) => Ok(slice),
            None => {
                let place = Place::Tensor(name.to_owned());
                Err(Error::malformed(first_path(self.source), place, Fault::MissingTensor, format!("is missing; shape {shape:?}")))
            }
        }
    }

    /// Takes a tensor of the name out of the catalog, if there is one.
    pub fn optional(&mut self, name: &str, shape: &[usize]) -> Result<Option<Slice>> {
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

    /// Leaves out the tensors of a block that is not run.
    pub fn leave_out(&mut self, block: usize) {
        let start = in_block(block, "");
        self.unused.retain(|name, _| !name.starts_with(&start));
    }

    /// True while nothing has used a tensor of the name.
    pub fn has(&self, name: &str) -> bool {
        self.unused.contains_key(name)
    }

    /// A vector, or a table of them.
    pub fn weight(&mut self, weight: &describe::Weight, site: &Site<'_>) -> Result<Slice> {
        self.required(&site.name(weight.name), &site.shape(weight.shape))
    }

    /// The same where the file has it, if the description lets it be absent.
    pub fn maybe(&mut self, weight: &describe::Weight, site: &Site<'_>) -> Result<Option<Slice>> {
        match weight.need {
            describe::Need::IfThere => self.optional(&site.name(weight.name), &site.shape(weight.shape)),
            _ => self.weight(weight, site).map(Some),
        }
    }

    /// A tensor that all layers use.
    fn shared(&mut self, name: &str, shape: &[usize]) -> Result<Slice> {
        if let Some(slice) = self.of_all.get(name) {
            return Ok(slice.clone());
        }
        let slice = self.required(name, shape)?;
        self.of_all.insert(name.to_owned(), slice.clone());
        Ok(slice)
    }

    /// The gain of a norm of all layers.
    pub fn gain_of_all(&mut self, norm: &describe::Norm, site: &Site<'_>) -> Result<Slice> {
        match norm {
            describe::Norm::Rms(gain) => self.shared(gain.name, &site.shape(gain.shape)),
            _ => Err(Error::Internal("a norm of all layers without a gain".to_owned())),
        }
    }

    /// The rows of one layer out of a matrix that has as many for each.
    pub fn rows_of_layer(&mut self, linear: &describe::Linear, site: &Site<'_>) -> Result<Linear<Slice, Slice>> {
        let [n_out, n_in] = linear.shape.map(|dim| site.len(dim));
        let name = format!("{}.weight", linear.name);
        let all = self.shared(&name, &[n_out, n_in])?;
        let n_rows = n_out / site.hparams.layers.len();
        let weight = Slice { first_row: site.index * n_rows, n_rows, ..all };
        Ok(Linear { name, n_out: n_rows, weight, bias: None })
    }

    /// A table that has a row of every layer for each row of another, as rows of one layer each.
    pub fn table_of_layers(&mut self, table: &describe::Weight, site: &Site<'_>) -> Result<Slice> {
        let all = self.weight(table, site)?;
        let n_layer = site.hparams.layers.len();
        let (n_rows, n_cols) = (all.n_rows * n_layer, all.n_cols / n_layer);
        let format = self.source.tensors()[all.tensor].format;
        if !n_cols.is_multiple_of(format.block_len()) {
            let what =
                format!("running a model with {} in {format}, whose blocks are longer than a layer's {n_cols} numbers", table.name);
            return Err(Error::unsupported(what, "make the file again with --tensor-type per_layer_token_embd=F16"));
        }
        if u32::try_from(n_rows).is_err() {
            return Err(Error::unsupported(format!("running a model with {n_rows} rows in {}", table.name), "2^32 can be"));
        }
        Ok(Slice { n_rows, n_cols, ..all })
    }

    pub fn norm(&mut self, norm: &describe::Norm, site: &Site<'_>) -> Result<Norm<Slice>> {
        match norm {
            describe::Norm::Rms(gain) => Ok(Norm { gain: self.weight(gain, site)?, bias: None }),
            describe::Norm::Layer(gain, bias) => Ok(Norm { gain: self.weight(gain, site)?, bias: Some(self.weight(bias, site)?) }),
            describe::Norm::None | describe::Norm::RmsAlone => Err(Error::Internal("a step without a gain before it".to_owned())),
        }
    }

    /// The gain of a norm without a bias, where there is one.
    pub fn gain(&mut self, norm: &describe::Norm, site: &Site<'_>) -> Result<Option<Slice>> {
        match norm {
            describe::Norm::None | describe::Norm::RmsAlone => Ok(None),
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

    /// The same where the file has it.
    pub fn maybe_linear(&mut self, linear: &describe::Linear, site: &Site<'_>) -> Result<Option<Linear<Slice, Slice>>> {
        let is_there = self.has(&site.name(&format!("{}.weight", linear.name)));
        is_there.then(|| self.linear(linear, site)).transpose()
    }

    /// Takes a weight that nothing uses, where the file has it.
    pub fn skip(&mut self, weight: &describe::Weight, site: &Site<'_>) -> Result<()> {
        self.optional(&site.name(weight.name), &site.shape(weight.shape)).map(drop)
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
    pub fn stacked(&mut self, stack: &describe::Stack, n_matrices: usize, site: &Site<'_>) -> Result<Stacked<Slice, Slice>> {
        let [n_out, n_in] = stack.shape.map(|dim| site.len(dim));
        let name = site.name(stack.name);
        let all = self.required(&name, &[n_matrices, n_out, n_in])?;
        let matrix = |index| Slice { first_row: index * n_out, n_rows: n_out, ..all.clone() };
        let matrices = (0..n_matrices).map(matrix).collect();
        let Some(bias) = stack.bias else { return Ok(Stacked { name, n_out, matrices, biases: Vec::new() }) };
        let all = self.required(&site.name(bias.name), &[n_matrices, n_out])?;
        let bias = |index| Slice { first_row: index, n_rows: 1, ..all.clone() };
        Ok(Stacked { name, n_out, matrices, biases: (0..n_matrices).map(bias).collect() })
    }

    /// The matrices of gates and those below them, in one stack.
    pub fn stacked_halves(
        &mut self,
        stack: &describe::Stack,
        n_matrices: usize,
        site: &Site<'_>,
    ) -> Result<[Stacked<Slice, Slice>; 2]> {
        let Stacked { name, n_out, matrices, .. } = self.stacked(stack, n_matrices, site)?;
        let n_out = n_out / 2;
        let half = |first: usize| {
            let of = |both: &Slice| Slice { first_row: both.first_row + first, n_rows: n_out, ..both.clone() };
            Stacked { name: name.clone(), n_out, matrices: matrices.iter().map(of).collect(), biases: Vec::new() }
        };
        Ok([half(0), half(n_out)])
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

    /// What is left would be left out of the computation.
    pub fn refuse_leftovers(&self) -> Result<()> {
        let Some((name, index)) = self.unused.first_key_value() else { return Ok(()) };
        let path = self.source.files()[self.source.tensors()[*index].file].path();
        let detail = format!("has no place in the forward pass of this architecture; {} such tensors", self.unused.len());
        Err(Error::malformed(path, Place::Tensor((*name).to_owned()), Fault::UnmappedTensor, detail))
    }
}
