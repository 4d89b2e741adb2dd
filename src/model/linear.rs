//! Norms and linear maps, whatever their weights are held as: places in a file, bytes, or matrices of a backend.

use crate::error::Result;

/// What brings states to one size, or with a bias to one mean too.
#[derive(Debug, Clone)]
pub(super) struct Norm<V> {
    pub gain: V,
    pub bias: Option<V>,
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

impl<V> Norm<V> {
    /// The same norm, held as something else.
    pub fn try_map<V2>(self, vector: &mut impl FnMut(V) -> Result<V2>) -> Result<Norm<V2>> {
        Ok(Norm { gain: vector(self.gain)?, bias: self.bias.map(vector).transpose()? })
    }
}

impl<M, V> Linear<M, V> {
    /// The same map, held as something else.
    pub fn try_map<M2, V2>(
        self,
        matrix: &mut impl FnMut(M) -> Result<M2>,
        vector: &mut impl FnMut(V) -> Result<V2>,
    ) -> Result<Linear<M2, V2>> {
        let weight = matrix(self.weight)?;
        let bias = self.bias.map(vector).transpose()?;
        Ok(Linear { name: self.name, n_out: self.n_out, weight, bias })
    }
}

/// Matrices that one tensor holds.
#[derive(Debug, Clone)]
pub(super) struct Stacked<M, V> {
    pub name: String,
    /// Rows of each.
    pub n_out: usize,
    pub matrices: Vec<M>,
    /// What is added to the results of each; none where nothing is.
    pub biases: Vec<V>,
}

impl<M, V> Stacked<M, V> {
    /// The same matrices, held as something else.
    pub fn try_map<M2, V2>(
        self,
        matrix: &mut impl FnMut(M) -> Result<M2>,
        vector: &mut impl FnMut(V) -> Result<V2>,
    ) -> Result<Stacked<M2, V2>> {
        let matrices = self.matrices.into_iter().map(matrix).collect::<Result<_>>()?;
        let biases = self.biases.into_iter().map(vector).collect::<Result<_>>()?;
        Ok(Stacked { name: self.name, n_out: self.n_out, matrices, biases })
    }
}
