//! `ggforge compare`: what quantizing a model cost.

use std::path::PathBuf;

use clap::Args;
use ggforge::Error;
use ggforge::eval::divergence::{self, Compared, Comparison};
use ggforge::eval::{Estimate, Watch, Windows};
use ggforge::model::{Backend, Residency, Workload};
use ggforge::report::page::{self, ComparedFile, Page};
use ggforge::report::{Cell, Table, beaten_by, decimal_bytes, json_text};
use serde_json::{Value, json};

use crate::device::{Device, Job};
use crate::exit::{Failure, print};
use crate::measuring::{Loaded, MachineOptions, TextOptions, extent, speed, timed, workload};
use crate::model;
use crate::page::PageOptions;
use crate::signals::Stop;
use crate::terminal::fitted;
use crate::{Run, Session};

/// Measure how far quantized files are from the file they were made from
///
/// All files run side by side over the same text, so no file of logits is needed, and the full distributions over the vocabulary are
/// compared. The Kullback-Leibler divergence (KLD) is 0 where a file foretells what the base foretells; it tells files apart that differ
/// by far less than the error of their perplexities.
///
/// The protocol is that of `ggforge perplexity`, and of llama-perplexity's --kl-divergence. Figures behind ± are one standard error over the
/// scored tokens; that of ln(PPL ratio) is of the paired differences. Of several files, one is beaten by another that is no larger and has a
/// smaller KLD; --report draws the line of those that none beats.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ggforge compare llama-BF16.gguf llama-Q4_K_M.gguf --file wiki.test.raw
  ggforge compare models/Llama-3.2-1B llama-Q4_K_M.gguf --file wiki.test.raw
  ggforge compare llama-BF16.gguf llama-Q8_0.gguf llama-Q4_K_M.gguf --file wiki.test.raw --chunks 40
  ggforge compare llama-BF16.gguf llama-Q*.gguf --file wiki.test.raw --report quants.html")]
pub struct Compare {
    /// What others are compared with: GGUF file, any shard, or model folder
    #[arg(value_name = "BASE")]
    base: PathBuf,
    /// The files to compare
    #[arg(value_name = "QUANT.gguf", required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    text: TextOptions,
    #[command(flatten)]
    machine: MachineOptions,
    #[command(flatten)]
    page: PageOptions,
    /// Report as JSON on stdout
    #[arg(long)]
    json: bool,
}

impl Run for Compare {
    const NAME: &'static str = "compare";

    fn run(self, session: &Session) -> Result<(), Failure> {
        let base = Loaded::open(&self.base)?;
        let others = self.files.iter().map(|path| Loaded::open(path)).collect::<Result<Vec<_>, Failure>>()?;
        for other in &others {
            divergence::check_same_vocabulary(&base.tokenizer, &other.tokenizer, &other.path)?;
        }
        let mut windows = self.text.windows(&base.tokenizer, None)?;
        let inputs = self.inputs(&base, &others);
        self.page.check(&inputs)?;
        let comparing = Comparing { base: &base, others: &others, windows: &windows, session };
        let (Outcome { comparison, seconds, stopped }, device) = self.machine.run(session, comparing)?;
        let n_windows = windows.len();
        windows.truncate(comparison.n_windows);
        let (arguments, base, others, windows, is_complete) = (&self, &base, &others, &windows, stopped.is_none());
        let report = Report { arguments, base, others, windows, comparison: &comparison, is_complete, seconds, device };
        let printed = if self.json { report.json() } else { report.text() };
        if let Some(signal) = stopped {
            print(&printed)?;
            let left = format!("these figures are of the first {} of {n_windows} chunks alone", comparison.n_windows);
            return Err(Failure::Stopped(signal, left));
        }
        let written = self.page.write(|| report.page(), &inputs, Some(&report.device))?;
        let written = if session.quiet || self.json { String::new() } else { written };
        print(&(printed + &written))
    }
}

/// What is compared, on whichever machine.
struct Comparing<'a> {
    base: &'a Loaded,
    others: &'a [Loaded],
    windows: &'a Windows,
    session: &'a Session,
}

/// What came of it.
struct Outcome {
    comparison: Comparison,
    seconds: f64,
    /// The signal that broke it off: then it is of a part of the text.
    stopped: Option<u8>,
}

impl Job for Comparing<'_> {
    type Output = Outcome;

    fn workload(&self) -> Result<Workload, Failure> {
        workload(std::iter::once(self.base).chain(self.others), self.windows)
    }

    fn run<B: Backend>(self, backend: &B, residency: Residency) -> Result<Outcome, Failure> {
        let Comparing { base, others, windows, session } = self;
        let network = base.network(backend, windows, residency)?;
        base.warn_of_context(&network, windows);
        let others = others.iter().map(|other| other.network(backend, windows, residency)).collect::<Result<Vec<_>, Failure>>()?;
        let stop = Stop::on_signals().map_err(|e| Error::io("signal", "handle", e))?;
        let measure = |watch: Watch<'_>| divergence::measure_until_stopped(&network, &others, windows, watch);
        let compared = timed("comparing", session, stop.flag(), measure);
        let (comparison, seconds) = compared.map_err(|error| stop.ended(error))?;
        let stopped = stop.signal().filter(|_| comparison.n_windows < windows.len());
        Ok(Outcome { comparison, seconds, stopped })
    }
}

impl Compare {
    /// Files that the page may not replace.
    fn inputs(&self, base: &Loaded, others: &[Loaded]) -> Vec<PathBuf> {
        let models = std::iter::once(base).chain(others).flat_map(|loaded| model::inputs(&loaded.path, &loaded.model));
        models.chain([self.text.file.clone()]).collect()
    }
}

/// Everything that is told about a comparison.
struct Report<'a> {
    arguments: &'a Compare,
    base: &'a Loaded,
    others: &'a [Loaded],
    windows: &'a Windows,
    comparison: &'a Comparison,
    /// False where a signal broke it off.
    is_complete: bool,
    seconds: f64,
    device: Device,
}

impl Report<'_> {
    fn rows(&self) -> impl Iterator<Item = (&Loaded, &Compared)> {
        self.others.iter().zip(&self.comparison.files)
    }

    fn text(&self) -> String {
        let Estimate { value, error } = self.comparison.ppl_base;
        let (base, activations) = (self.base.name(), self.arguments.machine.activations.name());
        let (size, bits) = (decimal_bytes(self.base.file_bytes()), self.base.bits_per_weight());
        let (text, extent) = (self.arguments.text.name(), extent(self.windows));
        let speed = speed(self.windows.n_tokens() * (1 + self.others.len()), self.seconds);
        format!(
            "base {base}: {size}, {bits:.2} bits per weight, perplexity {value:.4} ± {error:.4}\n\
             {text}: {extent}\n{speed}, {activations} activations, {}\n\n{}\n{}",
            self.device.place(),
            fitted(&self.means()),
            fitted(&self.quantiles()),
        )
    }

    /// The page: the same tables, and the plots.
    fn page(&self) -> Page {
        let files = self.rows().map(|(file, compared)| ComparedFile {
            name: file.name(),
            size_bytes: file.file_bytes(),
            kld_mean: compared.kld.value,
            kld_mean_error: compared.kld.error,
            klds: compared.klds.iter().map(|&kld| kld as f32).collect(),
            kld_by_position: compared.kld_by_position.clone(),
        });
        page::Comparison {
            title: format!("Quantized files against {}", self.base.name()),
            facts: self.facts(),
            figures: self.means(),
            distribution: self.quantiles(),
            files: files.collect(),
            // The scored token comes after the position that foretells it.
            position_first: self.windows.scored().start as u64 + 1,
        }
        .page()
    }

    fn facts(&self) -> Vec<(String, String)> {
        let Estimate { value, error } = self.comparison.ppl_base;
        let size = format!("{}, {:.2} bits per weight", decimal_bytes(self.base.file_bytes()), self.base.bits_per_weight());
        let facts = [
            ("base", self.base.name()),
            ("its size", size),
            ("its perplexity", format!("{value:.4} ± {error:.4}")),
            ("text", self.arguments.text.name()),
            ("extent", extent(self.windows)),
            ("activations", self.arguments.machine.activations.name().to_owned()),
        ];
        facts.map(|(word, value)| (word.to_owned(), value)).into()
    }

    /// For each file the one that beats it: no larger, and closer to the base.
    fn beaten_by(&self) -> Vec<Option<&Loaded>> {
        let sizes: Vec<(u64, f64)> = self.rows().map(|(file, compared)| (file.file_bytes(), compared.kld.value)).collect();
        beaten_by(&sizes).into_iter().map(|index| index.map(|index| &self.others[index])).collect()
    }

    /// What a person looks at first.
    fn means(&self) -> Table {
        let titles = ["file", "size", "bpw", "mean KLD", "same top %", "ln(PPL ratio)", "perplexity", "beaten by"];
        let mut table = Table::new(&titles);
        for ((file, compared), better) in self.rows().zip(self.beaten_by()) {
            table.push([
                file.name().into(),
                Cell::Bytes(file.file_bytes()),
                Cell::Fixed(file.bits_per_weight(), 2),
                cell(compared.kld, 1.0, 6),
                cell(compared.same_top, 100.0, 2),
                cell(compared.ln_ppl_ratio, 1.0, 5),
                cell(compared.ppl, 1.0, 4),
                better.map_or(Cell::Empty, |better| better.name().into()),
            ]);
        }
        table
    }

    /// How the divergence is distributed, and what it does to the token that came.
    fn quantiles(&self) -> Table {
        let mut table = Table::new(&["file", "KLD median", "90 %", "95 %", "99 %", "99.9 %", "max", "mean Δp %", "RMS Δp %"]);
        for (file, Compared { quantiles, mean_dp, rms_dp, .. }) in self.rows() {
            table.push([
                file.name().into(),
                Cell::Fixed(quantiles.median, 6),
                Cell::Fixed(quantiles.p90, 6),
                Cell::Fixed(quantiles.p95, 6),
                Cell::Fixed(quantiles.p99, 6),
                Cell::Fixed(quantiles.p99_9, 6),
                Cell::Fixed(quantiles.max, 6),
                cell(*mean_dp, 100.0, 3),
                cell(*rms_dp, 100.0, 3),
            ]);
        }
        table
    }

    fn json(&self) -> String {
        json_text(&json!({
            "base": {
                "file": self.arguments.base.to_string_lossy(),
                "size_bytes": self.base.file_bytes(),
                "bits_per_weight": self.base.bits_per_weight(),
                "perplexity": estimate(self.comparison.ppl_base),
            },
            "text": self.arguments.text.file.to_string_lossy(),
            "ctx": self.windows.ctx(),
            "chunks": self.windows.len(),
            "complete": self.is_complete,
            "scored_tokens": self.windows.n_scored(),
            "activations": self.arguments.machine.activations.name(),
            "device": self.device.id(),
            "files": self.rows().zip(self.beaten_by()).map(|(row, better)| file_json(row, better)).collect::<Vec<_>>(),
            "seconds": self.seconds,
        }))
    }
}

fn file_json((file, compared): (&Loaded, &Compared), better: Option<&Loaded>) -> Value {
    let Compared { quantiles, .. } = compared;
    json!({
        "file": file.path.to_string_lossy(),
        "size_bytes": file.file_bytes(),
        "bits_per_weight": file.bits_per_weight(),
        "perplexity": estimate(compared.ppl),
        "ln_perplexity_ratio": estimate(compared.ln_ppl_ratio),
        "kld": {
            "mean": estimate(compared.kld),
            "median": quantiles.median,
            "p90": quantiles.p90,
            "p95": quantiles.p95,
            "p99": quantiles.p99,
            "p99.9": quantiles.p99_9,
            "max": quantiles.max,
        },
        "mean_dp": estimate(compared.mean_dp),
        "rms_dp": estimate(compared.rms_dp),
        "same_top": estimate(compared.same_top),
        "beaten_by": better.map(|better| better.path.to_string_lossy()),
    })
}

/// A figure in some unit.
fn cell(estimate: Estimate, unit: f64, decimals: usize) -> Cell {
    Cell::Estimate(unit * estimate.value, unit * estimate.error, decimals)
}

fn estimate(estimate: Estimate) -> Value {
    json!({ "value": estimate.value, "error": estimate.error })
}
