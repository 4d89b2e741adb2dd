//! Continuing a text, token by token.

use super::backend::Backend;
use super::forward::{Cache, Network};
use super::needs::PROMPT_BATCH;
use super::sample::Sampler;
use crate::error::{Error, Fault, Place, Result};

/// A text that is being continued.
pub struct Generation<'n, 'a, B: Backend> {
    network: &'n Network<'a, B>,
    cache: Cache<B>,
    sampler: Sampler,
    /// Of the token that comes next.
    logits: Vec<f32>,
}

impl<'n, 'a, B: Backend> Generation<'n, 'a, B> {
    /// Reads the prompt.
    ///
    /// # Errors
    /// `Usage` for an empty prompt, and as [`Network::extend`].
    pub fn start(network: &'n Network<'a, B>, prompt: &[u32], sampler: Sampler) -> Result<Generation<'n, 'a, B>> {
        if prompt.is_empty() {
            return Err(Error::usage("a prompt of at least one token is needed"));
        }
        let mut generation = Generation { network, cache: network.cache()?, sampler, logits: Vec::new() };
        for batch in prompt.chunks(PROMPT_BATCH) {
            generation.read(batch)?;
        }
        Ok(generation)
    }

    /// Chooses the next token, and reads it.
    ///
    /// # Errors
    /// `NonFinite` where the model's scores are not numbers; `Usage` when the context is full; as [`Network::extend`].
    pub fn next_token(&mut self) -> Result<u32> {
        if self.logits.is_empty() {
            return Err(Error::usage(format!("the context of {} tokens is full", self.network.n_ctx())));
        }
        let Some(token) = self.sampler.choose(&self.logits) else {
            let detail = "the scores of the next token are not numbers: some weight is NaN or infinite";
            return Err(Error::malformed(self.network.path(), Place::File, Fault::NonFinite, detail));
        };
        if self.cache.len() < self.network.n_ctx() {
            self.read(&[token])?;
        } else {
            self.logits.clear();
        }
        Ok(token)
    }

    fn read(&mut self, tokens: &[u32]) -> Result<()> {
        let states = self.network.extend(tokens, &mut self.cache)?;
        let last = self.network.normalised(&states, &[tokens.len() as u32 - 1])?;
        self.logits = self.network.backend().logits(&last, self.network.output())?;
        Ok(())
    }
}
