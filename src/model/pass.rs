//! What the blocks of a layer are computed with: a backend, the model's sizes, where the rows of the pass stand, and who watches.

use super::backend::{AttentionShape, Backend};
use super::linear::{Linear, Norm};
use crate::arch::{Hparams, Rope};
use crate::error::Result;

pub(super) type NormOf<B> = Norm<<B as Backend>::Rows>;
pub(super) type LinearOf<B> = Linear<<B as Backend>::Weight, <B as Backend>::Rows>;

/// Watches a pass: what goes into the products, and how far it has come.
pub trait Observer<B: Backend> {
    /// `x` is about to be multiplied.
    ///
    /// # Errors
    /// An error ends the pass.
    fn operand(&mut self, observed: Observed<'_>, x: &B::Operand) -> Result<()> {
        let _ = (observed, x);
        Ok(())
    }

    /// Attention is about to multiply these queries and keys, one row for each row of the operand before. `sinks`: as
    /// [`Backend::attention`] has them.
    ///
    /// # Errors
    /// An error ends the pass.
    fn heads(&mut self, q: &B::Rows, k: &B::Rows, sinks: Option<&B::Rows>, shape: &AttentionShape) -> Result<()> {
        let _ = (q, k, sinks, shape);
        Ok(())
    }

    /// `done` of `n_layers` layers are done.
    ///
    /// # Errors
    /// An error ends the pass: [`Interrupted`](crate::error::Error::Interrupted) where the user wants to stop.
    fn layer_done(&mut self, done: usize, n_layers: usize) -> Result<()> {
        let _ = (done, n_layers);
        Ok(())
    }
}

/// What an operand is multiplied with.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    /// Names of the tensors.
    pub names: &'a [&'a str],
    /// Rows of the operand.
    pub n_rows: usize,
    /// Which of the matrices that each tensor stacks, and how many these are: 0 and 1 for a plain matrix.
    pub matrix: (usize, usize),
}

/// Nobody watches.
impl<B: Backend> Observer<B> for () {}

/// What is the same for every layer of a pass.
pub(super) struct Pass<B: Backend> {
    pub n_rows: usize,
    pub places: B::Pass,
    pub tokens: Vec<u32>,
    /// States before the first layer, where layers use them.
    pub first: Option<B::Operand>,
}

/// A model that runs, without its weights.
pub(super) struct Running<'a, B: Backend> {
    pub backend: &'a B,
    pub hparams: &'a Hparams,
    /// What layers get of tokens.
    pub per_layer_embd: Option<&'a B::Weight>,
    /// Angles for every way in which layers rotate.
    pub rope_tables: &'a [(Rope, B::Rows)],
}

impl<B: Backend> Running<'_, B> {
    pub(super) fn norm(&self, x: &B::Rows, norm: &NormOf<B>) -> Result<B::Operand> {
        match &norm.bias {
            None => self.backend.rms_norm(x, &norm.gain, self.hparams.norm_eps),
            Some(bias) => self.backend.layer_norm(x, &norm.gain, bias, self.hparams.norm_eps),
        }
    }

    /// The angles by which a layer rotates.
    pub(super) fn rope_table(&self, rope: &Rope) -> &B::Rows {
        let table = self.rope_tables.iter().find(|(known, _)| known == rope);
        &table.expect("a table for every layer that rotates").1
    }

    pub(super) fn linear(&self, linear: &LinearOf<B>, x: &B::Operand, n_rows: usize) -> Result<B::Rows> {
        let [mut out] = self.products([linear], x, n_rows)?;
        self.add_bias(linear, &mut out)?;
        Ok(out)
    }

    /// Several products, without their biases.
    pub(super) fn products<const N: usize>(
        &self,
        linears: [&LinearOf<B>; N],
        x: &B::Operand,
        n_rows: usize,
    ) -> Result<[B::Rows; N]> {
        let outs: Vec<_> = linears.iter().map(|linear| self.backend.rows(n_rows, linear.n_out)).collect::<Result<_>>()?;
        let mut outs: [B::Rows; N] = outs.try_into().unwrap_or_else(|_| unreachable!("rows for each"));
        let mut products: Vec<_> = linears.iter().zip(&mut outs).map(|(linear, out)| (&linear.weight, out)).collect();
        self.backend.matmuls(x, &mut products)?;
        Ok(outs)
    }

    pub(super) fn add_bias(&self, linear: &LinearOf<B>, out: &mut B::Rows) -> Result<()> {
        linear.bias.as_ref().map_or(Ok(()), |bias| self.backend.add_bias(out, bias))
    }
}

/// The numbers of all rows.
pub(super) fn all(n_rows: usize) -> Vec<u32> {
    (0..n_rows as u32).collect()
}

/// Shows the observer an operand with the names of the tensors it is multiplied with, each once.
pub(super) fn tap<B: Backend>(
    observer: &mut dyn Observer<B>,
    linears: &[&LinearOf<B>],
    n_rows: usize,
    x: &B::Operand,
) -> Result<()> {
    let mut names: Vec<&str> = linears.iter().map(|linear| linear.name.as_str()).collect();
    names.dedup();
    observer.operand(Observed { names: &names, n_rows, matrix: (0, 1) }, x)
}
