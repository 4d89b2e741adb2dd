//! A matrix on its way to a backend: in its file, from where the backend brings it to where it wants it, or read already.
//!
//! Bytes are read by position and not through a mapping: a file that shrinks meanwhile is an error, and memory that a copy engine reads
//! is filled at once, by as many threads as the backend likes.

use crate::error::Result;
use crate::memory::out_of_memory;
use crate::quant::Format;
use crate::source::InputFile;

/// A matrix that a backend is given.
#[derive(Debug, Clone)]
pub struct Matrix<'a> {
    /// How its weights are stored.
    pub format: Format,
    /// Outputs.
    pub n_rows: usize,
    /// Inputs: a whole number of blocks.
    pub n_cols: usize,
    /// `n_rows * format.row_bytes(n_cols)` bytes.
    pub blocks: Blocks<'a>,
}

/// Where the blocks of a matrix are.
#[derive(Debug, Clone)]
pub enum Blocks<'a> {
    /// Here.
    Read(Vec<u8>),
    /// In a file that is long enough.
    InFile {
        /// The file.
        file: &'a InputFile,
        /// Of the first byte, from the file's begin.
        offset_bytes: u64,
    },
}

/// Bytes that are read at a time into new memory.
const READ_BYTES: usize = 256 << 10;

impl Matrix<'_> {
    /// Bytes of all blocks.
    ///
    /// # Panics
    /// When rows are not whole blocks, or the address space does not hold them.
    pub fn size_bytes(&self) -> usize {
        let row_bytes = self.format.row_bytes(self.n_cols as u64).expect("rows of whole blocks");
        row_bytes.checked_mul(self.n_rows as u64).and_then(|bytes| usize::try_from(bytes).ok()).expect("a matrix of a file")
    }

    /// Fills `bytes` with those of the blocks from byte `at` on.
    ///
    /// # Errors
    /// `InputChanged` where the file has become too short; `Io`.
    ///
    /// # Panics
    /// When the matrix ends before.
    pub fn read_at(&self, bytes: &mut [u8], at: usize) -> Result<()> {
        assert!(at.checked_add(bytes.len()).is_some_and(|end| end <= self.size_bytes()), "bytes of the matrix");
        match &self.blocks {
            Blocks::Read(all) => {
                bytes.copy_from_slice(&all[at..][..bytes.len()]);
                Ok(())
            }
            Blocks::InFile { file, offset_bytes } => file.read_exact_at(bytes, offset_bytes + at as u64),
        }
    }

    /// All bytes of the blocks.
    ///
    /// # Errors
    /// As [`Matrix::read_at`]; `Io` where there is no memory for them.
    pub(super) fn into_bytes(self) -> Result<Vec<u8>> {
        let len = self.size_bytes();
        if let Blocks::Read(bytes) = self.blocks {
            return Ok(bytes);
        }
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| out_of_memory())?;
        while bytes.len() < len {
            // Zeros that are still in the cache when they are overwritten.
            let at = bytes.len();
            bytes.resize(len.min(at + READ_BYTES), 0);
            self.read_at(&mut bytes[at..], at)?;
        }
        Ok(bytes)
    }

    /// The matrix with its blocks here.
    ///
    /// # Errors
    /// As [`Matrix::read_at`]; `Io` where there is no memory.
    pub(super) fn read(self) -> Result<Matrix<'static>> {
        let Matrix { format, n_rows, n_cols, .. } = self;
        Ok(Matrix { format, n_rows, n_cols, blocks: Blocks::Read(self.into_bytes()?) })
    }
}
