//! A pass over a whole text that stops after every step of a layer: for whoever looks at what goes into a layer's matrices, and at what
//! becomes of the layer with other ones, without holding more than one layer.

use std::ops::Range;

use super::backend::Backend;
use super::block::{Block, Experts};
use super::catalog::Slice;
use super::forward::{Batch, KeyStore, Network, StepOf};
use super::layer::{Layer, Step};
use super::linear::{Linear, Stacked};
use super::matrix::{Blocks, Matrix};
use super::pass::{Observer, Pass};
use crate::error::{Error, Result};
use crate::memory::zero_rows;
use crate::quant::Format;
use crate::simd::Level;

/// The states of all tokens of some batches, before the next step.
pub struct Sweep<'n, 'a, B: Backend> {
    network: &'n Network<'a, B>,
    batches: Vec<(B::Rows, Pass<B>)>,
}

/// A step with its weights on the backend.
pub struct LoadedStep<B: Backend> {
    layer: usize,
    step: StepOf<B>,
}

/// A matrix of a step: all rows of a tensor, or those of one part of it.
#[derive(Debug, Clone)]
pub struct StepMatrix {
    /// The tensor's name.
    pub name: String,
    /// The tensor's index among those of the model.
    pub tensor: usize,
    /// What it is multiplied with.
    pub takes: Use,
    /// Its rows in the tensor.
    pub rows: Range<usize>,
    /// Inputs.
    pub n_cols: usize,
    /// How many matrices of equal size these rows are, each with inputs of its own: those of experts. 1 for a plain matrix.
    pub n_stacked: usize,
}

impl StepMatrix {
    /// One of the matrices that are stacked.
    pub fn stacked(&self, index: usize) -> StepMatrix {
        let n_rows = self.rows.len() / self.n_stacked;
        let first = self.rows.start + index * n_rows;
        StepMatrix { rows: first..first + n_rows, n_stacked: 1, ..self.clone() }
    }
}

/// What a matrix of a step is multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Use {
    /// The step's input, to be queries, or the inner values of a network.
    Input,
    /// The step's input, to be keys.
    Keys,
    /// The step's input, to be values that attention mixes.
    Values,
    /// What the step has made of it: what attention mixed, the inner values of a network.
    Result,
}

impl<'n, 'a, B: Backend> Sweep<'n, 'a, B> {
    /// Begins before the first layer.
    ///
    /// # Errors
    /// As [`Network::evaluate`].
    pub fn new(network: &'n Network<'a, B>, batches: &[Batch<'_>]) -> Result<Sweep<'n, 'a, B>> {
        if network.hparams().layers.iter().any(|layer| layer.keys_of.is_some()) {
            let what = "calibrating a model whose layers use the keys and values of others";
            return Err(Error::unsupported(what, "quantize it with --imatrix instead"));
        }
        Ok(Sweep { network, batches: batches.iter().map(|batch| network.begin(*batch)).collect::<Result<_>>()? })
    }

    /// The states of a batch before the first layer, as rows of another table of embeddings.
    ///
    /// # Errors
    /// What the backend can meet.
    pub fn begin_with(&self, batch: Batch<'_>, table: &B::Weight) -> Result<B::Rows> {
        self.network.embedded(batch, table)
    }

    /// Layers of the model.
    pub fn n_layers(&self) -> usize {
        self.network.plan().layers.len()
    }

    /// Steps of a layer.
    pub fn n_steps(&self, layer: usize) -> usize {
        self.network.plan().layers[layer].steps.len()
    }

    /// The matrices of a step, but those that score experts.
    pub fn matrices(&self, layer: usize, step: usize) -> Vec<StepMatrix> {
        let matrix = |linear: &Linear<Slice, Slice>, takes| {
            let Slice { tensor, first_row, n_rows, n_cols } = linear.weight;
            let rows = first_row..first_row + n_rows;
            StepMatrix { name: linear.name.clone(), tensor, takes, rows, n_cols, n_stacked: 1 }
        };
        let of_network = |network: &super::block::Network<Slice, Slice>| -> Vec<StepMatrix> {
            let inner = network.gate.iter().chain([&network.up]).map(|linear| matrix(linear, Use::Input));
            inner.chain([matrix(&network.down, Use::Result)]).collect()
        };
        let of_experts = |experts: &Experts<Slice, Slice>| -> Vec<StepMatrix> {
            let stacked = |stacked: &Stacked<Slice, Slice>, n_out: usize, takes| {
                let (&Slice { tensor, n_cols, .. }, n_stacked) = (&stacked.matrices[0], stacked.matrices.len());
                let rows = 0..n_stacked * n_out;
                StepMatrix { name: stacked.name.clone(), tensor, takes, rows, n_cols, n_stacked }
            };
            let Experts { gate, up, down, shared, .. } = experts;
            let inner = match gate.name == up.name {
                true => vec![stacked(gate, gate.n_out + up.n_out, Use::Input)],
                false => vec![stacked(gate, gate.n_out, Use::Input), stacked(up, up.n_out, Use::Input)],
            };
            let shared = shared.iter().flat_map(|shared| of_network(&shared.network));
            inner.into_iter().chain([stacked(down, down.n_out, Use::Result)]).chain(shared).collect()
        };
        match &self.network.plan().layers[layer].steps[step].block {
            Block::Attention(attention) => {
                // Keys that are the values too count as both.
                let of_keys = if attention.v.is_some() { Use::Keys } else { Use::Input };
                let k = attention.k.as_ref().map(|k| matrix(k, of_keys));
                let v = attention.v.as_ref().map(|v| matrix(v, Use::Values));
                let first = [Some(matrix(&attention.q, Use::Input)), k, v].into_iter().flatten();
                first.chain([matrix(&attention.out, Use::Result)]).collect()
            }
            Block::Delta(delta) => {
                let inputs = delta.inputs().into_iter().map(|linear| matrix(linear, Use::Input));
                inputs.chain([matrix(&delta.out, Use::Result)]).collect()
            }
            Block::PerLayer(per_layer) => vec![matrix(&per_layer.gate, Use::Input), matrix(&per_layer.proj, Use::Result)],
            Block::Scale(_) => Vec::new(),
            Block::Network(network) => of_network(network),
            Block::Experts(experts) => of_experts(experts),
            Block::Both(both) => of_network(&both.network).into_iter().chain(of_experts(&both.experts)).collect(),
        }
    }

    /// The weights of a matrix, `[n_rows, n_cols]`.
    ///
    /// # Errors
    /// As [`Matrix::read_at`]; `Io` where there is no memory.
    pub fn weights(&self, matrix: &StepMatrix) -> Result<Vec<f32>> {
        let slice = Slice { tensor: matrix.tensor, first_row: matrix.rows.start, n_rows: matrix.rows.len(), n_cols: matrix.n_cols };
        let read = self.network.plan().matrix(&slice);
        let format = read.format;
        let mut weights = zero_rows(matrix.rows.len(), matrix.n_cols)?;
        format.dequantize(Level::detect(), &read.into_bytes()?, &mut weights);
        Ok(weights)
    }

    /// Brings a step's weights to the backend.
    ///
    /// # Errors
    /// What reading weights and the backend can meet.
    pub fn load(&self, layer: usize, step: usize) -> Result<LoadedStep<B>> {
        self.load_with(layer, step, &[])
    }

    /// The same with other blocks in place of some matrices.
    ///
    /// # Errors
    /// As [`Sweep::load`].
    pub fn load_with(&self, layer: usize, step: usize, others: &[(&StepMatrix, Format, &[u8])]) -> Result<LoadedStep<B>> {
        let plan = self.network.plan();
        let alone = Layer { steps: vec![plan.layers[layer].steps[step].clone()] };
        let read = alone.try_map(
            |slice: Slice| {
                let is_of = |matrix: &StepMatrix| slice.tensor == matrix.tensor && matrix.rows.contains(&slice.first_row);
                Ok(match others.iter().find(|(matrix, ..)| is_of(matrix)) {
                    None => plan.matrix(&slice),
                    Some((matrix, format, blocks)) => {
                        let row_bytes = blocks.len() / matrix.rows.len();
                        let first_byte = (slice.first_row - matrix.rows.start) * row_bytes;
                        let blocks = Blocks::Read(blocks[first_byte..][..slice.n_rows * row_bytes].to_vec());
                        Matrix { format: *format, n_rows: slice.n_rows, n_cols: slice.n_cols, blocks }
                    }
                })
            },
            |slice| plan.vector(&slice),
        )?;
        let mut steps: Vec<Step<_, _>> = self.network.hand_over(read)?.steps;
        Ok(LoadedStep { layer, step: steps.remove(0) })
    }

    /// The states of a batch after a step.
    ///
    /// # Errors
    /// What the backend and the observer can meet.
    pub fn run(&self, step: &LoadedStep<B>, batch: usize, observer: &mut dyn Observer<B>) -> Result<B::Rows> {
        let (states, pass) = &self.batches[batch];
        let mut x = self.network.backend().select(states, &super::pass::all(pass.n_rows))?;
        self.network.step(step.layer, &step.step, &mut x, pass, &mut KeyStore::default(), observer)?;
        Ok(x)
    }

    /// What the scores of a batch are made of that has these states before step `step` of layer `layer`, and then all that follow.
    ///
    /// # Errors
    /// What reading weights and the backend can meet.
    pub fn finish(&self, (layer, step): (usize, usize), batch: usize, states: B::Rows) -> Result<B::Operand> {
        let (pass, mut x) = (&self.batches[batch].1, states);
        let all = (layer..self.n_layers()).flat_map(|at| (0..self.n_steps(at)).map(move |step| (at, step)));
        for (layer, step) in all.filter(|&place| place >= (layer, step)) {
            let loaded = self.load(layer, step)?;
            self.network.step(layer, &loaded.step, &mut x, pass, &mut KeyStore::default(), &mut ())?;
        }
        self.network.normalised(&x, &super::pass::all(pass.n_rows))
    }

    /// A copy of the states of a batch.
    ///
    /// # Errors
    /// What the backend can meet.
    pub fn states(&self, batch: usize) -> Result<B::Rows> {
        let (states, pass) = &self.batches[batch];
        self.network.backend().select(states, &super::pass::all(pass.n_rows))
    }

    /// Goes on with these states of a batch.
    pub fn advance(&mut self, batch: usize, states: B::Rows) {
        self.batches[batch].0 = states;
    }

    /// What the scores of a batch are made of, after the last layer.
    ///
    /// # Errors
    /// What the backend can meet.
    pub fn normalised(&self, batch: usize) -> Result<B::Operand> {
        let (states, pass) = &self.batches[batch];
        self.network.normalised(states, &super::pass::all(pass.n_rows))
    }
}
