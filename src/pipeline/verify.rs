//! Reads back what was written, through the same reader that everybody uses, before the output gets its name.

use std::os::unix::fs::FileExt;

use crate::error::{Error, Result};
use crate::gguf::{self, Limits};
use crate::source::InputFile;

use super::shards::PlannedFile;
use super::sink::Sink;

/// Compares the header on disk with the planned one, and what a reader makes of it with the plan.
///
/// # Errors
/// `Internal` for any difference: the file must not get its name.
pub(super) fn verify(file: &PlannedFile, sink: &Sink) -> Result<()> {
    let wrong = |what: &str| Error::Internal(format!("{}: read back after writing: {what}", file.path.display()));
    let mut header = vec![0; file.layout.header.len()];
    sink.file().read_exact_at(&mut header, 0).map_err(|e| Error::io(&file.path, "read back", e))?;
    if header != file.layout.header {
        return Err(wrong("the header differs from what was written"));
    }

    let copy = sink.file().try_clone().map_err(|e| Error::io(&file.path, "read back", e))?;
    let input = InputFile::new(&file.path, copy)?;
    let read = gguf::File::header_of(&input, &Limits::NONE).map_err(|e| match e {
        // The machine is at fault, not what was written.
        Error::Io { .. } => e,
        other => wrong(&other.to_string()),
    })?;
    if input.size_bytes() != file.layout.file_bytes || read.n_tensors() != file.header.tensors.len() {
        return Err(wrong("the size or the number of tensors differs from the plan"));
    }
    let places = file.layout.offsets_bytes.iter().zip(&file.layout.sizes_bytes);
    for ((spec, (&offset_bytes, &size_bytes)), found) in file.header.tensors.iter().zip(places).zip(read.tensors()) {
        let planned =
            gguf::TensorInfo { name: &spec.name, format: spec.format, shape: spec.shape.clone(), offset_bytes, size_bytes };
        if found != planned {
            return Err(wrong(&format!("{found:?} where {planned:?} was planned")));
        }
    }
    Ok(())
}
