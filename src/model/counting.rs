//! What a model needs, counted from its plan of tensors.

use std::collections::BTreeSet;

use super::catalog::Slice;
use super::needs::{MatrixShape, Needs, Operation, WeightBytes};
use super::weights::{Plan, PlannedLayer};
use crate::arch::describe::{Activation, Body, Family, Norm, OutputGate, Step};
use crate::arch::{Hparams, LayerHparams};
use crate::error::Result;
use crate::gguf::{Model, keys};

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
        for table in [Some(&plan.token_embd), plan.position_embd.as_ref(), plan.per_layer_embd.as_ref()].into_iter().flatten() {
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
}

/// The operations that models of a family may take, but for those that a machine has or lacks by their sizes: heads, products, tables.
pub fn operations(family: &Family) -> BTreeSet<Operation> {
    let has = |key| family.numbers.iter().any(|number| number.key == key);
    let stated = [
        (has(keys::ATTN_LOGIT_SOFTCAPPING), Operation::BoundedAttention),
        (has(keys::ATTENTION_SHARED_KV_LAYERS), Operation::SharedKeys),
        (has(keys::LOGIT_SCALE), Operation::ScaledScores),
        (has(keys::FINAL_LOGIT_SOFTCAPPING), Operation::BoundedScores),
        (family.kinds().iter().any(|layer| layer.has_window()), Operation::Windows),
    ];
    let steps = family.kinds().into_iter().flat_map(|layer| layer.steps).flat_map(of_step);
    let stated = stated.into_iter().filter(|(is_there, _)| *is_there).map(|(_, operation)| operation);
    steps.chain(stated).chain(of_norm(&family.output_norm)).collect()
}

/// All but products and tables.
fn of_hparams(hparams: &Hparams) -> BTreeSet<Operation> {
    let layers = hparams.layers.iter().flat_map(|layer| {
        let steps = layer.layer.steps.iter().filter(|step| hparams.has(step)).flat_map(of_step);
        let shared = layer.keys_of.map(|_| Operation::SharedKeys);
        let heads = layer.layer.attention().map(|_| of_heads(layer));
        let windows = layer.window.map(|_| Operation::Windows);
        let bounded = layer.attention_softcap.map(|_| Operation::BoundedAttention);
        steps.chain(shared).chain(heads.into_iter().flatten()).chain(windows).chain(bounded)
    });
    let scaled = (hparams.logit_scale != 1.0).then_some(Operation::ScaledScores);
    let bounded = hparams.logit_softcap.map(|_| Operation::BoundedScores);
    layers.chain(of_norm(&hparams.family.output_norm)).chain(scaled).chain(bounded).collect()
}

fn of_heads(layer: &LayerHparams) -> [Operation; 3] {
    [Operation::Heads(layer.key_dim), Operation::Heads(layer.value_dim), Operation::HeadsInARow(layer.n_head)]
}

fn of_step(step: &Step) -> Vec<Operation> {
    let of_activation = |activation| match activation {
        Activation::Silu => Vec::new(),
        Activation::ClampedSwiglu { .. } => vec![Operation::ClampedSwiglu],
        Activation::GeluTanh | Activation::GeluErf => vec![Operation::Gelu],
    };
    let mut operations = match &step.body {
        Body::Attention(attention) => {
            let norms = [&attention.q_norm, &attention.k_norm].into_iter().filter_map(of_norm);
            let plain = (attention.v_norm == Norm::RmsAlone).then_some(Operation::NormalisedValues);
            let sinks = attention.sinks.as_ref().map(|_| Operation::Sinks);
            let gate = (attention.gate != OutputGate::None).then_some(Operation::GatedAttention);
            norms.chain(sinks).chain(plain).chain(gate).collect()
        }
        Body::Delta(_) => vec![Operation::DeltaNet],
        Body::Network(network) => of_activation(network.activation),
        Body::Both(both) => {
            let activations = [both.network.activation, both.experts.activation];
            activations.into_iter().flat_map(of_activation).chain([Operation::NetworkBesideExperts]).collect()
        }
        Body::PerLayer(per_layer) => of_activation(per_layer.activation),
        Body::Scale(_) => Vec::new(),
        Body::Experts(experts) => {
            let shared = experts.shared.iter().flat_map(|shared| of_activation(shared.network.activation));
            of_activation(experts.activation).into_iter().chain(shared).collect()
        }
    };
    if step.before == Norm::None && !matches!(step.body, Body::Scale(_)) {
        operations.push(Operation::PlainInputs);
    }
    operations.extend([&step.before, &step.after].into_iter().filter_map(of_norm));
    operations
}

fn of_norm(norm: &Norm) -> Option<Operation> {
    match norm {
        Norm::None | Norm::RmsAlone | Norm::Rms(_) => None,
        Norm::Layer(..) => Some(Operation::LayerNorm),
    }
}
