//! What became of a matrix: how it was rounded, and what held-out text loses by that.

use crate::quant::Format;

/// Damping, in parts of the mean square: first, and where held-out text finds that too little.
pub(super) const LAMBDAS: [f32; 2] = [0.05, 0.5];

/// What became of a tensor, or of the part of one that has inputs of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The tensor's name.
    pub name: String,
    /// What it is stored as.
    pub format: Format,
    /// How it was rounded.
    pub method: Method,
    /// What held-out text loses by it, in the unit that says where it was measured.
    pub error: f64,
    /// What it would lose by ggml's rounding with the same text's importance.
    pub plain_error: f64,
}

/// How a tensor was rounded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// By second moments, damped by this part of their mean square.
    Calibrated {
        /// The part.
        lambda: f32,
    },
    /// As ggml does, by importance.
    Importance,
}

/// The blocks of a matrix.
#[derive(Debug, Clone)]
pub(super) struct Made {
    /// In its tensor.
    pub first_row: usize,
    pub blocks: Vec<u8>,
    pub choice: Choice,
}

impl Made {
    /// True where it is the matrix with this first row of the tensor, in this format.
    pub fn is_of(&self, name: &str, first_row: usize, format: Format) -> bool {
        self.choice.name == name && self.first_row == first_row && self.choice.format == format
    }
}

/// True where one loss is less than another; what is not finite is never less.
pub(super) fn loss_is_better(error: f64, than: f64) -> bool {
    error.is_finite() && (error < than || !than.is_finite())
}
