//! Several calibration runs become one.

use std::num::NonZeroU32;
use std::path::PathBuf;

use super::entry::COUNT_MAX;
use super::{Entry, Imatrix, Unit};
use crate::error::{Error, Fault, Place, Result};

/// Tokens per chunk that llama-imatrix uses unless told otherwise.
pub const CHUNK_SIZE_DEFAULT: NonZeroU32 = NonZeroU32::new(512).unwrap();

impl Imatrix {
    /// One without entries, that others can be added to. `chunk_size`: tokens per chunk, which only matters for files that count in
    /// chunks, and for the number of chunks that the result states.
    pub fn new(chunk_size: NonZeroU32) -> Imatrix {
        Imatrix {
            path: PathBuf::new(),
            entries: Default::default(),
            datasets: Vec::new(),
            chunk_count: 0,
            chunk_size: chunk_size.get(),
            unit: Unit::Tokens,
        }
    }

    /// Adds the sums and counts of `part`, in f32 and in the order of the calls, as llama-imatrix does with its `--in-file`.
    ///
    /// Sums of a part that counts in chunks are multiplied by this matrix's chunk size first.
    ///
    /// # Errors
    /// `Malformed` when an entry has another number of values than its namesake here, or a sum becomes infinite. The matrix is then
    /// half merged and of no use.
    pub fn add(&mut self, part: Imatrix) -> Result<()> {
        let tokens = match part.unit {
            Unit::Tokens => 1,
            Unit::Chunks => self.chunk_size,
        };
        for (name, entry) in part.entries {
            let known = self.entries.remove(&name);
            let merged = merge(known, entry, tokens)
                .map_err(|(fault, detail)| Error::malformed(&part.path, Place::Tensor(name.clone()), fault, detail))?;
            self.entries.insert(name, merged);
        }
        self.datasets.extend(part.datasets);
        let count_max = self.entries.values().flat_map(|entry| entry.counts()).max().copied().unwrap_or(0);
        self.chunk_count = u32::try_from(count_max / u64::from(self.chunk_size.max(1))).unwrap_or(u32::MAX);
        Ok(())
    }
}

/// `known + part`, where each count of `part` stands for `tokens` tokens.
fn merge(known: Option<Entry>, part: Entry, tokens: u32) -> Result<Entry, (Fault, String)> {
    let (mut sums, mut counts) = match known {
        Some(entry) => entry.into_parts(),
        None => (vec![0.0; part.sums().len()], vec![0; part.counts().len()]),
    };
    let (part_sums, mut part_counts) = part.into_parts();
    if sums.len() != part_sums.len() {
        let detail =
            format!("{} values here, {} in the files before: they were made for different models", part_sums.len(), sums.len());
        return Err((Fault::ImatrixLength, detail));
    }
    // Older files have one count for all experts of a tensor.
    let n_counts = counts.len().max(part_counts.len());
    for one in [&mut counts, &mut part_counts] {
        if one.len() == 1 {
            one.resize(n_counts, one[0]);
        }
    }
    if counts.len() != part_counts.len() {
        let detail = format!("{} counts here, {} in the files before", part_counts.len(), counts.len());
        return Err((Fault::ImatrixLength, detail));
    }
    for (sum, more) in sums.iter_mut().zip(&part_sums) {
        *sum += more * tokens as f32;
    }
    for (count, more) in counts.iter_mut().zip(&part_counts) {
        // Both are at most COUNT_MAX, so neither the product nor the sum wraps.
        *count += (more * u64::from(tokens)).min(COUNT_MAX);
    }
    Entry::new(sums, counts).map_err(|fault| (Fault::ImatrixValue, fault.to_string()))
}
