//! Layout first: every offset and size is known before the first byte is written.

use super::value::Metadata;
use crate::error::Result;
use crate::quant::Format;

/// Alignment of tensor data where `general.alignment` does not say otherwise.
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// At most 63 bytes, unique.
    pub name: String,
    /// How its weights are stored.
    pub format: Format,
    /// Row-major, 1 to 4 dimensions.
    pub shape: Vec<u64>,
}

/// What one GGUF file (one shard) declares.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// In the order written.
    pub metadata: Metadata,
    /// In the order written.
    pub tensors: Vec<TensorSpec>,
}

/// Where everything of a [`Header`] lands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The encoded header, padded to the start of tensor data.
    pub header: Vec<u8>,
    /// From the start of the file, per tensor of the header.
    pub offsets_bytes: Vec<u64>,
    /// Per tensor of the header.
    pub sizes_bytes: Vec<u64>,
    /// Size of the complete file, final padding included.
    pub file_bytes: u64,
}

impl Header {
    /// Encodes the header and places every tensor.
    ///
    /// # Errors
    /// Names, shapes or values that no reader would accept.
    pub fn layout(&self) -> Result<Layout> {
        todo!()
    }
}
