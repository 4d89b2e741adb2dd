//! How fast single kernels are, beside what the memory of the same GPU can do in the same minute.

use zerocopy::IntoBytes;

use super::backend::{Cuda, bytes_of};
use super::device::Block;
use super::kernels::{
    self, Attended, AttentionForm, HeadForm, HeadRows, Matrix16, Memory, SCORE_BYTES, Scaled, Selection, Sequences, Turn, View,
};
use super::sizes::SPLIT_QUERIES_MAX;
use crate::error::{Error, Result};
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
    /// A few rows of activations times blocks.
    RowProduct {
        /// Of the blocks.
        format: Format,
        /// Rows of activations.
        batch: usize,
        /// Rows of weights.
        n_rows: usize,
        /// Columns.
        n_cols: usize,
    },
    /// Causal attention.
    Attention(AttentionSizes),
    /// Heads turned by their positions, as halves.
    Rope {
        /// Tokens.
        n_rows: usize,
        /// Heads of each.
        n_heads: usize,
        /// Numbers of a head.
        head_dim: usize,
    },
    /// `silu(gate) * up` as halves.
    Swiglu {
        /// Tokens.
        n_rows: usize,
        /// Width of the inner layer.
        n_cols: usize,
    },
    /// Rows over their root mean square, as halves.
    Norm {
        /// Tokens.
        n_rows: usize,
        /// Width.
        n_cols: usize,
    },
    /// Logits to log-likelihoods.
    Scores {
        /// Tokens.
        n_rows: usize,
        /// Logits of each.
        n_vocab: usize,
    },
}

/// Sequences whose queries are their last tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionSizes {
    /// Sequences.
    pub n_sequences: usize,
    /// Queries of each.
    pub n_queries: usize,
    /// Keys of each, no fewer.
    pub n_keys: usize,
    /// Heads of queries.
    pub n_head: usize,
    /// Heads of keys.
    pub n_head_kv: usize,
    /// Numbers of a head.
    pub head_dim: usize,
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
    /// Multiplications and additions; exponentials are not counted.
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
        // All of it at once: memory that is taken piece by piece is free in pieces.
        self.device.reserve(self.memory_bytes(), self.memory_bytes() / 2)?;
        match work {
            Work::Copy { len_bytes } => self.time_copy(len_bytes, n_samples),
            Work::Dequantize { format, n_rows, n_cols } => self.time_dequantize(format, n_rows, n_cols, n_samples),
            Work::Product { m, n, k } => self.time_product(m, n, k, n_samples),
            Work::RowProduct { format, batch, n_rows, n_cols } => self.time_row_product(format, batch, n_rows, n_cols, n_samples),
            Work::Attention(sizes) => self.time_attention(sizes, n_samples),
            Work::Rope { n_rows, n_heads, head_dim } => self.time_rope(n_rows, n_heads, head_dim, n_samples),
            Work::Swiglu { n_rows, n_cols } => self.time_swiglu(n_rows, n_cols, n_samples),
            Work::Norm { n_rows, n_cols } => self.time_norm(n_rows, n_cols, n_samples),
            Work::Scores { n_rows, n_vocab } => self.time_scores(n_rows, n_vocab, n_samples),
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
        // A scale times a quant, less a minimum.
        let n_operations = 2.0 * n_rows as f64 * n_cols as f64;
        self.median(n_samples, n_bytes, n_operations, |_| self.device.launch(kernels::dequant_f16(from, out)))
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

    fn time_row_product(&self, format: Format, batch: usize, n_rows: usize, n_cols: usize, n_samples: usize) -> Result<Timed> {
        let pattern = random_blocks(format, n_cols);
        let matrix_bytes = pattern.len() / PATTERN_ROWS * n_rows;
        let place_bytes = matrix_bytes.next_multiple_of(256);
        let all_bytes = TURNS_BYTES.min(self.memory_bytes() as usize / 2);
        let n_turns = (all_bytes / place_bytes).max(1);
        let blocks = self.device.room(bytes_of(&[n_turns, place_bytes])?, "weights")?;
        let x = self.device.room(bytes_of(&[batch, n_cols, 2])? + 16, "activations")?;
        let y = self.device.room(bytes_of(&[batch, n_rows, 4])?, "a product")?;
        self.fill(blocks.memory(), &pattern)?;
        self.fill(x.memory(), &random_blocks(Format::F16, n_cols))?;
        let rows = Scaled { values: View::dense(x.memory(), batch, n_cols), row_scale: None };
        let out = View::dense(y.memory(), batch, n_rows);
        let n_bytes = (matrix_bytes + 2 * batch * n_cols + 4 * batch * n_rows) as f64;
        self.median(n_samples, n_bytes, 2.0 * batch as f64 * n_rows as f64 * n_cols as f64, |turn| {
            let matrix = blocks.memory().from((turn % n_turns * place_bytes) as u64)?;
            self.device.launch(kernels::gemv(format, matrix, rows, false, out))
        })
    }

    fn time_attention(&self, sizes: AttentionSizes, n_samples: usize) -> Result<Timed> {
        let AttentionSizes { n_sequences, n_queries, n_keys, n_head, n_head_kv, head_dim } = sizes;
        let [n_q, n_kv] = [n_sequences * n_queries, n_sequences * n_keys];
        let [q, k, v] =
            [(n_q, n_head), (n_kv, n_head_kv), (n_kv, n_head_kv)].map(|(n_rows, n)| self.random_heads(n_rows, n * head_dim));
        let ((q, _q), (k, _k), (v, _v)) = (q?, k?, v?);
        let spans: Vec<[u32; 4]> =
            (0..n_sequences).map(|i| [i * n_queries, n_queries, i * n_keys, n_keys].map(|n| n as u32)).collect();
        let spans = self.sent(spans.as_bytes(), "sequences")?;
        let sequences = Sequences { spans: spans.memory(), n: n_sequences, longest: n_queries };
        let form = AttentionForm { n_head, n_head_kv, head_dim, scale: 1.0 / (head_dim as f32).sqrt(), window: None, cap: None };
        let attended = Attended { q, k, v, sequences, form };
        // Keys that each query sees, itself among them.
        let n_pairs = (n_queries * (n_keys - n_queries) + n_queries * (n_queries + 1) / 2) as f64;
        let n_operations = 4.0 * n_sequences as f64 * n_head as f64 * head_dim as f64 * n_pairs;
        let n_bytes = (n_q * n_head * (2 + 4) + 2 * n_kv * n_head_kv * 2) as f64 * head_dim as f64;
        if n_queries <= SPLIT_QUERIES_MAX {
            let out = self.new_operand(n_q, n_head * head_dim)?;
            return self.median(n_samples, n_bytes, n_operations, |_| self.attend_splits(attended, &out));
        }
        let out = self.device.room(bytes_of(&[n_q, n_head * head_dim, 4])?, "attention")?;
        let view = View::dense(out.memory(), n_q, n_head * head_dim);
        self.median(n_samples, n_bytes, n_operations, |_| self.device.launch(kernels::attention(attended, view)))
    }

    fn time_rope(&self, n_rows: usize, n_heads: usize, head_dim: usize, n_samples: usize) -> Result<Timed> {
        let x = self.random_rows(n_rows, n_heads * head_dim)?;
        let angles = self.random_rows(n_rows, head_dim)?;
        let (out, _block) = self.random_heads(n_rows, n_heads * head_dim)?;
        let positions: Vec<u32> = (0..n_rows as u32).collect();
        let positions = self.sent(positions.as_bytes(), "positions")?;
        let turn =
            Turn { angles: angles.memory(), n_positions: n_rows, positions: positions.memory(), n_rot: head_dim, is_neox: false };
        let x = View::dense(x.memory(), n_rows, n_heads * head_dim);
        let n = n_rows as f64 * n_heads as f64 * head_dim as f64;
        let rows = HeadRows { x, bias: None, gain: None, rotates: true, out };
        let form = HeadForm { head_dim, eps: 0.0, turn: Some(turn) };
        // Each of a pair is a sum of two products.
        self.median(n_samples, 6.0 * n, 3.0 * n, |_| self.device.launch(kernels::heads(&[rows], form)))
    }

    fn time_swiglu(&self, n_rows: usize, n_cols: usize, n_samples: usize) -> Result<Timed> {
        let [gate, up] = [self.random_rows(n_rows, n_cols)?, self.random_rows(n_rows, n_cols)?];
        let [gate_view, up_view] = [&gate, &up].map(|rows| View::dense(rows.memory(), n_rows, n_cols));
        let (out, _block) = self.random_heads(n_rows, n_cols)?;
        let scales = row_scale(out)?;
        let n = n_rows as f64 * n_cols as f64;
        let launch = || kernels::swiglu(gate_view, up_view, out.values, scales);
        self.median(n_samples, 10.0 * n, 3.0 * n, |_| self.device.launch(launch()))
    }

    fn time_norm(&self, n_rows: usize, n_cols: usize, n_samples: usize) -> Result<Timed> {
        let [x, gain] = [self.random_rows(n_rows, n_cols)?, self.random_rows(1, n_cols)?];
        let view = View::dense(x.memory(), n_rows, n_cols);
        let (out, _block) = self.random_heads(n_rows, n_cols)?;
        let scales = row_scale(out)?;
        let n = n_rows as f64 * n_cols as f64;
        let launch = || kernels::rms_norm_f16(view, gain.memory(), 1e-5, out.values, scales);
        self.median(n_samples, 6.0 * n, 4.0 * n, |_| self.device.launch(launch()))
    }

    fn time_scores(&self, n_rows: usize, n_vocab: usize, n_samples: usize) -> Result<Timed> {
        let logits = self.random_rows(n_rows, n_vocab)?;
        let view = View::dense(logits.memory(), n_rows, n_vocab);
        let targets: Vec<u32> = (0..n_rows).map(|row| (row * 7 % n_vocab) as u32).collect();
        let targets = self.sent(targets.as_bytes(), "targets")?;
        let out = self.device.room(bytes_of(&[n_rows, SCORE_BYTES])?, "scores")?;
        let n = n_rows as f64 * n_vocab as f64;
        let launch = || kernels::scores(view, targets.memory(), out.memory());
        self.median(n_samples, 4.0 * n, 2.0 * n, |_| self.device.launch(launch()))
    }

    /// Random f32, `[n_rows, n_cols]`.
    fn random_rows(&self, n_rows: usize, n_cols: usize) -> Result<Block> {
        let rows = self.device.room(bytes_of(&[n_rows, n_cols, 4])?, "rows")?;
        self.fill(rows.memory(), random_floats(PATTERN_FLOATS).as_bytes())?;
        Ok(rows)
    }

    /// Random halves, `[n_rows, n_cols]`, whose rows all have the factor 1, and their memory.
    fn random_heads(&self, n_rows: usize, n_cols: usize) -> Result<(Scaled, Block)> {
        let values_bytes = bytes_of(&[n_rows, n_cols, 2])?.next_multiple_of(16);
        let block = self.device.room(values_bytes + bytes_of(&[n_rows, 4])?, "halves")?;
        self.fill(Memory { len_bytes: values_bytes, ..block.memory() }, &random_blocks(Format::F16, n_cols))?;
        let scales = block.memory().from(values_bytes)?;
        self.fill(scales, 1.0f32.as_bytes())?;
        Ok((Scaled { values: View::dense(block.memory(), n_rows, n_cols), row_scale: Some(scales) }, block))
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

/// Rows of a pattern of blocks, and numbers of one of f32.
const PATTERN_ROWS: usize = 64;
const PATTERN_FLOATS: usize = 1 << 18;

fn row_scale(rows: Scaled) -> Result<Memory> {
    rows.row_scale.ok_or_else(|| Error::Internal("halves without scales".to_owned()))
}

/// Numbers between -1/2 and 1/2.
fn random_floats(len: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
    };
    (0..len).map(|_| next()).collect()
}

/// [`PATTERN_ROWS`] rows of random weights in blocks. Floats are numbers between -1/2 and 1/2, as what a product costs depends on what
/// it multiplies; of other formats any bytes are blocks.
fn random_blocks(format: Format, n_cols: usize) -> Vec<u8> {
    let row_bytes = format.row_bytes(n_cols as u64).expect("whole blocks");
    let mut bytes = vec![0; row_bytes as usize * PATTERN_ROWS];
    let weights = random_floats(n_cols * PATTERN_ROWS);
    if matches!(format, Format::F32 | Format::F16 | Format::BF16) {
        format.quantize_rows(Level::detect(), &weights, n_cols, None, &mut bytes).expect("finite weights");
    } else {
        // The middle bits of a random number below one half: any.
        bytes.iter_mut().zip(weights.iter().cycle()).for_each(|(byte, x)| *byte = ((x + 0.5) * 65_536.0) as u32 as u8);
    }
    bytes
}
