//! Finished blocks in a file of their own, as tensors beside those of the source: the pipeline copies them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::plan::{Origin, Plan};
use crate::quant::Format;
use crate::source::{InputFile, SourceTensor, TensorSource};

/// A source and the blocks that were made from it.
#[derive(Debug)]
pub struct Overlay {
    tensors: Vec<SourceTensor>,
    files: Vec<InputFile>,
}

impl TensorSource for Overlay {
    fn tensors(&self) -> &[SourceTensor] {
        &self.tensors
    }

    fn files(&self) -> &[InputFile] {
        &self.files
    }
}

/// Blocks while they are made. The file has no name, so it is gone with the process.
#[derive(Debug)]
pub(super) struct BlockFile {
    file: File,
    /// What errors call it.
    path: PathBuf,
    len_bytes: u64,
    /// Index of the tensor in the source, format, offset.
    made: Vec<(usize, Format, u64)>,
}

impl BlockFile {
    /// In `folder`, where there must be room for what is made.
    ///
    /// # Errors
    /// `Io`.
    pub fn create(folder: &Path) -> Result<BlockFile> {
        let path = folder.join("calibrated blocks");
        let file = tempfile::tempfile_in(folder).map_err(|e| Error::io(folder, "create a file in", e))?;
        Ok(BlockFile { file, path, len_bytes: 0, made: Vec::new() })
    }

    /// Adds the blocks of a tensor.
    ///
    /// # Errors
    /// `Io`.
    pub fn push(&mut self, tensor: usize, format: Format, blocks: &[u8]) -> Result<()> {
        self.file.write_all_at(blocks, self.len_bytes).map_err(|e| Error::io(&self.path, "write", e))?;
        self.made.push((tensor, format, self.len_bytes));
        self.len_bytes += blocks.len() as u64;
        Ok(())
    }

    /// The source with the blocks, and a plan that takes them.
    ///
    /// # Errors
    /// `Io`.
    pub fn finish(self, source: &dyn TensorSource, plan: &mut Plan) -> Result<Overlay> {
        source.files().iter().try_for_each(InputFile::check_unchanged)?;
        let mut files = source.files().to_vec();
        let mut tensors = source.tensors().to_vec();
        for (tensor, format, offset_bytes) in &self.made {
            let SourceTensor { name, shape, .. } = tensors[*tensor].clone();
            let size_bytes = format.tensor_bytes(&shape).map_err(|_| Error::Internal(format!("{name}: blocks without a size")))?;
            for planned in plan.outputs.iter_mut().flat_map(|output| &mut output.tensors) {
                if planned.format == *format && planned.origin == Origin::copy(*tensor, &shape) {
                    planned.origin = Origin::copy(tensors.len(), &shape);
                    planned.importance = None;
                }
            }
            tensors.push(SourceTensor { name, format: *format, shape, file: files.len(), offset_bytes: *offset_bytes, size_bytes });
        }
        files.push(InputFile::new(self.path, self.file)?);
        Ok(Overlay { tensors, files })
    }
}
