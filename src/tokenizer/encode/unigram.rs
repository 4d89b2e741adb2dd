//! SentencePiece's unigram model: of all ways to spell the text with tokens, the one with the highest sum of scores.
//!
//! The text is normalized first. The best way to reach each place is kept, place by place; wherever no token reaches across a place, every
//! way leads through it, so what came before is final and its memory is used again.

use super::charsmap::Charsmap;
use super::joints::SPACE;
use super::trie::Trie;
use super::vocab::{Attributes, Vocab};

/// By how much an unknown character is worse than the worst token.
const UNKNOWN_PENALTY: f32 = 10.0;

/// A vocabulary of scored tokens with rules to normalize text.
pub(super) struct Unigram {
    tokens: Trie,
    user_defined: Trie,
    charsmap: Charsmap,
    unknown_score: f32,
    remove_extra_spaces: bool,
}

/// The best way to a place.
#[derive(Clone, Copy)]
struct Best {
    token: Option<u32>,
    /// Where its last token begins, counted like the place itself.
    from: usize,
    score: f64,
}

const UNREACHED: Best = Best { token: None, from: 0, score: f64::MIN };

impl Unigram {
    pub(super) fn new(vocab: &Vocab, charsmap: Charsmap, remove_extra_spaces: bool) -> Unigram {
        let with = |wanted| (0..vocab.len()).filter(move |id| vocab.attributes[*id as usize].any(wanted));
        let spoken = Attributes::NORMAL.with(Attributes::USER_DEFINED).with(Attributes::UNUSED);
        let worst = with(Attributes::NORMAL).map(|id| score(vocab, id)).fold(f32::MAX, f32::min);
        Unigram {
            tokens: Trie::new(&vocab.texts, with(spoken)),
            user_defined: Trie::new(&vocab.texts, with(Attributes::USER_DEFINED)),
            charsmap,
            unknown_score: worst - UNKNOWN_PENALTY,
            remove_extra_spaces,
        }
    }

    /// Appends the ids of `text`, before which a space is put if asked for.
    pub(super) fn encode(&self, vocab: &Vocab, text: &str, space_before: bool, out: &mut Vec<u32>) {
        let text = self.normalize(text.as_bytes(), space_before);
        let mut ways = vec![Best { score: 0.0, ..UNREACHED }];
        let mut after_unknown = false;
        let (mut start, mut at) = (0, 0);
        while at < text.len() {
            self.extend_ways(vocab, &text[start..], at - start, &mut ways);
            at = (at + char_len(text[at])).min(text.len());
            if ways.len() == at - start + 1 {
                // No token reaches beyond this place.
                after_unknown = emit(&ways, vocab.roles.unk, after_unknown, out);
                ways[0] = Best { score: ways[at - start].score, ..UNREACHED };
                ways.truncate(1);
                start = at;
            }
        }
    }

    /// Goes on from the place `at` with every token that begins there, and with the unknown token where no token is the whole character.
    fn extend_ways(&self, vocab: &Vocab, text: &[u8], at: usize, ways: &mut Vec<Best>) {
        let here = ways[at].score;
        let one_char = at + char_len(text[at]).min(text.len() - at);
        let mut is_known = false;
        let mut node = self.tokens.root();
        for (end, byte) in (at + 1..).zip(&text[at..]) {
            let Some(next) = self.tokens.step(node, *byte) else { break };
            node = next;
            if let Some(token) = self.tokens.token(node) {
                is_known |= end == one_char;
                let is_user_defined = vocab.attributes[token as usize].any(Attributes::USER_DEFINED);
                let score = here + if is_user_defined { 0.0 } else { f64::from(score(vocab, token)) };
                improve(ways, end, Best { token: Some(token), from: at, score });
            }
        }
        if !is_known {
            improve(ways, one_char, Best { token: vocab.roles.unk, from: at, score: here + f64::from(self.unknown_score) });
        }
    }

    /// Replaces what the rules replace, makes spaces visible, and merges them where the model wants it.
    fn normalize(&self, text: &[u8], mut space_before: bool) -> Vec<u8> {
        let mut space = [0; SPACE.len_utf8()];
        let space = SPACE.encode_utf8(&mut space).as_bytes();
        let mut normal = Vec::with_capacity(text.len() + text.len() / 2);
        let mut in_word = false;
        let mut rest = text;
        while !rest.is_empty() {
            let (len, replacement) = self.normalize_prefix(rest);
            rest = &rest[len..];
            for byte in replacement {
                if *byte == b' ' {
                    in_word = false;
                    if !self.remove_extra_spaces {
                        normal.extend_from_slice(space);
                    }
                    continue;
                }
                if !in_word && (space_before || self.remove_extra_spaces) {
                    normal.extend_from_slice(space);
                    space_before = false;
                }
                in_word = true;
                normal.push(*byte);
            }
        }
        normal
    }

    /// How much of the front of `text` is replaced at once, and by what. Text that a user-defined token begins with stays as it is.
    fn normalize_prefix<'a>(&'a self, text: &'a [u8]) -> (usize, &'a [u8]) {
        let kept = self.user_defined.common_len(text);
        if kept > 0 {
            return (kept, &text[..kept]);
        }
        if let Some(rule) = self.charsmap.longest(text) {
            return rule;
        }
        let len = char_len(text[0]).min(text.len());
        match str::from_utf8(&text[..len]) {
            Ok(c) => (len, c.as_bytes()),
            Err(_) => (1, "\u{fffd}".as_bytes()),
        }
    }
}

fn score(vocab: &Vocab, id: u32) -> f32 {
    vocab.scores.get(id as usize).copied().unwrap_or(0.0)
}

/// Keeps the better way to `end`, of equal ones the first.
fn improve(ways: &mut Vec<Best>, end: usize, way: Best) {
    if ways.len() <= end {
        ways.resize(end + 1, UNREACHED);
    }
    if way.score > ways[end].score {
        ways[end] = way;
    }
}

/// Appends the tokens on the way to the last place; of unknown ones in a row only the first. Returns whether the last one is unknown.
fn emit(ways: &[Best], unk: Option<u32>, mut after_unknown: bool, out: &mut Vec<u32>) -> bool {
    let mut tokens = Vec::new();
    let mut at = ways.len() - 1;
    while at > 0 {
        tokens.push(ways[at].token);
        at = ways[at].from;
    }
    for token in tokens.into_iter().rev() {
        let is_unknown = token == unk;
        if !(is_unknown && after_unknown) {
            out.extend(token);
        }
        after_unknown = is_unknown;
    }
    after_unknown
}

/// Bytes of the character that begins with `first`; 1 for what begins none.
fn char_len(first: u8) -> usize {
    match first {
        0xc0..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xff => 4,
        _ => 1,
    }
}
