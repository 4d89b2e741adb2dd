//! Attention with grouped queries: `out(softmax(rope(q) rope(k)^T * scale) v)`.

use crate::arch::describe::{self, Need, Norm, OutputGate, Projections};
use crate::error::{Error, Result};
use crate::model::backend::{AttentionShape, Backend, HeadForm, Heads, Rotation};
use crate::model::catalog::{Catalog, Site, Slice};
use crate::model::linear::Linear;
use crate::model::pass::{Observer, Pass, Running, all, tap};

/// Its weights.
#[derive(Debug, Clone)]
pub(in crate::model) struct Attention<M, V> {
    pub q: Linear<M, V>,
    /// `None` where the keys and values of another layer are used.
    pub k: Option<Linear<M, V>>,
    /// `None` where they are the keys, as their matrix gives them.
    pub v: Option<Linear<M, V>>,
    /// Gains of the norms of heads.
    pub q_norm: Option<V>,
    pub k_norm: Option<V>,
    pub normalises_values: bool,
    /// A score for each head that takes its share of the softmax.
    pub sinks: Option<V>,
    pub gate: OutputGate,
    pub out: Linear<M, V>,
}

impl Attention<Slice, Slice> {
    pub fn plan(attention: &describe::Attention, catalog: &mut Catalog<'_>, site: &Site<'_>) -> Result<Self> {
        let (q, k, mut v) = match &attention.qkv {
            Projections::Apart([q, k, v]) => {
                (catalog.linear(q, site)?, catalog.maybe_linear(k, site)?, catalog.maybe_linear(v, site)?)
            }
            fused => {
                let [q, k, v] = catalog.projections(fused, site)?;
                (q, Some(k), Some(v))
            }
        };
        let uses_others = site.layer.is_some_and(|layer| layer.keys_of.is_some());
        // What a layer has, but never used, is left in the file.
        let k = k.filter(|_| !uses_others);
        v = v.filter(|_| !uses_others);
        if let (Projections::Apart([_, of_keys, of_values]), false) = (&attention.qkv, uses_others) {
            // The catalog says what is missing.
            if k.is_none() {
                catalog.linear(of_keys, site)?;
            }
            if v.is_none() && attention.values == Need::Required {
                catalog.linear(of_values, site)?;
            }
        }
        let k_norm = match &attention.k_norm {
            Norm::Rms(gain) if uses_others => {
                catalog.skip(gain, site)?;
                None
            }
            norm => catalog.gain(norm, site)?,
        };
        Ok(Attention {
            q,
            k,
            v,
            normalises_values: attention.v_norm == Norm::RmsAlone,
            q_norm: catalog.gain(&attention.q_norm, site)?,
            k_norm,
            sinks: attention.sinks.as_ref().map(|sinks| catalog.weight(sinks, site)).transpose()?,
            gate: attention.gate,
            out: catalog.linear(&attention.out, site)?,
        })
    }
}

impl<M, V> Attention<M, V> {
    pub fn try_map<M2, V2>(
        self,
        matrix: &mut impl FnMut(M) -> Result<M2>,
        vector: &mut impl FnMut(V) -> Result<V2>,
    ) -> Result<Attention<M2, V2>> {
        Ok(Attention {
            q: self.q.try_map(matrix, vector)?,
            k: self.k.map(|k| k.try_map(matrix, vector)).transpose()?,
            v: self.v.map(|v| v.try_map(matrix, vector)).transpose()?,
            normalises_values: self.normalises_values,
            q_norm: self.q_norm.map(&mut *vector).transpose()?,
            k_norm: self.k_norm.map(&mut *vector).transpose()?,
            sinks: self.sinks.map(&mut *vector).transpose()?,
            gate: self.gate,
            out: self.out.try_map(matrix, vector)?,
        })
    }
}

/// Keys and values, where a layer makes them.
type Made<B> = Option<[<B as Backend>::Rows; 2]>;

pub(in crate::model) type AttentionOf<B> = Attention<<B as Backend>::Weight, <B as Backend>::Rows>;

/// The keys and values that attention reads.
pub(in crate::model) enum Keys<'k, B: Backend> {
    /// Its own, of the pass.
    Own,
    /// Its own of all tokens so far, to which those of the pass are added.
    Kept(&'k mut [B::Rows; 2]),
    /// Those of another layer.
    Of(&'k [B::Rows; 2]),
}

impl<B: Backend> Running<'_, B> {
    /// What the heads of layer `index` see, before the last projection; and the keys and values that were made, where they are not kept.
    pub(in crate::model) fn attend(
        &self,
        index: usize,
        attention: &AttentionOf<B>,
        h: B::Operand,
        pass: &Pass<B>,
        mut keys: Keys<'_, B>,
        observer: &mut dyn Observer<B>,
    ) -> Result<(B::Operand, Made<B>)> {
        let (backend, shape) = (self.backend, self.attention_shape(index));
        let linears = [Some(&attention.q), attention.k.as_ref(), attention.v.as_ref()];
        tap(observer, &linears.into_iter().flatten().collect::<Vec<_>>(), pass.n_rows, &h)?;
        let (mut q, mut made) = self.heads_before_norms(attention, &h, pass.n_rows)?;
        drop(h);
        let (mut gates, mut q_bias) = (None, attention.q.bias.as_ref());
        if attention.gate == OutputGate::BelowQueries {
            self.add_bias(&attention.q, &mut q)?;
            let [queries, of_queries] = backend.halves_of_heads(&q, shape.head_dim)?;
            (q, gates, q_bias) = (queries, Some(of_queries), None);
        }
        // Values that are the keys have their bias.
        let k_bias = attention.k.as_ref().and_then(|k| k.bias.as_ref());
        let v_bias = attention.v.as_ref().or(attention.k.as_ref()).and_then(|v| v.bias.as_ref());
        let mut parts = vec![Heads {
            rows: &mut q,
            n_heads: shape.n_head,
            bias: q_bias,
            is_normalised: attention.q_norm.is_some(),
            gain: attention.q_norm.as_ref(),
            rotates: true,
            kept: None,
        }];
        if let Some([k, v]) = &mut made {
            let (kept_k, kept_v) = match &mut keys {
                Keys::Kept([k, v]) => (Some(k), Some(v)),
                Keys::Own | Keys::Of(_) => (None, None),
            };
            parts.push(Heads {
                rows: k,
                n_heads: shape.n_head_kv,
                bias: k_bias,
                is_normalised: attention.k_norm.is_some(),
                gain: attention.k_norm.as_ref(),
                rotates: true,
                kept: kept_k,
            });
            parts.push(Heads {
                rows: v,
                n_heads: shape.n_head_kv,
                bias: v_bias,
                is_normalised: attention.normalises_values,
                gain: None,
                rotates: false,
                kept: kept_v,
            });
        }
        let form = HeadForm { head_dim: shape.head_dim, norm_eps: self.hparams.norm_eps, rotation: self.rotation(index) };
        backend.heads(&mut parts, &form, &pass.places)?;
        drop(parts);
        let [k, v] = match (&keys, &made) {
            (Keys::Kept(pair), _) => pair.each_ref(),
            (Keys::Of(pair), _) => pair.each_ref(),
            (Keys::Own, Some(pair)) => pair.each_ref(),
            (Keys::Own, None) => return Err(Error::Internal(format!("layer {index} makes no keys"))),
        };
        let sinks = attention.sinks.as_ref();
        observer.heads(&q, k, sinks, &shape)?;
        let mut attended = backend.attention(&q, [k, v], sinks, &shape, &pass.places)?;
        if let Some(gates) = &gates {
            attended = backend.sigmoid_gated(attended, gates)?;
        }
        tap(observer, &[&attention.out], pass.n_rows, &attended)?;
        Ok((attended, made.filter(|_| matches!(keys, Keys::Own))))
    }

    /// Queries, and keys and values where the layer makes them, as their matrices give them.
    fn heads_before_norms(&self, attention: &AttentionOf<B>, h: &B::Operand, n_rows: usize) -> Result<(B::Rows, Made<B>)> {
        match (&attention.k, &attention.v) {
            (Some(k), Some(v)) => {
                let [q, k, v] = self.products([&attention.q, k, v], h, n_rows)?;
                Ok((q, Some([k, v])))
            }
            (Some(k), None) => {
                let [q, k] = self.products([&attention.q, k], h, n_rows)?;
                let v = self.backend.select(&k, &all(n_rows))?;
                Ok((q, Some([k, v])))
            }
            (None, _) => {
                let [q] = self.products([&attention.q], h, n_rows)?;
                Ok((q, None))
            }
        }
    }

    fn attention_shape(&self, index: usize) -> AttentionShape {
        let layer = &self.hparams.layers[index];
        AttentionShape {
            n_head: layer.n_head,
            n_head_kv: layer.n_head_kv,
            head_dim: layer.key_dim,
            scale: layer.attention_scale,
            window: layer.window,
            softcap: layer.attention_softcap,
        }
    }

    /// How a layer rotates heads, where it does.
    fn rotation(&self, index: usize) -> Option<Rotation<'_, B::Rows>> {
        let rope = self.hparams.layers[index].rope?;
        Some(Rotation { n_rot: rope.n_rot, layout: rope.layout, table: self.rope_table(&rope) })
    }
}
