//! The plan: pure data that says which bytes go where, made before a weight is read.
//!
//! The choice of a type is a pure function of (name, shape, recipe, facts about the model).
//!
//! ```text
//! metadata, tensor names and shapes ──> facts ┐
//! preset (rows of recipe.rs) ─────────────────┼─> choose ──> assemble ──> Plan
//! overrides (--tensor-type, --pure, ...) ─────┘       ^
//! importance matrix ──────────────────────────────────┘ the importance of each tensor's columns
//! ```

mod assemble;
mod choose;
mod convert;
mod draft;
mod facts;
mod importance;
mod kept;
mod likeness;
mod list;
mod menu;
mod naming;
mod quantize;
pub mod recipe;
mod summary;

use std::sync::Arc;

use crate::gguf::Metadata;
use crate::imatrix::{Coverage, Importance};
use crate::quant::Format;
pub use crate::rows::Origin;

pub use choose::{Candidate, Choice, Choices, NameOverride, Overrides, Source, choose, parse_format};
pub use convert::{ConvertOptions, convert, convert_as, open_folder};
pub use facts::read_facts;
pub use list::{parse_list, predicted_kld, write_list};
pub use menu::Menu;
pub use naming::{convention_name, paths_by_name, paths_in_folder};
pub use quantize::{QuantizeOptions, quantize};
pub use summary::{FormatTotal, Summary};

/// Everything one run will write.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// One per `--type`.
    pub outputs: Vec<OutputPlan>,
    /// What the user should know before the work starts: one sentence each.
    pub warnings: Vec<String>,
    /// How far the importance matrix, where one was given, covers the tensors that are quantized.
    pub coverage: Option<Coverage>,
}

/// What a file says of how its blocks were calibrated.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    /// By which texts.
    pub texts: Vec<CalibrationText>,
    /// Chunks of all of them.
    pub chunk_count: u32,
    /// Tokens per chunk.
    pub chunk_size: u32,
    /// By how much scores are expected to diverge, in nats a token, where types were chosen by that; before, any number.
    pub predicted_kld: Option<f32>,
}

/// A text that blocks are calibrated on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CalibrationText {
    /// What the file calls it.
    pub name: String,
    /// Of its bytes, in hexadecimal digits.
    pub sha256: String,
    /// How many of its tokens the model has seen.
    pub n_tokens: u32,
}

impl Calibration {
    /// Replaces what `metadata` says of a calibration.
    pub fn describe(&self, metadata: &mut Metadata) {
        importance::describe_calibration(self, metadata);
    }
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
    /// The importance of its columns, where that makes a difference to its format.
    pub importance: Option<Arc<Importance>>,
    /// Why this format, where it is not simply the recipe's base type: shown by `--dry-run`.
    pub reason: Option<String>,
}
