//! `ggforge generate`: continue a text, to see with one's own eyes that a model works.

use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use ggforge::error::is_harmless;
use ggforge::gguf::Model;
use ggforge::model::{Activations, Backend, Generation, Hparams, Needs, Network, Residency, Sampler, Sampling, Work, Workload};
use ggforge::report::json_text;
use ggforge::tokenizer::encode::{Ends, Specials, Tokenizer};
use serde_json::json;

use crate::chat;
use crate::device::{DeviceOptions, Job};
use crate::exit::{Failure, named, print, say, stream};
use crate::terminal::warn;
use crate::{Run, Session, signals};

/// Continue a text with a model
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ggforge generate llama.gguf --prompt 'Once upon a time'
  ggforge generate llama.gguf --prompt 'Why is the sky blue?' --chat -n 200
  ggforge generate llama.gguf --prompt 'A poem:' --temp 0.8 --seed 7")]
pub struct Generate {
    /// GGUF file, or any shard of a split model
    #[arg(value_name = "MODEL.gguf")]
    model: PathBuf,
    /// The text to continue
    #[arg(long, short, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: String,
    /// Tokens to generate at most
    #[arg(long, short = 'n', value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(..=TOKENS_MAX))]
    tokens: u32,
    /// Put the prompt as a question, by the model's chat template
    #[arg(long)]
    chat: bool,
    /// What the chat template is told before the question
    #[arg(long, value_name = "TEXT", requires = "chat", allow_hyphen_values = true)]
    system: Option<String>,
    /// How freely tokens are chosen: 0 takes the likeliest, 1 is what the model says
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temp: f32,
    /// Choose from so many of the likeliest tokens; 0 for all
    #[arg(long, value_name = "K", default_value_t = 40)]
    top_k: usize,
    /// Choose from the likeliest tokens that have this probability together
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    top_p: f32,
    /// Start of the random numbers: the same seed gives the same text
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    device: DeviceOptions,
    /// Print JSON at the end instead of text as it comes
    #[arg(long)]
    json: bool,
}

/// Tokens to generate: as long a text as any model has a context for, and the angles of their positions take a second to compute.
const TOKENS_MAX: i64 = 1 << 20;

impl Run for Generate {
    const NAME: &'static str = "generate";

    fn run(self, session: &Session) -> Result<(), Failure> {
        signals::end_at_once();
        let Generate { temp, top_k, top_p, seed, .. } = self;
        let sampler = Sampler::new(Sampling { temperature: temp, top_k, top_p, seed })?;
        let model = Model::open(&self.model)?;
        let hparams = Hparams::read(&model).map_err(named(&self.model))?;
        let tokenizer = Tokenizer::from_metadata(&model.shards()[0]).map_err(named(&self.model))?;
        tokenizer.warnings().iter().for_each(|warning| warn(warning));
        let prompt = self.prompt_ids(&model, &tokenizer)?;
        let n_ctx = prompt.len() + self.tokens as usize;
        if n_ctx > hparams.n_ctx_train {
            warn(&format!("{n_ctx} tokens of context; the model was trained for {}", hparams.n_ctx_train));
        }
        let continuation = Continuation { arguments: &self, session, model: &model, tokenizer: &tokenizer, prompt, n_ctx, sampler };
        self.device.run(session, Activations::F32, continuation)
    }
}

/// Everything that is needed to continue a text.
struct Continuation<'a> {
    arguments: &'a Generate,
    session: &'a Session,
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    prompt: Vec<u32>,
    n_ctx: usize,
    sampler: Sampler,
}

impl Job for Continuation<'_> {
    type Output = ();

    fn workload(&self) -> Result<Workload, Failure> {
        let needs = Needs::of(self.model, self.n_ctx).map_err(named(&self.arguments.model))?;
        Ok(Workload { models: vec![needs], work: Work::Generation { n_prompt: self.prompt.len() } })
    }

    fn run<B: Backend>(self, backend: &B, residency: Residency) -> Result<(), Failure> {
        let Continuation { arguments, session, model, tokenizer, prompt, n_ctx, sampler } = self;
        let network = Network::open(backend, model, n_ctx, residency).map_err(named(&arguments.model))?;

        let started = Instant::now();
        let mut generation = Generation::start(&network, &prompt, sampler)?;
        let of_prompt = Speed { n_tokens: prompt.len(), time: started.elapsed() };
        let started = Instant::now();
        let mut text = Text { pending: Vec::new(), is_raw: !io::stdout().is_terminal() };
        let (mut tokens, mut whole) = (Vec::new(), String::new());
        let n_tokens_max = arguments.tokens as usize;
        let mut stop_token = None;
        while tokens.len() < n_tokens_max {
            let token = generation.next_token()?;
            tokens.push(token);
            if tokenizer.ends_generation(token) {
                stop_token = Some(token);
                break;
            }
            let new = text.add(&tokenizer.piece(token, Specials::Literal));
            if arguments.json {
                whole += &new;
            } else if let ControlFlow::Break(()) = stream(&new)? {
                return Ok(());
            }
        }
        let of_text = Speed { n_tokens: tokens.len(), time: started.elapsed() };
        let rest = text.finish();
        if arguments.json {
            let speed = json!({ "prompt": of_prompt.per_second(), "generation": of_text.per_second() });
            return print(&json_text(&json!({
                "prompt": prompt, "tokens": tokens, "text": whole + &rest, "tokens_per_second": speed,
                "stop_reason": if stop_token.is_some() { "end_of_generation" } else { "length" }, "stop_token": stop_token,
            })));
        }
        print(&(rest + "\n"))?;
        if !session.quiet {
            say(&format!("prompt: {of_prompt}; text: {of_text}\n"));
        }
        Ok(())
    }
}

impl Generate {
    /// The prompt's tokens: with what the model wants before a text, once.
    fn prompt_ids(&self, model: &Model, tokenizer: &Tokenizer) -> Result<Vec<u32>, ggforge::Error> {
        let text = match self.chat {
            false => self.prompt.clone(),
            true => chat::render(model, tokenizer, self.system.as_deref(), &self.prompt)?,
        };
        let mut ids = tokenizer.encode(&text, Specials::Parse, Ends::Omit);
        tokenizer.begin(&mut ids);
        Ok(ids)
    }
}

/// Tokens and the time they took.
struct Speed {
    n_tokens: usize,
    time: Duration,
}

impl Speed {
    fn per_second(&self) -> f64 {
        self.n_tokens as f64 / self.time.as_secs_f64().max(1e-9)
    }
}

impl std::fmt::Display for Speed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} tokens, {:.1} tokens/s", self.n_tokens, self.per_second())
    }
}

/// Bytes that become text once their characters are complete.
struct Text {
    pending: Vec<u8>,
    /// A terminal is not shown what could drive it.
    is_raw: bool,
}

impl Text {
    /// The characters that `bytes` complete.
    fn add(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        while !self.pending.is_empty() {
            let (valid, skipped) = match str::from_utf8(&self.pending) {
                Ok(valid) => (valid.len(), Some(0)),
                Err(e) => (e.valid_up_to(), e.error_len()),
            };
            text += str::from_utf8(&self.pending[..valid]).expect("what was just found valid");
            // None: the character may still be completed.
            let Some(skipped) = skipped else {
                self.pending.drain(..valid);
                break;
            };
            if skipped > 0 {
                text.push(char::REPLACEMENT_CHARACTER);
            }
            self.pending.drain(..valid + skipped);
        }
        self.shown(text)
    }

    /// What is left, though it is no character.
    fn finish(self) -> String {
        if self.pending.is_empty() { String::new() } else { char::REPLACEMENT_CHARACTER.to_string() }
    }

    fn shown(&self, text: String) -> String {
        if self.is_raw {
            return text;
        }
        let keep = |c: char| c == '\n' || c == '\t' || is_harmless(c);
        text.chars().map(|c| if keep(c) { c.to_string() } else { c.escape_default().to_string() }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_shown_when_they_are_complete() {
        let mut text = Text { pending: Vec::new(), is_raw: false };
        let parts = [&b"a\xe2"[..], b"\x82", b"\xac!", b"\xff", b"\x1b[2J\n", b"\xf0\x9f"];
        let shown: Vec<String> = parts.iter().map(|bytes| text.add(bytes)).collect();
        assert_eq!(shown, ["a", "", "€!", "\u{fffd}", "\\u{1b}[2J\n", ""]);
        assert_eq!(text.finish(), "\u{fffd}");
    }
}
