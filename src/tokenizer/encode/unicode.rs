//! Characters as llama.cpp sees them: general categories of Unicode 15.1, whatever version the libraries here have.
//!
//! llama.cpp carries its own category table. Every code point of it equals the general category of today's Unicode where the code point
//! was assigned by 15.1, and "unassigned" elsewhere, so one intersection with the age reproduces it.

use regex_syntax::hir::{Class, HirKind};
use unicode_normalization::char::decompose_canonical;

/// What every class of a pattern is intersected with.
const KNOWN: &str = r"\p{age:15.1}";

/// The pattern with each general category limited to code points that llama.cpp knows.
pub(super) fn pinned(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() * 2);
    let mut rest = pattern;
    while let Some(at) = rest.find(r"\p{")
        && let Some(len) = rest[at..].find('}')
    {
        let (before, from) = rest.split_at(at);
        let (class, after) = from.split_at(len + 1);
        out.push_str(before);
        out.push_str(&format!("[{class}&&{KNOWN}]"));
        rest = after;
    }
    out.push_str(rest);
    out
}

/// A set of characters.
pub(super) struct CharClass {
    /// Bit `c` for each ASCII character `c`.
    ascii: u128,
    /// First and last of each range, ascending.
    ranges: Vec<(char, char)>,
}

impl CharClass {
    /// The characters that a bracket expression matches, categories as in [`pinned`].
    ///
    /// # Panics
    /// When `pattern`, a constant of the caller, is not a bracket expression.
    pub(super) fn new(pattern: &str) -> CharClass {
        let hir = regex_syntax::parse(&pinned(pattern)).expect("a constant pattern is valid");
        let HirKind::Class(Class::Unicode(class)) = hir.kind() else { panic!("{pattern} is not a class of characters") };
        let ranges: Vec<(char, char)> = class.ranges().iter().map(|range| (range.start(), range.end())).collect();
        let mut set = CharClass { ascii: 0, ranges };
        set.ascii = (0..128_u8).filter(|c| set.contains_by_search(char::from(*c))).fold(0, |bits, c| bits | 1 << c);
        set
    }

    pub(super) fn contains(&self, c: char) -> bool {
        if c.is_ascii() { self.ascii >> (c as u32) & 1 == 1 } else { self.contains_by_search(c) }
    }

    fn contains_by_search(&self, c: char) -> bool {
        let after = self.ranges.partition_point(|(first, _)| *first <= c);
        after > 0 && c <= self.ranges[after - 1].1
    }
}

/// Case and accents, for the code points that llama.cpp knows. Both maps are one to one there: of a longer result only the first
/// character is kept.
pub(super) struct CharMaps {
    known: CharClass,
}

impl CharMaps {
    pub(super) fn new() -> CharMaps {
        CharMaps { known: CharClass::new(KNOWN) }
    }

    /// The lower-case form.
    pub(super) fn lower(&self, c: char) -> char {
        if self.known.contains(c) { c.to_lowercase().next().unwrap_or(c) } else { c }
    }

    /// The first character of the canonical decomposition: the letter without its accents.
    pub(super) fn base(&self, c: char) -> char {
        if c.is_ascii() || !self.known.contains(c) {
            return c;
        }
        let mut first = None;
        decompose_canonical(c, |part| {
            first.get_or_insert(part);
        });
        first.unwrap_or(c)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn categories_end_at_unicode_15_1() {
        let letters = CharClass::new(r"[\p{L}]");
        assert!(letters.contains('a') && letters.contains('é') && letters.contains('\u{2ebf0}'));
        assert!(!letters.contains('1') && !letters.contains('\u{a7cb}'), "U+A7CB came with Unicode 16");
    }

    #[test]
    fn maps_keep_one_character() {
        let maps = CharMaps::new();
        assert_eq!((maps.lower('İ'), maps.lower('Ä'), maps.lower('\u{a7cb}')), ('i', 'ä', '\u{a7cb}'));
        assert_eq!((maps.base('é'), maps.base('가'), maps.base('x')), ('e', 'ᄀ', 'x'));
    }
}
