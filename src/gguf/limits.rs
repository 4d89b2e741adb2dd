//! Bounds on what a file may hold. The fixed ones are the format's own; [`Limits`] are ours and can be raised.

/// Dimensions of a tensor: ggml's arrays hold four.
pub const DIMS_MAX: usize = 4;
/// Bytes of a tensor name: llama.cpp's buffer of 64 holds a NUL too.
pub const NAME_BYTES_MAX: usize = 63;
/// Bytes of a metadata key, from the specification.
pub const KEY_BYTES_MAX: usize = 65535;
/// Alignment of tensor data. A larger one would only make padding that no reader wants; real files use 32.
pub const ALIGNMENT_MAX: u64 = 64 << 10;

/// What a reader accepts at most. Nothing is allocated from these numbers: they keep a sound but absurd file from costing its reader
/// minutes, and can be raised by whoever means it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one string. The longest known, tokenizer.json files, have about 30 MB.
    pub string_bytes: u64,
    /// Items of one array. The largest known vocabularies have 262 144 tokens.
    pub array_len: u64,
    /// Metadata entries of one file.
    pub n_entries: u64,
    /// Tensors of one file.
    pub n_tensors: u64,
    /// Bytes of a header, which is kept in memory. The largest known have some 50 MB.
    pub header_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { string_bytes: 64 << 20, array_len: 1 << 26, n_entries: 1_000_000, n_tensors: 10_000_000, header_bytes: 1 << 30 }
    }
}

impl Limits {
    /// No bound but the file itself and the width of an index.
    pub const NONE: Limits = Limits {
        string_bytes: u64::MAX,
        array_len: u64::MAX,
        n_entries: u32::MAX as u64,
        n_tensors: u32::MAX as u64,
        header_bytes: u64::MAX,
    };
}
