//! Importance matrices: how much each column of a weight matrix matters, measured by running a model over some text.
//!
//! Knows llama.cpp's two file formats and what llama-quantize makes of them; does not know models, formats or files to write to.
//!
//! For a matrix that computes `y = W x`, calibration sums the squares of each component of `x` over all tokens. An entry holds these
//! sums and the number of tokens behind them, for every expert of a tensor that stacks experts:
//!
//! ```text
//! entry  sums    [n_experts, n_columns]   sum over tokens of x^2
//!        counts  [n_experts] or [1]       tokens that reached the expert; one count where all share it
//!
//! importance of column c for expert e = sums[e, c] / counts[e]       the mean of x^2, an f32 division
//!                                     = 1 for every c, where nothing is known of e
//! ```
//!
//! A quantizer multiplies the squared error of every weight in column `c` by a factor that grows with this number. The factor differs
//! between formats and is documented where each is defined, in [`crate::quant`]; [`Format::quantize_rows`] takes the row that
//! [`Importance::expert`] returns. Three kinds exist in ggml:
//!
//! | formats | weight of the error at `x` |
//! |---|---|
//! | F16, BF16, Q8_0, TQ1_0, TQ2_0, MXFP4, NVFP4, Q1_0, Q2_0 | none: an importance matrix changes nothing |
//! | Q6_K | the importance alone |
//! | all others | importance times `sqrt(sigma^2 + x^2)`, with `sigma^2` a multiple of the mean of `x^2` over the row or super-block |
//!
//! # What the two file formats say
//! [`Imatrix::open`] tells them apart by their content. A GGUF file holds sums and token counts as above; the older `.dat` holds, per
//! tensor, `mean of x^2 * n_chunks` and `n_chunks`, so that the same division gives the same importance, but experts that nothing
//! reached cannot be told from those with a mean of 1.
//!
//! # Where this departs from llama-quantize
//! It gives importance 1 to experts with a count of zero; so do we, and also to experts whose sums are all zero, which it passes on to
//! searches that then divide by zero. It takes negative values; we refuse them. Nothing else differs, to the bit.
//!
//! [`Format::quantize_rows`]: crate::quant::Format::quantize_rows

mod content;
mod dat;
mod entry;
mod gguf;
mod importance;
mod merge;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Fault, Place, Result};
use crate::source::InputFile;

use content::Content;
pub use entry::{COUNT_MAX, Entry, EntryFault, Statistics};
pub use importance::{Coverage, IMPORTANCE_MAX, Importance, Matched, Wanted};
pub use merge::CHUNK_SIZE_DEFAULT;

/// The content of an importance matrix file, or of several merged ones.
#[derive(Debug, Clone, PartialEq)]
pub struct Imatrix {
    /// Where it was read from, for messages; empty for one made in memory.
    pub path: PathBuf,
    /// By the name of the tensor, as in the model.
    pub entries: BTreeMap<String, Entry>,
    /// The texts it was computed from, as their files were named.
    pub datasets: Vec<String>,
    /// Chunks of text that it was computed on; 0 where the file does not say.
    pub chunk_count: u32,
    /// Tokens per chunk; 0 where the file does not say.
    pub chunk_size: u32,
    /// What the counts of the entries count.
    pub unit: Unit,
}

/// What the counts of an [`Imatrix`] count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Tokens, and the sums are over tokens: GGUF files.
    Tokens,
    /// Chunks of unknown length, and the sums are over the chunks' means: `.dat` files.
    Chunks,
}

impl Imatrix {
    /// Reads a file of either format.
    ///
    /// # Errors
    /// `Io` and `NotRegularFile`; `Malformed` for everything that breaks the format's rules, and for NaN, infinite and negative values.
    pub fn open(path: impl AsRef<Path>) -> Result<Imatrix> {
        read(&Content::File(&InputFile::open(path.as_ref())?))
    }

    /// Reads a file that is already in memory. `path` is only its name in errors.
    ///
    /// # Errors
    /// As for [`Imatrix::open`].
    pub fn parse(path: impl AsRef<Path>, bytes: &[u8]) -> Result<Imatrix> {
        read(&Content::Bytes { path: path.as_ref(), bytes })
    }

    /// Keeps only the entries that llama-quantize's options of the same names would keep: with `exclude`, those whose name contains none
    /// of these texts; with `include`, those whose name contains at least one.
    ///
    /// # Errors
    /// `Usage` when both are given.
    pub fn filter(&mut self, include: &[String], exclude: &[String]) -> Result<()> {
        if !include.is_empty() && !exclude.is_empty() {
            return Err(Error::usage("--include-weights and --exclude-weights cannot be used together"));
        }
        let named = |name: &str, texts: &[String]| texts.iter().any(|text| name.contains(text.as_str()));
        self.entries.retain(|name, _| !named(name, exclude) && (include.is_empty() || named(name, include)));
        Ok(())
    }
}

/// Which of the two formats it is, the first four bytes say.
fn read(content: &Content<'_>) -> Result<Imatrix> {
    let mut magic = [0; 4];
    if content.size_bytes() < magic.len() as u64 {
        let detail = format!("{} bytes are no importance matrix", content.size_bytes());
        return Err(Error::malformed(content.path(), Place::Byte(0), Fault::Truncated, detail));
    }
    content.read_exact_at(&mut magic, 0)?;
    // As the first number of a .dat file, these letters would mean more entries than any file can hold.
    if &magic == b"GGUF" { gguf::read(content) } else { dat::read(content) }
}
