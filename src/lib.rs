//! GGUF from Hugging Face models: the container, every block format, conversion, and the measure of what quantization cost.
//!
//! Layers, each importing only from those above it in this list (`tests/tidy.rs` enforces it):
//! [`error`] < [`simd`], [`report`] < [`quant`] < [`source`] < [`gguf`], [`hf`] < [`tokenizer`], [`arch`], [`imatrix`] < [`plan`] < [`pipeline`].
//!
//! Without default features only the formats and the container remain.

pub mod error;
pub mod gguf;
pub mod quant;
pub mod report;
pub mod simd;
pub mod source;

#[cfg(feature = "convert")]
pub mod arch;
#[cfg(feature = "convert")]
pub mod hf;
#[cfg(feature = "convert")]
pub mod imatrix;
#[cfg(feature = "convert")]
pub mod pipeline;
#[cfg(feature = "convert")]
pub mod plan;
#[cfg(feature = "convert")]
pub mod tokenizer;

pub use error::{Error, Result};
