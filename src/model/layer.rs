//! The weights of one transformer block, whatever they are held as: places in a file, bytes, or matrices of a backend.

use crate::error::Result;

/// One block: matrices of type `M`, vectors of type `V`.
#[derive(Debug, Clone)]
pub(super) struct Layer<M, V> {
    pub attn_norm: V,
    pub attn_q: Linear<M, V>,
    pub attn_k: Linear<M, V>,
    pub attn_v: Linear<M, V>,
    pub attn_q_norm: Option<V>,
    pub attn_k_norm: Option<V>,
    pub attn_output: Linear<M, V>,
    pub ffn_norm: V,
    pub ffn_gate: Linear<M, V>,
    pub ffn_up: Linear<M, V>,
    pub ffn_down: Linear<M, V>,
}

/// `x * weight^T + bias`.
#[derive(Debug, Clone)]
pub(super) struct Linear<M, V> {
    /// The tensor that holds the weight, maybe together with others.
    pub name: String,
    pub n_out: usize,
    pub weight: M,
    pub bias: Option<V>,
}

impl<M, V> Layer<M, V> {
    /// The same block, held as something else.
    pub fn try_map<M2, V2>(
        self,
        mut matrix: impl FnMut(M) -> Result<M2>,
        mut vector: impl FnMut(V) -> Result<V2>,
    ) -> Result<Layer<M2, V2>> {
        let (matrix, vector) = (&mut matrix, &mut vector);
        Ok(Layer {
            attn_norm: vector(self.attn_norm)?,
            attn_q: self.attn_q.try_map(matrix, vector)?,
            attn_k: self.attn_k.try_map(matrix, vector)?,
            attn_v: self.attn_v.try_map(matrix, vector)?,
            attn_q_norm: self.attn_q_norm.map(&mut *vector).transpose()?,
            attn_k_norm: self.attn_k_norm.map(&mut *vector).transpose()?,
            attn_output: self.attn_output.try_map(matrix, vector)?,
            ffn_norm: vector(self.ffn_norm)?,
            ffn_gate: self.ffn_gate.try_map(matrix, vector)?,
            ffn_up: self.ffn_up.try_map(matrix, vector)?,
            ffn_down: self.ffn_down.try_map(matrix, vector)?,
        })
    }
}

impl<M, V> Linear<M, V> {
    fn try_map<M2, V2>(
        self,
        matrix: &mut impl FnMut(M) -> Result<M2>,
        vector: &mut impl FnMut(V) -> Result<V2>,
    ) -> Result<Linear<M2, V2>> {
        let weight = matrix(self.weight)?;
        let bias = self.bias.map(vector).transpose()?;
        Ok(Linear { name: self.name, n_out: self.n_out, weight, bias })
    }
}
