//! What quantizers get, and what a person should know about it before the work starts.

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use super::{Entry, Imatrix};
use crate::error::{Error, Fault, Place, Result};

/// The importance of every column of a tensor, for each of its experts.
#[derive(Clone, PartialEq)]
pub struct Importance {
    /// `[n_experts, n_columns]`, row-major.
    values: Vec<f32>,
    n_columns: usize,
    without_data: Vec<usize>,
    /// The file it is from.
    path: Arc<Path>,
}

/// The largest importance that quantizers can weigh errors with. Their sums hold squares of importances times fourth powers of weights: from
/// some 2^58 on they overflow f32 for ordinary weights, and blocks are worse without a word. Real ones stay below 1e10.
pub const IMPORTANCE_MAX: f32 = 1e15;

/// A tensor that is to be quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// GGUF name.
    pub name: &'a str,
    /// Matrices stacked in it; 1 for a plain matrix.
    pub n_experts: usize,
    /// Weights per row.
    pub n_columns: usize,
}

/// How far an importance matrix covers a model.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Coverage {
    /// Tensors with an entry.
    pub matched: Vec<Matched>,
    /// Tensors without an entry.
    pub without_entry: Vec<String>,
    /// Entries that no tensor asked for.
    pub unused: Vec<String>,
}

/// A tensor that has an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matched {
    /// GGUF name.
    pub name: String,
    /// Matrices stacked in it.
    pub n_experts: usize,
    /// Experts that no activation reached.
    pub without_data: Vec<usize>,
}

/// Names or numbers that one message lists at most.
const LISTED_MAX: usize = 8;

impl Importance {
    /// Importance 1 everywhere: what a format that cannot do without gets for a tensor that nothing is known of.
    ///
    /// # Panics
    /// When there are no columns, or more values than memory can hold.
    pub fn flat(n_experts: usize, n_columns: usize) -> Importance {
        assert!(n_columns > 0, "a tensor has columns");
        let n_values = n_experts.checked_mul(n_columns).expect("a tensor's values fit an index");
        Importance { values: vec![1.0; n_values], n_columns, without_data: (0..n_experts).collect(), path: Path::new("").into() }
    }

    /// The importance matrix's file, for messages; empty where there is none.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses importances beyond [`IMPORTANCE_MAX`]. `name`: of the tensor.
    ///
    /// # Errors
    /// `ImatrixValue`, of the matrix's file.
    pub fn check_bound(&self, name: &str) -> Result<()> {
        let Some(at) = self.values.iter().position(|value| *value > IMPORTANCE_MAX) else { return Ok(()) };
        let [row, column] = [at / self.n_columns, at % self.n_columns].map(|index| index as u64);
        let place = Place::Weight { tensor: name.to_owned(), row, column };
        let detail = format!(
            "the importance is {:e}; beyond {IMPORTANCE_MAX:e} the sums of a quantizer overflow: the matrix is broken, or not one of \
             this model (--exclude-weights leaves a tensor's values out)",
            self.values[at]
        );
        Err(Error::malformed(&self.path, place, Fault::ImatrixValue, detail))
    }

    /// The importance of each column: `[n_columns]`, finite, not negative, not all zero.
    ///
    /// # Panics
    /// When there is no such expert.
    pub fn expert(&self, expert: usize) -> &[f32] {
        let start = expert * self.n_columns;
        &self.values[start..start + self.n_columns]
    }

    /// Weights per row.
    pub fn n_columns(&self) -> usize {
        self.n_columns
    }

    /// Matrices stacked in the tensor.
    pub fn n_experts(&self) -> usize {
        self.values.len() / self.n_columns
    }

    /// Experts of which nothing is known, so that all their columns have importance 1.
    pub fn without_data(&self) -> &[usize] {
        &self.without_data
    }
}

impl std::fmt::Debug for Importance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Importance")
            .field("n_experts", &self.n_experts())
            .field("n_columns", &self.n_columns)
            .field("without_data", &self.without_data)
            .finish_non_exhaustive()
    }
}

impl Imatrix {
    /// The importance of a tensor's columns; `None` where there is no entry for it.
    ///
    /// # Errors
    /// `Malformed` when the entry has another number of values: the matrix belongs to another model.
    pub fn importance(&self, wanted: Wanted<'_>) -> Result<Option<Importance>> {
        let Some(entry) = self.entry_of(wanted)? else { return Ok(None) };
        let Wanted { n_experts, n_columns, .. } = wanted;
        let without_data = without_data(entry, n_experts, n_columns);
        let mut values: Vec<f32> = entry.values(0..entry.sums().len()).map(|value| value.unwrap_or(1.0)).collect();
        for expert in &without_data {
            values[expert * n_columns..][..n_columns].fill(1.0);
        }
        Ok(Some(Importance { values, n_columns, without_data, path: self.path.as_path().into() }))
    }

    /// What the matrix knows about the tensors to be quantized. Makes no importances, so it is cheap.
    ///
    /// # Errors
    /// As for [`Imatrix::importance`], for the first tensor that it concerns.
    pub fn coverage(&self, wanted: &[Wanted<'_>]) -> Result<Coverage> {
        let mut coverage = Coverage::default();
        for &tensor in wanted {
            let Wanted { name, n_experts, n_columns } = tensor;
            match self.entry_of(tensor)? {
                Some(entry) => {
                    let without_data = without_data(entry, n_experts, n_columns);
                    coverage.matched.push(Matched { name: name.to_owned(), n_experts, without_data });
                }
                None => coverage.without_entry.push(name.to_owned()),
            }
        }
        let used: std::collections::HashSet<&str> = wanted.iter().map(|tensor| tensor.name).collect();
        coverage.unused = self.entries.keys().filter(|name| !used.contains(name.as_str())).cloned().collect();
        Ok(coverage)
    }

    fn entry_of(&self, wanted: Wanted<'_>) -> Result<Option<&Entry>> {
        let Wanted { name, n_experts, n_columns } = wanted;
        let Some(entry) = self.entries.get(name) else { return Ok(None) };
        let found = entry.sums().len();
        if n_columns > 0 && n_experts.checked_mul(n_columns) == Some(found) {
            return Ok(Some(entry));
        }
        let experts = if n_experts == 1 { String::new() } else { format!("{n_experts} experts of ") };
        let detail = format!(
            "the importance matrix has {found} values for it, the tensor has {experts}{n_columns} columns: the matrix was made for \
             another model (convert and quantize can leave this tensor's values out: --exclude-weights)"
        );
        Err(Error::malformed(&self.path, Place::Tensor(name.to_owned()), Fault::ImatrixLength, detail))
    }
}

/// Experts that no activation reached, or none that differs from zero. The entry has `n_experts * n_columns` values.
fn without_data(entry: &Entry, n_experts: usize, n_columns: usize) -> Vec<usize> {
    let unknown = |&expert: &usize| {
        let start = expert * n_columns;
        entry.values(start..start + n_columns).all(|value| value.is_none_or(|value| value == 0.0))
    };
    (0..n_experts).filter(unknown).collect()
}

impl Coverage {
    /// One line: `importance for 28 of 29 tensors, 254 of 256 experts in them; none for token_embd.weight; unused: output.weight`.
    pub fn summary(&self) -> String {
        let n_tensors = self.matched.len() + self.without_entry.len();
        let mut text = format!("importance for {} of {n_tensors} tensors", self.matched.len());
        let stacked = || self.matched.iter().filter(|matched| matched.n_experts > 1);
        let n_experts: usize = stacked().map(|matched| matched.n_experts).sum();
        if n_experts > 0 {
            let n_unknown: usize = stacked().map(|matched| matched.without_data.len()).sum();
            let _ = write!(text, ", {} of {n_experts} experts in them", n_experts - n_unknown);
        }
        for (what, names) in [("none for", &self.without_entry), ("unused:", &self.unused)] {
            if !names.is_empty() {
                let _ = write!(text, "; {what} {}", listed(names, LISTED_MAX));
            }
        }
        text
    }

    /// True where there are tensors to be quantized, and an entry for none of them: the matrix is of another model.
    pub fn matches_nothing(&self) -> bool {
        self.matched.is_empty() && !self.without_entry.is_empty()
    }

    /// One line where no entry is for any tensor; one for each tensor that has an entry with nothing, or not everything, in it.
    pub fn warnings(&self) -> Vec<String> {
        let nothing = self.matches_nothing().then(|| {
            let (wanted, there) = (listed(&self.without_entry, 1), listed(&self.unused, 1));
            format!("the importance matrix matches no tensor: it is of another model, and all columns count the same (it has {there}; needed are {wanted})")
        });
        nothing.into_iter().chain(self.matched.iter().filter_map(Matched::warning)).collect()
    }
}

impl Matched {
    /// Says which experts nothing is known of, and what happens to them.
    pub fn warning(&self) -> Option<String> {
        let Matched { name, n_experts, without_data } = self;
        let n_unknown = without_data.len();
        if n_unknown == 0 {
            return None;
        }
        if n_unknown == *n_experts {
            return Some(format!("{name}: its entry in the importance matrix holds no data; all its columns count the same"));
        }
        let (experts, their) = if n_unknown == 1 { ("expert", "its") } else { ("experts", "their") };
        let listed = listed(without_data, LISTED_MAX);
        Some(format!("{name}: no calibration token reached {experts} {listed} of {n_experts}; all {their} columns count the same"))
    }
}

/// The first `n_max`, and how many there are more.
fn listed<T: ToString>(items: &[T], n_max: usize) -> String {
    let first: Vec<String> = items.iter().take(n_max).map(T::to_string).collect();
    match items.len().saturating_sub(n_max) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}
