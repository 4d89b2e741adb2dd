//! Regular expressions compared by meaning.
//!
//! Two spellings of one expression are equal here: both are parsed into `regex-syntax`'s normal form, where classes are sets of code
//! points, case-insensitive groups are classes, and escapes are characters. What that crate does not parse is rewritten first:
//! look-around groups become ordinary groups behind a private-use character, and possessive quantifiers become greedy ones. (The
//! latter differ only in backtracking that no expression of a known tokenizer needs.)

use std::str::Chars;

use regex_syntax::Parser;
use regex_syntax::hir::{Hir, HirKind};

/// Longest expression compared; the longest known has some 500 bytes.
const PATTERN_BYTES_MAX: usize = 2048;

/// An expression in normal form.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Pattern {
    /// Comparable by meaning.
    Parsed(Hir),
    /// Not understood: equal only to the same text.
    Opaque(String),
}

impl Pattern {
    /// A regular expression in the dialect of tokenizer.json (Oniguruma).
    pub fn regex(text: &str) -> Pattern {
        if text.len() > PATTERN_BYTES_MAX {
            return Pattern::Opaque(text.to_owned());
        }
        match Parser::new().parse(&rewrite(text)) {
            Ok(hir) => Pattern::Parsed(hir),
            Err(_) => Pattern::Opaque(text.to_owned()),
        }
    }

    /// Exactly this text.
    pub fn literal(text: &str) -> Pattern {
        Pattern::Parsed(Hir::literal(text.as_bytes()))
    }

    /// The alternatives of the outermost level.
    pub fn alternatives(&self) -> Vec<Pattern> {
        match self {
            Pattern::Parsed(hir) => match hir.kind() {
                HirKind::Alternation(alternatives) => alternatives.iter().cloned().map(Pattern::Parsed).collect(),
                _ => vec![self.clone()],
            },
            Pattern::Opaque(_) => vec![self.clone()],
        }
    }
}

/// Stand-ins for what `regex-syntax` lacks, from a private-use plane.
const LOOKAROUND: [(&str, &str); 5] =
    [("(?!", "(?:\u{f0000}"), ("(?=", "(?:\u{f0001}"), ("(?<!", "(?:\u{f0002}"), ("(?<=", "(?:\u{f0003}"), ("(?>", "(?:")];

fn rewrite(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    let mut class_depth = 0u32;
    let mut after_quantifier = false;
    loop {
        let group = LOOKAROUND.iter().find_map(|(group, stand_in)| Some((chars.as_str().strip_prefix(group)?, stand_in)));
        if let Some((inside, stand_in)) = group.filter(|_| class_depth == 0) {
            out.push_str(stand_in);
            chars = inside.chars();
            after_quantifier = false;
            continue;
        }
        let Some(c) = chars.next() else { return out };
        let is_possessive = c == '+' && after_quantifier;
        after_quantifier = class_depth == 0 && matches!(c, '?' | '*' | '+') && !after_quantifier;
        if is_possessive {
            continue;
        }
        out.push(c);
        match c {
            '[' => class_depth += 1,
            ']' => class_depth = class_depth.saturating_sub(1),
            '\\' => copy_escape(&mut chars, &mut out),
            // `(?:` and `(?i:` have no quantifier.
            '(' if chars.as_str().starts_with('?') => out.extend(chars.next()),
            _ => {}
        }
    }
}

/// The rest of an escape: `n`, `p{L}`.
fn copy_escape(chars: &mut Chars, out: &mut String) {
    let Some(escaped) = chars.next() else { return };
    out.push(escaped);
    if matches!(escaped, 'p' | 'P' | 'x' | 'u') && chars.as_str().starts_with('{') {
        for c in chars.by_ref() {
            out.push(c);
            if c == '}' {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_expression_are_equal() {
        for (a, b) in [
            (r"[^\r\n\p{L}\p{N}]?\p{L}+", "[^\r\n\\p{N}\\p{L}]?+\\p{Letter}++"),
            (r"'(?i:re|ve)", r"'(?:[rR][eE]|[vV][eE])"),
            (r"\s+(?!\S)|\s+", r"\s+(?![^\s])|[\s]+"),
            (r"\p{N}{1,3}", r"(?:\p{N}){1,3}"),
            (r"[\[\]+]+", r"[+\]\[]+"),
        ] {
            assert!(matches!(Pattern::regex(a), Pattern::Parsed(_)), "{a}");
            assert_eq!(Pattern::regex(a), Pattern::regex(b), "{a} {b}");
        }
    }

    #[test]
    fn different_expressions_differ() {
        for (a, b) in
            [(r"\s+(?!\S)", r"\s+(?=\S)"), (r"\s+(?!\S)", r"\s+\S"), (r"\p{N}{1,3}", r"\p{N}"), (r"a+", r"a*"), (r"(", r")")]
        {
            assert_ne!(Pattern::regex(a), Pattern::regex(b), "{a} {b}");
        }
    }

    #[test]
    fn no_expression_is_too_strange() {
        for text in ["\\", "(?", "[", "(?!", "[[[[", "a++++", "\\p{", "(?i", "{}+", "(((((((((("] {
            Pattern::regex(text);
        }
        assert!(matches!(Pattern::regex(&"(".repeat(5000)), Pattern::Opaque(_)));
        assert!(matches!(Pattern::regex(&"a".repeat(PATTERN_BYTES_MAX + 1)), Pattern::Opaque(_)));
    }
}
