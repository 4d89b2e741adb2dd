//! What is wrong or odd about tokenizer files, in one wording.

use std::fmt::Display;
use std::path::Path;

use crate::error::{Error, Escaped, Fault, Place, Result};
use crate::hf::json::Value;

/// A token id as a JSON number.
pub(super) fn token_id(path: &Path, token: &str, id: &Value) -> Result<u32> {
    let value = id.as_u64().and_then(|id| u32::try_from(id).ok());
    value.ok_or_else(|| id_error(path, token, &id.to_string()))
}

pub(super) fn id_error(path: &Path, place: &str, id: &str) -> Error {
    Error::malformed(path, Place::Field(place.to_owned()), Fault::TokenIdRange, format!("{id} is not a token id"))
}

/// A tokenizer file that does not say what it must.
pub(super) fn invalid(path: &Path, place: &str, detail: impl Into<String>) -> Error {
    Error::malformed(path, Place::Field(place.to_owned()), Fault::TokenizerInvalid, detail)
}

/// The warning of `n` tokens that the embedding has no rows for.
pub(super) fn beyond_embedding(n: usize, n_rows: impl Display) -> String {
    match n {
        1 => format!("1 token has an id beyond the embedding's {n_rows} rows and is left out"),
        _ => format!("{n} tokens have ids beyond the embedding's {n_rows} rows and are left out"),
    }
}

/// A token's text as it may be printed in a warning.
pub(super) fn quoted(text: &str) -> String {
    format!("\"{}\"", Escaped(text))
}
