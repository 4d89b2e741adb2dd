//! Hyperparameters as GGUF metadata states them.

#![deny(clippy::arithmetic_side_effects, clippy::cast_possible_truncation, clippy::indexing_slicing, clippy::unwrap_used)]

use std::path::Path;

use super::describe::{Family, Kind, Layers, Number, Pattern, Weighing};
use super::family::FAMILIES;
use super::numbers::{self, CTX_MAX, LAYERS_MAX};
use super::sizes::{Hparams, Numbers, RopeScaling, Stated};
use crate::error::{Error, Fault, Place, Result};
use crate::gguf::{Model, ValueRef, keys};
use crate::hf::Rounding;
use crate::names::{ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT, TOKEN_EMBD};
use crate::source::TensorSource;

impl Hparams {
    /// Reads and checks a GGUF model's hyperparameters.
    ///
    /// # Errors
    /// `Unsupported` for architectures and features that cannot be run; `ValueType`, `HparamRange`, `MissingTensor` and `ShapeMismatch`
    /// for what is missing, or cannot be.
    pub fn read(model: &Model) -> Result<Hparams> {
        let architecture = model.architecture()?;
        let Some(family) = FAMILIES.iter().find(|family| family.name == architecture) else {
            let known: Vec<_> = architectures().collect();
            let shown: String = architecture.chars().take(64).collect();
            return Err(Error::unsupported(
                format!("unsupported architecture {shown}"),
                format!("{} can be run", known.join(", ")),
            ));
        };
        Hparams::read_as(family, model)
    }

    /// The same of a model whose family is known.
    ///
    /// # Errors
    /// As [`Hparams::read`].
    pub fn read_as(family: &'static Family, model: &Model) -> Result<Hparams> {
        Hparams::of(family, &InMetadata { model, family })
    }
}

/// The names of the architectures that can be run.
pub fn architectures() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|family| family.name)
}

/// The metadata of one architecture.
struct InMetadata<'a> {
    model: &'a Model,
    family: &'static Family,
}

impl InMetadata<'_> {
    fn full(&self, key: &str) -> String {
        keys::of(self.family.name, key)
    }

    fn get(&self, key: &str) -> Option<ValueRef<'_>> {
        self.model.get(&self.full(key))
    }

    fn fail<T>(&self, key: &str, fault: Fault, detail: impl Into<String>) -> Result<T> {
        Err(Error::malformed(self.path(), Place::Field(self.full(key)), fault, detail))
    }

    fn path(&self) -> &Path {
        self.model.files().first().map_or(Path::new(""), |file| file.path())
    }

    /// A whole number of `1..=max`.
    fn count(&self, key: &str, max: u64) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            None => self.fail(key, Fault::ValueType, format!("is {}; a whole number is required here", value.value_type())),
            Some(count) if (1..=max).contains(&count) => Ok(Some(usize::try_from(count).expect("limits fit a usize"))),
            Some(count) => self.fail(key, Fault::HparamRange, format!("{count}, not in 1..={max}")),
        }
    }

    /// A number above zero that f32 can hold; `None` where there is none.
    fn positive(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            None => self.fail(key, Fault::ValueType, format!("is {}; a float is required here", value.value_type())),
            Some(x) if x > 0.0 && x <= f64::from(f32::MAX) => Ok(Some(x)),
            Some(x) => self.fail(key, Fault::HparamRange, format!("{x}; a number above 0 is required here")),
        }
    }

    /// One of them is enough: that the other is missing is said where both are looked up.
    fn has_rope_factors(&self) -> bool {
        self.model.tensors().iter().any(|tensor| [ROPE_FACTORS_SHORT, ROPE_FACTORS_LONG].contains(&tensor.name.as_str()))
    }

    fn check_tokens(&self, n_vocab: u64) -> Result<()> {
        let listed = self.model.get(keys::TOKENIZER_TOKENS).and_then(ValueRef::as_array);
        match listed.map(|tokens| tokens.len()) {
            Some(listed) if listed as u64 != n_vocab => {
                let place = Place::Field(keys::TOKENIZER_TOKENS.to_owned());
                let detail = format!("{listed} tokens, but the embedding has {n_vocab} rows");
                Err(Error::malformed(self.path(), place, Fault::TokenizerInvalid, detail))
            }
            _ => Ok(()),
        }
    }
}

impl Numbers for InMetadata<'_> {
    fn stated(&self, number: &Number) -> Result<Option<Stated>> {
        let Some(value) = self.get(number.key) else { return Ok(None) };
        let wrong = |wanted: &str| {
            self.fail(number.key, Fault::ValueType, format!("is {}; a {wanted} is required here", value.value_type()))
        };
        let stated = match number.kind {
            Kind::Count(..) => value.as_u64().map(Stated::Count),
            Kind::PerLayer(..) => match value.as_array() {
                None => value.as_u64().map(Stated::Count),
                Some(array) if array.len() > usize::try_from(LAYERS_MAX).unwrap_or(usize::MAX) => {
                    return self.fail(
                        number.key,
                        Fault::HparamRange,
                        format!("{} values, more than any model has layers", array.len()),
                    );
                }
                Some(array) => array.iter().map(ValueRef::as_u64).collect::<Option<_>>().map(Stated::Counts),
            },
            Kind::Positive | Kind::NotNegative => match value.as_f64() {
                Some(x) => Some(Stated::Float(x)),
                None => return wrong("float"),
            },
            Kind::Flag => match value.as_bool() {
                Some(x) => Some(Stated::Flag(x)),
                None => return wrong("bool"),
            },
        };
        stated.map_or_else(|| wrong("whole number"), |stated| Ok(Some(stated)))
    }

    fn fault(&self, number: &Number, fault: Fault, detail: String) -> Error {
        Error::malformed(self.path(), Place::Field(self.full(number.key)), fault, detail)
    }

    fn rope_scaling(&self) -> Result<RopeScaling> {
        // llama.cpp's converter writes no type for Phi-3's long contexts, and llama.cpp itself looks at the tensors alone, so they decide
        // wherever no other way is named.
        let name = match self.get(keys::ROPE_SCALING_TYPE).map(ValueRef::as_str) {
            None | Some(Some("none")) if self.has_rope_factors() => "longrope",
            None => "none",
            Some(Some(name)) => name,
            Some(None) => return self.fail(keys::ROPE_SCALING_TYPE, Fault::ValueType, "is no text"),
        };
        let factor = || match self.positive(keys::ROPE_SCALING_FACTOR)? {
            Some(factor) => Ok(factor),
            None => self.fail(keys::ROPE_SCALING_FACTOR, Fault::ValueType, "is missing; a float is required here"),
        };
        let n_ctx_orig = || {
            let original = self.count(keys::ROPE_SCALING_ORIGINAL_CONTEXT_LENGTH, CTX_MAX)?;
            match original.map_or_else(|| self.count(keys::CONTEXT_LENGTH, CTX_MAX), |n_ctx| Ok(Some(n_ctx)))? {
                Some(n_ctx) => Ok(n_ctx),
                None => Err(self.fault(
                    &numbers::CONTEXT_LENGTH,
                    Fault::ValueType,
                    "is missing; a whole number is required here".to_owned(),
                )),
            }
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
                rounding: match self.get(keys::ROPE_SCALING_YARN_TRUNCATE).map(ValueRef::as_bool) {
                    None | Some(Some(true)) => Rounding::Outwards,
                    Some(Some(false)) => Rounding::None,
                    Some(None) => return self.fail(keys::ROPE_SCALING_YARN_TRUNCATE, Fault::ValueType, "is no bool"),
                },
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

    fn last_of_periods(&self, n_layer: usize, period: usize) -> Result<Vec<bool>> {
        let (list, interval) = match self.family.layers {
            Layers::Periodic { stated: Pattern::Recurrent, .. } => {
                (keys::ATTENTION_RECURRENT_LAYERS, keys::FULL_ATTENTION_INTERVAL)
            }
            _ => (keys::ATTENTION_SLIDING_WINDOW_PATTERN, keys::ATTENTION_SLIDING_WINDOW_PATTERN),
        };
        if let Some(array) = self.get(list).and_then(ValueRef::as_array) {
            // Blocks that foretell more tokens are listed, too.
            let n_block = self.count(keys::BLOCK_COUNT, LAYERS_MAX)?.unwrap_or(n_layer);
            let is_other: Option<Vec<bool>> =
                if array.len() == n_block { array.iter().take(n_layer).map(ValueRef::as_bool).collect() } else { None };
            let Some(is_other) = is_other else {
                return self.fail(list, Fault::HparamRange, format!("not a bool for each of {n_block} layers"));
            };
            return Ok(is_other.into_iter().map(|is_other| !is_other).collect());
        }
        let period = self.count(interval, LAYERS_MAX)?.unwrap_or(period);
        Ok((1..=n_layer).map(|layer| layer.checked_rem(period) == Some(0)).collect())
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
        match self.count(keys::VOCAB_SIZE, u64::from(u32::MAX))? {
            Some(stated) if stated as u64 != n_vocab => {
                self.fail(keys::VOCAB_SIZE, Fault::HparamRange, format!("{stated}, but the embedding has {n_vocab} rows"))
            }
            _ => self.check_tokens(n_vocab).map(|()| usize::try_from(n_vocab).expect("a u32 fits a usize")),
        }
    }

    /// llama.cpp does not look at these keys for the architectures here; a file that says otherwise means something else.
    fn check_weighing(&self, weighing: Weighing) -> Result<()> {
        let is_softmax = match self.get(keys::EXPERT_GATING_FUNC).map(ValueRef::as_u64) {
            None | Some(Some(0 | 1)) => true,
            Some(_) => false,
        };
        let is_unscaled = match self.get(keys::EXPERT_WEIGHTS_SCALE).map(ValueRef::as_f64) {
            None => true,
            Some(scale) => scale == Some(0.0) || scale == Some(1.0),
        };
        let is_normalised = match self.get(keys::EXPERT_WEIGHTS_NORM) {
            None => true,
            Some(value) => value.as_bool() == Some(weighing == Weighing::AmongChosen),
        };
        if is_softmax && is_unscaled && is_normalised {
            return Ok(());
        }
        let what = format!("running {} with experts weighed in another way than this architecture's", self.family.name);
        Err(Error::unsupported(what, "a softmax over all experts, not scaled, can be run"))
    }

    fn check_rest(&self) -> Result<()> {
        let has = |number: &Number| self.family.numbers.iter().any(|own| own.key == number.key);
        let unbounded = |number: &Number| match self.get(number.key) {
            Some(bound) if !has(number) && bound.as_f64() != Some(0.0) => {
                Err(Error::unsupported(format!("{} of {}", number.key, self.family.name), "no bound can be run"))
            }
            _ => Ok(()),
        };
        unbounded(&numbers::FINAL_SOFTCAP)?;
        unbounded(&numbers::ATTN_SOFTCAP)?;
        let has_experts = self.get(keys::EXPERT_COUNT).is_some_and(|value| value.as_u64() != Some(0));
        if has_experts && !has(&numbers::EXPERT_COUNT) {
            let what = format!("running experts of architecture {}", self.family.name);
            return Err(Error::unsupported(what, "models of this architecture have one network in each layer"));
        }
        Ok(())
    }
}
