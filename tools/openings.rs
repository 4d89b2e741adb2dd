//! `--calibrate self`: what the model itself makes of openings in many languages, and of questions where it has a chat template.
//!
//! Chunks are written side by side, so that weights are read once for all of them. A chunk begins with an opening, goes on as the model
//! says, and where that ends a text, with the next opening. The same model writes the same text on any machine: every chunk has random
//! numbers of its own.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use ggforge::Error;
use ggforge::eval::{Progress, Watch};
use ggforge::gguf::Model;
use ggforge::model::{Cpu, Network, Residency, Sampler, Sampling, SideBySide};
use ggforge::tokenizer::encode::{Ends, Specials, Tokenizer};

use crate::exit::Failure;
use crate::measuring::timed;
use crate::signals::Stop;
use crate::{Session, chat};

/// An opening in each line, with `\\n` for a line feed; questions, for models that answer them, after `? `.
const OPENINGS: &str = include_str!("openings.txt");

/// How tokens are chosen: as the model says, without what it finds next to impossible.
const SAMPLING: Sampling = Sampling { temperature: 1.0, top_k: 1000, top_p: 0.95, seed: 0 };

/// Keys and values that chunks may take which are written together.
const KEPT_MAX_BYTES: usize = 1 << 30;

/// From one opening to that of the next chunk: prime to their number, so that any few chunks have some of every kind.
const STRIDE: usize = 61;

/// Tokens of `n_chunks` chunks of `ctx` tokens each, one after the other.
///
/// # Errors
/// Those of running the model.
pub fn continued(
    cpu: &Cpu,
    model: &Model,
    tokenizer: &Tokenizer,
    (n_chunks, ctx): (usize, usize),
    session: &Session,
    stop: &Stop,
) -> Result<Vec<u32>, Failure> {
    let network = Network::open(cpu, model, ctx, Residency::Resident)?;
    let prompts = prompts(model, tokenizer);
    let per_sequence = SideBySide::bytes_per_sequence(&network).max(1);
    let n_together = (KEPT_MAX_BYTES / per_sequence).clamp(1, n_chunks.max(1));
    let written = timed("writing", session, stop.flag(), |watch| {
        let total_tokens = (n_chunks * ctx) as u64;
        let mut tokens = Vec::with_capacity(n_chunks * ctx);
        for first in (0..n_chunks).step_by(n_together) {
            let chunks = first..(first + n_together).min(n_chunks);
            let progress = |n: usize| {
                let done_tokens = (first * ctx + n) as u64;
                (watch.progress)(Progress { done_tokens, total_tokens, ppl: None });
            };
            let mut writers: Vec<Writer> = chunks.map(|chunk| Writer::new(chunk, n_chunks, &prompts)).collect::<Result<_, _>>()?;
            write(&network, tokenizer, &mut writers, ctx, &watch, &progress)?;
            tokens.extend(writers.into_iter().flat_map(|writer| writer.tokens));
        }
        Ok(tokens)
    });
    Ok(written.map_err(|error| stop.ended(error))?.0)
}

/// What opens texts, in tokens.
fn prompts(model: &Model, tokenizer: &Tokenizer) -> Vec<Vec<u32>> {
    let lines = OPENINGS.lines().map(|line| line.replace("\\n", "\n"));
    let (questions, openings): (Vec<String>, Vec<String>) = lines.partition(|line| line.starts_with("? "));
    let questions: Vec<&str> = questions.iter().map(|question| &question["? ".len()..]).collect();
    let opened = |text: &String| {
        let mut ids = tokenizer.encode(text, Specials::Literal, Ends::Omit);
        tokenizer.begin(&mut ids);
        ids
    };
    let mut prompts: Vec<Vec<u32>> = openings.iter().map(opened).collect();
    // As many as there are openings: half of what a model that answers writes is answers.
    let asked = chat::questions(model, tokenizer, &questions);
    let asked: Vec<Vec<u32>> = asked.iter().map(|text| tokenizer.encode(text, Specials::Parse, Ends::Omit)).collect();
    if !asked.is_empty() {
        prompts = prompts.into_iter().zip(asked.into_iter().cycle()).flat_map(|(opening, question)| [opening, question]).collect();
    }
    prompts.retain(|prompt| !prompt.is_empty());
    prompts
}

/// A chunk while it is written.
struct Writer<'p> {
    prompts: &'p [Vec<u32>],
    /// The next opening, and how far the one after it is.
    next: usize,
    step: usize,
    /// What is left of an opening.
    given: VecDeque<u32>,
    sampler: Sampler,
    tokens: Vec<u32>,
}

impl<'p> Writer<'p> {
    fn new(chunk: usize, n_chunks: usize, prompts: &'p [Vec<u32>]) -> Result<Writer<'p>, Error> {
        let sampler = Sampler::new(Sampling { seed: chunk as u64, ..SAMPLING })?;
        Ok(Writer { prompts, next: chunk, step: n_chunks, given: VecDeque::new(), sampler, tokens: Vec::new() })
    }

    fn begin(&mut self) {
        self.given = self.prompts[self.next * STRIDE % self.prompts.len()].iter().copied().collect();
        self.next += self.step;
    }
}

fn write(
    network: &Network<'_, Cpu>,
    tokenizer: &Tokenizer,
    writers: &mut [Writer<'_>],
    ctx: usize,
    watch: &Watch<'_>,
    progress: &dyn Fn(usize),
) -> Result<(), Error> {
    let mut texts = SideBySide::new(network, writers.len())?;
    writers.iter_mut().for_each(Writer::begin);
    // The scores of what follows, of the writers that go on by themselves.
    let (mut wanted, mut logits): (Vec<u32>, Vec<f32>) = (Vec::new(), Vec::new());
    for position in 0..ctx {
        if watch.stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let n_vocab = logits.len() / wanted.len().max(1);
        let mut scores = logits.chunks_exact(n_vocab.max(1));
        for (index, writer) in writers.iter_mut().enumerate() {
            if writer.given.is_empty() && writer.tokens.last().is_some_and(|&token| tokenizer.ends_generation(token)) {
                writer.begin();
                texts.begin_text(index);
            }
            let of_writer = wanted.binary_search(&(index as u32)).ok().and_then(|_| scores.next());
            let token = match writer.given.pop_front() {
                Some(token) => token,
                None => texts.choose(&mut writer.sampler, of_writer.expect("scores of every writer that goes on"))?,
            };
            writer.tokens.push(token);
        }
        if position + 1 < ctx {
            let goes_on = |(_, writer): &(usize, &Writer<'_>)| writer.given.is_empty();
            wanted = writers.iter().enumerate().filter(goes_on).map(|(index, _)| index as u32).collect();
            let tokens: Vec<u32> = writers.iter().map(|writer| writer.tokens[position]).collect();
            logits = texts.read(&tokens, &wanted)?;
        }
        progress((position + 1) * writers.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openings_are_many_and_of_both_kinds() {
        let n_questions = OPENINGS.lines().filter(|line| line.starts_with("? ")).count();
        let n = OPENINGS.lines().count();
        assert!(n - n_questions >= 100 && n_questions >= 30, "{n}, {n_questions} of them questions");
        assert!(OPENINGS.lines().all(|line| !line.trim().is_empty() && line.len() < 200));
        for n in [n - n_questions, 2 * (n - n_questions)] {
            assert!(!n.is_multiple_of(STRIDE), "every opening has its turn");
        }
    }
}
