//! What is known of one tensor.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use crate::error::{Error, Fault, Place};

/// Sums of squared activations of one tensor, and how many activations there were.
///
/// All sums are finite and not negative, there is at least one sum, and the number of sums is a multiple of the number of counts.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    sums: Vec<f32>,
    counts: Vec<u64>,
}

/// Why sums and counts make no [`Entry`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum EntryFault {
    /// No sums, no counts, or sums that cannot be dealt out evenly.
    Shape {
        /// Number of sums.
        n_sums: usize,
        /// Number of counts.
        n_counts: usize,
    },
    /// A sum that no squares can add up to.
    Sum {
        /// Which matrix of the tensor.
        matrix: usize,
        /// Which column of that matrix.
        column: usize,
        /// The sum.
        value: f32,
    },
    /// A count beyond [`COUNT_MAX`].
    Count {
        /// Which matrix of the tensor.
        matrix: usize,
        /// The count.
        count: u64,
    },
}

/// The largest count: every whole number up to it has an f64, and no calibration gets near.
pub const COUNT_MAX: u64 = 1 << 53;

/// What a table shows of an entry, over the importances of all its columns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Statistics {
    /// Smallest count.
    pub count_min: u64,
    /// Largest count.
    pub count_max: u64,
    /// Columns whose importance is zero although activations were counted.
    pub n_zero: usize,
    /// Smallest importance.
    pub min: f32,
    /// Largest importance.
    pub max: f32,
    /// Mean importance.
    pub mean: f64,
}

impl Entry {
    /// `sums`: `[n_matrices, n_columns]`, row-major; `counts`: `[n_matrices]`, or one count for all.
    ///
    /// # Errors
    /// What the lengths or values make impossible.
    pub fn new(sums: Vec<f32>, counts: Vec<u64>) -> Result<Entry, EntryFault> {
        let (n_sums, n_counts) = (sums.len(), counts.len());
        if n_sums == 0 || n_counts == 0 || !n_sums.is_multiple_of(n_counts) {
            return Err(EntryFault::Shape { n_sums, n_counts });
        }
        let entry = Entry { sums, counts };
        if let Some(index) = entry.sums.iter().position(|sum| !sum.is_finite() || *sum < 0.0) {
            let n_columns = entry.sums_per_count();
            let (matrix, column, value) = (index / n_columns, index % n_columns, entry.sums[index]);
            return Err(EntryFault::Sum { matrix, column, value });
        }
        match entry.counts.iter().position(|&count| count > COUNT_MAX) {
            Some(matrix) => Err(EntryFault::Count { matrix, count: entry.counts[matrix] }),
            None => Ok(entry),
        }
    }

    /// `[n_matrices, n_columns]`, row-major.
    pub fn sums(&self) -> &[f32] {
        &self.sums
    }

    /// `[n_matrices]`, or one count for all.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// How many sums belong to each count.
    pub(super) fn sums_per_count(&self) -> usize {
        self.sums.len() / self.counts.len()
    }

    /// The parts again, to build another entry from.
    pub(super) fn into_parts(self) -> (Vec<f32>, Vec<u64>) {
        (self.sums, self.counts)
    }

    /// The importance of each value in `range`; `None` where there was no activation to count.
    pub(super) fn values(&self, range: Range<usize>) -> impl Iterator<Item = Option<f32>> {
        let per_count = self.sums_per_count();
        let start = range.start;
        self.sums[range].iter().enumerate().map(move |(i, sum)| match self.counts[(start + i) / per_count] {
            0 => None,
            count => Some(sum / count as f32),
        })
    }

    /// Counts and importances in short.
    pub fn statistics(&self) -> Statistics {
        let values = || self.values(0..self.sums.len()).flatten();
        let n_values = values().count();
        Statistics {
            count_min: self.counts.iter().copied().min().unwrap_or(0),
            count_max: self.counts.iter().copied().max().unwrap_or(0),
            n_zero: values().filter(|&value| value == 0.0).count(),
            min: values().reduce(f32::min).unwrap_or(0.0),
            max: values().reduce(f32::max).unwrap_or(0.0),
            mean: values().map(f64::from).sum::<f64>() / n_values.max(1) as f64,
        }
    }
}

impl EntryFault {
    /// The error of a file that holds such an entry for the tensor `name`.
    pub(super) fn in_file(self, path: &Path, name: &str) -> Error {
        let tensor = name.to_owned();
        let (place, fault) = match self {
            EntryFault::Shape { .. } => (Place::Tensor(tensor), Fault::ImatrixInvalid),
            EntryFault::Sum { matrix, column, .. } => {
                (Place::Weight { tensor, row: matrix as u64, column: column as u64 }, Fault::ImatrixValue)
            }
            EntryFault::Count { .. } => (Place::Tensor(tensor), Fault::ImatrixValue),
        };
        Error::malformed(path, place, fault, self.to_string())
    }
}

impl fmt::Display for EntryFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EntryFault::Shape { n_sums, n_counts } => write!(f, "{n_sums} sums cannot be dealt out to {n_counts} counts"),
            EntryFault::Sum { value, .. } => write!(f, "the sum is {value}; squares add up to a finite number, zero or more"),
            EntryFault::Count { matrix, count } => write!(f, "count {matrix} is {count}; {COUNT_MAX} is the most that makes sense"),
        }
    }
}
