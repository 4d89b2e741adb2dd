//! Byte pair encoding: text is cut into words, words into symbols, and neighbouring symbols merge in the order of a list.
//!
//! A symbol is known by a number, its piece: the id where its text is a token, a number from there on where it only occurs in merges.
//! Pieces are kept as the bytes they stand for, not in the alphabet of the file.

use hashbrown::HashMap;

use super::bytes;
use super::cache::WordCache;
use super::fields::Fields;
use super::joints::{self, Joints, with_spaces};
use super::merge::{Chain, NONE};
use super::pretokenizers::{Alphabet, PreTokenizer};
use super::split::Splitter;
use super::texts::Texts;
use super::vocab::{Duplicates, Vocab, byte_token};
use crate::error::{Fault, Result};
use crate::gguf::{ArrayRef, ValueRef, ValueType, keys};

/// A word that is longer is cut before it is merged, which bounds the memory it takes to some 600 MB.
const WORD_BYTES_MAX: usize = 1 << 24;

/// A vocabulary with merges.
pub(super) struct Bpe {
    splitter: Splitter,
    alphabet: Alphabet,
    ignore_merges: bool,
    n_tokens: u32,
    pieces: Texts,
    /// By the two pieces: rank, and the piece they become.
    merges: HashMap<(u32, u32), (u32, u32)>,
    /// By byte: its piece in GPT-2's alphabet, its token `<0xFF>` in others.
    byte_pieces: [u32; 256],
    /// Where words can be cut further, in alphabets whose words are whole lines.
    joints: Option<Joints>,
}

impl Bpe {
    /// Reads the merges.
    ///
    /// # Errors
    /// `TokenizerInvalid` where there are none, though one family has none; `MergeInvalid` for one without two parts.
    pub(super) fn read(fields: Fields, vocab: &mut Vocab, pre: &PreTokenizer) -> Result<Bpe> {
        let merges = fields.array(keys::TOKENIZER_MERGES, &[ValueType::String])?;
        if merges.is_none() && !pre.names.contains(&"kimi-k2") {
            return Err(fields.fault(keys::TOKENIZER_MERGES, Fault::TokenizerInvalid, "there are no merges"));
        }
        let mut bpe = Bpe {
            splitter: Splitter::new(pre.splits),
            alphabet: pre.alphabet,
            ignore_merges: pre.ignore_merges,
            n_tokens: vocab.len(),
            pieces: Texts::default(),
            merges: HashMap::new(),
            byte_pieces: [NONE; 256],
            joints: None,
        };
        bpe.read_pieces(vocab);
        if let Some(merges) = merges {
            bpe.read_merges(fields, merges)?;
        }
        for byte in 0..=255_u8 {
            let piece = if bpe.alphabet == Alphabet::Bytes { bpe.pieces.find(&[byte]) } else { byte_token(&bpe.pieces, byte) };
            bpe.byte_pieces[usize::from(byte)] = piece.unwrap_or(NONE);
        }
        Ok(bpe)
    }

    fn read_pieces(&mut self, vocab: &mut Vocab) {
        let mut duplicates = Duplicates::default();
        let mut piece = Vec::new();
        self.pieces.reserve(vocab.len() as usize);
        for id in 0..vocab.len() {
            piece.clear();
            if self.spell(vocab.texts.get(id), &mut piece).is_none() {
                // Spelled in no word, so looked for in none.
                self.pieces.push_hidden(vocab.texts.get(id));
            } else if let Some(earlier) = self.pieces.push(&piece) {
                duplicates.add(earlier, id);
            }
        }
        vocab.warnings.extend(duplicates.warning());
    }

    /// Merges are `left right`, best first. Of equal ones the first counts; one with a part that no word is spelled with never applies.
    fn read_merges(&mut self, fields: Fields, merges: ArrayRef) -> Result<()> {
        self.merges.reserve(merges.len());
        let mut joints = (self.alphabet != Alphabet::Bytes && !self.ignore_merges).then(Joints::new);
        let mut both = Vec::new();
        for (rank, merge) in merges.iter().enumerate() {
            let ValueRef::String(merge) = merge else { continue };
            let fault =
                || fields.fault(keys::TOKENIZER_MERGES, Fault::MergeInvalid, format!("merge {rank} does not have two parts"));
            let (left, right) = halves(merge).ok_or_else(fault)?;
            both.clear();
            let Some(left_len) = self.spell(left, &mut both).map(|()| both.len()) else { continue };
            let Some(()) = self.spell(right, &mut both) else { continue };
            if let (Some(joints), Ok(left), Ok(right)) = (&mut joints, str::from_utf8(left), str::from_utf8(right)) {
                joints.add_between(left, right);
            }
            let pair = (self.pieces.intern(&both[..left_len]), self.pieces.intern(&both[left_len..]));
            let merged = self.pieces.intern(&both);
            self.merges.entry(pair).or_insert((rank as u32, merged));
        }
        self.joints = joints;
        Ok(())
    }

    /// Appends the bytes that a text of the file stands for; `None` where no word is spelled so.
    fn spell(&self, text: &[u8], out: &mut Vec<u8>) -> Option<()> {
        if self.alphabet == Alphabet::Bytes {
            return bytes::decode(text, out);
        }
        out.extend_from_slice(text);
        Some(())
    }

    /// The bytes that a token stands for in text.
    pub(super) fn token_bytes(&self, id: u32) -> Vec<u8> {
        let bytes = self.pieces.get(id);
        match self.alphabet {
            Alphabet::Visible | Alphabet::VisibleWithNewlines => with_spaces(bytes),
            Alphabet::Bytes | Alphabet::Words => bytes.to_vec(),
        }
    }

    /// Appends the ids of `text`.
    pub(super) fn encode(&self, text: &str, scratch: &mut Scratch, out: &mut Vec<u32>) {
        let escaped;
        let text = match self.alphabet {
            Alphabet::Visible | Alphabet::VisibleWithNewlines => {
                escaped = joints::with_visible_spaces(text);
                &escaped
            }
            Alphabet::Bytes | Alphabet::Words => text,
        };
        let mut start = 0;
        for end in self.splitter.word_ends(text) {
            let word = &text[start..end];
            start = end;
            if self.alphabet == Alphabet::VisibleWithNewlines
                && word.bytes().all(|b| b == b'\n')
                && let Some(id) = self.whole_token(word)
            {
                out.push(id);
                continue;
            }
            match &self.joints {
                Some(joints) => joints.for_each_piece(word, |piece| self.encode_word(piece, scratch, out)),
                None => self.encode_word(word, scratch, out),
            }
        }
    }

    /// The token that is spelled like the word.
    fn whole_token(&self, word: &str) -> Option<u32> {
        self.pieces.find(word.as_bytes()).filter(|piece| *piece < self.n_tokens)
    }

    fn encode_word(&self, word: &str, scratch: &mut Scratch, out: &mut Vec<u32>) {
        let Scratch { cache, chain } = scratch;
        let mut rest = word;
        while !rest.is_empty() {
            let (part, after) = rest.split_at(rest.floor_char_boundary(WORD_BYTES_MAX));
            cache.append(part.as_bytes(), out, |out| self.merge_word(part, chain, out));
            rest = after;
        }
    }

    fn merge_word(&self, word: &str, chain: &mut Chain, out: &mut Vec<u32>) {
        if self.ignore_merges
            && let Some(id) = self.whole_token(word)
        {
            out.push(id);
            return;
        }
        chain.clear();
        if self.alphabet == Alphabet::Bytes {
            word.bytes().for_each(|byte| chain.push(1, self.byte_pieces[usize::from(byte)]));
        } else {
            for (at, c) in word.char_indices() {
                let len = c.len_utf8();
                let piece = self.pieces.find(&word.as_bytes()[at..at + len]);
                chain.push(len as u32, piece.unwrap_or(NONE));
            }
        }
        chain.merge(|left, right| self.merges.get(&(left.piece, right.piece)).copied());
        for symbol in chain.symbols() {
            if symbol.piece < self.n_tokens {
                out.push(symbol.piece);
            } else {
                let unknown = &word.as_bytes()[symbol.start as usize..symbol.end() as usize];
                out.extend(unknown.iter().filter_map(|byte| self.byte_token(*byte)));
            }
        }
    }

    /// What stands for one byte of text that is no token. In GPT-2's alphabet llama.cpp knows only what is one byte there too.
    fn byte_token(&self, byte: u8) -> Option<u32> {
        let hidden = self.alphabet == Alphabet::Bytes && !byte.is_ascii_graphic();
        Some(self.byte_pieces[usize::from(byte)]).filter(|id| *id < self.n_tokens && !hidden)
    }
}

/// Working memory that is kept from word to word.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) cache: WordCache,
    pub(super) chain: Chain,
}

/// The two parts of a merge: what is before the first space that is not its first byte, and what is after.
fn halves(merge: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = merge.iter().skip(1).position(|b| *b == b' ')? + 1;
    Some((&merge[..at], &merge[at + 1..])).filter(|(_, right)| !right.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merge_is_cut_at_its_first_inner_space() {
        assert_eq!(halves(b"a b"), Some((&b"a"[..], &b"b"[..])));
        assert_eq!(halves(b"  b c"), Some((&b" "[..], &b"b c"[..])));
        assert!([&b" b"[..], b"ab", b"a ", b""].iter().all(|merge| halves(merge).is_none()));
    }
}
