//! The kinds of rule that turn a source tensor into a GGUF tensor, and what comes out.

use super::hparams::Hparams;
use crate::rows::{Edit, Origin, Part, RowMap};

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

/// Which [`RowMap`] a rule asks for.
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
    pub(super) fn origin(self, tensor: usize, shape: &[u64], hparams: &Hparams) -> Origin {
        let n_head = match self {
            Rows::Same => return Origin::copy(tensor, shape),
            Rows::RopeHeads => hparams.n_head,
            Rows::RopeHeadsKv => hparams.n_head_kv,
        };
        Origin::Parts(vec![Part { tensor, n_rows: shape[0], rows: RowMap::RopeHeads { n_head: n_head.into() }, edit: Edit::Same }])
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
