//! A list of types by the names of tensors: what `--tensor-type-file` and `--recipe` read, and how chosen types are written.
//!
//! `REGEX=TYPE`, any number of them on a line with white space between; a line that begins with `#` is a comment.

use std::fmt::Write;
use std::path::Path;

use super::choose::NameOverride;
use crate::error::{Error, Fault, Place, Result};
use crate::quant::Format;

/// Rules of one list: more than any model has tensors that a rule of their own could be for.
const RULES_MAX: usize = 1 << 15;

/// Reads the list that is the content of `path`, in its order.
///
/// # Errors
/// `Malformed` with the line of what is no rule; `Limit` for too many.
pub fn parse_list(path: &Path, text: &str) -> Result<Vec<NameOverride>> {
    let mut rules = Vec::new();
    for (line, number) in text.lines().zip(1u64..) {
        if line.trim_start().starts_with('#') {
            continue;
        }
        for word in line.split_whitespace() {
            if rules.len() == RULES_MAX {
                let (limit, found) = (RULES_MAX as u64, RULES_MAX as u64 + 1);
                return Err(Error::Limit { path: path.to_owned(), what: "rules of types".to_owned(), limit, found });
            }
            let rule = NameOverride::parse(word).map_err(|error| match error {
                Error::Usage(what) => Error::malformed(path, Place::Line(number), Fault::TypeRule, what),
                other => other,
            })?;
            rules.push(rule);
        }
    }
    Ok(rules)
}

/// What begins the comment that says what was predicted of the types of a list, in nats a token.
const PREDICTED: &str = "# predicted KLD: ";

/// What was predicted of the types of the list `text`, where it says so.
pub fn predicted_kld(text: &str) -> Option<f32> {
    let said = text.lines().find_map(|line| line.strip_prefix(PREDICTED))?;
    said.trim().parse().ok().filter(|kld: &f32| kld.is_finite() && *kld >= 0.0)
}

/// Writes a list that gives each of these tensors its type and no other tensor any, below `comments`, a line each, and what is predicted
/// of it.
pub fn write_list<'t>(comments: &[String], predicted_kld: f32, tensors: impl Iterator<Item = (&'t str, Format)>) -> String {
    let mut text = String::new();
    for comment in comments {
        let _ = writeln!(text, "# {}", comment.replace(|c: char| c.is_control(), " "));
    }
    let _ = writeln!(text, "{PREDICTED}{predicted_kld}");
    for (name, format) in tensors {
        let mut pattern = String::new();
        for c in regex::escape(name).chars() {
            // White space separates rules.
            let _ = if c.is_whitespace() { write!(pattern, "\\x{{{:x}}}", u32::from(c)) } else { write!(pattern, "{c}") };
        }
        let _ = writeln!(text, "^{pattern}$={format}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<NameOverride>> {
        parse_list(Path::new("types.txt"), text)
    }

    #[test]
    fn rules_are_read_in_order_and_comments_are_not() {
        let list = parse("# attn_q=Q4_K\n\tattn_v=Q8_0\r\nffn_.*=IQ4_XS  x=F16\n").unwrap();
        assert_eq!(list.iter().map(NameOverride::pattern).collect::<Vec<_>>(), ["attn_v", "ffn_.*", "x"]);
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn what_is_no_rule_is_told_with_its_line() {
        for (text, line) in
            [("attn_v=Q8_0 attn_k", 1), ("# one\n\nattn_v=Q9_9\n", 3), ("a=F16\n=Q4_0", 2), ("a(=F16", 1), ("\u{0}", 1)]
        {
            let error = parse(text).expect_err(text);
            assert_eq!(error.fault(), Some(Fault::TypeRule), "{text:?}");
            assert!(error.to_string().starts_with(&format!("types.txt: line {line}: ")), "{error}");
        }
        let many = "a=F16 ".repeat(RULES_MAX + 1);
        assert!(matches!(parse(&many), Err(Error::Limit { .. })));
    }

    #[test]
    fn what_is_written_names_one_tensor_each() {
        let names = ["blk.1.attn_q.weight", "blk.11.attn_q.weight", "a b=c#.weight", "\u{3000}x\n.weight"];
        let text = write_list(&["one\ntwo".to_owned()], 1.1e-3, names.iter().map(|name| (*name, Format::Q4_K)));
        assert_eq!(predicted_kld(&text), Some(1.1e-3));
        assert_eq!(["", "# predicted KLD: NaN", "# predicted KLD: -1", "a=Q4_K"].map(predicted_kld), [None; 4]);
        assert!(text.starts_with("# one two\n# predicted KLD: 0.0011\n^blk\\.1\\.attn_q\\.weight$=Q4_K\n"), "{text}");
        let rules = parse(&text).unwrap();
        assert_eq!(rules.len(), names.len());
        for (rule, name) in rules.iter().zip(names) {
            let others = names.iter().filter(|other| rule.is_for(other)).collect::<Vec<_>>();
            assert_eq!(others, [&name], "{}", rule.pattern());
        }
    }
}
