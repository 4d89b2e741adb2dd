//! BERT's WordPiece: text is cleaned and cut into words and punctuation; a word is the longest tokens that spell it, from the left.
//!
//! Tokens that begin a word are spelled with a visible space, as llama.cpp's converter writes them.

use super::bpe::Scratch;
use super::joints::SPACE;
use super::trie::Trie;
use super::unicode::{CharClass, CharMaps};
use super::vocab::Vocab;

/// A vocabulary of word beginnings and continuations.
pub(super) struct WordPiece {
    trie: Trie,
    maps: CharMaps,
    lowercase: bool,
    strip_accents: bool,
    /// Neither text nor white space: control characters, and what stands for nothing.
    dropped: CharClass,
    accents: CharClass,
    /// Characters that are words by themselves.
    alone: CharClass,
}

impl WordPiece {
    pub(super) fn new(vocab: &Vocab, lowercase: bool, strip_accents: bool) -> WordPiece {
        WordPiece {
            trie: Trie::new(&vocab.texts, 0..vocab.len()),
            maps: CharMaps::new(),
            lowercase,
            strip_accents,
            dropped: CharClass::new(r"[\x00\u{FFFD}\p{Cc}\p{Cf}\p{Co}]"),
            accents: CharClass::new(r"[\p{M}]"),
            // Punctuation, ASCII symbols and Han. The range from U+2B920 is that of the tokenizers library.
            alone: CharClass::new(concat!(
                r"[\p{P}[\p{S}&&[\x00-\x7E]]\u{4E00}-\u{9FFF}\u{3400}-\u{4DBF}\u{20000}-\u{2A6DF}\u{2A700}-\u{2B73F}",
                r"\u{2B740}-\u{2B81F}\u{2B920}-\u{2CEAF}\u{F900}-\u{FAFF}\u{2F800}-\u{2FA1F}]"
            )),
        }
    }

    /// Appends the ids of `text`.
    pub(super) fn encode(&self, vocab: &Vocab, text: &str, scratch: &mut Scratch, out: &mut Vec<u32>) {
        let mut word = String::from(SPACE);
        for c in text.chars() {
            if c.is_whitespace() {
                self.finish(vocab, &mut word, scratch, out);
                continue;
            }
            let c = if self.strip_accents { self.maps.base(c) } else { c };
            if self.dropped.contains(c) || (self.strip_accents && self.accents.contains(c)) {
                continue;
            }
            let written = if self.lowercase { self.maps.lower(c) } else { c };
            if self.alone.contains(c) {
                self.finish(vocab, &mut word, scratch, out);
                word.push(written);
                self.finish(vocab, &mut word, scratch, out);
            } else {
                word.push(written);
            }
        }
        self.finish(vocab, &mut word, scratch, out);
    }

    /// Encodes the word, if there is one after its space, and begins the next.
    fn finish(&self, vocab: &Vocab, word: &mut String, scratch: &mut Scratch, out: &mut Vec<u32>) {
        if word.len() > SPACE.len_utf8() {
            scratch.cache.append(word.as_bytes(), out, |out| self.encode_word(vocab, word.as_bytes(), out));
            word.truncate(SPACE.len_utf8());
        }
    }

    /// A word that cannot be spelled to its end is unknown as a whole.
    fn encode_word(&self, vocab: &Vocab, word: &[u8], out: &mut Vec<u32>) {
        let before = out.len();
        let mut rest = word;
        while !rest.is_empty() {
            let Some((id, len)) = self.trie.longest(rest) else {
                out.truncate(before);
                out.extend(vocab.roles.unk);
                return;
            };
            out.push(id);
            rest = &rest[len..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_cleaned_cut_and_spelled() {
        let mut vocab = Vocab::of_texts(["[UNK]", "▁cafe", "▁ca", "fes", "▁!", "▁中", "▁a", "res"].into_iter());
        vocab.roles.unk = Some(0);
        let piece = WordPiece::new(&vocab, true, true);
        let encode = |text: &str| {
            let mut out = Vec::new();
            piece.encode(&vocab, text, &mut Scratch::default(), &mut out);
            out
        };
        assert_eq!(encode("Café CARES!a\u{301}中 \u{1}x\u{ad}"), [1, 2, 7, 4, 6, 5, 0]);
        assert_eq!(encode("cafes"), [0], "the longest beginning leaves an end that no token spells");
        assert!(encode(" \n").is_empty());
    }
}
