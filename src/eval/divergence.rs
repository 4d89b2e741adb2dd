//! What quantizing cost: how far the predictions of some files are from those of the file they were made from.
//!
//! For every scored token, with `p` the base model's probabilities over the whole vocabulary and `q` the other's:
//!
//! ```text
//! KLD = sum over the vocabulary of p * ln(p / q)          what q loses, in nats: 0 where both agree
//! Δp  = q(token that came) - p(token that came)           its mean is a bias, its root mean square the typical change
//! same top = both find the same token likeliest
//! ln(PPL(q) / PPL(p)) = mean of nll_q - nll_p              with the error of the differences: both saw the same tokens
//! ```
//!
//! All models run side by side, batch by batch, and both softmaxes are compared in the f32 logits they are made of. llama-perplexity
//! compares with a file instead, which holds the base's log-probabilities in 16 bits, cut off 16 nats below the likeliest token: about
//! 2 bytes for each token of the vocabulary and each of the text, and a floor under every divergence.

use std::path::Path;

use super::pass::{Counter, Watch, not_finite, scored_states, windows_per_batch};
use super::perplexity::ppl_of;
use super::windows::Batch;
use super::{Estimate, Windows, quantile};
use crate::error::{Error, Fault, Place, Result};
use crate::model::{Backend, Divergence, Network};
use crate::tokenizer::encode::Tokenizer;

/// What was found about all files.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// The base file's perplexity.
    pub ppl_base: Estimate,
    /// The others, in the order in which they were given.
    pub files: Vec<Compared>,
    /// Windows of the text that went through all models: all of them, but in [`measure_until_stopped`].
    pub n_windows: usize,
}

/// What was found about one file.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    /// Its perplexity.
    pub ppl: Estimate,
    /// `ln(PPL / PPL of the base)`.
    pub ln_ppl_ratio: Estimate,
    /// Mean divergence, in nats.
    pub kld: Estimate,
    /// How the divergence is distributed over tokens.
    pub quantiles: Quantiles,
    /// Mean change of the probability of the token that came.
    pub mean_dp: Estimate,
    /// Root mean square of that change.
    pub rms_dp: Estimate,
    /// Share of tokens before which both find the same token likeliest.
    pub same_top: Estimate,
    /// The divergence at every scored token, window by window.
    pub klds: Vec<f64>,
    /// Mean divergence at each scored position of the windows.
    pub kld_by_position: Vec<f64>,
}

/// Divergences that a share of all tokens stay below.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantiles {
    /// Half of them.
    pub median: f64,
    /// 90 %.
    pub p90: f64,
    /// 95 %.
    pub p95: f64,
    /// 99 %.
    pub p99: f64,
    /// 99.9 %.
    pub p99_9: f64,
    /// All of them.
    pub max: f64,
}

/// What is kept of each token of a file.
struct Record {
    nll: f64,
    kld: f64,
    is_same_top: bool,
}

/// Compares `others` with `base` on a text. The base runs once per batch, however many others there are.
///
/// # Errors
/// `VocabularyMismatch` for models with another number of tokens; else as [`super::perplexity::measure`].
pub fn measure<B: Backend>(
    base: &Network<'_, B>,
    others: &[Network<'_, B>],
    windows: &Windows,
    watch: Watch<'_>,
) -> Result<Comparison> {
    let comparison = measure_until_stopped(base, others, windows, watch)?;
    if comparison.n_windows < windows.len() { Err(Error::Interrupted) } else { Ok(comparison) }
}

/// The same, but when it is interrupted it gives what is known of the windows that were done by then.
///
/// # Errors
/// As [`measure`]; `Interrupted` only before any window was done.
pub fn measure_until_stopped<B: Backend>(
    base: &Network<'_, B>,
    others: &[Network<'_, B>],
    windows: &Windows,
    watch: Watch<'_>,
) -> Result<Comparison> {
    others.iter().try_for_each(|other| check_n_vocab(base, other))?;
    let mut counter = Counter::new(watch, windows.n_tokens() * (1 + others.len()));
    let mut base_nlls: Vec<f64> = Vec::with_capacity(windows.n_scored());
    let mut records: Vec<Vec<Record>> = others.iter().map(|_| Vec::with_capacity(windows.n_scored())).collect();
    let sizes = std::iter::once(base).chain(others).map(|network| windows_per_batch(network, windows));
    let mut n_windows = 0;
    for batch in windows.batches(sizes.min().unwrap_or(1)) {
        match compare_batch((base, others), windows, &batch, (&mut base_nlls, &mut records), &mut counter) {
            Err(Error::Interrupted) if n_windows > 0 => break,
            done => done?,
        }
        n_windows += batch.sequences.len();
        counter.set_ppl(ppl_of(&base_nlls).value);
    }
    // Of a batch that was broken off some models may have seen more than others.
    let n_tokens = n_windows * windows.scored().len();
    base_nlls.truncate(n_tokens);
    records.iter_mut().for_each(|records| records.truncate(n_tokens));
    let files = records.into_iter().map(|records| Compared::of(&base_nlls, &records, windows)).collect();
    Ok(Comparison { ppl_base: ppl_of(&base_nlls), files, n_windows })
}

/// Takes a batch through all models.
fn compare_batch<B: Backend>(
    (base, others): (&Network<'_, B>, &[Network<'_, B>]),
    windows: &Windows,
    batch: &Batch,
    (base_nlls, records): (&mut Vec<f64>, &mut [Vec<Record>]),
    counter: &mut Counter<'_>,
) -> Result<()> {
    let done = base_nlls.len();
    let base_states = scored_states(base, batch, counter)?;
    for (other, records) in others.iter().zip(records) {
        let states = scored_states(other, batch, counter)?;
        let (a, b) = ((&base_states, base.output()), (&states, other.output()));
        let divergences = base.backend().compare(a, b, &batch.targets)?;
        for (divergence, at) in divergences.iter().zip(done..) {
            check_finite(divergence, base, other, windows, at)?;
            records.push(Record::of(divergence));
        }
        if base_nlls.len() == done {
            base_nlls.extend(divergences.iter().map(|divergence| divergence.a.nll));
        }
    }
    Ok(())
}

/// Refuses files whose tokens are not the base's: their predictions are about something else.
///
/// # Errors
/// `VocabularyMismatch` for `other_path`, with the first difference.
pub fn check_same_vocabulary(base: &Tokenizer, other: &Tokenizer, other_path: &Path) -> Result<()> {
    let (n_base, n_other) = (base.n_tokens(), other.n_tokens());
    if n_base != n_other {
        return Err(mismatch(other_path, format!("{n_other} tokens, the base file has {n_base}")));
    }
    match (0..n_base).find(|&id| base.token_text(id) != other.token_text(id)) {
        None => Ok(()),
        Some(id) => {
            let text = |tokenizer: &Tokenizer| String::from_utf8_lossy(tokenizer.token_text(id).unwrap_or_default()).into_owned();
            Err(mismatch(other_path, format!("token {id} is '{}', in the base file '{}'", text(other), text(base))))
        }
    }
}

fn mismatch(path: &Path, detail: String) -> Error {
    let detail = format!("{detail}: only models of one vocabulary can be compared");
    Error::malformed(path, Place::Field("tokenizer.ggml.tokens".into()), Fault::VocabularyMismatch, detail)
}

fn check_n_vocab<B: Backend>(base: &Network<'_, B>, other: &Network<'_, B>) -> Result<()> {
    let (n_base, n_other) = (base.hparams().n_vocab, other.hparams().n_vocab);
    if n_base == n_other {
        return Ok(());
    }
    Err(mismatch(other.path(), format!("scores for {n_other} tokens, the base file has them for {n_base}")))
}

fn check_finite<B: Backend>(
    divergence: &Divergence,
    base: &Network<'_, B>,
    other: &Network<'_, B>,
    windows: &Windows,
    at: usize,
) -> Result<()> {
    if !divergence.a.nll.is_finite() {
        return Err(not_finite(base, windows, at));
    }
    if !divergence.b.nll.is_finite() || !divergence.kld.is_finite() {
        return Err(not_finite(other, windows, at));
    }
    Ok(())
}

impl Record {
    fn of(divergence: &Divergence) -> Record {
        let Divergence { a, b, kld } = divergence;
        Record { nll: b.nll, kld: *kld, is_same_top: a.argmax == b.argmax }
    }
}

impl Compared {
    fn of(base_nlls: &[f64], records: &[Record], windows: &Windows) -> Compared {
        let nlls: Vec<f64> = records.iter().map(|record| record.nll).collect();
        let klds: Vec<f64> = records.iter().map(|record| record.kld).collect();
        let dps: Vec<f64> = base_nlls.iter().zip(&nlls).map(|(base, nll)| libm::exp(-nll) - libm::exp(-base)).collect();
        let n_same_top = records.iter().filter(|record| record.is_same_top).count();
        Compared {
            ppl: ppl_of(&nlls),
            ln_ppl_ratio: Estimate::mean(base_nlls.iter().zip(&nlls).map(|(base, nll)| nll - base)),
            kld: Estimate::mean(klds.iter().copied()),
            quantiles: Quantiles::of(&klds),
            mean_dp: Estimate::mean(dps.iter().copied()),
            rms_dp: Estimate::mean(dps.iter().map(|dp| dp * dp)).sqrt(),
            same_top: Estimate::share(n_same_top, records.len()),
            kld_by_position: by_position(&klds, windows.scored().len()),
            klds,
        }
    }
}

impl Quantiles {
    fn of(klds: &[f64]) -> Quantiles {
        let mut sorted = klds.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |fraction| quantile(&sorted, fraction);
        Quantiles { median: at(0.5), p90: at(0.9), p95: at(0.95), p99: at(0.99), p99_9: at(0.999), max: at(1.0) }
    }
}

/// The mean over all windows at each of `n_positions`.
fn by_position(klds: &[f64], n_positions: usize) -> Vec<f64> {
    let n_windows = klds.len() / n_positions;
    let column = |position| klds.iter().skip(position).step_by(n_positions).sum::<f64>() / n_windows as f64;
    (0..n_positions).map(column).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_averaged_over_windows() {
        assert_eq!(by_position(&[1.0, 2.0, 3.0, 5.0, 6.0, 7.0], 3), [3.0, 4.0, 5.0]);
    }
}
