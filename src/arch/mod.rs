//! Architectures: one short file of data per family says what its models are, for both directions. No I/O.
//!
//! [`find`] picks the family by the class that config.json names; [`Found::read`] reads its hyperparameters, from which follow the tensors
//! and keys of the GGUF file. [`Hparams::read`] reads the same of a GGUF file.

mod config_numbers;
mod delta_sizes;
pub mod describe;
pub mod family;
mod general;
mod long_rope;
mod map;
mod metadata;
mod metadata_numbers;
mod naming;
mod nearest;
mod notes;
pub mod numbers;
mod rope;
mod shapes;
pub mod sizes;
mod source_names;
mod tensors;

pub use delta_sizes::DeltaHparams;
pub use family::{FAMILIES, LLAMA_CPP, is_known};
pub use general::{Facts, Size, general};
pub use map::{Mapped, MappedTensor};
pub use metadata_numbers::architectures;
pub use nearest::check;
pub use shapes::check_shapes;
pub use sizes::{ExpertHparams, Hparams, LayerHparams, Rope, RopeScaling};

use config_numbers::InConfig;
use describe::{Class, Family};

use crate::error::Result;
use crate::gguf::Metadata;
use crate::hf::{Config, UnreadableTensor};
use crate::source::SourceTensor;

/// What config.json is of.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    /// Its family.
    pub family: &'static Family,
    /// Its class.
    pub class: &'static Class,
}

/// A model's hyperparameters as config.json states them.
pub struct Described<'a> {
    numbers: InConfig<'a>,
    hparams: Hparams,
}

/// The family of the model that `config` describes.
///
/// # Errors
/// `ConfigField` when config.json names no class; `Unsupported` for a class that no family covers.
pub fn find(config: &Config) -> Result<Found> {
    let class = config.class()?;
    FAMILIES.iter().find_map(|family| Found::within(family, class)).ok_or_else(|| nearest::unknown_class(config, &[]))
}

impl Found {
    /// A class of a family; `None` where it has none of the name.
    pub fn within(family: &'static Family, class: &str) -> Option<Found> {
        family.classes.iter().find(|own| own.name == class).map(|class| Found { family, class })
    }

    /// Reads and checks the hyperparameters.
    ///
    /// # Errors
    /// `ConfigField` for a missing field or one of the wrong type, `HparamRange` for one with an impossible value, `Unsupported` for what
    /// GGUF files of the architecture do not have.
    pub fn read(self, config: &Config) -> Result<Described<'_>> {
        self.read_with(config, std::iter::empty())
    }

    /// The same of a model whose tensors are known by name: whether it has blocks that foretell more tokens is not a matter of config.json,
    /// which fine-tunes keep when they lose them.
    ///
    /// # Errors
    /// As [`Found::read`].
    pub fn read_with<'c, 'n>(self, config: &'c Config, names: impl Iterator<Item = &'n str>) -> Result<Described<'c>> {
        let numbers = InConfig { n_drafts: map::n_drafts(self.family, names), ..InConfig::new(config, self.family, self.class)? };
        let hparams = numbers.hparams()?;
        numbers.is_tied()?;
        Ok(Described { numbers, hparams })
    }
}

impl Described<'_> {
    /// Its sizes.
    pub fn hparams(&self) -> &Hparams {
        &self.hparams
    }

    /// `general.architecture` apart, every key that describes the model.
    ///
    /// # Errors
    /// `ConfigField` for a field of the wrong type.
    pub fn metadata(&self) -> Result<Metadata> {
        metadata::metadata(&self.numbers, &self.hparams)
    }

    /// What the user should know about what config.json says: one sentence each.
    ///
    /// # Errors
    /// `Unsupported` for what files of this architecture do not have; `ConfigField`.
    pub fn notes(&self) -> Result<Vec<String>> {
        notes::notes(&self.numbers, &self.hparams)
    }

    /// Maps every tensor of the source. `unreadable` names tensors that are in the source in types that are not converted; `n_tokens` is how
    /// many rows of the embedding are written, where these are fewer than config.json says.
    ///
    /// # Errors
    /// `MissingTensor`, `UnmappedTensor`, `ShapeMismatch` by name; `Unsupported` when a tensor of the model is not of type F32, F16,
    /// BF16 or F64, and for adapters that are not merged and weights that are quantized.
    pub fn map_tensors(&self, source: &[SourceTensor], unreadable: &[UnreadableTensor], n_tokens: Option<u64>) -> Result<Mapped> {
        map::map(&self.numbers, &self.hparams, source, unreadable, n_tokens)
    }
}

/// What converts and where it runs, as a table in Markdown: README.md shows that of [`FAMILIES`]. `runs_on` names the machines.
pub fn table<'f>(families: impl IntoIterator<Item = &'f Family>, runs_on: impl Fn(&Family) -> &'static str) -> String {
    let mut table = String::from("| architecture | models | Hugging Face classes | runs on |\n|---|---|---|---|\n");
    for family in families {
        let classes: Vec<String> = family.classes.iter().map(|class| format!("`{}`", class.name)).collect();
        table += &format!("| `{}` | {} | {} | {} |\n", family.name, family.models, classes.join(", "), runs_on(family));
    }
    table
}

/// The same as lines of text, for a terminal.
pub fn list<'f>(families: impl IntoIterator<Item = &'f Family>) -> String {
    families.into_iter().fold(String::new(), |text, family| format!("{text}  {:<10} {}\n", family.name, family.models))
}

/// The classes that convert, for messages.
fn supported_classes() -> String {
    FAMILIES.iter().flat_map(|family| family.classes).map(|class| class.name).collect::<Vec<_>>().join(", ")
}
