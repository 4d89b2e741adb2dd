//! What the kernels can compute: the one answer to whether a model can run on a GPU, which needs no GPU.

use super::kernels;
use crate::arch::describe::Family;
use crate::error::{Error, Result};
use crate::model::{MatrixShape, Needs, Operation, operations};
use crate::quant::Format;

/// Refuses a model that takes an operation which there is no kernel for.
///
/// # Errors
/// `Unsupported`, with the first of them.
pub fn check(needs: &Needs) -> Result<()> {
    match needs.operations.iter().find(|operation| !can(operation)) {
        None => Ok(()),
        Some(operation) => {
            let what = format!("running architecture {} on a GPU: no kernel does {}", needs.hparams.family.name, name(operation));
            Err(Error::unsupported(what, "use --device cpu"))
        }
    }
}

/// True where there are kernels for all that models of a family do, as far as their sizes allow.
pub fn runs(family: &Family) -> bool {
    operations(family).iter().all(can)
}

/// The widest heads that there are kernels for, and what widths are multiples of.
pub fn head_dims_max() -> (usize, usize) {
    let widths = |max| (1..=max).filter(|&head_dim| can(&Operation::Heads(head_dim)));
    // Shared memory of a GPU holds no tile of wider ones.
    (widths(1 << 12).max().unwrap_or(0), widths(1 << 12).min().unwrap_or(0))
}

/// True where there is a kernel for it.
fn can(operation: &Operation) -> bool {
    match *operation {
        Operation::LayerNorm | Operation::Gelu | Operation::Windows | Operation::BoundedAttention => true,
        Operation::ScaledScores | Operation::BoundedScores => true,
        Operation::Sinks
        | Operation::ClampedSwiglu
        | Operation::SharedKeys
        | Operation::NetworkBesideExperts
        | Operation::NormalisedValues
        | Operation::PlainInputs
        | Operation::GatedAttention
        | Operation::DeltaNet => false,
        Operation::HeadsInARow(n_heads) => kernels::has_heads_in_a_row(n_heads),
        Operation::Heads(head_dim) => kernels::has_heads(head_dim),
        Operation::Rows(MatrixShape { format, n_cols, .. }) => has_blocks(format) && kernels::has_float_rows(n_cols),
        // A matrix of one row has a way of its own; the others' rows are stored in pairs.
        Operation::Product(MatrixShape { format, n_rows, n_cols }) => {
            has_blocks(format) && kernels::has_row_of_blocks(format, n_cols) && (n_rows == 1 || n_rows.is_multiple_of(2))
        }
        // Rows of logits have gaps between them where they need them.
        Operation::Logits(MatrixShape { format, n_cols, .. }) => has_blocks(format) && kernels::has_row_of_blocks(format, n_cols),
    }
}

/// The formats of `kernels/block/all.cuh`.
fn has_blocks(format: Format) -> bool {
    format.can_dequantize() && !format.is_for_activations() && format != Format::F64
}

fn name(operation: &Operation) -> String {
    match operation {
        Operation::LayerNorm => "norms with a bias".to_owned(),
        Operation::Gelu => "GELU".to_owned(),
        Operation::Windows => "attention in windows".to_owned(),
        Operation::BoundedAttention => "attention with bounded scores".to_owned(),
        Operation::Sinks => "attention with sinks".to_owned(),
        Operation::SharedKeys => "attention to the keys of another layer".to_owned(),
        Operation::NetworkBesideExperts => "a network beside experts".to_owned(),
        Operation::NormalisedValues => "norms of values".to_owned(),
        Operation::PlainInputs => "products with states that are not normalised".to_owned(),
        Operation::ClampedSwiglu => "SwiGLU with bounds".to_owned(),
        Operation::GatedAttention => "attention whose result is gated".to_owned(),
        Operation::DeltaNet => "gated delta nets".to_owned(),
        Operation::ScaledScores => "a factor on scores of tokens".to_owned(),
        Operation::BoundedScores => "a bound on scores of tokens".to_owned(),
        Operation::HeadsInARow(n_heads) => format!("attention with {n_heads} heads"),
        Operation::Heads(head_dim) => format!("attention with heads of {head_dim}"),
        Operation::Rows(MatrixShape { format, n_cols, .. }) => format!("an embedding of {n_cols} numbers in {format}"),
        Operation::Product(MatrixShape { format, n_rows, n_cols }) | Operation::Logits(MatrixShape { format, n_rows, n_cols }) => {
            format!("products with a matrix [{n_rows}, {n_cols}] in {format}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernels are compiled for the formats of one list, which is not Rust.
    #[test]
    fn the_formats_are_those_of_the_kernels() {
        let list = include_str!("../../kernels/block/all.cuh");
        for format in Format::ALL {
            assert_eq!(has_blocks(*format), list.contains(&format!("INSTANCE({format})")), "{format}");
        }
    }

    #[test]
    fn shapes_that_no_launch_takes_are_known_before() {
        let product = |n_rows, n_cols| can(&Operation::Product(MatrixShape { format: Format::F16, n_rows, n_cols }));
        assert!(product(4096, 4096) && product(1, 64) && !product(7, 64) && !product(2, 1 << 31));
        // Every vocabulary is one that logits can have.
        assert!(can(&Operation::Logits(MatrixShape { format: Format::Q4_K, n_rows: 307, n_cols: 256 })));
        let rows = |n_cols| can(&Operation::Rows(MatrixShape { format: Format::F32, n_rows: 7, n_cols }));
        assert!(rows(36) && !rows(34));
        for (head_dim, expected) in [(8, true), (64, true), (100, false), (256, true), (512, true), (516, false), (520, false)] {
            assert_eq!(can(&Operation::Heads(head_dim)), expected, "{head_dim}");
        }
    }
}
