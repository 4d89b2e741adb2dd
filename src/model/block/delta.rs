//! A gated delta net: attention without a softmax, whose past is a matrix of one size ([`crate::arch::describe::DeltaNet`]).

use crate::arch::describe::{self, Sharing};
use crate::error::Result;
use crate::model::backend::{Backend, DeltaInputs, DeltaShape, Rates, Recurrent};
use crate::model::catalog::{Catalog, Site, Slice};
use crate::model::linear::Linear;
use crate::model::pass::{Observer, Pass, Running, tap};

/// Its weights.
#[derive(Debug, Clone)]
pub(in crate::model) struct Delta<M, V> {
    pub qkv: Linear<M, V>,
    pub gate: Linear<M, V>,
    /// `alpha` and `beta`, or one matrix for both.
    pub rates: Vec<Linear<M, V>>,
    pub conv: V,
    pub dt: V,
    pub a: V,
    pub norm: V,
    pub out: Linear<M, V>,
    pub sharing: Sharing,
}

impl Delta<Slice, Slice> {
    pub fn plan(delta: &describe::DeltaNet, catalog: &mut Catalog<'_>, site: &Site<'_>) -> Result<Self> {
        let rates = match &delta.rates {
            describe::Rates::Apart { alpha, beta } => vec![alpha, beta],
            describe::Rates::ByKeyHead(both) => vec![both],
        };
        Ok(Delta {
            qkv: catalog.linear(&delta.qkv, site)?,
            gate: catalog.linear(&delta.gate, site)?,
            rates: rates.into_iter().map(|linear| catalog.linear(linear, site)).collect::<Result<_>>()?,
            conv: catalog.weight(&delta.conv, site)?,
            dt: catalog.weight(&delta.dt, site)?,
            a: catalog.weight(&delta.a, site)?,
            norm: catalog.weight(&delta.norm, site)?,
            out: catalog.linear(&delta.out, site)?,
            sharing: delta.sharing,
        })
    }
}

impl<M, V> Delta<M, V> {
    /// The matrices that its input is multiplied with.
    pub fn inputs(&self) -> Vec<&Linear<M, V>> {
        [&self.qkv, &self.gate].into_iter().chain(&self.rates).collect()
    }

    pub fn try_map<M2, V2>(
        self,
        matrix: &mut impl FnMut(M) -> Result<M2>,
        vector: &mut impl FnMut(V) -> Result<V2>,
    ) -> Result<Delta<M2, V2>> {
        Ok(Delta {
            qkv: self.qkv.try_map(matrix, vector)?,
            gate: self.gate.try_map(matrix, vector)?,
            rates: self.rates.into_iter().map(|linear| linear.try_map(matrix, vector)).collect::<Result<_>>()?,
            conv: vector(self.conv)?,
            dt: vector(self.dt)?,
            a: vector(self.a)?,
            norm: vector(self.norm)?,
            out: self.out.try_map(matrix, vector)?,
            sharing: self.sharing,
        })
    }
}

pub(in crate::model) type DeltaOf<B> = Delta<<B as Backend>::Weight, <B as Backend>::Rows>;

impl<B: Backend> Running<'_, B> {
    /// What the heads of layer `index` give, before the last projection. With `kept`, every sequence goes on from there.
    pub(in crate::model) fn recur(
        &self,
        index: usize,
        delta: &DeltaOf<B>,
        h: B::Operand,
        pass: &Pass<B>,
        kept: Option<&mut [Recurrent<B::Rows>]>,
        observer: &mut dyn Observer<B>,
    ) -> Result<B::Operand> {
        tap(observer, &delta.inputs(), pass.n_rows, &h)?;
        let product = |linear| self.linear(linear, &h, pass.n_rows);
        let [qkv, gate] = self.products([&delta.qkv, &delta.gate], &h, pass.n_rows)?;
        let rates = match &delta.rates[..] {
            [alpha, beta] => Rates::Apart { alpha: product(alpha)?, beta: product(beta)? },
            [both, ..] => Rates::ByKeyHead(product(both)?),
            [] => unreachable!("planned with one matrix or two"),
        };
        drop(h);
        let sizes = self.hparams.layers[index].delta.expect("a layer of a delta net has its sizes");
        let shape = DeltaShape { sizes, sharing: delta.sharing, norm_eps: self.hparams.norm_eps };
        let Delta { conv, dt, a, norm, .. } = delta;
        let inputs = DeltaInputs { qkv: &qkv, gate: &gate, rates: &rates, conv, dt, a, norm };
        let out = self.backend.delta_net(&inputs, &shape, &pass.places, kept)?;
        tap(observer, &[&delta.out], pass.n_rows, &out)?;
        Ok(out)
    }
}
