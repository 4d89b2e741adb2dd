//! `ggforge generate`: continue a text, to see with one's own eyes that a model works.

use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use ggforge::error::is_harmless;
use ggforge::gguf::Model;
use ggforge::model::{Activations, Backend, Generation, Hparams, Needs, Network, Residency, Sampler, Sampling, Work, Workload};
use ggforge::report::json_text;
use ggforge::tokenizer::encode::{Ends, Specials, Tokenizer, read_text, text_of};
use serde_json::{Value, json};

use crate::chat;
use crate::device::{Device, DeviceOptions, Job};
use crate::exit::{Failure, named, print, say, stream};
use crate::stops::Stops;
use crate::terminal::warn;
use crate::{Run, Session, model, signals};

/// Continue a text with a model
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ggforge generate llama.gguf 'Once upon a time'
  ggforge generate llama.gguf 'Why is the sky blue?' --chat -n 200
  ggforge generate llama.gguf --prompt 'A poem:' --temp 0.8 --seed 7
  ggforge generate llama.gguf --file chapter.txt --ctx 2048 --stop 'THE END'
  echo 'Once upon a time' | ggforge generate llama.gguf")]
pub struct Generate {
    /// GGUF file, any shard of a split model, or model folder
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The text to continue; - is standard input, which is also read where no text is given
    #[arg(value_name = "TEXT", conflicts_with_all = ["prompt", "file"])]
    text: Option<String>,
    /// The text to continue, whatever it begins with
    #[arg(long, short, value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "file")]
    prompt: Option<String>,
    /// Take the text to continue from a file, less a line break at its end; - is standard input
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Tokens to generate at most
    #[arg(long, short = 'n', value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(..=TOKENS_MAX))]
    tokens: u32,
    /// Tokens of prompt and text together at most [default: those of the prompt and -n]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=TOKENS_MAX))]
    ctx: Option<u32>,
    /// End where this text comes, which is not shown; may be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    stop: Vec<String>,
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
    const ALIASES: &'static [&'static str] = &["run"];

    fn run(self, session: &Session) -> Result<(), Failure> {
        signals::end_at_once();
        let Generate { temp, top_k, top_p, seed, .. } = self;
        let sampler = Sampler::new(Sampling { temperature: temp, top_k, top_p, seed })?;
        let model = model::open(&self.model)?;
        let hparams = Hparams::read(&model).map_err(named(&self.model))?;
        let tokenizer = Tokenizer::from_metadata(&model.shards()[0]).map_err(named(&self.model))?;
        tokenizer.warnings().iter().for_each(|warning| warn(warning));
        let prompt = self.prompt_ids(&model, &tokenizer)?;
        let n_ctx = self.n_ctx(prompt.len())?;
        if n_ctx > hparams.n_ctx_train {
            warn(&format!("{n_ctx} tokens of context; the model was trained for {}", hparams.n_ctx_train));
        }
        let continuation = Continuation { arguments: &self, model: &model, tokenizer: &tokenizer, prompt, n_ctx, sampler };
        match self.device.run(session, Activations::F32, continuation)? {
            (None, _) => Ok(()),
            (Some(generated), device) if self.json => print(&json_text(&generated.json(&device))),
            (Some(generated), device) => {
                if !session.quiet {
                    let Generated { of_prompt, of_text, .. } = &generated;
                    say(&format!("prompt: {of_prompt}; text: {of_text}; {}\n", device.place()));
                }
                Ok(())
            }
        }
    }
}

/// Everything that is needed to continue a text.
struct Continuation<'a> {
    arguments: &'a Generate,
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    prompt: Vec<u32>,
    n_ctx: usize,
    sampler: Sampler,
}

/// What came of it.
struct Generated {
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    /// For JSON alone.
    text: String,
    ended: Ended,
    of_prompt: Speed,
    of_text: Speed,
}

/// Why there is no more text.
enum Ended {
    /// As many tokens as were asked for.
    Length,
    /// The context is full.
    Context,
    /// The model says so, by this token.
    Token(u32),
    /// The text that was to end it.
    Text(String),
}

impl Generated {
    fn json(&self, device: &Device) -> Value {
        let (reason, token, text) = match &self.ended {
            Ended::Length => ("length", None, None),
            Ended::Context => ("context", None, None),
            Ended::Token(token) => ("end_of_generation", Some(token), None),
            Ended::Text(text) => ("stop_text", None, Some(text)),
        };
        json!({
            "prompt": self.prompt,
            "tokens": self.tokens,
            "text": self.text,
            "tokens_per_second": { "prompt": self.of_prompt.per_second(), "generation": self.of_text.per_second() },
            "device": device.id(),
            "stop_reason": reason,
            "stop_token": token,
            "stop_text": text,
        })
    }
}

impl Job for Continuation<'_> {
    /// `None` where nobody reads the text any more.
    type Output = Option<Generated>;

    fn workload(&self) -> Result<Workload, Failure> {
        let needs = Needs::of(self.model, self.n_ctx).map_err(named(&self.arguments.model))?;
        Ok(Workload { models: vec![needs], work: Work::Generation { n_prompt: self.prompt.len() } })
    }

    fn run<B: Backend>(self, backend: &B, residency: Residency) -> Result<Option<Generated>, Failure> {
        let Continuation { arguments, model, tokenizer, prompt, n_ctx, sampler } = self;
        let network = Network::open(backend, model, n_ctx, residency).map_err(named(&arguments.model))?;

        let started = Instant::now();
        let mut generation = Generation::start(&network, &prompt, sampler)?;
        let of_prompt = Speed { n_tokens: prompt.len(), time: started.elapsed() };
        let started = Instant::now();
        let is_terminal = io::stdout().is_terminal();
        let mut stops = Stops::new(&arguments.stop);
        let (mut characters, mut tokens, mut whole) = (Characters::default(), Vec::new(), String::new());
        let mut show = |new: String| {
            let new = if is_terminal { harmless(&new) } else { new };
            match arguments.json {
                true => {
                    whole += &new;
                    Ok(ControlFlow::Continue(()))
                }
                false => stream(&new),
            }
        };
        let n_tokens_max = n_ctx - prompt.len();
        let ended = loop {
            if tokens.len() == n_tokens_max {
                break if n_tokens_max < arguments.tokens as usize { Ended::Context } else { Ended::Length };
            }
            let token = generation.next_token()?;
            tokens.push(token);
            if tokenizer.ends_generation(token) {
                break Ended::Token(token);
            }
            let (new, stop) = stops.add(&characters.add(&tokenizer.piece(token, Specials::Literal)));
            if let ControlFlow::Break(()) = show(new)? {
                return Ok(None);
            }
            if let Some(stop) = stop {
                break Ended::Text(stop.to_owned());
            }
        };
        let of_text = Speed { n_tokens: tokens.len(), time: started.elapsed() };
        if !matches!(ended, Ended::Text(_)) {
            let (rest, _) = stops.add(&characters.finish());
            let _ = show(rest + &stops.finish())?;
        }
        if !arguments.json {
            print("\n")?;
        }
        Ok(Some(Generated { prompt, tokens, text: whole, ended, of_prompt, of_text }))
    }
}

impl Generate {
    /// The text to continue, wherever it was given.
    fn prompt(&self) -> Result<String, ggforge::Error> {
        let missing =
            || ggforge::Error::usage("a prompt is needed: give it after the model, with --prompt or --file, or on standard input");
        let from_stdin = || text_of("standard input", io::stdin().lock());
        let text = match (&self.prompt, self.text.as_deref(), &self.file) {
            (Some(prompt), ..) => return Ok(prompt.clone()),
            (_, Some("-"), _) => from_stdin()?,
            (_, Some(text), _) => return Ok(text.to_owned()),
            (_, _, Some(file)) if file == Path::new("-") => from_stdin()?,
            (_, _, Some(file)) => read_text(file)?,
            _ if io::stdin().is_terminal() => return Err(missing()),
            _ => Some(from_stdin()?).filter(|text| !text.is_empty()).ok_or_else(missing)?,
        };
        // Editors and echo end the last line, too.
        let line = text.strip_suffix('\n').unwrap_or(&text);
        Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
    }

    /// Tokens of prompt and text together, behind a prompt of so many.
    fn n_ctx(&self, n_prompt: usize) -> Result<usize, ggforge::Error> {
        let n_ctx = n_prompt + self.tokens as usize;
        match self.ctx.map(|ctx| ctx as usize) {
            Some(ctx) if ctx <= n_prompt => {
                Err(ggforge::Error::usage(format!("the prompt has {n_prompt} tokens, and --ctx {ctx} leaves no room for another")))
            }
            Some(ctx) => Ok(n_ctx.min(ctx)),
            None => Ok(n_ctx),
        }
    }

    /// The prompt's tokens: with what the model wants before a text, once. A chat template says itself what that is.
    fn prompt_ids(&self, model: &Model, tokenizer: &Tokenizer) -> Result<Vec<u32>, ggforge::Error> {
        let prompt = self.prompt()?;
        if self.chat {
            let text = chat::render(model, tokenizer, self.system.as_deref(), &prompt)?;
            return Ok(tokenizer.encode(&text, Specials::Parse, Ends::Omit));
        }
        let mut ids = tokenizer.encode(&prompt, Specials::Parse, Ends::Omit);
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
#[derive(Default)]
struct Characters {
    pending: Vec<u8>,
}

impl Characters {
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
        text
    }

    /// What is left, though it is no character.
    fn finish(self) -> String {
        if self.pending.is_empty() { String::new() } else { char::REPLACEMENT_CHARACTER.to_string() }
    }
}

/// The text without what could drive a terminal.
fn harmless(text: &str) -> String {
    let keep = |c: char| c == '\n' || c == '\t' || is_harmless(c);
    text.chars().map(|c| if keep(c) { c.to_string() } else { c.escape_default().to_string() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_shown_when_they_are_complete() {
        let mut text = Characters::default();
        let parts = [&b"a\xe2"[..], b"\x82", b"\xac!", b"\xff", b"\x1b[2J\n", b"\xf0\x9f"];
        let shown: Vec<String> = parts.iter().map(|bytes| harmless(&text.add(bytes))).collect();
        assert_eq!(shown, ["a", "", "€!", "\u{fffd}", "\\u{1b}[2J\n", ""]);
        assert_eq!(text.finish(), "\u{fffd}");
    }
}
