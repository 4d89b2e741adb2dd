//! One piece of work: read rows, check them, write them in every format that is wanted.

use crate::error::{Error, Fault, Place, Result};
use crate::quant::{BlockFault, BlockFaultKind, Format};
use crate::simd::Level;
use crate::source::TensorSource;

use super::sink::Sink;
use super::work::{Input, Job, Piece, Target, is_integer};

/// What all workers share.
pub(super) struct Bench<'a> {
    pub(super) source: &'a dyn TensorSource,
    pub(super) jobs: &'a [Job<'a>],
    pub(super) sinks: &'a [Sink],
    pub(super) level: Level,
}

/// The working memory of one worker, reused from piece to piece.
#[derive(Debug)]
pub(super) struct Buffers {
    /// Rows as the source stores them, in output order.
    source: Vec<u8>,
    /// The same rows as f32.
    weights: Vec<f32>,
    /// The same rows in one target format.
    blocks: Vec<u8>,
}

impl Buffers {
    /// Room for the largest of `pieces`; `None` when the memory cannot be had.
    pub(super) fn for_largest(pieces: &[Piece], jobs: &[Job]) -> Option<Buffers> {
        let (mut source, mut weights, mut blocks) = (0, 0, 0);
        for piece in pieces {
            let job = &jobs[piece.job];
            let rows = |row_bytes: u64| usize::try_from(row_bytes.checked_mul(piece.n_rows)?).ok();
            source = source.max(rows(job.source_format().row_bytes(job.row_len)?)?);
            weights = weights.max(rows(job.row_len)?);
            for target in &job.targets {
                blocks = blocks.max(rows(target.row_bytes)?);
            }
        }
        Some(Buffers { source: zeroed(source)?, weights: zeroed(weights)?, blocks: zeroed(blocks)? })
    }
}

fn zeroed<T: Clone + Default>(len: usize) -> Option<Vec<T>> {
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(len).ok()?;
    buffer.resize(len, T::default());
    Some(buffer)
}

impl Bench<'_> {
    /// Carries out one piece; returns how many bytes of the source it used up.
    pub(super) fn convert(&self, piece: Piece, buffers: &mut Buffers) -> Result<u64> {
        let job = &self.jobs[piece.job];
        let format = job.source_format();
        let rows = |row_bytes: u64| (row_bytes * piece.n_rows) as usize;

        let row_bytes = format.row_bytes(job.row_len).expect("checked when the job was made");
        let source = &mut buffers.source[..rows(row_bytes)];
        let weights = &mut buffers.weights[..rows(job.row_len)];
        match job.input {
            Input::Source { .. } => self.read(job, piece, row_bytes, source)?,
            Input::Computed { weights: computed, .. } => {
                let start = (piece.row * job.row_len) as usize;
                for (bytes, weight) in source.as_chunks_mut().0.iter_mut().zip(&computed[start..]) {
                    *bytes = weight.to_le_bytes();
                }
            }
        }
        if !is_integer(format) {
            format.dequantize(self.level, source, weights);
            if let Some(index) = first_non_finite(weights) {
                let fault = BlockFault { index, value: weights[index], kind: BlockFaultKind::NonFinite };
                return Err(self.fault(job, piece, format, source, fault));
            }
        }
        for target in &job.targets {
            let bytes = if target.format == format {
                &*source
            } else {
                let blocks = &mut buffers.blocks[..rows(target.row_bytes)];
                let quantized = self.quantize(job, piece, target, weights, blocks);
                quantized.map_err(|fault| self.fault(job, piece, target.format, source, fault))?;
                &*blocks
            };
            for place in &target.places {
                self.sinks[place.file].write_at(bytes, place.offset_bytes + piece.row * target.row_bytes)?;
            }
        }
        Ok(source.len() as u64)
    }

    /// Quantizes the rows of a piece, those of each expert by the importance of its own columns.
    fn quantize(&self, job: &Job, piece: Piece, target: &Target, weights: &[f32], blocks: &mut [u8]) -> Result<(), BlockFault> {
        let row_len = job.row_len as usize;
        let Some(importance) = target.importance else {
            return target.format.quantize_rows(self.level, weights, row_len, None, blocks);
        };
        let n_rows_of_expert = job.n_rows / importance.n_experts() as u64;
        for Run { expert, first, n_rows } in runs_of_experts(piece, n_rows_of_expert) {
            let range = |row_len: u64| (first * row_len) as usize..((first + n_rows) * row_len) as usize;
            let (weights, blocks) = (&weights[range(job.row_len)], &mut blocks[range(target.row_bytes)]);
            let columns = importance.expert(expert as usize);
            let quantized = target.format.quantize_rows(self.level, weights, row_len, Some(columns), blocks);
            quantized.map_err(|fault| BlockFault { index: fault.index + (first * job.row_len) as usize, ..fault })?;
        }
        Ok(())
    }

    /// Reads the rows of a piece in output order; rows that are neighbours in the source are read together.
    fn read(&self, job: &Job, piece: Piece, row_bytes: u64, bytes: &mut [u8]) -> Result<()> {
        let Input::Source { tensor, transform } = job.input else { return Ok(()) };
        let file = &self.source.files()[tensor.file];
        let mut done = 0;
        while done < piece.n_rows {
            let first = transform.source_row(piece.row + done, job.n_rows);
            let mut run = 1;
            while done + run < piece.n_rows && transform.source_row(piece.row + done + run, job.n_rows) == first + run {
                run += 1;
            }
            let into = (done * row_bytes) as usize..((done + run) * row_bytes) as usize;
            file.read_exact_at(&mut bytes[into], tensor.offset_bytes + first * row_bytes)?;
            done += run;
        }
        Ok(())
    }

    /// Says which weight of the input cannot be written, in the input's own terms.
    fn fault(&self, job: &Job, piece: Piece, target: Format, source: &[u8], fault: BlockFault) -> Error {
        let (row, column) = (fault.index as u64 / job.row_len, fault.index as u64 % job.row_len);
        let Input::Source { tensor, transform } = job.input else {
            return Error::Internal(format!("computed weight {} is {}", fault.index, fault.value));
        };
        let row = transform.source_row(piece.row + row, job.n_rows);
        let place = Place::Weight { tensor: tensor.name.clone(), row, column };
        let value = exact_value(job.source_format(), source, fault);
        let (kind, detail) = match fault.kind {
            BlockFaultKind::NonFinite if !value.is_finite() => {
                (Fault::NonFinite, format!("{value} is not a number that can be stored"))
            }
            _ => (Fault::ScaleOverflow, format!("{value:e} is beyond what {target} can hold")),
        };
        Error::malformed(self.source.files()[tensor.file].path(), place, kind, detail)
    }
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

/// The value as the source has it: an f64 can be finite where its f32 is not.
fn exact_value(format: Format, source: &[u8], fault: BlockFault) -> f64 {
    match source.as_chunks::<8>().0.get(fault.index) {
        Some(bytes) if format == Format::F64 => f64::from_le_bytes(*bytes),
        _ => f64::from(fault.value),
    }
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
