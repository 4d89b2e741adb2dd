//! What steps of layers compute, one file per kind of block: its weights, where they are in a file, how it is computed.
//!
//! No block knows a family's name: what differs between families is in [`crate::arch::describe`].

mod attention;
mod experts;
mod network;

pub(super) use attention::Attention;
pub(super) use experts::Experts;
pub(super) use network::Network;

use super::catalog::{Catalog, Site, Slice};
use crate::arch::describe::Body;
use crate::error::Result;

/// The weights of what a step computes.
#[derive(Debug, Clone)]
pub(super) enum Block<M, V> {
    Attention(Attention<M, V>),
    Network(Network<M, V>),
    Experts(Box<Experts<M, V>>),
}

impl Block<Slice, Slice> {
    /// Finds them.
    pub fn plan(body: &Body, catalog: &mut Catalog<'_>, site: &Site<'_>) -> Result<Self> {
        Ok(match body {
            Body::Attention(attention) => Block::Attention(Attention::plan(attention, catalog, site)?),
            Body::Network(network) => Block::Network(Network::plan(network, catalog, site)?),
            Body::Experts(experts) => Block::Experts(Box::new(Experts::plan(experts, catalog, site)?)),
        })
    }
}

impl<M, V> Block<M, V> {
    /// The same block, held as something else.
    pub fn try_map<M2, V2>(
        self,
        matrix: &mut impl FnMut(M) -> Result<M2>,
        vector: &mut impl FnMut(V) -> Result<V2>,
    ) -> Result<Block<M2, V2>> {
        Ok(match self {
            Block::Attention(attention) => Block::Attention(attention.try_map(matrix, vector)?),
            Block::Network(network) => Block::Network(network.try_map(matrix, vector)?),
            Block::Experts(experts) => Block::Experts(Box::new(experts.try_map(matrix, vector)?)),
        })
    }
}
