//! The GGUF container. Knows bytes, keys and offsets; does not know what the tensors mean.
//!
//! GGUF stores dimensions fastest-first. They are turned round to row-major here, once, and nowhere else.

pub mod keys;
mod value;
mod write;

pub use value::{Array, Metadata, Value};
pub use write::{DEFAULT_ALIGNMENT, Header, Layout, TensorSpec};
