//! The model card: the block of YAML at the top of README.md, as far as model cards use YAML.
//!
//! ```text
//! ---
//! license: apache-2.0            text
//! language: [en, de]             list
//! base_model:                    list
//! - org/name
//! model-index:                   anything deeper is passed over
//! - name: x
//!   results: ...
//! ---
//! ```
//!
//! Not a YAML parser, on purpose: anchors and aliases let a small file ask for any amount of memory, and the fields of interest are
//! texts and lists of texts. One pass over the lines, no recursion; a field in a form that is not shown above counts as absent.

/// The fields of a model card.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Card {
    fields: Vec<(String, Vec<String>)>,
}

impl Card {
    /// Reads the top of a README.md. Without such a block the card is empty.
    pub fn parse(readme: &str) -> Card {
        let mut lines = readme.lines();
        if lines.next() != Some("---") {
            return Card::default();
        }
        let lines: Vec<&str> = lines.take_while(|line| *line != "---").collect();
        let mut card = Card::default();
        for (at, line) in lines.iter().enumerate() {
            let Some((key, rest)) = line.split_once(':') else { continue };
            if key.is_empty() || key.starts_with([' ', '\t', '-', '#']) || !(rest.is_empty() || rest.starts_with([' ', '\t'])) {
                continue;
            }
            let value = match without_comment(rest) {
                "" => block_list(&lines[at + 1..]),
                value => inline_value(value),
            };
            // The first of two equal keys, so that a later line cannot change what was shown at the top.
            if let Some(items) = value
                && self::get(&card.fields, key).is_none()
            {
                card.fields.push((key.to_owned(), items));
            }
        }
        card
    }

    /// A field's one text; a list's first.
    pub fn text(&self, field: &str) -> Option<&str> {
        self.list(field)?.first().map(String::as_str)
    }

    /// A field's texts.
    pub fn list(&self, field: &str) -> Option<&[String]> {
        get(&self.fields, field)
    }
}

fn get<'a>(fields: &'a [(String, Vec<String>)], key: &str) -> Option<&'a [String]> {
    fields.iter().find(|(name, _)| name == key).map(|(_, items)| items.as_slice())
}

/// The items `- text` of the lines that follow a bare key; `None` when there are none or they are more than texts.
fn block_list(lines: &[&str]) -> Option<Vec<String>> {
    let is_inside = |line: &&&str| line.is_empty() || line.starts_with([' ', '\t', '-', '#']);
    let mut items = Vec::new();
    for line in lines.iter().take_while(is_inside).map(|line| line.trim()) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        items.push(scalar(without_comment(line.strip_prefix("- ")?))?);
    }
    if items.is_empty() { None } else { Some(items) }
}

/// A text, or a list in brackets, behind a key.
fn inline_value(value: &str) -> Option<Vec<String>> {
    match value.strip_prefix('[') {
        Some(list) => list.strip_suffix(']')?.split(',').map(str::trim).filter(|item| !item.is_empty()).map(scalar).collect(),
        None => Some(vec![scalar(value)?]),
    }
}

/// A text with or without quotes; `None` for null and for what is not a text.
fn scalar(text: &str) -> Option<String> {
    for quote in ['"', '\''] {
        if let Some(inner) = text.strip_prefix(quote) {
            let inner = inner.strip_suffix(quote)?;
            return if inner.contains([quote, '\\']) { None } else { Some(inner.to_owned()) };
        }
    }
    let is_other =
        text.is_empty() || matches!(text, "null" | "~") || text.starts_with(['{', '[', '|', '>', '&', '*', '!', '%', '@', '`']);
    let is_mapping = text.contains(": ") || text.ends_with(':');
    if is_other || is_mapping { None } else { Some(text.to_owned()) }
}

/// Trimmed, without ` # comment`.
fn without_comment(text: &str) -> &str {
    let text = text.trim();
    if text.starts_with('#') {
        return "";
    }
    if text.starts_with(['"', '\'']) {
        return text;
    }
    text.split_once(" #").map_or(text, |(before, _)| before.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_lists_are_read_and_the_rest_is_passed_over() {
        let card = Card::parse(
            "---\nlicense: llama3.1 # a comment\nlanguage:\n- en\n  # no\n- \"no\"\ntags: [a, 'b c']\nurl: https://x.y/z#w\n\
             model-index:\n- name: x\n  results:\n  - task: y\nbase_model:\n  - org/one\n  - org/two\nextra: |\n  license: other\n\
             license: second\nnothing: null\nempty:\n---\nlicense: body\n",
        );
        assert_eq!(card.text("license"), Some("llama3.1"));
        assert_eq!(card.list("language").unwrap(), ["en", "no"]);
        assert_eq!(card.list("tags").unwrap(), ["a", "b c"]);
        assert_eq!(card.text("url"), Some("https://x.y/z#w"));
        assert_eq!(card.list("base_model").unwrap(), ["org/one", "org/two"]);
        for absent in ["model-index", "name", "results", "extra", "nothing", "empty", "task"] {
            assert_eq!(card.list(absent), None, "{absent}");
        }
    }

    #[test]
    fn text_without_a_block_is_no_card() {
        for readme in ["", "# Title\nlicense: mit\n", " ---\nlicense: mit\n---\n", "----\nlicense: mit"] {
            assert_eq!(Card::parse(readme), Card::default(), "{readme:?}");
        }
    }

    #[test]
    fn aliases_expand_to_nothing() {
        let card = Card::parse("---\na: &a [x, x]\nb: [*a, *a]\nc: *a\n---\n");
        assert_eq!(card, Card::default());
    }
}
