//! The sizes of gated delta nets.

#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation, clippy::indexing_slicing, clippy::unwrap_used)]

use super::describe::{Dim, Number};
use super::numbers::{self, WIDTH_MAX};
use crate::error::Result;

/// Sizes of a gated delta net.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeltaHparams {
    /// Tokens that its convolution sees: two or more.
    pub n_kernel: usize,
    /// Heads of queries and keys.
    pub n_key_heads: usize,
    /// Heads of values: a multiple of `n_key_heads`.
    pub n_value_heads: usize,
    /// Width of a query and of a key.
    pub key_dim: usize,
    /// Width of a value.
    pub value_dim: usize,
}

impl DeltaHparams {
    /// Reads and checks them. `count`: a number, or what is wrong with it; `refuse`: the error for one that cannot be.
    pub(super) fn read(
        count: impl Fn(&'static Number) -> Result<usize>,
        refuse: impl Fn(&'static Number, String) -> Result<DeltaHparams>,
    ) -> Result<DeltaHparams> {
        let [n_key_heads, n_value_heads] = [count(&numbers::SSM_GROUP_COUNT)?, count(&numbers::SSM_TIME_STEP_RANK)?];
        let [key_dim, inner] = [count(&numbers::SSM_STATE_SIZE)?, count(&numbers::SSM_INNER_SIZE)?];
        let value_dim = match inner.checked_div(n_value_heads) {
            Some(width) if inner.is_multiple_of(n_value_heads) && n_value_heads.is_multiple_of(n_key_heads) => width,
            _ => {
                let detail = format!("{n_value_heads} value heads, for {n_key_heads} key heads and {inner} values");
                return refuse(&numbers::SSM_TIME_STEP_RANK, detail);
            }
        };
        if (n_key_heads as u64).saturating_mul(key_dim as u64) > WIDTH_MAX {
            let detail = format!("{n_key_heads} heads of {key_dim} are wider than {WIDTH_MAX}");
            return refuse(&numbers::SSM_GROUP_COUNT, detail);
        }
        let n_kernel = count(&numbers::SSM_CONV_KERNEL)?;
        Ok(DeltaHparams { n_kernel, n_key_heads, n_value_heads, key_dim, value_dim })
    }

    /// Values that share a key head.
    pub fn heads_per_key(&self) -> usize {
        self.n_value_heads.checked_div(self.n_key_heads).unwrap_or(0)
    }

    /// All queries, keys and values of a token.
    pub fn n_channels(&self) -> usize {
        let [keys, values] = [self.len(Dim::DeltaKeys), self.len(Dim::DeltaValues)];
        keys.saturating_mul(2).saturating_add(values)
    }

    /// Numbers that a sequence keeps of its past, whatever its length: the states, and what the convolution sees of the last tokens.
    pub fn n_kept(&self) -> usize {
        let states = self.len(Dim::DeltaValues).saturating_mul(self.key_dim);
        states.saturating_add(self.n_kernel.saturating_sub(1).saturating_mul(self.n_channels()))
    }

    /// The length of a dimension; 1 for one that is none of a delta net.
    pub fn len(&self, dim: Dim) -> usize {
        match dim {
            Dim::DeltaKeys => self.n_key_heads.saturating_mul(self.key_dim),
            Dim::DeltaQueriesKeys => self.n_key_heads.saturating_mul(self.key_dim).saturating_mul(2),
            Dim::DeltaValues => self.n_value_heads.saturating_mul(self.value_dim),
            Dim::DeltaQkv => self.n_channels(),
            Dim::DeltaHeads => self.n_value_heads,
            Dim::TwiceDeltaHeads => self.n_value_heads.saturating_mul(2),
            Dim::DeltaKey => self.key_dim,
            Dim::DeltaValue => self.value_dim,
            Dim::DeltaGroup => self.heads_per_key().saturating_mul(self.value_dim),
            Dim::ConvKernel => self.n_kernel,
            _ => 1,
        }
    }

    /// Rows of its matrices that are as wide as states, and columns.
    pub(super) fn outputs(&self) -> f64 {
        let of = |dim| self.len(dim) as f64;
        of(Dim::DeltaQkv) + 2.0 * of(Dim::DeltaValues) + of(Dim::TwiceDeltaHeads)
    }

    /// Multiply-adds of a token beside its matrices: the convolution, and for each weight of the state one to read what it says of the
    /// key, one to correct it, one to read the result.
    pub(super) fn multiply_adds(&self) -> f64 {
        let state = self.len(Dim::DeltaValues) as f64 * self.key_dim as f64;
        self.n_channels() as f64 * self.n_kernel as f64 + 3.0 * state
    }
}
