//! What comes after the last layer: logits, and what is measured on them.
//!
//! Logits of all tokens at once would take more memory than the model, so rows are taken in runs: products into a run of logits, a
//! kernel that reduces each row to a few numbers, the next run.

use zerocopy::IntoBytes;

use super::{Cuda, Operand, Weight, bytes_of};
use crate::cuda::device::Block;
use crate::cuda::kernels::{self, DIVERGENCE_BYTES, Memory, SCORE_BYTES, View};
use crate::cuda::sizes::{SUM_CHUNKS_MAX, logits_ld, rows_of_run};
use crate::error::{Error, Result};
use crate::model::{Divergence, Output, Score};

/// Runs of rows that an f64 sum goes over by itself.
const SUM_ROWS: usize = 128;

/// Logits of a run of rows.
struct Logits {
    block: Block,
    n_vocab: usize,
}

impl Logits {
    fn view(&self, n_rows: usize) -> View {
        View { memory: self.block.memory(), n_rows, n_cols: self.n_vocab, ld: logits_ld(self.n_vocab) }
    }
}

impl Cuda {
    fn new_logits(&self, n_rows: usize, n_vocab: usize) -> Result<Logits> {
        let block = self.device.room(bytes_of(&[n_rows, logits_ld(n_vocab), 4])?, "logits")?;
        Ok(Logits { block, n_vocab })
    }

    /// Products become scores, where they are not.
    fn finish(&self, output: Output<'_, Weight>, logits: View) -> Result<()> {
        if output.is_plain() {
            return Ok(());
        }
        self.device.launch(kernels::scale_and_cap(logits, output.scale, output.softcap))
    }

    pub(super) fn all_logits(&self, x: &Operand, output: Output<'_, Weight>) -> Result<Vec<f32>> {
        let (n_rows, n_vocab) = (x.n_rows, output.weight.n_rows);
        let logits = self.new_logits(n_rows, n_vocab)?;
        self.multiply(x, output.weight, false, logits.view(n_rows))?;
        self.finish(output, logits.view(n_rows))?;
        let mut values = vec![0.0f32; n_rows * logits_ld(n_vocab)];
        self.device.fetch(logits.block.memory(), values.as_mut_bytes())?;
        if logits_ld(n_vocab) == n_vocab {
            return Ok(values);
        }
        Ok(values.chunks_exact(logits_ld(n_vocab)).flat_map(|row| &row[..n_vocab]).copied().collect())
    }

    pub(super) fn scores(&self, x: &Operand, output: Output<'_, Weight>, targets: &[u32]) -> Result<Vec<Score>> {
        assert_eq!(x.n_rows, targets.len(), "a target for each row");
        let n_vocab = output.weight.n_rows;
        let run_rows = rows_of_run(n_vocab, 1, self.device.longest_free_bytes()).min(x.n_rows.max(1));
        let logits = self.new_logits(run_rows, n_vocab)?;
        let records = self.for_each_run(targets, n_vocab, run_rows, SCORE_BYTES, |first, n_rows, targets, out| {
            let logits = logits.view(n_rows);
            self.multiply_many(x.scaled()?.rows(first, n_rows)?, output.weight, false, logits)?;
            self.finish(output, logits)?;
            self.device.launch(kernels::scores(logits, targets, out))
        })?;
        records.chunks_exact(SCORE_BYTES).map(|record| score(f64_at(record, 0), i32_at(record, 12), n_vocab)).collect()
    }

    pub(super) fn divergences(
        &self,
        a: (&Operand, Output<'_, Weight>),
        b: (&Operand, Output<'_, Weight>),
        targets: &[u32],
    ) -> Result<Vec<Divergence>> {
        assert_eq!([a.0.n_rows, b.0.n_rows], [targets.len(); 2], "a target for each row");
        let n_vocab = a.1.weight.n_rows;
        assert_eq!(n_vocab, b.1.weight.n_rows, "one vocabulary");
        let run_rows = rows_of_run(n_vocab, 2, self.device.longest_free_bytes()).min(targets.len().max(1));
        let logits = [self.new_logits(run_rows, n_vocab)?, self.new_logits(run_rows, n_vocab)?];
        let records = self.for_each_run(targets, n_vocab, run_rows, DIVERGENCE_BYTES, |first, n_rows, targets, out| {
            let [logits_a, logits_b] = logits.each_ref().map(|logits| logits.view(n_rows));
            self.multiply_many(a.0.scaled()?.rows(first, n_rows)?, a.1.weight, false, logits_a)?;
            self.finish(a.1, logits_a)?;
            self.multiply_many(b.0.scaled()?.rows(first, n_rows)?, b.1.weight, false, logits_b)?;
            self.finish(b.1, logits_b)?;
            self.device.launch(kernels::divergences(logits_a, logits_b, targets, out))
        })?;
        let divergence = |record: &[u8]| {
            Ok(Divergence {
                a: score(f64_at(record, 0), i32_at(record, 24), n_vocab)?,
                b: score(f64_at(record, 8), i32_at(record, 28), n_vocab)?,
                kld: f64_at(record, 16),
            })
        };
        records.chunks_exact(DIVERGENCE_BYTES).map(divergence).collect()
    }

    /// Calls `run` with the first row of each run, its length, its targets and the place of its records; returns all records.
    fn for_each_run(
        &self,
        targets: &[u32],
        n_vocab: usize,
        run_rows: usize,
        record_bytes: usize,
        run: impl Fn(usize, usize, Memory, Memory) -> Result<()>,
    ) -> Result<Vec<u8>> {
        let mut records = vec![0; targets.len() * record_bytes];
        if targets.is_empty() {
            return Ok(records);
        }
        let place = self.device.room(records.len() as u64, "scores")?;
        let on_device = self.numbers(targets, n_vocab, "target")?;
        for first in (0..targets.len()).step_by(run_rows) {
            let n_rows = run_rows.min(targets.len() - first);
            let targets = on_device.memory().from(first as u64 * 4)?;
            run(first, n_rows, targets, place.memory().from((first * record_bytes) as u64)?)?;
        }
        self.device.fetch(place.memory(), &mut records)?;
        Ok(records)
    }

    /// The sum of squares of every column.
    pub(super) fn column_squares(&self, x: &Operand) -> Result<Vec<f64>> {
        let mut sums = vec![0.0f64; x.n_cols];
        if x.n_rows == 0 {
            return Ok(sums);
        }
        let n_chunks = x.n_rows.div_ceil(SUM_ROWS).min(SUM_CHUNKS_MAX);
        let partial = self.device.room(bytes_of(&[n_chunks, x.n_cols, 8])?, "sums of squares")?;
        let total = self.device.room(bytes_of(&[x.n_cols, 8])?, "sums of squares")?;
        self.device.clear(total.memory())?;
        self.device.launch(kernels::sum_squares(x.values(), x.row_scale()?, n_chunks, partial.memory()))?;
        self.device.launch(kernels::fold_columns(partial.memory(), n_chunks, x.n_cols, total.memory()))?;
        self.device.fetch(total.memory(), sums.as_mut_bytes())?;
        Ok(sums)
    }
}

fn f64_at(record: &[u8], at: usize) -> f64 {
    f64::from_le_bytes(record[at..at + 8].try_into().expect("eight bytes"))
}

fn i32_at(record: &[u8], at: usize) -> i32 {
    i32::from_le_bytes(record[at..at + 4].try_into().expect("four bytes"))
}

/// Logits that are all NaN have no largest: the first token stands for it, as on the CPU, and the NaN is in `nll`.
fn score(nll: f64, top: i32, n_vocab: usize) -> Result<Score> {
    match u32::try_from(top) {
        Ok(argmax) if (argmax as usize) < n_vocab => Ok(Score { nll, argmax }),
        _ if nll.is_nan() => Ok(Score { nll, argmax: 0 }),
        _ => Err(Error::Internal(format!("token {top} of {n_vocab} from a GPU"))),
    }
}
