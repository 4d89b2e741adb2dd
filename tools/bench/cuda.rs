//! `ggforge bench cuda`: how fast the kernels are on this GPU, beside its memory, and how fast a model of 7 billion parameters is.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use ggforge::cuda::{Cuda, Driver, Products, Timed, Work};
use ggforge::gguf::Model;
use ggforge::model::{Backend, Batch, Network, Residency};
use ggforge::quant::Format;
use ggforge::report::{Cell, Table, decimal_bytes, json_text};
use ggforge::{Error, Result};
use serde_json::json;

use super::shape::Shape;
use crate::exit::{Failure, print};
use crate::terminal::{Steps, fitted};
use crate::{Run, Session, size};

/// Time the kernels of a GPU beside what its memory can do
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ggforge bench cuda
  ggforge bench cuda --model llama-Q4_K_M.gguf
  ggforge bench cuda --shape 7b --folder /tmp")]
pub struct CudaBench {
    /// The GPU's number in ggforge devices
    #[arg(long, value_name = "N")]
    gpu: Option<usize>,
    /// Memory of the GPU to use at most
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    gpu_memory: Option<u64>,
    /// Samples of which the median is taken
    #[arg(long, value_name = "N", default_value_t = 15)]
    samples: usize,
    /// Run this model, too
    #[arg(long, value_name = "MODEL.gguf", conflicts_with = "shape")]
    model: Option<PathBuf>,
    /// Run a model of this shape with random weights in Q4_0, too: 7b, or tiny
    #[arg(long, value_name = "SHAPE", value_parser = Shape::parse, requires = "folder")]
    shape: Option<Shape>,
    /// Where the model of a shape is written, and left
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Tokens of a sequence
    #[arg(long, value_name = "N", default_value_t = 512)]
    ctx: usize,
    /// Tokens that are computed together, and how many times
    #[arg(long, value_name = "N", default_value_t = 16_384)]
    batch: usize,
    /// Report as JSON on stdout
    #[arg(long)]
    json: bool,
}

/// Batches that a model is timed for.
const N_BATCHES: usize = 4;

impl Run for CudaBench {
    const NAME: &'static str = "cuda";

    fn run(self, session: &Session) -> Result<(), Failure> {
        let gpu = Driver::start()?.choose(self.gpu)?;
        let mut table = Table::new(&["work", "shape", "ms", "GB/s", "TFLOP/s", "of copying"]);
        {
            let cuda = Cuda::open(&gpu, self.gpu_memory, Products::Best)?;
            let portable = self.kernels(&cuda, "", session, &mut table)?;
            drop(cuda);
            if portable {
                let cuda = Cuda::open(&gpu, self.gpu_memory, Products::Portable)?;
                self.products(&cuda, " (8.0)", &mut table)?;
            }
        }
        let mut models = Table::new(&["model", "residency", "load s", "tokens/s", "tokens/s with load", "peak"]);
        for path in self.models(session)? {
            for residency in [Residency::Resident, Residency::Streamed] {
                self.time_model(&Cuda::open(&gpu, self.gpu_memory, Products::Best)?, &path, residency, &mut models)?;
            }
        }
        print(&if self.json {
            json_text(&json!({ "gpu": gpu.name, "kernels": table.json(), "models": models.json() }))
        } else {
            let models = if models.is_empty() { String::new() } else { format!("\n{}", fitted(&models)) };
            format!("{}\n{}{models}", gpu.name, fitted(&table))
        })
    }
}

impl CudaBench {
    /// Times every kind of kernel; returns whether there are other products to compare with.
    fn kernels(&self, cuda: &Cuda, note: &str, session: &Session, table: &mut Table) -> Result<bool> {
        let steps = Steps::new(session, "timing", 4);
        steps.begin("copies");
        // Small memories get smaller work, which says less.
        let unit = (cuda.memory_bytes() / 8).min(2 << 30) as usize;
        let copied = cuda.time(Work::Copy { len_bytes: unit }, self.samples)?;
        let bandwidth = copied.n_bytes / copied.seconds;
        table.push(row("copy", decimal_bytes(unit as u64), &copied, bandwidth));

        steps.begin("dequantization");
        let n_rows = (unit / 8192).clamp(256, 131_072);
        for format in
            [Format::Q4_K, Format::Q4_0, Format::Q8_0, Format::Q6_K, Format::Q2_K, Format::Q3_K, Format::Q5_K, Format::IQ4_XS]
        {
            let timed = cuda.time(Work::Dequantize { format, n_rows, n_cols: 4096 }, self.samples)?;
            table.push(row(&format!("dequantize {format}"), format!("{n_rows} x 4096"), &timed, bandwidth));
        }
        steps.begin("products");
        self.products(cuda, note, table)?;

        steps.begin("products of one row");
        if cuda.memory_bytes() > 1 << 30 {
            for format in [Format::Q4_K, Format::Q4_0, Format::Q8_0, Format::Q6_K, Format::F16] {
                for (n_rows, n_cols) in [(4096, 4096), (14_336, 4096), (28_672, 8192)] {
                    let timed = cuda.time(Work::RowProduct { format, n_rows, n_cols }, self.samples)?;
                    table.push(row(&format!("row times {format}"), format!("{n_rows} x {n_cols}"), &timed, bandwidth));
                }
            }
        }
        Ok(cuda.gpu().capability == (9, 0))
    }

    fn products(&self, cuda: &Cuda, note: &str, table: &mut Table) -> Result<()> {
        for (m, n, k) in
            [(8192, 8192, 8192), (16_384, 4096, 4096), (16_384, 14_336, 4096), (16_384, 4096, 14_336), (512, 4096, 4096)]
        {
            if (2 * (m * k + n * k) + 4 * m * n) as u64 * 5 / 4 < cuda.memory_bytes() {
                let timed = cuda.time(Work::Product { m, n, k }, self.samples)?;
                table.push(row(&format!("product{note}"), format!("{m} x {n} x {k}"), &timed, f64::INFINITY));
            }
        }
        Ok(())
    }

    /// The models to time; that of a shape is written first.
    fn models(&self, session: &Session) -> Result<Vec<PathBuf>> {
        let made = match (self.shape, &self.folder) {
            (Some(shape), Some(folder)) => Some(shape.write(folder, session)?),
            _ => None,
        };
        Ok(self.model.iter().cloned().chain(made).collect())
    }

    fn time_model(&self, cuda: &Cuda, path: &Path, residency: Residency, table: &mut Table) -> Result<()> {
        let started = Instant::now();
        let model = Model::open(path)?;
        let network = match Network::open(cuda, &model, self.ctx, residency) {
            // A model that does not fit is streamed, and that is the other line.
            Err(Error::Gpu { .. }) if residency == Residency::Resident => return Ok(()),
            other => other?,
        };
        cuda.synchronize()?;
        let load_seconds = started.elapsed().as_secs_f64();

        let n_sequences = (self.batch / self.ctx).max(1);
        let n_vocab = network.hparams().n_vocab as u64;
        let tokens: Vec<u32> = (0..(n_sequences * self.ctx) as u64).map(|i| (i * 2_654_435_761 % n_vocab) as u32).collect();
        let sequences: Vec<_> = (0..n_sequences).map(|i| i * self.ctx..(i + 1) * self.ctx).collect();
        // As perplexity does: the second half of each sequence is scored.
        let scored: Vec<u32> = sequences.iter().flat_map(|s| (s.start + self.ctx / 2) as u32..s.end as u32 - 1).collect();
        let targets: Vec<u32> = scored.iter().map(|row| tokens[*row as usize + 1]).collect();
        let run = || -> Result<f64> {
            let started = Instant::now();
            let states = network.evaluate(Batch { tokens: &tokens, sequences: &sequences }, &mut ())?;
            let operand = network.normalised(&states, &scored)?;
            drop(states);
            cuda.score(&operand, network.output(), &targets)?;
            Ok(started.elapsed().as_secs_f64())
        };
        let first = run()?;
        let seconds = (0..N_BATCHES).map(|_| run()).sum::<Result<f64>>()?;
        let n_tokens = tokens.len() as f64;
        let with_load = N_BATCHES as f64 * n_tokens / (load_seconds + first + seconds * (N_BATCHES - 1) as f64 / N_BATCHES as f64);
        table.push([
            Cell::Text(path.display().to_string()),
            Cell::Text(format!("{residency:?}").to_lowercase()),
            Cell::Fixed(load_seconds, 2),
            Cell::Fixed(N_BATCHES as f64 * n_tokens / seconds, 0),
            Cell::Fixed(with_load, 0),
            Cell::Bytes(cuda.memory_bytes_peak()),
        ]);
        Ok(())
    }
}

fn row(work: &str, shape: String, timed: &Timed, bandwidth: f64) -> [Cell; 6] {
    let per_second = |n: f64, unit: f64| if n > 0.0 { Cell::Fixed(n / timed.seconds / unit, 1) } else { Cell::Empty };
    let is_bound_by_memory = bandwidth.is_finite();
    [
        Cell::Text(work.to_owned()),
        Cell::Text(shape),
        Cell::Fixed(timed.seconds * 1e3, 4),
        if is_bound_by_memory { per_second(timed.n_bytes, 1e9) } else { Cell::Empty },
        if is_bound_by_memory { Cell::Empty } else { per_second(timed.n_operations, 1e12) },
        if is_bound_by_memory { Cell::Fixed(timed.n_bytes / timed.seconds / bandwidth, 3) } else { Cell::Empty },
    ]
}
