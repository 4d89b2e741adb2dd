//! Layout first: every offset and size is known before the first byte is written.
//!
//! ```text
//! "GGUF" | version u32 = 3 | n_tensors u64 | n_entries u64          all integers little-endian
//! n_entries x   key: string | type u32 | value
//! n_tensors x   name: string | n_dims u32 | n_dims x u64, fastest first | type u32 | offset u64 from the start of tensor data
//! zeros up to a multiple of the alignment
//! n_tensors x   tensor data | zeros up to a multiple of the alignment
//!
//! string = length u64 | bytes           array = element type u32 | count u64 | elements
//! ```

use byteorder::{ByteOrder, LittleEndian};

use super::keys;
use super::limits::{ALIGNMENT_MAX, DIMS_MAX, KEY_BYTES_MAX, Limits, NAME_BYTES_MAX};
use super::value::{Array, Metadata, Value};
use crate::error::{Error, Result};
use crate::quant::{Format, SizeFault};

/// Alignment of tensor data where `general.alignment` does not say otherwise.
pub const DEFAULT_ALIGNMENT: u64 = 32;

pub(super) const MAGIC: &[u8; 4] = b"GGUF";
pub(super) const VERSION: u32 = 3;

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// At most 63 bytes, unique.
    pub name: String,
    /// How its weights are stored.
    pub format: Format,
    /// Row-major, 1 to 4 dimensions.
    pub shape: Vec<u64>,
}

/// What one GGUF file (one shard) declares.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// In the order written.
    pub metadata: Metadata,
    /// In the order written.
    pub tensors: Vec<TensorSpec>,
}

/// Where everything of a [`Header`] lands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The encoded header, padded to the start of tensor data.
    pub header: Vec<u8>,
    /// From the start of the file, per tensor of the header.
    pub offsets_bytes: Vec<u64>,
    /// Per tensor of the header.
    pub sizes_bytes: Vec<u64>,
    /// Size of the complete file, final padding included.
    pub file_bytes: u64,
}

impl TensorSpec {
    /// Bytes of its data, unpadded.
    ///
    /// # Errors
    /// `Usage` for a shape that GGUF or the format cannot hold, naming the tensor.
    pub fn size_bytes(&self) -> Result<u64> {
        let TensorSpec { name, format, shape } = self;
        if shape.is_empty() || shape.len() > DIMS_MAX {
            return Err(Error::usage(format!("{name}: {} dimensions; GGUF tensors have 1 to {DIMS_MAX}", shape.len())));
        }
        if shape.contains(&0) {
            return Err(Error::usage(format!("{name}: shape {shape:?} holds no weights")));
        }
        format.tensor_bytes(shape).map_err(|fault| {
            Error::usage(match fault {
                SizeFault::ShapeOverflow => format!("{name}: shape {shape:?} has more weights than 63 bits can count"),
                SizeFault::SizeOverflow => format!("{name}: shape {shape:?} has more bytes in {format} than 63 bits can count"),
                SizeFault::RowNotBlockMultiple => {
                    let (row_len, block_len) = (shape.last().copied().unwrap_or(1), format.block_len());
                    format!("{name}: {row_len} columns, not a multiple of {block_len} ({format})")
                }
            })
        })
    }
}

impl Header {
    /// Encodes the header and places every tensor.
    ///
    /// # Errors
    /// `Usage` for names, shapes or values that no reader would accept.
    pub fn layout(&self) -> Result<Layout> {
        let alignment = self.alignment()?;
        self.check_metadata()?;
        self.check_names()?;
        let sizes_bytes = self.tensors.iter().map(TensorSpec::size_bytes).collect::<Result<Vec<u64>>>()?;
        let (mut offsets_bytes, data_bytes) = place(&sizes_bytes, alignment).ok_or_else(too_large)?;
        let header = self.encode(&offsets_bytes, alignment)?;
        let data_start = header.len() as u64;
        for offset in &mut offsets_bytes {
            *offset = offset.checked_add(data_start).ok_or_else(too_large)?;
        }
        let file_bytes = data_bytes.checked_add(data_start).filter(|&bytes| bytes <= i64::MAX as u64).ok_or_else(too_large)?;
        Ok(Layout { header, offsets_bytes, sizes_bytes, file_bytes })
    }

    /// Alignment of tensor data that the metadata asks for.
    ///
    /// # Errors
    /// `Usage` for a value of another type than u32, or that is not a power of two of at most 64 KiB.
    pub fn alignment(&self) -> Result<u64> {
        let Some((key, value)) = self.metadata.iter().find(|(key, _)| key == keys::GENERAL_ALIGNMENT) else {
            return Ok(DEFAULT_ALIGNMENT);
        };
        match value {
            Value::U32(alignment) if alignment.is_power_of_two() && u64::from(*alignment) <= ALIGNMENT_MAX => {
                Ok(u64::from(*alignment))
            }
            other => Err(Error::usage(format!("{key} is {other:?}; a u32 power of two up to {ALIGNMENT_MAX} is needed"))),
        }
    }

    fn check_metadata(&self) -> Result<()> {
        for (key, value) in &self.metadata {
            if key.is_empty() || key.len() > KEY_BYTES_MAX || key.chars().any(char::is_control) {
                return Err(Error::usage(format!("metadata key \"{key:.64}\" is empty, too long or not printable")));
            }
            check_value(key, value)?;
        }
        match first_duplicate(self.metadata.iter().map(|(key, _)| key.as_str())) {
            Some(key) => Err(Error::usage(format!("metadata key {key} is given twice"))),
            None => Ok(()),
        }
    }

    fn check_names(&self) -> Result<()> {
        for TensorSpec { name, .. } in &self.tensors {
            if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains('\0') {
                return Err(Error::usage(format!(
                    "tensor name \"{name:.80}\" has {} bytes; 1 to {NAME_BYTES_MAX} without NUL are possible",
                    name.len()
                )));
            }
        }
        match first_duplicate(self.tensors.iter().map(|tensor| tensor.name.as_str())) {
            Some(name) => Err(Error::usage(format!("tensor {name} is given twice"))),
            None => Ok(()),
        }
    }

    /// The header's bytes. `offsets_bytes` count from the start of tensor data.
    fn encode(&self, offsets_bytes: &[u64], alignment: u64) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        out.extend_from_slice(MAGIC);
        put_u32(&mut out, VERSION);
        put_u64(&mut out, self.tensors.len() as u64);
        put_u64(&mut out, self.metadata.len() as u64);
        for (key, value) in &self.metadata {
            put_string(&mut out, key.as_bytes());
            put_u32(&mut out, value.value_type().id());
            put_value(&mut out, value);
        }
        for (tensor, &offset) in self.tensors.iter().zip(offsets_bytes) {
            put_string(&mut out, tensor.name.as_bytes());
            let n_dims = u32::try_from(tensor.shape.len()).map_err(|_| too_large())?;
            put_u32(&mut out, n_dims);
            tensor.shape.iter().rev().for_each(|&dim| put_u64(&mut out, dim));
            put_u32(&mut out, tensor.format.id());
            put_u64(&mut out, offset);
        }
        let padded = (out.len() as u64).checked_next_multiple_of(alignment).ok_or_else(too_large)?;
        out.resize(usize::try_from(padded).map_err(|_| too_large())?, 0);
        Ok(out)
    }
}

/// Offsets from the start of tensor data, and the size of all data with its padding; `None` when 63 bits cannot count it.
fn place(sizes_bytes: &[u64], alignment: u64) -> Option<(Vec<u64>, u64)> {
    let mut end = 0u64;
    let mut offsets = Vec::with_capacity(sizes_bytes.len());
    for &size in sizes_bytes {
        offsets.push(end);
        end = end.checked_add(size)?.checked_next_multiple_of(alignment)?;
    }
    (end <= i64::MAX as u64).then_some((offsets, end))
}

fn too_large() -> Error {
    Error::usage("the file would have more bytes than 63 bits can count")
}

/// Keeps what is written within what every reader accepts, ours included.
fn check_value(key: &str, value: &Value) -> Result<()> {
    let Limits { string_bytes, array_len, .. } = Limits::default();
    let longest = match value {
        Value::String(bytes) => bytes.len(),
        Value::Array(Array::String(items)) => items.iter().map(Vec::len).max().unwrap_or(0),
        _ => 0,
    };
    if longest as u64 > string_bytes {
        return Err(Error::usage(format!("metadata {key:.64}: a string of {longest} bytes; {string_bytes} are possible")));
    }
    match value {
        Value::Array(array) if array.len() as u64 > array_len => {
            Err(Error::usage(format!("metadata {key:.64}: an array of {} items; {array_len} are possible", array.len())))
        }
        _ => Ok(()),
    }
}

fn first_duplicate<'a>(names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut seen = std::collections::HashSet::new();
    names.into_iter().find(|name| !seen.insert(*name))
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u64(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(x) => out.push(*x),
        Value::I8(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::U16(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::I16(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::U32(x) => put_u32(out, *x),
        Value::I32(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::F32(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::Bool(x) => out.push(u8::from(*x)),
        Value::String(bytes) => put_string(out, bytes),
        Value::Array(array) => put_array(out, array),
        Value::U64(x) => put_u64(out, *x),
        Value::I64(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::F64(x) => out.extend_from_slice(&x.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    put_u32(out, array.element_type().id());
    put_u64(out, array.len() as u64);
    match array {
        Array::U8(items) => out.extend_from_slice(items),
        Array::I8(items) => out.extend(items.iter().map(|x| x.cast_unsigned())),
        Array::U16(items) => put_items::<2, _>(out, items, LittleEndian::write_u16_into),
        Array::I16(items) => put_items::<2, _>(out, items, LittleEndian::write_i16_into),
        Array::U32(items) => put_items::<4, _>(out, items, LittleEndian::write_u32_into),
        Array::I32(items) => put_items::<4, _>(out, items, LittleEndian::write_i32_into),
        Array::F32(items) => put_items::<4, _>(out, items, LittleEndian::write_f32_into),
        Array::Bool(items) => out.extend(items.iter().map(|&x| u8::from(x))),
        Array::String(items) => items.iter().for_each(|bytes| put_string(out, bytes)),
        Array::U64(items) => put_items::<8, _>(out, items, LittleEndian::write_u64_into),
        Array::I64(items) => put_items::<8, _>(out, items, LittleEndian::write_i64_into),
        Array::F64(items) => put_items::<8, _>(out, items, LittleEndian::write_f64_into),
    }
}

/// Appends items of `BYTES` bytes each through one of byteorder's bulk writers.
fn put_items<const BYTES: usize, T>(out: &mut Vec<u8>, items: &[T], write_into: fn(&[T], &mut [u8])) {
    let mut bytes = vec![0; items.len().saturating_mul(BYTES)];
    write_into(items, &mut bytes);
    out.append(&mut bytes);
}
