//! What every command that runs a model over a text shares: the options, the text, the model, and the machine it runs on.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use clap::{Args, ValueEnum};
use ggforge::eval::{self, Cut, Progress, Watch, Windows};
use ggforge::gguf::{File, Model};
use ggforge::model::{Activations, Backend, Hparams, Needs, Network, Residency, Work, Workload};
use ggforge::quant::bits_per_weight;
use ggforge::report::printable;
use ggforge::source::TensorSource;
use ggforge::tokenizer::encode::Tokenizer;
use ggforge::{Error, Result};

use crate::Session;
use crate::device::{Device, DeviceOptions, Job};
use crate::exit::{Failure, named};
use crate::model;
use crate::terminal::{TokenBar, warn};

/// The text, and how much of it.
#[derive(Debug, Args)]
pub struct TextOptions {
    /// The text, UTF-8; - is standard input
    #[arg(long, short, value_name = "FILE")]
    pub file: PathBuf,
    /// Tokens of a chunk, the context that the model sees
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub ctx: usize,
    /// Use only the first N chunks of the text
    #[arg(long, value_name = "N")]
    pub chunks: Option<usize>,
}

/// Where and how the model is computed.
#[derive(Debug, Args)]
pub struct MachineOptions {
    #[command(flatten)]
    device: DeviceOptions,
    /// What activations are rounded to before products: q8 does what llama.cpp does on a CPU
    #[arg(long, value_enum, default_value = "f32")]
    pub activations: Rounding,
}

/// What activations are rounded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Rounding {
    /// Nothing
    F32,
    /// 8 bits for quantized weights, 16 for others and for attention
    Q8,
}

impl Rounding {
    pub fn name(self) -> &'static str {
        match self {
            Rounding::F32 => "f32",
            Rounding::Q8 => "q8",
        }
    }
}

impl MachineOptions {
    /// Runs the job on the machine, with as many threads as the session asks for.
    ///
    /// # Errors
    /// As [`DeviceOptions::run`].
    pub fn run<J: Job>(&self, session: &Session, job: J) -> Result<(J::Output, Device), Failure> {
        let activations = match self.activations {
            Rounding::F32 => Activations::F32,
            Rounding::Q8 => Activations::Q8,
        };
        self.device.run(session, activations, job)
    }
}

/// A model file and its vocabulary.
pub struct Loaded {
    pub path: PathBuf,
    pub model: Model,
    pub tokenizer: Tokenizer,
}

impl Loaded {
    pub fn open(path: &Path) -> Result<Loaded, Failure> {
        let model = model::open(path)?;
        let tokenizer = Tokenizer::from_metadata(&model.shards()[0]).map_err(named(path))?;
        Ok(Loaded { path: path.to_owned(), model, tokenizer })
    }

    /// How messages and reports call it.
    pub fn name(&self) -> String {
        printable(self.path.as_os_str().as_encoded_bytes())
    }

    /// Its network. Layers are in memory, or read from the file as they are needed.
    pub fn network<'a, B: Backend>(
        &'a self,
        backend: &'a B,
        windows: &Windows,
        residency: Residency,
    ) -> Result<Network<'a, B>, Failure> {
        Network::open(backend, &self.model, windows.ctx(), residency).map_err(named(&self.path))
    }

    /// Warns of a context that the model was not trained for.
    pub fn warn_of_context<B: Backend>(&self, network: &Network<'_, B>, windows: &Windows) {
        warn_of_context(&self.path, network.hparams(), windows.ctx(), &format!("--ctx is {}", windows.ctx()));
    }

    /// All its files together.
    pub fn file_bytes(&self) -> u64 {
        self.model.shards().iter().map(File::size_bytes).sum()
    }

    /// Bits of tensor data per weight.
    pub fn bits_per_weight(&self) -> f64 {
        let tensors = self.model.tensors();
        let n_bytes: u64 = tensors.iter().map(|tensor| tensor.size_bytes).sum();
        let n_weights: u64 = tensors.iter().map(|tensor| tensor.shape.iter().product::<u64>()).sum();
        bits_per_weight(n_bytes, n_weights)
    }
}

impl TextOptions {
    /// The windows of the text, in the tokens of a model.
    pub fn windows(&self, tokenizer: &Tokenizer, stride: Option<usize>) -> Result<Windows> {
        self.cut(tokenizer, stride, self.chunks)
    }

    fn cut(&self, tokenizer: &Tokenizer, stride: Option<usize>, windows_max: Option<usize>) -> Result<Windows> {
        tokenizer.warnings().iter().for_each(|warning| warn(warning));
        let text = match self.file == Path::new("-") {
            true => eval::text_of("standard input", io::stdin().lock()),
            false => eval::read_text(&self.file),
        }?;
        let cut = Cut { ctx: self.ctx, stride, windows_max };
        Windows::of_text(&self.file, &text, tokenizer, &cut)
    }

    /// The windows of the text without the first `n_left_out`, of which `--chunks` then counts.
    ///
    /// # Errors
    /// As [`TextOptions::windows`]; `Usage` where none is left.
    pub fn windows_from(&self, tokenizer: &Tokenizer, n_left_out: usize) -> Result<Windows> {
        let windows_max = self.chunks.map(|n| if n == 0 { 0 } else { n.saturating_add(n_left_out) });
        let mut windows = self.cut(tokenizer, None, windows_max)?;
        let n_windows = windows.len();
        windows.skip(n_left_out);
        match windows.is_empty() {
            true => Err(Error::usage(format!("--first-chunk {n_left_out}, but the text has {}", chunks(n_windows as u64)))),
            false => Ok(windows),
        }
    }

    /// How reports call the text.
    pub fn name(&self) -> String {
        printable(self.file.as_os_str().as_encoded_bytes())
    }
}

/// Warns of a context of `n_ctx` tokens, which `asked` puts in words, where the model was not trained for it.
pub fn warn_of_context(path: &Path, hparams: &Hparams, n_ctx: usize, asked: &str) {
    let (name, trained) = (printable(path.as_os_str().as_encoded_bytes()), hparams.n_ctx_train);
    if n_ctx > trained {
        warn(&format!("{name}: trained for contexts of {trained} tokens, {asked}"));
    }
}

/// What it takes to run models over a text, side by side.
///
/// # Errors
/// As [`Needs::of`].
pub fn workload<'a>(models: impl IntoIterator<Item = &'a Loaded>, windows: &Windows) -> Result<Workload, Failure> {
    let needs = |loaded: &Loaded| Needs::of(&loaded.model, windows.ctx()).map_err(named(&loaded.path));
    let work = Work::Evaluation { n_sequences: windows.len(), n_scored: windows.scored().len() };
    Ok(Workload { models: models.into_iter().map(needs).collect::<Result<_, Failure>>()?, work })
}

/// Runs a measurement under a progress bar; returns what it found and the seconds it took.
pub fn timed<T>(
    what: &'static str,
    session: &Session,
    stop: &AtomicBool,
    measure: impl FnOnce(Watch<'_>) -> Result<T, Error>,
) -> Result<(T, f64)> {
    let bar = TokenBar::new(session, what);
    let started = Instant::now();
    let show = |progress: Progress| bar.show(progress);
    let found = measure(Watch { progress: &show, stop })?;
    Ok((found, started.elapsed().as_secs_f64()))
}

/// `12 chunks of 512 tokens, 3060 of them scored`.
pub fn extent(windows: &Windows) -> String {
    let n = chunks(windows.len() as u64);
    format!("{n} of {} tokens, {} of them scored", windows.ctx(), windows.n_scored())
}

/// `1 chunk`, `12 chunks`.
pub fn chunks(n: u64) -> String {
    format!("{n} chunk{}", if n == 1 { "" } else { "s" })
}

/// `6144 tokens in 1.2 s, 5120 tokens/s`.
pub fn speed(n_tokens: usize, seconds: f64) -> String {
    format!("{n_tokens} tokens in {seconds:.1} s, {:.0} tokens/s", n_tokens as f64 / seconds)
}

/// What a file that is made with a text calls it: the name of its file, without the folders, which concern nobody.
pub fn dataset(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
