//! What quantizing did to the weights themselves: each tensor of some files beside the same tensor of the file they were made from.
//!
//! With `w` the weights of the base and `q` those of the other file, dequantized, all sums in f64 over a row, a tensor, all tensors of a
//! role, or a file:
//!
//! ```text
//! relative MSE    |w - q|^2 / |w|^2
//! SQNR            10 log10 (|w|^2 / |w - q|^2), in dB: 6 dB are one bit
//! max error       the largest |w_i - q_i|
//! cosine          <w, q> / (|w| |q|)
//! alpha           <w, w> / <w, q>: what q would have to be multiplied by so as not to shrink along w. Quantizers that minimise the
//!                 squared error give up the part of w that they cannot represent, so alpha is above 1, and at 2 to 3 bits by per cents
//! ```
//!
//! With an importance matrix each product is also counted with the importance of its column, which is the mean square of what the
//! column is multiplied by: `sum_j c_j (w_j - q_j)^2` is then the mean square error of the outputs, as far as inputs are independent.
//! Experts that no calibration token reached are left out of these sums.
//!
//! # What can be relied on
//! - Nothing depends on the number of threads or the CPU: every row has eight partial sums in fixed places, rows are added in order
//!   within pieces of fixed size, and pieces in order.
//! - Memory is a few MiB per thread, whatever the size of the files; weights are read by position.
//! - A tensor compared with itself has an error of exactly 0, an infinite SQNR, and a cosine and an alpha of exactly 1.
//! - A weight that is not finite is an error that names it: figures over it would mean nothing.

mod pair;
mod report;
mod sums;
mod walk;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use crate::error::Result;
use crate::imatrix::Imatrix;
use crate::names::{Role, block_of};
use crate::quant::{Format, bits_per_weight};
use crate::simd::Level;

pub use pair::Weights;
pub use report::{SortBy, file_json, files_table, page, roles_table, tensors_table, worst_rows_table};
pub use sums::Sums;

/// How to measure.
#[derive(Debug, Clone)]
pub struct Options<'a> {
    /// CPU level; does not change the result.
    pub level: Level,
    /// Worker threads; does not change the result. `None`: one per core.
    pub threads: Option<NonZeroUsize>,
    /// Gives the weighted figures.
    pub imatrix: Option<&'a Imatrix>,
    /// How many of the worst rows of each tensor are kept.
    pub worst_rows: usize,
    /// Only tensors whose name contains one of these; all where there is none.
    pub only: Vec<String>,
    /// No tensors whose name contains one of these.
    pub skip: Vec<String>,
}

impl Default for Options<'_> {
    fn default() -> Self {
        let (only, skip) = (Vec::new(), Vec::new());
        Options { level: Level::detect(), threads: None, imatrix: None, worst_rows: 10, only, skip }
    }
}

/// How a measurement is watched and stopped.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Called from worker threads with the bytes that have been read, and the bytes to read in all.
    pub progress: &'a (dyn Fn(u64, u64) + Sync),
    /// Setting it ends the measurement within the time of a few pieces.
    pub stop: &'a AtomicBool,
}

/// What was found about one file.
#[derive(Debug, Clone, PartialEq)]
pub struct FileError {
    /// The file, or the first of its shards.
    pub path: PathBuf,
    /// All shards together.
    pub size_bytes: u64,
    /// In the order in which llama.cpp writes them: those of no block first, then block by block.
    pub tensors: Vec<TensorError>,
}

/// What was found about one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorError {
    /// GGUF name.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// The block it belongs to, if any.
    pub block: Option<u32>,
    /// Row-major.
    pub shape: Vec<u64>,
    /// How the base stores it.
    pub base_format: Format,
    /// How the file stores it.
    pub format: Format,
    /// Its size in the file.
    pub size_bytes: u64,
    /// The sums that all figures come from.
    pub sums: Sums,
    /// The same with the importance of each column, where an importance matrix has some for the tensor.
    pub weighted: Option<Sums>,
    /// The rows with the largest relative error, the worst first; only rows that have any.
    pub worst_rows: Vec<RowError>,
}

/// The error of one row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowError {
    /// Row index, all leading dimensions flattened.
    pub row: u64,
    /// `|w - q|^2 / |w|^2` over the row; infinite for a row of zeros that are zeros no longer.
    pub relative_mse: f64,
}

/// What was found about some tensors together.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Group {
    /// How many tensors.
    pub n_tensors: usize,
    /// How many weights.
    pub n_weights: u64,
    /// Their size.
    pub size_bytes: u64,
    /// Sums over all of them.
    pub sums: Sums,
    /// Sums over those of which an importance matrix knows something, if there are such.
    pub weighted: Option<Sums>,
}

/// Compares each of `files` with `base`, tensor by tensor, with one reading of `base`.
///
/// # Errors
/// `Malformed` for a tensor that is missing on one side, has another shape, or holds a weight that is not finite, and for an importance
/// matrix of another model; `Unsupported` for a tensor that holds no weights; `Usage` when no tensor is left; `InputChanged`, `Io`
/// and `Interrupted` as their names say.
pub fn measure(base: &Weights<'_>, files: &[Weights<'_>], options: &Options<'_>, watch: Watch<'_>) -> Result<Vec<FileError>> {
    let pairs = pair::pairs(base, files, options)?;
    let found = walk::walk(&pairs, options, watch)?;
    for input in std::iter::once(base).chain(files).flat_map(|weights| weights.source().files()) {
        input.check_unchanged()?;
    }
    let mut errors: Vec<FileError> = files
        .iter()
        .map(|file| FileError { path: file.path().to_owned(), size_bytes: file.size_bytes(), tensors: Vec::new() })
        .collect();
    for (pair, found) in pairs.iter().zip(found) {
        for ((error, tensor), found) in errors.iter_mut().zip(&pair.others).zip(found) {
            error.tensors.push(TensorError {
                name: pair.name.to_owned(),
                role: Role::of(pair.name),
                block: block_of(pair.name),
                shape: pair.shape.to_vec(),
                base_format: pair.base.format(),
                format: tensor.format(),
                size_bytes: tensor.source_bytes(0..tensor.n_rows()),
                sums: found.sums,
                weighted: pair.importance.as_ref().map(|_| found.weighted),
                worst_rows: found.worst_rows,
            });
        }
    }
    Ok(errors)
}

impl TensorError {
    /// Number of weights.
    pub fn n_weights(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Bits of the file per weight.
    pub fn bits_per_weight(&self) -> f64 {
        bits_per_weight(self.size_bytes, self.n_weights())
    }
}

impl FileError {
    /// All tensors together.
    pub fn total(&self) -> Group {
        Group::of(&self.tensors)
    }

    /// The tensors of each role together, in the order of [`Role`].
    pub fn roles(&self) -> Vec<(Role, Group)> {
        let mut roles: Vec<Role> = self.tensors.iter().map(|tensor| tensor.role).collect();
        roles.sort_by_key(|role| *role as usize);
        roles.dedup();
        let of_role = |role: Role| Group::of(self.tensors.iter().filter(|tensor| tensor.role == role));
        roles.into_iter().map(|role| (role, of_role(role))).collect()
    }
}

impl Group {
    /// Adds up some tensors, in order.
    pub fn of<'a>(tensors: impl IntoIterator<Item = &'a TensorError>) -> Group {
        let mut group = Group::default();
        for tensor in tensors {
            group.n_tensors += 1;
            group.n_weights += tensor.n_weights();
            group.size_bytes += tensor.size_bytes;
            group.sums.add(&tensor.sums);
            if let Some(weighted) = &tensor.weighted {
                group.weighted.get_or_insert_default().add(weighted);
            }
        }
        group
    }

    /// Bits of the file per weight.
    pub fn bits_per_weight(&self) -> f64 {
        bits_per_weight(self.size_bytes, self.n_weights)
    }
}
