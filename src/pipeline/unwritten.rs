//! A planned file that is read without having been written: every byte is made when it is asked for.
//!
//! So a model folder can be run, or compared with others, as the file that it would become, and nothing is written: whoever reads files by
//! position reads this one alike. Reading a tensor again makes it again.

use std::ops::Range;

use crate::error::{Error, Fault, Place, Result};
use crate::gguf::Layout;
use crate::hf::Folder;
use crate::memory::{out_of_memory, reserve};
use crate::plan::{OutputPlan, PlannedTensor};
use crate::rows::{Buffers, Rows};
use crate::simd::Level;
use crate::source::{InputFile, MadeBytes, TensorSource};

use super::shards::header;

/// Weights that are made at a time, unless a row has more.
const PIECE_WEIGHTS: u64 = 1 << 18;

/// An output of a plan for a folder, and where everything of it would lie.
#[derive(Debug)]
struct Unwritten {
    folder: Folder,
    tensors: Vec<PlannedTensor>,
    layout: Layout,
}

/// The output as a file that is open already; messages call it what the folder is called.
///
/// # Errors
/// `Usage` for an output that cannot be laid out; `Internal` for one that was planned for another folder; `Unsupported` for one with formats
/// that weights are searched for, which would take as long for every reading; `Io`.
pub fn unwritten(folder: Folder, output: OutputPlan) -> Result<InputFile> {
    let layout = header(&output).layout()?;
    for tensor in &output.tensors {
        let rows = Rows::new(&tensor.name, &tensor.shape, &tensor.origin, &folder)?;
        if rows.stored() != Some(tensor.format) && tensor.format.block_len() > 1 {
            let what = format!("{}: reading it as {} without writing a file", tensor.name, tensor.format);
            return Err(Error::unsupported(what, "convert the folder to a file first"));
        }
    }
    let (path, size_bytes) = (folder.path().to_owned(), layout.file_bytes);
    InputFile::made(path, size_bytes, Box::new(Unwritten { folder, tensors: output.tensors, layout }))
}

impl MadeBytes for Unwritten {
    fn read_exact_at(&self, bytes: &mut [u8], offset_bytes: u64) -> Result<()> {
        let (mut rest, mut at) = (bytes, offset_bytes);
        while !rest.is_empty() {
            let n_made = self.make(rest, at)?;
            rest = &mut rest[n_made..];
            at += n_made as u64;
        }
        Ok(())
    }

    fn check_unchanged(&self) -> Result<()> {
        self.folder.files().iter().try_for_each(InputFile::check_unchanged)
    }
}

impl Unwritten {
    /// Fills the begin of `out` with what lies at `at`; returns how much of it.
    fn make(&self, out: &mut [u8], at: u64) -> Result<usize> {
        let Layout { header, offsets_bytes, sizes_bytes, file_bytes } = &self.layout;
        let until = |end: u64| usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX).min(out.len());
        if let Some(rest) = usize::try_from(at).ok().and_then(|at| header.get(at..)).filter(|rest| !rest.is_empty()) {
            let n = rest.len().min(out.len());
            out[..n].copy_from_slice(&rest[..n]);
            return Ok(n);
        }
        let next = offsets_bytes.partition_point(|offset_bytes| *offset_bytes <= at);
        let begin = next.checked_sub(1).map_or(at, |index| offsets_bytes[index]);
        let size_bytes = next.checked_sub(1).map_or(0, |index| sizes_bytes[index]);
        if at - begin < size_bytes {
            let n = until(begin + size_bytes);
            self.weights(&self.tensors[next - 1], at - begin, &mut out[..n])?;
            return Ok(n);
        }
        match until(offsets_bytes.get(next).copied().unwrap_or(*file_bytes)) {
            0 => Err(Error::Internal(format!("byte {at} of an output of {file_bytes} bytes was read"))),
            padding => {
                out[..padding].fill(0);
                Ok(padding)
            }
        }
    }

    /// Fills `out` with the bytes of a tensor from `first_byte` on.
    fn weights(&self, tensor: &PlannedTensor, first_byte: u64, out: &mut [u8]) -> Result<()> {
        let rows = Rows::new(&tensor.name, &tensor.shape, &tensor.origin, &self.folder)?;
        let row_bytes = tensor.format.row_bytes(rows.row_len()).filter(|bytes| *bytes > 0).expect("a layout of whole rows");
        let n_rows = (PIECE_WEIGHTS / rows.row_len().max(1)).max(1);
        let mut buffers = Room::default();
        let (mut rest, mut at) = (out, first_byte);
        while !rest.is_empty() {
            let first = at / row_bytes;
            let last = (first + n_rows).min((at + rest.len() as u64).div_ceil(row_bytes));
            let made = buffers.make(tensor, &rows, first..last)?;
            let made = &made[(at - first * row_bytes) as usize..];
            let n = made.len().min(rest.len());
            let (now, later) = rest.split_at_mut(n);
            now.copy_from_slice(&made[..n]);
            rest = later;
            at += n as u64;
        }
        Ok(())
    }
}

/// Working memory of one reading.
#[derive(Default)]
struct Room {
    bytes: Vec<u8>,
    weights: Vec<f32>,
    reader: Buffers,
}

impl Room {
    /// Some rows as the file would have them.
    fn make(&mut self, tensor: &PlannedTensor, rows: &Rows<'_>, range: Range<u64>) -> Result<&[u8]> {
        let (n_rows, row_len) = (range.end - range.start, rows.row_len());
        let n_bytes = tensor.format.row_bytes(row_len).and_then(|bytes| bytes.checked_mul(n_rows));
        grow(&mut self.bytes, n_bytes)?;
        if rows.stored() == Some(tensor.format) {
            rows.read_stored(range, 0..row_len, &mut self.bytes)?;
            return Ok(&self.bytes);
        }
        grow(&mut self.weights, row_len.checked_mul(n_rows))?;
        self.reader.reserve(rows, n_rows).ok_or_else(out_of_memory)?;
        let first = range.start;
        rows.read(Level::detect(), range, 0..row_len, &mut self.reader, &mut self.weights)?;
        let made = tensor.format.quantize_rows(Level::detect(), &self.weights, row_len as usize, None, &mut self.bytes);
        match made {
            Ok(()) => Ok(&self.bytes),
            Err(fault) => {
                let (row, column) = (first + fault.index as u64 / row_len, fault.index as u64 % row_len);
                let Some(origin) = rows.locate(row, column) else {
                    return Err(Error::Internal(format!("{}: a computed weight is {}", tensor.name, fault.value)));
                };
                let place = Place::Weight { tensor: origin.tensor.name.clone(), row: origin.row, column: origin.column };
                let detail = format!("{} is not a number that {} can hold", fault.value, tensor.format);
                let kind = if fault.value.is_finite() { Fault::ScaleOverflow } else { Fault::NonFinite };
                Err(Error::malformed(origin.file.path(), place, kind, detail))
            }
        }
    }
}

/// Makes it so long; what is in it does not matter.
fn grow<T: Clone + Default>(buffer: &mut Vec<T>, len: Option<u64>) -> Result<()> {
    let len = len.and_then(|len| usize::try_from(len).ok()).ok_or_else(out_of_memory)?;
    reserve(buffer, len)?;
    buffer.resize(len, T::default());
    Ok(())
}
