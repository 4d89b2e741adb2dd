//! The merges of BPE, as files spell them.

use std::path::Path;

use crate::error::{Error, Fault, Place, Result};
use crate::hf::json::Value;

/// A merge of two tokens, kept as the token it makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Merge {
    pub joined: String,
    left_bytes: usize,
}

impl Merge {
    fn new(left: &str, right: &str) -> Option<Merge> {
        let is_sound = !left.is_empty() && !right.is_empty();
        is_sound.then(|| Merge { joined: format!("{left}{right}"), left_bytes: left.len() })
    }

    /// `"left right"`, or `["left", "right"]` since tokenizers 0.20.
    pub fn from_json(path: &Path, index: usize, merge: Value) -> Result<Merge> {
        let found = match &merge {
            Value::String(text) => text.split_once(' ').filter(|(_, right)| !right.contains(' ')),
            Value::Array(pair) => match pair.as_slice() {
                [Value::String(left), Value::String(right)] => Some((left.as_str(), right.as_str())),
                _ => None,
            },
            _ => None,
        };
        let merge = found.and_then(|(left, right)| Merge::new(left, right));
        merge.ok_or_else(|| merge_error(path, format!("model.merges[{index}]"), "expected two tokens"))
    }

    /// A file of `left right` lines, after a line with the version.
    pub fn from_text(path: &Path, bytes: &[u8]) -> Result<Vec<Merge>> {
        let text = std::str::from_utf8(bytes)
            .map_err(|e| Error::malformed(path, Place::Byte(e.valid_up_to() as u64), Fault::MergeInvalid, "not UTF-8"))?;
        let mut merges = Vec::new();
        for (index, line) in text.lines().enumerate() {
            if (index == 0 && line.starts_with('#')) || line.trim().is_empty() {
                continue;
            }
            let mut words = line.split_whitespace();
            let merge = match (words.next(), words.next(), words.next()) {
                (Some(left), Some(right), None) => Merge::new(left, right),
                _ => None,
            };
            merges.push(merge.ok_or_else(|| merge_error(path, format!("line {}", index + 1), "expected two tokens"))?);
        }
        Ok(merges)
    }

    pub fn parts(&self) -> (&str, &str) {
        self.joined.split_at(self.left_bytes)
    }

    /// As GGUF stores it. The space is the separator, so a space inside a token is spelled as byte-level BPE spells it.
    pub fn text(&self) -> String {
        let (left, right) = self.parts();
        format!("{} {}", left.replace(' ', "Ġ"), right.replace(' ', "Ġ"))
    }
}

pub(super) fn merge_error(path: &Path, place: String, detail: impl Into<String>) -> Error {
    Error::malformed(path, Place::Field(place), Fault::MergeInvalid, detail)
}
