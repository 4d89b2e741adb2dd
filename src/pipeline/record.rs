//! What was written to a file, with checksums, for [`super::readback`] to compare.

use std::sync::{Mutex, PoisonError};

/// What was written where.
#[derive(Debug, Default)]
pub(super) struct Record(Mutex<Vec<Stretch>>);

/// Bytes that were written by one call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stretch {
    pub offset_bytes: u64,
    pub size_bytes: u64,
    pub crc: u32,
}

impl Record {
    pub(super) fn add(&self, bytes: &[u8], offset_bytes: u64) {
        let stretch = Stretch { offset_bytes, size_bytes: bytes.len() as u64, crc: crc32fast::hash(bytes) };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(stretch);
    }

    /// In the order of the file.
    pub(super) fn stretches(&self) -> Vec<Stretch> {
        let mut stretches = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        stretches.sort_by_key(|stretch| stretch.offset_bytes);
        stretches
    }
}
