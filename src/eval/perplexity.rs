//! Perplexity: how many tokens a model hesitates between, on average, before each token of a text.
//!
//! ```text
//! nll(t) = -ln p(token t | the tokens before it in its window)        PPL = exp(mean over all scored t)
//! ```

use super::pass::{Counter, Watch, not_finite, scored_states, windows_per_batch};
use super::{Estimate, Windows};
use crate::error::Result;
use crate::model::{Backend, Network};

/// What one model makes of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Perplexity {
    /// The perplexity.
    pub ppl: Estimate,
    /// The mean negative log-likelihood, in nats.
    pub nll: Estimate,
    /// The negative log-likelihood of every scored token, window by window.
    pub nlls: Vec<f64>,
}

/// Measures a model on a text.
///
/// # Errors
/// What [`Network::evaluate`] meets; `NonFinite` when the model computes something that is not a number; `Interrupted`.
pub fn measure<B: Backend>(network: &Network<'_, B>, windows: &Windows, watch: Watch<'_>) -> Result<Perplexity> {
    let mut counter = Counter::new(watch, windows.n_tokens());
    let mut nlls = Vec::with_capacity(windows.n_scored());
    for batch in windows.batches(windows_per_batch(network, windows)) {
        let states = scored_states(network, &batch, &mut counter)?;
        let scores = network.backend().score(&states, network.output(), &batch.targets)?;
        if let Some(at) = scores.iter().position(|score| !score.nll.is_finite()) {
            return Err(not_finite(network, windows, nlls.len() + at));
        }
        nlls.extend(scores.iter().map(|score| score.nll));
        counter.set_ppl(ppl_of(&nlls).value);
    }
    Ok(Perplexity { ppl: ppl_of(&nlls), nll: Estimate::mean(nlls.iter().copied()), nlls })
}

/// The perplexity of tokens with these negative log-likelihoods.
pub fn ppl_of(nlls: &[f64]) -> Estimate {
    Estimate::mean(nlls.iter().copied()).exp()
}
