//! Regular expressions compared by meaning.
//!
//! Two spellings of one expression are equal here: both are parsed into `regex-syntax`'s normal form, where classes are sets of code
//! points, case-insensitive groups are classes, and escapes are characters. What that crate does not parse is rewritten first:
//! look-around groups become ordinary groups behind a private-use character, and possessive quantifiers become greedy ones. (The
//! latter differ only in backtracking that no expression of a known tokenizer needs.)

use regex_syntax::Parser;
use regex_syntax::hir::{Hir, HirKind};

/// Longest expression compared; the longest known has 1200 bytes.
const PATTERN_BYTES_MAX: usize = 8192;

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
    let mut rest = text;
    let mut class_depth = 0usize;
    let mut after_quantifier = false;
    while let Some(c) = rest.chars().next() {
        if class_depth == 0
            && let Some((group, stand_in)) = LOOKAROUND.iter().find(|(group, _)| rest.starts_with(group))
        {
            out.push_str(stand_in);
            rest = &rest[group.len()..];
            after_quantifier = false;
            continue;
        }
        let len = match c {
            '\\' => escape_len(rest),
            // Not a quantifier: `(?:`, `(?i:`.
            '(' if class_depth == 0 && rest.starts_with("(?") => 2,
            _ => c.len_utf8(),
        };
        match c {
            '[' => class_depth += 1,
            ']' => class_depth = class_depth.saturating_sub(1),
            _ => {}
        }
        if c == '+' && after_quantifier && class_depth == 0 {
            rest = &rest[len..];
            after_quantifier = false;
            continue;
        }
        after_quantifier = class_depth == 0 && matches!(c, '?' | '*' | '+') && !after_quantifier;
        out.push_str(&rest[..len]);
        rest = &rest[len..];
    }
    out
}

/// Bytes of the escape at the start of `rest`: `\n`, `\p{L}`.
fn escape_len(rest: &str) -> usize {
    let Some(escaped) = rest[1..].chars().next() else { return 1 };
    let len = 1 + escaped.len_utf8();
    if matches!(escaped, 'p' | 'P' | 'x' | 'u') && rest[len..].starts_with('{') {
        return rest[len..].find('}').map_or(len, |end| len + end + 1);
    }
    len
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
