//! Runs a model: tokens in, scores of the next token out.
//!
//! ```text
//! GGUF metadata ──> Hparams ──> tensor plan (every shape checked before a weight is read)
//!                                    │
//! tokens ──> Network (one forward pass, written once) ──> Backend (products, norms, attention): cpu, cuda
//!                                    │
//!              scores per token (perplexity, divergence) or logits (generation)
//! ```
//!
//! - [`Hparams`] are read from metadata alone and refuse what cannot be; what a family's layers do is data, `arch::family`.
//! - [`Network`] holds the weights, or reads them layer by layer while it computes, and knows the order of the operations.
//! - [`Needs`] says what a model asks of a machine before a weight is read, [`Workload`] what is asked of several.
//! - [`Backend`] supplies the operations. The CPU backend, in f32, is the reference for every other.
//!
//! Knows nothing of texts, files of texts or perplexity: that is evaluation, above.

mod backend;
mod block;
mod catalog;
mod counting;
mod cpu;
pub mod fit;
mod forward;
mod generate;
mod layer;
mod linear;
mod matrix;
mod needs;
mod pass;
mod rope;
mod sample;
mod sweep;
mod weights;

pub use crate::arch::describe::RopeLayout;
pub use crate::arch::{ExpertHparams, Hparams, LayerHparams, Rope, RopeScaling, architectures};
pub use crate::matmul::Accumulate;
pub use backend::{
    AttentionShape, Backend, BatchLimits, Clamped, Divergence, Gelu, HeadForm, Heads, Output, Places, Rotation, Score, Span,
};
pub use backend::{DeltaInputs, DeltaShape, Rates, Recurrent};
pub use counting::operations;
pub use cpu::{Activations, Ceilings, Cpu};
pub use forward::{Batch, Cache, Network};
pub use generate::{Generation, SideBySide};
pub use matrix::{Blocks, Matrix};
pub use needs::{MatrixShape, Needs, Operation, Residency, WeightBytes, Work, Workload, activations_per_token};
pub use pass::{Observed, Observer};
pub use sample::{Sampler, Sampling};
pub use sweep::{LoadedStep, StepMatrix, Sweep, Use};
