//! JSON as Python's `json.dumps` writes it, which transformers gives templates as the filter `tojson`.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// Lists and objects in one another: those of real templates are few, and what writes them is recursive.
const DEPTH_MAX: usize = 100;

/// The filter: `x | tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false)`.
pub fn filter(value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let option = |index: usize, name: &str| -> Result<Option<Value>, Error> {
        let given = positional.get(index).map_or_else(|| named.get::<Option<Value>>(name), |value| Ok(Some(value.clone())))?;
        Ok(given.filter(|value| !value.is_none()))
    };
    let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let ascii = is_true(option(0, "ensure_ascii")?);
    let indent = option(1, "indent")?.map(indentation).transpose()?;
    let between = if indent.is_some() { (",", ": ") } else { (", ", ": ") };
    let (item, key) = match option(2, "separators")? {
        None => (between.0.to_owned(), between.1.to_owned()),
        Some(pair) => (text(&pair.get_item_by_index(0)?)?, text(&pair.get_item_by_index(1)?)?),
    };
    let sorted = is_true(option(3, "sort_keys")?);
    named.assert_all_used()?;
    let mut writer = Writer { json: String::new(), ascii, indent, item, key, sorted };
    writer.value(value, 0)?;
    Ok(Value::from(writer.json))
}

fn failed(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::BadSerialization, why.into())
}

fn text(value: &Value) -> Result<String, Error> {
    value.as_str().map(str::to_owned).ok_or_else(|| failed("a separator is a text"))
}

/// What is put before each line, once for each level: a text, or so many spaces.
fn indentation(value: Value) -> Result<String, Error> {
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => Ok(" ".repeat(i64::try_from(value)?.max(0) as usize)),
    }
}

struct Writer {
    json: String,
    ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sorted: bool,
}

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(failed(format!("more than {DEPTH_MAX} lists and objects in one another")));
        }
        match value.kind() {
            ValueKind::None => self.json += "null",
            ValueKind::Bool => self.json += if value.is_true() { "true" } else { "false" },
            ValueKind::Number if value.is_integer() => self.json += &value.to_string(),
            ValueKind::Number => self.json += &number(f64::try_from(value.clone())?),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq => self.list(value, depth)?,
            ValueKind::Map => self.object(value, depth)?,
            other => return Err(failed(format!("{other} cannot be written as JSON"))),
        }
        Ok(())
    }

    fn list(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.json.push('[');
        let mut is_empty = true;
        for item in value.try_iter()? {
            self.begin(is_empty, depth + 1);
            self.value(&item, depth + 1)?;
            is_empty = false;
        }
        self.end(is_empty, depth, ']');
        Ok(())
    }

    fn object(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let mut keys: Vec<Value> = value.try_iter()?.collect();
        if self.sorted {
            if keys.iter().any(|key| key.as_str().is_none()) && keys.iter().any(|key| key.as_str().is_some()) {
                return Err(failed("keys that are texts and others have no order"));
            }
            keys.sort();
        }
        self.json.push('{');
        for (n, key) in keys.iter().enumerate() {
            self.begin(n == 0, depth + 1);
            match (key.kind(), key.as_str()) {
                (_, Some(text)) => self.string(text),
                (ValueKind::None | ValueKind::Bool | ValueKind::Number, _) => {
                    self.json.push('"');
                    self.value(key, depth + 1)?;
                    self.json.push('"');
                }
                (other, _) => return Err(failed(format!("{other} is no key of JSON"))),
            }
            self.json += &self.key;
            self.value(&value.get_item(key)?, depth + 1)?;
        }
        self.end(keys.is_empty(), depth, '}');
        Ok(())
    }

    fn begin(&mut self, is_first: bool, depth: usize) {
        if !is_first {
            self.json += &self.item;
        }
        self.line(depth);
    }

    fn end(&mut self, is_empty: bool, depth: usize, bracket: char) {
        if !is_empty {
            self.line(depth);
        }
        self.json.push(bracket);
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.json.push('\n');
            (0..depth).for_each(|_| self.json += indent);
        }
    }

    fn string(&mut self, text: &str) {
        self.json.push('"');
        for c in text.chars() {
            match c {
                '"' => self.json += "\\\"",
                '\\' => self.json += "\\\\",
                '\n' => self.json += "\\n",
                '\r' => self.json += "\\r",
                '\t' => self.json += "\\t",
                '\u{8}' => self.json += "\\b",
                '\u{c}' => self.json += "\\f",
                c if c < ' ' || self.ascii && !(' '..='~').contains(&c) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.json, "\\u{unit:04x}");
                    }
                }
                c => self.json.push(c),
            }
        }
        self.json.push('"');
    }
}

/// A float as Python writes it: the shortest digits that give it back, with an exponent below 1e-4 and from 1e16 on.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return if value.is_nan() {
            "NaN"
        } else if value > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        }
        .to_owned();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..16).contains(&exponent) => {
            format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
        }
        _ => format!("{value:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_those_of_python() {
        let cases = [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (123456789012345680.0, "1.2345678901234568e+17"),
            (1e16, "1e+16"),
            (1e15, "1000000000000000.0"),
            (-2.5e-310, "-2.5e-310"),
            (f64::INFINITY, "Infinity"),
            (f64::NAN, "NaN"),
        ];
        for (value, expected) in cases {
            assert_eq!(number(value), expected);
        }
    }
}
