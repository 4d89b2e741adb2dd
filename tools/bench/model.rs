//! `ggforge bench model`: tokens per second of a model, beside what the machine could do at best.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use ggforge::cuda::Gpu;
use ggforge::gguf::Model;
use ggforge::matmul::Engine;
use ggforge::model::{Activations, Backend, Batch, Ceilings, Cpu, Needs, Network, Residency, Work, Workload};
use ggforge::report::{Cell, Table, decimal_bytes, json_text};
use ggforge::source::{SourceTensor, TensorSource};
use ggforge::{Error, Result};
use serde_json::{Value, json};

use crate::device::{Device, DeviceOptions, Job};
use crate::exit::{Failure, named, print};
use crate::terminal::fitted;
use crate::{Run, Session, model};

/// Measure how fast a model reads prompts and generates
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ggforge bench model llama.gguf
  ggforge bench model llama.gguf --device cpu
  ggforge bench model llama.gguf --prompt 128,2048 --generate 32 --threads 8 --json")]
pub struct ModelSpeed {
    /// GGUF file, any shard of a split model, or model folder
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Lengths of prompts in tokens
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "128,512")]
    prompt: Vec<usize>,
    /// Tokens to generate
    #[arg(long, value_name = "N", default_value_t = 64)]
    generate: usize,
    /// Runs of each, of which the median counts
    #[arg(long, value_name = "N", default_value_t = 3)]
    samples: usize,
    #[command(flatten)]
    device: DeviceOptions,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Tokens of a prompt, and runs: enough for any machine, and no more memory than a model of it takes.
const TOKENS_MAX: usize = 1 << 17;
const SAMPLES_MAX: usize = 1000;

/// The speed of one kind of work.
struct Timing {
    work: &'static str,
    n_tokens: usize,
    seconds: f64,
    flops: f64,
    /// Bytes of weights that were read.
    weight_bytes: f64,
}

impl Run for ModelSpeed {
    const NAME: &'static str = "model";

    fn run(self, session: &Session) -> Result<(), Failure> {
        self.check()?;
        let model = model::open(&self.model)?;
        let n_ctx = self.prompt.iter().copied().max().unwrap_or(1).max(self.generate + 1);
        let (timed, device) = self.device.run(session, Activations::F32, Timed { arguments: &self, model: &model, n_ctx })?;
        let Measured { weight_bytes, timings } = timed;
        let machine = match device {
            Device::Cpu { .. } => Machine::cpu(session.n_threads())?,
            Device::Cuda(ref gpu) => Machine::gpu(gpu, &device),
        };
        let report = Report { machine, weight_bytes, timings };
        print(&if self.json { json_text(&report.json()) } else { report.text() })
    }
}

/// What is timed, on whichever machine.
struct Timed<'a> {
    arguments: &'a ModelSpeed,
    model: &'a Model,
    n_ctx: usize,
}

struct Measured {
    weight_bytes: f64,
    timings: Vec<Timing>,
}

impl Job for Timed<'_> {
    type Output = Measured;

    fn workload(&self) -> Result<Workload, Failure> {
        let needs = Needs::of(self.model, self.n_ctx).map_err(named(&self.arguments.model))?;
        let n_prompt = self.arguments.prompt.iter().copied().max().unwrap_or(1);
        Ok(Workload { models: vec![needs], work: Work::Generation { n_prompt } })
    }

    fn run<B: Backend>(self, backend: &B, residency: Residency) -> Result<Measured, Failure> {
        let Timed { arguments: &ModelSpeed { ref prompt, generate, samples, .. }, model, n_ctx } = self;
        let network = Network::open(backend, model, n_ctx, residency).map_err(named(&self.arguments.model))?;
        let weight_bytes = |n_tokens| weight_bytes(model, &network, n_tokens);
        let mut timings = Vec::new();
        for &n_tokens in prompt {
            let seconds = median(samples, || read_prompt(&network, n_tokens))?;
            let flops = network.hparams().flops(n_tokens, 0);
            timings.push(Timing { work: "prompt", n_tokens, seconds, flops, weight_bytes: weight_bytes(n_tokens) });
        }
        if generate > 0 {
            let seconds = median(samples, || generation(&network, generate))?;
            let flops = (0..generate).map(|before| network.hparams().flops(1, before)).sum();
            let weight_bytes = weight_bytes(1) * generate as f64;
            timings.push(Timing { work: "generate", n_tokens: generate, seconds, flops, weight_bytes });
        }
        Ok(Measured { weight_bytes: weight_bytes(usize::MAX), timings })
    }
}

impl ModelSpeed {
    fn check(&self) -> Result<()> {
        if self.prompt.iter().any(|n| !(1..=TOKENS_MAX).contains(n)) || self.generate > TOKENS_MAX {
            return Err(Error::usage(format!("prompts have from 1 to {TOKENS_MAX} tokens")));
        }
        if !(1..=SAMPLES_MAX).contains(&self.samples) {
            return Err(Error::usage(format!("--samples must be from 1 to {SAMPLES_MAX}")));
        }
        Ok(())
    }
}

/// Bytes of the weights that a pass of so many tokens multiplies with: all, but for an embedding that is not the output too, and for
/// experts that no token uses even if each token uses others.
fn weight_bytes<B: Backend>(model: &Model, network: &Network<'_, B>, n_tokens: usize) -> f64 {
    let is_multiplied = |name: &str| name != "token_embd.weight" || network.output_name() == name;
    let experts = network.hparams().layers.first().and_then(|layer| layer.experts);
    let share = experts.map_or(1.0, |experts| (n_tokens as f64 * experts.n_used as f64 / experts.n_expert as f64).min(1.0));
    let bytes = |tensor: &SourceTensor| tensor.size_bytes as f64 * if tensor.shape.len() == 3 { share } else { 1.0 };
    model.tensors().iter().filter(|tensor| is_multiplied(&tensor.name)).map(bytes).sum()
}

/// Tokens all over the vocabulary.
fn tokens(n_vocab: usize, n: usize) -> Vec<u32> {
    (0..n).map(|i| (i * 7919 % n_vocab) as u32).collect()
}

/// Reads a prompt up to the scores of the token after it.
fn read_prompt<B: Backend>(network: &Network<'_, B>, n_tokens: usize) -> Result<()> {
    let tokens = tokens(network.hparams().n_vocab, n_tokens);
    let whole = 0..n_tokens;
    let states = network.evaluate(Batch { tokens: &tokens, sequences: std::slice::from_ref(&whole) }, &mut ())?;
    logits(network, &network.normalised(&states, &[n_tokens as u32 - 1])?)
}

/// Reads one token after the other.
fn generation<B: Backend>(network: &Network<'_, B>, n_tokens: usize) -> Result<()> {
    let mut cache = network.cache()?;
    for token in tokens(network.hparams().n_vocab, n_tokens) {
        let states = network.extend(&[token], &mut cache)?;
        logits(network, &network.normalised(&states, &[0])?)?;
    }
    Ok(())
}

/// Speed of what computes nonsense would say nothing.
fn logits<B: Backend>(network: &Network<'_, B>, x: &B::Operand) -> Result<()> {
    match network.backend().logits(x, network.output())?.iter().all(|x| x.is_finite()) {
        true => Ok(()),
        false => Err(Error::malformed(
            network.path(),
            ggforge::error::Place::File,
            ggforge::error::Fault::NonFinite,
            "the model's scores are not numbers: some weight is NaN or infinite",
        )),
    }
}

/// Seconds of one run, after one that warms up.
fn median(n_samples: usize, run: impl Fn() -> Result<()>) -> Result<f64> {
    run()?;
    let mut samples = Vec::new();
    for _ in 0..n_samples {
        let started = Instant::now();
        run()?;
        samples.push(started.elapsed().as_secs_f64());
    }
    samples.sort_by(f64::total_cmp);
    Ok(samples[samples.len() / 2])
}

/// Where it was timed, and what could be done there at best.
struct Machine {
    /// As `--device` has it.
    id: String,
    /// As people call it.
    name: String,
    /// Of a CPU: what computes its products, and its threads.
    engine: Option<&'static str>,
    n_threads: Option<usize>,
    /// Of a CPU measured; of a GPU computed, where its kind is known.
    flops: Option<f64>,
    bytes_read: Option<f64>,
}

impl Machine {
    /// Measures the CPU: a second or two.
    fn cpu(n_threads: usize) -> Result<Machine> {
        let cpu = Cpu::new(Engine::detect(), n_threads, Activations::F32)?;
        let Ceilings { flops, bytes_read } = cpu.ceilings();
        let (engine, threads) = (cpu.engine().name(), if n_threads == 1 { "thread" } else { "threads" });
        Ok(Machine {
            id: "cpu".to_owned(),
            name: format!(
                "{engine}, {n_threads} {threads}: {:.1} GFLOP/s per core in registers, {:.1} GB/s from memory",
                flops / n_threads as f64 / 1e9,
                bytes_read / 1e9
            ),
            engine: Some(engine),
            n_threads: Some(n_threads),
            flops: Some(flops),
            bytes_read: Some(bytes_read),
        })
    }

    fn gpu(gpu: &Gpu, device: &Device) -> Machine {
        let flops = gpu.tensor_operations_per_second();
        Machine { id: device.id(), name: device.place(), engine: None, n_threads: None, flops, bytes_read: None }
    }
}

struct Report {
    machine: Machine,
    weight_bytes: f64,
    timings: Vec<Timing>,
}

impl Report {
    fn text(&self) -> String {
        // A GPU's cores are not counted.
        let speed = if self.machine.n_threads.is_some() { "GFLOP/s per core" } else { "GFLOP/s" };
        let mut table = Table::new(&["work", "tokens", "tokens/s", speed, "% of peak", "GB/s of weights", "% of memory"]);
        let percent = |of: Option<f64>, value: f64| of.map_or(Cell::Empty, |of| Cell::Fixed(100.0 * value / of, 1));
        for timing in &self.timings {
            let Timing { work, n_tokens, seconds, flops, weight_bytes } = timing;
            table.push([
                Cell::Text((*work).to_owned()),
                Cell::Count(*n_tokens as u64),
                Cell::Real(*n_tokens as f64 / seconds),
                Cell::Real(flops / seconds / self.machine.n_threads.unwrap_or(1) as f64 / 1e9),
                percent(self.machine.flops, flops / seconds),
                Cell::Real(weight_bytes / seconds / 1e9),
                percent(self.machine.bytes_read, weight_bytes / seconds),
            ]);
        }
        let weights = decimal_bytes(self.weight_bytes as u64);
        format!("{}; weights: {weights}\n\n{}", self.machine.name, fitted(&table))
    }

    fn json(&self) -> Value {
        let timing = |timing: &Timing| {
            json!({
                "work": timing.work,
                "n_tokens": timing.n_tokens,
                "seconds": timing.seconds,
                "tokens_per_s": timing.n_tokens as f64 / timing.seconds,
                "flops_per_s": timing.flops / timing.seconds,
                "weight_bytes_per_s": timing.weight_bytes / timing.seconds,
            })
        };
        json!({
            "device": self.machine.id,
            "engine": self.machine.engine,
            "n_threads": self.machine.n_threads,
            "ceilings": { "flops_per_s": self.machine.flops, "bytes_read_per_s": self.machine.bytes_read },
            "weight_bytes": self.weight_bytes,
            "timings": self.timings.iter().map(timing).collect::<Vec<_>>(),
        })
    }
}
