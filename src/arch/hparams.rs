//! Hyperparameters: read from config.json by their Hugging Face names, checked before anything is sized by them.

use crate::error::{Error, Fault, Place, Result};
use crate::hf::{Config, Scaling};

/// Most layers that llama.cpp loads.
pub const N_LAYER_MAX: u32 = 512;
/// Largest vocabulary accepted; the largest real ones have about 262 000 tokens.
pub const N_VOCAB_MAX: u32 = 1 << 24;
/// Widest attention head accepted; the widest real ones have 576.
pub const HEAD_DIM_MAX: u32 = 1 << 14;

/// A Hugging Face model class, and what its configuration class assumes where config.json says nothing.
#[derive(Debug, Clone, Copy)]
pub struct Class {
    /// As in `architectures`.
    pub name: &'static str,
    /// `max_position_embeddings`.
    pub n_ctx: u32,
    /// `num_key_value_heads`; `None`: as many as query heads.
    pub n_head_kv: Option<u32>,
    /// Whether a missing `head_dim` is filled in, so that `attention.key_length` is written.
    pub fills_head_dim: bool,
}

/// `rms_norm_eps` where config.json says nothing.
const RMS_EPS_DEFAULT: f64 = 1e-6;
/// `rope_theta` where config.json says nothing.
const ROPE_THETA_DEFAULT: f64 = 10000.0;

/// The numbers that shape a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Hparams {
    /// Layers.
    pub n_layer: u32,
    /// Context length that the model was trained for.
    pub n_ctx: u32,
    /// Width of the residual stream.
    pub n_embd: u32,
    /// Width of the feed-forward layer.
    pub n_ff: u32,
    /// Query heads.
    pub n_head: u32,
    /// Key and value heads; divides `n_head`.
    pub n_head_kv: u32,
    /// Width of a head; even.
    pub head_dim: u32,
    /// Whether `head_dim` is to be written as `attention.key_length` and `attention.value_length`.
    pub writes_head_dim: bool,
    /// Tokens of the vocabulary, padding included.
    pub n_vocab: u32,
    /// Epsilon of the RMS norms.
    pub rms_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies.
    pub rope_scaling: Scaling,
    /// True when the output head is the token embedding.
    pub is_tied: bool,
}

impl Hparams {
    /// Reads and checks them.
    ///
    /// # Errors
    /// `ConfigField` for a missing field or one of the wrong type, `HparamRange` for one with an impossible value, `Unsupported` for a
    /// rotary scaling that this version does not know.
    pub fn read(config: &Config, class: &Class) -> Result<Hparams> {
        let required = |field: &str| config.u32(field)?.ok_or_else(|| config.fault(field, "missing"));
        let n_embd = required("hidden_size")?;
        let n_head = required("num_attention_heads")?;
        check(config, "num_attention_heads", n_head, n_head > 0, "expected at least one")?;
        // Null means "as many as query heads" for every class, absence means the class's own default.
        let is_null = config.has_null("num_key_value_heads");
        let n_head_kv = config.u32("num_key_value_heads")?.or(class.n_head_kv.filter(|_| !is_null)).unwrap_or(n_head);
        let given_head_dim = config.u32("head_dim")?;
        if given_head_dim.is_none() {
            check(config, "hidden_size", n_embd, n_embd.is_multiple_of(n_head), &format!("not a multiple of {n_head} heads"))?;
        }
        let rope = config.rope()?;
        let hparams = Hparams {
            n_layer: required("num_hidden_layers")?,
            n_ctx: config.u32("max_position_embeddings")?.unwrap_or(class.n_ctx),
            n_embd,
            n_ff: required("intermediate_size")?,
            n_head,
            n_head_kv,
            head_dim: given_head_dim.unwrap_or(n_embd / n_head),
            writes_head_dim: given_head_dim.is_some() || class.fills_head_dim,
            n_vocab: required("vocab_size")?,
            rms_eps: config.f64("rms_norm_eps")?.unwrap_or(RMS_EPS_DEFAULT) as f32,
            rope_theta: rope.theta.unwrap_or(ROPE_THETA_DEFAULT),
            rope_scaling: rope.scaling,
            is_tied: config.bool("tie_word_embeddings")?.unwrap_or(false),
        };
        hparams.check(config)?;
        Ok(hparams)
    }

    fn check(&self, config: &Config) -> Result<()> {
        let n = self.n_layer;
        check(config, "num_hidden_layers", n, (1..=N_LAYER_MAX).contains(&n), &format!("expected 1 to {N_LAYER_MAX}"))?;
        check(config, "max_position_embeddings", self.n_ctx, self.n_ctx > 0, "expected at least 1")?;
        check(config, "hidden_size", self.n_embd, self.n_embd > 0, "expected at least 1")?;
        check(config, "intermediate_size", self.n_ff, self.n_ff > 0, "expected at least 1")?;
        let n = self.n_vocab;
        check(config, "vocab_size", n, (1..=N_VOCAB_MAX).contains(&n), &format!("expected 1 to {N_VOCAB_MAX}"))?;
        let n = self.n_head_kv;
        let divides = n > 0 && self.n_head.is_multiple_of(n);
        check(config, "num_key_value_heads", n, divides, &format!("does not divide {} query heads", self.n_head))?;
        let n = self.head_dim;
        let even = n.is_multiple_of(2) && (2..=HEAD_DIM_MAX).contains(&n);
        check(config, "head_dim", n, even, &format!("expected an even number from 2 to {HEAD_DIM_MAX}"))?;
        check(config, "rms_norm_eps", self.rms_eps, (0.0..1.0).contains(&self.rms_eps), "expected 0 to 1")?;
        let theta = self.rope_theta;
        check(config, "rope_theta", theta, theta > 0.0, "expected a positive number")?;
        self.check_scaling(config)
    }

    fn check_scaling(&self, config: &Config) -> Result<()> {
        let positive = |what: &str, value: f64| {
            check(config, &format!("rope_scaling.{what}"), value, value > 0.0, "expected a positive number")
        };
        match &self.rope_scaling {
            Scaling::None | Scaling::Dynamic => Ok(()),
            Scaling::Linear { factor } | Scaling::Yarn { factor, .. } => positive("factor", *factor),
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context_len } => {
                positive("factor", *factor)?;
                positive("low_freq_factor", *low_freq_factor)?;
                positive("original_max_position_embeddings", *original_context_len)?;
                let above = high_freq_factor > low_freq_factor;
                check(config, "rope_scaling.high_freq_factor", high_freq_factor, above, "expected more than low_freq_factor")
            }
            Scaling::Other(kind) => Err(Error::unsupported(
                format!("{}: rotary scaling {kind:?}", config.path().display()),
                "supported are default, dynamic, linear, yarn and llama3",
            )),
        }
    }
}

fn check(config: &Config, field: &str, value: impl std::fmt::Display, holds: bool, rule: &str) -> Result<()> {
    if holds {
        return Ok(());
    }
    let place = Place::Field(field.to_owned());
    Err(Error::malformed(config.path(), place, Fault::HparamRange, format!("{value}: {rule}")))
}
