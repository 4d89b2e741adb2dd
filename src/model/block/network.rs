//! A feed-forward network: `down(activation(gate(x)) * up(x))`, or without a gate `down(activation(up(x)))`.

use crate::arch::describe::{self, Activation, Inner};
use crate::error::Result;
use crate::model::backend::{Backend, Clamped, Gelu};
use crate::model::catalog::{Catalog, Site, Slice};
use crate::model::linear::Linear;
use crate::model::pass::{Observer, Running, tap};

/// Its weights.
#[derive(Debug, Clone)]
pub(in crate::model) struct Network<M, V> {
    pub gate: Option<Linear<M, V>>,
    pub up: Linear<M, V>,
    pub down: Linear<M, V>,
    pub activation: Activation,
}

impl Network<Slice, Slice> {
    pub fn plan(network: &describe::Network, catalog: &mut Catalog<'_>, site: &Site<'_>) -> Result<Self> {
        let (gate, up) = match &network.inner {
            Inner::Gated(projections) => {
                let [gate, up] = catalog.projections(projections, site)?;
                (Some(gate), up)
            }
            Inner::Plain(up) => (None, catalog.linear(up, site)?),
        };
        Ok(Network { gate, up, down: catalog.linear(&network.down, site)?, activation: network.activation })
    }
}

impl<M, V> Network<M, V> {
    pub fn try_map<M2, V2>(
        self,
        matrix: &mut impl FnMut(M) -> Result<M2>,
        vector: &mut impl FnMut(V) -> Result<V2>,
    ) -> Result<Network<M2, V2>> {
        Ok(Network {
            gate: self.gate.map(|gate| gate.try_map(matrix, vector)).transpose()?,
            up: self.up.try_map(matrix, vector)?,
            down: self.down.try_map(matrix, vector)?,
            activation: self.activation,
        })
    }
}

pub(in crate::model) type NetworkOf<B> = Network<<B as Backend>::Weight, <B as Backend>::Rows>;

impl<B: Backend> Running<'_, B> {
    /// What the last matrix is multiplied with.
    pub(in crate::model) fn inner(
        &self,
        network: &NetworkOf<B>,
        h: B::Operand,
        n_rows: usize,
        observer: &mut dyn Observer<B>,
    ) -> Result<B::Operand> {
        let linears: Vec<_> = network.gate.iter().chain([&network.up]).collect();
        tap(observer, &linears, n_rows, &h)?;
        let (gate, up) = match &network.gate {
            None => (None, self.linear(&network.up, &h, n_rows)?),
            Some(gate) => {
                let [mut of_gate, mut up] = self.products([gate, &network.up], &h, n_rows)?;
                self.add_bias(gate, &mut of_gate)?;
                self.add_bias(&network.up, &mut up)?;
                (Some(of_gate), up)
            }
        };
        drop(h);
        let inner = self.activate(network.activation, gate.as_ref(), &up)?;
        tap(observer, &[&network.down], n_rows, &inner)?;
        Ok(inner)
    }

    /// `activation(gate) * up`, or `activation(up)`.
    pub(in crate::model) fn activate(&self, activation: Activation, gate: Option<&B::Rows>, up: &B::Rows) -> Result<B::Operand> {
        let backend = self.backend;
        let form = match activation {
            Activation::Silu => return backend.swiglu(gate.expect("SiLU comes with a gate"), up),
            Activation::ClampedSwiglu { alpha, limit } => {
                return backend.clamped_swiglu(gate.expect("SwiGLU comes with a gate"), up, Clamped { alpha, limit });
            }
            Activation::GeluTanh => Gelu::Tanh,
            Activation::GeluErf => Gelu::Erf,
        };
        match gate {
            Some(gate) => backend.gelu(form, gate, Some(up)),
            None => backend.gelu(form, up, None),
        }
    }
}
