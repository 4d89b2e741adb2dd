//! Tensors of an output before their formats are chosen, and what planning has to say about them.

use super::Origin;
use super::choose::Source;
use crate::quant::Format;

/// A tensor whose format is still to be chosen.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    /// GGUF name.
    pub name: String,
    /// Row-major.
    pub shape: Vec<u64>,
    /// The format its source has; F32 for what is computed.
    pub stored: Format,
    /// The format it gets when nothing quantizes it.
    pub kept: Format,
    /// Where its weights come from.
    pub origin: Origin,
    /// What a recipe may do with it.
    pub source: Source,
}

/// Once is enough where several outputs are planned alike.
pub(super) fn add_warning(warnings: &mut Vec<String>, warning: String) {
    if !warnings.contains(&warning) {
        warnings.push(warning);
    }
}
