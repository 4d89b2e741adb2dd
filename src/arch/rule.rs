//! The kinds of rule that turn a source tensor into a GGUF tensor, and what comes out.

use super::hparams::Hparams;

/// Where the weights of a tensor to be written come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Origin {
    /// A tensor of the source.
    Source {
        /// Index into the source's tensors.
        tensor: usize,
        /// How its rows are rearranged.
        transform: Transform,
    },
    /// Computed from the configuration, such as `rope_freqs.weight`.
    Computed(Vec<f32>),
}

/// A tensor of the GGUF model, before its format is chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct MappedTensor {
    /// GGUF name.
    pub name: String,
    /// Row-major, 1 to 4 dimensions, none zero.
    pub shape: Vec<u64>,
    /// Where its weights come from.
    pub origin: Origin,
}

/// How the rows of a planned tensor come from the source tensor. Every variant is a pure function of row indices, so that a
/// tensor never has to be held whole; [`Transform::rows`] says what a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transform {
    /// Row for row.
    Copy,
    /// Llama's q/k rows: HF keeps the two rotary halves of a head apart, GGUF interleaves them.
    /// Output row `head*d + 2*i + half` is source row `head*d + half*d/2 + i`, with `d` = rows / `n_head`. A bias has rows of one weight.
    PermuteRope {
        /// Heads that the rows divide into: `n_head` for q, `n_head_kv` for k.
        n_head: u64,
    },
}

impl Transform {
    /// How a tensor of this row-major shape divides into rows: their number, and the weights in each.
    pub fn rows(self, shape: &[u64]) -> (u64, u64) {
        let (leading, rest) = match self {
            Transform::Copy => shape.split_at(shape.len().saturating_sub(1)),
            Transform::PermuteRope { .. } => shape.split_at(shape.len().min(1)),
        };
        (leading.iter().product(), rest.iter().product())
    }

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

/// One line of an architecture's tensor table. `{bid}` in both names stands for the layer.
#[derive(Debug)]
pub struct TensorRule {
    /// Name in the Hugging Face model.
    pub source: &'static str,
    /// Name in GGUF.
    pub name: &'static str,
    /// Row-major.
    pub shape: &'static [Dim],
    /// How its rows are rearranged.
    pub rows: Rows,
    /// Whether the model can do without it.
    pub need: Need,
}

/// A dimension, in terms of the hyperparameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dim {
    /// Tokens of the vocabulary.
    Vocab,
    /// Width of the residual stream.
    Embd,
    /// Width of the feed-forward layer.
    Ff,
    /// All query heads side by side.
    Heads,
    /// All key or value heads side by side.
    HeadsKv,
}

impl Dim {
    pub(super) fn len(self, hparams: &Hparams) -> u64 {
        let (n_head, n_head_kv) = (u64::from(hparams.n_head), u64::from(hparams.n_head_kv));
        match self {
            Dim::Vocab => hparams.n_vocab.into(),
            Dim::Embd => hparams.n_embd.into(),
            Dim::Ff => hparams.n_ff.into(),
            Dim::Heads => n_head * u64::from(hparams.head_dim),
            Dim::HeadsKv => n_head_kv * u64::from(hparams.head_dim),
        }
    }
}

/// Which [`Transform`] a rule asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// As they are.
    Same,
    /// The query heads' rotary halves are interleaved.
    RopeHeads,
    /// The same for the key heads.
    RopeHeadsKv,
}

impl Rows {
    pub(super) fn transform(self, hparams: &Hparams) -> Transform {
        match self {
            Rows::Same => Transform::Copy,
            Rows::RopeHeads => Transform::PermuteRope { n_head: hparams.n_head.into() },
            Rows::RopeHeadsKv => Transform::PermuteRope { n_head: hparams.n_head_kv.into() },
        }
    }
}

/// Whether a tensor must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Always.
    Required,
    /// When this flag of config.json is true; taken if it is there anyway.
    If(&'static str),
    /// Unless the output head is the token embedding.
    UnlessTied,
}

#[cfg(test)]
mod tests {
    use super::Transform;

    /// The definition: reshape to [n_head, 2, d/2], swap the last two axes, flatten.
    fn permuted(n_rows: u64, n_head: u64) -> Vec<u64> {
        let half = n_rows / n_head / 2;
        let mut rows = Vec::new();
        for head in 0..n_head {
            for i in 0..half {
                for side in 0..2 {
                    rows.push((head * 2 + side) * half + i);
                }
            }
        }
        rows
    }

    #[test]
    fn a_bias_is_permuted_weight_by_weight() {
        let permute = Transform::PermuteRope { n_head: 2 };
        assert_eq!(Transform::Copy.rows(&[6, 4]), (6, 4));
        assert_eq!(Transform::Copy.rows(&[2, 3, 4]), (6, 4));
        assert_eq!(Transform::Copy.rows(&[4]), (1, 4));
        assert_eq!(Transform::Copy.rows(&[]), (1, 1));
        assert_eq!(permute.rows(&[8, 3]), (8, 3));
        assert_eq!(permute.rows(&[8]), (8, 1));
    }

    #[test]
    fn rope_rows_interleave_the_halves_of_each_head() {
        for (n_head, head_dim) in [(1, 2), (1, 8), (4, 64), (3, 6), (8, 128), (2, 80)] {
            let n_rows = n_head * head_dim;
            let transform = Transform::PermuteRope { n_head };
            let found: Vec<u64> = (0..n_rows).map(|row| transform.source_row(row, n_rows)).collect();
            assert_eq!(found, permuted(n_rows, n_head), "{n_head} heads of {head_dim}");
        }
        let transform = Transform::PermuteRope { n_head: 2 };
        let rows: Vec<u64> = (0..8).map(|row| transform.source_row(row, 8)).collect();
        assert_eq!(rows, [0, 2, 1, 3, 4, 6, 5, 7]);
    }
}
