//! HF -> GGUF as data: one short file per family says which tensors and keys a model has. No I/O.
//!
//! [`find`] picks the family by the class that config.json names; [`Arch::map_tensors`] and [`Arch::metadata`] read its tables.

pub mod describe;
pub mod family;
mod general;
mod hparams;
mod llama;
mod map;
mod metadata;
mod metadata_numbers;
mod naming;
pub(crate) mod numbers;
mod rope;
pub mod rule;
pub mod sizes;

pub use general::{Facts, general};
pub use hparams::{Class, Hparams as ConfigHparams};
pub use metadata_numbers::architectures;
pub use rule::MappedTensor;
pub use sizes::{ExpertHparams, Hparams, LayerHparams, Rope, RopeScaling};

use crate::error::{Error, Result};
use crate::gguf::Value;
use crate::hf::Config;
use rule::TensorRule;

/// Every family, one line each.
pub const ARCHS: &[Arch] = &[llama::LLAMA];

/// A family of models that share tensor names and hyperparameters.
#[derive(Debug)]
pub struct Arch {
    /// `general.architecture`, which prefixes the family's keys.
    pub name: &'static str,
    /// The Hugging Face classes it covers.
    pub classes: &'static [Class],
    /// Every tensor it can have.
    pub tensors: &'static [TensorRule],
    /// Ends of names of tensors that are left out.
    pub ignored_suffixes: &'static [&'static str],
    /// Keys beyond those every family has.
    pub keys: &'static [KeyRule],
}

/// The suffix of a key, and its value.
pub type KeyRule = (&'static str, fn(&ConfigHparams) -> Value);

/// The family of the model that `config` describes.
///
/// # Errors
/// `ConfigField` when config.json names no class; `Unsupported` for a class that no family covers, and for weights that are already
/// quantized.
pub fn find(config: &Config) -> Result<&'static Arch> {
    let class = config.class()?;
    let Some(arch) = ARCHS.iter().find(|arch| arch.class(class).is_some()) else {
        let known: Vec<&str> = ARCHS.iter().flat_map(|arch| arch.classes).map(|class| class.name).collect();
        let what = format!("{}: models of class {class:?} are not supported", config.path().display());
        return Err(Error::unsupported(what, format!("supported are {}", known.join(", "))));
    };
    if let Some(quantization) = config.value("quantization_config") {
        let method = quantization.get("quant_method").and_then(|method| method.as_str()).unwrap_or("unknown method");
        let what = format!("{}: the weights are already quantized ({method})", config.path().display());
        return Err(Error::unsupported(what, "use the original model in F32, F16 or BF16"));
    }
    Ok(arch)
}

impl Arch {
    fn class(&self, name: &str) -> Option<&'static Class> {
        self.classes.iter().find(|class| class.name == name)
    }

    /// The hyperparameters of the model that `config` describes.
    ///
    /// # Errors
    /// Those of [`ConfigHparams::read`]; `Unsupported` when `config` is of another family.
    pub fn hparams(&self, config: &Config) -> Result<ConfigHparams> {
        let name = config.class()?;
        let class = self.class(name).ok_or_else(|| {
            Error::unsupported(format!("{name:?} is not a {} model", self.name), "ask arch::find for the family of a model")
        })?;
        ConfigHparams::read(config, class)
    }
}
