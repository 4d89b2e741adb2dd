//! The scores that a model gives to every token of its vocabulary: what one runtime is compared with another by.
//!
//! All tokens go through the model together, as in an evaluation, so a position's scores have the same bits for any number of threads and
//! however many positions are asked for.

use std::sync::atomic::Ordering;

use super::pass::{Progress, Watch};
use crate::error::{Error, Fault, Place, Result};
use crate::model::{Backend, Batch, Network, Observer};

/// Scores that a backend computes at a time: 64 MiB.
const CHUNK_LEN: usize = 16 << 20;

/// The scores of the token after each of the last `n_last` of `tokens`: `[n_last, n_vocab]`, row-major.
///
/// # Errors
/// `Usage` for fewer tokens than positions, no positions, more tokens than the network's context, and ids that the vocabulary does not
/// have; `NonFinite` where a score is not a number; `Interrupted`; no memory; what reading weights and the backend can meet.
pub fn logits<B: Backend>(network: &Network<'_, B>, tokens: &[u32], n_last: usize, watch: Watch<'_>) -> Result<Vec<f32>> {
    let n_tokens = u32::try_from(tokens.len()).map_err(|_| Error::usage("more tokens than 32 bits can count"))?;
    if n_last == 0 || n_last > tokens.len() {
        return Err(Error::usage(format!("scores at the last {n_last} positions of a sequence of {n_tokens} tokens")));
    }
    let n_vocab = network.hparams().n_vocab;
    let mut values = Vec::new();
    let reserved = n_last.checked_mul(n_vocab).is_some_and(|len| values.try_reserve_exact(len).is_ok());
    if !reserved {
        return Err(Error::io("scores", "allocate memory for", std::io::ErrorKind::OutOfMemory.into()));
    }

    let whole = 0..tokens.len();
    let batch = Batch { tokens, sequences: std::slice::from_ref(&whole) };
    let states = network.evaluate(batch, &mut Watched { watch, n_tokens })?;
    let rows: Vec<u32> = (0..n_tokens).skip(tokens.len() - n_last).collect();
    for rows in rows.chunks((CHUNK_LEN / n_vocab).max(2)) {
        // One row alone is summed in another order than several: it is computed twice.
        let twice = [rows[0]; 2];
        let asked = if rows.len() == 1 { &twice } else { rows };
        let found = network.backend().logits(&network.normalised(&states, asked)?, network.output())?;
        let found = &found[..rows.len() * n_vocab];
        if let Some(at) = found.iter().position(|score| !score.is_finite()) {
            return Err(not_finite(network, rows[at / n_vocab]));
        }
        values.extend_from_slice(found);
    }
    Ok(values)
}

fn not_finite<B: Backend>(network: &Network<'_, B>, position: u32) -> Error {
    let detail = format!("the scores after position {position} are not numbers: some weight is NaN or infinite");
    Error::malformed(network.path(), Place::File, Fault::NonFinite, detail)
}

/// Tells how far the pass is, layer by layer.
struct Watched<'a> {
    watch: Watch<'a>,
    n_tokens: u32,
}

impl<B: Backend> Observer<B> for Watched<'_> {
    fn layer_done(&mut self, done: usize, n_layers: usize) -> Result<()> {
        if self.watch.stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let total_tokens = u64::from(self.n_tokens);
        (self.watch.progress)(Progress { done_tokens: total_tokens * done as u64 / n_layers as u64, total_tokens, ppl: None });
        Ok(())
    }
}
