//! Text files: whole, and UTF-8.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Fault, Place, Result};

/// Bytes of one text. Larger ones are sooner a device without end than a text.
const TEXT_BYTES_MAX: u64 = 1 << 30;

/// Reads a text file.
///
/// # Errors
/// `Io`; `NotUtf8` with the place of the first byte that belongs to no character; `Limit` beyond 1 GiB.
pub fn read_text(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    text_of(path, File::open(path).map_err(|e| Error::io(path, "open", e))?)
}

/// Reads text to its end; `name` is what messages call it.
///
/// # Errors
/// As [`read_text`].
pub fn text_of(name: impl AsRef<Path>, from: impl Read) -> Result<String> {
    text_within(name.as_ref(), from, TEXT_BYTES_MAX)
}

fn text_within(name: &Path, from: impl Read, limit: u64) -> Result<String> {
    let mut bytes = Vec::new();
    from.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| Error::io(name, "read", e))?;
    if bytes.len() as u64 > limit {
        return Err(Error::Limit { path: name.to_owned(), what: "bytes of text".to_owned(), limit, found: bytes.len() as u64 });
    }
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
        let error = text_of("x", &b"ab\xffc"[..]).expect_err("0xff is no text");
        let message = error.to_string();
        assert!(message.contains("byte 2") && message.contains("0xff") && error.fault() == Some(Fault::NotUtf8), "{message}");
        assert_eq!(text_of("x", "é".as_bytes()).expect("text"), "é");
    }

    #[test]
    fn a_text_without_end_is_refused() {
        let within = |limit| text_within(Path::new("x"), std::io::repeat(b'a').take(9), limit);
        assert!(matches!(within(8), Err(Error::Limit { limit: 8, found: 9, .. })));
        assert_eq!(within(9).expect("text").len(), 9);
    }
}
