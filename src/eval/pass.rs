//! What every measurement does: take windows through a network in batches, tell how far it is, and stop when asked to.

use std::sync::atomic::{AtomicBool, Ordering};

use super::windows::{Batch, Windows};
use crate::error::{Error, Fault, Place, Result};
use crate::model::{self, Backend, Network, Observed, Observer};

/// How far a measurement is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Tokens that went through the model, or through all models in turn.
    pub done_tokens: u64,
    /// Tokens that have to.
    pub total_tokens: u64,
    /// The perplexity of what has been scored so far.
    pub ppl: Option<f64>,
}

/// Who follows a measurement.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Called after every layer, with figures that only grow.
    pub progress: &'a (dyn Fn(Progress) + Sync),
    /// Setting it ends the measurement within the time of a layer, with [`Error::Interrupted`].
    pub stop: &'a AtomicBool,
}

/// Counts the tokens of one run.
pub(super) struct Counter<'a> {
    watch: Watch<'a>,
    progress: Progress,
}

impl<'a> Counter<'a> {
    pub fn new(watch: Watch<'a>, total_tokens: usize) -> Counter<'a> {
        Counter { watch, progress: Progress { done_tokens: 0, total_tokens: total_tokens as u64, ppl: None } }
    }

    /// States the perplexity so far.
    pub fn set_ppl(&mut self, ppl: f64) {
        self.progress.ppl = Some(ppl);
    }

    /// The batch has gone through `done` of `n_layers` layers.
    fn layer_done(&self, batch: &Batch, done: usize, n_layers: usize) -> Result<()> {
        if self.watch.stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let of_batch = batch.tokens.len() * done / n_layers;
        (self.watch.progress)(Progress { done_tokens: self.progress.done_tokens + of_batch as u64, ..self.progress });
        Ok(())
    }
}

/// Shows a pass to the counter, and its operands to another observer.
struct Counted<'a, 'w, O> {
    counter: &'a Counter<'w>,
    batch: &'a Batch,
    inner: &'a mut O,
}

impl<B: Backend, O: Observer<B>> Observer<B> for Counted<'_, '_, O> {
    fn operand(&mut self, observed: Observed<'_>, x: &B::Operand) -> Result<()> {
        self.inner.operand(observed, x)
    }

    fn layer_done(&mut self, done: usize, n_layers: usize) -> Result<()> {
        self.counter.layer_done(self.batch, done, n_layers)
    }
}

/// Takes a batch through the network: the state of each of its tokens after the last layer.
pub(super) fn states<B: Backend>(
    network: &Network<'_, B>,
    batch: &Batch,
    counter: &mut Counter<'_>,
    observer: &mut impl Observer<B>,
) -> Result<B::Rows> {
    let mut counted = Counted { counter, batch, inner: observer };
    let states = network.evaluate(model::Batch { tokens: &batch.tokens, sequences: &batch.sequences }, &mut counted)?;
    counter.progress.done_tokens += batch.tokens.len() as u64;
    Ok(states)
}

/// The same, for the tokens that are scored: what is multiplied with the output matrix.
pub(super) fn scored_states<B: Backend>(network: &Network<'_, B>, batch: &Batch, counter: &mut Counter<'_>) -> Result<B::Operand> {
    let states = states(network, batch, counter, &mut ())?;
    network.normalised(&states, &batch.scored)
}

/// Windows that make a batch of a size that suits the model and the machine.
pub(super) fn windows_per_batch<B: Backend>(network: &Network<'_, B>, windows: &Windows) -> usize {
    network.backend().batch_limits().n_sequences(network.hparams(), windows.ctx())
}

/// The error of a model that computes something that is not a number.
pub(super) fn not_finite<B: Backend>(network: &Network<'_, B>, windows: &Windows, record: usize) -> Error {
    let window = record / windows.scored().len() + 1;
    let detail =
        format!("the model's scores of chunk {window} of the text are not finite: its weights, or what they compute, are broken");
    Error::malformed(network.path(), Place::File, Fault::NonFinite, detail)
}
