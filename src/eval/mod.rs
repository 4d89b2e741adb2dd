//! Measuring: how well a model foretells a text, what quantizing cost it, and which columns of its weights matter.
//!
//! ```text
//! text ──> tokens ──> Windows (what is scored) ──> batches of windows ──> Network (model) ──> one record per scored token
//!                                                                                    │
//!               perplexity: nll ──> PPL           divergence: nll, nll, KLD ──> quantiles          collect: sums of squares
//! ```
//!
//! | module | measures | as |
//! |---|---|---|
//! | [`perplexity`] | one model on a text | llama-perplexity |
//! | [`divergence`] | quantized files against the file they were made from | llama-perplexity's `--kl-divergence`, without its file of logits |
//! | [`collect`] | the inputs of every matrix | llama-imatrix |
//! | [`logits`](logits::logits) | the scores of the whole vocabulary, at the last positions of a sequence | |
//! | [`tensor_error`] | the weights themselves, tensor by tensor | |
//!
//! # What can be relied on
//! - Records are kept per token, all sums over them are f64 in the order of the text, and the backend's own sums have a fixed order: a
//!   figure depends neither on the number of threads nor on how many windows are computed at once.
//! - Activations are not quantized, so a figure is about the weights alone. llama.cpp's CPU code quantizes them to 8 bits for every
//!   product with quantized weights; [`crate::model::Activations::Q8`] does the same, to compare.
//! - A model compared with itself gives exactly 0.
//! - Memory is bounded by a batch of windows, whatever the length of the text: what grows is a few numbers for each scored token.
//!
//! Does not print: progress goes to a callback ([`Watch`]), results are data.

pub mod collect;
pub mod divergence;
pub mod logits;
pub mod perplexity;
pub mod tensor_error;

mod estimate;
mod pass;
mod windows;

pub use estimate::{Estimate, quantile};
pub use pass::{Progress, Watch};
pub use windows::{Cut, Windows, read_text, text_of};
