//! Collecting an importance matrix: the sums of squares of what goes into every matrix of a model, over a text.
//!
//! The same statistics as llama-imatrix: every token of every window counts, the first half included, and matrices that are multiplied
//! with the same input have the same sums; each expert has its own, of the tokens that chose it. Sums are f64 here and rounded to the file's f32 once, where llama-imatrix adds up f32.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;

use super::Windows;
use super::pass::{Counter, Watch, states, windows_per_batch};
use super::windows::Batch;
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
    /// Of the batch that is going through the model, in order: a batch that is broken off half way leaves no trace.
    pending: Vec<Pending>,
}

/// What a product adds.
struct Pending {
    names: Vec<String>,
    /// Which of how many matrices.
    matrix: (usize, usize),
    n_tokens: u64,
    squares: Vec<f64>,
}

/// Who keeps what is known before all of it is.
pub struct Checkpoints<'a> {
    /// Chunks from one checkpoint to the next, at least: whole batches count.
    pub every: NonZeroUsize,
    /// Gets the matrix of all chunks so far; also when the measurement is interrupted, if any chunk was done since the last time.
    pub save: &'a dyn Fn(Imatrix),
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
    measure_saving(network, windows, output, dataset, watch, None)
}

/// The same, with checkpoints on the way.
///
/// # Errors
/// As [`measure`].
pub fn measure_saving<B: Backend>(
    network: &Network<'_, B>,
    windows: &Windows,
    output: OutputLayer,
    dataset: &str,
    watch: Watch<'_>,
    checkpoints: Option<Checkpoints<'_>>,
) -> Result<Imatrix> {
    let mut counter = Counter::new(watch, windows.n_tokens());
    let mut collector = Collector { backend: network.backend(), path: network.path(), sums: BTreeMap::new(), pending: Vec::new() };
    let (mut n_done, mut n_saved) = (0, 0);
    for batch in windows.batches(windows_per_batch(network, windows)) {
        let collected = collector.batch(network, &batch, output, &mut counter);
        if let (Err(Error::Interrupted), Some(Checkpoints { save, .. })) = (&collected, &checkpoints)
            && n_done > n_saved
        {
            save(collector.imatrix(windows, n_done, dataset)?);
        }
        collected?;
        n_done += batch.sequences.len();
        if let Some(Checkpoints { every, save }) = &checkpoints
            && n_done - n_saved >= every.get()
            && n_done < windows.len()
        {
            save(collector.imatrix(windows, n_done, dataset)?);
            n_saved = n_done;
        }
    }
    collector.imatrix(windows, n_done, dataset)
}

impl<B: Backend> Collector<'_, B> {
    fn batch(&mut self, network: &Network<'_, B>, batch: &Batch, output: OutputLayer, counter: &mut Counter<'_>) -> Result<()> {
        self.pending.clear();
        let states = states(network, batch, counter, self)?;
        if output == OutputLayer::Collect {
            let all: Vec<u32> = (0..batch.tokens.len() as u32).collect();
            let observed = Observed { names: &[network.output_name()], n_rows: all.len(), matrix: (0, 1) };
            self.operand(observed, &network.normalised(&states, &all)?)?;
        }
        for Pending { names, matrix: (matrix, n_matrices), n_tokens, squares } in self.pending.drain(..) {
            for name in names {
                let empty = || Sums { squares: vec![0.0; squares.len() * n_matrices], counts: vec![0; n_matrices] };
                let sums = self.sums.entry(name).or_insert_with(empty);
                sums.counts[matrix] += n_tokens;
                let of_matrix = &mut sums.squares[matrix * squares.len()..][..squares.len()];
                of_matrix.iter_mut().zip(&squares).for_each(|(sum, square)| *sum += square);
            }
        }
        Ok(())
    }

    /// What the first `n_chunks` chunks give.
    fn imatrix(&self, windows: &Windows, n_chunks: usize, dataset: &str) -> Result<Imatrix> {
        let entries = self.sums.iter().map(|(name, sums)| {
            let squares = sums.squares.iter().map(|&sum| sum as f32).collect();
            let entry = Entry::new(squares, sums.counts.clone()).map_err(|fault| {
                let detail = format!("the squares of what goes into it: {fault}");
                Error::malformed(self.path, Place::Tensor(name.clone()), Fault::NonFinite, detail)
            })?;
            Ok((name.clone(), entry))
        });
        Ok(Imatrix {
            path: Default::default(),
            entries: entries.collect::<Result<_>>()?,
            datasets: vec![dataset.to_owned()],
            chunk_count: u32::try_from(n_chunks).unwrap_or(u32::MAX),
            chunk_size: u32::try_from(windows.ctx()).unwrap_or(u32::MAX),
            unit: Unit::Tokens,
        })
    }
}

impl<B: Backend> Observer<B> for Collector<'_, B> {
    fn operand(&mut self, observed: Observed<'_>, x: &B::Operand) -> Result<()> {
        let Observed { names, n_rows, matrix } = observed;
        let squares = self.backend.sum_squares(x)?;
        for name in names {
            // Now, not when the whole text has been read.
            if let Some(square) = squares.iter().find(|square| !square.is_finite()) {
                let detail =
                    format!("what it is multiplied with has squares that add up to {square}: weights before it are broken");
                return Err(Error::malformed(self.path, Place::Tensor((*name).to_owned()), Fault::NonFinite, detail));
            }
        }
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        self.pending.push(Pending { names, matrix, n_tokens: n_rows as u64, squares });
        Ok(())
    }
}
