//! What Python's values do that the template engine's do otherwise, as far as templates ask for it.

use jiff::civil::DateTime;
use jiff::fmt::strtime;
use minijinja::value::{Kwargs, Rest, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters};
use minijinja_contrib::globals;
use minijinja_contrib::pycompat::unknown_method_callback;

/// The filter that knows which values have a method of the name.
pub const ATTRIBUTE: &str = "python_attribute";

const STR_METHODS: &[&str] = &[
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];
const DICT_METHODS: &[&str] = &["copy", "fromkeys", "get", "items", "keys", "values"];
const LIST_METHODS: &[&str] = &["copy", "count", "index"];

/// True for a name that a method of a text, a dictionary or a list has.
pub fn is_method(name: &str) -> bool {
    [STR_METHODS, DICT_METHODS, LIST_METHODS].iter().any(|methods| methods.contains(&name))
}

/// Teaches the engine.
pub fn add_to(environment: &mut Environment) {
    environment.set_unknown_method_callback(method);
    // As in Jinja, and as templates ask for tools that are not there.
    for name in ["length", "count"] {
        environment.add_filter(name, |value: &Value| if value.is_undefined() { Ok(0) } else { filters::length(value) });
    }
    environment.add_test("iterable", |value: &Value| !matches!(value.kind(), ValueKind::None) && value.try_iter().is_ok());
    // In Python whatever has a length and items is a sequence.
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map)
    });
    environment.add_filter(ATTRIBUTE, attribute);
    for name in ["default", "d"] {
        environment.add_filter(name, default);
    }
    environment.add_function("cycler", |items: Rest<Value>| globals::cycler(items.0));
    environment.add_function("joiner", globals::joiner);
    // Functions and macros.
    environment.add_test("callable", |value: &Value| matches!(value.kind(), ValueKind::Plain));
    environment.add_test("number", |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool));
}

fn refused(why: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, why)
}

/// The attribute of the name, or something that is defined for a method.
fn attribute(value: &Value, name: &str) -> Result<Value, Error> {
    let methods = match value.kind() {
        ValueKind::String => STR_METHODS,
        ValueKind::Map => DICT_METHODS,
        ValueKind::Seq => LIST_METHODS,
        _ => &[],
    };
    if methods.contains(&name) { Ok(true.into()) } else { value.get_attr(name) }
}

/// `x | default(default_value='', boolean=false)`.
fn default(value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let argument = |index: usize, name: &str| match positional.get(index) {
        Some(value) => Ok(Some(value.clone())),
        None => named.get::<Option<Value>>(name),
    };
    let other = argument(0, "default_value")?.unwrap_or_else(|| "".into());
    let of_false = argument(1, "boolean")?.is_some_and(|value| value.is_true());
    named.assert_all_used()?;
    Ok(if value.is_undefined() || of_false && !value.is_true() { other } else { value.clone() })
}

/// The time as `datetime.strftime` writes it in the C locale; what no directive is stays.
pub fn time(format: &str, now: DateTime) -> String {
    let (mut text, mut rest) = (String::new(), format);
    while let Some(at) = rest.find('%') {
        let (before, directive) = rest.split_at(at);
        text += before;
        let is_flag = |c: char| "-_0^#".contains(c) || c.is_ascii_digit();
        let Some((end, conversion)) = directive.char_indices().skip(1).find(|(_, c)| !is_flag(*c)) else {
            rest = directive;
            break;
        };
        let (directive, after) = directive.split_at(end + conversion.len_utf8());
        text += &match conversion {
            // Local time has no zone here, as `datetime.now()` has none.
            'Z' | 'z' => String::new(),
            'f' => format!("{:06}", now.subsec_nanosecond() / 1000),
            'c' => time("%a %b %e %H:%M:%S %Y", now),
            'x' => time("%m/%d/%y", now),
            'X' => time("%H:%M:%S", now),
            _ => strtime::format(directive, now).unwrap_or_else(|_| directive.to_owned()),
        };
        rest = after;
    }
    text + rest
}

/// Methods of Python's str that the engine's own collection lacks, or has otherwise.
fn method(state: &mut State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return match (value.kind(), name, arguments) {
            (ValueKind::Seq, "index", [item]) => {
                let found = value.try_iter()?.position(|found| found == *item);
                found.map(Value::from).ok_or_else(|| refused("the item is not in the list"))
            }
            (ValueKind::Map, "copy", []) => Ok(value.clone()),
            _ => unknown_method_callback(state, value, name, arguments),
        };
    };
    let other = |index: usize| arguments.get(index).and_then(Value::as_str);
    match (name, other(0)) {
        ("partition" | "rpartition", Some("")) => Err(refused("empty separator")),
        ("partition", Some(separator)) => Ok(three(match text.split_once(separator) {
            Some((before, after)) => [before, separator, after],
            None => [text, "", ""],
        })),
        ("rpartition", Some(separator)) => Ok(three(match text.rsplit_once(separator) {
            Some((before, after)) => [before, separator, after],
            None => ["", "", text],
        })),
        ("removeprefix", Some(prefix)) => Ok(text.strip_prefix(prefix).unwrap_or(text).into()),
        ("removesuffix", Some(suffix)) => Ok(text.strip_suffix(suffix).unwrap_or(text).into()),
        ("title", None) => Ok(title(text).into()),
        ("casefold", None) => Ok(text.to_lowercase().into()),
        ("swapcase", None) => Ok(swapped(text).into()),
        ("isdecimal", None) => Ok((!text.is_empty() && text.chars().all(|c| c.is_ascii_digit())).into()),
        ("split" | "rsplit", _) => split(text, name == "rsplit", arguments),
        ("index" | "rindex", Some(part)) => {
            let found = if name == "index" { text.find(part) } else { text.rfind(part) };
            let before = found.and_then(|at| text.get(..at)).ok_or_else(|| refused("substring not found"))?;
            Ok(before.chars().count().into())
        }
        ("zfill" | "ljust" | "rjust" | "center", None) => padded(text, name, arguments),
        _ => unknown_method_callback(state, value, name, arguments),
    }
}

fn three(parts: [&str; 3]) -> Value {
    parts.into_iter().map(Value::from).collect()
}

/// Every letter after something that is none is a capital one.
fn title(text: &str) -> String {
    let mut titled = String::with_capacity(text.len());
    let mut is_inside = false;
    for c in text.chars() {
        if is_inside {
            titled.extend(c.to_lowercase())
        } else {
            titled.extend(c.to_uppercase())
        }
        is_inside = c.is_alphabetic();
    }
    titled
}

fn swapped(text: &str) -> String {
    let swap = |c: char| -> String { if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() } };
    text.chars().map(swap).collect()
}

/// `text.split(sep=None, maxsplit=-1)`, and from the end.
fn split(text: &str, from_end: bool, arguments: &[Value]) -> Result<Value, Error> {
    let (positional, named): (Rest<Value>, Kwargs) = from_args(arguments)?;
    let argument = |index: usize, name: &str| match positional.get(index) {
        Some(value) => Ok(Some(value.clone())),
        None => named.get::<Option<Value>>(name),
    };
    let separator = argument(0, "sep")?.filter(|value| !value.is_none());
    let most = argument(1, "maxsplit")?.map_or(Ok(-1), i64::try_from)?;
    named.assert_all_used()?;
    let n = usize::try_from(most).map_or(usize::MAX, |most| most.saturating_add(1));
    let parts: Vec<&str> = match (&separator, from_end) {
        (None, false) => words(text, n),
        (None, true) => words_from_end(text, n),
        (Some(separator), _) => match separator.as_str() {
            None => return Err(refused("a separator is a text")),
            Some("") => return Err(refused("empty separator")),
            Some(separator) if from_end => {
                let mut parts: Vec<&str> = text.rsplitn(n, separator).collect();
                parts.reverse();
                parts
            }
            Some(separator) => text.splitn(n, separator).collect(),
        },
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

/// At most `n` words, the last with all that follows.
fn words(text: &str, n: usize) -> Vec<&str> {
    let (mut words, mut rest) = (Vec::new(), text.trim_start());
    while !rest.is_empty() {
        let end = rest.find(char::is_whitespace).filter(|_| words.len() + 1 < n).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        words.push(word);
        rest = after.trim_start();
    }
    words
}

fn words_from_end(text: &str, n: usize) -> Vec<&str> {
    let (mut words, mut rest) = (Vec::new(), text.trim_end());
    while !rest.is_empty() {
        let last = rest.char_indices().rev().find(|(_, c)| c.is_whitespace()).filter(|_| words.len() + 1 < n);
        let (before, word) = rest.split_at(last.map_or(0, |(at, c)| at + c.len_utf8()));
        words.push(word);
        rest = before.trim_end();
    }
    words.reverse();
    words
}

/// A text of at least so many characters.
fn padded(text: &str, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let (width, fill): (i64, Option<String>) = from_args(arguments)?;
    let fill = fill.unwrap_or_else(|| " ".to_owned());
    let length = text.chars().count();
    let missing = usize::try_from(width).unwrap_or(0).saturating_sub(length);
    let filled = |n: usize| fill.repeat(n);
    Ok(Value::from(match method {
        "ljust" => format!("{text}{}", filled(missing)),
        "rjust" => format!("{}{text}", filled(missing)),
        "zfill" => {
            let digits = text.trim_start_matches(['+', '-']);
            let (sign, digits) = if text.len() - digits.len() == 1 { text.split_at(1) } else { ("", text) };
            format!("{sign}{}{digits}", "0".repeat(missing))
        }
        _ => {
            // Where both sides cannot be equal, the left has one more for an odd width.
            let left = missing / 2 + (missing & width as usize & 1);
            format!("{}{text}{}", filled(left), filled(missing - left))
        }
    }))
}
