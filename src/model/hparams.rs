//! A model's sizes and constants, read from metadata and refused where they cannot be.
//!
//! Nothing is allocated by what is read here but one small struct per layer, of which there are at most [`LAYERS_MAX`].

#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation, clippy::indexing_slicing, clippy::unwrap_used)]

use std::path::Path;

use super::families::{Family, Mixture, Norm, architectures, family};
use super::rope::{Rope, RopeScaling};
use super::weights::{ROPE_FACTORS, TOKEN_EMBD};
use crate::error::{Error, Fault, Place, Result};
use crate::gguf::{Model, ValueRef, keys};
use crate::source::TensorSource;

/// What a model is, apart from its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Hparams {
    /// The architecture.
    pub family: &'static Family,
    /// Tokens in the vocabulary: rows of the embedding.
    pub n_vocab: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Tokens of context it was trained for. Nothing is ever allocated by it.
    pub n_ctx_train: usize,
    /// Width of a query, key and value head.
    pub head_dim: usize,
    /// Added to the mean square, or the variance, before its root is taken.
    pub norm_eps: f32,
    /// The scores of attention are divided by the root of this: the width of a head, or what stands for it.
    pub scale_width: usize,
    /// The window of attention that the file states, whether or not it is applied.
    pub window: Option<usize>,
    /// Rotary positions.
    pub rope: Rope,
    /// Those of the layers with a window.
    pub local_rope: Option<Rope>,
    /// Every layer's own sizes.
    pub layers: Vec<LayerHparams>,
}

/// Sizes that may differ from layer to layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerHparams {
    /// Query heads.
    pub n_head: usize,
    /// Key and value heads, a divisor of `n_head`.
    pub n_head_kv: usize,
    /// Inner width of the feed-forward network, where it is one.
    pub n_ff: usize,
    /// Sizes of the experts that are in its place.
    pub experts: Option<ExpertHparams>,
    /// Tokens that attention sees: the last ones. All where there is no window.
    pub window: Option<usize>,
}

/// Sizes of a mixture of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertHparams {
    /// Experts to choose from.
    pub n_expert: usize,
    /// Experts that one token uses.
    pub n_used: usize,
    /// Inner width of an expert.
    pub n_ff: usize,
    /// Inner width of the expert that every token uses, where there is one.
    pub n_ff_shared: Option<usize>,
}

/// Layers of a model, as llama.cpp bounds them; the deepest known has 126.
pub const LAYERS_MAX: usize = 512;

/// Experts of a layer, as llama.cpp bounds them.
const EXPERTS_MAX: u64 = 1024;

/// Widths: the largest known is 53 248 (Llama 3.1 405B's feed-forward network). A bound on products of two of them.
const WIDTH_MAX: u64 = 1 << 24;

/// Positions are exact and tables of them bounded by what the caller asks for; the longest known context is 10 million.
const CTX_MAX: u64 = 1 << 30;

impl Hparams {
    /// Reads and checks a model's hyperparameters.
    ///
    /// # Errors
    /// `Unsupported` for architectures and features that cannot be run; `ValueType`, `HparamRange`, `MissingTensor` and `ShapeMismatch`
    /// for what is missing, or cannot be.
    pub fn read(model: &Model) -> Result<Hparams> {
        let architecture = model.architecture()?;
        let Some(family) = family(architecture) else {
            let known: Vec<_> = architectures().collect();
            let shown: String = architecture.chars().take(64).collect();
            return Err(Error::unsupported(format!("running architecture {shown}"), format!("{} can be run", known.join(", "))));
        };
        let keys = Keys { model, family };
        let n_layer = keys.count(keys::BLOCK_COUNT, LAYERS_MAX as u64)?;
        let n_embd = keys.count(keys::EMBEDDING_LENGTH, WIDTH_MAX)?;
        let layers = keys.layers(n_layer)?;
        let head_dim = keys.head_dim(n_embd, &layers)?;
        let rope = keys.rope(head_dim)?;
        keys.refuse_softcap()?;
        Ok(Hparams {
            family,
            n_vocab: keys.n_vocab()?,
            n_embd,
            n_ctx_train: keys.count(keys::CONTEXT_LENGTH, CTX_MAX)?,
            head_dim,
            norm_eps: keys.norm_eps()?,
            scale_width: keys.scale_width(n_embd, head_dim, &layers),
            window: keys.window()?,
            local_rope: keys.local_rope(&rope)?,
            rope,
            layers,
        })
    }
}

impl Hparams {
    /// Floating-point operations for the next `n_tokens` of a sequence of which `n_before` are known, up to the scores of the token after
    /// them: two for each multiply-add of the matrices and of attention, none for anything else.
    pub fn flops(&self, n_tokens: usize, n_before: usize) -> f64 {
        let [n_tokens, n_before, n_embd] = [n_tokens, n_before, self.n_embd].map(|n| n as f64);
        let n_keys = n_tokens * n_before + n_tokens * (n_tokens + 1.0) / 2.0;
        let layers = self.layers.iter().map(|layer| {
            let [n_q, n_kv] = [layer.n_head, layer.n_head_kv].map(|n| n as f64 * self.head_dim as f64);
            let n_ff = layer.feed_forward_outputs() - if self.family.is_gated { 0.0 } else { layer.n_ff as f64 };
            let weights = n_embd * (2.0 * n_q + 2.0 * n_kv + n_ff);
            2.0 * weights * n_tokens + 4.0 * n_q * n_keys
        });
        layers.sum::<f64>() + 2.0 * n_embd * self.n_vocab as f64
    }
}

impl LayerHparams {
    /// Rows of `n_embd` weights, or columns of them, that one token is multiplied with after attention.
    fn feed_forward_outputs(&self) -> f64 {
        let network = |n_ff: usize| 3.0 * n_ff as f64;
        match self.experts {
            None => network(self.n_ff),
            Some(ExpertHparams { n_expert, n_used, n_ff, n_ff_shared }) => {
                n_expert as f64 + n_used as f64 * network(n_ff) + n_ff_shared.map_or(0.0, |n_ff| 1.0 + network(n_ff))
            }
        }
    }
}

/// The metadata of one architecture.
struct Keys<'a> {
    model: &'a Model,
    family: &'static Family,
}

impl Keys<'_> {
    fn full(&self, key: &str) -> String {
        keys::of(self.family.name, key)
    }

    fn get(&self, key: &str) -> Option<ValueRef<'_>> {
        self.model.get(&self.full(key))
    }

    fn fault<T>(&self, key: &str, fault: Fault, detail: impl Into<String>) -> Result<T> {
        Err(Error::malformed(self.path(), Place::Field(self.full(key)), fault, detail))
    }

    fn path(&self) -> &Path {
        self.model.files().first().map_or(Path::new(""), |file| file.path())
    }

    /// One whole number of `1..=max`.
    fn count(&self, key: &str, max: u64) -> Result<usize> {
        match self.optional_count(key, max)? {
            Some(count) => Ok(count),
            None => self.fault(key, Fault::ValueType, "is missing; a whole number is required here"),
        }
    }

    fn optional_count(&self, key: &str, max: u64) -> Result<Option<usize>> {
        self.get(key).map(|value| self.checked(key, value, max)).transpose()
    }

    fn checked(&self, key: &str, value: ValueRef<'_>, max: u64) -> Result<usize> {
        match value.as_u64() {
            None => self.fault(key, Fault::ValueType, format!("is {}; a whole number is required here", value.value_type())),
            Some(count) if (1..=max).contains(&count) => Ok(usize::try_from(count).expect("limits fit a usize")),
            Some(count) => self.fault(key, Fault::HparamRange, format!("{count}, not in 1..={max}")),
        }
    }

    /// One number for all layers, or one for each.
    fn per_layer(&self, key: &str, n_layer: usize) -> Result<Option<Vec<usize>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let Some(array) = value.as_array() else {
            return Ok(Some(vec![self.checked(key, value, WIDTH_MAX)?; n_layer]));
        };
        if array.len() != n_layer {
            return self.fault(key, Fault::HparamRange, format!("{} values for {n_layer} layers", array.len()));
        }
        array.iter().map(|value| self.checked(key, value, WIDTH_MAX)).collect::<Result<_>>().map(Some)
    }

    fn layers(&self, n_layer: usize) -> Result<Vec<LayerHparams>> {
        let required = |key| match self.per_layer(key, n_layer)? {
            Some(values) => Ok(values),
            None => self.fault(key, Fault::ValueType, "is missing; a whole number is required here"),
        };
        let n_head = required(keys::ATTENTION_HEAD_COUNT)?;
        let n_ff = required(keys::FEED_FORWARD_LENGTH)?;
        let n_head_kv = self.per_layer(keys::ATTENTION_HEAD_COUNT_KV, n_layer)?.unwrap_or_else(|| n_head.clone());
        let layers = n_head.into_iter().zip(n_head_kv).zip(n_ff).zip(self.windows(n_layer)?);
        layers
            .map(|(((n_head, n_head_kv), n_ff), window)| {
                if !n_head.is_multiple_of(n_head_kv) {
                    let detail = format!("{n_head_kv} heads cannot be shared by {n_head} query heads");
                    return self.fault(keys::ATTENTION_HEAD_COUNT_KV, Fault::HparamRange, detail);
                }
                Ok(LayerHparams { n_head, n_head_kv, n_ff, experts: self.experts(n_ff)?, window })
            })
            .collect()
    }

    /// The experts of a layer whose one network would be `n_ff` wide.
    fn experts(&self, n_ff: usize) -> Result<Option<ExpertHparams>> {
        let has_some = self.get(keys::EXPERT_COUNT).is_some_and(|value| value.as_u64() != Some(0));
        let mixture = match (&self.family.mixture, has_some) {
            (None, true) => {
                let what = format!("running experts of architecture {}", self.family.name);
                return Err(Error::unsupported(what, "models of this architecture have one network in each layer"));
            }
            (None, false) => return Ok(None),
            (Some(mixture), false) if mixture.is_optional => return Ok(None),
            (Some(mixture), _) => mixture,
        };
        self.check_mixture(mixture)?;
        let n_expert = self.count(keys::EXPERT_COUNT, EXPERTS_MAX)?;
        let n_used = self.count(keys::EXPERT_USED_COUNT, n_expert as u64)?;
        let said = if mixture.is_optional { None } else { self.optional_count(keys::EXPERT_FEED_FORWARD_LENGTH, WIDTH_MAX)? };
        // Where the width of an expert is not said, Qwen's networks are as wide as all that a token uses, Mixtral's as one of them.
        let share = if mixture.is_optional { n_ff } else { n_ff.checked_div(n_used).unwrap_or(0).max(1) };
        let shared = self.optional_count(keys::EXPERT_SHARED_FEED_FORWARD_LENGTH, WIDTH_MAX)?.unwrap_or(n_ff);
        let n_ff_shared = mixture.has_shared.then_some(shared);
        Ok(Some(ExpertHparams { n_expert, n_used, n_ff: said.unwrap_or(share), n_ff_shared }))
    }

    /// llama.cpp does not look at these keys for the architectures here; a file that says otherwise means something else.
    fn check_mixture(&self, mixture: &Mixture) -> Result<()> {
        let is_usual = match self.get(keys::EXPERT_GATING_FUNC).map(|value| value.as_u64()) {
            None | Some(Some(0 | 1)) => match self.get(keys::EXPERT_WEIGHTS_SCALE).map(|value| value.as_f64()) {
                None => true,
                Some(scale) => scale == Some(0.0) || scale == Some(1.0),
            },
            Some(_) => false,
        };
        let is_normalised = match self.get(keys::EXPERT_WEIGHTS_NORM) {
            None => true,
            Some(value) => value.as_bool() == Some(mixture.normalises_weights),
        };
        if is_usual && is_normalised {
            return Ok(());
        }
        let what = format!("running {} with experts weighed in another way than this architecture's", self.family.name);
        Err(Error::unsupported(what, "a softmax over all experts, not scaled, can be run"))
    }

    /// The width of a head: said, or the embedding's share.
    fn head_dim(&self, n_embd: usize, layers: &[LayerHparams]) -> Result<usize> {
        let n_head = layers.first().map_or(1, |layer| layer.n_head);
        let share = if n_embd.is_multiple_of(n_head) { n_embd.checked_div(n_head) } else { None };
        let width = |key| match (self.optional_count(key, WIDTH_MAX)?, share) {
            (Some(width), _) | (None, Some(width)) => Ok(width),
            (None, None) => {
                let detail = format!("{n_head} heads do not divide {} {n_embd}", self.full(keys::EMBEDDING_LENGTH));
                self.fault(keys::ATTENTION_HEAD_COUNT, Fault::HparamRange, detail)
            }
        };
        let (key, value) = (width(keys::ATTENTION_KEY_LENGTH)?, width(keys::ATTENTION_VALUE_LENGTH)?);
        if key != value {
            let what = format!("running a model whose key heads are {key} and value heads {value} wide");
            return Err(Error::unsupported(what, "heads of one width can be run"));
        }
        if let Some(layer) = layers.iter().find(|layer| (layer.n_head as u64).saturating_mul(key as u64) > WIDTH_MAX) {
            let detail = format!("{} heads of {key} are wider than {WIDTH_MAX}", layer.n_head);
            return self.fault(keys::ATTENTION_HEAD_COUNT, Fault::HparamRange, detail);
        }
        Ok(key)
    }

    /// Rows of the embedding, with which `vocab_size` and the list of tokens have to agree: text would become tokens that have no row, or
    /// rows be chosen that no text stands for. Files without a list are run too.
    fn n_vocab(&self) -> Result<usize> {
        let path = self.path();
        let place = || Place::Tensor(TOKEN_EMBD.to_owned());
        let Some(table) = self.model.tensors().iter().find(|tensor| tensor.name == TOKEN_EMBD) else {
            return Err(Error::malformed(path, place(), Fault::MissingTensor, "the model has no embedding"));
        };
        let n_vocab = table.shape.first().copied().unwrap_or(0);
        if n_vocab == 0 || n_vocab > u64::from(u32::MAX) {
            return Err(Error::malformed(path, place(), Fault::ShapeMismatch, format!("{n_vocab} rows for the vocabulary")));
        }
        match self.optional_count(keys::VOCAB_SIZE, u64::from(u32::MAX))? {
            Some(said) if said as u64 != n_vocab => {
                self.fault(keys::VOCAB_SIZE, Fault::HparamRange, format!("{said}, but the embedding has {n_vocab} rows"))
            }
            _ => self.check_tokens(n_vocab).map(|()| usize::try_from(n_vocab).expect("a u32 fits a usize")),
        }
    }

    fn check_tokens(&self, n_vocab: u64) -> Result<()> {
        let listed = self.model.get(keys::TOKENIZER_TOKENS).and_then(|value| value.as_array());
        match listed.map(|tokens| tokens.len()) {
            Some(listed) if listed as u64 != n_vocab => {
                let place = Place::Field(keys::TOKENIZER_TOKENS.to_owned());
                let detail = format!("{listed} tokens, but the embedding has {n_vocab} rows");
                Err(Error::malformed(self.path(), place, Fault::TokenizerInvalid, detail))
            }
            _ => Ok(()),
        }
    }

    /// A number above zero that f32 can hold; `None` where there is none.
    fn positive(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            None => self.fault(key, Fault::ValueType, format!("is {}; a float is required here", value.value_type())),
            Some(x) if x > 0.0 && x <= f64::from(f32::MAX) => Ok(Some(x)),
            Some(x) => self.fault(key, Fault::HparamRange, format!("{x}; a number above 0 is required here")),
        }
    }

    fn norm_eps(&self) -> Result<f32> {
        let key = match self.family.norm {
            Norm::Rms => keys::ATTENTION_LAYER_NORM_RMS_EPSILON,
            Norm::Layer => keys::ATTENTION_LAYER_NORM_EPSILON,
        };
        match self.positive(key)? {
            #[allow(clippy::cast_possible_truncation)] // to the nearest f32, which it was stored as
            Some(eps) if eps < 1.0 => Ok(eps as f32),
            Some(eps) => self.fault(key, Fault::HparamRange, format!("{eps}, not below 1")),
            None => self.fault(key, Fault::ValueType, "is missing; a float is required here"),
        }
    }

    fn rope(&self, head_dim: usize) -> Result<Rope> {
        let n_rot = self.optional_count(keys::ROPE_DIMENSION_COUNT, WIDTH_MAX)?.unwrap_or(head_dim);
        if n_rot > head_dim || !n_rot.is_multiple_of(2) {
            let detail = format!("{n_rot}, not an even number of at most {head_dim}, the width of a head");
            return self.fault(keys::ROPE_DIMENSION_COUNT, Fault::HparamRange, detail);
        }
        let freq_base = self.positive(keys::ROPE_FREQ_BASE)?.unwrap_or(10_000.0);
        Ok(Rope { n_rot, freq_base, layout: self.family.rope, scaling: self.rope_scaling()? })
    }

    /// One of them is enough: that the other is missing is said where both are looked up.
    fn has_rope_factors(&self) -> bool {
        self.model.tensors().iter().any(|tensor| ROPE_FACTORS.contains(&tensor.name.as_str()))
    }

    fn local_rope(&self, rope: &Rope) -> Result<Option<Rope>> {
        if !self.family.has_windows {
            return Ok(None);
        }
        let freq_base = self.positive(keys::ROPE_FREQ_BASE_SWA)?.unwrap_or(10_000.0);
        Ok(Some(Rope { freq_base, scaling: RopeScaling::None, ..*rope }))
    }

    /// The window that the file states; converters write 0 for none.
    fn window(&self) -> Result<Option<usize>> {
        match self.get(keys::ATTENTION_SLIDING_WINDOW).and_then(ValueRef::as_u64) {
            Some(0) => Ok(None),
            _ => self.optional_count(keys::ATTENTION_SLIDING_WINDOW, CTX_MAX),
        }
    }

    /// The window of every layer that has one.
    fn windows(&self, n_layer: usize) -> Result<Vec<Option<usize>>> {
        /// Of Gemma 3's layers every sixth sees everything.
        const PATTERN: usize = 6;
        let Some(window) = self.window()?.filter(|_| self.family.has_windows) else { return Ok(vec![None; n_layer]) };
        let key = keys::ATTENTION_SLIDING_WINDOW_PATTERN;
        if let Some(array) = self.get(key).and_then(ValueRef::as_array) {
            let flags: Option<Vec<bool>> = array.iter().map(ValueRef::as_bool).collect();
            let Some(flags) = flags.filter(|flags| flags.len() == n_layer) else {
                return self.fault(key, Fault::HparamRange, format!("not a bool for each of {n_layer} layers"));
            };
            return Ok(flags.into_iter().map(|is_local| is_local.then_some(window)).collect());
        }
        let pattern = self.optional_count(key, LAYERS_MAX as u64)?.unwrap_or(PATTERN);
        let is_local = |layer: usize| layer.checked_rem(pattern).is_some_and(|at| at != pattern.saturating_sub(1));
        Ok((0..n_layer).map(|layer| is_local(layer).then_some(window)).collect())
    }

    /// Gemma 3 27B scales scores by the embedding's share of a head, which is not its width; llama.cpp knows it by its layers.
    fn scale_width(&self, n_embd: usize, head_dim: usize, layers: &[LayerHparams]) -> usize {
        match layers.first() {
            Some(layer) if self.family.name == "gemma3" && layers.len() == 62 => {
                n_embd.checked_div(layer.n_head).unwrap_or(head_dim).max(1)
            }
            _ => head_dim,
        }
    }

    /// A bound on the scores of tokens, as Gemma 2 has it, is not computed here.
    fn refuse_softcap(&self) -> Result<()> {
        match self.get(keys::FINAL_LOGIT_SOFTCAPPING) {
            None => Ok(()),
            Some(bound) if bound.as_f64() == Some(0.0) => Ok(()),
            Some(_) => {
                Err(Error::unsupported(format!("{} of {}", keys::FINAL_LOGIT_SOFTCAPPING, self.family.name), "no bound can be run"))
            }
        }
    }

    /// How the context was stretched. llama.cpp's converter writes no type for Phi-3's long contexts, and llama.cpp itself looks at the
    /// tensors alone, so they decide wherever no other way is named.
    fn rope_scaling(&self) -> Result<RopeScaling> {
        let name = match self.get(keys::ROPE_SCALING_TYPE).map(|value| value.as_str()) {
            None | Some(Some("none")) if self.has_rope_factors() => "longrope",
            None => "none",
            Some(Some(name)) => name,
            Some(None) => return self.fault(keys::ROPE_SCALING_TYPE, Fault::ValueType, "is no text"),
        };
        let factor = || match self.positive(keys::ROPE_SCALING_FACTOR)? {
            Some(factor) => Ok(factor),
            None => self.fault(keys::ROPE_SCALING_FACTOR, Fault::ValueType, "is missing; a float is required here"),
        };
        let n_ctx_orig = || match self.optional_count(keys::ROPE_SCALING_ORIGINAL_CONTEXT_LENGTH, CTX_MAX)? {
            Some(n_ctx) => Ok(n_ctx),
            None => self.count(keys::CONTEXT_LENGTH, CTX_MAX),
        };
        let or = |key, default| Ok(self.positive(key)?.unwrap_or(default));
        match name {
            "none" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: factor()? }),
            "yarn" => Ok(RopeScaling::Yarn {
                factor: factor()?,
                n_ctx_orig: n_ctx_orig()?,
                beta_fast: or(keys::ROPE_SCALING_YARN_BETA_FAST, 32.0)?,
                beta_slow: or(keys::ROPE_SCALING_YARN_BETA_SLOW, 1.0)?,
                attn_factor: or(keys::ROPE_SCALING_ATTN_FACTOR, 1.0)?,
            }),
            "longrope" => {
                Ok(RopeScaling::Long { n_ctx_orig: n_ctx_orig()?, attn_factor: or(keys::ROPE_SCALING_ATTN_FACTOR, 1.0)? })
            }
            other => {
                let what = format!("{} {other}", self.full(keys::ROPE_SCALING_TYPE));
                Err(Error::unsupported(what, "none, linear, yarn and longrope can be run"))
            }
        }
    }
}
