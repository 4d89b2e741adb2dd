//! The GGUF container. Knows bytes, keys and offsets; does not know what the tensors mean.
//!
//! GGUF stores dimensions fastest-first. They are turned round to row-major here, once, and nowhere else.
//!
//! [`File`] is one file, mapped and checked; [`Model`] is a file or a whole split set, as a source of tensors; [`Header`] is what is to
//! be written, and [`Header::layout`] says where every byte of it lands.

// Files are hostile: no arithmetic that wraps, no access that panics.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unreachable,
    clippy::unwrap_used
)]

mod cursor;
mod header;
pub mod keys;
mod limits;
mod map;
mod model;
mod read;
mod sniff;
mod split;
mod value;
mod view;
mod warning;
mod write;

pub use limits::Limits;
pub use model::Model;
#[cfg(feature = "convert")]
pub(crate) use model::no_architecture;
pub use read::{File, TensorInfo};
pub use split::{ShardName, shard_paths};
pub use value::{Array, Metadata, Value, ValueType};
pub use view::{ArrayRef, Elements, ValueRef};
pub use warning::Warning;
pub use write::{DEFAULT_ALIGNMENT, Header, Layout, TensorSpec};
