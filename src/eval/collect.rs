//! Collecting an importance matrix: the sums of squares of what goes into every matrix of a model, over a text.
//!
//! The same statistics as llama-imatrix: every token of every window counts, the first half included, and matrices that are multiplied
//! with the same input have the same sums; each expert has its own, of the tokens that chose it. Sums are f64 here and rounded to the file's f32 once, where llama-imatrix adds up f32.

use std::collections::BTreeMap;
use std::path::Path;

use super::Windows;
use super::pass::{Counter, Watch, states, windows_per_batch};
use crate::error::{Error, Fault, Place, Result};
use crate::imatrix::{Entry, Imatrix, Unit};
use crate::model::{Backend, Network, Observed, Observer};

/// What to collect besides the matrices of the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputLayer {
    /// Nothing: the output matrix is seldom quantized by importance.
    Omit,
    /// The output matrix, or the embedding that stands for it, too.
    Collect,
}

/// Sums of one tensor.
struct Sums {
    /// `[n_matrices, n_columns]`.
    squares: Vec<f64>,
    /// `[n_matrices]`: tokens.
    counts: Vec<u64>,
}

/// Everything that was seen so far.
struct Collector<'a, B> {
    backend: &'a B,
    /// The model's file.
    path: &'a Path,
    sums: BTreeMap<String, Sums>,
}

/// Collects the importance matrix of a model on a text. `dataset` is what the file calls the text.
///
/// # Errors
/// What [`Network::evaluate`] meets; `NonFinite` when activations are no numbers, or too large for their squares to be; `Interrupted`.
pub fn measure<B: Backend>(
    network: &Network<'_, B>,
    windows: &Windows,
    output: OutputLayer,
    dataset: &str,
    watch: Watch<'_>,
) -> Result<Imatrix> {
    let mut counter = Counter::new(watch, windows.n_tokens());
    let mut collector = Collector { backend: network.backend(), path: network.path(), sums: BTreeMap::new() };
    for batch in windows.batches(windows_per_batch(network, windows)) {
        let states = states(network, &batch, &mut counter, &mut collector)?;
        if output == OutputLayer::Collect {
            let all: Vec<u32> = (0..batch.tokens.len() as u32).collect();
            let observed = Observed { names: &[network.output_name()], n_rows: all.len(), matrix: (0, 1) };
            collector.operand(observed, &network.normalised(&states, &all)?)?;
        }
    }
    let entries = collector.sums.into_iter().map(|(name, sums)| {
        let entry = Entry::new(sums.squares.iter().map(|&sum| sum as f32).collect(), sums.counts).map_err(|fault| {
            let detail = format!("the squares of what goes into it: {fault}");
            Error::malformed(network.path(), Place::Tensor(name.clone()), Fault::NonFinite, detail)
        })?;
        Ok((name, entry))
    });
    Ok(Imatrix {
        path: Default::default(),
        entries: entries.collect::<Result<_>>()?,
        datasets: vec![dataset.to_owned()],
        chunk_count: u32::try_from(windows.len()).unwrap_or(u32::MAX),
        chunk_size: u32::try_from(windows.ctx()).unwrap_or(u32::MAX),
        unit: Unit::Tokens,
    })
}

impl<B: Backend> Observer<B> for Collector<'_, B> {
    fn operand(&mut self, observed: Observed<'_>, x: &B::Operand) -> Result<()> {
        let Observed { names, n_rows, matrix: (matrix, n_matrices) } = observed;
        let squares = self.backend.sum_squares(x)?;
        for name in names {
            // Now, not when the whole text has been read.
            if let Some(square) = squares.iter().find(|square| !square.is_finite()) {
                let detail =
                    format!("what it is multiplied with has squares that add up to {square}: weights before it are broken");
                return Err(Error::malformed(self.path, Place::Tensor((*name).to_owned()), Fault::NonFinite, detail));
            }
            let empty = || Sums { squares: vec![0.0; squares.len() * n_matrices], counts: vec![0; n_matrices] };
            let sums = self.sums.entry((*name).to_owned()).or_insert_with(empty);
            sums.counts[matrix] += n_rows as u64;
            let of_matrix = &mut sums.squares[matrix * squares.len()..][..squares.len()];
            of_matrix.iter_mut().zip(&squares).for_each(|(sum, square)| *sum += square);
        }
        Ok(())
    }
}
