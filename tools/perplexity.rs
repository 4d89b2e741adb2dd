//! `ggforge perplexity`: how well a model foretells a text.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use clap::Args;
use ggforge::eval::Windows;
use ggforge::eval::perplexity::{self, Perplexity as Measured};
use ggforge::model::{Backend, Residency, Workload};
use ggforge::report::json_text;
use serde_json::json;

use crate::device::{Device, Job};
use crate::exit::{Failure, print};
use crate::measuring::{Loaded, MachineOptions, TextOptions, extent, speed, timed, workload};
use crate::{Run, Session, signals};

/// Measure how well a model foretells a text
///
/// The protocol is llama-perplexity's, so figures compare: the text is cut into chunks of --ctx tokens, each chunk begins with the model's
/// BOS token where it has one, and the tokens of the second half are scored.
///
/// The figure behind ± is one standard error over the scored tokens, as llama-perplexity prints it: it says how far the perplexity on more
/// text of the same kind may be off, not how exact the arithmetic is. Two models on the same text are compared far more sharply by
/// `ggforge compare`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ggforge perplexity llama-Q4_K_M.gguf --file wiki.test.raw
  ggforge perplexity llama-Q4_K_M.gguf --file wiki.test.raw --chunks 20 --json
  ggforge perplexity llama-Q4_K_M.gguf --file wiki.test.raw --activations q8")]
pub struct Perplexity {
    /// GGUF file, any shard of a split model, or model folder
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    #[command(flatten)]
    text: TextOptions,
    /// Let chunks begin N tokens apart, and score the last N of each
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    #[command(flatten)]
    machine: MachineOptions,
    /// Report as JSON on stdout
    #[arg(long)]
    json: bool,
}

impl Run for Perplexity {
    const NAME: &'static str = "perplexity";
    const ALIASES: &'static [&'static str] = &["ppl"];

    fn run(self, session: &Session) -> Result<(), Failure> {
        signals::end_at_once();
        let loaded = Loaded::open(&self.model)?;
        let windows = self.text.windows(&loaded.tokenizer, self.stride)?;
        let measuring = Measuring { loaded: &loaded, windows: &windows, session };
        let (measured, device) = self.machine.run(session, measuring)?;
        print(&if self.json {
            self.as_json(&windows, &measured, &device)
        } else {
            self.as_text(&loaded, &windows, &measured, &device)
        })
    }
}

/// What is measured, on whichever machine.
struct Measuring<'a> {
    loaded: &'a Loaded,
    windows: &'a Windows,
    session: &'a Session,
}

impl Job for Measuring<'_> {
    type Output = (Measured, f64);

    fn workload(&self) -> Result<Workload, Failure> {
        workload([self.loaded], self.windows)
    }

    fn run<B: Backend>(self, backend: &B, residency: Residency) -> Result<(Measured, f64), Failure> {
        let network = self.loaded.network(backend, self.windows, residency)?;
        self.loaded.warn_of_context(&network, self.windows);
        // Signals end the process.
        let never = AtomicBool::new(false);
        Ok(timed("measuring", self.session, &never, |watch| perplexity::measure(&network, self.windows, watch))?)
    }
}

impl Perplexity {
    fn as_text(&self, loaded: &Loaded, windows: &Windows, (measured, seconds): &(Measured, f64), device: &Device) -> String {
        let Measured { ppl, nll, .. } = measured;
        let (model, text, activations) = (loaded.name(), self.text.name(), self.machine.activations.name());
        let (ppl, ppl_error, nll, nll_error) = (ppl.value, ppl.error, nll.value, nll.error);
        let (extent, speed) = (extent(windows), speed(windows.n_tokens(), *seconds));
        let place = device.place();
        format!(
            "{model}: perplexity {ppl:.4} ± {ppl_error:.4}, nll {nll:.5} ± {nll_error:.5} nats per token\n\
             {text}: {extent}\n{speed}, {activations} activations, {place}\n"
        )
    }

    fn as_json(&self, windows: &Windows, (measured, seconds): &(Measured, f64), device: &Device) -> String {
        json_text(&json!({
            "model": self.model.to_string_lossy(),
            "text": self.text.file.to_string_lossy(),
            "ctx": windows.ctx(),
            "stride": self.stride,
            "chunks": windows.len(),
            "scored_tokens": windows.n_scored(),
            "activations": self.machine.activations.name(),
            "device": device.id(),
            "perplexity": measured.ppl.value,
            "perplexity_error": measured.ppl.error,
            "nll": measured.nll.value,
            "nll_error": measured.nll.error,
            "seconds": seconds,
            "tokens_per_second": windows.n_tokens() as f64 / seconds,
        }))
    }
}
