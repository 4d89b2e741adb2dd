//! Finished matrices in a folder, so that a pass that was stopped goes on where it was, and further types of the same model by the same
//! text are made without rounding again what is there.
//!
//! ```text
//! FOLDER/layer-3-1.gguf     one file for each step of a layer, and head.gguf
//!   general.type = "calibration" | ggforge.checkpoint.version, .model, .text u32
//!   .matrices [string] | .first_rows [u32] | .lambdas [f32], 0 for importance | .errors, .plain_errors [f64]
//!   "0", "1", ...  [n_rows, n_cols]   the blocks of each
//! ```
//!
//! What is kept are blocks and not moments: for a model of 1.2 billion weights moments take 2.8 GB, for one of 8 billion 19 GB, more than
//! the model, and rounding takes longer than collecting them. A file is of one model and one text, by checksums of all their bytes;
//! nothing in it is believed before it is checked.

use std::fs;
use std::path::{Path, PathBuf};

use crc32fast::Hasher;

use super::choice::{Choice, LAMBDAS, Made, Method};
use crate::error::{Error, Fault, Place, Result};
use crate::gguf::{Array, ArrayRef, File, Header, Limits, Metadata, Model, TensorSpec, Value, ValueRef, keys};
use crate::memory::{filled, zeros};
use crate::model::{Batch, StepMatrix};
use crate::pipeline::{Existing, write_file};
use crate::quant::Format;
use crate::simd::Level;
use crate::source::{InputFile, TensorSource};

/// Of how blocks are made: whatever changes them changes this.
const VERSION: u32 = 1;

const GENERAL_TYPE: &str = "calibration";

/// Bytes of a model that are read at a time.
const READ_BYTES: usize = 4 << 20;

/// A folder of finished matrices.
#[derive(Debug)]
pub(super) struct Kept {
    folder: PathBuf,
    model: u32,
    text: u32,
}

impl Kept {
    /// The folder for a model and a text, of which the batches from `n_seen` on are held out. It is made where there is none.
    ///
    /// # Errors
    /// `Io`, and what reading the model can meet.
    pub fn open(folder: &Path, model: &Model, batches: &[Batch<'_>], n_seen: usize) -> Result<Kept> {
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, "create", e))?;
        Ok(Kept { folder: folder.to_owned(), model: checksum_of_model(model)?, text: checksum_of_text(batches, n_seen) })
    }

    fn path(&self, step: &str) -> PathBuf {
        self.folder.join(format!("{step}.gguf"))
    }

    /// What is kept of a step with these matrices.
    ///
    /// # Errors
    /// `Usage` for a file of another model, text or version; `Malformed` for one that breaks its rules; `Io`.
    pub fn read(&self, step: &str, matrices: &[StepMatrix]) -> Result<Vec<Made>> {
        let path = self.path(step);
        if !path.exists() {
            return Ok(Vec::new());
        }
        let input = InputFile::open(&path)?;
        let file = File::header_of(&input, &Limits::default())?;
        if file.get(keys::GENERAL_TYPE).and_then(ValueRef::as_str) != Some(GENERAL_TYPE) {
            return Err(invalid(&path, "general.type is not \"calibration\": another kind of file".to_owned()));
        }
        let is = |key: &str, value: u32| file.get(key).and_then(ValueRef::as_u64) == Some(u64::from(value));
        let of_same = [
            (keys::CHECKPOINT_VERSION, VERSION, "was made by another version"),
            (keys::CHECKPOINT_MODEL, self.model, "is of another model"),
            (keys::CHECKPOINT_TEXT, self.text, "is of another text, or of more or fewer chunks of it"),
        ];
        if let Some((.., what)) = of_same.iter().find(|(key, value, _)| !is(key, *value)) {
            return Err(Error::usage(format!("{} {what}; take another --checkpoint folder", path.display())));
        }
        let n = file.n_tensors();
        let array = |key: &'static str| {
            let found = file.get(key).and_then(ValueRef::as_array).filter(|array| array.len() == n);
            found.ok_or_else(|| invalid(&path, format!("{key} is no array of {n} values")))
        };
        let names: Vec<&str> = strings(array(keys::CHECKPOINT_MATRICES)?);
        let number = |value: ValueRef<'_>| value.as_f64().or_else(|| value.as_u64().map(|value| value as f64));
        let numbers = |key| array(key).map(|array| array.iter().filter_map(number).collect::<Vec<f64>>());
        let (first_rows, lambdas) = (numbers(keys::CHECKPOINT_FIRST_ROWS)?, numbers(keys::CHECKPOINT_LAMBDAS)?);
        let (errors, plain_errors) = (numbers(keys::CHECKPOINT_ERRORS)?, numbers(keys::CHECKPOINT_PLAIN_ERRORS)?);
        if [names.len(), first_rows.len(), lambdas.len(), errors.len(), plain_errors.len()] != [n; 5] {
            return Err(invalid(&path, "arrays of other types than names and numbers".to_owned()));
        }
        let mut kept: Vec<Made> = Vec::new();
        for index in 0..n {
            let name = names[index];
            let place =
                |detail: String| Error::malformed(&path, Place::Tensor(index.to_string()), Fault::CheckpointInvalid, detail);
            let tensor = file.tensor(&index.to_string()).ok_or_else(|| place("is missing".to_owned()))?;
            let is_of = |matrix: &&StepMatrix| matrix.name == name && matrix.rows.start as f64 == first_rows[index];
            let matrix = matrices.iter().find(is_of).ok_or_else(|| place("is of no matrix of this step".to_owned()))?;
            if tensor.shape != [matrix.rows.len() as u64, matrix.n_cols as u64] || !tensor.format.can_quantize() {
                return Err(place(format!("{name} as {:?} in {}", tensor.shape, tensor.format)));
            }
            let lambda = LAMBDAS.into_iter().find(|lambda| f64::from(*lambda) == lambdas[index]);
            let method = match lambda {
                Some(lambda) => Method::Calibrated { lambda },
                None if lambdas[index] == 0.0 => Method::Importance,
                None => return Err(place(format!("a damping of {}", lambdas[index]))),
            };
            let (error, plain_error) = (errors[index], plain_errors[index]);
            // Both NaN would pass as equal bits.
            if !(error >= 0.0 && error <= plain_error) {
                return Err(place(format!("an error of {error}, by importance {plain_error}")));
            }
            let choice = Choice { name: name.to_owned(), format: tensor.format, method, error, plain_error };
            let first_row = matrix.rows.start;
            if kept.iter().any(|made| made.is_of(name, first_row, tensor.format)) {
                return Err(place(format!("{name} in {} is there twice", tensor.format)));
            }
            let mut blocks: Vec<u8> = filled(tensor.size_bytes as usize, 0)?;
            input.read_exact_at(&mut blocks, tensor.offset_bytes)?;
            if !are_finite(tensor.format, &blocks, matrix.n_cols)? {
                return Err(place(format!("blocks of {name} hold what is no number")));
            }
            kept.push(Made { first_row, blocks, choice });
        }
        Ok(kept)
    }

    /// Keeps the matrices of a step, instead of those that were kept of it.
    ///
    /// # Errors
    /// `Io`.
    pub fn write(&self, step: &str, matrices: &[StepMatrix], made: &[Made]) -> Result<()> {
        let columns_of = |made: &Made| {
            let is_of = |matrix: &&StepMatrix| matrix.name == made.choice.name && matrix.rows.start == made.first_row;
            matrices.iter().find(is_of).map(|matrix| (matrix.rows.len() as u64, matrix.n_cols as u64))
        };
        let specs = made.iter().enumerate().map(|(index, made)| {
            let (n_rows, n_cols) = columns_of(made).ok_or_else(|| Error::Internal("a matrix of another step".to_owned()))?;
            Ok(TensorSpec { name: index.to_string(), format: made.choice.format, shape: vec![n_rows, n_cols] })
        });
        let tensors = specs.collect::<Result<Vec<_>>>()?;
        let layout = Header { metadata: self.metadata(made), tensors }.layout()?;
        let len = usize::try_from(layout.file_bytes).map_err(|_| Error::Internal("blocks beyond memory".to_owned()))?;
        let mut bytes: Vec<u8> = filled(len, 0)?;
        bytes[..layout.header.len()].copy_from_slice(&layout.header);
        for (made, offset) in made.iter().zip(&layout.offsets_bytes) {
            bytes[*offset as usize..][..made.blocks.len()].copy_from_slice(&made.blocks);
        }
        write_file(&self.path(step), &bytes, Existing::Replace, &[])
    }

    fn metadata(&self, made: &[Made]) -> Metadata {
        let lambda = |made: &Made| match made.choice.method {
            Method::Calibrated { lambda } => lambda,
            Method::Importance => 0.0,
        };
        let names = made.iter().map(|made| made.choice.name.as_bytes().to_vec()).collect();
        let entry = |key: &str, value: Value| (key.to_owned(), value);
        vec![
            entry(keys::GENERAL_TYPE, Value::from(GENERAL_TYPE)),
            entry(keys::CHECKPOINT_VERSION, Value::U32(VERSION)),
            entry(keys::CHECKPOINT_MODEL, Value::U32(self.model)),
            entry(keys::CHECKPOINT_TEXT, Value::U32(self.text)),
            entry(keys::CHECKPOINT_MATRICES, Value::Array(Array::String(names))),
            entry(keys::CHECKPOINT_FIRST_ROWS, Value::Array(Array::U32(made.iter().map(|made| made.first_row as u32).collect()))),
            entry(keys::CHECKPOINT_LAMBDAS, Value::Array(Array::F32(made.iter().map(lambda).collect()))),
            entry(keys::CHECKPOINT_ERRORS, Value::Array(Array::F64(made.iter().map(|made| made.choice.error).collect()))),
            entry(
                keys::CHECKPOINT_PLAIN_ERRORS,
                Value::Array(Array::F64(made.iter().map(|made| made.choice.plain_error).collect())),
            ),
        ]
    }
}

fn invalid(path: &Path, detail: String) -> Error {
    Error::malformed(path, Place::File, Fault::CheckpointInvalid, detail)
}

fn strings(array: ArrayRef<'_>) -> Vec<&str> {
    array.iter().filter_map(ValueRef::as_str).collect()
}

/// True where all weights are numbers.
fn are_finite(format: Format, blocks: &[u8], n_cols: usize) -> Result<bool> {
    let row_bytes = format.row_bytes(n_cols as u64).unwrap_or(1).max(1) as usize;
    let mut weights = zeros(n_cols)?;
    Ok(blocks.chunks_exact(row_bytes).all(|row| {
        format.dequantize(Level::detect(), row, &mut weights);
        weights.iter().all(|w| w.is_finite())
    }))
}

/// Of all weights, and of what metadata says of how to compute with them.
fn checksum_of_model(model: &Model) -> Result<u32> {
    let mut hasher = Hasher::new();
    let architecture = model.architecture().unwrap_or_default();
    for (key, value) in model.metadata().filter(|(key, _)| key.starts_with(architecture)) {
        hasher.update(format!("{key} {value:?}").as_bytes());
    }
    let mut bytes: Vec<u8> = filled(READ_BYTES, 0)?;
    for tensor in model.tensors() {
        hasher.update(format!("{} {:?} {}", tensor.name, tensor.shape, tensor.format).as_bytes());
        let mut at = 0;
        while at < tensor.size_bytes {
            let n = (tensor.size_bytes - at).min(READ_BYTES as u64) as usize;
            model.files()[tensor.file].read_exact_at(&mut bytes[..n], tensor.offset_bytes + at)?;
            hasher.update(&bytes[..n]);
            at += n as u64;
        }
    }
    Ok(hasher.finalize())
}

/// Of all tokens, of where windows begin, and of which are held out.
fn checksum_of_text(batches: &[Batch<'_>], n_seen: usize) -> u32 {
    let mut hasher = Hasher::new();
    for (index, batch) in batches.iter().enumerate() {
        let of_batch = if index < n_seen { "seen" } else { "held out" };
        hasher.update(of_batch.as_bytes());
        batch.tokens.iter().for_each(|token| hasher.update(&token.to_le_bytes()));
        batch.sequences.iter().for_each(|window| hasher.update(&(window.len() as u64).to_le_bytes()));
    }
    hasher.finalize()
}
