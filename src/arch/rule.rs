//! The kinds of transform that turn a source tensor into a GGUF tensor.

/// How the rows of a planned tensor come from the source tensor. Every variant is a pure function of row indices, so that a
/// tensor never has to be held whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transform {
    /// Row for row.
    Copy,
    /// Llama's q/k rows: HF keeps the two rotary halves of a head apart, GGUF interleaves them.
    /// Output row `head*d + 2*i + half` is source row `head*d + half*d/2 + i`, with `d` = rows / `n_head`.
    PermuteRope {
        /// Heads that the rows divide into: `n_head` for q, `n_head_kv` for k.
        n_head: u64,
    },
}

impl Transform {
    /// The source row of an output row. `n_rows` is the number of rows of the tensor.
    pub fn source_row(self, row: u64, n_rows: u64) -> u64 {
        match self {
            Transform::Copy => row,
            Transform::PermuteRope { n_head } => {
                let head_rows = n_rows / n_head;
                let (head, within) = (row / head_rows, row % head_rows);
                head * head_rows + (within % 2) * (head_rows / 2) + within / 2
            }
        }
    }
}
