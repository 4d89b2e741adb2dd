//! The work as data: every tensor once, cut into pieces that fit the memory of a worker.

use crate::error::{Error, Result};
use crate::imatrix::Importance;
use crate::plan::{Origin, Plan, PlannedTensor};
use crate::quant::Format;
use crate::source::{SourceTensor, TensorSource};

use super::shards::PlannedFile;
use crate::arch::Transform;

/// Weights of a piece, unless a row has more: 1 MiB as f32, so that a piece stays in a core's own cache from reading to writing, and
/// a stop request is noticed soon. CPU time of 1.24 G weights to Q8_0 with 2^16, 2^18, 2^20 and 2^22: 1.55, 1.38, 1.43, 1.83 s.
const PIECE_WEIGHTS: u64 = 1 << 18;

/// One tensor, read once and written to every output that wants it.
#[derive(Debug)]
pub(super) struct Job<'a> {
    pub(super) input: Input<'a>,
    /// All leading dimensions flattened.
    pub(super) n_rows: u64,
    pub(super) row_len: u64,
    /// One per distinct format and importance.
    pub(super) targets: Vec<Target<'a>>,
}

/// Where the weights of a job come from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Input<'a> {
    Source { tensor: &'a SourceTensor, transform: Transform },
    Computed { name: &'a str, weights: &'a [f32] },
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
    /// How the weights are stored where they come from.
    pub(super) fn source_format(&self) -> Format {
        match self.input {
            Input::Source { tensor, .. } => tensor.format,
            Input::Computed { .. } => Format::F32,
        }
    }

    /// Bytes that the source holds of it.
    pub(super) fn source_bytes(&self) -> u64 {
        match self.input {
            Input::Source { tensor, .. } => tensor.size_bytes,
            Input::Computed { weights, .. } => weights.len() as u64 * 4,
        }
    }

    /// Working memory that one row needs: its source bytes, its weights as f32, its blocks in the widest target.
    pub(super) fn row_memory_bytes(&self) -> u64 {
        let source = self.source_format().row_bytes(self.row_len).unwrap_or(u64::MAX);
        let blocks = self.targets.iter().map(|target| target.row_bytes).max().unwrap_or(0);
        source.saturating_add(self.row_len.saturating_mul(4)).saturating_add(blocks)
    }
}

/// Every tensor of the plan once, in the order in which the source files hold them.
pub(super) fn jobs<'a>(plan: &'a Plan, files: &[PlannedFile], source: &'a dyn TensorSource) -> Result<Vec<Job<'a>>> {
    let mut jobs: Vec<Job> = Vec::new();
    let mut jobs_of_tensor: Vec<Vec<usize>> = vec![Vec::new(); source.tensors().len()];
    for (file, planned_file) in files.iter().enumerate() {
        let tensors = &plan.outputs[planned_file.output].tensors[planned_file.tensors.clone()];
        for (tensor, &offset_bytes) in tensors.iter().zip(&planned_file.layout.offsets_bytes) {
            let job = job(tensor, source)?;
            let shared = match &tensor.origin {
                Origin::Source { tensor: index, .. } => Some(&mut jobs_of_tensor[*index]),
                Origin::Computed(_) => None,
            };
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
    jobs.sort_by_key(|job| match job.input {
        Input::Source { tensor, .. } => (tensor.file, tensor.offset_bytes),
        Input::Computed { .. } => (0, 0),
    });
    Ok(jobs)
}

/// True when one reading serves both.
fn same_rows(a: &Job, b: &Job) -> bool {
    match (a.input, b.input) {
        (Input::Source { transform: x, .. }, Input::Source { transform: y, .. }) => {
            x == y && (a.n_rows, a.row_len) == (b.n_rows, b.row_len)
        }
        _ => false,
    }
}

fn job<'a>(planned: &'a PlannedTensor, source: &'a dyn TensorSource) -> Result<Job<'a>> {
    let contradiction = |what: &str| Error::Internal(format!("{}: the plan {what}", planned.name));
    let transform = match &planned.origin {
        Origin::Source { transform, .. } => *transform,
        Origin::Computed(_) => Transform::Copy,
    };
    let (n_rows, row_len) = transform.rows(&planned.shape);
    let (input, n_weights) = match &planned.origin {
        Origin::Source { tensor, .. } => {
            let tensor = source.tensors().get(*tensor).ok_or_else(|| contradiction("names no tensor of the source"))?;
            if tensor.format.row_bytes(row_len).and_then(|bytes| bytes.checked_mul(n_rows)) != Some(tensor.size_bytes) {
                return Err(contradiction("has another shape than the source"));
            }
            (Input::Source { tensor, transform }, tensor.shape.iter().product())
        }
        Origin::Computed(weights) => (Input::Computed { name: &planned.name, weights }, weights.len() as u64),
    };
    if n_rows.checked_mul(row_len) != Some(n_weights) {
        return Err(contradiction("has another number of weights than its origin"));
    }
    Ok(Job { input, n_rows, row_len, targets: Vec::new() })
}

impl<'a> Job<'a> {
    fn add(&mut self, planned: &'a PlannedTensor, place: Destination) -> Result<()> {
        let (format, importance) = (planned.format, planned.importance.as_deref());
        if let Some(target) = self.targets.iter_mut().find(|target| target.format == format && target.importance == importance) {
            target.places.push(place);
            return Ok(());
        }
        let name = match self.input {
            Input::Source { tensor, .. } => &tensor.name,
            Input::Computed { name, .. } => name,
        };
        let Some(row_bytes) = format.row_bytes(self.row_len) else {
            return Err(Error::Internal(format!("{name}: rows of {} are planned as {format}", self.row_len)));
        };
        let source = self.source_format();
        let can_convert = match format == source {
            // Weights are checked even where they are only copied.
            true => source.can_dequantize() || is_integer(source),
            false => source.can_dequantize() && format.can_quantize(),
        };
        if !can_convert {
            let what = format!("{name} is {source} and would become {format}, which this version cannot do");
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
                if !self.n_rows.is_multiple_of(importance.n_experts() as u64) || importance.n_columns() as u64 != self.row_len =>
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
        let by_cache = PIECE_WEIGHTS / job.row_len.max(1);
        let by_memory = piece_memory_bytes / job.row_memory_bytes().max(1);
        let step = by_cache.min(by_memory).max(1);
        let mut row = 0;
        while row < job.n_rows {
            let n_rows = step.min(job.n_rows - row);
            pieces.push(Piece { job: index, row, n_rows });
            row += n_rows;
        }
    }
    pieces
}
