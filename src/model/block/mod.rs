//! What steps of layers compute, one file per kind of block: its weights, where they are in a file, how it is computed.
//!
//! No block knows a family's name: what differs between families is in [`crate::arch::describe`].

mod attention;
mod both;
mod delta;
mod experts;
mod network;
mod per_layer;

pub(super) use attention::{Attention, Keys};
pub(super) use both::Both;
pub(super) use delta::Delta;
pub(super) use experts::Experts;
pub(super) use network::Network;
pub(super) use per_layer::PerLayer;

use super::catalog::{Catalog, Site, Slice};
use crate::arch::describe::Body;
use crate::error::Result;

/// The weights of what a step computes.
#[derive(Debug, Clone)]
pub(super) enum Block<M, V> {
    Attention(Attention<M, V>),
    Delta(Box<Delta<M, V>>),
    Network(Network<M, V>),
    Experts(Box<Experts<M, V>>),
    Both(Box<Both<M, V>>),
    PerLayer(PerLayer<M, V>),
    /// What the stream is multiplied with; without it the file's 1.
    Scale(Option<V>),
}

impl Block<Slice, Slice> {
    /// Finds them.
    pub fn plan(body: &Body, catalog: &mut Catalog<'_>, site: &Site<'_>) -> Result<Self> {
        Ok(match body {
            Body::Attention(attention) => Block::Attention(Attention::plan(attention, catalog, site)?),
            Body::Delta(delta) => Block::Delta(Box::new(Delta::plan(delta, catalog, site)?)),
            Body::Network(network) => Block::Network(Network::plan(network, catalog, site)?),
            Body::Experts(experts) => Block::Experts(Box::new(Experts::plan(experts, catalog, site)?)),
            Body::Both(both) => Block::Both(Box::new(Both::plan(both, catalog, site)?)),
            Body::PerLayer(per_layer) => Block::PerLayer(PerLayer::plan(per_layer, catalog, site)?),
            Body::Scale(factor) => Block::Scale(catalog.maybe(factor, site)?),
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
            Block::Delta(delta) => Block::Delta(Box::new(delta.try_map(matrix, vector)?)),
            Block::Network(network) => Block::Network(network.try_map(matrix, vector)?),
            Block::Experts(experts) => Block::Experts(Box::new(experts.try_map(matrix, vector)?)),
            Block::Both(both) => Block::Both(Box::new(both.try_map(matrix, vector)?)),
            Block::PerLayer(per_layer) => Block::PerLayer(per_layer.try_map(matrix, vector)?),
            Block::Scale(factor) => Block::Scale(factor.map(vector).transpose()?),
        })
    }
}
