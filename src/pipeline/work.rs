//! The work as data: every tensor once, cut into pieces that fit the memory of a worker.

use crate::error::{Error, Result};
use crate::imatrix::Importance;
use crate::plan::{Origin, Plan, PlannedTensor};
use crate::quant::Format;
use crate::rows::Rows;
use crate::source::TensorSource;

use super::shards::PlannedFile;

/// Weights of a piece, unless a row has more: 1 MiB as f32, so that a piece stays in a core's own cache from reading to writing, and
/// a stop request is noticed soon. CPU time of 1.24 G weights to Q8_0 with 2^16, 2^18, 2^20 and 2^22: 1.55, 1.38, 1.43, 1.83 s.
const PIECE_WEIGHTS: u64 = 1 << 18;

/// One tensor, read once and written to every output that wants it.
#[derive(Debug)]
pub(super) struct Job<'a> {
    /// Its GGUF name, in one of the outputs.
    pub(super) name: &'a str,
    origin: &'a Origin,
    pub(super) rows: Rows<'a>,
    /// One per distinct format and importance.
    pub(super) targets: Vec<Target<'a>>,
}

/// One format of a job and the files that hold it.
#[derive(Debug)]
pub(super) struct Target<'a> {
    pub(super) format: Format,
    pub(super) importance: Option<&'a Importance>,
    pub(super) row_bytes: u64,
    pub(super) places: Vec<Destination>,
}

/// Where a tensor begins in a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Destination {
    /// Index into the planned files.
    pub(super) file: usize,
    pub(super) offset_bytes: u64,
}

/// Some rows of a job: what a worker takes from the queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    /// Index into the jobs.
    pub(super) job: usize,
    /// First row, in the order of the output.
    pub(super) row: u64,
    pub(super) n_rows: u64,
}

impl Job<'_> {
    /// Bytes that the source holds of it.
    pub(super) fn source_bytes(&self) -> u64 {
        self.rows.source_bytes(0..self.rows.n_rows())
    }

    /// Working memory that one row needs: its source bytes, its weights as f32, its blocks in the widest target.
    pub(super) fn row_memory_bytes(&self) -> u64 {
        let blocks = self.targets.iter().map(|target| target.row_bytes).max().unwrap_or(0);
        self.rows.row_memory_bytes().saturating_add(blocks)
    }
}

/// Every tensor of the plan once, in the order in which the source files hold them.
pub(super) fn jobs<'a>(plan: &'a Plan, files: &[PlannedFile], source: &'a dyn TensorSource) -> Result<Vec<Job<'a>>> {
    let mut jobs: Vec<Job> = Vec::new();
    // By the first tensor that they need.
    let mut jobs_of_tensor: Vec<Vec<usize>> = vec![Vec::new(); source.tensors().len()];
    for (file, planned_file) in files.iter().enumerate() {
        let tensors = &plan.outputs[planned_file.output].tensors[planned_file.tensors.clone()];
        for (tensor, &offset_bytes) in tensors.iter().zip(&planned_file.layout.offsets_bytes) {
            let job = job(tensor, source)?;
            let shared = tensor.origin.tensors().next().map(|index| &mut jobs_of_tensor[index]);
            let index = match shared.as_ref().and_then(|known| known.iter().copied().find(|&at| same_rows(&jobs[at], &job))) {
                Some(index) => index,
                None => {
                    jobs.push(job);
                    shared.into_iter().for_each(|known| known.push(jobs.len() - 1));
                    jobs.len() - 1
                }
            };
            jobs[index].add(tensor, Destination { file, offset_bytes })?;
        }
    }
    jobs.sort_by_key(|job| job.rows.first_byte());
    Ok(jobs)
}

/// True when one reading serves both.
fn same_rows(a: &Job, b: &Job) -> bool {
    a.origin == b.origin && (a.rows.n_rows(), a.rows.row_len()) == (b.rows.n_rows(), b.rows.row_len())
}

fn job<'a>(planned: &'a PlannedTensor, source: &'a dyn TensorSource) -> Result<Job<'a>> {
    let rows = Rows::new(&planned.name, &planned.shape, &planned.origin, source)?;
    Ok(Job { name: &planned.name, origin: &planned.origin, rows, targets: Vec::new() })
}

impl<'a> Job<'a> {
    fn add(&mut self, planned: &'a PlannedTensor, place: Destination) -> Result<()> {
        let (format, importance) = (planned.format, planned.importance.as_deref());
        if let Some(target) = self.targets.iter_mut().find(|target| target.format == format && target.importance == importance) {
            target.places.push(place);
            return Ok(());
        }
        let (name, stored) = (self.name, self.rows.format());
        let Some(row_bytes) = format.row_bytes(self.rows.row_len()) else {
            return Err(Error::Internal(format!("{name}: rows of {} are planned as {format}", self.rows.row_len())));
        };
        let can_convert = match self.rows.stored() == Some(format) {
            // Weights are checked even where they are only copied.
            true => self.rows.can_dequantize() || is_integer(format),
            false => self.rows.can_dequantize() && format.can_quantize(),
        };
        if !can_convert {
            let what = format!("{name} is {stored} and would become {format}, which this version cannot do");
            return Err(Error::unsupported(what, "choose another type for it, or start from F32, F16 or BF16"));
        }
        self.check_importance(name, importance)?;
        self.targets.push(Target { format, importance, row_bytes, places: vec![place] });
        Ok(())
    }

    /// Every expert has the same number of rows, and every column an importance.
    fn check_importance(&self, name: &str, importance: Option<&Importance>) -> Result<()> {
        match importance {
            Some(importance)
                if !self.rows.n_rows().is_multiple_of(importance.n_experts() as u64)
                    || importance.n_columns() as u64 != self.rows.row_len() =>
            {
                Err(Error::Internal(format!("{name}: the plan's importance has another shape than the tensor")))
            }
            _ => Ok(()),
        }
    }
}

/// Formats whose values are not weights: they are copied as they are.
pub(super) fn is_integer(format: Format) -> bool {
    matches!(format, Format::I8 | Format::I16 | Format::I32 | Format::I64)
}

/// The queue: every job cut into pieces of at most `piece_memory_bytes`, but of one row at least.
pub(super) fn pieces(jobs: &[Job], piece_memory_bytes: u64) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (index, job) in jobs.iter().enumerate() {
        let by_cache = (PIECE_WEIGHTS / job.rows.row_len().max(1)).max(job.rows.rows_at_once());
        let by_memory = piece_memory_bytes / job.row_memory_bytes().max(1);
        let step = by_cache.min(by_memory).max(1);
        let mut row = 0;
        while row < job.rows.n_rows() {
            let n_rows = step.min(job.rows.n_rows() - row);
            pieces.push(Piece { job: index, row, n_rows });
            row += n_rows;
        }
    }
    pieces
}
