//! The current format of importance matrix files: a GGUF file with two F32 tensors per entry.
//!
//! ```text
//! general.type = "imatrix" | imatrix.datasets [string] | imatrix.chunk_count u32 | imatrix.chunk_size u32
//! NAME.in_sum2   [n_matrices, n_columns]   sums of squares
//! NAME.counts    [n_matrices, 1]           tokens, as f32
//! ```

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::content::Content;
use super::entry::COUNT_MAX;
use super::{CHUNK_SIZE_DEFAULT, Entry, Imatrix, Unit};
use crate::error::{Error, Fault, Place, Result};
use crate::gguf::{Array, File, Header, Limits, Metadata, TensorInfo, TensorSpec, Value, ValueRef, keys};
use crate::quant::Format;

/// What the name of a tensor of sums ends in.
const SUMS_SUFFIX: &str = ".in_sum2";
/// What the name of a tensor of counts ends in.
const COUNTS_SUFFIX: &str = ".counts";

pub(super) fn read(content: &Content<'_>) -> Result<Imatrix> {
    let file = match content {
        Content::File(input) => File::header_of(input, &Limits::default())?,
        Content::Bytes { path, bytes } => File::parse(path, bytes)?,
    };
    let mut entries = BTreeMap::new();
    // Tensors with other endings are statistics that newer versions of llama-imatrix may add.
    for sums in file.tensors() {
        let Some(name) = sums.name.strip_suffix(SUMS_SUFFIX) else { continue };
        let Some(counts) = file.tensor(&format!("{name}{COUNTS_SUFFIX}")) else {
            return Err(invalid(content, name, format!("{name}{SUMS_SUFFIX} is there, {name}{COUNTS_SUFFIX} is not")));
        };
        entries.insert(name.to_owned(), read_entry(content, name, &sums, &counts)?);
    }
    let lonely =
        file.tensors().find_map(|tensor| tensor.name.strip_suffix(COUNTS_SUFFIX).filter(|name| !entries.contains_key(*name)));
    if let Some(name) = lonely {
        return Err(invalid(content, name, format!("{name}{COUNTS_SUFFIX} is there, {name}{SUMS_SUFFIX} is not")));
    }
    if entries.is_empty() {
        let kind = file.get(keys::GENERAL_TYPE).and_then(ValueRef::as_str).unwrap_or("model");
        let detail = format!("no tensor is called NAME{SUMS_SUFFIX}: a GGUF file of type {kind}, not an importance matrix");
        return Err(Error::malformed(content.path(), Place::File, Fault::ImatrixInvalid, detail));
    }
    Ok(Imatrix {
        path: content.path().to_owned(),
        entries,
        datasets: read_datasets(content, &file)?,
        chunk_count: read_u32(content, &file, keys::IMATRIX_CHUNK_COUNT)?,
        chunk_size: read_u32(content, &file, keys::IMATRIX_CHUNK_SIZE)?,
        unit: Unit::Tokens,
    })
}

fn read_entry(content: &Content<'_>, name: &str, sums: &TensorInfo<'_>, counts: &TensorInfo<'_>) -> Result<Entry> {
    let sums = read_tensor(content, sums)?;
    let counts = read_tensor(content, counts)?;
    // llama.cpp rounds as well; its own files hold whole numbers.
    let rounded = counts.iter().map(|&count| match count.round() {
        whole if (0.0..=COUNT_MAX as f32).contains(&whole) => Ok(whole as u64),
        _ => Err(count),
    });
    let counts = rounded.collect::<Result<Vec<u64>, f32>>().map_err(|count| {
        let place = Place::Tensor(format!("{name}{COUNTS_SUFFIX}"));
        Error::malformed(content.path(), place, Fault::ImatrixValue, format!("a count is {count}"))
    })?;
    Entry::new(sums, counts).map_err(|fault| fault.in_file(content.path(), name))
}

fn read_tensor(content: &Content<'_>, tensor: &TensorInfo<'_>) -> Result<Vec<f32>> {
    if tensor.format != Format::F32 {
        return Err(invalid(content, tensor.name, format!("stored as {}; F32 is required", tensor.format)));
    }
    let n = usize::try_from(tensor.size_bytes / size_of::<f32>() as u64)
        .map_err(|_| invalid(content, tensor.name, "larger than this machine's memory".to_owned()))?;
    content.read_f32(n, tensor.offset_bytes)
}

fn read_datasets(content: &Content<'_>, file: &File<'_>) -> Result<Vec<String>> {
    let Some(value) = file.get(keys::IMATRIX_DATASETS) else { return Ok(Vec::new()) };
    let wrong = || {
        let detail = format!("of type {}; an array of strings is required", value.value_type());
        Error::malformed(content.path(), Place::Field(keys::IMATRIX_DATASETS.to_owned()), Fault::ValueType, detail)
    };
    let items = value.as_array().ok_or_else(wrong)?;
    items.iter().map(|item| if let ValueRef::String(bytes) = item { Ok(lossy(bytes)) } else { Err(wrong()) }).collect()
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A number that llama-quantize insists on; we can do without.
fn read_u32(content: &Content<'_>, file: &File<'_>, key: &str) -> Result<u32> {
    match file.get(key) {
        None => Ok(0),
        Some(ValueRef::U32(number)) => Ok(number),
        Some(other) => {
            let detail = format!("of type {}; u32 is required", other.value_type());
            Err(Error::malformed(content.path(), Place::Field(key.to_owned()), Fault::ValueType, detail))
        }
    }
}

fn invalid(content: &Content<'_>, name: &str, detail: String) -> Error {
    Error::malformed(content.path(), Place::Tensor(name.to_owned()), Fault::ImatrixInvalid, detail)
}

impl Imatrix {
    /// Writes a GGUF file, byte for byte as llama-imatrix does. Counts in chunks become counts of tokens, as in [`Imatrix::add`].
    ///
    /// # Errors
    /// `Usage` for names that GGUF cannot hold (55 bytes are possible), `Io` where `out` fails.
    pub fn write_gguf(&self, out: &mut dyn Write) -> Result<()> {
        if self.unit == Unit::Chunks {
            let mut in_tokens = Imatrix::new(CHUNK_SIZE_DEFAULT);
            in_tokens.add(self.clone())?;
            return in_tokens.write_gguf(out);
        }
        let header = Header { metadata: self.metadata(), tensors: self.tensor_specs() };
        let layout = header.layout()?;
        let failed = |e: io::Error| Error::io(&self.path, "write", e);
        out.write_all(&layout.header).map_err(failed)?;
        let alignment = header.alignment()?;
        for entry in self.entries.values() {
            let counts: Vec<f32> = entry.counts().iter().map(|&count| count as f32).collect();
            for values in [entry.sums(), &counts] {
                let mut bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                bytes.resize(bytes.len().next_multiple_of(alignment as usize), 0);
                out.write_all(&bytes).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn metadata(&self) -> Metadata {
        let datasets = self.datasets.iter().map(|name| name.as_bytes().to_vec()).collect();
        vec![
            (keys::GENERAL_TYPE.to_owned(), Value::from("imatrix")),
            (keys::IMATRIX_DATASETS.to_owned(), Value::Array(Array::String(datasets))),
            (keys::IMATRIX_CHUNK_COUNT.to_owned(), Value::U32(self.chunk_count)),
            (keys::IMATRIX_CHUNK_SIZE.to_owned(), Value::U32(self.chunk_size)),
        ]
    }

    /// Two per entry. Leading dimensions of 1 are left out, as ggml does.
    fn tensor_specs(&self) -> Vec<TensorSpec> {
        let spec = |name: &str, suffix: &str, n_matrices: usize, n_columns: usize| {
            let shape = if n_matrices == 1 { vec![n_columns as u64] } else { vec![n_matrices as u64, n_columns as u64] };
            TensorSpec { name: format!("{name}{suffix}"), format: Format::F32, shape }
        };
        let pair = |(name, entry): (&String, &Entry)| {
            let n_counts = entry.counts().len();
            [spec(name, SUMS_SUFFIX, n_counts, entry.sums_per_count()), spec(name, COUNTS_SUFFIX, n_counts, 1)]
        };
        self.entries.iter().flat_map(pair).collect()
    }
}
