//! What the check of a header notes and lets pass.

use std::fmt;

/// What is odd about a file but harms nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// Bytes between tensors, or between header and data, that should be zero.
    PaddingNotZero {
        /// Offset of the first one from the start of the file.
        first_at: u64,
        /// How many there are.
        n_bytes: u64,
    },
    /// The file ends before the data of its tensors does: only of files that were opened for their header alone.
    CutShort {
        /// How much is missing.
        n_bytes: u64,
    },
    /// Bytes after the last tensor and its padding.
    TrailingBytes {
        /// Offset of the first one from the start of the file.
        at: u64,
        /// How many there are.
        n_bytes: u64,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::PaddingNotZero { first_at, n_bytes } => {
                write!(f, "{n_bytes} bytes of padding are not zero, the first at byte {first_at}")
            }
            Warning::CutShort { n_bytes } => write!(f, "the file is cut short: {n_bytes} bytes are missing"),
            Warning::TrailingBytes { at, n_bytes } => write!(f, "{n_bytes} bytes follow the last tensor, from byte {at}"),
        }
    }
}
