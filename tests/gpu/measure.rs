//! What is measured on both backends.

use std::ops::Range;

use ggforge::gguf::Model;
use ggforge::model::{Backend, Batch, Network, Residency};
use ggforge::tokenizer::encode::{Ends, Specials, Tokenizer, read_text};

use crate::common;
use crate::disguise::{is_small, is_tiny};

/// Mean difference of log-likelihoods over thousands of tokens, in nats: five times what the host shim, which rounds, leaves room for. A
/// GPU's tensor cores truncate sums, and until one has been measured nobody knows by how much that moves the mean; it is printed.
const MEAN_NLL_TOLERANCE: f64 = 1e-4;
/// Root of the mean square of differences, for any number of tokens.
const RMS_NLL_TOLERANCE: f64 = 1.5e-3;

/// Tokens, and the sequences that they are.
pub struct Text {
    pub tokens: Vec<u32>,
    pub sequences: Vec<Range<usize>>,
}

/// Everything that a backend computes.
#[derive(Default)]
pub struct Measured {
    pub nll: Vec<f64>,
    pub argmax: Vec<u32>,
    /// Of some rows from the row after them: divergences that are not zero.
    pub kld: Vec<f64>,
    /// Of the first batch.
    pub squares: Vec<f64>,
}

/// Rows of each sequence that are compared with the row after them.
const COMPARED: usize = 12;

/// Sixteen windows of 512 tokens for a GPU; in small some hundred tokens in sequences of different lengths.
pub fn text(model: &Model, name: &str) -> Text {
    if is_small() {
        let json = common::json(&common::fixture(&format!("model/{name}.json")));
        let tokens: Vec<u32> =
            json["tokens"].as_array().expect("tokens").iter().map(|id| id.as_u64().expect("an id") as u32).collect();
        let n = tokens.len().min(if is_tiny() { 31 } else { 127 });
        return Text { tokens: tokens[..n].to_vec(), sequences: vec![0..n / 2, n / 2..n / 2 + 9, n / 2 + 9..n] };
    }
    let file = common::shared("text/tinystories_eval.txt").expect("the text beside the model");
    let tokenizer = Tokenizer::from_metadata(&model.shards()[0]).expect("a vocabulary");
    let mut tokens = tokenizer.encode(&read_text(&file).expect("a text"), Specials::Literal, Ends::Omit);
    tokens.truncate(16 * 512);
    let n_windows = tokens.len() / 512;
    Text { sequences: (0..n_windows).map(|i| i * 512..(i + 1) * 512).collect(), tokens }
}

/// Runs the text, `batch` sequences at a time.
pub fn measure<B: Backend>(backend: &B, model: &Model, residency: Residency, text: &Text, batch: usize) -> Measured {
    let n_ctx = text.sequences.iter().map(Range::len).max().expect("a sequence");
    let network = Network::open(backend, model, n_ctx, residency).expect("a network");
    let mut measured = Measured::default();
    for group in text.sequences.chunks(batch) {
        let (first, end) = (group[0].start, group[group.len() - 1].end);
        let sequences: Vec<_> = group.iter().map(|sequence| sequence.start - first..sequence.end - first).collect();
        let states = network.evaluate(Batch { tokens: &text.tokens[first..end], sequences: &sequences }, &mut ()).expect("a pass");
        let rows: Vec<u32> = sequences.iter().flat_map(|sequence| sequence.start as u32..sequence.end as u32 - 1).collect();
        let targets: Vec<u32> = rows.iter().map(|row| text.tokens[first + *row as usize + 1]).collect();
        let scored = network.normalised(&states, &rows).expect("rows");
        for score in backend.score(&scored, network.output(), &targets).expect("scores") {
            measured.nll.push(score.nll);
            measured.argmax.push(score.argmax);
        }
        if measured.squares.is_empty() {
            measured.squares = backend.sum_squares(&scored).expect("sums");
        }
        // Of each sequence, so that it does not matter which are computed together.
        let some: Vec<u32> = sequences.iter().flat_map(|s| s.start as u32..(s.end - 1).min(s.start + COMPARED) as u32).collect();
        let after: Vec<u32> = some.iter().map(|row| row + 1).collect();
        let next: Vec<u32> = after.iter().map(|row| text.tokens[first + *row as usize]).collect();
        let [some, after] = [some, after].map(|rows| network.normalised(&states, &rows).expect("rows"));
        let pairs = backend.compare((&some, network.output()), (&after, network.output()), &next).expect("divergences");
        measured.kld.extend(pairs.iter().map(|pair| pair.kld));
    }
    measured
}

/// Everything per token, to be compared bit by bit.
pub fn bits(measured: &Measured) -> [Vec<u64>; 2] {
    [&measured.nll, &measured.kld].map(|values| values.iter().map(|value| value.to_bits()).collect())
}

/// Fails where a GPU's figures are further from the CPU's than halves explain, and tells how far they are.
#[track_caller]
pub fn check_agreement(found: &Measured, expected: &Measured) -> String {
    assert_eq!(found.nll.len(), expected.nll.len());
    let n_tokens = found.nll.len();
    let differences: Vec<f64> = found.nll.iter().zip(&expected.nll).map(|(a, b)| a - b).collect();
    let mean = differences.iter().sum::<f64>() / n_tokens as f64;
    let rms = (differences.iter().map(|d| d * d).sum::<f64>() / n_tokens as f64).sqrt();
    let agreeing = found.argmax.iter().zip(&expected.argmax).filter(|(a, b)| a == b).count();
    let note = format!("{n_tokens} tokens, NLL differs by {mean:+.2e} in the mean, rms {rms:.2e}; {agreeing} likeliest agree");
    // Few tokens have a mean as far off as chance has it.
    let by_chance = 4.0 * RMS_NLL_TOLERANCE / (n_tokens as f64).sqrt();
    let mean_tolerance = MEAN_NLL_TOLERANCE.max(if n_tokens < 1000 { by_chance } else { 0.0 });
    assert!(rms < RMS_NLL_TOLERANCE && mean.abs() < mean_tolerance, "{note}");
    assert!(agreeing * 100 >= n_tokens * 97, "{note}");
    for (a, b) in found.kld.iter().zip(&expected.kld) {
        assert!((a - b).abs() < 3e-3 + 3e-3 * b.abs(), "divergence {a} where {b} is expected; {note}");
    }
    for (a, b) in found.squares.iter().zip(&expected.squares) {
        // Errors of values are the same in all rows that look at them.
        assert!((a - b).abs() < 5e-3 * b.abs() + 1e-9, "sum of squares {a} where {b} is expected; {note}");
    }
    note
}

/// Tokens that follow the prompt, the likeliest each time, with a cache.
pub fn greedy<B: Backend>(backend: &B, model: &Model, prompt: &[u32], n_tokens: usize) -> Vec<u32> {
    let network = Network::open(backend, model, prompt.len() + n_tokens, Residency::Resident).expect("a network");
    let mut cache = network.cache().expect("a cache");
    let mut next = prompt.to_vec();
    let mut found = Vec::new();
    while found.len() < n_tokens {
        let states = network.extend(&next, &mut cache).expect("a pass");
        let last = network.normalised(&states, &[next.len() as u32 - 1]).expect("a row");
        let logits = backend.logits(&last, network.output()).expect("logits");
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).expect("a vocabulary") as u32;
        found.push(best);
        next = vec![best];
    }
    found
}
