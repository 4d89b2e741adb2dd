//! `ggforge imatrix MODEL`: runs a model over a text and writes down which columns of its weights matter.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};

use clap::Args;
use ggforge::Error;
use ggforge::eval::Windows;
use ggforge::eval::collect::{self, Checkpoints, OutputLayer};
use ggforge::gguf::Model;
use ggforge::imatrix::{CHUNK_SIZE_DEFAULT, Imatrix as Matrix, Wanted};
use ggforge::model::{Backend, Residency, Workload};
use ggforge::pipeline;
use ggforge::report::{json_text, printable};
use ggforge::source::TensorSource;
use serde_json::json;

use super::{describe, existing, experts, table, write};
use crate::Session;
use crate::arguments::output_path;
use crate::device::{Device, Job};
use crate::exit::{self, Failure};
use crate::measuring::{Loaded, MachineOptions, TextOptions, chunks, dataset, speed, timed, workload};
use crate::model;
use crate::signals::Stop;
use crate::terminal::warn;

#[derive(Debug, Args)]
pub struct Collect {
    /// GGUF file to run, any shard of a split model, or model folder
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    #[command(flatten)]
    text: TextOptions,
    /// File to write: the older format if its name ends in .dat, GGUF otherwise
    #[arg(long, short, value_name = "FILE", value_parser = output_path(), alias = "output-file")]
    output: PathBuf,
    /// Collect for the output matrix too, or for the embedding that stands for it
    #[arg(long)]
    output_layer: bool,
    /// Go on where this file, made from the same text, ends; the new file holds both
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// Leave out the first N chunks of the text
    #[arg(long, value_name = "N", default_value_t = 0, alias = "from-chunk")]
    first_chunk: usize,
    /// Write what is known to the output after every N chunks, and when a signal stops the run; 0 writes it at the end alone
    #[arg(long, value_name = "N", default_value_t = 10, alias = "output-frequency")]
    save_every: usize,
    #[command(flatten)]
    machine: MachineOptions,
    /// Replace an existing output
    #[arg(long)]
    force: bool,
    /// Report as JSON on stdout
    #[arg(long)]
    json: bool,
}

/// Writes the output: at the end, and before that what is known by then.
struct Saver<'a> {
    output: &'a Path,
    force: bool,
    inputs: &'a [PathBuf],
    /// What an earlier run found.
    before: Option<Matrix>,
    /// Chunks in the file that this run has written, which it may replace.
    n_saved: Cell<Option<u32>>,
}

impl Saver<'_> {
    fn whole(&self, collected: Matrix) -> Result<Matrix, Error> {
        let Some(mut before) = self.before.clone() else { return Ok(collected) };
        before.add(Matrix { datasets: Vec::new(), ..collected })?;
        Ok(before)
    }

    fn save(&self, matrix: &Matrix) -> Result<(), Error> {
        write(self.output, matrix, self.force || self.n_saved.get().is_some(), self.inputs)?;
        self.n_saved.set(Some(matrix.chunk_count));
        Ok(())
    }

    /// The run goes on where this fails: there may be room, or permission, at the end.
    fn checkpoint(&self, collected: Matrix) {
        if let Err(error) = self.whole(collected).and_then(|matrix| self.save(&matrix)) {
            warn(&format!("what is known so far could not be saved: {error}"));
        }
    }
}

/// What is collected, on whichever machine.
struct Collecting<'a> {
    loaded: &'a Loaded,
    windows: &'a Windows,
    output_layer: OutputLayer,
    dataset: &'a str,
    save_every: Option<NonZeroUsize>,
    saver: &'a Saver<'a>,
    session: &'a Session,
}

impl Job for Collecting<'_> {
    type Output = (Matrix, f64);

    fn workload(&self) -> Result<Workload, Failure> {
        workload([self.loaded], self.windows)
    }

    fn run<B: Backend>(self, backend: &B, residency: Residency) -> Result<(Matrix, f64), Failure> {
        let Collecting { loaded, windows, output_layer, dataset, save_every, saver, session } = self;
        let network = loaded.network(backend, windows, residency)?;
        loaded.warn_of_context(&network, windows);
        let stop = Stop::on_signals().map_err(|e| Error::io("signal", "handle", e))?;
        let collected = timed("collecting", session, stop.flag(), |watch| {
            let save = |collected| saver.checkpoint(collected);
            let checkpoints = save_every.map(|every| Checkpoints { every, save: &save });
            collect::measure_saving(&network, windows, output_layer, dataset, watch, checkpoints)
        });
        collected.map_err(|error| stop.ended(error))
    }
}

impl Collect {
    pub fn run(self, session: &Session) -> Result<(), Failure> {
        let loaded = Loaded::open(&self.model)?;
        let mut windows = self.text.windows_from(&loaded.tokenizer, self.first_chunk)?;
        let dataset = dataset(&self.text.file);
        let shards = model::inputs(&loaded.path, &loaded.model);
        let inputs: Vec<PathBuf> = self.resume.iter().chain([&self.text.file]).cloned().chain(shards).collect();
        // An output that cannot be written is better found before the work than after it.
        pipeline::check_target(&self.output, existing(self.force), &inputs)?;
        let before = self.resume.as_deref().map(|path| self.resume(path, &dataset, &mut windows, &loaded.model)).transpose()?;
        let output_layer = if self.output_layer { OutputLayer::Collect } else { OutputLayer::Omit };

        let saver = Saver { output: &self.output, force: self.force, inputs: &inputs, before, n_saved: Cell::new(None) };
        let save_every = NonZeroUsize::new(self.save_every);
        let collecting =
            Collecting { loaded: &loaded, windows: &windows, output_layer, dataset: &dataset, save_every, saver: &saver, session };
        let collected = self.machine.run(session, collecting).map_err(|failure| match (failure, saver.n_saved.get()) {
            (Failure::Signal(signal), Some(n_chunks)) => Failure::Stopped(signal, self.left(n_chunks)),
            (failure, _) => failure,
        });
        let ((collected, seconds), device) = collected?;
        let matrix = saver.whole(collected)?;
        saver.save(&matrix)?;
        if self.json {
            return exit::print(&json_text(&self.as_json(&loaded.model, &matrix, seconds, &device)));
        }
        if session.quiet {
            return Ok(());
        }
        let speed = format!("{} {}", speed(windows.n_tokens(), seconds), device.place());
        let (what, covered) = (describe(&self.output, &matrix), coverage(&loaded.model, &matrix));
        exit::print(&format!("{what}  {covered}\n{}  {speed}\n", experts::line(&matrix)))
    }

    /// What a run that was stopped leaves.
    fn left(&self, n_chunks: u32) -> String {
        let name = printable(self.output.as_os_str().as_encoded_bytes());
        format!("{name} holds {}: --resume {name} goes on, with another --output", chunks(n_chunks.into()))
    }

    /// What an earlier run found, and the text without the chunks that it has seen.
    fn resume(&self, path: &Path, dataset: &str, windows: &mut Windows, model: &Model) -> Result<Matrix, Error> {
        let part = Matrix::open(path)?;
        check_model(&part, path, model)?;
        let merge = "ggforge imatrix merge adds up matrices of different texts";
        if part.datasets != [dataset] {
            let made_from = if part.datasets.is_empty() { "an unknown text".to_owned() } else { part.datasets.join(", ") };
            return Err(Error::usage(format!("{}: made from {made_from}, not from {dataset}; {merge}", path.display())));
        }
        if part.chunk_size as usize != windows.ctx() {
            let (chunk_size, ctx) = (part.chunk_size, windows.ctx());
            return Err(Error::usage(format!("{}: made with --ctx {chunk_size}, not {ctx}; {merge}", path.display())));
        }
        windows.skip(part.chunk_count as usize);
        if windows.is_empty() {
            let n_chunks = part.chunk_count;
            return Err(Error::usage(format!("{}: holds {n_chunks} chunks already: nothing is left to collect", path.display())));
        }
        // Counts of either format become counts of tokens.
        let mut before = Matrix::new(NonZeroU32::new(part.chunk_size).unwrap_or(CHUNK_SIZE_DEFAULT));
        before.add(part)?;
        Ok(before)
    }

    fn as_json(&self, model: &Model, matrix: &Matrix, seconds: f64, device: &Device) -> serde_json::Value {
        json!({
            "file": self.output.to_string_lossy(),
            "datasets": matrix.datasets,
            "chunk_count": matrix.chunk_count,
            "chunk_size": matrix.chunk_size,
            "entries": table(matrix).json(),
            "without_entry": without_entry(model, matrix),
            "experts_short_of_tokens": experts::as_json(matrix),
            "device": device.id(),
            "seconds": seconds,
        })
    }
}

/// Refuses what was made with another model, before hours of work rather than after them.
fn check_model(part: &Matrix, path: &Path, model: &Model) -> Result<(), Error> {
    let wanted = model.tensors().iter().filter_map(|tensor| {
        let [stacked @ .., _, n_columns] = &tensor.shape[..] else { return None };
        let size = |n: u64| usize::try_from(n).ok();
        Some(Wanted { name: &tensor.name, n_experts: size(stacked.iter().product())?, n_columns: size(*n_columns)? })
    });
    match part.coverage(&wanted.collect::<Vec<_>>())?.unused.first() {
        None => Ok(()),
        Some(name) => Err(Error::usage(format!("{}: made with another model: this one has no {name}", path.display()))),
    }
}

/// Matrices of the model that nothing is known of.
fn without_entry<'a>(model: &'a Model, matrix: &Matrix) -> Vec<&'a str> {
    let names = model.tensors().iter().filter(|tensor| tensor.shape.len() > 1).map(|tensor| tensor.name.as_str());
    names.filter(|name| !matrix.entries.contains_key(*name)).collect()
}

/// One line: `every column of all 28 tensors was used; nothing for token_embd.weight`.
fn coverage(model: &Model, matrix: &Matrix) -> String {
    let unused = matrix.entries.iter().filter_map(|(name, entry)| {
        let n_zero = entry.statistics().n_zero;
        (n_zero > 0).then(|| format!("{n_zero} columns of {name}"))
    });
    let unused: Vec<String> = unused.collect();
    let mut text = if unused.is_empty() {
        format!("every column of all {} tensors was used", matrix.entries.len())
    } else {
        format!("never used: {}", unused.join(", "))
    };
    let without: BTreeSet<&str> = without_entry(model, matrix).into_iter().collect();
    if !without.is_empty() {
        text += &format!("; nothing for {}", without.into_iter().collect::<Vec<_>>().join(", "));
    }
    text
}
