//! The `{arch}.*` keys, in the order and with the value types that llama.cpp's converter gives them.

use super::{Arch, ConfigHparams as Hparams};
use crate::error::Result;
use crate::gguf::{Metadata, Value, keys};
use crate::hf::{Config, Scaling};

impl Arch {
    /// `general.architecture` apart, every key that describes the model's shape.
    ///
    /// # Errors
    /// Those of [`Hparams::read`].
    pub fn metadata(&self, config: &Config) -> Result<Metadata> {
        let hparams = self.hparams(config)?;
        let mut metadata = Vec::new();
        let mut add = |suffix: &str, value: Value| metadata.push((keys::of(self.name, suffix), value));
        add(keys::BLOCK_COUNT, Value::U32(hparams.n_layer));
        add(keys::CONTEXT_LENGTH, Value::U32(hparams.n_ctx));
        add(keys::EMBEDDING_LENGTH, Value::U32(hparams.n_embd));
        add(keys::FEED_FORWARD_LENGTH, Value::U32(hparams.n_ff));
        add(keys::ATTENTION_HEAD_COUNT, Value::U32(hparams.n_head));
        add(keys::ATTENTION_HEAD_COUNT_KV, Value::U32(hparams.n_head_kv));
        for (suffix, value) in rope_scaling(&hparams) {
            add(suffix, value);
        }
        add(keys::ROPE_FREQ_BASE, Value::F32(hparams.rope_theta as f32));
        add(keys::ATTENTION_LAYER_NORM_RMS_EPSILON, Value::F32(hparams.rms_eps));
        if hparams.writes_head_dim {
            add(keys::ATTENTION_KEY_LENGTH, Value::U32(hparams.head_dim));
            add(keys::ATTENTION_VALUE_LENGTH, Value::U32(hparams.head_dim));
        }
        for (suffix, value) in self.keys {
            add(suffix, value(&hparams));
        }
        Ok(metadata)
    }
}

/// Llama 3.1's scaling is a tensor instead, and a dynamic one has nothing to store.
fn rope_scaling(hparams: &Hparams) -> Vec<(&'static str, Value)> {
    let float = |value: f64| Value::F32(value as f32);
    match hparams.rope_scaling {
        Scaling::Linear { factor } => {
            vec![(keys::ROPE_SCALING_TYPE, Value::from("linear")), (keys::ROPE_SCALING_FACTOR, float(factor))]
        }
        Scaling::Yarn { factor, original_context_len, extrapolation_factor, attention_factor, beta_fast, beta_slow } => {
            let optional = [
                (keys::ROPE_SCALING_YARN_EXT_FACTOR, extrapolation_factor),
                (keys::ROPE_SCALING_YARN_ATTN_FACTOR, attention_factor),
                (keys::ROPE_SCALING_YARN_BETA_FAST, beta_fast),
                (keys::ROPE_SCALING_YARN_BETA_SLOW, beta_slow),
            ];
            let mut found = vec![
                (keys::ROPE_SCALING_TYPE, Value::from("yarn")),
                (keys::ROPE_SCALING_FACTOR, float(factor)),
                (keys::ROPE_SCALING_ORIGINAL_CONTEXT_LENGTH, Value::U32(original_context_len)),
            ];
            found.extend(optional.into_iter().filter_map(|(key, value)| Some((key, float(value?)))));
            found
        }
        Scaling::None | Scaling::Dynamic | Scaling::Llama3 { .. } | Scaling::Other(_) => vec![],
    }
}
