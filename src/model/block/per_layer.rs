//! A gated map of what each layer gets of the tokens: `proj(activation(gate(x)) * own)`.
//!
//! ```text
//! own = (norm(model(x_0) / sqrt(n_embd)) + table[token] * sqrt(n)) / sqrt(2)      x_0: states before the first layer; n: own's width
//! ```
//!
//! Both the table and the map of states are one tensor for all layers. Of the map each layer has its rows; of the table, seen as rows of
//! one layer each, those of its number.

use std::f32::consts::FRAC_1_SQRT_2;

use crate::arch::describe::{self, Activation};
use crate::error::Result;
use crate::model::backend::Backend;
use crate::model::catalog::{Catalog, Site, Slice};
use crate::model::linear::Linear;
use crate::model::pass::{Observer, Pass, Running, tap};

/// Its weights but for the table.
#[derive(Debug, Clone)]
pub(in crate::model) struct PerLayer<M, V> {
    /// The layer's rows of the map of states.
    pub model: Linear<M, V>,
    pub norm: V,
    pub gate: Linear<M, V>,
    pub proj: Linear<M, V>,
    pub activation: Activation,
}

impl PerLayer<Slice, Slice> {
    pub fn plan(per_layer: &describe::PerLayer, catalog: &mut Catalog<'_>, site: &Site<'_>) -> Result<Self> {
        Ok(PerLayer {
            model: catalog.rows_of_layer(&per_layer.model, site)?,
            norm: catalog.gain_of_all(&per_layer.norm, site)?,
            gate: catalog.linear(&per_layer.gate, site)?,
            proj: catalog.linear(&per_layer.proj, site)?,
            activation: per_layer.activation,
        })
    }
}

impl<M, V> PerLayer<M, V> {
    pub fn try_map<M2, V2>(
        self,
        matrix: &mut impl FnMut(M) -> Result<M2>,
        vector: &mut impl FnMut(V) -> Result<V2>,
    ) -> Result<PerLayer<M2, V2>> {
        Ok(PerLayer {
            model: self.model.try_map(matrix, vector)?,
            norm: vector(self.norm)?,
            gate: self.gate.try_map(matrix, vector)?,
            proj: self.proj.try_map(matrix, vector)?,
            activation: self.activation,
        })
    }
}

type PerLayerOf<B> = PerLayer<<B as Backend>::Weight, <B as Backend>::Rows>;

impl<B: Backend> Running<'_, B> {
    /// What the last matrix of layer `index` is multiplied with.
    pub(in crate::model) fn gated_input(
        &self,
        index: usize,
        per_layer: &PerLayerOf<B>,
        h: B::Operand,
        pass: &Pass<B>,
        observer: &mut dyn Observer<B>,
    ) -> Result<B::Operand> {
        let backend = self.backend;
        let (first, table) = pass.first.as_ref().zip(self.per_layer_embd).expect("a model with inputs for its layers");
        // One tensor for all layers, which all multiply with the same.
        if index == 0 {
            tap(observer, &[&per_layer.model], pass.n_rows, first)?;
        }
        let own = self.linear(&per_layer.model, first, pass.n_rows)?;
        let mut own = backend.scaled(&own, 1.0 / (self.hparams.n_embd as f32).sqrt())?;
        backend.rms_norm_heads(&mut own, &per_layer.norm, self.hparams.norm_eps)?;
        let n_layer = self.hparams.layers.len() as u32;
        let rows: Vec<u32> = pass.tokens.iter().map(|token| token * n_layer + index as u32).collect();
        let of_tokens = backend.scaled(&backend.embed(table, &rows)?, (self.hparams.n_per_layer as f32).sqrt())?;
        backend.add(&of_tokens, &mut own)?;
        let own = backend.scaled(&own, FRAC_1_SQRT_2)?;
        tap(observer, &[&per_layer.gate], pass.n_rows, &h)?;
        let gate = self.linear(&per_layer.gate, &h, pass.n_rows)?;
        let inner = self.activate(per_layer.activation, Some(&gate), &own)?;
        tap(observer, &[&per_layer.proj], pass.n_rows, &inner)?;
        Ok(inner)
    }
}
