//! The header of a safetensors file: which tensor lies where. Reads no weights.
//!
//! ```text
//! byte 0            8                    8 + n            end
//!      | n: u64 LE  | JSON header, n bytes | tensor data    |
//!
//! {"__metadata__": {"format": "pt"}, "name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ...}
//! ```
//!
//! Stricter than the `safetensors` crate, which a test compares this with: that one accepts a tensor named twice (the last wins) and
//! white space before the header; both let one file show two readers two models. Offsets must cover the data from end to end, so that
//! nothing can hide in it. Beside the header's own bytes, memory is one entry per tensor that is really there: at most four times the
//! header in all.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{instead, json};
use crate::error::{Error, Fault, Place, Result};
use crate::quant::Format;
use crate::source::InputFile;

/// Longest header accepted, the limit of the `safetensors` crate.
pub const HEADER_BYTES_MAX: u64 = 100_000_000;
/// Most dimensions accepted; GGUF holds 4, frameworks write at most 8.
pub const DIMS_MAX: usize = 8;
/// Most entries of `__metadata__`; the largest known, of LoRA trainers, have about 100.
pub const METADATA_ENTRIES_MAX: usize = 8192;

macro_rules! dtypes {
    ($($name:ident $bits:literal $format:expr;)*) => {
        /// An element type of safetensors, spelled as in the file.
        #[allow(non_camel_case_types, missing_docs)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Dtype { $($name),* }

        impl Dtype {
            /// The type of that name.
            pub fn from_name(name: &str) -> Option<Dtype> {
                match name { $(stringify!($name) => Some(Dtype::$name),)* _ => None }
            }

            /// As in the file.
            pub fn name(self) -> &'static str {
                match self { $(Dtype::$name => stringify!($name)),* }
            }

            /// Bits of one element.
            pub fn bits(self) -> u64 {
                match self { $(Dtype::$name => $bits),* }
            }

            /// The same type in GGUF, where there is one.
            pub fn format(self) -> Option<Format> {
                match self { $(Dtype::$name => $format),* }
            }
        }
    };
}

dtypes! {
    BOOL 8 None;
    F4 4 None;
    F6_E2M3 6 None;
    F6_E3M2 6 None;
    U8 8 None;
    I8 8 Some(Format::I8);
    F8_E5M2 8 None;
    F8_E4M3 8 None;
    F8_E8M0 8 None;
    F8_E4M3FNUZ 8 None;
    F8_E5M2FNUZ 8 None;
    I16 16 Some(Format::I16);
    U16 16 None;
    F16 16 Some(Format::F16);
    BF16 16 Some(Format::BF16);
    I32 32 Some(Format::I32);
    U32 32 None;
    F32 32 Some(Format::F32);
    C64 64 None;
    F64 64 Some(Format::F64);
    I64 64 Some(Format::I64);
    U64 64 None;
}

/// One tensor of the header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Unique in the file.
    pub name: String,
    /// Row-major, at most [`DIMS_MAX`].
    pub shape: Vec<u64>,
    /// How each element is stored.
    pub dtype: Dtype,
    /// First byte, counted from the end of the header.
    pub begin: u64,
    /// One past the last byte.
    pub end: u64,
}

/// Reads and checks the header of `file`. Returns the tensors by name, and the byte at which their data starts.
///
/// # Errors
/// Whatever [`parse`] finds, a header that is not there, or a file that only pretends to be safetensors.
pub fn read(file: &InputFile) -> Result<(Vec<Entry>, u64)> {
    let path = file.path();
    let size_bytes = file.size_bytes();
    let malformed = |fault, detail: String| Error::malformed(path, Place::Byte(0), fault, detail);
    if size_bytes < 8 {
        return Err(malformed(Fault::HeaderTooSmall, format!("{size_bytes} bytes cannot be a safetensors file")));
    }
    let mut start = [0; 8];
    file.read_exact_at(&mut start, 0)?;
    let header_bytes = u64::from_le_bytes(start);
    let mut first = [0];
    if size_bytes > 8 {
        file.read_exact_at(&mut first, 8)?;
    }
    // The length of a header may begin like another format's name: 896 like a pickle's.
    let is_plausible = header_bytes <= HEADER_BYTES_MAX && first == *b"{";
    if let Some(what) = recognise(&start).filter(|_| !is_plausible) {
        return Err(malformed(Fault::UnsupportedFormat, what.to_owned()));
    }
    if header_bytes < 2 {
        return Err(malformed(Fault::HeaderTooSmall, format!("a header of {header_bytes} bytes")));
    }
    if header_bytes > HEADER_BYTES_MAX {
        let detail = format!("a header of {header_bytes} bytes is over the limit of {HEADER_BYTES_MAX}");
        return Err(malformed(Fault::HeaderTooLarge, detail));
    }
    let data_start = 8 + header_bytes;
    if data_start > size_bytes {
        let detail = format!("the header ends at byte {data_start}, the file at {size_bytes}; the download may be incomplete");
        return Err(malformed(Fault::HeaderLength, detail));
    }
    let mut header = vec![0; header_bytes as usize];
    file.read_exact_at(&mut header, 8)?;
    Ok((parse(path, &header, size_bytes - data_start)?, data_start))
}

/// Files that people rename or that a failed download leaves, by their first bytes.
fn recognise(start: &[u8; 8]) -> Option<&'static str> {
    match start {
        [b'P', b'K', 3, 4, ..] | [0x80, 2..=5, ..] => Some("a PyTorch pickle file, which can run code; convert it to safetensors"),
        [b'G', b'G', b'U', b'F', ..] => Some("a GGUF file, not safetensors; use it with `ggforge quantize`"),
        _ => instead(start),
    }
}

/// Parses the JSON of a header. `data_bytes` is what the file holds after it. Returns the tensors by name.
///
/// # Errors
/// A typed fault for each rule of the format.
pub fn parse(path: &Path, header: &[u8], data_bytes: u64) -> Result<Vec<Entry>> {
    if header.first() != Some(&b'{') {
        return Err(Error::malformed(path, Place::Byte(8), Fault::HeaderStart, "the header does not start with `{`"));
    }
    // The format pads with spaces only; other white space would be one more way to make two files of one.
    let padding = header.iter().rposition(|&byte| byte == b'}').map_or(&[][..], |last| &header[last + 1..]);
    if padding.iter().any(|&byte| byte != b' ') {
        let at = (8 + header.len() - padding.len()) as u64;
        return Err(Error::malformed(
            path,
            Place::Byte(at),
            Fault::Json,
            "something other than spaces after the header's last `}`",
        ));
    }
    let text = json::check(path, header)?;
    let mut entries = deserialize(path, text)?;
    entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = entries.windows(2).find(|pair| pair[0].name == pair[1].name) {
        let name = Place::Tensor(pair[0].name.clone());
        return Err(Error::malformed(path, name, Fault::DuplicateKey, "the same tensor twice in the header"));
    }
    for entry in &entries {
        check_entry(entry).map_err(|(fault, detail)| Error::malformed(path, Place::Tensor(entry.name.clone()), fault, detail))?;
    }
    check_coverage(path, &entries, data_bytes)?;
    Ok(entries)
}

fn deserialize(path: &Path, text: &str) -> Result<Vec<Entry>> {
    let stop = Stop::default();
    let run = || {
        // Counting first makes room for exactly the entries there are, so that no doubling breaks the memory bound.
        let mut json = serde_json::Deserializer::from_str(text);
        let n_entries = json.deserialize_map(Count)?;
        let mut json = serde_json::Deserializer::from_str(text);
        let entries = json.deserialize_map(Entries { n_entries, stop: &stop })?;
        json.end()?;
        Ok(entries)
    };
    run().map_err(|e: serde_json::Error| match stop.0.take() {
        Some((place, fault, detail)) if e.is_data() => Error::malformed(path, place, fault, detail),
        _ => match json::syntax_error(path, text, &e) {
            Error::Malformed { path, place: Place::Byte(at), fault, detail } => {
                Error::Malformed { path, place: Place::Byte(8 + at), fault, detail }
            }
            other => other,
        },
    })
}

/// Rules that concern one tensor alone.
fn check_entry(entry: &Entry) -> Result<(), (Fault, String)> {
    check_name(&entry.name).map_err(|detail| (Fault::InvalidName, detail.to_owned()))?;
    if entry.end < entry.begin {
        return Err((Fault::OffsetInvalid, format!("data_offsets [{}, {}] end before they begin", entry.begin, entry.end)));
    }
    let bits = entry
        .shape
        .iter()
        // `max(1)`: a zero must not hide that the other dimensions overflow.
        .try_fold(entry.dtype.bits(), |n, &dim| n.checked_mul(dim.max(1)))
        .map(|bits| if entry.shape.contains(&0) { 0 } else { bits })
        .ok_or_else(|| (Fault::ShapeOverflow, format!("shape {:?} overflows", entry.shape)))?;
    if !bits.is_multiple_of(8) {
        return Err((Fault::SubByte, format!("{bits} bits of {} are not whole bytes", entry.dtype.name())));
    }
    let stored_bytes = entry.end - entry.begin;
    if bits / 8 != stored_bytes {
        let detail = format!("{} of shape {:?} needs {} bytes, has {stored_bytes}", entry.dtype.name(), entry.shape, bits / 8);
        return Err((Fault::SizeMismatch, detail));
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("an empty tensor name");
    }
    if name.chars().any(char::is_control) {
        return Err("a control character in a tensor name");
    }
    // No name is ever used as a path here, but others do that.
    if name.starts_with('/') || name.split(['/', '\\']).any(|part| part == "..") {
        return Err("a tensor name that is a path");
    }
    Ok(())
}

/// The tensors must cover the data from end to end: no overlap, no hole, no rest.
fn check_coverage(path: &Path, entries: &[Entry], data_bytes: u64) -> Result<()> {
    // An index of 4 bytes each: the header limit keeps the count far below 2^32.
    let mut by_offset: Vec<u32> = (0..entries.len() as u32).collect();
    by_offset.sort_unstable_by_key(|&i| (entries[i as usize].begin, entries[i as usize].end));
    let mut covered = 0;
    for entry in by_offset.iter().map(|&i| &entries[i as usize]) {
        if entry.begin != covered {
            let (fault, what) = match entry.begin < covered {
                true => (Fault::OffsetMismatch, "overlaps another tensor"),
                false => (Fault::NotCovered, "leaves a hole before it"),
            };
            let detail = format!("{what}: starts at {}, expected {covered}", entry.begin);
            return Err(Error::malformed(path, Place::Tensor(entry.name.clone()), fault, detail));
        }
        covered = entry.end;
    }
    if covered > data_bytes {
        let detail = format!("tensors need {covered} bytes of data, the file has {data_bytes}; the download may be incomplete");
        return Err(Error::malformed(path, Place::File, Fault::DataPastEof, detail));
    }
    if covered < data_bytes {
        let detail = format!("{} bytes after the last tensor belong to none", data_bytes - covered);
        return Err(Error::malformed(path, Place::File, Fault::NotCovered, detail));
    }
    Ok(())
}

/// Why deserialization was stopped by a rule of the format rather than by JSON.
#[derive(Default)]
struct Stop(RefCell<Option<(Place, Fault, String)>>);

impl Stop {
    /// Records the reason, unless an inner one is there already, and returns the error that unwinds the parser.
    fn with<E: serde::de::Error>(&self, place: Place, fault: Fault, detail: impl Into<String>) -> E {
        self.0.borrow_mut().get_or_insert_with(|| (place, fault, detail.into()));
        E::custom("stopped")
    }
}

/// Counts the keys of an object.
struct Count;

impl<'de> Visitor<'de> for Count {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<usize, A::Error> {
        let mut n = 0;
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
            n += 1;
        }
        Ok(n)
    }
}

/// The header object.
struct Entries<'a> {
    n_entries: usize,
    stop: &'a Stop,
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = Vec<Entry>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<Entry>, A::Error> {
        let mut entries = Vec::with_capacity(self.n_entries);
        let mut has_metadata = false;
        while let Some(name) = map.next_key::<String>()? {
            if name != "__metadata__" {
                entries.push(map.next_value_seed(EntryOf { name, stop: self.stop })?);
                continue;
            }
            if has_metadata {
                return Err(self.stop.with(Place::Field(name), Fault::DuplicateKey, "the same key twice in the header"));
            }
            has_metadata = true;
            map.next_value_seed(StringMap { stop: self.stop })?;
        }
        Ok(entries)
    }
}

/// `__metadata__`: strings by unique names, or null, as some writers leave it. Nothing in it is needed.
struct StringMap<'a> {
    stop: &'a Stop,
}

impl<'de> DeserializeSeed<'de> for StringMap<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let stop = self.stop;
        deserializer
            .deserialize_any(self)
            .map_err(|_| stop.with(Place::Field("__metadata__".into()), Fault::Json, "not an object of strings"))
    }
}

impl<'de> Visitor<'de> for StringMap<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            map.next_value::<String>()?;
            if names.len() == METADATA_ENTRIES_MAX {
                let detail = format!("more than {METADATA_ENTRIES_MAX} entries");
                return Err(self.stop.with(Place::Field("__metadata__".into()), Fault::HeaderTooLarge, detail));
            }
            if let Some(name) = names.replace(name) {
                let place = Place::Field(format!("__metadata__.{name}"));
                return Err(self.stop.with(place, Fault::DuplicateKey, "the same key twice in one object"));
            }
        }
        Ok(())
    }
}

/// The value of one tensor's name.
struct EntryOf<'a> {
    name: String,
    stop: &'a Stop,
}

impl<'de> DeserializeSeed<'de> for EntryOf<'_> {
    type Value = Entry;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Entry, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EntryOf<'_> {
    type Value = Entry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        let place = || Place::Tensor(self.name.clone());
        let fault = |fault, detail: &str| self.stop.with(place(), fault, detail);
        let once = |seen: bool| if seen { Err(fault(Fault::DuplicateKey, "the same field twice")) } else { Ok(()) };
        while let Some(field) = map.next_key::<String>()? {
            match field.as_str() {
                "dtype" => {
                    once(dtype.is_some())?;
                    let name = map.next_value::<String>().map_err(|_| fault(Fault::UnknownDtype, "dtype is not a string"))?;
                    let known = Dtype::from_name(&name).ok_or_else(|| fault(Fault::UnknownDtype, &format!("dtype {name}")))?;
                    dtype = Some(known);
                }
                "shape" => {
                    once(shape.is_some())?;
                    let dims = map.next_value_seed(UpTo::<DIMS_MAX>);
                    let dims = dims.map_err(|_| fault(Fault::Json, "shape is not a list of unsigned integers"))?;
                    let found =
                        dims.as_slice().ok_or_else(|| fault(Fault::TooManyDims, &format!("more than {DIMS_MAX} dimensions")))?;
                    shape = Some(found.to_vec());
                }
                "data_offsets" => {
                    once(offsets.is_some())?;
                    let found = map.next_value_seed(UpTo::<2>).ok();
                    match found.as_ref().and_then(Found::as_slice) {
                        Some(&[begin, end]) => offsets = Some((begin, end)),
                        _ => return Err(fault(Fault::OffsetInvalid, "data_offsets are not two unsigned integers")),
                    }
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        let missing = |field: &str| fault(Fault::Json, &format!("{field} is missing"));
        let dtype = dtype.ok_or_else(|| missing("dtype"))?;
        let shape = shape.ok_or_else(|| missing("shape"))?;
        let (begin, end) = offsets.ok_or_else(|| missing("data_offsets"))?;
        Ok(Entry { name: self.name, shape, dtype, begin, end })
    }
}

/// Reads a list of unsigned integers into an array, without allocating.
struct UpTo<const N: usize>;

/// What [`UpTo`] found: `len` may exceed the array, then the list was too long.
struct Found<const N: usize> {
    items: [u64; N],
    len: usize,
}

impl<const N: usize> Found<N> {
    /// `None` when the list was longer than the array.
    fn as_slice(&self) -> Option<&[u64]> {
        self.items.get(..self.len)
    }
}

impl<'de, const N: usize> DeserializeSeed<'de> for UpTo<N> {
    type Value = Found<N>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found<N>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, const N: usize> Visitor<'de> for UpTo<N> {
    type Value = Found<N>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of unsigned integers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Found<N>, A::Error> {
        let mut found = Found { items: [0; N], len: 0 };
        while let Some(item) = seq.next_element::<u64>()? {
            if let Some(slot) = found.items.get_mut(found.len) {
                *slot = item;
            }
            found.len += 1;
        }
        Ok(found)
    }
}
