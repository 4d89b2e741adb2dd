//! JSON for programs that people can look at, too.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::error::is_harmless;

/// As [`write_json`], of a value that is small enough to be held as text.
pub fn json_text(value: &serde_json::Value) -> String {
    let mut text = Vec::new();
    write_json(value, &mut text).expect("memory takes whatever is written");
    String::from_utf8(text).expect("JSON is UTF-8")
}

/// Writes indented JSON that a terminal can show: characters that could drive it are written as `\u001b`, which means the same to a
/// parser. What `value` makes while it is serialized is written at once, so a report of any length takes no memory.
///
/// # Errors
/// Those of `to`.
pub fn write_json(value: &impl Serialize, mut to: impl Write) -> io::Result<()> {
    value.serialize(&mut Serializer::with_formatter(&mut to, Printable(PrettyFormatter::new())))?;
    to.write_all(b"\n")
}

/// The layout of [`PrettyFormatter`], with strings that are [harmless](is_harmless).
struct Printable(PrettyFormatter<'static>);

impl Formatter for Printable {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, to: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((at, c)) = rest.char_indices().find(|&(_, c)| !is_harmless(c)) {
            to.write_all(&rest.as_bytes()[..at])?;
            c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(to, "\\u{unit:04x}"))?;
            rest = &rest[at + c.len_utf8()..];
        }
        to.write_all(rest.as_bytes())
    }

    fn begin_array<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.0.begin_array(to)
    }

    fn end_array<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.0.end_array(to)
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_array_value(to, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.0.end_array_value(to)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.0.begin_object(to)
    }

    fn end_object<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.0.end_object(to)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(to, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.0.begin_object_value(to)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, to: &mut W) -> io::Result<()> {
        self.0.end_object_value(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_stays_the_same_value_when_it_is_made_printable() {
        let value = serde_json::json!({
            "a\u{7f}": "\u{1b}\u{9b}\n\u{202e}é\u{feff}", "x": ["\u{e0001}\u{7f}", [], {}, 0.1, -1, null, { "y": [1, [2]] }], "\u{9b}": "",
        });
        let text = json_text(&value);
        assert!(text.chars().all(|c| c == '\n' || is_harmless(c)), "{text:?}");
        assert!(text.contains(r#""a\u007f": "\u001b\u009b\n\u202eé\ufeff""#) && text.contains(r"\udb40\udc01"), "{text:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }

    #[test]
    fn the_layout_is_that_of_serde_json() {
        let value = serde_json::json!({ "a": [1, 2.5, "é\"\\", [], {}], "b": { "c": null, "d": [[true]] }, "e": "" });
        assert_eq!(json_text(&value), format!("{value:#}\n"));
    }
}
