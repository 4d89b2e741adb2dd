//! Bytes of a matrix file, wherever they are.

use std::path::Path;

use byteorder::{ByteOrder, LittleEndian};

use crate::error::{Error, Fault, Place, Result};
use crate::source::InputFile;

/// What is to be read.
pub(super) enum Content<'a> {
    File(&'a InputFile),
    Bytes { path: &'a Path, bytes: &'a [u8] },
}

/// Bytes read at once on the way to f32.
const BATCH_BYTES: usize = 64 << 10;

impl Content<'_> {
    pub fn path(&self) -> &Path {
        match self {
            Content::File(file) => file.path(),
            Content::Bytes { path, .. } => path,
        }
    }

    pub fn size_bytes(&self) -> u64 {
        match self {
            Content::File(file) => file.size_bytes(),
            Content::Bytes { bytes, .. } => bytes.len() as u64,
        }
    }

    /// Fills `out` from `offset_bytes` on.
    pub fn read_exact_at(&self, out: &mut [u8], offset_bytes: u64) -> Result<()> {
        match self {
            Content::File(file) => file.read_exact_at(out, offset_bytes),
            Content::Bytes { path, bytes } => {
                let start = usize::try_from(offset_bytes).ok();
                match start.and_then(|start| bytes.get(start..)?.get(..out.len())) {
                    Some(found) => {
                        out.copy_from_slice(found);
                        Ok(())
                    }
                    None => Err(Error::malformed(*path, Place::Byte(offset_bytes), Fault::Truncated, "the file ends here")),
                }
            }
        }
    }

    /// `n` little-endian f32 from `offset_bytes` on. The caller has checked that the file holds them.
    pub fn read_f32(&self, n: usize, offset_bytes: u64) -> Result<Vec<f32>> {
        let mut values = vec![0.0; n];
        let mut buffer = [0; BATCH_BYTES];
        let mut at = offset_bytes;
        for batch in values.chunks_mut(BATCH_BYTES / size_of::<f32>()) {
            let bytes = &mut buffer[..size_of_val(batch)];
            self.read_exact_at(bytes, at)?;
            LittleEndian::read_f32_into(bytes, batch);
            at += bytes.len() as u64;
        }
        Ok(values)
    }
}
