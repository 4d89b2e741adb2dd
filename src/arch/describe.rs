//! The vocabulary that family files are written in: pure data, from which both directions are read off.
//!
//! ```text
//! Family ── numbers ──────────────> Hparams            from config.json (converting) and from GGUF metadata (running, quantizing)
//!        ── embedding, layers, ───> tensor rules       GGUF name <- source rows, for converting
//!           output_norm, output ──> catalog            tensors that running needs, with their shapes
//!                                └> order of operations, what shares an input, what never is quantized
//! ```
//!
//! A tensor is said once: its GGUF name, its name in the source, its shape in terms of the hyperparameters, what happens to its rows.
//! Names of layers are relative: `attn_q` is `blk.N.attn_q.weight` in GGUF, `self_attn.q_proj` is `model.layers.N.self_attn.q_proj.weight`
//! in the source, where the family's `source_layers` is `model.layers`.

mod delta;
mod experts;
mod number;

pub use delta::{Columns, DeltaNet, Drafts, Rates, Sharing};
pub use experts::{Both, Experts, Order, Packed, SharedExpert, Stack, StackBias, Weighing};
pub use number::{Default, Kind, Number};

/// Everything that says what a model of an architecture is.
#[derive(Debug, PartialEq)]
pub struct Family {
    /// `general.architecture`, which prefixes its keys.
    pub name: &'static str,
    /// What people call its models, for lists and messages.
    pub models: &'static str,
    /// The Hugging Face classes that convert to it.
    pub classes: &'static [Class],
    /// Its hyperparameters beside those that every family has.
    pub numbers: &'static [&'static Number],
    /// The keys that llama.cpp's converter writes, without the architecture's name, in its order. Those that a model has no value of are
    /// left out.
    pub keys: &'static [&'static [&'static str]],
    /// Fields of config.json that change what is computed, with the value that they must have where they are stated: a number, 0 or 1
    /// for a truth value, 0 for an empty list.
    pub fixed: &'static [(&'static str, f64)],
    /// How many rows of the embedding are written.
    pub vocab: Vocab,
    /// Whether its SentencePiece models put a space before a text.
    pub spaces: Spaces,
    /// Tokens to states.
    pub embedding: Embedding,
    /// What precedes a layer's number in names of the source: `model.layers`.
    pub source_layers: &'static str,
    /// What its layers do.
    pub layers: Layers,
    /// What the scores of attention are divided by the root of.
    pub attention_width: AttentionWidth,
    /// Before the output matrix.
    pub output_norm: Norm,
    /// States to scores of the vocabulary. Without a tensor the embedding is used.
    pub output: Linear,
    /// Blocks after the layers that foretell more tokens, where a source has them.
    pub drafts: Option<&'static Drafts>,
    /// Names of source tensors that are left out, by their ends: buffers that every runtime computes anew.
    pub ignored_ends: &'static [&'static str],
    /// Names of source tensors that are left out and said so, by their beginnings: towers for images, draft layers.
    pub left_out: &'static [&'static str],
}

/// What the scores of attention are divided by the root of, where no factor is stated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionWidth {
    /// The width of a key head.
    KeyDim,
    /// Nothing: scores are products.
    One,
    /// The same, but for models of so many layers, where it is the embedding's share of a head: llama.cpp knows Gemma 27B by that.
    EmbdShareAt(u32),
}

/// A space before a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spaces {
    /// As the tokenizer's files say.
    Stated,
    /// Never, whatever they say.
    None,
    /// Never; and tokenizers with bytes to fall back on are written with their merges, as this kind of llama.cpp's tokenizers.
    Merged(&'static str),
}

/// Rows of the embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vocab {
    /// As many as config.json says.
    Stated,
    /// As many as tokenizer.json has tokens, where there is no tokenizer.model: the rest is padding.
    OfTokenizer,
}

/// A Hugging Face model class.
#[derive(Debug, PartialEq)]
pub struct Class {
    /// As in `architectures`.
    pub name: &'static str,
    /// What its configuration class assumes where config.json says nothing, by field.
    pub defaults: &'static [(&'static str, Assumed)],
    /// What names of its tensors begin with in place of the family's own root (`model.`): `model.language_model.`.
    pub roots: &'static [&'static str],
    /// What its output is.
    pub head: Head,
}

/// What a configuration class assumes about a field.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Assumed {
    /// This, where the field is absent; null means none.
    Is(f64),
    /// So many times another field, where the field is absent or null.
    Times(&'static str, f64),
    /// The embedding's share of a head, where the field is absent or null.
    Share,
    /// This list, where the field is absent.
    Are(&'static [u32]),
    /// The class does not look at the field.
    Ignored,
}

/// What a class makes of the last states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// Scores of the vocabulary.
    Scores,
    /// The states themselves: an embedding model.
    States,
}

/// Tokens to states.
#[derive(Debug, PartialEq)]
pub struct Embedding {
    /// Of tokens, `[n_vocab, n_embd]`.
    pub tokens: Weight,
    /// Learned positions that are added, `[n_ctx, n_embd]`.
    pub positions: Option<Weight>,
    /// What states are multiplied with.
    pub scale: Scale,
}

/// A factor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// 1.
    One,
    /// The root of the embedding's width.
    SqrtEmbd,
    /// A hyperparameter.
    Stated,
}

/// Which layer is of which kind.
#[derive(Debug, PartialEq)]
pub enum Layers {
    /// All are alike.
    All(&'static Layer),
    /// With experts where the model says how many, else with one network: Mixtral is a Llama.
    Mixture {
        /// Without experts.
        dense: &'static Layer,
        /// With experts.
        experts: &'static Layer,
    },
    /// Of every `period` layers the last is of one kind, the others of another: Gemma's windows, SmolLM3's positions.
    Periodic {
        /// Where nothing else is said.
        period: u32,
        /// How config.json says it.
        stated: Pattern,
        /// The last of each period.
        last: &'static Layer,
        /// The others.
        others: &'static Layer,
    },
}

/// The fields of config.json that say which layers are of which kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// `layer_types`, with `full_attention` for the last of each period; or `sliding_window_pattern`, the period.
    LayerTypes,
    /// `no_rope_layers`, with 0 for the last of each period; or `no_rope_layer_interval`, the period.
    NoRopeLayers,
    /// `layer_types`, with `full_attention` for the last of each period, the others having a state; or `full_attention_interval`, the
    /// period.
    Recurrent,
}

/// A layer: steps one after the other, each added to the stream.
#[derive(Debug, PartialEq)]
pub struct Layer {
    /// `x += after(body(before(x)))`, in this order.
    pub steps: &'static [Step],
}

/// `x += residual_scale * after(body(before(x)))`.
#[derive(Debug, PartialEq)]
pub struct Step {
    /// Norm of what goes in.
    pub before: Norm,
    /// What is computed.
    pub body: Body,
    /// Norm of what comes out.
    pub after: Norm,
    /// Of which models it is a part.
    pub when: When,
}

/// Which models have a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// All.
    Always,
    /// Those with an input for each layer.
    PerLayer,
    /// Those with experts.
    Experts,
    /// Those without.
    NoExperts,
}

/// What a step computes.
#[allow(clippy::large_enum_variant)] // constants, of which there are a few
#[derive(Debug, PartialEq)]
pub enum Body {
    /// Attention.
    Attention(Attention),
    /// A gated delta net.
    Delta(DeltaNet),
    /// One feed-forward network.
    Network(Network),
    /// A mixture of them.
    Experts(Experts),
    /// A network and a mixture beside it.
    Both(&'static Both),
    /// A gated map of the layer's own input.
    PerLayer(PerLayer),
    /// Nothing that is added: the stream itself is multiplied with a number.
    Scale(Weight),
}

/// `proj(activation(gate(x)) * own)`, with the layer's own input `own` made of the tokens and of the states before the first layer, `x_0`:
/// `(norm(model(x_0) / sqrt(n_embd)) + table(tokens) * sqrt(n)) / sqrt(2)`, `n` being its width.
#[derive(Debug, PartialEq)]
pub struct PerLayer {
    /// Of tokens, for all layers: `[n_vocab, n_layer * n]`.
    pub table: Weight,
    /// Of states, for all layers: `[n_layer * n, n_embd]`.
    pub model: Linear,
    /// Of what a layer gets of that.
    pub norm: Norm,
    /// `[n, n_embd]`.
    pub gate: Linear,
    /// Back to the width of states.
    pub proj: Linear,
    /// The function.
    pub activation: Activation,
}

/// `out(softmax(rope(q) rope(k)^T * scale) v)`.
#[derive(Debug, PartialEq)]
pub struct Attention {
    /// Queries, keys and values.
    pub qkv: Projections<3>,
    /// Norm of each query head.
    pub q_norm: Norm,
    /// Norm of each key head.
    pub k_norm: Norm,
    /// Norm of each value head.
    pub v_norm: Norm,
    /// When values have a matrix. Without one they are the keys, as their matrix gives them.
    pub values: Need,
    /// A score for each head that takes its share of the softmax and mixes nothing (a sink).
    pub sinks: Option<Weight>,
    /// How positions come in.
    pub positions: Positions,
    /// Whether only the last tokens are seen.
    pub sees: Sees,
    /// What its result is multiplied with.
    pub gate: OutputGate,
    /// The result's projection.
    pub out: Linear,
}

/// What the result of attention is multiplied with, before its projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputGate {
    /// Nothing.
    None,
    /// The sigmoid of what the query's matrix gives below each head.
    BelowQueries,
}

/// Linear maps of one input: a tensor each, or one below the other in one tensor.
#[derive(Debug, PartialEq)]
pub enum Projections<const N: usize> {
    /// A tensor each, in GGUF and in the source.
    Apart([Linear; N]),
    /// One tensor in GGUF and in the source, in the order given by these heights.
    Fused(Linear, [Dim; N]),
}

/// How positions come into attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// Queries and keys are rotated by the model's base.
    Rope(RopeLayout),
    /// The same by the base of the layers with a window.
    LocalRope(RopeLayout),
    /// Not here: they are learned, or the layer has none.
    None,
}

/// Which two dimensions of a head are a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeLayout {
    /// `2i` and `2i + 1`: what Llama's own checkpoints have, and what converters permute transformers' into.
    Neighbours,
    /// `i` and `i + n_rot / 2`, as in GPT-NeoX.
    Halves,
}

/// The keys that a query sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sees {
    /// All up to its own.
    Past,
    /// The last of them, as many as the model's window, where it has one.
    Window,
}

/// `down(activation(gate(x)) * up(x))`, or without a gate `down(activation(up(x)))`.
#[derive(Debug, PartialEq)]
pub struct Network {
    /// What comes first.
    pub inner: Inner,
    /// Back to the width of states.
    pub down: Linear,
    /// The function.
    pub activation: Activation,
}

/// The first half of a feed-forward network.
#[derive(Debug, PartialEq)]
pub enum Inner {
    /// Gate, then up.
    Gated(Projections<2>),
    /// Up alone.
    Plain(Linear),
}

/// What bends a feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `g / (1 + exp(-alpha * g)) * (u + 1)` of a gate `g`, at most `limit`, and of `u` between `-limit` and `limit`.
    ClampedSwiglu {
        /// Steepness of the gate.
        alpha: f32,
        /// Bound of what goes in.
        limit: f32,
    },
    /// `x * Phi(x)` of the normal distribution, by the hyperbolic tangent.
    GeluTanh,
    /// The same by the error function.
    GeluErf,
}

/// A linear map: a matrix, maybe with a bias.
#[derive(Debug, PartialEq)]
pub struct Linear {
    /// GGUF name without `.weight`.
    pub name: &'static str,
    /// The source's names without `.weight`: the first that is there counts.
    pub source: &'static [&'static str],
    /// Rows and columns.
    pub shape: [Dim; 2],
    /// What happens to rows, of matrix and bias alike.
    pub rows: Rows,
    /// What happens to columns.
    pub columns: Columns,
    /// Whether there is a bias.
    pub bias: Need,
}

/// A tensor of its own.
#[derive(Debug, PartialEq)]
pub struct Weight {
    /// GGUF name.
    pub name: &'static str,
    /// The source's name.
    pub source: &'static str,
    /// Row-major.
    pub shape: &'static [Dim],
    /// What happens to its rows: those of a vector are its elements.
    pub rows: Rows,
    /// What happens to its elements.
    pub edit: Edit,
    /// Whether it must be there.
    pub need: Need,
}

/// A norm.
#[derive(Debug, PartialEq)]
pub enum Norm {
    /// There is none.
    None,
    /// `x / rms(x)`: of heads only.
    RmsAlone,
    /// `x / rms(x) * gain`.
    Rms(Weight),
    /// `(x - mean(x)) / deviation(x) * gain + bias`.
    Layer(Weight, Weight),
}

/// How the rows of a matrix come from the source's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// As they are.
    Same,
    /// The two rotary halves of each query head, which the source keeps apart, are interleaved.
    RopeHeads,
    /// The same for the key heads.
    RopeHeadsKv,
    /// The source holds the transpose: GPT-2's Conv1D.
    Transposed,
    /// The source has, for each key head of a delta net, sections of these heights. Here are those that `take` names, one after the other,
    /// each of all key heads.
    ByKeyHead {
        /// Rows of each section, for one key head.
        heights: &'static [Dim],
        /// Which of them, by their numbers.
        take: &'static [usize],
    },
    /// In the source value heads that share a key head are neighbours, here those of one rank are: the first of each key head, then the
    /// second of each.
    ByRank {
        /// Rows before them, which stay where they are.
        after: Option<Dim>,
        /// Rows of a value head.
        width: Dim,
    },
}

/// What happens to elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edit {
    /// Nothing.
    Same,
    /// `x + 1`: gains that are stored less 1.
    AddOne,
    /// `-exp(x)`: rates that are stored as logarithms.
    NegExp,
}

/// Whether a tensor must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Always.
    Required,
    /// When this flag of config.json is true; taken if it is there anyway.
    If(&'static str),
    /// Unless this flag is true; taken if it is there anyway.
    Unless(&'static str),
    /// Unless the output is the token embedding.
    UnlessTied,
    /// Taken where it is there.
    IfThere,
    /// Never: a source that has one is of another kind.
    Never,
}

/// A dimension, in terms of the hyperparameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dim {
    /// Tokens of the vocabulary.
    Vocab,
    /// Width of states.
    Embd,
    /// Inner width of the feed-forward network.
    Ff,
    /// All query heads side by side.
    Q,
    /// All key heads side by side.
    K,
    /// All value heads side by side.
    V,
    /// Queries, keys and values.
    Qkv,
    /// What all heads have seen, side by side.
    Attended,
    /// Gate and up.
    GateUp,
    /// A key head.
    HeadDim,
    /// Query heads.
    Heads,
    /// Experts.
    Experts,
    /// Inner width of an expert.
    ExpertFf,
    /// Gate and up of an expert.
    ExpertGateUp,
    /// Inner width of the expert that every token uses.
    SharedFf,
    /// The input that each layer has of its own.
    PerLayer,
    /// Those of all layers side by side.
    AllPerLayer,
    /// Queries of all heads, below each its gates.
    GatedQ,
    /// Twice the width of states.
    TwiceEmbd,
    /// Of a delta net: all keys side by side.
    DeltaKeys,
    /// All values.
    DeltaValues,
    /// Queries, keys and values.
    DeltaQkv,
    /// Queries and keys.
    DeltaQueriesKeys,
    /// Value heads.
    DeltaHeads,
    /// Twice as many.
    TwiceDeltaHeads,
    /// A key head.
    DeltaKey,
    /// A value head.
    DeltaValue,
    /// The values that share a key head.
    DeltaGroup,
    /// Tokens that its convolution sees.
    ConvKernel,
    /// Positions that are learned.
    Ctx,
    /// 1.
    One,
}

impl Family {
    /// Every kind of layer that a model of it may have.
    pub fn kinds(&self) -> Vec<&'static Layer> {
        match self.layers {
            Layers::All(layer) => vec![layer],
            Layers::Mixture { dense, experts } => vec![dense, experts],
            Layers::Periodic { last, others, .. } => vec![last, others],
        }
    }

    /// Of a family whose layers change in periods: the last kind of a period, and the other.
    pub fn kinds_of_periods(&self) -> Option<(&'static Layer, &'static Layer)> {
        match self.layers {
            Layers::Periodic { last, others, .. } => Some((last, others)),
            _ => None,
        }
    }

    /// Layers of a period, where nothing is stated: 1 where all are alike.
    pub fn period(&self) -> usize {
        match self.layers {
            Layers::Periodic { period, .. } => period as usize,
            _ => 1,
        }
    }

    /// Which of so many layers are of the kind that is last in a period, where nothing is stated.
    pub fn periods(&self, n_layer: usize) -> Option<Vec<bool>> {
        match self.layers {
            Layers::Periodic { period, .. } => {
                Some((1..=n_layer).map(|layer| layer.checked_rem(period as usize) == Some(0)).collect())
            }
            _ => None,
        }
    }

    /// True where some layers have a state instead of attention.
    pub fn has_states(&self) -> bool {
        self.kinds().iter().any(|layer| layer.delta().is_some())
    }

    /// True where some layer rotates queries and keys.
    pub fn has_rope(&self) -> bool {
        let rotates = |layer: &&Layer| layer.attention().is_some_and(|attention| attention.positions != Positions::None);
        self.kinds().iter().any(rotates)
    }
}

impl Layer {
    /// Its attention.
    pub fn attention(&self) -> Option<&Attention> {
        self.steps.iter().find_map(|step| match &step.body {
            Body::Attention(attention) => Some(attention),
            _ => None,
        })
    }

    /// Its delta net.
    pub fn delta(&self) -> Option<&DeltaNet> {
        self.steps.iter().find_map(|step| match &step.body {
            Body::Delta(delta) => Some(delta),
            _ => None,
        })
    }

    /// True where it may see the last tokens only.
    pub fn has_window(&self) -> bool {
        self.attention().is_some_and(|attention| attention.sees == Sees::Window)
    }

    /// Its mixture of experts.
    pub fn experts(&self) -> Option<&Experts> {
        self.steps.iter().find_map(|step| match &step.body {
            Body::Experts(experts) => Some(experts),
            Body::Both(both) => Some(&both.experts),
            _ => None,
        })
    }
}

impl Network {
    /// Matrices of inner width that a token is multiplied with.
    pub fn n_matrices(&self) -> f64 {
        match self.inner {
            Inner::Gated(_) => 3.0,
            Inner::Plain(_) => 2.0,
        }
    }
}
