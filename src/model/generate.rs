//! Continuing a text, token by token; or several texts side by side.

use super::backend::{Backend, Places, Span};
use super::cpu::Cpu;
use super::forward::{Cache, Kept, KeyStore, Network};
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
        let token = self.sampler.choose(&self.logits).ok_or_else(|| not_numbers(self.network.path()))?;
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

fn not_numbers(path: &std::path::Path) -> Error {
    let detail = "the scores of the next token are not numbers: some weight is NaN or infinite";
    Error::malformed(path, Place::File, Fault::NonFinite, detail)
}

/// Several sequences side by side, a token of each at a time, so that weights are read once for all of them. Each has up to
/// [`Network::n_ctx`] tokens, and may hold several texts, one after the other.
pub struct SideBySide<'n, 'a> {
    network: &'n Network<'a, Cpu>,
    /// What each layer keeps of all sequences.
    kept: Vec<Kept<Cpu>>,
    /// Where the last text of each sequence begins.
    starts: Vec<usize>,
    len: usize,
}

impl<'n, 'a> SideBySide<'n, 'a> {
    /// Sequences without tokens.
    ///
    /// # Errors
    /// No memory.
    pub fn new(network: &'n Network<'a, Cpu>, n_sequences: usize) -> Result<SideBySide<'n, 'a>> {
        Ok(SideBySide { network, kept: network.kept(n_sequences)?, starts: vec![0; n_sequences], len: 0 })
    }

    /// Bytes of keys and values, or of states, that a sequence takes.
    pub fn bytes_per_sequence(network: &Network<'_, Cpu>) -> usize {
        let numbers = network.hparams().layers.iter().map(|layer| match (layer.delta, layer.keys_of) {
            (Some(delta), _) => delta.n_kept(),
            (None, Some(_)) => 0,
            (None, None) => (2 * layer.n_head_kv * layer.key_dim).saturating_mul(network.n_ctx()),
        });
        numbers.fold(0, usize::saturating_add).saturating_mul(size_of::<f32>())
    }

    /// The next token of a sequence will begin a text: it sees nothing of what was before.
    pub fn begin_text(&mut self, sequence: usize) {
        self.starts[sequence] = self.len;
    }

    /// Reads a token of every sequence. Returns the scores of what follows in the sequences that `wanted` names, `[wanted.len(), n_vocab]`.
    ///
    /// # Errors
    /// `Usage` where the sequences are full, and as [`Network::extend`].
    ///
    /// # Panics
    /// When there is not a token for each sequence.
    pub fn read(&mut self, tokens: &[u32], wanted: &[u32]) -> Result<Vec<f32>> {
        let (network, n_ctx) = (self.network, self.network.n_ctx());
        assert_eq!(tokens.len(), self.starts.len(), "a token of every sequence");
        if self.len == n_ctx {
            return Err(Error::usage(format!("the context of {n_ctx} tokens is full")));
        }
        network.check_tokens(tokens)?;
        let positions: Vec<u32> = self.starts.iter().map(|start| (self.len - start) as u32).collect();
        let span = |(row, start): (usize, &usize)| Span { q: row..row + 1, kv: row * n_ctx + start..row * n_ctx + self.len + 1 };
        let spans: Vec<Span> = self.starts.iter().enumerate().map(span).collect();
        let backend = network.backend();
        backend.chain(|| {
            let places = Places { positions: &positions, spans: &spans, kept_from: Some(self.len), kept_step: n_ctx };
            let mut x = network.embed(tokens, &positions)?;
            let pass = network.pass(tokens, &x, backend.begin(&places)?)?;
            let mut keys = KeyStore::over(&mut self.kept);
            network.for_each_layer(|index, layer| network.layer(index, layer, &mut x, &pass, &mut keys, &mut ()))?;
            self.len += 1;
            if wanted.is_empty() {
                return Ok(Vec::new());
            }
            backend.logits(&network.normalised(&x, wanted)?, network.output())
        })
    }

    /// Chooses a token by scores.
    ///
    /// # Errors
    /// `NonFinite` where they are not numbers.
    pub fn choose(&self, sampler: &mut Sampler, logits: &[f32]) -> Result<u32> {
        sampler.choose(logits).ok_or_else(|| not_numbers(self.network.path()))
    }
}
