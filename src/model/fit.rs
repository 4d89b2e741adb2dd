//! Memory that running a model takes, as llama.cpp takes it with all layers on one GPU: known from sizes alone, before there is a file.
//!
//! ```text
//! weights   all tensors but the tables that tokens are looked up in, which stay in main memory unless they are the head as well
//! cache     keys and values of every layer that attends: cells x heads x width; a layer with a window keeps the window and a batch; one with
//!           a delta net its state and the tokens of its convolution, in f32
//! buffers   what a batch of 512 tokens takes at once: the scores of all of them, or the widest layer beside the mask of attention
//! ```
//!
//! Cache as in llama.cpp's `llama_kv_cache`; buffers within some per cent of what its `sched_reserve` says, with flash attention. What a
//! driver takes for itself is not in it.

use super::needs::{PROMPT_BATCH, activations_per_token};
use crate::arch::{Hparams, LayerHparams};
use crate::error::{Error, Result};
use crate::names::{self, Role};
use crate::quant::Format;

/// How a model is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    /// Tokens of context.
    pub n_ctx: usize,
    /// How keys and values are kept.
    pub kv: Format,
}

/// What it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryUse {
    /// Weights.
    pub weights_bytes: u64,
    /// Keys and values.
    pub cache_bytes: u64,
    /// While a batch is computed.
    pub buffers_bytes: u64,
}

impl MemoryUse {
    /// All of it.
    pub fn total_bytes(&self) -> u64 {
        self.weights_bytes.saturating_add(self.cache_bytes).saturating_add(self.buffers_bytes)
    }
}

/// Cells of a cache are as many as a multiple of this.
const CELLS: u64 = 256;

/// What a model takes whose tensors have these names and bytes.
///
/// # Errors
/// `Usage` for rows of keys or values that are no whole blocks of the format.
pub fn memory(hparams: &Hparams, tensors: &[(&str, u64)], running: &Running) -> Result<MemoryUse> {
    let away = in_main_memory(tensors);
    let weights = tensors.iter().filter(|(name, _)| !away.contains(name));
    Ok(MemoryUse {
        weights_bytes: weights.map(|(_, bytes)| *bytes).fold(0, u64::saturating_add),
        cache_bytes: cache_bytes(hparams, running)?,
        buffers_bytes: buffers_bytes(hparams, running),
    })
}

/// Of these tensors, those that are not where the layers are: tables that tokens or positions are looked up in.
pub fn in_main_memory<'t>(tensors: &[(&'t str, u64)]) -> Vec<&'t str> {
    let has_head = tensors.iter().any(|(name, _)| *name == names::OUTPUT);
    let is_table = |name: &&str| match Role::of(name) {
        Role::TokenEmbd => *name != names::TOKEN_EMBD || has_head,
        role => role == Role::Position,
    };
    tensors.iter().map(|(name, _)| *name).filter(is_table).collect()
}

fn cache_bytes(hparams: &Hparams, running: &Running) -> Result<u64> {
    let padded = |cells: u64| cells.div_ceil(CELLS).saturating_mul(CELLS);
    let n_ctx = padded(running.n_ctx as u64);
    let of_layer = |layer: &LayerHparams| -> Result<u64> {
        if let Some(delta) = layer.delta {
            return Ok((delta.n_kept() as u64).saturating_mul(4));
        }
        if layer.layer.attention().is_none() || layer.keys_of.is_some() {
            return Ok(0);
        }
        let cells = layer.window.map_or(n_ctx, |window| padded(n_ctx.min(window as u64 + PROMPT_BATCH as u64)));
        let row = |dim: usize| {
            let n_cols = (layer.n_head_kv * dim) as u64;
            running.kv.row_bytes(n_cols).ok_or_else(|| {
                Error::usage(format!(
                    "{n_cols} numbers of keys or values a token are no whole blocks of {}; f16 is for any",
                    running.kv
                ))
            })
        };
        Ok(cells.saturating_mul(row(layer.key_dim)?.saturating_add(row(layer.value_dim)?)))
    };
    hparams.layers.iter().try_fold(0, |sum: u64, layer| Ok(sum.saturating_add(of_layer(layer)?)))
}

fn buffers_bytes(hparams: &Hparams, running: &Running) -> u64 {
    let n_batch = PROMPT_BATCH.min(running.n_ctx.max(1)) as u64;
    let numbers = |n: usize| n_batch.saturating_mul(n as u64).saturating_mul(4);
    let scores = numbers(hparams.n_vocab).saturating_add(numbers(2 * hparams.n_embd));
    // The mask is of halves.
    let mask = n_batch.saturating_mul(running.n_ctx as u64).saturating_mul(2);
    scores.max(mask.saturating_add(numbers(activations_per_token(hparams))))
}
