//! Cuts text into words, in stages: each stage cuts every piece that the stage before left.
//!
//! llama.cpp writes its stages as backtracking regular expressions. Here they are automata that run in linear time. What an automaton
//! cannot say, that white space before a word leaves its last character to the word, is a rule applied after the match.

use std::ops::Range;

use regex_automata::meta::Regex;
use regex_automata::{Anchored, Input, Match, PatternID};

use super::unicode::pinned;

/// One stage, as the table of pre-tokenizers spells it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Split {
    /// Cuts out every match, leftmost first; `\p{..}` are llama.cpp's categories. The text between matches stays as it is.
    Regex(&'static str),
    /// The same, and white space that nothing else matches is cut out too, by a rule.
    Words(&'static str, Spaces),
    /// Cuts runs of digits into groups of three from the right. As in llama.cpp, text before the digits stays with the first group.
    GroupDigits,
    /// Cuts before every third ASCII digit from the right of a run.
    CutThousands,
}

/// How a run of white space that a [`Split::Words`] does not otherwise match is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spaces {
    /// One piece; before a word without its last character, which is left for the word: `\s+(?!\S)|\s+`.
    LeaveOne,
    /// As much of it as is a power of two from 512 down to 1, before a word without its last character.
    Halve,
}

/// Compiled stages.
pub(super) struct Splitter {
    stages: Vec<Stage>,
}

enum Stage {
    Regex(Regex, Option<Spaces>),
    GroupDigits(Regex),
    CutThousands,
}

/// The pattern of white space among those of a stage.
const WHITE_SPACE: PatternID = PatternID::new_unchecked(1);

impl Splitter {
    pub(super) fn new(splits: &[Split]) -> Splitter {
        let stages = splits.iter().map(|split| match split {
            Split::Regex(pattern) => Stage::Regex(compile(&[pattern]), None),
            Split::Words(pattern, spaces) => Stage::Regex(compile(&[pattern, r"\s+"]), Some(*spaces)),
            Split::GroupDigits => Stage::GroupDigits(compile(&[r"\p{N}+"])),
            Split::CutThousands => Stage::CutThousands,
        });
        Splitter { stages: stages.collect() }
    }

    /// Where each word of `text` ends, in bytes, ascending; the last end is the text's. Empty text has no word.
    pub(super) fn word_ends(&self, text: &str) -> Vec<usize> {
        let mut ends = vec![text.len()];
        let mut finer = Vec::new();
        for stage in &self.stages {
            finer.clear();
            finer.reserve(ends.len());
            let mut start = 0;
            for end in &ends {
                stage.cut(&text[start..*end], |cut| finer.push(start + cut));
                start = *end;
            }
            std::mem::swap(&mut ends, &mut finer);
        }
        ends
    }
}

fn compile(patterns: &[&str]) -> Regex {
    let pinned: Vec<String> = patterns.iter().map(|pattern| pinned(pattern)).collect();
    Regex::builder().build_many(&pinned).expect("a constant pattern is valid")
}

impl Stage {
    /// Calls `push` with each place where `piece` is to be cut, ascending, its end included.
    fn cut(&self, piece: &str, push: impl FnMut(usize)) {
        match self {
            Stage::Regex(regex, spaces) => cut_by_regex(regex, *spaces, piece, push),
            Stage::GroupDigits(digits) => group_digits(digits, piece, push),
            Stage::CutThousands => cut_thousands(piece, push),
        }
    }
}

fn cut_by_regex(regex: &Regex, spaces: Option<Spaces>, piece: &str, mut push: impl FnMut(usize)) {
    let mut done = 0;
    while let Some(found) = search(regex, piece, done, spaces.is_some()) {
        if found.start() > done {
            push(found.start());
        }
        done = match spaces {
            Some(rule) if found.pattern() == WHITE_SPACE => cut_spaces(rule, piece, found.range(), &mut push),
            _ => {
                push(found.end());
                found.end()
            }
        };
    }
    if done < piece.len() {
        push(piece.len());
    }
}

/// The next match from `from` on. Where nearly every match follows the one before, looking there first spares the automaton that finds
/// where a match begins.
fn search(regex: &Regex, piece: &str, from: usize, follows: bool) -> Option<Match> {
    let input = Input::new(piece).range(from..);
    let here = if follows { regex.search(&input.clone().anchored(Anchored::Yes)) } else { None };
    here.or_else(|| regex.search(&input))
}

/// Cuts a run of white space. Before a word its last character is left to the word, if there is another; returns where what is left begins.
fn cut_spaces(rule: Spaces, piece: &str, run: Range<usize>, mut push: impl FnMut(usize)) -> usize {
    let last = piece[run.clone()].chars().next_back().map_or(0, char::len_utf8);
    let is_cut_short = run.end < piece.len() && run.len() > last;
    let end = if is_cut_short { run.end - last } else { run.end };
    match rule {
        Spaces::LeaveOne => push(end),
        Spaces::Halve => {
            let mut rest = &piece[run.start..end];
            while !rest.is_empty() {
                let n_chars = rest.chars().take(512).count();
                let len: usize = rest.chars().take(1 << n_chars.ilog2()).map(char::len_utf8).sum();
                rest = &rest[len..];
                push(end - rest.len());
            }
        }
    }
    end
}

fn group_digits(digits: &Regex, piece: &str, mut push: impl FnMut(usize)) {
    let mut done = 0;
    for run in digits.find_iter(piece) {
        let n_digits = piece[run.range()].chars().count();
        for (index, (at, _)) in piece[run.range()].char_indices().enumerate() {
            if index > 0 && (n_digits - index).is_multiple_of(3) {
                push(run.start() + at);
            }
        }
        done = run.end();
        push(done);
    }
    if done < piece.len() {
        push(piece.len());
    }
}

fn cut_thousands(piece: &str, mut push: impl FnMut(usize)) {
    let bytes = piece.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let n_digits = bytes[at..].iter().take_while(|b| b.is_ascii_digit()).count();
        (at..at + n_digits).filter(|cut| *cut > 0 && (at + n_digits - cut).is_multiple_of(3)).for_each(&mut push);
        at += n_digits.max(1);
    }
    push(piece.len());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words<'a>(splits: &[Split], text: &'a str) -> Vec<&'a str> {
        let mut start = 0;
        let ends = Splitter::new(splits).word_ends(text);
        ends.iter().map(|end| &text[std::mem::replace(&mut start, *end)..*end]).collect()
    }

    #[test]
    fn a_run_of_spaces_leaves_one_for_the_word() {
        let splits = [Split::Words(r" ?\p{L}+", Spaces::LeaveOne)];
        assert_eq!(words(&splits, "a   b c  "), ["a", "  ", " b", " c", "  "]);
        assert_eq!(words(&splits, "a\tb\u{3000}\u{3000}c"), ["a", "\t", "b", "\u{3000}", "\u{3000}", "c"]);
    }

    #[test]
    fn spaces_are_halved() {
        let splits = [Split::Words(r" ?\p{L}+", Spaces::Halve)];
        let text = format!("{}a{}", " ".repeat(1 + 512 + 256 + 3), " ".repeat(6));
        let lens: Vec<usize> = words(&splits, &text).iter().map(|word| word.len()).collect();
        assert_eq!(lens, [512, 256, 2, 1, 2, 4, 2]);
    }

    #[test]
    fn digits_are_grouped_from_the_right() {
        assert_eq!(words(&[Split::GroupDigits], "ab1234567 12 123x"), ["ab1", "234", "567", " 12", " 123", "x"]);
        assert_eq!(words(&[Split::CutThousands], "1234567"), ["1", "234", "567"]);
        assert_eq!(words(&[Split::CutThousands], "a123456b12"), ["a", "123", "456b12"]);
    }

    #[test]
    fn stages_cut_what_is_left() {
        assert_eq!(words(&[Split::Regex(r"[0-9]"), Split::Regex("b+")], "abbc1bb"), ["a", "bb", "c", "1", "bb"]);
        assert!(words(&[Split::Regex("a")], "").is_empty());
    }
}
