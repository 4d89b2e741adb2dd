//! How fast single kernels are, beside what the memory of the same GPU can do in the same minute.

use zerocopy::IntoBytes;

use super::backend::{Cuda, bytes_of};
use super::kernels::{self, Matrix16, Memory, Scaled, Selection, View};
use crate::error::Result;
use crate::quant::Format;
use crate::simd::Level;

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// So many bytes from one place of device memory to another.
    Copy {
        /// Bytes; each is read and written.
        len_bytes: usize,
    },
    /// Blocks to halves.
    Dequantize {
        /// Of the blocks.
        format: Format,
        /// Rows.
        n_rows: usize,
        /// Weights of a row.
        n_cols: usize,
    },
    /// `[m, k] * [n, k]^T`, halves into f32.
    Product {
        /// Rows of activations.
        m: usize,
        /// Rows of weights.
        n: usize,
        /// Columns of both.
        k: usize,
    },
    /// One row of activations times blocks.
    RowProduct {
        /// Of the blocks.
        format: Format,
        /// Rows of weights.
        n_rows: usize,
        /// Columns.
        n_cols: usize,
    },
}

/// How long it took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timed {
    /// Seconds of one run, the median of the samples.
    pub seconds: f64,
    /// The best sample.
    pub seconds_best: f64,
    /// Bytes read and written, as far as they must be.
    pub n_bytes: f64,
    /// Multiplications and additions.
    pub n_operations: f64,
}

/// Copies of a matrix that one row is multiplied with: together more than a GPU's caches hold.
const TURNS_BYTES: usize = 512 << 20;

impl Cuda {
    /// Times some work on random numbers: the median of `n_samples` samples, after runs that are not counted.
    ///
    /// # Errors
    /// `Gpu`, when there is not enough memory for it or the device fails.
    pub fn time(&self, work: Work, n_samples: usize) -> Result<Timed> {
        match work {
            Work::Copy { len_bytes } => self.time_copy(len_bytes, n_samples),
            Work::Dequantize { format, n_rows, n_cols } => self.time_dequantize(format, n_rows, n_cols, n_samples),
            Work::Product { m, n, k } => self.time_product(m, n, k, n_samples),
            Work::RowProduct { format, n_rows, n_cols } => self.time_row_product(format, n_rows, n_cols, n_samples),
        }
    }

    fn time_copy(&self, len_bytes: usize, n_samples: usize) -> Result<Timed> {
        let [from, to] = [self.device.room(len_bytes as u64, "a copy")?, self.device.room(len_bytes as u64, "a copy")?];
        self.fill(from.memory(), &random_floats(1 << 18).as_bytes()[..len_bytes.min(1 << 20)])?;
        self.median(n_samples, 2.0 * len_bytes as f64, 0.0, |_| self.device.copy(from.memory(), to.memory(), len_bytes as u64))
    }

    fn time_dequantize(&self, format: Format, n_rows: usize, n_cols: usize, n_samples: usize) -> Result<Timed> {
        let pattern = random_blocks(format, n_cols);
        let row_bytes = pattern.len() / PATTERN_ROWS;
        let blocks = self.device.room(bytes_of(&[n_rows, row_bytes])?, "blocks")?;
        let halves = self.device.room(bytes_of(&[n_rows, n_cols, 2])?, "halves")?;
        self.fill(blocks.memory(), &pattern)?;
        let from = Selection { blocks: blocks.memory(), format, rows: None, scale: 1.0 };
        let n_bytes = n_rows as f64 * (row_bytes + 2 * n_cols) as f64;
        let out = View::dense(halves.memory(), n_rows, n_cols);
        self.median(n_samples, n_bytes, 0.0, |_| self.device.launch(kernels::dequant_f16(from, out)))
    }

    fn time_product(&self, m: usize, n: usize, k: usize, n_samples: usize) -> Result<Timed> {
        let halves = random_blocks(Format::F16, k);
        let a = self.device.room(bytes_of(&[m, k, 2])?, "activations")?;
        let b = self.device.room(bytes_of(&[n, k, 2])?, "weights")?;
        let c = self.device.room(bytes_of(&[m, n, 4])?, "a product")?;
        self.fill(a.memory(), &halves)?;
        self.fill(b.memory(), &halves)?;
        let x = Scaled { values: View::dense(a.memory(), m, k), row_scale: None };
        let w = Matrix16 { values: View::dense(b.memory(), n, k), alpha: 1.0 };
        let n_bytes = (2 * m * k + 2 * n * k + 4 * m * n) as f64;
        let out = View::dense(c.memory(), m, n);
        self.median(n_samples, n_bytes, 2.0 * m as f64 * n as f64 * k as f64, |_| self.product(x, w, false, out))
    }

    fn time_row_product(&self, format: Format, n_rows: usize, n_cols: usize, n_samples: usize) -> Result<Timed> {
        let pattern = random_blocks(format, n_cols);
        let matrix_bytes = pattern.len() / PATTERN_ROWS * n_rows;
        let n_turns = TURNS_BYTES.div_ceil(matrix_bytes);
        let blocks = self.device.room(bytes_of(&[n_turns, matrix_bytes.next_multiple_of(256)])?, "weights")?;
        let x = self.device.room(bytes_of(&[n_cols, 2])? + 16, "activations")?;
        let y = self.device.room(bytes_of(&[n_rows, 4])?, "a product")?;
        self.fill(blocks.memory(), &pattern)?;
        self.fill(x.memory(), &random_blocks(Format::F16, n_cols))?;
        let row = Scaled { values: View::dense(x.memory(), 1, n_cols), row_scale: None };
        let n_bytes = matrix_bytes as f64;
        self.median(n_samples, n_bytes, 2.0 * n_rows as f64 * n_cols as f64, |turn| {
            let matrix = blocks.memory().from((turn % n_turns * matrix_bytes.next_multiple_of(256)) as u64)?;
            self.device.launch(kernels::gemv(format, matrix, row, false, View::dense(y.memory(), 1, n_rows)))
        })
    }

    /// Writes `pattern` again and again.
    fn fill(&self, memory: Memory, pattern: &[u8]) -> Result<()> {
        let first = pattern.len().min(memory.len_bytes as usize);
        self.device.send(memory, &pattern[..first])?;
        let mut done = first as u64;
        while done < memory.len_bytes {
            let n = done.min(memory.len_bytes - done);
            self.device.copy(memory, memory.from(done)?, n)?;
            done += n;
        }
        Ok(())
    }

    /// A sample is some runs one after the other, which are given while the GPU is busy with something else: so neither the time to
    /// start one nor the host's pace is measured.
    fn median(&self, n_samples: usize, n_bytes: f64, n_operations: f64, run: impl Fn(usize) -> Result<()>) -> Result<Timed> {
        (0..2).try_for_each(&run)?;
        let once = self.device.timed(|| run(2))? * 1e-3;
        let n_runs = ((SAMPLE_SECONDS / once.max(1e-9)) as usize).clamp(1, RUNS_MAX);
        let busy = self.device.room((self.device.longest_free_bytes() / 2).min(BUSY_BYTES), "what keeps a GPU busy")?;
        let sample = |sample: usize| {
            self.device.clear(busy.memory())?;
            let runs = || (0..n_runs).try_for_each(|i| run(sample * n_runs + i));
            Ok(self.device.timed(runs)? * 1e-3 / n_runs as f64)
        };
        let mut seconds = (1..1 + n_samples.max(1)).map(sample).collect::<Result<Vec<f64>>>()?;
        seconds.sort_by(f64::total_cmp);
        Ok(Timed { seconds: seconds[seconds.len() / 2], seconds_best: seconds[0], n_bytes, n_operations })
    }
}

/// What a sample takes at least, in at most so many runs.
const SAMPLE_SECONDS: f64 = 3e-4;
const RUNS_MAX: usize = 32;

/// Writing them takes an H100 a third of a millisecond, in which the host starts all runs of a sample.
const BUSY_BYTES: u64 = 1 << 30;

/// Rows of a pattern.
const PATTERN_ROWS: usize = 64;

/// Numbers between -1/2 and 1/2.
fn random_floats(len: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
    };
    (0..len).map(|_| next()).collect()
}

/// [`PATTERN_ROWS`] rows of random weights in blocks.
fn random_blocks(format: Format, n_cols: usize) -> Vec<u8> {
    let row_bytes = format.row_bytes(n_cols as u64).expect("whole blocks");
    let mut bytes = vec![0; row_bytes as usize * PATTERN_ROWS];
    let weights = random_floats(n_cols * PATTERN_ROWS);
    format
        .quantize_rows(Level::detect(), &weights, n_cols, None, &mut bytes)
        .expect("finite weights of a format that needs no importance");
    bytes
}
