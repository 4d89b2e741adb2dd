//! A position in hostile bytes. Every read is checked against what is left, and fails with the place and the name of the field.

use std::cell::Cell;
use std::fmt::Arguments;
use std::path::Path;

use byteorder::{ByteOrder, LittleEndian};

use crate::error::{Error, Fault, Place, Result};

/// The first bytes of a file, and how many there are in all.
pub(super) struct Head<'a> {
    pub path: &'a Path,
    pub bytes: &'a [u8],
    pub file_bytes: u64,
    /// Where bytes would have to reach to that were asked for and are in the file, but not here; 0 while there are none.
    pub missing: Cell<u64>,
    /// The data of tensors has to be in the file.
    pub is_whole: bool,
}

impl<'a> Head<'a> {
    pub fn new(path: &'a Path, bytes: &'a [u8], file_bytes: u64) -> Head<'a> {
        Head { path, bytes, file_bytes, missing: Cell::new(0), is_whole: true }
    }
}

#[derive(Clone)]
pub(super) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
    file_bytes: u64,
    missing: Option<&'a Cell<u64>>,
}

impl<'a> Cursor<'a> {
    pub fn new(path: &'a Path, bytes: &'a [u8], at: usize) -> Cursor<'a> {
        Cursor { path, bytes, at, file_bytes: bytes.len() as u64, missing: None }
    }

    /// A cursor that notes where it would have needed more of the file.
    pub fn of_head(head: &'a Head<'_>, at: usize) -> Cursor<'a> {
        let Head { path, bytes, file_bytes, missing, .. } = head;
        Cursor { path, bytes, at, file_bytes: *file_bytes, missing: Some(missing) }
    }

    /// Offset of the next byte from the start of the file.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Bytes from here to the end of the file.
    pub fn left(&self) -> u64 {
        self.file_bytes.saturating_sub(self.at as u64)
    }

    /// The next `n` bytes, which are `what`.
    pub fn take(&mut self, n: usize, what: Arguments<'_>) -> Result<&'a [u8]> {
        match self.at.checked_add(n).and_then(|end| Some((end, self.bytes.get(self.at..end)?))) {
            Some((end, bytes)) => {
                self.at = end;
                Ok(bytes)
            }
            None => {
                let left = self.left();
                if let Some(missing) = self.missing.filter(|_| n as u64 <= left) {
                    missing.set((self.at as u64).saturating_add(n as u64));
                }
                Err(self.error(Fault::Truncated, format_args!("{what} takes {n} bytes, {left} are left")))
            }
        }
    }

    pub fn u32(&mut self, what: Arguments<'_>) -> Result<u32> {
        self.take(4, what).map(LittleEndian::read_u32)
    }

    pub fn u64(&mut self, what: Arguments<'_>) -> Result<u64> {
        self.take(8, what).map(LittleEndian::read_u64)
    }

    /// A length-prefixed string.
    pub fn string(&mut self, what: Arguments<'_>) -> Result<&'a [u8]> {
        let len = self.string_len(what)?;
        self.take(len, what)
    }

    /// The length of a string, all of which is in the file.
    pub fn string_len(&mut self, what: Arguments<'_>) -> Result<usize> {
        let start = self.clone();
        let len = self.u64(format_args!("the length of {what}"))?;
        if len > self.left() {
            let left = self.left();
            return Err(start.error(Fault::LengthExceedsFile, format_args!("{what} claims {len} bytes, {left} are left")));
        }
        Ok(usize::try_from(len).unwrap_or(usize::MAX))
    }

    /// A count of items of at least `item_bytes` each, all of which must fit what is left.
    pub fn count(&mut self, item_bytes: usize, what: Arguments<'_>) -> Result<u64> {
        let start = self.clone();
        let count = self.u64(format_args!("the number of {what}"))?;
        let left = self.left();
        match count.checked_mul(item_bytes as u64) {
            Some(bytes) if bytes <= left => Ok(count),
            _ => Err(start.error(
                Fault::CountExceedsFile,
                format_args!("{count} {what} of at least {item_bytes} bytes each are declared, {left} bytes are left"),
            )),
        }
    }

    /// The bytes between here and a later position.
    pub fn bytes_until(&self, end: &Cursor<'a>) -> &'a [u8] {
        self.bytes.get(self.at..end.at).unwrap_or_default()
    }

    /// An error about the bytes from here on.
    pub fn error(&self, fault: Fault, detail: Arguments<'_>) -> Error {
        Error::malformed(self.path, Place::Byte(self.at as u64), fault, detail.to_string())
    }

    /// A documented limit is exceeded by `what`.
    pub fn over_limit(&self, what: Arguments<'_>, limit: u64, found: u64) -> Error {
        let what = format!("byte {}: {what} (ggforge inspect --no-limits reads it all the same)", self.at);
        Error::Limit { path: self.path.to_owned(), what, limit, found }
    }
}
