//! Does the vocabulary that was written split text as the source's own tokenizer does?
//!
//! The source's is run by Hugging Face's library from tokenizer.json, the other from the GGUF metadata alone, by [`encode`](super::encode);
//! both encode a built-in corpus of many scripts, code, numbers, white space and emoji, texts around the added tokens, and conversations
//! as the chat template renders them. Whatever differs is a fault of the conversion, or something that the format cannot say.
//!
//! That library trusts its files more than we do: it panics on some, and others make it take memory and time without bound, of which
//! only the worst are refused here. So a [`Question`] is data, which a program can carry to where it does no harm.

mod added;
mod corpus;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tokenizers::ModelWrapper;
use unicode_normalization::UnicodeNormalization;

use added::Added;

use super::Files;
use super::encode::{Ends, Specials, Tokenizer};
use crate::error::Result;
use crate::gguf::{File, Header, Metadata, keys};
use crate::hf::json::Value;

const FILE: &str = "tokenizer.json";

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Both encoded the corpus.
    Compared(Comparison),
    /// Nothing could be compared, and why.
    NotCompared(String),
}

/// How the tokens of the corpus differ.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparison {
    /// Texts that both encoded.
    pub n_texts: usize,
    /// Tokens that tokenizer.json gives for them.
    pub n_tokens: usize,
    /// Texts with other tokens.
    pub n_different: usize,
    /// Texts with other tokens only because tokenizer.json composes characters (NFC), which llama.cpp does not. Most text is composed.
    pub n_uncomposed: usize,
    /// Those of the texts that are conversations, rendered by the chat template.
    pub n_conversations: usize,
    /// Those of the texts that were made around added tokens.
    pub n_added_texts: usize,
    /// Added tokens that they were made around.
    pub n_added_tried: usize,
    /// Added tokens that there are. The number of texts is bounded, so that of thousands of tokens some are left out.
    pub n_added_tokens: usize,
    /// The sections of the corpus with differences, and how many texts of each.
    pub sections: BTreeMap<String, usize>,
    /// The shortest text of the different ones, shortened further to what shows the difference.
    pub example: Option<Example>,
}

/// A text that has other tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// What is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// tokenizer.json.
    json: Vec<u8>,
    /// A GGUF header with the metadata of the tokenizer that was made of it.
    header: Vec<u8>,
    /// Conversations as the chat template renders them.
    pub conversations: Vec<String>,
}

impl Question {
    /// The tokenizer of the model folder, and the one in the metadata that was made of it; `None` where the folder has no tokenizer.json.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(files: &dyn Files, metadata: &Metadata) -> Result<Option<Question>> {
        let Some(json) = files.read_optional(FILE)? else { return Ok(None) };
        // Which tokens swallow the white space beside them, readers know by the model's name.
        let of_tokenizer = |(key, _): &&(String, _)| {
            key.starts_with("tokenizer.ggml.") || key == keys::GENERAL_NAME || key == keys::GENERAL_ARCHITECTURE
        };
        let metadata = metadata.iter().filter(of_tokenizer).cloned().collect();
        let header = Header { metadata, tensors: Vec::new() }.layout()?.header;
        Ok(Some(Question { json, header, conversations: Vec::new() }))
    }

    /// Bytes of tokenizer.json, by which the work grows.
    pub fn json_bytes(&self) -> u64 {
        self.json.len() as u64
    }

    /// Compares. Hugging Face's library takes time and memory as the file wants it, and may panic.
    pub fn answer(&self) -> Outcome {
        let theirs = match Reference::read(&self.json) {
            Ok(theirs) => theirs,
            Err(why) => return Outcome::NotCompared(why),
        };
        let file = File::parse(Path::new("the metadata"), &self.header);
        match file.and_then(|file| Tokenizer::from_metadata(&file)) {
            Ok(ours) => Outcome::Compared(compare(&ours, &theirs, &self.conversations)),
            Err(error) => Outcome::NotCompared(error.to_string()),
        }
    }

    /// The question as bytes: each part behind its length.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.json.len() + self.header.len() + 1024);
        let conversations = self.conversations.iter().map(String::as_bytes);
        for part in [&self.json[..], &self.header].into_iter().chain(conversations) {
            bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
            bytes.extend_from_slice(part);
        }
        bytes
    }

    /// The question that [`to_bytes`](Question::to_bytes) made bytes of; `None` for other bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Question> {
        let mut rest = bytes;
        let mut part = || -> Option<Vec<u8>> {
            let (length, after) = rest.split_first_chunk::<8>()?;
            let (part, after) = after.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
            rest = after;
            Some(part.to_vec())
        };
        let (json, header) = (part()?, part()?);
        let mut conversations = Vec::new();
        while let Some(text) = part() {
            conversations.push(String::from_utf8(text).ok()?);
        }
        rest.is_empty().then_some(Question { json, header, conversations })
    }
}

fn compare(ours: &Tokenizer, theirs: &Reference, conversations: &[String]) -> Comparison {
    let encode = |text: &str| ours.encode(text, Specials::Parse, Ends::Omit);
    let added = Added::of(&theirs.tokenizer);
    let mut found = Comparison {
        n_conversations: conversations.len(),
        n_added_texts: added.texts.len(),
        n_added_tried: added.n_tried,
        n_added_tokens: added.n_tokens,
        ..Comparison::default()
    };
    let mut shortest: Option<&str> = None;
    let mut texts: Vec<(&'static str, &str)> = corpus::texts().collect();
    texts.extend(conversations.iter().map(|text| ("conversations", text.as_str())));
    texts.extend(added.texts.iter().map(|text| ("added tokens", text.as_str())));
    for (section, text) in texts {
        let Some(wanted) = theirs.encode(text) else { continue };
        found.n_texts += 1;
        found.n_tokens += wanted.len();
        if encode(text) == wanted {
            continue;
        }
        found.n_different += 1;
        *found.sections.entry(section.to_owned()).or_default() += 1;
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

/// What is left when characters are taken from the end, then from the begin, as long as the rest differs: many at once first, since
/// each try encodes what is left.
fn trimmed(text: &str, differs: impl Fn(&str) -> bool) -> &str {
    let at = |text: &str, n: usize| text.char_indices().nth(n).map_or(text.len(), |(at, _)| at);
    let without_last = |text: &'_ str, n: usize| at(text, text.chars().count().saturating_sub(n));
    let text = shortened(text, &differs, |text, n| text.get(..without_last(text, n)).unwrap_or_default());
    shortened(text, &differs, |text, n| text.get(at(text, n)..).unwrap_or_default())
}

fn shortened<'t>(mut text: &'t str, differs: impl Fn(&str) -> bool, without: impl Fn(&'t str, usize) -> &'t str) -> &'t str {
    let mut n = text.chars().count().div_ceil(2);
    while n > 0 {
        let shorter = without(text, n);
        if !shorter.is_empty() && differs(shorter) {
            text = shorter;
        } else {
            n /= 2;
        }
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
    fn a_question_is_the_same_after_a_journey() {
        let conversations = vec!["é".to_owned(), String::new()];
        let question = Question { json: b"{}".to_vec(), header: vec![0, 255], conversations };
        let bytes = question.to_bytes();
        assert_eq!(Question::from_bytes(&bytes), Some(question));
        assert!((1..8).all(|n| Question::from_bytes(&bytes[..bytes.len() - n]).is_none()));
        assert_eq!(Question::from_bytes(&[0xff; 8]), None);
    }

    #[test]
    fn repeated_repetitions_are_too_large() {
        assert!(!is_too_large(r"\p{N}{1,3}|[^\r\n\p{L}\p{N}]?\p{L}+|\x{30000}|a{0}"));
        assert!(is_too_large("((?=a){1000}){1000}b{0}"));
        assert!(is_too_large(&"a".repeat(EXPRESSION_BYTES_MAX + 1)));
    }
}
