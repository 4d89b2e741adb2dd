//! Attention with grouped queries: `out(softmax(rope(q) rope(k)^T * scale) v)`.

use crate::arch::describe;
use crate::error::Result;
use crate::model::backend::{AttentionShape, Backend, HeadForm, Heads, Rotation};
use crate::model::catalog::{Catalog, Site, Slice};
use crate::model::linear::Linear;
use crate::model::pass::{Observer, Pass, Running, tap};

/// Its weights.
#[derive(Debug, Clone)]
pub(in crate::model) struct Attention<M, V> {
    pub q: Linear<M, V>,
    pub k: Linear<M, V>,
    pub v: Linear<M, V>,
    /// Gains of the norms of heads.
    pub q_norm: Option<V>,
    pub k_norm: Option<V>,
    /// A score for each head that takes its share of the softmax.
    pub sinks: Option<V>,
    pub out: Linear<M, V>,
}

impl Attention<Slice, Slice> {
    pub fn plan(attention: &describe::Attention, catalog: &mut Catalog<'_>, site: &Site<'_>) -> Result<Self> {
        let [q, k, v] = catalog.projections(&attention.qkv, site)?;
        Ok(Attention {
            q,
            k,
            v,
            q_norm: catalog.gain(&attention.q_norm, site)?,
            k_norm: catalog.gain(&attention.k_norm, site)?,
            sinks: attention.sinks.as_ref().map(|sinks| catalog.weight(sinks, site)).transpose()?,
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
            k: self.k.try_map(matrix, vector)?,
            v: self.v.try_map(matrix, vector)?,
            q_norm: self.q_norm.map(&mut *vector).transpose()?,
            k_norm: self.k_norm.map(&mut *vector).transpose()?,
            sinks: self.sinks.map(&mut *vector).transpose()?,
            out: self.out.try_map(matrix, vector)?,
        })
    }
}

pub(in crate::model) type AttentionOf<B> = Attention<<B as Backend>::Weight, <B as Backend>::Rows>;

impl<B: Backend> Running<'_, B> {
    /// What the heads of layer `index` see, before the last projection. With `kept`, keys and values are those of all tokens so far.
    pub(in crate::model) fn attend(
        &self,
        index: usize,
        attention: &AttentionOf<B>,
        h: B::Operand,
        pass: &Pass<B>,
        kept: Option<&mut [B::Rows; 2]>,
        observer: &mut dyn Observer<B>,
    ) -> Result<B::Operand> {
        let (backend, shape) = (self.backend, self.attention_shape(index));
        tap(observer, &[&attention.q, &attention.k, &attention.v], pass.n_rows, &h)?;
        let [mut q, mut k, mut v] = self.products([&attention.q, &attention.k, &attention.v], &h, pass.n_rows)?;
        drop(h);
        let (mut kept_k, mut kept_v) = kept.map(|[k, v]| (k, v)).unzip();
        let mut parts = [
            Heads {
                rows: &mut q,
                n_heads: shape.n_head,
                bias: attention.q.bias.as_ref(),
                gain: attention.q_norm.as_ref(),
                rotates: true,
                kept: None,
            },
            Heads {
                rows: &mut k,
                n_heads: shape.n_head_kv,
                bias: attention.k.bias.as_ref(),
                gain: attention.k_norm.as_ref(),
                rotates: true,
                kept: kept_k.as_deref_mut(),
            },
            Heads {
                rows: &mut v,
                n_heads: shape.n_head_kv,
                bias: attention.v.bias.as_ref(),
                gain: None,
                rotates: false,
                kept: kept_v.as_deref_mut(),
            },
        ];
        let form = HeadForm { head_dim: shape.head_dim, norm_eps: self.hparams.norm_eps, rotation: self.rotation(index) };
        backend.heads(&mut parts, &form, &pass.places)?;
        let (k, v) = (kept_k.as_deref().unwrap_or(&k), kept_v.as_deref().unwrap_or(&v));
        let sinks = attention.sinks.as_ref();
        observer.heads(&q, k, sinks, &shape)?;
        let attended = backend.attention(&q, [k, v], sinks, &shape, &pass.places)?;
        tap(observer, &[&attention.out], pass.n_rows, &attended)?;
        Ok(attended)
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
