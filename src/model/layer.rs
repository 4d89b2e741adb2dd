//! The weights of one transformer block, whatever they are held as: places in a file, bytes, or matrices of a backend.

use crate::error::Result;

/// One block: matrices of type `M`, vectors of type `V`.
#[derive(Debug, Clone)]
pub(super) struct Layer<M, V> {
    pub attn_norm: Norm<V>,
    pub attn_q: Linear<M, V>,
    pub attn_k: Linear<M, V>,
    pub attn_v: Linear<M, V>,
    pub attn_q_norm: Option<V>,
    pub attn_k_norm: Option<V>,
    pub attn_output: Linear<M, V>,
    pub attn_post_norm: Option<V>,
    pub ffn_norm: Norm<V>,
    pub ffn: FeedForward<M, V>,
    pub ffn_post_norm: Option<V>,
}

/// What brings states to one size, or with a bias to one mean too.
#[derive(Debug, Clone)]
pub(super) struct Norm<V> {
    pub gain: V,
    pub bias: Option<V>,
}

/// What follows attention.
#[derive(Debug, Clone)]
pub(super) enum FeedForward<M, V> {
    Dense(Gated<M, V>),
    Experts(Box<Experts<M, V>>),
}

/// `down(silu(gate(x)) * up(x))`, or without a gate `down(gelu(up(x)))`.
#[derive(Debug, Clone)]
pub(super) struct Gated<M, V> {
    pub gate: Option<Linear<M, V>>,
    pub up: Linear<M, V>,
    pub down: Linear<M, V>,
}

/// Networks of which every token uses a few.
#[derive(Debug, Clone)]
pub(super) struct Experts<M, V> {
    /// Scores every expert.
    pub router: Linear<M, V>,
    pub gate: Stacked<M>,
    pub up: Stacked<M>,
    pub down: Stacked<M>,
    pub shared: Option<SharedExpert<M, V>>,
}

/// Matrices that one tensor holds.
#[derive(Debug, Clone)]
pub(super) struct Stacked<M> {
    pub name: String,
    /// Rows of each.
    pub n_out: usize,
    pub matrices: Vec<M>,
}

/// An expert that works for every token: `sigmoid(weight(x)) * network(x)`.
#[derive(Debug, Clone)]
pub(super) struct SharedExpert<M, V> {
    pub weight: Linear<M, V>,
    pub network: Gated<M, V>,
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
            attn_norm: self.attn_norm.try_map(vector)?,
            attn_q: self.attn_q.try_map(matrix, vector)?,
            attn_k: self.attn_k.try_map(matrix, vector)?,
            attn_v: self.attn_v.try_map(matrix, vector)?,
            attn_q_norm: self.attn_q_norm.map(&mut *vector).transpose()?,
            attn_k_norm: self.attn_k_norm.map(&mut *vector).transpose()?,
            attn_output: self.attn_output.try_map(matrix, vector)?,
            attn_post_norm: self.attn_post_norm.map(&mut *vector).transpose()?,
            ffn_norm: self.ffn_norm.try_map(vector)?,
            ffn_post_norm: self.ffn_post_norm.map(&mut *vector).transpose()?,
            ffn: match self.ffn {
                FeedForward::Dense(network) => FeedForward::Dense(network.try_map(matrix, vector)?),
                FeedForward::Experts(experts) => FeedForward::Experts(Box::new(experts.try_map(matrix, vector)?)),
            },
        })
    }
}

impl<V> Norm<V> {
    /// The same norm, held as something else.
    pub fn try_map<V2>(self, vector: &mut impl FnMut(V) -> Result<V2>) -> Result<Norm<V2>> {
        Ok(Norm { gain: vector(self.gain)?, bias: self.bias.map(vector).transpose()? })
    }
}

impl<M, V> Experts<M, V> {
    fn try_map<M2, V2>(
        self,
        matrix: &mut impl FnMut(M) -> Result<M2>,
        vector: &mut impl FnMut(V) -> Result<V2>,
    ) -> Result<Experts<M2, V2>> {
        let router = self.router.try_map(matrix, vector)?;
        let mut stacked = |Stacked { name, n_out, matrices }: Stacked<M>| {
            let matrices = matrices.into_iter().map(&mut *matrix).collect::<Result<_>>()?;
            Ok(Stacked { name, n_out, matrices })
        };
        let (gate, up, down) = (stacked(self.gate)?, stacked(self.up)?, stacked(self.down)?);
        let mut shared = |SharedExpert { weight, network }: SharedExpert<M, V>| {
            Ok(SharedExpert { weight: weight.try_map(matrix, vector)?, network: network.try_map(matrix, vector)? })
        };
        Ok(Experts { router, gate, up, down, shared: self.shared.map(&mut shared).transpose()? })
    }
}

impl<M, V> Gated<M, V> {
    fn try_map<M2, V2>(
        self,
        matrix: &mut impl FnMut(M) -> Result<M2>,
        vector: &mut impl FnMut(V) -> Result<V2>,
    ) -> Result<Gated<M2, V2>> {
        Ok(Gated {
            gate: self.gate.map(|gate| gate.try_map(matrix, vector)).transpose()?,
            up: self.up.try_map(matrix, vector)?,
            down: self.down.try_map(matrix, vector)?,
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
