//! What running models asks of a machine, from metadata and shapes alone: which operations, over how many weights, for how many tokens.
//! So a machine can be chosen, and memory taken, before a weight is read.

use std::collections::BTreeSet;

use super::generate::PROMPT_BATCH;
use super::weights::{Plan, PlannedLayer, Residency, Slice};
use crate::arch::describe::{Activation, Body, Norm, Step};
use crate::arch::{Hparams, LayerHparams};
use crate::error::Result;
use crate::gguf::Model;
use crate::quant::Format;

/// An operation that a machine may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Norms that bring rows to a mean of 0 and a variance of 1, with a bias.
    LayerNorm,
    /// GELU, with a gate or without.
    Gelu,
    /// Attention that sees a window of the last keys only.
    Windows,
    /// Attention whose scores are bounded.
    BoundedAttention,
    /// Scores of tokens times a factor.
    ScaledScores,
    /// Scores of tokens that are bounded.
    BoundedScores,
    /// Rotation and attention of heads of this width.
    Heads(usize),
    /// So many heads side by side in a row.
    HeadsInARow(usize),
    /// Rows of a table, by their numbers.
    Rows(MatrixShape),
    /// Products with a matrix, into rows of as many numbers as it has rows.
    Product(MatrixShape),
    /// Products with the output matrix.
    Logits(MatrixShape),
}

/// A matrix before it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MatrixShape {
    /// How its weights are stored.
    pub format: Format,
    /// Outputs.
    pub n_rows: usize,
    /// Inputs.
    pub n_cols: usize,
}

/// Bytes of some weights: matrices as in the file, vectors as f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WeightBytes {
    /// All of them together.
    pub n_bytes: u64,
    /// Matrices and vectors, each of which a machine may have to round up.
    pub n_tensors: u64,
}

/// What running one model takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Needs {
    /// Its sizes.
    pub hparams: Hparams,
    /// Tokens of its longest sequence.
    pub n_ctx: usize,
    /// Every operation, once, in a fixed order.
    pub operations: BTreeSet<Operation>,
    /// Weights that are in memory wherever the layers are: embedding, output, positions.
    pub kept: WeightBytes,
    /// The weights of each layer.
    pub layers: Vec<WeightBytes>,
}

/// Models that run side by side over the same tokens, and what they do.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// The models.
    pub models: Vec<Needs>,
    /// What they do.
    pub work: Work,
}

/// What models do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// They take sequences of `n_ctx` tokens through their layers, many at a time.
    Evaluation {
        /// Sequences in all.
        n_sequences: usize,
        /// Tokens of each whose predictions are scored, of one model or of two beside each other.
        n_scored: usize,
    },
    /// They read a prompt, then one token after the other.
    Generation {
        /// Tokens of the prompt.
        n_prompt: usize,
    },
}

impl Needs {
    /// Reads what a model needs for sequences of up to `n_ctx` tokens.
    ///
    /// # Errors
    /// As [`super::Network::open`], for all that is known before a weight is read.
    pub fn of(model: &Model, n_ctx: usize) -> Result<Needs> {
        model.check_has_weights()?;
        let hparams = Hparams::read(model)?;
        let plan = Plan::new(model, &hparams)?;
        Ok(Needs::planned(&hparams, &plan, n_ctx))
    }

    pub(super) fn planned(hparams: &Hparams, plan: &Plan<'_>, n_ctx: usize) -> Needs {
        let mut operations = of_hparams(hparams);
        let shape = |slice: &Slice| plan.shape(slice);
        let bytes = |weights: &mut WeightBytes, shape: MatrixShape| {
            let row_bytes = shape.format.row_bytes(shape.n_cols as u64).expect("rows of a checked file are whole blocks");
            weights.n_bytes = weights.n_bytes.saturating_add(row_bytes.saturating_mul(shape.n_rows as u64));
            weights.n_tensors += 1;
        };
        let mut kept = WeightBytes::default();
        for table in [Some(&plan.token_embd), plan.position_embd.as_ref()].into_iter().flatten() {
            operations.insert(Operation::Rows(shape(table)));
            bytes(&mut kept, shape(table));
        }
        operations.insert(Operation::Logits(shape(plan.output.as_ref().unwrap_or(&plan.token_embd))));
        plan.output.iter().for_each(|output| bytes(&mut kept, shape(output)));
        let layer = |layer: &PlannedLayer| {
            let mut weights = WeightBytes::default();
            let mut n_vector_bytes = 0;
            let mut n_vectors = 0;
            let matrix = |slice: Slice| {
                operations.insert(Operation::Product(shape(&slice)));
                bytes(&mut weights, shape(&slice));
                Ok(())
            };
            let vector = |slice: Slice| {
                let MatrixShape { n_rows, n_cols, .. } = shape(&slice);
                n_vector_bytes += (n_rows * n_cols * size_of::<f32>()) as u64;
                n_vectors += 1;
                Ok(())
            };
            layer.clone().try_map(matrix, vector).expect("counting does not fail");
            WeightBytes { n_bytes: weights.n_bytes.saturating_add(n_vector_bytes), n_tensors: weights.n_tensors + n_vectors }
        };
        let layers = plan.layers.iter().map(layer).collect();
        Needs { hparams: hparams.clone(), n_ctx, operations, kept, layers }
    }

    /// All layers together.
    pub fn layers_bytes(&self) -> WeightBytes {
        self.layers.iter().fold(WeightBytes::default(), |sum, layer| WeightBytes {
            n_bytes: sum.n_bytes.saturating_add(layer.n_bytes),
            n_tensors: sum.n_tensors + layer.n_tensors,
        })
    }
}

/// Numbers that exist at once for each token on its way through a layer.
pub fn activations_per_token(hparams: &Hparams) -> usize {
    let widest = hparams.layers.iter().map(|layer| {
        let attention = (2 * layer.n_head + 2 * layer.n_head_kv) * layer.key_dim.max(layer.value_dim);
        let feed_forward = match layer.experts {
            None => 3 * layer.n_ff,
            // What all experts read, and if all tokens choose one, its input and its result.
            Some(experts) => 3 * hparams.n_embd + 3 * experts.n_ff.max(experts.n_ff_shared.unwrap_or(0)),
        };
        attention.max(feed_forward)
    });
    // The residual stream, its norm, and the widest of what comes between.
    2 * hparams.n_embd + widest.max().unwrap_or(0)
}

/// All but products and tables.
fn of_hparams(hparams: &Hparams) -> BTreeSet<Operation> {
    let layers = hparams.layers.iter().flat_map(|layer| {
        let steps = layer.layer.steps.iter().flat_map(|step| of_step(step, layer));
        let windows = layer.window.map(|_| Operation::Windows);
        steps.chain(windows).chain(layer.attention_softcap.map(|_| Operation::BoundedAttention))
    });
    let scaled = (hparams.logit_scale != 1.0).then_some(Operation::ScaledScores);
    let bounded = hparams.logit_softcap.map(|_| Operation::BoundedScores);
    layers.chain(of_norm(&hparams.family.output_norm)).chain(scaled).chain(bounded).collect()
}

fn of_step(step: &Step, layer: &LayerHparams) -> Vec<Operation> {
    let of_activation = |activation| match activation {
        Activation::Silu => Vec::new(),
        Activation::GeluTanh | Activation::GeluErf => vec![Operation::Gelu],
    };
    let mut operations = match &step.body {
        Body::Attention(attention) => {
            let norms = [&attention.q_norm, &attention.k_norm].into_iter().filter_map(of_norm);
            let heads = [layer.key_dim, layer.value_dim].map(Operation::Heads);
            norms.chain(heads).chain([Operation::HeadsInARow(layer.n_head)]).collect()
        }
        Body::Network(network) => of_activation(network.activation),
        Body::Experts(experts) => {
            let shared = experts.shared.iter().flat_map(|shared| of_activation(shared.network.activation));
            of_activation(experts.activation).into_iter().chain(shared).collect()
        }
    };
    operations.extend([&step.before, &step.after].into_iter().filter_map(of_norm));
    operations
}

fn of_norm(norm: &Norm) -> Option<Operation> {
    match norm {
        Norm::None | Norm::Rms(_) => None,
        Norm::Layer(..) => Some(Operation::LayerNorm),
    }
}

impl Work {
    /// Where layers are best on a machine whose memory is the file's cache: generation needs all of them for every token.
    pub fn residency(&self) -> Residency {
        match self {
            Work::Evaluation { .. } => Residency::Streamed,
            Work::Generation { .. } => Residency::Resident,
        }
    }
}

impl Workload {
    /// Tokens that go through the layers together at least, and at most.
    pub fn batch_tokens(&self) -> (usize, usize) {
        let n_ctx = self.models.iter().map(|model| model.n_ctx).max().unwrap_or(0);
        match self.work {
            Work::Evaluation { n_sequences, .. } => (n_ctx, n_ctx.saturating_mul(n_sequences.max(1))),
            Work::Generation { n_prompt } => {
                let n_tokens = n_prompt.clamp(1, PROMPT_BATCH);
                (n_tokens, n_tokens)
            }
        }
    }
}
