//! `ggforge inspect`: what a GGUF file holds, without reading a weight.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use ggforge::Error;
use ggforge::error::{Fault, Place};
use ggforge::gguf::{ArrayRef, File, Limits, Model, ValueRef, ValueType, Warning, keys};
use ggforge::plan::recipe::PRESETS;
use ggforge::quant::{self, Format};
use ggforge::report::{Cell, Table, decimal_bytes, decimal_count, printable, shortened};
use ggforge::source::{SourceTensor, TensorSource};
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::{Value as Json, json};

use crate::exit::{self, Failure};
use crate::terminal::width;
use crate::{Run, Session, terminal};

/// Show what a GGUF file holds: metadata, tensors, bits per weight
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ggforge inspect model.gguf
  ggforge inspect llama-F16.gguf llama-Q8_0.gguf
  ggforge inspect model-00001-of-00003.gguf --tensors
  ggforge inspect model.gguf --key tokenizer.chat_template")]
pub struct Inspect {
    /// GGUF files, or any shard of a split model each
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// Print the whole value of one metadata key, and nothing else
    #[arg(long, value_name = "K", conflicts_with = "tensors")]
    key: Option<String>,
    /// Report as JSON on stdout
    #[arg(long)]
    json: bool,
    /// Read files beyond the documented limits
    #[arg(long)]
    no_limits: bool,
}

impl Run for Inspect {
    const NAME: &'static str = "inspect";
    const ALIASES: &'static [&'static str] = &["info"];

    fn run(self, _session: &Session) -> Result<(), Failure> {
        let limits = if self.no_limits { Limits::NONE } else { Limits::default() };
        // Before anything is printed.
        let opened = self.files.iter().map(|path| open(path, &limits)).collect::<Result<Vec<_>, Error>>()?;
        for (path, Opened { model, .. }) in self.files.iter().zip(&opened) {
            self.key.iter().try_for_each(|key| find(model, path, key).map(drop))?;
        }
        let is_list = self.files.len() > 1;
        for (index, (path, Opened { model, warnings, .. })) in self.files.iter().zip(&opened).enumerate() {
            exit::print(match (is_list, self.json, index) {
                (false, ..) | (_, false, 0) => "",
                (_, false, _) => "\n",
                (_, true, 0) => "[\n",
                (_, true, _) => ",\n",
            })?;
            if is_list && self.key.is_some() && !self.json {
                exit::print(&format!("{}:\n", printable(path.as_os_str().as_encoded_bytes())))?;
            }
            self.show(path, model, warnings)?;
        }
        exit::print(if is_list && self.json { "]\n" } else { "" })?;
        let mut missing = opened.into_iter().filter_map(|opened| opened.missing);
        let Some(first) = missing.next() else { return Ok(()) };
        missing.for_each(|other| terminal::warn(&other.to_string()));
        Err(first.into())
    }
}

impl Inspect {
    /// Prints what one file holds.
    fn show(&self, path: &Path, model: &Model, warnings: &[String]) -> Result<(), Failure> {
        if !self.json {
            warnings.iter().for_each(|warning| terminal::warn(warning));
        }
        let facts = Facts::of(model);
        match (&self.key, self.json) {
            (Some(key), false) => exit::print(&full_text(find(model, path, key)?)),
            (Some(key), true) => exit::print_json(&Entry { key, value: find(model, path, key)?, n_items_max: usize::MAX }),
            (None, false) => exit::print(&report_text(path, model, &facts, self.tensors)),
            (None, true) => exit::print_json(&Report::of(path, model, &facts, warnings, self.tensors.then_some(Tensors(model)))),
        }
    }
}

/// What there is to show.
struct Opened {
    model: Model,
    warnings: Vec<String>,
    /// How the command ends once it is shown, where the file is cut short.
    missing: Option<Error>,
}

/// The model and what is odd about it. A shard whose siblings are missing or do not fit can still be looked at by itself, and so can the
/// header of a file that is cut short.
fn open(path: &Path, limits: &Limits) -> Result<Opened, Error> {
    let mut warnings = Vec::new();
    let model = match Model::open_unmapped_within(path, limits) {
        Err(error @ Error::Malformed { fault: Fault::DataPastEof, .. }) => {
            let model = Model::open_cut(path, limits)?;
            if !model.shards().iter().flat_map(File::warnings).any(|warning| matches!(warning, Warning::CutShort { .. })) {
                warnings.push(alone(&error));
            }
            model
        }
        Err(error @ Error::Malformed { fault, .. }) if is_about_shards(fault) => {
            let model = Model::open_cut(path, limits)?;
            warnings.push(alone(&error));
            model
        }
        other => other?,
    };
    warnings.extend(model.note().map(str::to_owned));
    let mut missing = None;
    for shard in model.shards() {
        for warning in shard.warnings() {
            match warning {
                Warning::CutShort { n_bytes } => missing = Some(cut_short(shard, *n_bytes)),
                warning => warnings.push(format!("{}: {warning}", shard.path().display())),
            }
        }
    }
    Ok(Opened { model, warnings, missing })
}

fn alone(error: &Error) -> String {
    format!("only this shard is shown, as the whole model cannot be read: {error}")
}

fn cut_short(shard: &File<'_>, missing_bytes: u64) -> Error {
    let (there, whole) = (shard.size_bytes(), shard.size_bytes().saturating_add(missing_bytes));
    let percent = 100.0 * missing_bytes as f64 / whole as f64;
    let [there, whole, missing] = [there, whole, missing_bytes].map(decimal_bytes);
    let detail = format!(
        "cut short: {there} of {whole} are there, and {missing_bytes} bytes ({missing}, {percent:.1} %) are missing: the download, or \
         copy, did not finish"
    );
    Error::malformed(shard.path(), Place::File, Fault::DataPastEof, detail)
}

fn is_about_shards(fault: Fault) -> bool {
    use Fault::*;
    matches!(fault, SplitKeyType | SplitName | SplitOrder | ShardMissing | ShardMismatch | DuplicateTensor)
}

fn find<'a>(model: &'a Model, path: &Path, key: &str) -> Result<ValueRef<'a>, Error> {
    model.get(key).ok_or_else(|| {
        let similar: Vec<&str> = model.metadata().map(|(key, _)| key).filter(|known| known.contains(key)).take(3).collect();
        let hint = match similar.as_slice() {
            [] => "without --key all are listed".to_owned(),
            similar => format!("there is {}", similar.join(", ")),
        };
        Error::usage(format!("{} has no metadata key {key}; {hint}", path.display()))
    })
}

/// Figures of the whole model.
struct Facts {
    n_weights: u64,
    tensor_bytes: u64,
    file_bytes: u64,
    header_bytes: u64,
    /// Of tensor data that a file cut short should have.
    missing_bytes: u64,
    /// Number of tensors, weights and bytes.
    by_format: BTreeMap<Format, (u64, u64, u64)>,
}

impl Facts {
    fn of(model: &Model) -> Facts {
        let sum = |figure: fn(&File<'static>) -> u64| model.shards().iter().map(figure).sum();
        let (file_bytes, header_bytes) = (sum(File::size_bytes), sum(File::header_bytes));
        let missing_bytes = model.shards().iter().flat_map(File::warnings).map(|warning| match warning {
            Warning::CutShort { n_bytes } => *n_bytes,
            _ => 0,
        });
        let missing_bytes = missing_bytes.sum();
        let mut facts =
            Facts { n_weights: 0, tensor_bytes: 0, file_bytes, header_bytes, missing_bytes, by_format: BTreeMap::new() };
        for tensor in model.tensors() {
            let n_weights = n_weights(tensor);
            facts.n_weights += n_weights;
            facts.tensor_bytes += tensor.size_bytes;
            let (tensors, weights, bytes) = facts.by_format.entry(tensor.format).or_default();
            *tensors += 1;
            *weights += n_weights;
            *bytes += tensor.size_bytes;
        }
        facts
    }

    /// The formats, those that take most bytes first.
    fn table(&self) -> Table {
        let mut table = Table::new(&["type", "tensors", "weights", "size", "percent", "bits per weight"]);
        let mut formats: Vec<_> = self.by_format.iter().collect();
        formats.sort_by_key(|(_, (_, _, bytes))| std::cmp::Reverse(*bytes));
        for (format, &(tensors, weights, bytes)) in formats {
            let percent = 100.0 * bytes as f64 / self.tensor_bytes.max(1) as f64;
            let bits = bits_per_weight(bytes, weights).map_or(Cell::Empty, |bits| Cell::Fixed(bits, 2));
            let cells = [Cell::Count(tensors), Cell::About(weights), Cell::Bytes(bytes), Cell::Fixed(percent, 1), bits];
            let [tensors, weights, bytes, percent, bits] = cells;
            table.push([format.name().into(), tensors, weights, bytes, percent, bits]);
        }
        table
    }
}

fn n_weights(tensor: &SourceTensor) -> u64 {
    // The reader has checked that the product fits.
    tensor.shape.iter().product()
}

fn bits_per_weight(n_bytes: u64, n_weights: u64) -> Option<f64> {
    (n_weights > 0).then(|| quant::bits_per_weight(n_bytes, n_weights))
}

/// The name of the model's `general.file_type`.
fn file_type(model: &Model) -> Option<&'static str> {
    let id = model.get(keys::GENERAL_FILE_TYPE)?.as_u64()?;
    PRESETS.iter().find(|preset| u64::from(preset.file_type) == id).map(|preset| preset.name)
}

// The report for people.

/// What stands before the lines of a section.
const INDENT: &str = "  ";

fn report_text(path: &Path, model: &Model, facts: &Facts, with_tensors: bool) -> String {
    let mut text = summary(path, model, facts);
    let mut section = |title: &str, table: Table, titled: bool| {
        if !table.is_empty() {
            let width = width().saturating_sub(INDENT.len());
            let rows = if titled { table.text_within(width) } else { table.untitled_within(width) };
            text += &format!("\n{title}\n");
            rows.lines().for_each(|row| text += &format!("{INDENT}{row}\n"));
        }
    };
    if model.shards().len() > 1 {
        section("files", files_table(model), true);
    }
    section("metadata", metadata_table(model), false);
    section("types", facts.table(), true);
    if with_tensors {
        section("tensors", tensors_table(model), true);
    }
    text
}

fn summary(path: &Path, model: &Model, facts: &Facts) -> String {
    let architecture = model.get(keys::GENERAL_ARCHITECTURE).and_then(ValueRef::as_str).unwrap_or("unknown architecture");
    let mut text = format!("{}: {}", printable(path.to_string_lossy().as_bytes()), shortened(architecture.as_bytes(), 64));
    if let Some(name) = file_type(model) {
        text += &format!(", {name}");
    }
    let tensors = match model.tensors().len() {
        1 => "1 tensor".to_owned(),
        n => format!("{n} tensors"),
    };
    text += &match bits_per_weight(facts.tensor_bytes, facts.n_weights) {
        Some(bits) => format!("\n  {} weights in {tensors}, {bits:.2} bits per weight", decimal_count(facts.n_weights)),
        None => format!("\n  {tensors}, no weights"),
    };
    let (size, header) = (decimal_bytes(facts.file_bytes), decimal_bytes(facts.header_bytes));
    let version = model.shards().first().map_or(0, File::version);
    let alignment = model.shards().first().map_or(0, File::alignment);
    text + &format!("\n  {size}, of which header {header}; GGUF version {version}, alignment {alignment}\n")
}

fn files_table(model: &Model) -> Table {
    let mut table = Table::new(&["name", "tensors", "size"]);
    for shard in model.shards() {
        let name = shard.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        table.push([name.into(), Cell::Count(shard.n_tensors() as u64), Cell::Bytes(shard.size_bytes())]);
    }
    table
}

fn metadata_table(model: &Model) -> Table {
    let mut table = Table::new(&["key", "type", "value"]);
    // Looked up once: a hostile file can make a single value costly to decode, and entries many.
    let file_type = file_type(model);
    for (key, value) in model.metadata() {
        let shown = match (key, file_type) {
            (keys::GENERAL_FILE_TYPE, Some(name)) => format!("{} ({name})", short_text(value)),
            _ => short_text(value),
        };
        table.push([shortened(key.as_bytes(), KEY_CHARS_MAX).into(), type_text(value).into(), shown.into()]);
    }
    table
}

fn tensors_table(model: &Model) -> Table {
    let mut table = Table::new(&["name", "type", "shape", "weights", "size", "offset", "file"]);
    for tensor in model.tensors() {
        let shape = tensor.shape.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ");
        let shape = if shape.is_empty() { "scalar".to_owned() } else { shape };
        let (weights, size, offset) =
            (Cell::About(n_weights(tensor)), Cell::Bytes(tensor.size_bytes), Cell::Count(tensor.offset_bytes));
        let file = if model.shards().len() > 1 { Cell::Count(tensor.file as u64 + 1) } else { Cell::Empty };
        table.push([tensor.name.as_str().into(), tensor.format.name().into(), shape.into(), weights, size, offset, file]);
    }
    table
}

/// `u32`, or `string[32000]` for an array.
fn type_text(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Array(array) => format!("{}[{}]", array.element_type(), array.len()),
        other => other.value_type().to_string(),
    }
}

/// Characters of a key in the list of metadata: real ones have half of that.
const KEY_CHARS_MAX: usize = 100;

/// Characters of a value in the list of metadata.
const VALUE_CHARS_MAX: usize = 72;

/// A value on one line of bounded length.
fn short_text(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::String([]) => "\"\"".to_owned(),
        ValueRef::String(bytes) => shortened(bytes, VALUE_CHARS_MAX),
        ValueRef::Array(array) => short_array(array),
        other => scalar_text(other),
    }
}

fn short_array(array: ArrayRef<'_>) -> String {
    let mut text = String::from("[");
    for (i, item) in array.iter().enumerate() {
        let item = match item {
            ValueRef::String(bytes) => format!("\"{}\"", shortened(bytes, VALUE_CHARS_MAX / 2).replace('"', "\\\"")),
            other => scalar_text(other),
        };
        let separator = if i == 0 { "" } else { ", " };
        if text.chars().count() + separator.len() + item.chars().count() > VALUE_CHARS_MAX - 4 {
            text += separator;
            text.push('…');
            break;
        }
        text += separator;
        text += &item;
    }
    text + "]"
}

fn scalar_text(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::U8(x) => x.to_string(),
        ValueRef::I8(x) => x.to_string(),
        ValueRef::U16(x) => x.to_string(),
        ValueRef::I16(x) => x.to_string(),
        ValueRef::U32(x) => x.to_string(),
        ValueRef::I32(x) => x.to_string(),
        ValueRef::F32(x) => format!("{x:?}"),
        ValueRef::Bool(x) => x.to_string(),
        ValueRef::U64(x) => x.to_string(),
        ValueRef::I64(x) => x.to_string(),
        ValueRef::F64(x) => format!("{x:?}"),
        ValueRef::String(bytes) => printable(bytes),
        ValueRef::Array(_) => "[…]".to_owned(),
    }
}

/// A whole value: an array with one item per line; a string with its line breaks and tabs, everything else of it escaped.
fn full_text(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::String(bytes) => {
            let pieces = bytes.split_inclusive(|byte| matches!(byte, b'\n' | b'\t'));
            let piece = |piece: &[u8]| match piece.split_last() {
                Some((b'\n', line)) => printable(line) + "\n",
                Some((b'\t', field)) => printable(field) + "\t",
                _ => printable(piece),
            };
            let text = pieces.map(piece).collect::<String>();
            if text.ends_with('\n') { text } else { text + "\n" }
        }
        ValueRef::Array(array) => array.iter().map(|item| scalar_text(item) + "\n").collect(),
        other => scalar_text(other) + "\n",
    }
}

// The report for programs.

/// Items of an array in the JSON list of metadata. `--key` gives them all.
const ITEMS_MAX: usize = 16;

/// What is known of a model. Its lists are made item by item while they are written: a header can hold millions.
#[derive(Serialize)]
struct Report<'a> {
    path: Cow<'a, str>,
    version: Option<u32>,
    alignment: Option<u64>,
    architecture: Option<&'a str>,
    file_type: Option<&'static str>,
    n_tensors: usize,
    n_weights: u64,
    bits_per_weight: Option<f64>,
    tensor_bytes: u64,
    header_bytes: u64,
    file_bytes: u64,
    missing_bytes: u64,
    files: Json,
    metadata: Entries<'a>,
    types: Json,
    warnings: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Tensors<'a>>,
}

impl<'a> Report<'a> {
    fn of(path: &'a Path, model: &'a Model, facts: &Facts, warnings: &'a [String], tensors: Option<Tensors<'a>>) -> Report<'a> {
        Report {
            path: path.to_string_lossy(),
            version: model.shards().first().map(File::version),
            alignment: model.shards().first().map(File::alignment),
            architecture: model.get(keys::GENERAL_ARCHITECTURE).and_then(ValueRef::as_str),
            file_type: file_type(model),
            n_tensors: model.tensors().len(),
            n_weights: facts.n_weights,
            bits_per_weight: bits_per_weight(facts.tensor_bytes, facts.n_weights),
            tensor_bytes: facts.tensor_bytes,
            header_bytes: facts.header_bytes,
            file_bytes: facts.file_bytes,
            missing_bytes: facts.missing_bytes,
            files: files_table(model).json(),
            metadata: Entries(model),
            types: facts.table().json(),
            warnings,
            tensors,
        }
    }
}

/// Every metadata entry, arrays shortened.
struct Entries<'a>(&'a Model);

impl Serialize for Entries<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let entry = |(key, value)| Entry { key, value, n_items_max: ITEMS_MAX };
        serializer.collect_seq(self.0.metadata().map(entry))
    }
}

/// Every tensor.
struct Tensors<'a>(&'a Model);

impl Serialize for Tensors<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.tensors().iter().map(|tensor| tensor_json(self.0, tensor)))
    }
}

fn tensor_json(model: &Model, tensor: &SourceTensor) -> Json {
    json!({
        "name": tensor.name,
        "type": tensor.format.name(),
        "shape": tensor.shape,
        "n_weights": n_weights(tensor),
        "size_bytes": tensor.size_bytes,
        "offset_bytes": tensor.offset_bytes,
        "file": model.files()[tensor.file].path().file_name().map(|name| name.to_string_lossy()),
    })
}

/// A metadata entry, and how many items of an array are wanted.
struct Entry<'a> {
    key: &'a str,
    value: ValueRef<'a>,
    n_items_max: usize,
}

impl Serialize for Entry<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_map(None)?;
        fields.serialize_entry("key", self.key)?;
        fields.serialize_entry("type", self.value.value_type().name())?;
        match self.value {
            ValueRef::Array(array) => {
                fields.serialize_entry("element_type", array.element_type().name())?;
                fields.serialize_entry("length", &array.len())?;
                fields.serialize_entry("value", &Items(array, self.n_items_max))?;
                fields.serialize_entry("shortened", &(array.len() > self.n_items_max))?;
            }
            other => fields.serialize_entry("value", &value_json(other))?,
        }
        fields.end()
    }
}

/// So many items of an array.
struct Items<'a>(ArrayRef<'a>, usize);

impl Serialize for Items<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().take(self.1).map(value_json))
    }
}

/// Text that is not UTF-8 and numbers that JSON cannot hold are given as the strings that people see.
fn value_json(value: ValueRef<'_>) -> Json {
    match value {
        ValueRef::String(bytes) => std::str::from_utf8(bytes).map_or_else(|_| printable(bytes).into(), Json::from),
        ValueRef::Bool(x) => x.into(),
        ValueRef::I8(x) => x.into(),
        ValueRef::I16(x) => x.into(),
        ValueRef::I32(x) => x.into(),
        ValueRef::I64(x) => x.into(),
        // The shortest digits that name the f32, not those of the f64 next to it.
        ValueRef::F32(x) if x.is_finite() => scalar_text(value).parse::<f64>().map_or(Json::Null, Json::from),
        ValueRef::F64(x) if x.is_finite() => x.into(),
        other if matches!(other.value_type(), ValueType::F32 | ValueType::F64) => scalar_text(other).into(),
        other => other.as_u64().map_or(Json::Null, Json::from),
    }
}
