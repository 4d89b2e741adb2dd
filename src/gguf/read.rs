//! One GGUF file: checked when it is opened, decoded when asked.
//!
//! Opening costs one pass over the header, a copy of it and 12 bytes of heap per entry and tensor; keys, strings, arrays and tensor names
//! are views into the copy. Everything the header claims is compared with what the file holds before it is used. The header of a file
//! is read by position and only weights are seen through the mapping, so a file that is cut short meanwhile harms nobody who looks at
//! its header alone.

use std::fmt;
use std::path::{Path, PathBuf};

use memmap2::{Mmap, MmapMut};

use super::cursor::{Cursor, Head};
use super::header::{self, Index, RawTensor};
use super::limits::Limits;
use super::map::map;
use super::view::ValueRef;
use super::warning::Warning;
use super::write::MAGIC;
use crate::error::{Error, Result};
use crate::quant::Format;
use crate::source::InputFile;

/// A GGUF file of version 2 or 3, little-endian.
pub struct File<'a> {
    path: PathBuf,
    /// The first bytes of the file, the whole header among them.
    head: Bytes<'a>,
    data: Bytes<'a>,
    /// Where it begins in the file at `path`: not at 0 where files were joined.
    begins_at: u64,
    size_bytes: u64,
    limits: Limits,
    index: Index,
}

/// Which part of a file to read, and whether the data of tensors has to be in it.
#[derive(Debug, Clone, Copy)]
struct Extent {
    begins_at: u64,
    is_whole: bool,
}

/// All of a file.
const WHOLE: Extent = Extent { begins_at: 0, is_whole: true };

/// What is read at first: more than the header of most models without a vocabulary.
const HEAD_BYTES_FIRST: u64 = 256 << 10;

enum Bytes<'a> {
    Mapped(Mmap),
    Borrowed(&'a [u8]),
}

/// Where one tensor of a [`File`] lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo<'a> {
    /// The name in the file.
    pub name: &'a str,
    /// How its weights are stored.
    pub format: Format,
    /// Row-major: the last dimension is contiguous. Empty for a scalar.
    pub shape: Vec<u64>,
    /// From the start of the file.
    pub offset_bytes: u64,
    /// Without padding.
    pub size_bytes: u64,
}

impl TensorInfo<'_> {
    /// Weights in the whole tensor.
    pub fn n_weights(&self) -> u64 {
        // A file that was opened holds no tensor whose product does not fit.
        self.shape.iter().fold(1, |n: u64, &dim| n.saturating_mul(dim))
    }

    /// Weights in a row: the last dimension. 0 where the tensor holds no weights, whatever length its rows would have.
    pub fn row_len(&self) -> u64 {
        match self.n_weights() {
            0 => 0,
            _ => self.shape.last().copied().unwrap_or(1),
        }
    }
}

impl File<'static> {
    /// Opens and maps the file at `path`.
    ///
    /// # Errors
    /// `Io` and `NotRegularFile`; `Malformed` and `Limit` for everything that breaks the format's rules.
    pub fn open(path: impl AsRef<Path>) -> Result<File<'static>> {
        File::map(&InputFile::open(path.as_ref())?, &Limits::default())
    }

    /// Maps an open file.
    ///
    /// # Errors
    /// As for [`File::open`].
    pub fn map(input: &InputFile, limits: &Limits) -> Result<File<'static>> {
        let header = File::header_of(input, limits)?;
        let mapping = map(input.file()).map_err(|e| Error::io(input.path(), "map", e))?;
        Ok(File { data: Bytes::Mapped(mapping), ..header })
    }
}

impl File<'static> {
    /// As [`File::map`] but for the weights, which the file then does not give. A large file needs no address space then.
    ///
    /// # Errors
    /// As for [`File::open`].
    pub(crate) fn header_of(input: &InputFile, limits: &Limits) -> Result<File<'static>> {
        File::header_within(input, limits, WHOLE)
    }

    /// As [`File::header_of`], of a file that may end before the data of its tensors does: [`Warning::CutShort`] says so.
    ///
    /// # Errors
    /// As for [`File::open`].
    pub(super) fn header_of_cut(input: &InputFile, limits: &Limits) -> Result<File<'static>> {
        File::header_within(input, limits, Extent { is_whole: false, ..WHOLE })
    }

    /// As [`File::header_of`], of a GGUF file within another file, from byte `begins_at` on.
    ///
    /// # Errors
    /// As for [`File::open`].
    pub(super) fn header_at(input: &InputFile, limits: &Limits, begins_at: u64) -> Result<File<'static>> {
        File::header_within(input, limits, Extent { begins_at, ..WHOLE })
    }

    fn header_within(input: &InputFile, limits: &Limits, extent: Extent) -> Result<File<'static>> {
        let (head, index) = read_head(input, limits, extent)?;
        let (path, begins_at) = (input.path().to_owned(), extent.begins_at);
        let size_bytes = input.size_bytes().saturating_sub(begins_at);
        let (head, data) = (Bytes::Mapped(head), Bytes::Borrowed(&[][..]));
        Ok(File { path, head, data, begins_at, size_bytes, limits: *limits, index })
    }

    /// Where another GGUF file begins behind this one, in the same file: somebody joined them.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn followed_at(&self, input: &InputFile) -> Result<Option<u64>> {
        let end = self.begins_at.saturating_add(self.index.data_end_bytes);
        let mut magic = [0; MAGIC.len()];
        if end.saturating_add(magic.len() as u64) > input.size_bytes() {
            return Ok(None);
        }
        input.read_exact_at(&mut magic, end)?;
        Ok((magic == *MAGIC).then_some(end))
    }

    /// Leaves what follows it in the same file to another.
    pub(super) fn end_at_last_tensor(&mut self) {
        self.size_bytes = self.index.data_end_bytes;
        self.index.warnings.retain(|warning| !matches!(warning, Warning::TrailingBytes { .. }));
    }
}

/// Reads as much of a file as its header takes, and checks it.
fn read_head(input: &InputFile, limits: &Limits, extent: Extent) -> Result<(Mmap, Index)> {
    let Extent { begins_at, is_whole } = extent;
    let (path, file_bytes) = (input.path(), input.size_bytes().saturating_sub(begins_at));
    let read = |buffer: &mut [u8], at: u64| input.read_exact_at(buffer, begins_at.saturating_add(at));
    let mut bytes = memory(path, 0)?;
    let mut wanted = HEAD_BYTES_FIRST;
    loop {
        let present = bytes.len();
        let mut longer = memory(path, wanted.min(file_bytes))?;
        let (known, new) = longer.split_at_mut_checked(present).ok_or_else(|| out_of_memory(path))?;
        known.copy_from_slice(&bytes);
        read(new, present as u64)?;
        bytes = longer;
        let head = Head { is_whole, ..Head::new(path, &bytes, file_bytes) };
        let index = header::index(&head, limits, read);
        match head.missing.get() {
            0 => {
                let index = index?;
                let mut exact = memory(path, index.header_bytes)?;
                exact.iter_mut().zip(bytes.iter()).for_each(|(to, from)| *to = *from);
                return Ok((exact.make_read_only().map_err(|_| out_of_memory(path))?, index));
            }
            end if end > limits.header_bytes => {
                let what = "bytes of the header (ggforge inspect --no-limits reads it all the same)".to_owned();
                return Err(Error::Limit { path: path.to_owned(), what, limit: limits.header_bytes, found: end });
            }
            end => wanted = end.max(wanted.saturating_mul(2)),
        }
    }
}

/// Memory straight from the system, which says so where there is none, and takes back what is no longer needed.
fn memory(path: &Path, n_bytes: u64) -> Result<MmapMut> {
    let len = usize::try_from(n_bytes).map_err(|_| out_of_memory(path))?;
    MmapMut::map_anon(len).map_err(|_| out_of_memory(path))
}

fn out_of_memory(path: &Path) -> Error {
    Error::io(path, "hold the header of", std::io::ErrorKind::OutOfMemory.into())
}

impl<'a> File<'a> {
    /// Reads a file that is already in memory. `path` is only its name in errors.
    ///
    /// # Errors
    /// As for [`File::open`].
    pub fn parse(path: impl AsRef<Path>, bytes: &'a [u8]) -> Result<File<'a>> {
        File::parse_within(path, bytes, &Limits::default())
    }

    /// As [`File::parse`], with other limits.
    ///
    /// # Errors
    /// As for [`File::open`].
    pub fn parse_within(path: impl AsRef<Path>, bytes: &'a [u8], limits: &Limits) -> Result<File<'a>> {
        let (path, size_bytes) = (path.as_ref(), bytes.len() as u64);
        let head = Head::new(path, bytes, size_bytes);
        let index = header::index(&head, limits, |_, _| Ok(()))?;
        let (path, data) = (path.to_owned(), Bytes::Borrowed(bytes));
        Ok(File { path, head: Bytes::Borrowed(bytes), data, begins_at: 0, size_bytes, limits: *limits, index })
    }

    /// The path it was opened under.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// 2 or 3.
    pub fn version(&self) -> u32 {
        self.index.version
    }

    /// Alignment of tensor data.
    pub fn alignment(&self) -> u64 {
        self.index.alignment
    }

    /// Size of the file.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Size of the header without the padding behind it.
    pub fn header_bytes(&self) -> u64 {
        self.index.header_bytes
    }

    /// Where tensor data starts.
    pub fn data_offset_bytes(&self) -> u64 {
        self.index.data_offset_bytes
    }

    /// What is odd about the file.
    pub fn warnings(&self) -> &[Warning] {
        &self.index.warnings
    }

    /// Number of metadata entries.
    pub fn n_entries(&self) -> usize {
        self.index.entries.len()
    }

    /// Number of tensors.
    pub fn n_tensors(&self) -> usize {
        self.index.tensors.len()
    }

    /// Every metadata entry, in the order of the file.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, ValueRef<'_>)> {
        self.index.entries.iter().filter_map(|&at| self.entry(at))
    }

    /// The value of a metadata key.
    pub fn get(&self, key: &str) -> Option<ValueRef<'_>> {
        let at = self.find(&self.index.entries, &self.index.entries_by_key, key)?;
        self.entry(at).map(|(_, value)| value)
    }

    /// Every tensor, in the order of the file.
    pub fn tensors(&self) -> impl Iterator<Item = TensorInfo<'_>> {
        self.index.tensors.iter().filter_map(|&at| self.tensor_at(at))
    }

    /// The tensor of a name.
    pub fn tensor(&self, name: &str) -> Option<TensorInfo<'_>> {
        let at = self.find(&self.index.tensors, &self.index.tensors_by_name, name)?;
        self.tensor_at(at)
    }

    /// The stored blocks of a tensor of this file; `None` for one of another file that does not fit into this, and in a
    /// [`Model`](super::Model) that was opened without its weights.
    pub fn tensor_bytes(&self, tensor: &TensorInfo<'_>) -> Option<&[u8]> {
        let start = usize::try_from(tensor.offset_bytes).ok()?;
        let len = usize::try_from(tensor.size_bytes).ok()?;
        self.data.as_slice().get(start..)?.get(..len)
    }

    /// The stored blocks of a tensor of this file, row by row, all leading dimensions flattened. None for a tensor without weights.
    pub fn rows(&self, tensor: &TensorInfo<'_>) -> std::slice::ChunksExact<'_, u8> {
        let row_bytes = tensor.format.row_bytes(tensor.row_len()).and_then(|bytes| usize::try_from(bytes).ok());
        match (row_bytes, self.tensor_bytes(tensor)) {
            (Some(row_bytes @ 1..), Some(bytes)) => bytes.chunks_exact(row_bytes),
            _ => [].chunks_exact(1),
        }
    }

    /// Where the entry or tensor info of a name starts.
    fn find(&self, starts: &[usize], order: &[u32], name: &str) -> Option<usize> {
        let name_of = |number: u32| header::name_at(&self.path, self.head.as_slice(), starts, number);
        let found = order.binary_search_by(|&number| name_of(number).cmp(name.as_bytes())).ok()?;
        starts.get(usize::try_from(*order.get(found)?).ok()?).copied()
    }

    // Both decode what was checked before, so nothing fails here.

    fn entry(&self, at: usize) -> Option<(&str, ValueRef<'_>)> {
        header::read_entry(&mut Cursor::new(&self.path, self.head.as_slice(), at), &self.limits).ok()
    }

    fn tensor_at(&self, at: usize) -> Option<TensorInfo<'_>> {
        let raw = header::read_tensor(&mut Cursor::new(&self.path, self.head.as_slice(), at)).ok()?;
        let RawTensor { name, format, shape, offset_bytes, size_bytes } = raw;
        let offset_bytes = self.index.data_offset_bytes.checked_add(offset_bytes)?.checked_add(self.begins_at)?;
        Some(TensorInfo { name, format, shape, offset_bytes, size_bytes })
    }
}

impl Bytes<'_> {
    fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Mapped(mapping) => mapping,
            Bytes::Borrowed(bytes) => bytes,
        }
    }
}

impl fmt::Debug for File<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File")
            .field("path", &self.path)
            .field("n_entries", &self.n_entries())
            .field("n_tensors", &self.n_tensors())
            .finish_non_exhaustive()
    }
}
