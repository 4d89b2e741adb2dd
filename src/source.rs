//! What both kinds of input offer: named tensors as byte ranges of open files.
//!
//! Knows files and byte ranges; does not know safetensors, GGUF or what a tensor means. Weights are read by position (`pread`), not
//! through the mapping, so a file that shrinks while it is read gives an error instead of a signal.

use std::fmt::Debug;
use std::fs::{File, Metadata};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Fault, Place, Result};
use crate::quant::Format;

/// A set of named tensors in open files: a Hugging Face folder or a GGUF file with its shards.
pub trait TensorSource: Sync {
    /// Every tensor, in the order of the source.
    fn tensors(&self) -> &[SourceTensor];
    /// The files that [`SourceTensor::file`] points into.
    fn files(&self) -> &[InputFile];
}

/// One tensor of a source: where its bytes are and what they mean.
#[derive(Debug, Clone)]
pub struct SourceTensor {
    /// The name in the source file.
    pub name: String,
    /// How the weights are stored.
    pub format: Format,
    /// Row-major: the last dimension is contiguous. Empty for a scalar.
    pub shape: Vec<u64>,
    /// Index into [`TensorSource::files`].
    pub file: usize,
    /// From the start of that file.
    pub offset_bytes: u64,
    /// Equal to `format.tensor_bytes(&shape)`; checked when the source was opened.
    pub size_bytes: u64,
}

/// The dimensions that count, as ggml counts them: leading ones (trailing ones in GGUF's order) are left away, but for the last.
/// `[1, 64]` and `[64]` are the same vector.
pub fn significant_dims(shape: &[u64]) -> &[u64] {
    let n_ones = shape.iter().take_while(|&&dim| dim == 1).count();
    &shape[n_ones.min(shape.len().saturating_sub(1))..]
}

/// An input file and what it looked like when it was opened.
#[derive(Debug, Clone)]
pub struct InputFile {
    path: PathBuf,
    file: Arc<File>,
    opened_as: Identity,
    /// What stands for the content of the file.
    made: Option<Arc<dyn MadeBytes>>,
}

/// Bytes that are made when they are read, of what has not been written to any file.
pub trait MadeBytes: Debug + Send + Sync {
    /// Fills `bytes` from `offset_bytes` on.
    ///
    /// # Errors
    /// Whatever prevents that.
    fn read_exact_at(&self, bytes: &mut [u8], offset_bytes: u64) -> Result<()>;

    /// Checks that the same bytes would be made now.
    ///
    /// # Errors
    /// `InputChanged` where what they are made of has changed.
    fn check_unchanged(&self) -> Result<()>;
}

/// What tells whether a file is still the same file with the same content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified: (i64, i64),
    /// When anything about the file changed last; unlike the modification time, nobody can set it.
    changed: (i64, i64),
    /// What moves that time too, and no byte of the file: links, mode, owner, group.
    inode_only: (u64, u32, u32, u32),
}

impl Identity {
    fn of(metadata: &Metadata) -> Identity {
        Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            inode_only: (metadata.nlink(), metadata.mode(), metadata.uid(), metadata.gid()),
        }
    }
}

impl InputFile {
    /// Opens a file for reading.
    ///
    /// # Errors
    /// As for [`InputFile::new`].
    pub fn open(path: impl Into<PathBuf>) -> Result<InputFile> {
        let path = path.into();
        // Looked at before it is opened: opening a FIFO would wait for a writer.
        let metadata = std::fs::metadata(&path).map_err(|e| Error::io(&path, "open", e))?;
        if !metadata.is_file() {
            return Err(not_regular(&path, &metadata));
        }
        let file = File::open(&path).map_err(|e| Error::io(&path, "open", e))?;
        InputFile::new(path, file)
    }

    /// Takes over an open file.
    ///
    /// # Errors
    /// `NotRegularFile` for anything but a regular file; `Io` where the system cannot say.
    pub fn new(path: impl Into<PathBuf>, file: File) -> Result<InputFile> {
        let path = path.into();
        let metadata = file.metadata().map_err(|e| Error::io(&path, "stat", e))?;
        if !metadata.is_file() {
            return Err(not_regular(&path, &metadata));
        }
        Ok(InputFile { path, file: Arc::new(file), opened_as: Identity::of(&metadata), made: None })
    }

    /// Bytes that are made of what is in the folder at `path`, in the place of a file's.
    ///
    /// # Errors
    /// `Io` where the folder cannot be opened.
    pub fn made(path: impl Into<PathBuf>, size_bytes: u64, bytes: Box<dyn MadeBytes>) -> Result<InputFile> {
        let path = path.into();
        let file = File::open(&path).map_err(|e| Error::io(&path, "open the folder", e))?;
        let metadata = file.metadata().map_err(|e| Error::io(&path, "stat", e))?;
        let opened_as = Identity { size_bytes, ..Identity::of(&metadata) };
        Ok(InputFile { path, file: Arc::new(file), opened_as, made: Some(bytes.into()) })
    }

    /// The path it was opened under.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file; of bytes that are made, the folder.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The size when it was opened.
    pub fn size_bytes(&self) -> u64 {
        self.opened_as.size_bytes
    }

    /// Device and inode: equal for two names of one file.
    pub fn device_inode(&self) -> (u64, u64) {
        (self.opened_as.device, self.opened_as.inode)
    }

    /// Fills `bytes` from `offset_bytes` on.
    ///
    /// # Errors
    /// `InputChanged` when the file has become too short; `Io` otherwise.
    pub fn read_exact_at(&self, bytes: &mut [u8], offset_bytes: u64) -> Result<()> {
        if let Some(made) = &self.made {
            return made.read_exact_at(bytes, offset_bytes);
        }
        self.file.read_exact_at(bytes, offset_bytes).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => self.changed(format!("it ends before byte {}", offset_bytes + bytes.len() as u64)),
            _ => Error::io(&self.path, "read", e),
        })
    }

    /// # Errors
    /// `InputChanged` when size, times or identity differ from when the file was opened.
    pub fn check_unchanged(&self) -> Result<()> {
        if let Some(made) = &self.made {
            return made.check_unchanged();
        }
        let metadata = self.file.metadata().map_err(|e| Error::io(&self.path, "stat", e))?;
        let now = Identity::of(&metadata);
        if now.size_bytes != self.opened_as.size_bytes {
            return Err(self.changed(format!("its size went from {} to {} bytes", self.opened_as.size_bytes, now.size_bytes)));
        }
        if now.modified != self.opened_as.modified {
            return Err(self.changed("its modification time moved".to_owned()));
        }
        // A hard link added elsewhere, another mode or another name move this time too, and change no byte.
        let is_renamed = || std::fs::metadata(&self.path).map_or(true, |found| (found.dev(), found.ino()) != self.device_inode());
        if now.changed != self.opened_as.changed && now.inode_only == self.opened_as.inode_only && !is_renamed() {
            let detail = "it was written to and its modification time set back, or an attribute of it was set";
            return Err(self.changed(detail.to_owned()));
        }
        Ok(())
    }

    fn changed(&self, detail: String) -> Error {
        Error::InputChanged { path: self.path.clone(), detail }
    }
}
/// The refusal of what is no regular file. Folders are given by mistake most often.
fn not_regular(path: &Path, metadata: &Metadata) -> Error {
    let detail = match metadata.is_dir() {
        true if path.join("config.json").is_file() => "a model folder, not a file; `ggforge convert` makes a GGUF file of it",
        true => "a folder, not a file",
        false => "not a regular file",
    };
    Error::malformed(path, Place::File, Fault::NotRegularFile, detail)
}
