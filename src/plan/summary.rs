//! Totals of an output: bytes, bits per weight, and how much of it each format takes.

use std::collections::BTreeMap;

use super::OutputPlan;
use crate::quant::{Format, bits_per_weight};

/// Totals over the tensors of one output, headers and padding not counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Weights of all tensors.
    pub n_weights: u64,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
    /// By format, the largest share first.
    pub by_format: Vec<FormatTotal>,
}

/// The share of one format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FormatTotal {
    /// The format.
    pub format: Format,
    /// Tensors in it.
    pub n_tensors: usize,
    /// Weights in it.
    pub n_weights: u64,
    /// Bytes they take.
    pub size_bytes: u64,
}

impl Summary {
    /// Bits that a weight takes on average, 0 where there are no weights.
    pub fn bits_per_weight(&self) -> f64 {
        bits_per_weight(self.tensor_bytes, self.n_weights)
    }
}

impl OutputPlan {
    /// Totals over the tensors.
    pub fn summary(&self) -> Summary {
        let mut by_format: BTreeMap<Format, FormatTotal> = BTreeMap::new();
        for tensor in &self.tensors {
            let format = tensor.format;
            let total = by_format.entry(format).or_insert(FormatTotal { format, n_tensors: 0, n_weights: 0, size_bytes: 0 });
            total.n_tensors += 1;
            total.n_weights = total.n_weights.saturating_add(tensor.shape.iter().fold(1, |n: u64, &dim| n.saturating_mul(dim)));
            // A plan holds no tensor without a size: whoever made it has refused that.
            total.size_bytes = total.size_bytes.saturating_add(format.tensor_bytes(&tensor.shape).unwrap_or(0));
        }
        let mut by_format: Vec<FormatTotal> = by_format.into_values().collect();
        by_format.sort_by_key(|total| std::cmp::Reverse(total.size_bytes));
        Summary {
            n_weights: by_format.iter().fold(0, |sum, total| sum.saturating_add(total.n_weights)),
            tensor_bytes: by_format.iter().fold(0, |sum, total| sum.saturating_add(total.size_bytes)),
            by_format,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Origin, PlannedTensor};

    #[test]
    fn shares_add_up() {
        let tensor = |shape: &[u64], format| PlannedTensor {
            name: "x.weight".to_owned(),
            shape: shape.to_vec(),
            format,
            origin: Origin::Computed(vec![]),
            importance: None,
            reason: None,
        };
        let tensors = vec![tensor(&[256], Format::F32), tensor(&[2, 256], Format::Q4_K), tensor(&[2, 4, 256], Format::Q4_K)];
        let output = OutputPlan { file_type: "Q4_K_M".to_owned(), metadata: vec![], tensors };
        let summary = output.summary();
        assert_eq!((summary.n_weights, summary.tensor_bytes), (256 + 2560, 1024 + 1440));
        assert_eq!(summary.by_format.iter().map(|total| total.format).collect::<Vec<_>>(), [Format::Q4_K, Format::F32]);
        assert_eq!((summary.by_format[0].n_tensors, summary.by_format[0].n_weights), (2, 2560));
        assert!((summary.bits_per_weight() - 7.0).abs() < 1e-9);
    }
}
