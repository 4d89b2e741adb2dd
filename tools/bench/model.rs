//! `ggforge bench model`: tokens per second of a model, beside what the machine could do at best.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use ggforge::gguf::Model;
use ggforge::matmul::Engine;
use ggforge::model::{Activations, Backend, Batch, Ceilings, Cpu, Network, Residency};
use ggforge::report::{Cell, Table, decimal_bytes, json_text};
use ggforge::source::{SourceTensor, TensorSource};
use ggforge::{Error, Result};
use serde_json::{Value, json};

use crate::exit::{Failure, print};
use crate::terminal::fitted;
use crate::{Run, Session};

/// Measure how fast a model reads prompts and generates
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ggforge bench model llama.gguf
  ggforge bench model llama.gguf --prompt 128,2048 --generate 32 --threads 8 --json")]
pub struct ModelSpeed {
    /// GGUF file, or any shard of a split model
    #[arg(value_name = "MODEL.gguf")]
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
        let model = Model::open(&self.model)?;
        let n_threads = session.n_threads();
        let cpu = Cpu::new(Engine::detect(), n_threads, Activations::F32)?;
        let ceilings = cpu.ceilings();
        let n_ctx = self.prompt.iter().copied().max().unwrap_or(1).max(self.generate + 1);
        let network = Network::open(&cpu, &model, n_ctx, Residency::Resident)?;
        let weight_bytes = |n_tokens| weight_bytes(&model, &network, n_tokens);
        let mut timings = Vec::new();
        for &n_tokens in &self.prompt {
            let seconds = median(self.samples, || prompt(&network, n_tokens))?;
            let flops = network.hparams().flops(n_tokens, 0);
            timings.push(Timing { work: "prompt", n_tokens, seconds, flops, weight_bytes: weight_bytes(n_tokens) });
        }
        if self.generate > 0 {
            let n_tokens = self.generate;
            let seconds = median(self.samples, || generation(&network, n_tokens))?;
            let flops = (0..n_tokens).map(|before| network.hparams().flops(1, before)).sum();
            timings.push(Timing { work: "generate", n_tokens, seconds, flops, weight_bytes: weight_bytes(1) * n_tokens as f64 });
        }
        let weight_bytes = weight_bytes(usize::MAX);
        let report = Report { engine: cpu.engine().name(), n_threads, ceilings, weight_bytes, timings };
        print(&if self.json { json_text(&report.json()) } else { report.text() })
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
fn weight_bytes(model: &Model, network: &Network<'_, Cpu>, n_tokens: usize) -> f64 {
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
fn prompt(network: &Network<'_, Cpu>, n_tokens: usize) -> Result<()> {
    let tokens = tokens(network.hparams().n_vocab, n_tokens);
    let whole = 0..n_tokens;
    let states = network.evaluate(Batch { tokens: &tokens, sequences: std::slice::from_ref(&whole) }, &mut ())?;
    logits(network, &network.normalised(&states, &[n_tokens as u32 - 1])?)
}

/// Reads one token after the other.
fn generation(network: &Network<'_, Cpu>, n_tokens: usize) -> Result<()> {
    let mut cache = network.cache()?;
    for token in tokens(network.hparams().n_vocab, n_tokens) {
        let states = network.extend(&[token], &mut cache)?;
        logits(network, &network.normalised(&states, &[0])?)?;
    }
    Ok(())
}

/// Speed of what computes nonsense would say nothing.
fn logits(network: &Network<'_, Cpu>, x: &<Cpu as Backend>::Operand) -> Result<()> {
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

struct Report {
    engine: &'static str,
    n_threads: usize,
    ceilings: Ceilings,
    weight_bytes: f64,
    timings: Vec<Timing>,
}

impl Report {
    fn text(&self) -> String {
        let titles = ["work", "tokens", "tokens/s", "GFLOP/s per core", "% of peak", "GB/s of weights", "% of memory"];
        let mut table = Table::new(&titles);
        for timing in &self.timings {
            let Timing { work, n_tokens, seconds, flops, weight_bytes } = timing;
            table.push([
                Cell::Text((*work).to_owned()),
                Cell::Count(*n_tokens as u64),
                Cell::Real(*n_tokens as f64 / seconds),
                Cell::Real(flops / seconds / self.n_threads as f64 / 1e9),
                Cell::Fixed(100.0 * flops / seconds / self.ceilings.flops, 1),
                Cell::Real(weight_bytes / seconds / 1e9),
                Cell::Fixed(100.0 * weight_bytes / seconds / self.ceilings.bytes_read, 1),
            ]);
        }
        let Ceilings { flops, bytes_read } = self.ceilings;
        let threads = if self.n_threads == 1 { "thread" } else { "threads" };
        let cores = self.n_threads as f64;
        format!(
            "{}, {} {threads}: {:.1} GFLOP/s per core in registers, {:.1} GB/s from memory; weights: {}\n\n{}",
            self.engine,
            self.n_threads,
            flops / cores / 1e9,
            bytes_read / 1e9,
            decimal_bytes(self.weight_bytes as u64),
            fitted(&table)
        )
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
            "engine": self.engine,
            "n_threads": self.n_threads,
            "ceilings": { "flops_per_s": self.ceilings.flops, "bytes_read_per_s": self.ceilings.bytes_read },
            "weight_bytes": self.weight_bytes,
            "timings": self.timings.iter().map(timing).collect::<Vec<_>>(),
        })
    }
}
