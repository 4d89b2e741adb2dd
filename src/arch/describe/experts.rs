//! Mixtures of experts.

use super::{Activation, Dim, Linear, Network, Norm, Weight};

/// Networks of which every token uses a few.
#[derive(Debug, PartialEq)]
pub struct Experts {
    /// Scores every expert.
    pub router: Linear,
    /// What the states themselves are normalised by to be scored, by scores over the root of their width; else the input is scored.
    pub router_gain: Option<Weight>,
    /// `[n_expert, n_ff, n_embd]`.
    pub gate: Stack,
    /// `[n_expert, n_ff, n_embd]`. Without one, the gate's stack has twice as many rows: of each expert's, the second half is this.
    pub up: Option<Stack>,
    /// `[n_expert, n_embd, n_ff]`.
    pub down: Stack,
    /// Factors on the results, `[n_expert]`.
    pub scales: Option<Weight>,
    /// How the chosen ones are weighed.
    pub weighing: Weighing,
    /// One more that works for every token.
    pub shared: Option<SharedExpert>,
    /// The function inside.
    pub activation: Activation,
}

/// `network_norm(network(before(x))) + experts_norm(experts(experts_before(x)))`.
#[derive(Debug, PartialEq)]
pub struct Both {
    /// One network for all tokens.
    pub network: Network,
    /// Norm of what it gives.
    pub network_norm: Norm,
    /// Norm of what goes into the experts.
    pub experts_before: Norm,
    /// The mixture.
    pub experts: Experts,
    /// Norm of what it gives.
    pub experts_norm: Norm,
}

/// What the weights of experts add up to 1 with. All are a softmax over the router's scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weighing {
    /// The chosen add up to 1.
    AmongChosen,
    /// All add up to 1.
    AmongAll,
}

/// `sigmoid(weight(x)) * network(x)`.
#[derive(Debug, PartialEq)]
pub struct SharedExpert {
    /// Its gate.
    pub weight: Linear,
    /// Itself.
    pub network: Network,
}

/// Matrices of all experts in one tensor.
#[derive(Debug, PartialEq)]
pub struct Stack {
    /// GGUF name of the tensor.
    pub name: &'static str,
    /// The source's name of expert `{e}`'s matrix, without `.weight`, where it may have one for each.
    pub each: Option<&'static str>,
    /// The ways in which the source may have all experts in one tensor: the first that is there counts.
    pub packed: &'static [Packed],
    /// Rows and columns of each.
    pub shape: [Dim; 2],
    /// What is added to the results of each.
    pub bias: Option<StackBias>,
}

/// Matrices of all experts in one tensor of the source, maybe together with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    /// The tensor's name.
    pub name: &'static str,
    /// Which of how many parts of each expert this is.
    pub part: [u32; 2],
    /// How the parts of an expert lie.
    pub order: Order,
}

/// How the parts of an expert lie in one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// All rows of one part, then all of the next.
    PartByPart,
    /// A row of each part in turn.
    InTurns,
    /// The source holds the transpose: a column of each part in turn.
    ColumnsInTurns,
}

/// Biases of all experts, `[n_expert, n_rows]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StackBias {
    /// GGUF name.
    pub name: &'static str,
    /// The source's name.
    pub source: &'static str,
    /// Which of how many parts of each expert this is: the source has a number of each part in turn.
    pub part: [u32; 2],
}
