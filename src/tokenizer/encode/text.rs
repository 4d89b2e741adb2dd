//! Text files: whole, and UTF-8.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Fault, Place, Result};

/// Reads a text file.
///
/// # Errors
/// `Io`, and `NotUtf8` with the place of the first byte that belongs to no character.
pub fn read_text(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    text_of(path, File::open(path).map_err(|e| Error::io(path, "open", e))?)
}

/// Reads text to its end; `name` is what messages call it.
///
/// # Errors
/// As [`read_text`].
pub fn text_of(name: impl AsRef<Path>, mut from: impl Read) -> Result<String> {
    let name = name.as_ref();
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).map_err(|e| Error::io(name, "read", e))?;
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let detail = format!("byte {:#04x} is no part of UTF-8 text", e.as_bytes()[at]);
        Error::malformed(name, Place::Byte(at as u64), Fault::NotUtf8, detail)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_byte_that_is_no_text_is_named() {
        let error = text_of("x", &b"ab\xffc"[..]).expect_err("0xff is no text").to_string();
        assert!(error.contains("byte 2") && error.contains("0xff") && error.contains("NotUtf8"), "{error}");
        assert_eq!(text_of("x", "é".as_bytes()).expect("text"), "é");
    }
}
