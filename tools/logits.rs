//! `ggforge logits`: the scores of every token of the vocabulary, to compare a file with the model in any other runtime.

use std::fmt::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::Args;
use ggforge::Error;
use ggforge::eval::logits;
use ggforge::gguf::Model;
use ggforge::model::{Backend, Hparams, Needs, Network, Residency, Work, Workload};
use ggforge::pipeline::{self, Existing};
use ggforge::report::{Cell, Table, decimal_bytes, json_text, printable, shortened};
use ggforge::tokenizer::encode::{Ends, Specials, Tokenizer};
use serde_json::{Value, json};
use zerocopy::IntoBytes;

use crate::arguments::output_path;
use crate::device::{Device, Job};
use crate::exit::{Failure, named, print, stream};
use crate::measuring::{MachineOptions, timed, warn_of_context};
use crate::signals::Stop;
use crate::terminal::{fitted, warn};
use crate::{Run, Session, model, npy};

/// Show the scores of every token that may come next
///
/// Runs the model over some tokens and gives the logits, in f32, of the whole vocabulary at the last N positions, which count from 0: what
/// stands at a position is about the token that comes after it. The same model in transformers or llama.cpp gives these numbers, but for
/// rounding.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ggforge logits llama.gguf --prompt 'Once upon a time'
  ggforge logits llama.gguf --tokens 1,2,3 --last 3 --json
  ggforge logits llama.gguf --tokens \"$(ggforge tokenize llama.gguf 'Once upon' --ids)\" --top 3
  ggforge logits llama.gguf --prompt 'Once upon a time' --last 4 --output logits.npy")]
pub struct Logits {
    /// GGUF file, any shard of a split model, or model folder
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The tokens, by id: nothing is put before them
    #[arg(long, value_name = "ID,ID,...", value_parser = ids, allow_hyphen_values = true, required_unless_present = "prompt")]
    tokens: Option<Ids>,
    /// A text instead, with what the model wants before one; special tokens that are spelled out in it are special
    #[arg(long, short, value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "tokens")]
    prompt: Option<String>,
    /// Leave out what the model wants before a text
    #[arg(long, conflicts_with = "tokens")]
    no_bos: bool,
    /// Read special tokens that are spelled out as plain text
    #[arg(long, conflicts_with = "tokens")]
    no_special: bool,
    /// Positions to show, counted from the last
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=TOKENS_MAX))]
    last: u32,
    /// Likeliest tokens to show for each position
    #[arg(long, value_name = "K", default_value_t = 10)]
    top: usize,
    #[command(flatten)]
    machine: MachineOptions,
    /// Write a NumPy array of float32, [N, vocabulary], instead of showing anything
    #[arg(long, short, value_name = "FILE.npy", conflicts_with = "json", value_parser = output_path())]
    output: Option<PathBuf>,
    /// Replace an existing output
    #[arg(long, requires = "output")]
    force: bool,
    /// Print all scores as JSON
    #[arg(long)]
    json: bool,
}

/// As long a sequence as any model has a context for, and the angles of its positions take a second to compute.
const TOKENS_MAX: i64 = 1 << 20;

/// Token ids as they are given: a list of one argument.
#[derive(Debug, Clone)]
struct Ids(Vec<u32>);

/// Reads `1,2,3`, also as `ggforge tokenize --ids` prints it: `[1, 2, 3]`.
fn ids(text: &str) -> Result<Ids, String> {
    let trimmed = text.trim();
    let list = trimmed.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(trimmed);
    if list.trim().is_empty() {
        return Err("at least one token id is needed".to_owned());
    }
    let id = |part: &str| {
        let part = part.trim();
        part.parse().map_err(|_| format!("{part:?} is no token id; a list such as 1,2,3 is needed"))
    };
    list.split(',').map(id).collect::<Result<Vec<u32>, String>>().map(Ids)
}

impl Run for Logits {
    const NAME: &'static str = "logits";

    fn run(self, session: &Session) -> Result<(), Failure> {
        let stop = Stop::on_signals().map_err(|e| Error::io("signal", "handle", e))?;
        let model = model::open(&self.model)?;
        let inputs = model::inputs(&self.model, &model);
        if let Some(output) = &self.output {
            // An output that cannot be written is better found before the work than after it.
            pipeline::check_target(output, self.existing(), &inputs)?;
        }
        model.check_has_weights()?;
        let hparams = Hparams::read(&model).map_err(named(&self.model))?;
        let (tokens, tokenizer) = self.tokens(&model)?;
        self.check(&tokens)?;
        warn_of_context(&self.model, &hparams, tokens.len(), &format!("these are {}", tokens.len()));

        let n_last = self.last as usize;
        let computing = Computing { path: &self.model, model: &model, tokens: &tokens, n_last, session, stop: &stop };
        let (values, device) = self.machine.run(session, computing)?;
        let found = Found { tokens: &tokens, n_vocab: hparams.n_vocab, values, device };
        match &self.output {
            Some(output) => self.write(output, found, &inputs, session),
            None if self.json => self.print_json(&found),
            None => print(&self.as_text(&found, tokenizer.as_ref())),
        }
    }
}

/// What is computed, on whichever machine.
struct Computing<'a> {
    path: &'a Path,
    model: &'a Model,
    tokens: &'a [u32],
    n_last: usize,
    session: &'a Session,
    stop: &'a Stop,
}

impl Job for Computing<'_> {
    /// `[n_last, n_vocab]`.
    type Output = Vec<f32>;

    fn workload(&self) -> Result<Workload, Failure> {
        let needs = Needs::of(self.model, self.tokens.len()).map_err(named(self.path))?;
        Ok(Workload { models: vec![needs], work: Work::Evaluation { n_sequences: 1, n_scored: self.n_last } })
    }

    fn run<B: Backend>(self, backend: &B, residency: Residency) -> Result<Vec<f32>, Failure> {
        let Computing { path, model, tokens, n_last, session, stop } = self;
        let network = Network::open(backend, model, tokens.len(), residency).map_err(named(path))?;
        let computed = timed("computing", session, stop.flag(), |watch| logits::logits(&network, tokens, n_last, watch));
        let (values, _) = computed.map_err(|error| stop.ended(error))?;
        Ok(values)
    }
}

/// The scores, and what they belong to.
struct Found<'a> {
    tokens: &'a [u32],
    n_vocab: usize,
    /// `[n_last, n_vocab]`, of the last tokens.
    values: Vec<f32>,
    /// Where they were computed.
    device: Device,
}

impl Found<'_> {
    /// Every position that was asked for, and its scores.
    fn positions(&self) -> impl Iterator<Item = (usize, &[f32])> {
        let rows = self.values.chunks_exact(self.n_vocab);
        (self.tokens.len() - rows.len()..).zip(rows)
    }

    /// The token given after a position, and its negative log-likelihood in nats.
    fn next(&self, position: usize, row: &[f32]) -> Option<(u32, f64)> {
        let next = *self.tokens.get(position + 1)?;
        Some((next, log_sum_exp(row) - f64::from(row[next as usize])))
    }
}

/// The logarithm of the sum of all exponentials: what a logit is less than by its token's negative log-likelihood.
fn log_sum_exp(row: &[f32]) -> f64 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|x| libm::exp(f64::from(*x) - f64::from(max))).sum();
    f64::from(max) + libm::log(sum)
}

/// The ids of the `n` highest scores, highest first; of equal ones, the lower id.
fn highest(row: &[f32], n: usize) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..row.len()).collect();
    let by_score = |a: &usize, b: &usize| row[*b].total_cmp(&row[*a]).then(a.cmp(b));
    if n < ids.len() {
        ids.select_nth_unstable_by(n, by_score);
        ids.truncate(n);
    }
    ids.sort_unstable_by(by_score);
    ids
}

impl Logits {
    /// The ids, and what is needed to show them as text: where only ids are given, a vocabulary that cannot be read is no obstacle.
    fn tokens(&self, model: &Model) -> Result<(Vec<u32>, Option<Tokenizer>), Failure> {
        let read = || Tokenizer::from_metadata(&model.shards()[0]);
        let Some(Ids(ids)) = &self.tokens else {
            let tokenizer = read().map_err(named(&self.model))?;
            tokenizer.warnings().iter().for_each(|warning| warn(warning));
            let specials = if self.no_special { Specials::Literal } else { Specials::Parse };
            let mut ids = tokenizer.encode(self.prompt.as_deref().unwrap_or_default(), specials, Ends::Omit);
            if !self.no_bos {
                tokenizer.begin(&mut ids);
            }
            return Ok((ids, Some(tokenizer)));
        };
        if self.json || self.output.is_some() {
            return Ok((ids.clone(), None));
        }
        let tokenizer = read();
        if let Err(error) = &tokenizer {
            warn(&format!("ids are shown without their text: {error}"));
        }
        Ok((ids.clone(), tokenizer.ok()))
    }

    fn check(&self, tokens: &[u32]) -> Result<(), Error> {
        match tokens.len() {
            0 => Err(Error::usage("the prompt has no tokens; at least one is needed")),
            n if n as i64 > TOKENS_MAX => Err(Error::usage(format!("{n} tokens; at most {TOKENS_MAX} are possible"))),
            n if (self.last as usize) > n => {
                Err(Error::usage(format!("--last {}, but there are {n} positions: one for each token", self.last)))
            }
            _ => Ok(()),
        }
    }

    fn existing(&self) -> Existing {
        if self.force { Existing::Replace } else { Existing::Refuse }
    }

    /// For each position: what may come next, and how well the model foretold what did.
    fn as_text(&self, found: &Found<'_>, tokenizer: Option<&Tokenizer>) -> String {
        let piece = |id: u32| tokenizer.map(|tokenizer| tokenizer.piece(id, Specials::Parse));
        let named = |id: u32| match piece(id) {
            Some(piece) => format!("{id} '{}'", shortened(&piece, TEXT_CHARS_MAX)),
            None => id.to_string(),
        };
        let mut text = String::new();
        for (position, row) in found.positions() {
            let sum = log_sum_exp(row);
            let _ = write!(text, "position {position}, after {}", named(found.tokens[position]));
            if let Some((next, nll)) = found.next(position, row) {
                let _ = write!(text, "; then came {}, nll {nll:.5} nats", named(next));
            }
            text.push_str("\n\n");
            let mut table = Table::new(&["id", "text", "logit", "probability"]);
            for id in highest(row, self.top) {
                let logit = f64::from(row[id]);
                let shown = piece(id as u32).map(|piece| format!("'{}'", shortened(&piece, TEXT_CHARS_MAX)));
                let shown = shown.map_or(Cell::Empty, Cell::Text);
                table.push([id.into(), shown, Cell::Fixed(logit, 5), Cell::Real(libm::exp(logit - sum))]);
            }
            text += &fitted(&table);
            text.push('\n');
        }
        let (n_positions, n_vocab, place) = (found.tokens.len(), found.n_vocab, found.device.place());
        let _ = writeln!(text, "logits at {} of {n_positions} positions, of {n_vocab} tokens each, {place}", self.last);
        text
    }

    /// Everything, row by row: text of all scores is several times as large as they are.
    fn print_json(&self, found: &Found<'_>) -> Result<(), Failure> {
        let position = |(position, row)| {
            let next = found.next(position, row);
            json!({
                "position": position,
                "token": found.tokens[position],
                "next": next.map(|(token, _)| token),
                "nll": next.map(|(_, nll)| nll),
            })
        };
        let head = json_text(&json!({
            "model": self.model.to_string_lossy(),
            "activations": self.machine.activations.name(),
            "device": found.device.id(),
            "tokens": found.tokens,
            "positions": found.positions().map(position).collect::<Vec<Value>>(),
            "shape": [self.last as usize, found.n_vocab],
        }));
        let head = head.trim_end().strip_suffix('}').map(str::trim_end).expect("an object");
        let mut before = format!("{head},\n  \"logits\": [\n    ");
        for (_, row) in found.positions() {
            let row = serde_json::to_string(row).expect("finite numbers");
            if let ControlFlow::Break(()) = stream(&(before + &row))? {
                return Ok(());
            }
            before = ",\n    ".to_owned();
        }
        print("\n  ]\n}\n")
    }

    fn write(&self, output: &Path, mut found: Found<'_>, inputs: &[PathBuf], session: &Session) -> Result<(), Failure> {
        let header = npy::header(self.last as usize, found.n_vocab);
        // As the file has them, on any machine.
        found.values.iter_mut().for_each(|value| *value = f32::from_bits(value.to_bits().to_le()));
        let bytes = found.values.as_bytes();
        pipeline::write_parts(output, &[&header, bytes], self.existing(), inputs)?;
        if session.quiet {
            return Ok(());
        }
        let (name, size) = (printable(output.as_os_str().as_encoded_bytes()), decimal_bytes((header.len() + bytes.len()) as u64));
        print(&format!("{name}: float32 [{}, {}], {size}\n", self.last, found.n_vocab))
    }
}

/// Characters of a token that are shown: the longest of real vocabularies are white space of 128.
const TEXT_CHARS_MAX: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_they_are_printed() {
        for text in ["1,2,3", " 1, 2 ,3 ", "[1, 2, 3]", "[1,2,3]\n"] {
            assert_eq!(ids(text).map(|ids| ids.0), Ok(vec![1, 2, 3]), "{text:?}");
        }
        for text in ["", " ", "[]", "[ ]", "1,", ",", "1 2", "-1", "1.5", "a", "4294967296", "[1", "1]", "[[1]]", "1,,2"] {
            assert!(ids(text).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn the_highest_come_first_and_of_equals_the_lower_id() {
        let row = [1.0, 3.0, 2.0, 3.0, -1.0];
        assert_eq!(highest(&row, 3), [1, 3, 2]);
        assert_eq!(highest(&row, 9), [1, 3, 2, 0, 4]);
        assert!(highest(&row, 0).is_empty());
    }

    #[test]
    fn large_logits_do_not_overflow() {
        assert!((log_sum_exp(&[1000.0, 1000.0]) - (1000.0 + 2f64.ln())).abs() < 1e-12);
        assert!((log_sum_exp(&[-3e38, 3e38]) - 3e38f32 as f64).abs() < 1e30);
    }
}
