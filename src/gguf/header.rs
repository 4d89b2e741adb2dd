//! One pass over a header: checks everything, keeps only where things start.
//!
//! The index holds 12 bytes per metadata entry and per tensor, so that its heap stays below the header's own size whatever the header
//! claims. Values are decoded again from their place when somebody asks, by the same functions that checked them.

use std::path::Path;

use super::cursor::{Cursor, Head};
use super::keys;
use super::limits::{ALIGNMENT_MAX, DIMS_MAX, KEY_BYTES_MAX, Limits, NAME_BYTES_MAX};
use super::sniff;
use super::value::ValueType;
use super::view::{ArrayRef, ValueRef, decode};
use super::warning::Warning;
use super::write::{DEFAULT_ALIGNMENT, MAGIC};
use crate::error::{Error, Fault, Place, Result};
use crate::quant::{Format, SizeFault};

/// Smallest metadata entry: key length, no key, type, one byte of value.
const ENTRY_BYTES_MIN: usize = 8 + 4 + 1;
/// Smallest tensor info: name length, no name, number of dimensions, type, offset.
const TENSOR_BYTES_MIN: usize = 8 + 4 + 4 + 8;

/// More is not read to see whether the header goes on although its counts say it is over: it could be anything.
const LOOK_AHEAD_BYTES: u64 = 64 << 10;

/// Where everything in a header starts.
pub(super) struct Index {
    pub version: u32,
    pub alignment: u64,
    /// Where each metadata entry starts.
    pub entries: Vec<usize>,
    /// Entry numbers in the order of their keys.
    pub entries_by_key: Vec<u32>,
    /// Where each tensor info starts.
    pub tensors: Vec<usize>,
    /// Tensor numbers in the order of their names.
    pub tensors_by_name: Vec<u32>,
    /// Size of the header without its padding.
    pub header_bytes: u64,
    /// Where tensor data starts.
    pub data_offset_bytes: u64,
    /// Where the last tensor and its padding end.
    pub data_end_bytes: u64,
    pub warnings: Vec<Warning>,
}

/// One tensor info, as in the file but for its shape, which is turned round to row-major.
pub(super) struct RawTensor<'a> {
    pub name: &'a str,
    pub format: Format,
    pub shape: Vec<u64>,
    /// From the start of tensor data.
    pub offset_bytes: u64,
    pub size_bytes: u64,
}

/// Checks the header at the start of a file, and that all tensor data is there. `read` fills a buffer with the file's bytes from an
/// offset on, for what lies behind the head. Where the head is too short to tell, the result says nothing: see [`Head::missing`].
pub(super) fn index(head: &Head<'_>, limits: &Limits, read: impl Fn(&mut [u8], u64) -> Result<()>) -> Result<Index> {
    let Head { path, bytes, file_bytes, .. } = *head;
    let mut cursor = Cursor::of_head(head, 0);
    let Prefix { version, n_tensors, n_entries } = read_prefix(&mut cursor, bytes, limits)?;

    let mut entries = Vec::new();
    let mut alignment = DEFAULT_ALIGNMENT;
    for _ in 0..n_entries {
        let start = cursor.clone();
        entries.push(start.at());
        let (key, value) = read_entry(&mut cursor, limits)?;
        if key == keys::GENERAL_ALIGNMENT {
            alignment = check_alignment(&start, value)?;
        }
    }
    let entries_by_key = sorted(path, bytes, &entries, Fault::DuplicateKey)?;

    let mut tensors = Vec::new();
    let mut data_bytes = 0;
    for _ in 0..n_tensors {
        let start = cursor.clone();
        tensors.push(start.at());
        let tensor = read_tensor(&mut cursor)?;
        data_bytes = next_offset(&start, &tensor, data_bytes, alignment, file_bytes)?;
    }
    let tensors_by_name = sorted(path, bytes, &tensors, Fault::DuplicateTensor)?;
    check_header_is_over(&cursor, n_tensors, data_bytes, limits)?;
    if head.missing.get() > (cursor.at() as u64).saturating_add(LOOK_AHEAD_BYTES) {
        head.missing.set(0);
    }

    let header_bytes = cursor.at() as u64;
    let data_offset_bytes = header_bytes
        .checked_next_multiple_of(alignment)
        .ok_or_else(|| cursor.error(Fault::SizeOverflow, format_args!("the header's padding")))?;
    let mut index = Index {
        version,
        alignment,
        entries,
        entries_by_key,
        tensors,
        tensors_by_name,
        header_bytes,
        data_offset_bytes,
        data_end_bytes: data_offset_bytes,
        warnings: Vec::new(),
    };
    if head.missing.get() == 0 {
        check_data(head, &mut index, data_bytes, read)?;
    }
    Ok(index)
}

struct Prefix {
    version: u32,
    n_tensors: u64,
    n_entries: u64,
}

fn read_prefix(cursor: &mut Cursor<'_>, bytes: &[u8], limits: &Limits) -> Result<Prefix> {
    let present = bytes.get(..MAGIC.len()).unwrap_or(bytes);
    if !MAGIC.starts_with(present) {
        let what = sniff::recognise(bytes).unwrap_or("not a GGUF file: it does not start with the letters GGUF");
        return Err(cursor.error(Fault::NotGguf, format_args!("{what}")));
    }
    cursor.take(MAGIC.len(), format_args!("the magic GGUF"))?;
    let at_version = cursor.clone();
    let version = cursor.u32(format_args!("the version"))?;
    match version {
        2 | 3 => {}
        _ if (1..=3).contains(&version.swap_bytes()) => {
            let detail = "a big-endian file; convert it on the machine it is for, or take the little-endian one";
            return Err(at_version.error(Fault::BigEndian, format_args!("{detail}")));
        }
        1 => {
            let detail = "GGUF version 1, of August 2023; convert the original model again";
            return Err(at_version.error(Fault::UnsupportedVersion, format_args!("{detail}")));
        }
        _ => {
            return Err(at_version.error(Fault::UnsupportedVersion, format_args!("GGUF version {version}; 2 and 3 are known")));
        }
    }
    let at_tensors = cursor.clone();
    let n_tensors = cursor.count(TENSOR_BYTES_MIN, format_args!("tensors"))?;
    let at_entries = cursor.clone();
    let n_entries = cursor.count(ENTRY_BYTES_MIN, format_args!("metadata entries"))?;
    if n_tensors > limits.n_tensors {
        return Err(at_tensors.over_limit(format_args!("number of tensors"), limits.n_tensors, n_tensors));
    }
    if n_entries > limits.n_entries {
        return Err(at_entries.over_limit(format_args!("number of metadata entries"), limits.n_entries, n_entries));
    }
    Ok(Prefix { version, n_tensors, n_entries })
}

/// Reads and checks one metadata entry.
pub(super) fn read_entry<'a>(cursor: &mut Cursor<'a>, limits: &Limits) -> Result<(&'a str, ValueRef<'a>)> {
    let start = cursor.clone();
    let len = cursor.string_len(format_args!("a metadata key"))?;
    if len == 0 {
        return Err(start.error(Fault::EmptyKey, format_args!("a metadata key is empty")));
    }
    if len > KEY_BYTES_MAX {
        let detail = format_args!("a metadata key has {len} bytes; {KEY_BYTES_MAX} are possible");
        return Err(start.error(Fault::KeyTooLong, detail));
    }
    let bytes = cursor.take(len, format_args!("a metadata key"))?;
    let key = match std::str::from_utf8(bytes) {
        Ok(key) if !key.contains(char::is_control) => key,
        _ => {
            let shown = String::from_utf8_lossy(bytes);
            return Err(start.error(Fault::InvalidKey, format_args!("metadata key \"{shown:.64}\" is not printable UTF-8")));
        }
    };
    let value_type = read_type(cursor, key, "value")?;
    let value = match value_type {
        ValueType::Array => ValueRef::Array(read_array(cursor, key, limits)?),
        _ => read_value(cursor, value_type, key, limits)?,
    };
    Ok((key, value))
}

fn read_type(cursor: &mut Cursor<'_>, key: &str, what: &str) -> Result<ValueType> {
    let start = cursor.clone();
    let id = cursor.u32(format_args!("the {what} type of {key:.64}"))?;
    ValueType::from_id(id)
        .ok_or_else(|| start.error(Fault::UnknownValueType, format_args!("{key:.64} has {what} type {id}; 0 to 12 are known")))
}

/// Reads and checks anything but an array.
fn read_value<'a>(cursor: &mut Cursor<'a>, value_type: ValueType, key: &str, limits: &Limits) -> Result<ValueRef<'a>> {
    let start = cursor.clone();
    let Some(fixed_bytes) = value_type.fixed_bytes() else {
        let len = cursor.string_len(format_args!("a string of {key:.64}"))?;
        if len as u64 > limits.string_bytes {
            return Err(start.over_limit(format_args!("bytes of a string of {key:.64}"), limits.string_bytes, len as u64));
        }
        return Ok(ValueRef::String(cursor.take(len, format_args!("a string of {key:.64}"))?));
    };
    let mut bytes = cursor.take(fixed_bytes, format_args!("the value of {key:.64}"))?;
    decode(value_type, &mut bytes)
        .ok_or_else(|| start.error(Fault::InvalidBool, format_args!("a bool of {key:.64} is neither 0 nor 1: {bytes:?}")))
}

fn read_array<'a>(cursor: &mut Cursor<'a>, key: &str, limits: &Limits) -> Result<ArrayRef<'a>> {
    let at_type = cursor.clone();
    let element_type = read_type(cursor, key, "array element")?;
    if element_type == ValueType::Array {
        let detail = format_args!("{key:.64} is an array of arrays; no reader of GGUF models takes those");
        return Err(at_type.error(Fault::NestedArray, detail));
    }
    let at_count = cursor.clone();
    let item_bytes = element_type.fixed_bytes().unwrap_or(8);
    let count = cursor.count(item_bytes, format_args!("{element_type} items of {key:.64}"))?;
    if count > limits.array_len {
        return Err(at_count.over_limit(format_args!("items of {key:.64}"), limits.array_len, count));
    }
    let len = usize::try_from(count).unwrap_or(usize::MAX);
    let items = cursor.clone();
    match element_type.fixed_bytes() {
        // Bools and strings are looked at one by one; of the rest every bit pattern is a value.
        Some(fixed_bytes) if element_type != ValueType::Bool => {
            cursor.take(len.saturating_mul(fixed_bytes), format_args!("the items of {key:.64}"))?;
        }
        _ => {
            for _ in 0..len {
                read_value(cursor, element_type, key, limits)?;
            }
        }
    }
    Ok(ArrayRef { element_type, len, bytes: items.bytes_until(cursor) })
}

/// Reads and checks one tensor info by itself; its offset is checked against the tensors before it by [`next_offset`].
pub(super) fn read_tensor<'a>(cursor: &mut Cursor<'a>) -> Result<RawTensor<'a>> {
    let start = cursor.clone();
    let len = cursor.string_len(format_args!("a tensor name"))?;
    if len == 0 {
        return Err(start.error(Fault::EmptyName, format_args!("a tensor name is empty")));
    }
    if len > NAME_BYTES_MAX {
        let detail = format_args!("a tensor name has {len} bytes; {NAME_BYTES_MAX} are possible");
        return Err(start.error(Fault::NameTooLong, detail));
    }
    let bytes = cursor.take(len, format_args!("a tensor name"))?;
    let name = match std::str::from_utf8(bytes) {
        Ok(name) if !name.contains('\0') => name,
        _ => {
            let shown = String::from_utf8_lossy(bytes);
            return Err(start.error(Fault::InvalidName, format_args!("tensor name {shown:?} is not UTF-8 without NUL")));
        }
    };
    let shape = read_shape(cursor, name)?;
    let at_type = cursor.clone();
    let id = cursor.u32(format_args!("the type of tensor {name}"))?;
    let format = Format::from_id(id).ok_or_else(|| unknown_type(&at_type, name, id))?;
    let size_bytes = format.tensor_bytes(&shape).map_err(|fault| size_error(&start, name, format, &shape, fault))?;
    let offset_bytes = cursor.u64(format_args!("the offset of tensor {name}"))?;
    Ok(RawTensor { name, format, shape, offset_bytes, size_bytes })
}

/// Row-major, so the last dimension of the file comes first.
fn read_shape(cursor: &mut Cursor<'_>, name: &str) -> Result<Vec<u64>> {
    let start = cursor.clone();
    let n_dims = cursor.u32(format_args!("the number of dimensions of tensor {name}"))?;
    let n_dims = usize::try_from(n_dims).unwrap_or(usize::MAX);
    if n_dims > DIMS_MAX {
        let detail = format_args!("tensor {name} has {n_dims} dimensions; {DIMS_MAX} are possible");
        return Err(start.error(Fault::TooManyDims, detail));
    }
    let mut shape = Vec::with_capacity(n_dims);
    for _ in 0..n_dims {
        let at_dim = cursor.clone();
        let dim = cursor.u64(format_args!("a dimension of tensor {name}"))?;
        if i64::try_from(dim).is_err() {
            return Err(at_dim.error(Fault::DimTooLarge, format_args!("tensor {name} has a dimension of {dim}")));
        }
        shape.push(dim);
    }
    shape.reverse();
    Ok(shape)
}

fn unknown_type(at: &Cursor<'_>, name: &str, id: u32) -> Error {
    let removed = match id {
        4 => "Q4_2",
        5 => "Q4_3",
        31 => "Q4_0_4_4",
        32 => "Q4_0_4_8",
        33 => "Q4_0_8_8",
        36 => "IQ4_NL_4_4",
        37 => "IQ4_NL_4_8",
        38 => "IQ4_NL_8_8",
        _ => {
            let detail = format_args!("tensor {name} has type {id}, which ggml does not define; a fork's or a newer format");
            return at.error(Fault::UnknownType, detail);
        }
    };
    at.error(
        Fault::RemovedType,
        format_args!("tensor {name} has type {id}, {removed}, which ggml removed; quantize the original again"),
    )
}

fn size_error(at: &Cursor<'_>, name: &str, format: Format, shape: &[u64], fault: SizeFault) -> Error {
    match fault {
        SizeFault::ShapeOverflow => {
            at.error(Fault::ShapeOverflow, format_args!("tensor {name} of shape {shape:?} has more weights than 63 bits can count"))
        }
        SizeFault::SizeOverflow => {
            at.error(Fault::SizeOverflow, format_args!("tensor {name} of shape {shape:?} has more bytes than 63 bits can count"))
        }
        SizeFault::RowNotBlockMultiple => {
            let (row_len, block_len) = (shape.last().copied().unwrap_or(1), format.block_len());
            let detail = format_args!("tensor {name} has {row_len} columns, not a multiple of {block_len} ({format})");
            at.error(Fault::RowNotBlockMultiple, detail)
        }
    }
}

/// Checks a tensor's offset against the end of the tensors before it, and returns where the next one has to start. llama.cpp
/// insists on the same unbroken chain, so tensors can neither overlap nor leave gaps.
fn next_offset(at: &Cursor<'_>, tensor: &RawTensor<'_>, expected: u64, alignment: u64, file_bytes: u64) -> Result<u64> {
    let RawTensor { name, offset_bytes: offset, size_bytes, .. } = tensor;
    let fault = match offset {
        _ if offset == &expected => None,
        _ if *offset > file_bytes => Some(Fault::DataPastEof),
        _ if !offset.is_multiple_of(alignment) => Some(Fault::MisalignedOffset),
        _ => Some(Fault::OffsetMismatch),
    };
    if let Some(fault) = fault {
        let detail = format_args!("tensor {name} is at offset {offset} of the data, expected {expected} (alignment {alignment})");
        return Err(at.error(fault, detail));
    }
    offset
        .checked_add(*size_bytes)
        .and_then(|end| end.checked_next_multiple_of(alignment))
        .filter(|&end| i64::try_from(end).is_ok())
        .ok_or_else(|| {
            at.error(Fault::SizeOverflow, format_args!("the data up to tensor {name} has more bytes than 63 bits can count"))
        })
}

/// A count that is too low leaves an entry unread. It would then pass for padding and weights, so look whether one follows.
fn check_header_is_over(cursor: &Cursor<'_>, n_tensors: u64, data_bytes: u64, limits: &Limits) -> Result<()> {
    let follows =
        |what| Err(cursor.error(Fault::UnreadHeader, format_args!("{what} follows, but the header's count says it is over")));
    if read_tensor(&mut cursor.clone()).is_ok_and(|tensor| tensor.offset_bytes == data_bytes) {
        return follows("another tensor info");
    }
    if n_tensors == 0 && read_entry(&mut cursor.clone(), limits).is_ok() {
        return follows("another metadata entry");
    }
    Ok(())
}

/// Numbers of the entries or tensor infos that start at `starts`, in the order of their keys or names, all of which must differ.
fn sorted(path: &Path, bytes: &[u8], starts: &[usize], fault: Fault) -> Result<Vec<u32>> {
    let name = |number: u32| name_at(path, bytes, starts, number);
    let n = u32::try_from(starts.len()).map_err(|_| {
        let what = "number of entries in one header".to_owned();
        Error::Limit { path: path.to_owned(), what, limit: u64::from(u32::MAX), found: starts.len() as u64 }
    })?;
    let mut order: Vec<u32> = (0..n).collect();
    order.sort_unstable_by(|&a, &b| name(a).cmp(name(b)).then(a.cmp(&b)));
    let twice = order.windows(2).find_map(|pair| match pair {
        &[a, b] if name(a) == name(b) => Some((a, b)),
        _ => None,
    });
    let Some((first, second)) = twice else { return Ok(order) };
    let start = |number: u32| usize::try_from(number).ok().and_then(|i| starts.get(i)).copied().unwrap_or_default();
    let shown = String::from_utf8_lossy(name(second));
    let detail = format!("{shown:.64} is here again, and at byte {}", start(first));
    Err(Error::malformed(path, Place::Byte(start(second) as u64), fault, detail))
}

/// The key or name at the start of an entry or tensor info.
pub(super) fn name_at<'a>(path: &'a Path, bytes: &'a [u8], starts: &[usize], number: u32) -> &'a [u8] {
    let start = usize::try_from(number).ok().and_then(|i| starts.get(i));
    start.and_then(|&at| Cursor::new(path, bytes, at).string(format_args!("a name")).ok()).unwrap_or_default()
}

fn check_alignment(start: &Cursor<'_>, value: ValueRef<'_>) -> Result<u64> {
    let key = keys::GENERAL_ALIGNMENT;
    let ValueRef::U32(alignment) = value else {
        let found = value.value_type();
        return Err(start.error(Fault::AlignmentType, format_args!("{key} is of type {found}; u32 is required")));
    };
    let alignment = u64::from(alignment);
    if !alignment.is_power_of_two() {
        let detail = format_args!("{key} is {alignment}; a power of two is required");
        return Err(start.error(Fault::AlignmentNotPowerOfTwo, detail));
    }
    if alignment > ALIGNMENT_MAX {
        let detail = format_args!("{key} is {alignment}; {ALIGNMENT_MAX} is the most that makes sense");
        return Err(start.error(Fault::AlignmentTooLarge, detail));
    }
    Ok(alignment)
}

/// Checks that the file holds the data of every tensor, and notes bytes that should be zero or should not be there.
fn check_data(head: &Head<'_>, index: &mut Index, data_bytes: u64, read: impl Fn(&mut [u8], u64) -> Result<()>) -> Result<()> {
    let file_bytes = head.file_bytes;
    let mut padding = Padding { head, read, buffer: Vec::new(), first_at: None, n_bytes: 0 };
    let mut missing_bytes = 0;
    padding.check(index.header_bytes, index.data_offset_bytes)?;
    for &at in &index.tensors {
        let mut cursor = Cursor::of_head(head, at);
        let start = cursor.clone();
        let tensor = read_tensor(&mut cursor)?;
        // Both sums were bounded by 2^63 before.
        let first = index.data_offset_bytes.saturating_add(tensor.offset_bytes);
        let end = first.saturating_add(tensor.size_bytes);
        if end > file_bytes && tensor.size_bytes > 0 && !head.is_whole {
            missing_bytes = end.saturating_sub(file_bytes);
        } else if end > file_bytes && tensor.size_bytes > 0 {
            let name = tensor.name;
            let detail =
                format_args!("the data of tensor {name} is bytes {first} to {end}, the file has {file_bytes}; it is cut short");
            return Err(start.error(Fault::DataPastEof, detail));
        }
        padding.check(end, end.checked_next_multiple_of(index.alignment).unwrap_or(end))?;
    }
    let data_end = index.data_offset_bytes.saturating_add(data_bytes);
    index.data_end_bytes = data_end;
    if missing_bytes > 0 {
        index.warnings.push(Warning::CutShort { n_bytes: missing_bytes });
    }
    if let Some(first_at) = padding.first_at {
        index.warnings.push(Warning::PaddingNotZero { first_at, n_bytes: padding.n_bytes });
    }
    if let Some(n_bytes) = file_bytes.checked_sub(data_end).filter(|&n| n > 0) {
        index.warnings.push(Warning::TrailingBytes { at: data_end, n_bytes });
    }
    Ok(())
}

/// Counts bytes of padding that are not zero.
struct Padding<'a, R> {
    head: &'a Head<'a>,
    read: R,
    buffer: Vec<u8>,
    first_at: Option<u64>,
    n_bytes: u64,
}

impl<R: Fn(&mut [u8], u64) -> Result<()>> Padding<'_, R> {
    /// `to` lies less than an alignment after `from`.
    fn check(&mut self, from: u64, to: u64) -> Result<()> {
        let to = to.min(self.head.file_bytes);
        let range = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let bytes = match self.head.bytes.get(range(from)..range(to)) {
            Some(bytes) => bytes,
            None if from >= to => return Ok(()),
            None => {
                self.buffer.resize(range(to.saturating_sub(from)), 0);
                (self.read)(&mut self.buffer, from)?;
                &self.buffer
            }
        };
        for (at, _) in (from..to).zip(bytes).filter(|(_, byte)| **byte != 0) {
            self.first_at.get_or_insert(at);
            self.n_bytes = self.n_bytes.saturating_add(1);
        }
        Ok(())
    }
}
