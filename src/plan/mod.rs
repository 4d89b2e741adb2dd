//! The plan: pure data that says which bytes go where, made before a weight is read.
//!
//! The choice of a type is a pure function of (name, shape, recipe, facts about the model).

mod choose;
pub mod recipe;
pub mod role;

pub use choose::{Candidate, Choice, Choices, NameOverride, Overrides, choose, parse_format};

pub use crate::arch::Origin;
use crate::gguf::Metadata;
use crate::quant::Format;

/// Everything one run will write.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// One per `--type`.
    pub outputs: Vec<OutputPlan>,
}

/// One GGUF model to write (one file, or several shards).
#[derive(Debug, Clone, PartialEq)]
pub struct OutputPlan {
    /// What a person calls it: `Q4_K_M`.
    pub file_type: String,
    /// Complete metadata but for the `split.*` keys, in the order written.
    pub metadata: Metadata,
    /// In the order written.
    pub tensors: Vec<PlannedTensor>,
}

/// One tensor of an output.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedTensor {
    /// GGUF name.
    pub name: String,
    /// Row-major, 1 to 4 dimensions.
    pub shape: Vec<u64>,
    /// How it will be stored.
    pub format: Format,
    /// Where its weights come from.
    pub origin: Origin,
    /// Why this format, where it is not simply the recipe's base type: shown by `--dry-run`.
    pub reason: Option<String>,
}
