//! A network and a mixture of experts beside it: `network_norm(network(h)) + experts_norm(experts(experts_before(x)))`.

use super::{Experts, Network};
use crate::arch::describe;
use crate::error::Result;
use crate::model::backend::Backend;
use crate::model::catalog::{Catalog, Site, Slice};
use crate::model::linear::Norm;
use crate::model::pass::{Observer, Running};

/// Its weights.
#[derive(Debug, Clone)]
pub(in crate::model) struct Both<M, V> {
    pub network: Network<M, V>,
    /// Gain of the norm of what the network gives.
    pub network_norm: Option<V>,
    pub experts_before: Norm<V>,
    pub experts: Experts<M, V>,
    /// Gain of the norm of what the experts give.
    pub experts_norm: Option<V>,
}

impl Both<Slice, Slice> {
    pub fn plan(both: &describe::Both, catalog: &mut Catalog<'_>, site: &Site<'_>) -> Result<Self> {
        Ok(Both {
            network: Network::plan(&both.network, catalog, site)?,
            network_norm: catalog.gain(&both.network_norm, site)?,
            experts_before: catalog.norm(&both.experts_before, site)?,
            experts: Experts::plan(&both.experts, catalog, site)?,
            experts_norm: catalog.gain(&both.experts_norm, site)?,
        })
    }
}

impl<M, V> Both<M, V> {
    pub fn try_map<M2, V2>(
        self,
        matrix: &mut impl FnMut(M) -> Result<M2>,
        vector: &mut impl FnMut(V) -> Result<V2>,
    ) -> Result<Both<M2, V2>> {
        Ok(Both {
            network: self.network.try_map(matrix, vector)?,
            network_norm: self.network_norm.map(&mut *vector).transpose()?,
            experts_before: self.experts_before.try_map(vector)?,
            experts: self.experts.try_map(matrix, vector)?,
            experts_norm: self.experts_norm.map(&mut *vector).transpose()?,
        })
    }
}

type BothOf<B> = Both<<B as Backend>::Weight, <B as Backend>::Rows>;

impl<B: Backend> Running<'_, B> {
    /// What both make of `x` together; `h` is the network's input.
    pub(in crate::model) fn side_by_side(
        &self,
        both: &BothOf<B>,
        h: B::Operand,
        x: &B::Rows,
        n_rows: usize,
        observer: &mut dyn Observer<B>,
    ) -> Result<B::Rows> {
        let (backend, eps) = (self.backend, self.hparams.norm_eps);
        let normalised = |rows: &mut B::Rows, gain: &Option<B::Rows>| match gain {
            Some(gain) => backend.rms_norm_heads(rows, gain, eps),
            None => Ok(()),
        };
        let inner = self.inner(&both.network, h, n_rows, observer)?;
        let mut out = self.linear(&both.network.down, &inner, n_rows)?;
        normalised(&mut out, &both.network_norm)?;
        // Experts add to what is there: zeros, unless states are not numbers, which must show.
        let mut mixed = backend.scaled(x, 0.0)?;
        let h = self.norm(x, &both.experts_before)?;
        self.mix((&both.experts, &both.experts_before), h, (x, &mut mixed), n_rows, observer)?;
        normalised(&mut mixed, &both.experts_norm)?;
        backend.add(&mixed, &mut out)?;
        Ok(out)
    }
}
