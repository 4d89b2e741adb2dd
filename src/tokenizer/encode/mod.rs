//! Text to token ids and back, from the metadata of a GGUF file alone, as llama.cpp does it.
//!
//! | `tokenizer.ggml.model` | algorithm | where |
//! |---|---|---|
//! | `gpt2`, `gemma4` | byte pair encoding of words, with a list of merges | [`bpe`], [`pretokenizers`], [`split`] |
//! | `llama` | SentencePiece: merges by the score of the result | [`spm`] |
//! | `bert` | WordPiece: the longest tokens that spell a word | [`wordpiece`] |
//! | `t5` | unigram: the tokens with the best sum of scores | [`unigram`], [`charsmap`] |
//!
//! A text is first cut at the special tokens that stand in it ([`special`]); the algorithm encodes what is between. That takes time in
//! proportion to the text, up to a logarithm, and for vocabularies made to be slow no more than that times their longest token or the
//! number of special tokens in the text. Nothing recurses. Knows nothing of tensors, and of files only metadata.

// Numbers are bounded where the vocabulary is read (ids have 31 bits, words at most 16 MiB), text is cut at characters that were found in
// it, and what is expected to be valid is a constant; `tests` and the hostile vocabularies of tests/tokenize.rs hold all of it to that.
#![allow(clippy::cast_possible_truncation, clippy::expect_used, clippy::panic, clippy::string_slice)]

mod bpe;
mod bytes;
mod cache;
mod charsmap;
mod fields;
mod finder;
mod joints;
mod load;
mod merge;
mod pretokenizers;
mod special;
mod split;
mod spm;
mod text;
mod texts;
mod trie;
mod unicode;
mod unigram;
mod vocab;
mod wordpiece;

pub(super) use special::{SPECIAL_BYTES_MAX, ends_generation_by_spelling};
pub use text::{read_text, text_of};

use bpe::{Bpe, Scratch};
use fields::Fields;
use joints::with_spaces;
use special::{Fragment, SpecialTokens};
use split::Splitter;
use spm::SentencePiece;
use unigram::Unigram;
use vocab::{Attributes, Vocab};
use wordpiece::WordPiece;

use crate::error::Result;
use crate::gguf::File;

/// What special tokens that are spelled out in a text are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Specials {
    /// The tokens, as in a rendered chat template.
    Parse,
    /// Text like any other, as in the words of a user. User-defined tokens are found all the same.
    Literal,
}

/// What is put around the ids of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// The tokens that the model wants at begin and end.
    Add,
    /// Nothing.
    Omit,
}

/// The names of pre-tokenizers, values of `tokenizer.ggml.pre`, that can be encoded.
pub fn pre_names() -> impl Iterator<Item = &'static str> {
    pretokenizers::names()
}

/// Cuts text into words as a pre-tokenizer of llama.cpp does.
pub struct Words(Splitter);

impl Words {
    /// `None` for a name that is not known.
    pub fn new(pre: &str) -> Option<Words> {
        pretokenizers::by_name(pre).map(|pre| Words(Splitter::new(pre.splits)))
    }

    /// The words of `text`, white space included: together they are the text.
    pub fn of<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut start = 0;
        let ends = self.0.word_ends(text);
        ends.iter().map(|end| &text[std::mem::replace(&mut start, *end)..*end]).collect()
    }
}

/// Encodes and decodes text with the vocabulary of one model.
pub struct Tokenizer {
    vocab: Vocab,
    algorithm: Algorithm,
    special: SpecialTokens,
    first: Option<u32>,
    last: Option<u32>,
    space_before: bool,
}

enum Algorithm {
    Bpe(Box<Bpe>),
    SentencePiece(SentencePiece),
    WordPiece(Box<WordPiece>),
    Unigram(Unigram),
}

impl Tokenizer {
    /// Reads the vocabulary of a file; of a split model, the first.
    ///
    /// # Errors
    /// `Malformed` for a vocabulary that is missing or contradicts itself, `Unsupported` for kinds of tokenizer other than those above.
    pub fn from_metadata(file: &File) -> Result<Tokenizer> {
        load::read(Fields::new(file))
    }

    /// The ids of a text.
    pub fn encode(&self, text: &str, specials: Specials, ends: Ends) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut scratch = Scratch::default();
        ids.extend(self.first.filter(|_| ends == Ends::Add));
        let mut after_special = true;
        for fragment in self.special.partition(text, specials) {
            match &fragment {
                Fragment::Token(id) => ids.push(*id),
                Fragment::Text(range) => self.encode_text(&text[range.clone()], after_special, &mut scratch, &mut ids),
            }
            after_special = matches!(fragment, Fragment::Token(_));
        }
        ids.extend(self.last.filter(|_| ends == Ends::Add));
        ids
    }

    fn encode_text(&self, text: &str, after_special: bool, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        match &self.algorithm {
            Algorithm::Bpe(bpe) => bpe.encode(text, scratch, ids),
            Algorithm::SentencePiece(spm) => spm.encode(&self.vocab, text, self.space_before && after_special, scratch, ids),
            Algorithm::WordPiece(word_piece) => word_piece.encode(&self.vocab, text, scratch, ids),
            Algorithm::Unigram(unigram) => unigram.encode(&self.vocab, text, self.space_before, ids),
        }
    }

    /// The bytes of a sequence of ids, special tokens included or left out. A space that [`encode`](Tokenizer::encode) put before the
    /// text is taken away. Bytes, since a model can stop in the middle of a character; ids outside the vocabulary are nothing.
    pub fn decode(&self, ids: &[u32], specials: Specials) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut first = self.space_before || matches!(self.algorithm, Algorithm::WordPiece(_));
        for id in ids {
            let piece = self.piece(*id, specials);
            let skipped = usize::from(first && piece.first() == Some(&b' '));
            bytes.extend_from_slice(&piece[skipped..]);
            first &= piece.is_empty();
        }
        bytes
    }

    /// The bytes that one id adds to a text.
    pub fn piece(&self, id: u32, specials: Specials) -> Vec<u8> {
        let Some(attributes) = self.vocab.attributes.get(id as usize) else { return Vec::new() };
        let text = self.vocab.texts.get(id);
        if attributes.any(Attributes::ONLY_PARSED) && specials == Specials::Literal {
            Vec::new()
        } else if attributes.any(Attributes::SPECIAL) {
            text.to_vec()
        } else if attributes.any(Attributes::NORMAL) {
            match &self.algorithm {
                Algorithm::Bpe(bpe) => bpe.token_bytes(id),
                Algorithm::SentencePiece(_) | Algorithm::WordPiece(_) | Algorithm::Unigram(_) => with_spaces(text),
            }
        } else if attributes.any(Attributes::BYTE) {
            byte_of(text).into_iter().collect()
        } else {
            Vec::new()
        }
    }

    /// The text of a token as the file spells it.
    pub fn token_text(&self, id: u32) -> Option<&[u8]> {
        (id < self.vocab.len()).then(|| self.vocab.texts.get(id))
    }

    /// Number of tokens.
    pub fn n_tokens(&self) -> u32 {
        self.vocab.len()
    }

    /// The id that begins a text, whether or not the model wants it added.
    pub fn bos(&self) -> Option<u32> {
        self.vocab.roles.bos
    }

    /// The id that ends a text, whether or not the model wants it added.
    pub fn eos(&self) -> Option<u32> {
        self.vocab.roles.eos
    }

    /// True when [`Ends::Add`] puts [`bos`](Tokenizer::bos) before a text.
    pub fn adds_bos(&self) -> bool {
        self.first.is_some()
    }

    /// Puts what the model wants before a text in front of its ids, unless they begin so already, as those of a chat template may.
    pub fn begin(&self, ids: &mut Vec<u32>) {
        if let Some(bos) = self.bos().filter(|bos| self.adds_bos() && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
    }

    /// True for ids after which a model has said all it has to say.
    pub fn ends_generation(&self, id: u32) -> bool {
        self.vocab.roles.end_of_generation.binary_search(&id).is_ok()
    }

    /// What is odd about the vocabulary, one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.vocab.warnings
    }
}

/// The byte of `<0xFF>`.
fn byte_of(text: &[u8]) -> Option<u8> {
    let digits = str::from_utf8(text.strip_prefix(b"<0x")?.strip_suffix(b">")?).ok()?;
    let two_digits = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    if two_digits { u8::from_str_radix(digits, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_tokens_have_two_hexadecimal_digits() {
        assert_eq!((byte_of(b"<0x0a>"), byte_of(b"<0xFF>")), (Some(10), Some(255)));
        assert!(
            [&b"<0x-1>"[..], b"<0x+1>", b"<0xZZ>", b"<0x123>", b"<0x>", b"0x10", b""].iter().all(|text| byte_of(text).is_none())
        );
    }
}
