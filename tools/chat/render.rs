//! How a child process renders a chat template, within its limits.

use std::io::{self, Write};

use jiff::civil::DateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value, escape_formatter};
use serde::Deserialize;

use super::bounds::{OUTPUT_MAX, Rendered};
use super::{json, python, tags};

/// Steps of the template engine: the longest real template takes some thousand for one message.
const STEPS_MAX: u64 = 1_000_000;
/// Templates nested in templates, and calls in calls.
const DEPTH_MAX: usize = 64;
/// Bytes of a message about what is wrong: it may quote what the template made.
const MESSAGE_BYTES_MAX: usize = 500;

#[derive(Deserialize)]
struct Request {
    template: String,
    /// The values that the template finds, of each conversation.
    conversations: Vec<Value>,
    /// Local time, without a zone: transformers' `datetime.now()`.
    now: String,
}

/// The answer to a request, both as JSON.
pub fn answer(request: Vec<u8>) -> Vec<u8> {
    let request: Request = serde_json::from_slice(&request).expect("the parent's request");
    let now = request.now.parse().expect("the parent's time");
    let text = |values: Value| match rendered(&request.template, values, now) {
        Ok(text) => Rendered::Text(text),
        Err(why) => Rendered::Error(why),
    };
    let answer: Vec<Rendered> = request.conversations.into_iter().map(text).collect();
    serde_json::to_vec(&answer).expect("texts as JSON")
}

/// The text of one conversation, or in one line why there is none.
pub fn rendered(template: &str, values: Value, now: DateTime) -> Result<String, String> {
    // As Jinja reads a file.
    let template = template.replace("\r\n", "\n").replace('\r', "\n");
    let template = tags::rewritten(&template);
    let mut output = Bounded(Vec::new());
    let environment = environment(now);
    environment.template_from_str(&template).and_then(|it| it.render_captured_to(values, &mut output)).map_err(line)?;
    String::from_utf8(output.0).map_err(line)
}

/// What is wrong and why, in one line of a bounded length.
fn line(error: impl std::error::Error) -> String {
    let (mut causes, mut cause) = (error.to_string(), error.source());
    while let Some(source) = cause {
        causes += &format!(": {source}");
        cause = source.source();
    }
    let mut line = causes.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.len() > MESSAGE_BYTES_MAX {
        line.truncate(line.floor_char_boundary(MESSAGE_BYTES_MAX));
        line += "...";
    }
    line
}

/// The dialect that templates are written for: Jinja with Python's methods, as transformers sets it up.
fn environment(now: DateTime) -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the standard delimiters"));
    environment.set_fuel(Some(STEPS_MAX));
    environment.set_recursion_limit(DEPTH_MAX);
    environment.set_formatter(|output, state, value| match f64::try_from(value.clone()) {
        // As Python writes them.
        Ok(number) if value.kind() == ValueKind::Number && !value.is_integer() && number.is_finite() => {
            escape_formatter(output, state, &Value::from(json::number(number)))
        }
        _ => escape_formatter(output, state, value),
    });
    python::add_to(&mut environment);
    environment.add_filter("tojson", json::filter);
    environment.add_function("raise_exception", |text: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, text))
    });
    environment.add_function("strftime_now", move |format: Option<&str>, named: Kwargs| -> Result<String, Error> {
        let format = format.map_or_else(|| named.get::<String>("format"), |format| Ok(format.to_owned()))?;
        named.assert_all_used()?;
        Ok(python::time(&format, now))
    });
    environment
}

/// Text up to [`OUTPUT_MAX`].
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > OUTPUT_MAX {
            return Err(io::Error::other("more text than a mebibyte"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn text(template: &str) -> String {
        let now = "2026-03-05T07:08:09".parse().expect("a time");
        let values = serde_json::from_value(serde_json::json!({ "tools": null })).expect("values");
        rendered(template, values, now).expect("a text")
    }

    #[test]
    fn templates_find_what_transformers_gives_them() {
        assert_eq!(text("{{ strftime_now('%Y-%m-%d %d %b %Y %B %H:%M') }}"), "2026-03-05 05 Mar 2026 March 07:08");
        assert_eq!(text("{{ strftime_now(format='%Y') }}{{ strftime_now is callable }}{{ 'a' is callable }}"), "2026TrueFalse");
        assert_eq!(text("{{ tools is none }}{{ none }}{{ pad_token }}"), "TrueNone");
        assert_eq!(
            text(r#"{{ {'b': [1, 2.5, none, true], 'a': 'x"<>&é'} | tojson }}"#),
            r#"{"b": [1, 2.5, null, true], "a": "x\"<>&é"}"#
        );
        assert_eq!(text("{{ {'z': [], 'a': 2} | tojson(indent=2) }}"), "{\n  \"z\": [],\n  \"a\": 2\n}");
        assert_eq!(
            text("{{ 'a.b.c'.partition('.')[2] }}{{ 'a.b.c'.rpartition('.')[0] }}{{ 'abc'.removeprefix('a') }}"),
            "b.ca.bbc"
        );
    }
}
