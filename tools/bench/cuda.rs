//! `ggforge bench cuda`: how fast the kernels are on this GPU, beside its memory, and how fast a model of 7 billion parameters is.

mod works;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use ggforge::cuda::{Cuda, Driver, Gpu, Products, Timed};
use ggforge::gguf::Model;
use ggforge::model::{Backend, Batch, Network, Residency};
use ggforge::report::{Cell, Table, json_text};
use ggforge::{Error, Result};
use serde_json::{Value, json};

use super::shape::Shape;
use crate::arguments::output_path;
use crate::exit::{Failure, print};
use crate::terminal::fitted;
use crate::{Run, Session, size};

/// Time the kernels of a GPU beside what its memory can do
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ggforge bench cuda
  ggforge bench cuda --filter gemv --output gemv.json
  ggforge bench cuda --model llama-Q4_K_M.gguf
  ggforge bench cuda --models-only --shape 7b --folder /tmp")]
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
    /// Only kernels whose work and shape have one of these in them
    #[arg(long, value_name = "TEXT,..", value_delimiter = ',', conflicts_with = "models_only")]
    filter: Vec<String>,
    /// No kernels
    #[arg(long)]
    models_only: bool,
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
    /// Write the JSON to this file, too, anew after every line
    #[arg(long, value_name = "FILE.json", value_parser = output_path())]
    output: Option<PathBuf>,
}

/// Batches that a model is timed for, and tokens that are generated one after the other.
const N_BATCHES: usize = 4;
const N_DECODED: usize = 32;

impl Run for CudaBench {
    const NAME: &'static str = "cuda";

    fn run(self, session: &Session) -> Result<(), Failure> {
        let gpu = Driver::start().and_then(|driver| driver.choose(self.gpu)).map_err(without_device_hint)?;
        let mut report = Report::new(&self, gpu);
        report.begin()?;
        if !self.models_only {
            self.kernels(&mut report)?;
        }
        for path in self.models(session)? {
            for residency in [Residency::Resident, Residency::Streamed] {
                let cuda = Cuda::open(&report.gpu, self.gpu_memory, Products::Best)?;
                self.time_model(&cuda, &path, residency, &mut report.models)?;
                report.write()?;
            }
        }
        report.end()
    }
}

/// The error less the advice to take the CPU: there is nothing here that it could do.
fn without_device_hint(error: Error) -> Error {
    match error {
        Error::Gpu { what, hint } => {
            let advice = hint.split(" use --device cpu").next().unwrap_or_default();
            Error::Gpu { what, hint: advice.trim_end_matches(" or").trim_end_matches([',', ';']).to_owned() }
        }
        other => other,
    }
}

/// What has been found so far. Every line is told at once: whatever ends the run, what it found is there.
struct Report<'a> {
    options: &'a CudaBench,
    gpu: Gpu,
    kernels: Vec<Kernel>,
    models: Table,
}

/// A kernel at work on some shape.
struct Kernel {
    work: String,
    shape: String,
    timed: Timed,
}

impl Report<'_> {
    fn new(options: &CudaBench, gpu: Gpu) -> Report<'_> {
        let models = Table::new(&["model", "residency", "load s", "tokens/s", "tokens/s with load", "decoded tokens/s", "peak"]);
        Report { options, gpu, kernels: Vec::new(), models }
    }

    fn tells(&self, text: &str) -> Result<(), Failure> {
        if self.options.json { Ok(()) } else { print(text) }
    }

    fn begin(&self) -> Result<(), Failure> {
        let Gpu { name, capability: (major, minor), n_multiprocessors, clock_hz, .. } = &self.gpu;
        let ghz = *clock_hz as f64 / 1e9;
        let peak = match (self.gpu.tensor_operations_per_clock(), self.gpu.tensor_operations_per_second()) {
            (Some(per_clock), Some(peak)) => format!(
                "peak, computed: {n_multiprocessors} multiprocessors x {ghz:.3} GHz x {per_clock} operations a clock = {:.1} TFLOP/s",
                peak / 1e12
            ),
            _ => "peak: unknown".to_owned(),
        };
        self.tells(&format!("{name}, compute capability {major}.{minor}\n{peak}\n"))?;
        if self.options.models_only {
            return Ok(());
        }
        let titles = ["work", "shape", "ms", "GB/s", "of copying", "TFLOP/s", "of peak", "of product"];
        self.tells(&line(titles.map(str::to_owned)))
    }

    fn add(&mut self, work: &str, shape: &str, timed: Timed) -> Result<(), Failure> {
        let kernel = Kernel { work: work.to_owned(), shape: shape.to_owned(), timed };
        self.kernels.push(kernel);
        let kernel = &self.kernels[self.kernels.len() - 1];
        let [gb, of_copying, tflop, of_peak, of_product] = self.shares(&timed);
        let fixed = |x: Option<f64>, digits: usize| x.map_or_else(String::new, |x| format!("{x:.digits$}"));
        let cells = [fixed(gb, 1), fixed(of_copying, 3), fixed(tflop, 2), fixed(of_peak, 3), fixed(of_product, 3)];
        let ms = format!("{:.4}", timed.seconds * 1e3);
        let [a, b, c, d, e] = cells;
        self.tells(&line([kernel.work.clone(), kernel.shape.clone(), ms, a, b, c, d, e]))?;
        self.write()
    }

    /// GB/s, the share of what a copy moves, TFLOP/s, the shares of the computed peak and of the fastest product.
    fn shares(&self, timed: &Timed) -> [Option<f64>; 5] {
        let copy = self.kernels.iter().find(|kernel| kernel.work == "copy").map(|kernel| bytes_per_second(&kernel.timed));
        let products = self.kernels.iter().filter(|kernel| kernel.work.starts_with("product"));
        let product = products.map(|kernel| operations_per_second(&kernel.timed)).reduce(f64::max);
        let (bytes, operations) = (bytes_per_second(timed), operations_per_second(timed));
        let operations = Some(operations).filter(|operations| *operations > 0.0);
        let of = |whole: Option<f64>| operations.zip(whole).map(|(operations, whole)| operations / whole);
        [
            Some(bytes / 1e9),
            copy.map(|copy| bytes / copy),
            operations.map(|operations| operations / 1e12),
            of(self.gpu.tensor_operations_per_second()),
            of(product),
        ]
    }

    fn json(&self) -> Value {
        let kernel = |Kernel { work, shape, timed }: &Kernel| {
            let [gb, of_copying, tflop, of_peak, of_product] = self.shares(timed);
            json!({
                "work": work, "shape": shape, "seconds": timed.seconds, "seconds_best": timed.seconds_best,
                "n_bytes": timed.n_bytes, "n_operations": timed.n_operations, "gb_per_second": gb, "of_copying": of_copying,
                "tflop_per_second": tflop, "of_computed_peak": of_peak, "of_fastest_product": of_product,
            })
        };
        let kernels: Vec<Value> = self.kernels.iter().map(kernel).collect();
        let gpu = &self.gpu;
        json!({
            "gpu": gpu.name,
            "capability": [gpu.capability.0, gpu.capability.1],
            "n_multiprocessors": gpu.n_multiprocessors,
            "clock_hz": gpu.clock_hz,
            "tensor_operations_per_clock": gpu.tensor_operations_per_clock(),
            "computed_peak_operations_per_second": gpu.tensor_operations_per_second(),
            "kernels": kernels,
            "models": self.models.json(),
        })
    }

    fn write(&self) -> Result<(), Failure> {
        let Some(path) = &self.options.output else { return Ok(()) };
        Ok(std::fs::write(path, json_text(&self.json())).map_err(|e| Error::io(path, "write", e))?)
    }

    fn end(&self) -> Result<(), Failure> {
        self.write()?;
        if self.options.json {
            return print(&json_text(&self.json()));
        }
        if self.models.is_empty() { Ok(()) } else { print(&fitted(&self.models)) }
    }
}

fn bytes_per_second(timed: &Timed) -> f64 {
    timed.n_bytes / timed.seconds
}

fn operations_per_second(timed: &Timed) -> f64 {
    timed.n_operations / timed.seconds
}

/// Columns as wide as what is put into them, as a line is printed before the next one is known.
fn line([work, shape, ms, gb, of_copying, tflop, of_peak, of_product]: [String; 8]) -> String {
    let line = format!("{work:<24} {shape:<30} {ms:>9} {gb:>8} {of_copying:>10} {tflop:>8} {of_peak:>8} {of_product:>10}");
    line.trim_end().to_owned() + "\n"
}

impl CudaBench {
    /// Times every kind of kernel, and the products of other GPUs where this one has better ones.
    fn kernels(&self, report: &mut Report) -> Result<(), Failure> {
        let is_wanted = |work: &works::Named| {
            let line = format!("{} {}", work.name, work.shape);
            self.filter.is_empty() || self.filter.iter().any(|text| line.contains(text.as_str()))
        };
        let cuda = Cuda::open(&report.gpu, self.gpu_memory, Products::Best)?;
        let memory_bytes = cuda.memory_bytes();
        for work in works::works(memory_bytes).into_iter().filter(|work| work.name == "copy" || is_wanted(work)) {
            report.add(&work.name, &work.shape, cuda.time(work.work, self.samples)?)?;
        }
        drop(cuda);
        if report.gpu.capability == (9, 0) {
            let cuda = Cuda::open(&report.gpu, self.gpu_memory, Products::Portable)?;
            for work in works::products(memory_bytes).into_iter().filter(is_wanted) {
                report.add("product (8.0)", &work.shape, cuda.time(work.work, self.samples)?)?;
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
        let model = Model::open_unmapped(path)?;
        let network = match Network::open(cuda, &model, self.ctx + N_DECODED, residency) {
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
        // Whole passes of streamed layers for each token are no way to generate.
        let decoded = if residency == Residency::Resident { Some(decoded(&network, cuda, &tokens[..self.ctx])?) } else { None };
        table.push([
            Cell::Text(path.display().to_string()),
            Cell::Text(format!("{residency:?}").to_lowercase()),
            Cell::Fixed(load_seconds, 2),
            Cell::Fixed(N_BATCHES as f64 * n_tokens / seconds, 0),
            Cell::Fixed(with_load, 0),
            decoded.map_or(Cell::Empty, |speed| Cell::Fixed(speed, 1)),
            Cell::Bytes(cuda.memory_bytes_peak()),
        ]);
        Ok(())
    }
}

/// Tokens per second, generated one after the other behind a prompt.
fn decoded(network: &Network<Cuda>, cuda: &Cuda, prompt: &[u32]) -> Result<f64> {
    let mut cache = network.cache()?;
    let mut next = |tokens: &[u32]| -> Result<u32> {
        let states = network.extend(tokens, &mut cache)?;
        let last = network.normalised(&states, &[tokens.len() as u32 - 1])?;
        let logits = cuda.logits(&last, network.output())?;
        let likeliest = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
        Ok(likeliest.unwrap_or(0) as u32)
    };
    // The first pass of one token loads its kernels.
    let mut token = next(&prompt[..prompt.len() - 1])?;
    token = next(&[token])?;
    let started = Instant::now();
    for _ in 1..N_DECODED {
        token = next(&[token])?;
    }
    Ok((N_DECODED - 1) as f64 / started.elapsed().as_secs_f64())
}
