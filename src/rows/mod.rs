//! Where the rows of an output tensor come from, and reading them: the one meaning of an [`Origin`], for all who read weights of a source.
//!
//! ```text
//! output rows ──> parts, one below the other ──> runs of neighbouring source rows ──> pread ──> f32 ──> edit
//!                                         ├────> whole rows, one by one ─────────────> pread ──> f32 ──> columns picked ──> edit
//!                                         └────> strips of a transposed source ──────> pread ──> f32 ──> turned ──> edit
//! ```
//!
//! Any rows can be asked for in any order; nothing is held but what is asked for, and for a transposed source the same once more.
//! Knows no names of models and no output: who asks decides how many rows at a time.

mod origin;

use std::ops::Range;

use crate::error::{Error, Result};
use crate::quant::Format;
use crate::simd::Level;
use crate::source::{InputFile, SourceTensor, TensorSource};

pub use origin::{ColumnMap, Edit, Origin, Part, RowMap};

/// Bytes of a row of a transposed source that are worth a read of their own.
const STRIP_BYTES: u64 = 1024;
/// Side of the square in which weights are turned: a cache line of each of 16 rows.
const TILE: usize = 16;

/// An origin together with the source it was planned for, checked: no row lies outside its tensor.
#[derive(Debug)]
pub struct Rows<'a> {
    from: Made<'a>,
    n_rows: u64,
    row_len: u64,
}

#[derive(Debug)]
enum Made<'a> {
    Parts(Vec<Bound<'a>>),
    Computed(&'a [f32]),
}

/// A part with its tensor.
#[derive(Debug)]
struct Bound<'a> {
    part: Part,
    /// Of the output: where the part begins.
    first_row: u64,
    tensor: &'a SourceTensor,
    file: &'a InputFile,
}

/// An element's place in the source.
#[derive(Debug, Clone, Copy)]
pub struct Origins<'a> {
    /// The file that holds it.
    pub file: &'a InputFile,
    /// Its tensor.
    pub tensor: &'a SourceTensor,
    /// Its row there, all leading dimensions flattened.
    pub row: u64,
    /// Its column there.
    pub column: u64,
}

/// Working memory of a reader, reused from call to call.
#[derive(Debug, Default)]
pub struct Buffers {
    bytes: Vec<u8>,
    strips: Vec<f32>,
}

impl Buffers {
    /// Makes room for `n_rows` at a time; `None` when the memory cannot be had.
    pub fn reserve(&mut self, rows: &Rows<'_>, n_rows: u64) -> Option<()> {
        let Made::Parts(parts) = &rows.from else { return Some(()) };
        for bound in parts {
            let n_bytes = usize::try_from(bound.bytes(rows.row_len).checked_mul(n_rows)?).ok()?;
            self.bytes.try_reserve(n_bytes.saturating_sub(self.bytes.len())).ok()?;
            if bound.part.columns != ColumnMap::Same {
                let n_weights = usize::try_from(rows.row_len).ok()?;
                self.strips.try_reserve(n_weights.saturating_sub(self.strips.len())).ok()?;
            }
            if let RowMap::Columns { step, .. } = bound.part.rows {
                let n_weights = usize::try_from(rows.row_len.checked_mul(n_rows)?.checked_mul(step)?).ok()?;
                self.bytes
                    .try_reserve(n_weights.checked_mul(bound.tensor.format.block_bytes())?.saturating_sub(self.bytes.len()))
                    .ok()?;
                self.strips.try_reserve(n_weights.saturating_sub(self.strips.len())).ok()?;
            }
        }
        Some(())
    }
}

impl<'a> Rows<'a> {
    /// Looks up and checks every part. `shape`: row-major, of the output.
    ///
    /// # Errors
    /// `Internal` for an origin that does not fit `shape` or `source`: it was planned for another.
    pub fn new(name: &str, shape: &[u64], origin: &'a Origin, source: &'a dyn TensorSource) -> Result<Rows<'a>> {
        Rows::checked(name, origin.rows(shape), origin, source)
    }

    /// The same, but a vector that is one row may be divided into rows of one, to go beside another that is: see [`Origin::rows`].
    ///
    /// # Errors
    /// As [`Rows::new`].
    pub fn divided(name: &str, rows: (u64, u64), origin: &'a Origin, source: &'a dyn TensorSource) -> Result<Rows<'a>> {
        match origin {
            Origin::Parts(parts) if parts.len() == 1 && parts[0].n_rows == 1 && rows.1 == 1 => {
                let part = Part { n_rows: rows.0, ..parts[0] };
                Rows::bound(name, rows, &[part], source)
            }
            _ => Rows::checked(name, rows, origin, source),
        }
    }

    /// All of a tensor, as it is, in rows of this number and length.
    ///
    /// # Errors
    /// As [`Rows::new`].
    pub fn whole(name: &str, rows: (u64, u64), tensor: usize, source: &'a dyn TensorSource) -> Result<Rows<'a>> {
        let part = Part { tensor, n_rows: rows.0, rows: RowMap::Range { first: 0 }, columns: ColumnMap::Same, edit: Edit::Same };
        Rows::bound(name, rows, &[part], source)
    }

    fn checked(name: &str, rows: (u64, u64), origin: &'a Origin, source: &'a dyn TensorSource) -> Result<Rows<'a>> {
        let (n_rows, row_len) = rows;
        match origin {
            Origin::Parts(parts) => Rows::bound(name, rows, parts, source),
            Origin::Computed(weights) if n_rows.checked_mul(row_len) == Some(weights.len() as u64) => {
                Ok(Rows { from: Made::Computed(weights), n_rows, row_len })
            }
            Origin::Computed(_) => Err(contradiction(name, "has another number of weights than its origin")),
        }
    }

    fn bound(name: &str, rows: (u64, u64), parts: &[Part], source: &'a dyn TensorSource) -> Result<Rows<'a>> {
        let (n_rows, row_len) = rows;
        let mut bound = Vec::with_capacity(parts.len());
        let mut first_row: u64 = 0;
        for part in parts {
            let tensor = source.tensors().get(part.tensor).ok_or_else(|| contradiction(name, "names no tensor of the source"))?;
            let file = source.files().get(tensor.file).ok_or_else(|| contradiction(name, "names no file of the source"))?;
            if !fits(part, tensor, row_len) {
                return Err(contradiction(name, "has another shape than the source"));
            }
            bound.push(Bound { part: *part, first_row, tensor, file });
            first_row = first_row.checked_add(part.n_rows).ok_or_else(|| contradiction(name, "has too many rows"))?;
        }
        match first_row == n_rows && !bound.is_empty() {
            true => Ok(Rows { from: Made::Parts(bound), n_rows, row_len }),
            false => Err(contradiction(name, "has another number of rows than its origin")),
        }
    }

    /// All leading dimensions flattened.
    pub fn n_rows(&self) -> u64 {
        self.n_rows
    }

    /// Weights of a row.
    pub fn row_len(&self) -> u64 {
        self.row_len
    }

    /// The format in which the source has the rows just as they are wanted; `None` where they have to be made: computed, edited, turned, or
    /// put together from several formats.
    pub fn stored(&self) -> Option<Format> {
        let Made::Parts(parts) = &self.from else { return None };
        let format = parts[0].tensor.format;
        let as_it_is = |Bound { part, tensor, .. }: &Bound| {
            let is_moved = matches!(part.rows, RowMap::Columns { .. }) || part.columns != ColumnMap::Same;
            part.edit == Edit::Same && !is_moved && tensor.format == format
        };
        parts.iter().all(as_it_is).then_some(format)
    }

    /// The format of what is read; F32 for what is computed.
    pub fn format(&self) -> Format {
        match &self.from {
            Made::Parts(parts) => parts[0].tensor.format,
            Made::Computed(_) => Format::F32,
        }
    }

    /// True where every weight can be had as a float.
    pub fn can_dequantize(&self) -> bool {
        match &self.from {
            Made::Parts(parts) => parts.iter().all(|bound| bound.tensor.format.can_dequantize()),
            Made::Computed(_) => true,
        }
    }

    /// Bytes of the source that some rows need.
    pub fn source_bytes(&self, rows: Range<u64>) -> u64 {
        let parts = match &self.from {
            Made::Parts(parts) => parts,
            Made::Computed(weights) => return size_of_val(*weights) as u64 / self.n_rows.max(1) * (rows.end - rows.start),
        };
        let of_part = |bound: &Bound| {
            let n_rows = rows.end.min(bound.first_row + bound.part.n_rows).saturating_sub(rows.start.max(bound.first_row));
            bound.bytes(self.row_len) * n_rows
        };
        parts.iter().map(of_part).sum()
    }

    /// Working memory that reading one row needs: its bytes and its weights, twice where columns change their places, those of a transposed
    /// source once more with what lies between.
    pub fn row_memory_bytes(&self) -> u64 {
        let floats = self.row_len.saturating_mul(4);
        let Made::Parts(parts) = &self.from else { return floats };
        let of_part = |bound: &Bound| {
            let bytes = bound.bytes(self.row_len);
            match bound.part.rows {
                RowMap::Columns { step, .. } => bytes.saturating_add(floats).saturating_mul(step),
                _ if bound.part.columns != ColumnMap::Same => bytes.saturating_add(floats),
                _ => bytes,
            }
        };
        parts.iter().map(of_part).max().unwrap_or(0).saturating_add(floats)
    }

    /// How many rows at a time are worth reading: more than one where each read is a part of many rows.
    pub fn rows_at_once(&self) -> u64 {
        let Made::Parts(parts) = &self.from else { return 1 };
        let of_part = |bound: &Bound| match bound.part.rows {
            RowMap::Columns { step, .. } => (STRIP_BYTES / bound.tensor.format.block_bytes() as u64 / step).max(1),
            _ => 1,
        };
        parts.iter().map(of_part).max().unwrap_or(1)
    }

    /// Where the first byte lies: the index of the file, and the offset in it. Reading in this order goes through each file once.
    pub fn first_byte(&self) -> (usize, u64) {
        match &self.from {
            Made::Parts(parts) => (parts[0].tensor.file, parts[0].tensor.offset_bytes),
            Made::Computed(_) => (0, 0),
        }
    }

    /// Where an element comes from; `None` for what is computed.
    pub fn locate(&self, row: u64, column: u64) -> Option<Origins<'a>> {
        let Made::Parts(parts) = &self.from else { return None };
        let bound = &parts[parts.partition_point(|bound| bound.first_row + bound.part.n_rows <= row)];
        let source_row = bound.part.source_row(row - bound.first_row);
        let (row, column) = match bound.part.rows {
            RowMap::Columns { matrix, .. } => (matrix * self.row_len + column, source_row),
            _ => (source_row, bound.part.source_column(column)),
        };
        Some(Origins { file: bound.file, tensor: bound.tensor, row, column })
    }

    /// The bytes of some columns of some rows, as they are stored: see [`Rows::stored`]. Columns start and end with whole blocks.
    ///
    /// # Errors
    /// `Io`, `Malformed` where the file has become shorter.
    ///
    /// # Panics
    /// When `out` has not the size of the rows.
    pub fn read_stored(&self, rows: Range<u64>, columns: Range<u64>, out: &mut [u8]) -> Result<()> {
        let mut out = out;
        for (bound, rows) in self.within(&rows) {
            let n_bytes = size(bound.tensor.format, columns.end - columns.start) * (rows.end - rows.start);
            let (now, later) = out.split_at_mut(n_bytes as usize);
            bound.read(rows, &columns, self.row_len, now)?;
            out = later;
        }
        assert!(out.is_empty(), "more room than rows");
        Ok(())
    }

    /// Fills `out` with the weights of some columns of some rows, row-major. What is not finite is left for the caller to find.
    ///
    /// # Errors
    /// As [`Rows::read_stored`].
    ///
    /// # Panics
    /// When `out` has not the size of the rows.
    pub fn read(&self, level: Level, rows: Range<u64>, columns: Range<u64>, buffers: &mut Buffers, out: &mut [f32]) -> Result<()> {
        let n_columns = columns.end - columns.start;
        assert_eq!(out.len() as u64, (rows.end - rows.start) * n_columns, "rows and room");
        if let Made::Computed(weights) = self.from {
            for (row, out) in rows.zip(out.chunks_exact_mut(n_columns as usize)) {
                out.copy_from_slice(&weights[(row * self.row_len + columns.start) as usize..][..n_columns as usize]);
            }
            return Ok(());
        }
        let mut out = out;
        for (bound, rows) in self.within(&rows) {
            let (now, later) = out.split_at_mut(((rows.end - rows.start) * n_columns) as usize);
            match bound.part.rows {
                RowMap::Columns { matrix, first, step } => {
                    let strips =
                        Strips { first_row: matrix * self.row_len + columns.start, first: first + rows.start * step, step };
                    bound.read_turned(level, strips, ((rows.end - rows.start) as usize, n_columns as usize), buffers, now)?;
                }
                _ if bound.part.columns != ColumnMap::Same => {
                    bound.read_gathered(level, rows, &columns, self.row_len, buffers, now)?;
                }
                _ => {
                    let n_bytes = size(bound.tensor.format, n_columns) * (rows.end - rows.start);
                    buffers.bytes.resize(n_bytes as usize, 0);
                    bound.read(rows, &columns, self.row_len, &mut buffers.bytes)?;
                    bound.tensor.format.dequantize(level, &buffers.bytes, now);
                }
            }
            match bound.part.edit {
                Edit::Same => {}
                Edit::AddOne => now.iter_mut().for_each(|x| *x += 1.0),
                Edit::NegExp => now.iter_mut().for_each(|x| *x = -libm::exp(f64::from(*x)) as f32),
            }
            out = later;
        }
        Ok(())
    }

    /// The parts that some rows lie in, with their rows in each, counted from its first.
    fn within(&self, rows: &Range<u64>) -> impl Iterator<Item = (&Bound<'a>, Range<u64>)> {
        let parts = match &self.from {
            Made::Parts(parts) => parts.as_slice(),
            Made::Computed(_) => &[],
        };
        let Range { start, end } = *rows;
        let first = parts.partition_point(|bound| bound.first_row + bound.part.n_rows <= start);
        parts[first..].iter().take_while(move |bound| bound.first_row < end).map(move |bound| {
            let begin = start.max(bound.first_row) - bound.first_row;
            (bound, begin..(end - bound.first_row).min(bound.part.n_rows))
        })
    }
}

fn contradiction(name: &str, what: &str) -> Error {
    Error::Internal(format!("{name}: the plan {what}"))
}

/// True when the part's rows are rows of the tensor, of `row_len` weights.
fn fits(part: &Part, tensor: &SourceTensor, row_len: u64) -> bool {
    let n_weights = tensor.shape.iter().try_fold(1, |n: u64, &dim| n.checked_mul(dim));
    let Some(n_rows) = n_weights.filter(|_| row_len > 0).filter(|n| n.is_multiple_of(row_len)).map(|n| n / row_len) else {
        return false;
    };
    let RowMap::Columns { matrix, .. } = part.rows else {
        let has_rows = tensor.format.row_bytes(row_len).and_then(|bytes| bytes.checked_mul(n_rows)) == Some(tensor.size_bytes);
        let is_as_it_is = part.edit == Edit::Same && part.columns == ColumnMap::Same;
        return has_rows && (is_as_it_is || tensor.format.can_dequantize()) && part.fits(n_rows, row_len);
    };
    // A column of whole weights can be picked out of a row, one of blocks cannot.
    let [matrices @ .., height, width] = &tensor.shape[..] else { return false };
    let is_within = *height == row_len && matrix < matrices.iter().product();
    is_within && tensor.format.block_len() == 1 && tensor.format.can_dequantize() && part.fits(*width, row_len)
}

fn size(format: Format, n_weights: u64) -> u64 {
    format.row_bytes(n_weights).expect("whole blocks, as was checked")
}

impl Bound<'_> {
    /// Bytes of the source that one row needs.
    fn bytes(&self, row_len: u64) -> u64 {
        size(self.tensor.format, row_len)
    }

    /// Reads rows of the part as they are stored; those that are neighbours in the source together.
    fn read(&self, rows: Range<u64>, columns: &Range<u64>, row_len: u64, out: &mut [u8]) -> Result<()> {
        let format = self.tensor.format;
        if let RowMap::Elements { step, .. } = self.part.rows {
            return self.read_elements(rows, step, out);
        }
        let (row_bytes, wanted_bytes) = (size(format, row_len), size(format, columns.end - columns.start));
        let mut out = out;
        let mut row = rows.start;
        while row < rows.end {
            // Rows that are wanted in part have gaps between them.
            let n_rows = if wanted_bytes == row_bytes { self.part.run(row).min(rows.end - row) } else { 1 };
            let (now, later) = out.split_at_mut((n_rows * wanted_bytes) as usize);
            let offset_bytes = self.part.source_row(row) * row_bytes + size(format, columns.start);
            self.file.read_exact_at(now, self.tensor.offset_bytes + offset_bytes)?;
            out = later;
            row += n_rows;
        }
        Ok(())
    }

    /// Reads elements that have others between them, with these: far more bytes than calls.
    fn read_elements(&self, rows: Range<u64>, step: u64, out: &mut [u8]) -> Result<()> {
        let n_bytes = self.tensor.format.block_bytes();
        let Some(last) = (rows.end - rows.start).checked_sub(1) else { return Ok(()) };
        let mut all = vec![0; (last * step + 1) as usize * n_bytes];
        self.file.read_exact_at(&mut all, self.tensor.offset_bytes + self.part.source_row(rows.start) * n_bytes as u64)?;
        for (element, out) in all.chunks(n_bytes * step as usize).zip(out.chunks_exact_mut(n_bytes)) {
            out.copy_from_slice(&element[..n_bytes]);
        }
        Ok(())
    }

    /// Reads whole rows, one at a time, and picks columns out of them.
    fn read_gathered(
        &self,
        level: Level,
        rows: Range<u64>,
        columns: &Range<u64>,
        row_len: u64,
        buffers: &mut Buffers,
        out: &mut [f32],
    ) -> Result<()> {
        buffers.bytes.resize(self.bytes(row_len) as usize, 0);
        buffers.strips.resize(row_len as usize, 0.0);
        for (row, out) in rows.zip(out.chunks_exact_mut((columns.end - columns.start) as usize)) {
            self.read(row..row + 1, &(0..row_len), row_len, &mut buffers.bytes)?;
            self.tensor.format.dequantize(level, &buffers.bytes, &mut buffers.strips);
            for (column, out) in columns.clone().zip(out) {
                *out = buffers.strips[self.part.source_column(column) as usize];
            }
        }
        Ok(())
    }

    /// Reads `n_rows` columns of `n_columns` source rows, strip by strip, and turns them.
    fn read_turned(
        &self,
        level: Level,
        strips: Strips,
        (n_rows, n_columns): (usize, usize),
        buffers: &mut Buffers,
        out: &mut [f32],
    ) -> Result<()> {
        let Strips { first_row, first, step } = strips;
        if n_rows == 0 || n_columns == 0 {
            return Ok(());
        }
        let element_bytes = self.tensor.format.block_bytes() as u64;
        let width = self.tensor.shape.last().copied().unwrap_or(1);
        let strip_len = (n_rows - 1) * step as usize + 1;
        buffers.bytes.resize(strip_len * element_bytes as usize * n_columns, 0);
        buffers.strips.resize(strip_len * n_columns, 0.0);
        let offset_bytes = |row: u64| self.tensor.offset_bytes + (row * width + first) * element_bytes;
        // Where all is wanted, the strips are one.
        if strip_len as u64 == width {
            self.file.read_exact_at(&mut buffers.bytes, offset_bytes(first_row))?;
        } else {
            for (row, strip) in (first_row..).zip(buffers.bytes.chunks_exact_mut(strip_len * element_bytes as usize)) {
                self.file.read_exact_at(strip, offset_bytes(row))?;
            }
        }
        self.tensor.format.dequantize(level, &buffers.bytes, &mut buffers.strips);
        transpose(&buffers.strips, strip_len, step as usize, out);
        Ok(())
    }
}

/// Where strips of a transposed source begin.
#[derive(Debug, Clone, Copy)]
struct Strips {
    /// Of the source, of the first.
    first_row: u64,
    /// Of the source, of each.
    first: u64,
    /// From a column that is wanted to the next.
    step: u64,
}

/// `turned[j * n + i] = matrix[i * n_cols + j * step]`, with `n` rows of the matrix.
fn transpose(matrix: &[f32], n_cols: usize, step: usize, turned: &mut [f32]) {
    let n_rows = matrix.len() / n_cols.max(1);
    let n_wanted = n_cols.div_ceil(step);
    for first_row in (0..n_rows).step_by(TILE) {
        let rows = first_row..(first_row + TILE).min(n_rows);
        for first_col in (0..n_wanted).step_by(TILE) {
            for col in first_col..(first_col + TILE).min(n_wanted) {
                let into = &mut turned[col * n_rows..][rows.clone()];
                for (row, into) in rows.clone().zip(into) {
                    *into = matrix[row * n_cols + col * step];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
