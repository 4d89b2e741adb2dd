//! Does the vocabulary that was written split text as the source's own tokenizer does?
//!
//! The source's is run by Hugging Face's library from tokenizer.json, the other from the GGUF metadata alone, by [`encode`](super::encode);
//! both encode a built-in corpus of many scripts, code, numbers, white space and emoji, and texts around the added tokens. Whatever differs is a fault of the
//! conversion, or something that the format cannot say.
//!
//! Loading a large tokenizer.json takes that library a good part of a second, so [`Proof::start`] does it beside other work. The
//! library trusts its files more than we do: it runs in a thread of its own, where a panic ends nothing else, it is given only
//! expressions of bounded size, and it is not waited for without end.

mod added;
mod corpus;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use tokenizers::ModelWrapper;
use unicode_normalization::UnicodeNormalization;

use added::Added;

use super::Files;
use super::encode::{Ends, Specials, Tokenizer};
use crate::error::Result;
use crate::gguf::{File, Header, Metadata, keys};
use crate::hf::json::Value;

const FILE: &str = "tokenizer.json";
/// Waited for after all other work is done. The largest tokenizer known takes a second.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Both encoded the corpus.
    Compared(Comparison),
    /// Nothing could be compared, and why.
    NotCompared(String),
}

/// How the tokens of the corpus differ.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Texts that both encoded.
    pub n_texts: usize,
    /// Tokens that tokenizer.json gives for them.
    pub n_tokens: usize,
    /// Texts with other tokens.
    pub n_different: usize,
    /// Texts with other tokens only because tokenizer.json composes characters (NFC), which llama.cpp does not. Most text is composed.
    pub n_uncomposed: usize,
    /// Those of the texts that were made around added tokens.
    pub n_added_texts: usize,
    /// Added tokens that they were made around.
    pub n_added_tried: usize,
    /// Added tokens that there are. The number of texts is bounded, so that of thousands of tokens some are left out.
    pub n_added_tokens: usize,
    /// The sections of the corpus with differences, and how many texts of each.
    pub sections: BTreeMap<&'static str, usize>,
    /// The shortest text of the different ones, shortened further to what shows the difference.
    pub example: Option<Example>,
}

/// A text that has other tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The text.
    pub text: String,
    /// The ids that a reader of the GGUF file gets.
    pub ours: Vec<u32>,
    /// The ids that tokenizer.json gives.
    pub theirs: Vec<u32>,
}

impl Comparison {
    /// The share of texts that have other tokens, 0 to 1.
    pub fn rate(&self) -> f64 {
        self.n_different as f64 / self.n_texts.max(1) as f64
    }
}

/// A comparison under way.
#[derive(Debug)]
pub struct Proof(State);

#[derive(Debug)]
enum State {
    Running(Receiver<Outcome>),
    Impossible(String),
}

impl Proof {
    /// Starts to compare the tokenizer of the model folder with the one in the metadata that was made of it.
    pub fn start(files: &dyn Files, metadata: &Metadata) -> Proof {
        let json = match files.read_optional(FILE) {
            Ok(Some(json)) => json,
            Ok(None) => return Proof(State::Impossible(format!("there is no {FILE}"))),
            Err(error) => return Proof(State::Impossible(error.to_string())),
        };
        // Which tokens swallow the white space beside them, readers know by the model's name.
        let of_tokenizer = |(key, _): &&(String, _)| {
            key.starts_with("tokenizer.ggml.") || key == keys::GENERAL_NAME || key == keys::GENERAL_ARCHITECTURE
        };
        let metadata = metadata.iter().filter(of_tokenizer).cloned().collect();
        let (sender, receiver) = sync_channel(1);
        let work = move || {
            // Nobody listens any more where this took too long.
            let _ = sender.send(compare(&json, metadata));
        };
        match thread::Builder::new().name("tokenizer proof".to_owned()).spawn(work) {
            Ok(_) => Proof(State::Running(receiver)),
            Err(error) => Proof(State::Impossible(format!("no thread could be started: {error}"))),
        }
    }

    /// Waits for the result, but not for long.
    pub fn finish(self) -> Outcome {
        match self.0 {
            State::Impossible(why) => Outcome::NotCompared(why),
            State::Running(receiver) => receiver.recv_timeout(WAIT_MAX).unwrap_or_else(|error| match error {
                RecvTimeoutError::Timeout => not_compared(format!("{FILE} takes longer than {} s", WAIT_MAX.as_secs())),
                RecvTimeoutError::Disconnected => not_compared(format!("Hugging Face's library fails on {FILE}")),
            }),
        }
    }
}

fn not_compared(why: impl Into<String>) -> Outcome {
    Outcome::NotCompared(why.into())
}

fn compare(json: &[u8], metadata: Metadata) -> Outcome {
    let theirs = match Reference::read(json) {
        Ok(theirs) => theirs,
        Err(why) => return Outcome::NotCompared(why),
    };
    match written(metadata) {
        Ok(ours) => Outcome::Compared(compare_all(&ours, &theirs)),
        Err(error) => Outcome::NotCompared(error.to_string()),
    }
}

/// The tokenizer that a reader of the file has.
fn written(metadata: Metadata) -> Result<Tokenizer> {
    let bytes = Header { metadata, tensors: Vec::new() }.layout()?.header;
    Tokenizer::from_metadata(&File::parse(Path::new("the metadata"), &bytes)?)
}

fn compare_all(ours: &Tokenizer, theirs: &Reference) -> Comparison {
    let encode = |text: &str| ours.encode(text, Specials::Parse, Ends::Omit);
    let added = Added::of(&theirs.tokenizer);
    let mut found = Comparison {
        n_added_texts: added.texts.len(),
        n_added_tried: added.n_tried,
        n_added_tokens: added.n_tokens,
        ..Comparison::default()
    };
    let mut shortest: Option<&str> = None;
    let mut texts: Vec<(&'static str, &str)> = corpus::texts().collect();
    texts.extend(added.texts.iter().map(|text| ("added tokens", text.as_str())));
    for (section, text) in texts {
        let Some(wanted) = theirs.encode(text) else { continue };
        found.n_texts += 1;
        found.n_tokens += wanted.len();
        if encode(text) == wanted {
            continue;
        }
        found.n_different += 1;
        *found.sections.entry(section).or_default() += 1;
        if theirs.composes && encode(&text.nfc().collect::<String>()) == wanted {
            found.n_uncomposed += 1;
        } else if shortest.is_none_or(|shortest| text.len() < shortest.len()) {
            shortest = Some(text);
        }
    }
    found.example = shortest.map(|text| {
        let differs = |text: &str| theirs.encode(text).is_some_and(|wanted| wanted != encode(text));
        let text = trimmed(text, differs);
        Example { text: text.to_owned(), ours: encode(text), theirs: theirs.encode(text).unwrap_or_default() }
    });
    found
}

/// What is left when characters are taken from the end, then from the begin, as long as the rest differs.
fn trimmed(mut text: &str, differs: impl Fn(&str) -> bool) -> &str {
    let without_last = |text: &'_ str| text.char_indices().next_back().map_or(0, |(at, _)| at);
    while let Some(shorter) = text.get(..without_last(text)).filter(|shorter| differs(shorter)) {
        text = shorter;
    }
    let without_first = |text: &'_ str| text.chars().next().map_or(0, char::len_utf8);
    while let Some(shorter) = text.get(without_first(text)..).filter(|shorter| differs(shorter)) {
        text = shorter;
    }
    text
}

/// The source's own tokenizer.
struct Reference {
    tokenizer: tokenizers::Tokenizer,
    composes: bool,
}

impl Reference {
    fn read(json: &[u8]) -> Result<Reference, String> {
        let outline: Outline = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let parts = [&outline.normalizer, &outline.pre_tokenizer, &outline.decoder];
        if parts.iter().any(|part| strings(part).any(is_too_large)) {
            return Err(format!("{FILE} has an expression that is too large"));
        }
        let read = tokenizers::Tokenizer::from_bytes(json);
        let mut tokenizer = read.map_err(|error| format!("Hugging Face's library does not read {FILE}: {error}"))?;
        // Some files cut or fill texts to the length that their author last used, or leave out merges at random, as in training.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| error.to_string())?;
        if let ModelWrapper::BPE(bpe) = tokenizer.get_model()
            && bpe.dropout.is_some()
        {
            let mut bpe = bpe.clone();
            bpe.dropout = None;
            tokenizer.with_model(ModelWrapper::BPE(bpe));
        }
        Ok(Reference { tokenizer, composes: strings(&outline.normalizer).any(|kind| kind == "NFC") })
    }

    /// The ids, without those put at the ends; `None` for text that the tokenizer has no tokens for.
    fn encode(&self, text: &str) -> Option<Vec<u32>> {
        self.tokenizer.encode_fast(text, false).ok().map(|encoding| encoding.get_ids().to_vec())
    }
}

/// The parts of tokenizer.json that hold expressions.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Outline {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
}

/// Every string in a value.
fn strings(value: &Value) -> Box<dyn Iterator<Item = &str> + '_> {
    match value {
        Value::String(text) => Box::new(std::iter::once(text.as_str())),
        Value::Array(list) => Box::new(list.iter().flat_map(strings)),
        Value::Object(map) => Box::new(map.values().flat_map(strings)),
        _ => Box::new(std::iter::empty()),
    }
}

/// Bytes of one string. The longest expression known has 1,600.
const EXPRESSION_BYTES_MAX: usize = 1 << 16;
/// Product of all counts of repetition, as in `{1,3}`: where they are nested, the automaton grows by their product.
const REPETITIONS_MAX: u64 = 10_000;

/// True for expressions that make an automaton of unreasonable size.
fn is_too_large(regex: &str) -> bool {
    let mut product: u64 = 1;
    for (at, _) in regex.match_indices('{') {
        let (before, after) = (regex.get(..at).unwrap_or_default(), regex.get(at + 1..).unwrap_or_default());
        // \x{3000} and \p{12} are no counts.
        let is_escape = before.len() >= 2 && before.as_bytes().get(at - 2) == Some(&b'\\');
        let counts = after.split('}').next().unwrap_or_default().split(',');
        if !is_escape {
            let counts = counts.filter_map(|count| count.trim().parse::<u64>().ok());
            product = counts.fold(product, |product, count| product.saturating_mul(count.max(1)));
        }
    }
    regex.len() > EXPRESSION_BYTES_MAX || product > REPETITIONS_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_is_cut_to_what_differs() {
        assert_eq!(trimmed("ab  cd", |text| text.contains("  ")), "  ");
        assert_eq!(trimmed("éxé", |text| text.contains('x')), "x");
        assert_eq!(trimmed("x", |text| text == "x"), "x");
    }

    #[test]
    fn repeated_repetitions_are_too_large() {
        assert!(!is_too_large(r"\p{N}{1,3}|[^\r\n\p{L}\p{N}]?\p{L}+|\x{30000}|a{0}"));
        assert!(is_too_large("((?=a){1000}){1000}b{0}"));
        assert!(is_too_large(&"a".repeat(EXPRESSION_BYTES_MAX + 1)));
    }
}
