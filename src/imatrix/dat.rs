//! The older format of importance matrix files, `.dat`.
//!
//! ```text
//! n_entries i32                                                     all integers little-endian
//! n_entries x   name length i32 | name | n_chunks i32 | n_values i32 | n_values x f32    mean of x^2, times n_chunks
//! n_chunks i32 | data set length i32 | data set                      both optional
//! ```

use std::collections::BTreeMap;

use byteorder::{ByteOrder, LittleEndian};

use super::content::Content;
use super::{CHUNK_SIZE_DEFAULT, Entry, Imatrix, Unit};
use crate::error::{Error, Fault, Place, Result};

/// Smallest entry: name length, one byte of name, chunks, number of values, one value.
const ENTRY_BYTES_MIN: u64 = 4 + 1 + 4 + 4 + 4;
/// Bytes of a tensor name, as everywhere in ggml.
const NAME_BYTES_MAX: u64 = 63;

pub(super) fn read(content: &Content<'_>) -> Result<Imatrix> {
    let mut cursor = Cursor { content, at: 0 };
    let n_entries = read_n_entries(&mut cursor)?;
    let mut entries = BTreeMap::new();
    for _ in 0..n_entries {
        let start = cursor.at;
        let (name, entry) = read_entry(&mut cursor)?;
        if entries.contains_key(&name) {
            return Err(cursor.error_at(start, Fault::DuplicateTensor, format!("a second entry for {name}")));
        }
        entries.insert(name, entry);
    }
    let (chunk_count, dataset) = read_tail(&mut cursor)?;
    Ok(Imatrix {
        path: content.path().to_owned(),
        entries,
        datasets: dataset.into_iter().collect(),
        chunk_count,
        chunk_size: 0,
        unit: Unit::Chunks,
    })
}

fn read_n_entries(cursor: &mut Cursor<'_>) -> Result<u64> {
    let n_entries = cursor.i32("the number of entries")?;
    let fits = cursor.left() / ENTRY_BYTES_MIN;
    match u64::try_from(n_entries) {
        Ok(n) if 1 <= n && n <= fits => Ok(n),
        Ok(n) if n > fits => {
            let detail = format!(
                "not a GGUF file; as an older importance matrix it would have {n_entries} entries, and at most {fits} fit into its {} bytes",
                cursor.content.size_bytes()
            );
            Err(cursor.error_at(0, Fault::CountExceedsFile, detail))
        }
        _ => {
            let detail = format!("not a GGUF file; as an older importance matrix it would have {n_entries} entries");
            Err(cursor.error_at(0, Fault::ImatrixInvalid, detail))
        }
    }
}

fn read_entry(cursor: &mut Cursor<'_>) -> Result<(String, Entry)> {
    let name = read_name(cursor)?;
    let at_chunks = cursor.at;
    let n_chunks = cursor.i32("a number of chunks")?;
    let Ok(n_chunks) = u64::try_from(n_chunks) else {
        return Err(cursor.error_at(at_chunks, Fault::ImatrixValue, format!("{name}: computed on {n_chunks} chunks")));
    };
    let at_values = cursor.at;
    let n_values = cursor.i32("a number of values")?;
    let n_values = match usize::try_from(n_values) {
        Ok(n) if n >= 1 => n,
        _ => return Err(cursor.error_at(at_values, Fault::ImatrixInvalid, format!("{name}: {n_values} values"))),
    };
    let values_bytes = n_values as u64 * size_of::<f32>() as u64;
    cursor.check_left(values_bytes, || format!("{n_values} values of {name}"))?;
    let sums = cursor.content.read_f32(n_values, cursor.at)?;
    cursor.at += values_bytes;
    // llama-quantize divides by the number of chunks unless it is zero, so zero means one.
    let entry = Entry::new(sums, vec![n_chunks.max(1)]).map_err(|fault| fault.in_file(cursor.content.path(), &name))?;
    Ok((name, entry))
}

fn read_name(cursor: &mut Cursor<'_>) -> Result<String> {
    let start = cursor.at;
    let len = cursor.i32("the length of a tensor name")?;
    let bytes = match u64::try_from(len) {
        Err(_) => return Err(cursor.error_at(start, Fault::ImatrixInvalid, format!("a tensor name has {len} bytes"))),
        Ok(0) => return Err(cursor.error_at(start, Fault::EmptyName, "a tensor name is empty".to_owned())),
        Ok(len) => {
            cursor.check_left(len, || format!("a tensor name of {len} bytes"))?;
            if len > NAME_BYTES_MAX {
                let detail = format!("a tensor name has {len} bytes; {NAME_BYTES_MAX} are possible");
                return Err(cursor.error_at(start, Fault::NameTooLong, detail));
            }
            cursor.take(len)?
        }
    };
    match String::from_utf8(bytes) {
        Ok(name) if !name.contains('\0') => Ok(name),
        Ok(name) => Err(cursor.error_at(start, Fault::InvalidName, format!("tensor name {name:?} contains NUL"))),
        Err(e) => {
            let shown = String::from_utf8_lossy(e.as_bytes());
            Err(cursor.error_at(start, Fault::InvalidName, format!("tensor name {shown:?} is not UTF-8")))
        }
    }
}

/// The number of chunks and the data set, where the file has them.
fn read_tail(cursor: &mut Cursor<'_>) -> Result<(u32, Option<String>)> {
    if cursor.left() == 0 {
        return Ok((0, None));
    }
    let start = cursor.at;
    let n_chunks = cursor.i32("the number of chunks of the whole matrix")?;
    let Ok(chunk_count) = u32::try_from(n_chunks) else {
        return Err(cursor.error_at(start, Fault::ImatrixValue, format!("computed on {n_chunks} chunks")));
    };
    if cursor.left() == 0 {
        return Ok((chunk_count, None));
    }
    let at_len = cursor.at;
    let len = cursor.i32("the length of the data set's name")?;
    let Ok(len) = u64::try_from(len) else {
        return Err(cursor.error_at(at_len, Fault::ImatrixInvalid, format!("the data set's name has {len} bytes")));
    };
    cursor.check_left(len, || format!("a data set's name of {len} bytes"))?;
    let dataset = cursor.take(len)?;
    if cursor.left() > 0 {
        let detail = format!("{} bytes follow the end", cursor.left());
        return Err(cursor.error_at(cursor.at, Fault::ImatrixInvalid, detail));
    }
    let dataset = (!dataset.is_empty()).then(|| String::from_utf8_lossy(&dataset).into_owned());
    Ok((chunk_count, dataset))
}

/// A position in the file.
struct Cursor<'a> {
    content: &'a Content<'a>,
    at: u64,
}

impl Cursor<'_> {
    fn left(&self) -> u64 {
        self.content.size_bytes().saturating_sub(self.at)
    }

    fn i32(&mut self, what: &str) -> Result<i32> {
        let mut bytes = [0; 4];
        if self.left() < bytes.len() as u64 {
            return Err(self.error_at(self.at, Fault::Truncated, format!("the file ends inside {what}")));
        }
        self.content.read_exact_at(&mut bytes, self.at)?;
        self.at += bytes.len() as u64;
        Ok(LittleEndian::read_i32(&bytes))
    }

    /// The next `len` bytes, which are known to be there.
    fn take(&mut self, len: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(len).expect("a length that was read as an i32")];
        self.content.read_exact_at(&mut bytes, self.at)?;
        self.at += len;
        Ok(bytes)
    }

    fn check_left(&self, need_bytes: u64, what: impl Fn() -> String) -> Result<()> {
        let left = self.left();
        if need_bytes <= left {
            return Ok(());
        }
        let detail = format!("{}: {need_bytes} bytes are needed, {left} are left", what());
        Err(self.error_at(self.at, Fault::LengthExceedsFile, detail))
    }

    fn error_at(&self, at: u64, fault: Fault, detail: String) -> Error {
        Error::malformed(self.content.path(), Place::Byte(at), fault, detail)
    }
}

impl Imatrix {
    /// The bytes of a `.dat` file, as llama-imatrix writes it: experts that nothing reached get a mean of 1, and entries without any
    /// data are left out.
    ///
    /// # Errors
    /// `Usage` for what the format cannot hold.
    pub fn to_dat(&self) -> Result<Vec<u8>> {
        let chunk_size = if self.chunk_size == 0 { CHUNK_SIZE_DEFAULT.get() } else { self.chunk_size };
        let kept: Vec<_> = self.entries.iter().filter(|(_, entry)| entry.counts().iter().any(|&count| count > 0)).collect();
        let mut out = Vec::new();
        put_i32(&mut out, kept.len(), "entries")?;
        for (name, entry) in kept {
            put_i32(&mut out, name.len(), "bytes of a name")?;
            out.extend_from_slice(name.as_bytes());
            let count_max = entry.counts().iter().copied().max().unwrap_or(0);
            let n_chunks = match self.unit {
                Unit::Chunks => count_max,
                // Rounded up, so that little data does not become none.
                Unit::Tokens => count_max.div_ceil(u64::from(chunk_size)),
            };
            put_i32(&mut out, usize::try_from(n_chunks).unwrap_or(usize::MAX), "chunks")?;
            put_i32(&mut out, entry.sums().len(), "values")?;
            for (index, value) in entry.values(0..entry.sums().len()).enumerate() {
                let stored = match self.unit {
                    Unit::Chunks => entry.sums()[index],
                    Unit::Tokens => value.unwrap_or(1.0) * n_chunks as f32,
                };
                out.extend_from_slice(&stored.to_le_bytes());
            }
        }
        put_i32(&mut out, usize::try_from(self.chunk_count).unwrap_or(usize::MAX), "chunks")?;
        let dataset = self.datasets.last().map_or("", String::as_str);
        put_i32(&mut out, dataset.len(), "bytes of a data set's name")?;
        out.extend_from_slice(dataset.as_bytes());
        Ok(out)
    }
}

fn put_i32(out: &mut Vec<u8>, n: usize, what: &str) -> Result<()> {
    let n = i32::try_from(n).map_err(|_| Error::usage(format!("{n} {what} are more than a .dat file can state; write GGUF")))?;
    out.extend_from_slice(&n.to_le_bytes());
    Ok(())
}
