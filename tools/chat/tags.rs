//! What the template engine does not parse as Jinja does, written in a way that it does.

use std::sync::LazyLock;

use regex::{Captures, Regex};

use super::python;

/// The template with `{% generation %}`, which marks what the assistant said for training, as a block that changes nothing but the
/// scope of names, as in transformers; and with tests for methods as calls of the filter that knows them. Comments, texts in quotes
/// and raw blocks keep what they hold.
pub fn rewritten(template: &str) -> String {
    let (mut result, mut rest) = (String::with_capacity(template.len()), template);
    let mut is_raw = false;
    while let Some(at) = rest.find('{') {
        result += &rest[..at];
        rest = &rest[at..];
        let length = match rest.as_bytes().get(1) {
            Some(b'#') if !is_raw => rest.find("#}").map_or(rest.len(), |end| end + 2),
            Some(b'{') if !is_raw => tag_bytes(rest, "}}"),
            Some(b'%') => tag_bytes(rest, "%}"),
            _ => 1,
        };
        let tag = &rest[..length];
        let inside = tag.strip_prefix("{%").and_then(|tag| tag.strip_suffix("%}")).map(|tag| tag.trim_matches(['-', '+']).trim());
        match inside {
            Some("endraw") => (is_raw, result) = (false, result + tag),
            // Within a raw block no tag is one: what follows its bracket may be the end of the block.
            _ if is_raw => {
                result.push('{');
                rest = &rest[1..];
                continue;
            }
            Some("raw") => (is_raw, result) = (true, result + tag),
            Some(name @ ("generation" | "endgeneration")) => {
                let with = if name == "generation" { "with" } else { "endwith" };
                result += &tag.replacen(name, with, 1);
            }
            None if tag.starts_with("{#") => result += tag,
            _ => result += &with_methods(tag),
        }
        rest = &rest[length..];
    }
    result + rest
}

/// Bytes of the tag that `text` begins with, up to an end that is in no quotes.
fn tag_bytes(text: &str, end: &str) -> usize {
    let (mut quote, mut escaped) = (None, false);
    for (at, byte) in text.bytes().enumerate().skip(2) {
        match (quote, byte) {
            (Some(_), _) if escaped => escaped = false,
            (Some(_), b'\\') => escaped = true,
            (Some(open), byte) if open == byte => quote = None,
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, _) if text.as_bytes()[at..].starts_with(end.as_bytes()) => return at + end.len(),
            _ => {}
        }
    }
    text.len()
}

/// `text.strip is defined`: methods are attributes of a value in Python.
static METHOD: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\.([a-z]+)(\s+is\s+(?:not\s+)?(?:un)?defined\b)").expect("a sound expression"));

/// The tag with tests for methods as calls of the filter that knows them.
fn with_methods(tag: &str) -> String {
    let (mut result, mut rest) = (String::with_capacity(tag.len()), tag);
    let rewrite = |found: &Captures| match python::is_method(&found[1]) {
        true => format!("|{}('{}'){}", python::ATTRIBUTE, &found[1], &found[2]),
        false => found[0].to_owned(),
    };
    while !rest.is_empty() {
        let (code, after) = rest.split_at(rest.find(['"', '\'']).unwrap_or(rest.len()));
        result += &METHOD.replace_all(code, rewrite);
        let (text, after) = after.split_at(quoted_bytes(after));
        result += text;
        rest = after;
    }
    result
}

/// Bytes of the text in quotes that `text` begins with.
fn quoted_bytes(text: &str) -> usize {
    let mut escaped = false;
    let Some(open) = text.bytes().next() else { return 0 };
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            byte if byte == open => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_tags_are_replaced_where_they_are_tags() {
        let kept = "{# {% generation %} #}{{ '{% generation %}' }}{% set x = \"%}{% generation %}\" %}{% raw %}{% generation %}{% endraw %}{";
        assert_eq!(rewritten(kept), kept);
        assert_eq!(rewritten("{%generation%}{%+ endgeneration -%}"), "{%with%}{%+ endwith -%}");
        assert_eq!(rewritten("{% raw %}{% {% endraw %}{% generation %}"), "{% raw %}{% {% endraw %}{% with %}");
    }

    #[test]
    fn tests_for_methods_are_replaced_outside_of_quotes() {
        assert_eq!(rewritten("{{ a.strip is defined }}"), "{{ a|python_attribute('strip') is defined }}");
        assert_eq!(rewritten("{% if a['b'].get is not defined %}"), "{% if a['b']|python_attribute('get') is not defined %}");
        for kept in ["{{ a.content is defined }}", "{{ '.strip is defined' }}", ".strip is defined", "{{ a.strip() is defined }}"] {
            assert_eq!(rewritten(kept), kept);
        }
    }
}
