//! JSON from files that nobody vouches for: no key with two values, bounded depth, errors with a byte offset.
//!
//! Values are `serde_json`'s. Its own parser keeps the last of two equal keys; two readers that keep different ones see two different
//! models in one file, so a second value is refused here, unless it is the first once more.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
pub use serde_json::{Map, Value};

use super::instead;
use crate::error::{Error, Fault, Place, Result};

/// Deepest nesting accepted. Real files stay below 20; `serde_json` recurses, and would stop by itself at 128.
pub const DEPTH_MAX: usize = 64;

/// Most values accepted in one file. The largest real tokenizer.json has about 2 million; two bytes, `1,`, become 72 in memory.
pub const VALUES_MAX: usize = 1 << 22;

/// Parses a whole file.
///
/// # Errors
/// `Json` for anything that is not one JSON value in UTF-8, `JsonDepth`, `DuplicateKey`; `UnsupportedFormat` for what a failed download
/// leaves; `Limit` beyond [`VALUES_MAX`].
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Value> {
    parse_up_to(path, bytes, VALUES_MAX)
}

/// [`parse`] with another limit on the number of values, for files that are always small.
///
/// # Errors
/// Those of [`parse`].
pub fn parse_up_to(path: &Path, bytes: &[u8], values_max: usize) -> Result<Value> {
    let text = check(path, bytes)?;
    let state = State { duplicate: RefCell::new(None), values_left: Cell::new(values_max) };
    let mut json = serde_json::Deserializer::from_str(text);
    let value = Strict(&state).deserialize(&mut json).and_then(|value| json.end().map(|()| value));
    value.map_err(|e| match state.duplicate.take() {
        Some(key) => Error::malformed(path, Place::Field(key), Fault::DuplicateKey, "the same key with two values in one object"),
        None if e.is_data() && state.values_left.get() == 0 => {
            let (limit, found) = (values_max as u64, values_max as u64 + 1);
            Error::Limit { path: path.to_owned(), what: "JSON values".to_owned(), limit, found }
        }
        None => syntax_error(path, text, &e),
    })
}

/// Parses a whole file whose outermost value must be an object.
///
/// # Errors
/// Those of [`parse`].
pub fn parse_object(path: &Path, bytes: &[u8]) -> Result<Map<String, Value>> {
    parse_object_up_to(path, bytes, VALUES_MAX)
}

/// [`parse_object`] with another limit on the number of values.
///
/// # Errors
/// Those of [`parse`].
pub fn parse_object_up_to(path: &Path, bytes: &[u8], values_max: usize) -> Result<Map<String, Value>> {
    match parse_up_to(path, bytes, values_max)? {
        Value::Object(map) => Ok(map),
        other => Err(Error::malformed(path, Place::File, Fault::Json, format!("expected a JSON object, found {}", kind(&other)))),
    }
}

/// [`parse_object_up_to`] of what Python's `json` writes: `NaN`, `Infinity` and `-Infinity` are values, and become strings of that name,
/// which no reader takes for a number.
///
/// # Errors
/// Those of [`parse`].
pub fn parse_python_object_up_to(path: &Path, bytes: &[u8], values_max: usize) -> Result<Map<String, Value>> {
    let strict = parse_object_up_to(path, bytes, values_max);
    match strict {
        Err(Error::Malformed { fault: Fault::Json, place: Place::Byte(_), .. }) => match quote_non_finite(bytes) {
            // What else is wrong is told by its place in the file as it is.
            Some(quoted) => parse_object_up_to(path, &quoted, values_max).or(strict),
            None => strict,
        },
        _ => strict,
    }
}

/// What Python writes for numbers that JSON does not have.
pub const NON_FINITE: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// The text with quotes around non-finite numbers; `None` where there are none.
fn quote_non_finite(bytes: &[u8]) -> Option<Vec<u8>> {
    let (mut quoted, mut rest, mut in_string, mut found) = (Vec::with_capacity(bytes.len() + 64), bytes, false, false);
    while let [byte, after @ ..] = rest {
        let word = NON_FINITE.iter().find(|word| !in_string && rest.starts_with(word.as_bytes()));
        let (copied, behind) = match (word, after) {
            (Some(word), _) => {
                found = true;
                quoted.push(b'"');
                quoted.extend_from_slice(word.as_bytes());
                (&b"\""[..], &rest[word.len()..])
            }
            (None, [_, behind @ ..]) if in_string && *byte == b'\\' => (&rest[..2], behind),
            (None, _) => {
                in_string ^= *byte == b'"';
                (&rest[..1], after)
            }
        };
        quoted.extend_from_slice(copied);
        rest = behind;
    }
    found.then_some(quoted)
}

/// What a value is, in words: for messages.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Checks what can be checked without parsing, encoding and depth, in one pass that cannot recurse.
pub(super) fn check<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a str> {
    if let Some(what) = instead(bytes) {
        return Err(Error::malformed(path, Place::File, Fault::UnsupportedFormat, what));
    }
    let oddity = match bytes {
        [] => Some("an empty file; download it again"),
        [0xef, 0xbb, 0xbf, ..] => Some("a byte order mark, which JSON does not have, before the text; save the file without it"),
        _ => None,
    };
    if let Some(what) = oddity {
        return Err(Error::malformed(path, Place::File, Fault::Json, what));
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|e| Error::malformed(path, Place::Byte(e.valid_up_to() as u64), Fault::Json, "not UTF-8"))?;
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for (at, &byte) in bytes.iter().enumerate() {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH_MAX {
            let detail = format!("nested deeper than {DEPTH_MAX}");
            return Err(Error::malformed(path, Place::Byte(at as u64), Fault::JsonDepth, detail));
        }
    }
    Ok(text)
}

/// A `serde_json` error as ours, with the byte offset that it gives as line and column.
pub(super) fn syntax_error(path: &Path, text: &str, error: &serde_json::Error) -> Error {
    let line_start: usize = text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
    let byte = (line_start + error.column().saturating_sub(1)) as u64;
    let full = error.to_string();
    let detail = full.split(" at line ").next().unwrap_or(&full);
    Error::malformed(path, Place::Byte(byte), Fault::Json, format!("invalid JSON: {detail}"))
}

/// What parsing has come to.
struct State {
    /// The key that has two values.
    duplicate: RefCell<Option<String>>,
    values_left: Cell<usize>,
}

/// Builds a [`Value`], refusing an object with two values of a key and more values than allowed.
#[derive(Clone, Copy)]
struct Strict<'a>(&'a State);

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let Some(left) = self.0.values_left.get().checked_sub(1) else {
            return Err(D::Error::custom("too many values"));
        };
        self.0.values_left.set(left);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(self)?;
            match object.get(&key) {
                Some(first) if *first == value => {}
                Some(_) => {
                    self.0.duplicate.replace(Some(key));
                    return Err(A::Error::custom("duplicate key"));
                }
                None => drop(object.insert(key, value)),
            }
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> (Fault, Place) {
        match parse(Path::new("x.json"), text.as_bytes()) {
            Err(Error::Malformed { fault, place, .. }) => (fault, place),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn keys_are_unique_at_every_depth() {
        assert_eq!(fault(r#"{"a":1,"a":2}"#).0, Fault::DuplicateKey);
        assert_eq!(fault(r#"{"a":{"b":[1]},"a":{"b":[1.0]}}"#).0, Fault::DuplicateKey);
        assert_eq!(fault(r#"[{"b":{"a":1,"\u0061":2}}]"#), (Fault::DuplicateKey, Place::Field("a".into())));
        assert!(parse(Path::new("x"), br#"{"a":{"a":1},"b":{"a":1}}"#).is_ok());
    }

    #[test]
    fn a_key_may_have_the_same_value_again() {
        let value = parse(Path::new("x"), br#"{"a":{"b":[1]},"c":2,"a":{"b":[1]}}"#).unwrap();
        assert_eq!(value, serde_json::json!({"a": {"b": [1]}, "c": 2}));
    }

    #[test]
    fn numbers_of_python_are_read_where_they_stand_for_values() {
        let read = |text: &str| parse_python_object_up_to(Path::new("x.json"), text.as_bytes(), 100);
        let found = read(r#"{"a": NaN, "b": [-Infinity, Infinity], "c\\": "a \" NaN", "NaN": 1}"#).unwrap();
        let expected = serde_json::json!({"a": "NaN", "b": ["-Infinity", "Infinity"], "c\\": "a \" NaN", "NaN": 1});
        assert_eq!(Value::Object(found), expected);
        for (bad, at) in [(r#"{"a": nan}"#, 7), (r#"{"a": NaN1}"#, 6), (r#"{"a": 1e999}"#, 10), (r#"{"a": +Infinity}"#, 6)] {
            match read(bad) {
                Err(Error::Malformed { fault: Fault::Json, place: Place::Byte(byte), .. }) => {
                    assert!(byte.abs_diff(at) <= 2, "{bad}: {byte}")
                }
                other => panic!("{bad}: {other:?}"),
            }
        }
    }

    #[test]
    fn depth_is_bounded_without_recursion() {
        for open in ["[", "{\"a\":"] {
            let (fault, _) = fault(&open.repeat(100_000));
            assert_eq!(fault, Fault::JsonDepth);
        }
        let deep = format!("{}{}", "[".repeat(DEPTH_MAX), "]".repeat(DEPTH_MAX));
        assert!(parse(Path::new("x"), deep.as_bytes()).is_ok());
        assert!(parse(Path::new("x"), br#"["[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\"[["]"#).is_ok());
    }

    #[test]
    fn values_are_counted() {
        let text = format!("[{}1]", "1,".repeat(98));
        assert!(parse_up_to(Path::new("x"), text.as_bytes(), 100).is_ok());
        let error = parse_up_to(Path::new("x"), text.as_bytes(), 99).unwrap_err();
        assert!(matches!(error, Error::Limit { limit: 99, .. }), "{error}");
        assert!(matches!(parse_up_to(Path::new("x"), b"[1", 2), Err(Error::Malformed { fault: Fault::Json, .. })));
    }

    #[test]
    fn errors_have_a_byte_offset() {
        assert_eq!(fault("{\n \"a\": 1,\n x}"), (Fault::Json, Place::Byte(12)));
        assert_eq!(fault("{} x").0, Fault::Json);
        assert_eq!(fault("").0, Fault::Json);
        assert_eq!(fault("\u{feff}{}").0, Fault::Json);
        assert_eq!(fault("1e999").0, Fault::Json);
        assert_eq!(fault("\"\\ud800\"").0, Fault::Json);
    }
}
