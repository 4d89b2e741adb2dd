//! SentencePiece's BPE: neighbours merge wherever the result is a token, that of the highest score first.
//!
//! Spaces are made visible, and one is put before the text where the model wants it. What remains of unknown characters becomes byte
//! tokens. As nothing is cut into words, the text is cut where no token reaches across instead, see [`Joints`].

use super::bpe::Scratch;
use super::joints::{Joints, SPACE, with_visible_spaces};
use super::merge::{Chain, NONE};
use super::vocab::{Vocab, byte_token};

/// A piece that is longer is cut before it is merged, which bounds the memory it takes to some 600 MB.
const PIECE_BYTES_MAX: usize = 1 << 24;

/// A vocabulary with scores.
pub(super) struct SentencePiece {
    /// By id: 0 for the highest score, ascending as scores descend; equal scores have equal ranks.
    ranks: Vec<u32>,
    joints: Joints,
    /// By byte: the token that stands for it.
    byte_tokens: Vec<Option<u32>>,
    /// Stands for characters that have no bytes either; absent where every byte has its token.
    unk: Option<u32>,
}

impl SentencePiece {
    pub(super) fn new(vocab: &Vocab) -> SentencePiece {
        let mut joints = Joints::new();
        for id in 0..vocab.len() {
            if let Ok(text) = str::from_utf8(vocab.texts.get(id)) {
                joints.add_inside(text);
            }
        }
        let token_of = |byte| byte_token(&vocab.texts, byte).or_else(|| vocab.texts.find(&[byte]));
        let byte_tokens: Vec<Option<u32>> = (0..=255).map(token_of).collect();
        let is_complete = byte_tokens.iter().all(Option::is_some);
        SentencePiece {
            ranks: (0..vocab.len()).map(|id| rank(vocab.scores.get(id as usize).copied().unwrap_or(0.0))).collect(),
            joints,
            byte_tokens,
            unk: vocab.roles.unk.filter(|_| !is_complete),
        }
    }

    /// Appends the ids of `text`, before which a space is put if asked for.
    pub(super) fn encode(&self, vocab: &Vocab, text: &str, space_before: bool, scratch: &mut Scratch, out: &mut Vec<u32>) {
        let mut visible = with_visible_spaces(text);
        if space_before {
            visible.insert(0, SPACE);
        }
        let before = out.len();
        self.joints.for_each_piece(&visible, |piece| {
            let mut rest = piece;
            while !rest.is_empty() {
                let (part, after) = rest.split_at(rest.floor_char_boundary(PIECE_BYTES_MAX));
                let Scratch { cache, chain } = scratch;
                cache.append(part.as_bytes(), out, |out| self.merge_piece(vocab, part, chain, out));
                rest = after;
            }
        });
        if let Some(unk) = self.unk {
            fuse(unk, before, out);
        }
    }

    fn merge_piece(&self, vocab: &Vocab, piece: &str, chain: &mut Chain, out: &mut Vec<u32>) {
        chain.clear();
        let piece_bytes = piece.as_bytes();
        let find = |start: u32, end: u32| vocab.texts.find(&piece_bytes[start as usize..end as usize]);
        for (at, c) in piece.char_indices() {
            let (start, len) = (at as u32, c.len_utf8() as u32);
            chain.push(len, find(start, start + len).unwrap_or(NONE));
        }
        chain.merge(|left, right| find(left.start, right.end()).map(|id| (self.ranks[id as usize], id)));
        for symbol in chain.symbols() {
            if symbol.piece != NONE {
                out.push(symbol.piece);
            } else {
                self.push_bytes(&piece_bytes[symbol.start as usize..symbol.end() as usize], out);
            }
        }
    }

    /// A character that is no token: its bytes, or the unknown token where one of them has none. There llama.cpp gives up; the
    /// original makes one unknown token of all such characters in a row, and so does [`fuse`].
    fn push_bytes(&self, unknown: &[u8], out: &mut Vec<u32>) {
        let before = out.len();
        out.extend(unknown.iter().filter_map(|byte| self.byte_tokens[usize::from(*byte)]));
        if out.len() - before < unknown.len() {
            out.truncate(before);
            out.extend(self.unk);
        }
    }
}

/// Leaves one of several unknown tokens in a row.
fn fuse(unk: u32, from: usize, ids: &mut Vec<u32>) {
    let mut end = from;
    for at in from..ids.len() {
        if ids[at] != unk || end == from || ids[end - 1] != unk {
            ids[end] = ids[at];
            end += 1;
        }
    }
    ids.truncate(end);
}

/// A number that is the smaller, the higher the score.
fn rank(score: f32) -> u32 {
    // Adding zero makes -0 and 0 equal. As two's complement, the bits of floats then ascend as they do.
    let bits = (score + 0.0).to_bits();
    if score.is_sign_negative() && bits != 0 { bits } else { !bits & 0x7fff_ffff }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn higher_scores_have_lower_ranks() {
        let scores = [f32::INFINITY, 1.5, 1.0, 0.0, -0.5, -1.0, -1000.0, f32::NEG_INFINITY];
        assert!(scores.windows(2).all(|pair| rank(pair[0]) < rank(pair[1])), "{:?}", scores.map(rank));
        assert_eq!(rank(0.0), rank(-0.0));
    }

    #[test]
    fn unknown_characters_in_a_row_are_one_token() {
        let mut vocab = Vocab::of_texts(["<unk>", "▁", "a"].into_iter());
        vocab.roles.unk = Some(0);
        let spm = SentencePiece::new(&vocab);
        let mut out = vec![0];
        spm.encode(&vocab, "éé aé", true, &mut Scratch::default(), &mut out);
        assert_eq!(out, [0, 1, 0, 1, 2, 0]);
    }
}
