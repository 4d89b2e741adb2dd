//! One piece of work: read rows, check them, write them in every format that is wanted.

use crate::error::{Error, Fault, Place, Result};
use crate::memory::filled;
use crate::quant::{BlockFault, BlockFaultKind, Format};
use crate::rows::{self, Origins};
use crate::simd::Level;

use super::sink::Sink;
use super::work::{Job, Piece, Target, is_integer};

/// What all workers share.
pub(super) struct Bench<'a> {
    pub(super) jobs: &'a [Job<'a>],
    pub(super) sinks: &'a [Sink],
    pub(super) level: Level,
}

/// The working memory of one worker, reused from piece to piece.
#[derive(Debug)]
pub(super) struct Buffers {
    /// Rows as the source stores them, in output order.
    source: Vec<u8>,
    /// For rows that have to be made of what the source stores.
    reader: rows::Buffers,
    /// The same rows as f32.
    weights: Vec<f32>,
    /// The same rows in one target format.
    blocks: Vec<u8>,
}

impl Buffers {
    /// Room for the largest of `pieces`; `None` when the memory cannot be had.
    pub(super) fn for_largest(pieces: &[Piece], jobs: &[Job]) -> Option<Buffers> {
        let (mut source, mut weights, mut blocks) = (0, 0, 0);
        let mut reader = rows::Buffers::default();
        for piece in pieces {
            let job = &jobs[piece.job];
            let rows = |row_bytes: u64| usize::try_from(row_bytes.checked_mul(piece.n_rows)?).ok();
            match job.rows.stored() {
                Some(format) => source = source.max(rows(format.row_bytes(job.rows.row_len())?)?),
                None => reader.reserve(&job.rows, piece.n_rows)?,
            }
            weights = weights.max(rows(job.rows.row_len())?);
            for target in &job.targets {
                blocks = blocks.max(rows(target.row_bytes)?);
            }
        }
        Some(Buffers {
            source: filled(source, 0).ok()?,
            reader,
            weights: filled(weights, 0.0).ok()?,
            blocks: filled(blocks, 0).ok()?,
        })
    }
}

impl Bench<'_> {
    /// Carries out one piece; returns how many bytes of the source it used up.
    pub(super) fn convert(&self, piece: Piece, buffers: &mut Buffers) -> Result<u64> {
        let job = &self.jobs[piece.job];
        let rows = |row_bytes: u64| (row_bytes * piece.n_rows) as usize;
        let (wanted, columns) = (piece.row..piece.row + piece.n_rows, 0..job.rows.row_len());

        let weights = &mut buffers.weights[..rows(job.rows.row_len())];
        let stored = job.rows.stored();
        let mut source: &[u8] = &[];
        match stored {
            Some(format) => {
                let row_bytes = format.row_bytes(job.rows.row_len()).expect("checked when the job was made");
                let bytes = &mut buffers.source[..rows(row_bytes)];
                job.rows.read_stored(wanted.clone(), columns, bytes)?;
                if !is_integer(format) {
                    format.dequantize(self.level, bytes, weights);
                }
                source = bytes;
            }
            None => job.rows.read(self.level, wanted.clone(), columns, &mut buffers.reader, weights)?,
        }
        if !stored.is_some_and(is_integer)
            && let Some(index) = first_non_finite(weights)
        {
            let fault = BlockFault { index, value: weights[index], kind: BlockFaultKind::NonFinite };
            return Err(fault_in_source(job, piece, job.rows.format(), fault));
        }
        for target in &job.targets {
            let bytes = if Some(target.format) == stored {
                source
            } else {
                let blocks = &mut buffers.blocks[..rows(target.row_bytes)];
                let quantized = self.quantize(job, piece, target, weights, blocks);
                quantized.map_err(|fault| fault_in_source(job, piece, target.format, fault))?;
                &*blocks
            };
            for place in &target.places {
                self.sinks[place.file].write_at(bytes, place.offset_bytes + piece.row * target.row_bytes)?;
            }
        }
        Ok(job.rows.source_bytes(wanted))
    }

    /// Quantizes the rows of a piece, those of each expert by the importance of its own columns.
    fn quantize(&self, job: &Job, piece: Piece, target: &Target, weights: &[f32], blocks: &mut [u8]) -> Result<(), BlockFault> {
        let row_len = job.rows.row_len() as usize;
        let Some(importance) = target.importance else {
            return target.format.quantize_rows(self.level, weights, row_len, None, blocks);
        };
        let n_rows_of_expert = job.rows.n_rows() / importance.n_experts() as u64;
        for Run { expert, first, n_rows } in runs_of_experts(piece, n_rows_of_expert) {
            let range = |row_len: u64| (first * row_len) as usize..((first + n_rows) * row_len) as usize;
            let (weights, blocks) = (&weights[range(job.rows.row_len())], &mut blocks[range(target.row_bytes)]);
            let columns = importance.expert(expert as usize);
            let quantized = target.format.quantize_rows(self.level, weights, row_len, Some(columns), blocks);
            quantized.map_err(|fault| BlockFault { index: fault.index + (first * job.rows.row_len()) as usize, ..fault })?;
        }
        Ok(())
    }
}

/// Says which weight of the input cannot be written, in the input's own terms.
fn fault_in_source(job: &Job, piece: Piece, target: Format, fault: BlockFault) -> Error {
    let row_len = job.rows.row_len();
    let (row, column) = (fault.index as u64 / row_len, fault.index as u64 % row_len);
    let Some(origin) = job.rows.locate(piece.row + row, column) else {
        return Error::Internal(format!("{}: computed weight {} is {}", job.name, fault.index, fault.value));
    };
    let Origins { file, tensor, row, column } = origin;
    let place = Place::Weight { tensor: tensor.name.clone(), row, column };
    let value = match exact_value(origin) {
        Ok(exact) => exact.unwrap_or(f64::from(fault.value)),
        Err(error) => return error,
    };
    let (kind, detail) = match fault.kind {
        BlockFaultKind::NonFinite if !value.is_finite() => {
            (Fault::NonFinite, format!("{value} is not a number that can be stored"))
        }
        _ => (Fault::ScaleOverflow, format!("{value:e} is beyond what {target} can hold")),
    };
    Error::malformed(file.path(), place, kind, detail)
}

/// The value as the source has it: an f64 can be finite where its f32 is not.
fn exact_value(origin: Origins) -> Result<Option<f64>> {
    let Origins { file, tensor, row, column } = origin;
    if tensor.format != Format::F64 {
        return Ok(None);
    }
    let mut bytes = [0; 8];
    let row_len = tensor.shape.last().copied().unwrap_or(1);
    file.read_exact_at(&mut bytes, tensor.offset_bytes + (row * row_len + column) * 8)?;
    Ok(Some(f64::from_le_bytes(bytes)))
}

/// Neighbouring rows of a piece that belong to one expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    expert: u64,
    /// First row, counted from the piece's first.
    first: u64,
    n_rows: u64,
}

fn runs_of_experts(piece: Piece, n_rows_of_expert: u64) -> impl Iterator<Item = Run> {
    let end = piece.row + piece.n_rows;
    (piece.row / n_rows_of_expert..end.div_ceil(n_rows_of_expert)).map(move |expert| {
        let first = (expert * n_rows_of_expert).max(piece.row);
        let n_rows = ((expert + 1) * n_rows_of_expert).min(end) - first;
        Run { expert, first: first - piece.row, n_rows }
    })
}

fn first_non_finite(weights: &[f32]) -> Option<usize> {
    const EXPONENT: u32 = 0x7f80_0000;
    // A whole chunk is judged without a branch, so that the loop vectorises.
    let faulty = |chunk: &[f32]| chunk.iter().fold(false, |any, w| any | (w.to_bits() & EXPONENT == EXPONENT));
    let chunk = weights.chunks(1024).position(faulty)? * 1024;
    weights[chunk..].iter().position(|w| !w.is_finite()).map(|at| chunk + at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_cut_where_experts_meet() {
        let runs = |row, n_rows| {
            let piece = Piece { job: 0, row, n_rows };
            runs_of_experts(piece, 4).map(|run| (run.expert, run.first, run.n_rows)).collect::<Vec<_>>()
        };
        assert_eq!(runs(0, 4), [(0, 0, 4)]);
        assert_eq!(runs(5, 2), [(1, 0, 2)]);
        assert_eq!(runs(2, 9), [(0, 0, 2), (1, 2, 4), (2, 6, 3)]);
        assert_eq!(runs(8, 4), [(2, 0, 4)]);
    }
}
