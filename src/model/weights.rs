//! Where every weight of a model lies in its files, and reading them.
//!
//! The plan is made from names and shapes alone and refuses what is missing, misshapen, unreadable, or left over: a tensor that nothing
//! here uses would mean that the model computes something else. Weights are read by position, whole tensors or runs of their rows.

use std::collections::BTreeMap;
use std::path::Path;

use super::backend::Matrix;
use super::families::Norm as NormKind;
use super::hparams::{ExpertHparams, Hparams, LayerHparams};
use super::layer::{Experts, FeedForward, Gated, Layer, Linear, Norm, SharedExpert, Stacked};
use super::rope::RopeScaling;
use crate::error::{Error, Fault, Place, Result};
use crate::gguf::Model;
use crate::simd::Level;
use crate::source::{SourceTensor, TensorSource, significant_dims};

/// The embedding.
pub(super) const TOKEN_EMBD: &str = "token_embd.weight";
/// Divisors of the rotary frequencies, for contexts up to the first training's and for longer ones.
pub(super) const ROPE_FACTORS: [&str; 2] = ["rope_factors_short.weight", "rope_factors_long.weight"];

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
/// A layer that has been read, but not handed to a backend.
pub(super) type ReadLayer = Layer<Matrix, Vec<f32>>;

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
        let n_embd = hparams.n_embd;
        let plan = Plan {
            source,
            token_embd: catalog.matrix(TOKEN_EMBD, hparams.n_vocab, n_embd)?,
            output_norm: catalog.norm("output_norm", hparams)?,
            position_embd: if hparams.family.learns_positions {
                Some(catalog.matrix("position_embd.weight", hparams.n_ctx_train, n_embd)?)
            } else {
                None
            },
            output: catalog.optional("output.weight", &[hparams.n_vocab, n_embd])?,
            rope_factors: catalog.rope_factors(hparams)?,
            layers: (0..hparams.layers.len()).map(|index| catalog.layer(hparams, index)).collect::<Result<_>>()?,
        };
        catalog.refuse_leftovers()?;
        Ok(plan)
    }

    /// Reads a matrix.
    ///
    /// # Errors
    /// `Io`, `InputChanged`.
    pub fn matrix(&self, slice: &Slice) -> Result<Matrix> {
        let tensor = &self.source.tensors()[slice.tensor];
        let row_bytes = tensor.format.row_bytes(slice.n_cols as u64).expect("rows of a checked file are whole blocks");
        // Both products are parts of a tensor's size in bytes, which the file holds.
        let n_bytes = row_bytes as usize * slice.n_rows;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(n_bytes).map_err(|_| out_of_memory())?;
        bytes.resize(n_bytes, 0);
        let offset_bytes = tensor.offset_bytes + row_bytes * slice.first_row as u64;
        self.source.files()[tensor.file].read_exact_at(&mut bytes, offset_bytes)?;
        Ok(Matrix { format: tensor.format, n_rows: slice.n_rows, n_cols: slice.n_cols, bytes })
    }

    /// Reads a vector as floats.
    ///
    /// # Errors
    /// As [`Plan::matrix`]; `NonFinite` for NaN or infinity.
    pub fn vector(&self, slice: &Slice) -> Result<Vec<f32>> {
        let Matrix { format, n_rows, n_cols, bytes } = self.matrix(slice)?;
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

    /// Reads a layer.
    ///
    /// # Errors
    /// As [`Plan::vector`].
    pub fn layer(&self, index: usize) -> Result<ReadLayer> {
        self.layers[index].clone().try_map(|slice| self.matrix(&slice), |slice| self.vector(&slice))
    }

    /// The divisors of the rotary frequencies for a context of `n_ctx` tokens.
    ///
    /// # Errors
    /// As [`Plan::vector`]; `HparamRange` for a divisor that is not above zero.
    pub fn rope_factors(&self, hparams: &Hparams, n_ctx: usize) -> Result<Option<Vec<f32>>> {
        let RopeFactors { short, long } = &self.rope_factors;
        let is_long = matches!(hparams.rope.scaling, RopeScaling::Long { n_ctx_orig, .. } if n_ctx > n_ctx_orig);
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

pub(super) fn out_of_memory() -> Error {
    Error::io("working memory", "allocate", std::io::ErrorKind::OutOfMemory.into())
}

fn first_path(source: &Model) -> &Path {
    source.files().first().map_or(Path::new(""), |file| file.path())
}

/// The tensors of a model that nothing has used yet.
struct Catalog<'a> {
    source: &'a Model,
    unused: BTreeMap<&'a str, usize>,
}

impl<'a> Catalog<'a> {
    fn new(source: &'a Model) -> Catalog<'a> {
        let unused = source.tensors().iter().enumerate().map(|(index, tensor)| (tensor.name.as_str(), index)).collect();
        Catalog { source, unused }
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Slice> {
        self.required(name, &[len])
    }

    fn matrix(&mut self, name: &str, n_rows: usize, n_cols: usize) -> Result<Slice> {
        self.required(name, &[n_rows, n_cols])
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
        let Hparams { n_embd, head_dim, family, .. } = *hparams;
        let LayerHparams { n_head, n_head_kv, .. } = hparams.layers[index];
        let [n_q, n_kv] = [n_head * head_dim, n_head_kv * head_dim];
        let name = |part: &str| format!("blk.{index}.{part}");
        let head_norm = |catalog: &mut Catalog, part| {
            if family.normalises_heads { catalog.vector(&name(part), head_dim).map(Some) } else { Ok(None) }
        };
        let [attn_q, attn_k, attn_v] = if family.is_fused {
            self.fused(&name("attn_qkv"), [n_q, n_kv, n_kv], n_embd)?
        } else {
            let mut linear = |part, n_out| self.linear(&name(part), n_out, n_embd);
            [linear("attn_q", n_q)?, linear("attn_k", n_kv)?, linear("attn_v", n_kv)?]
        };
        Ok(Layer {
            attn_norm: self.norm(&name("attn_norm"), hparams)?,
            attn_q,
            attn_k,
            attn_v,
            attn_q_norm: head_norm(self, "attn_q_norm.weight")?,
            attn_k_norm: head_norm(self, "attn_k_norm.weight")?,
            attn_output: self.linear(&name("attn_output"), n_embd, n_q)?,
            attn_post_norm: self.post_norm(&name("post_attention_norm.weight"), hparams)?,
            ffn_norm: self.norm(&name("ffn_norm"), hparams)?,
            ffn_post_norm: self.post_norm(&name("post_ffw_norm.weight"), hparams)?,
            ffn: self.feed_forward(hparams, index)?,
        })
    }

    fn feed_forward(&mut self, hparams: &Hparams, index: usize) -> Result<FeedForward<Slice, Slice>> {
        let LayerHparams { n_ff, experts, .. } = hparams.layers[index];
        let name = |part: &str| format!("blk.{index}.{part}");
        if let Some(sizes) = experts {
            let experts = self.experts(&name, hparams.n_embd, sizes)?;
            return Ok(FeedForward::Experts(Box::new(experts)));
        }
        if !hparams.family.is_gated {
            let up = self.linear(&name("ffn_up"), n_ff, hparams.n_embd)?;
            let down = self.linear(&name("ffn_down"), hparams.n_embd, n_ff)?;
            return Ok(FeedForward::Dense(Gated { gate: None, up, down }));
        }
        if !hparams.family.is_fused {
            return self.gated(&name, "", hparams.n_embd, n_ff).map(FeedForward::Dense);
        }
        let [gate, up] = self.fused(&name("ffn_up"), [n_ff, n_ff], hparams.n_embd)?;
        Ok(FeedForward::Dense(Gated { gate: Some(gate), up, down: self.linear(&name("ffn_down"), hparams.n_embd, n_ff)? }))
    }

    fn gated(&mut self, name: &dyn Fn(&str) -> String, suffix: &str, n_embd: usize, n_ff: usize) -> Result<Gated<Slice, Slice>> {
        let mut linear = |part, n_out, n_in| self.linear(&name(&format!("{part}{suffix}")), n_out, n_in);
        Ok(Gated {
            gate: Some(linear("ffn_gate", n_ff, n_embd)?),
            up: linear("ffn_up", n_ff, n_embd)?,
            down: linear("ffn_down", n_embd, n_ff)?,
        })
    }

    fn experts(&mut self, name: &dyn Fn(&str) -> String, n_embd: usize, sizes: ExpertHparams) -> Result<Experts<Slice, Slice>> {
        let ExpertHparams { n_expert, n_ff, n_ff_shared, .. } = sizes;
        let apart = name("ffn_down.0.weight");
        if self.unused.contains_key(apart.as_str()) {
            let what = format!("running a model with a tensor for each expert ({apart})");
            return Err(Error::unsupported(what, "convert the original model anew: experts are stacked since April 2024"));
        }
        let shared = n_ff_shared.map(|n_ff| {
            let stem = name("ffn_gate_inp_shexp");
            let weight_name = format!("{stem}.weight");
            let weight = self.vector(&weight_name, n_embd)?;
            let weight = Linear { name: weight_name, n_out: 1, weight, bias: None };
            Ok(SharedExpert { weight, network: self.gated(name, "_shexp", n_embd, n_ff)? })
        });
        Ok(Experts {
            router: self.linear(&name("ffn_gate_inp"), n_expert, n_embd)?,
            gate: self.stacked(name("ffn_gate_exps.weight"), n_expert, n_ff, n_embd)?,
            up: self.stacked(name("ffn_up_exps.weight"), n_expert, n_ff, n_embd)?,
            down: self.stacked(name("ffn_down_exps.weight"), n_expert, n_embd, n_ff)?,
            shared: shared.transpose()?,
        })
    }

    /// The matrices that a tensor of three dimensions stacks.
    fn stacked(&mut self, name: String, n_matrices: usize, n_out: usize, n_in: usize) -> Result<Stacked<Slice>> {
        let all = self.required(&name, &[n_matrices, n_out, n_in])?;
        let matrix = |index| Slice { first_row: index * n_out, n_rows: n_out, ..all.clone() };
        Ok(Stacked { name, n_out, matrices: (0..n_matrices).map(matrix).collect() })
    }

    fn norm(&mut self, stem: &str, hparams: &Hparams) -> Result<Norm<Slice>> {
        let gain = self.vector(&format!("{stem}.weight"), hparams.n_embd)?;
        let bias = match hparams.family.norm {
            NormKind::Rms => None,
            NormKind::Layer => Some(self.vector(&format!("{stem}.bias"), hparams.n_embd)?),
        };
        Ok(Norm { gain, bias })
    }

    fn post_norm(&mut self, name: &str, hparams: &Hparams) -> Result<Option<Slice>> {
        if hparams.family.normalises_results { self.vector(name, hparams.n_embd).map(Some) } else { Ok(None) }
    }

    fn linear(&mut self, stem: &str, n_out: usize, n_in: usize) -> Result<Linear<Slice, Slice>> {
        let name = format!("{stem}.weight");
        let weight = self.matrix(&name, n_out, n_in)?;
        Ok(Linear { name, n_out, weight, bias: self.optional(&format!("{stem}.bias"), &[n_out])? })
    }

    /// The parts of a matrix that holds several, one below the other.
    fn fused<const N: usize>(&mut self, stem: &str, n_outs: [usize; N], n_in: usize) -> Result<[Linear<Slice, Slice>; N]> {
        let name = format!("{stem}.weight");
        let whole = self.matrix(&name, n_outs.iter().sum(), n_in)?;
        let biases = self.column(&format!("{stem}.bias"), n_outs.iter().sum())?;
        let mut first_row = 0;
        Ok(n_outs.map(|n_out| {
            let part = |whole: &Slice| Slice { first_row, n_rows: n_out, ..whole.clone() };
            let linear = Linear { name: name.clone(), n_out, weight: part(&whole), bias: biases.as_ref().map(part) };
            first_row += n_out;
            linear
        }))
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
        let shape = [hparams.rope.n_rot / 2];
        if let RopeScaling::Long { .. } = hparams.rope.scaling {
            let [short, long] = ROPE_FACTORS;
            return Ok(RopeFactors { short: Some(self.required(short, &shape)?), long: Some(self.required(long, &shape)?) });
        }
        Ok(RopeFactors { short: self.optional("rope_freqs.weight", &shape)?, long: None })
    }

    /// What is left would be left out of the computation.
    fn refuse_leftovers(&self) -> Result<()> {
        let Some((name, index)) = self.unused.first_key_value() else { return Ok(()) };
        let path = self.source.files()[self.source.tensors()[*index].file].path();
        let detail = format!("has no place in the forward pass of this architecture; {} such tensors", self.unused.len());
        Err(Error::malformed(path, Place::Tensor((*name).to_owned()), Fault::UnmappedTensor, detail))
    }
}
