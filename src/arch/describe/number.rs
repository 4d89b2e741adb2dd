//! Hyperparameters: where they are stated, and within what bounds.

/// A hyperparameter: its key in GGUF, its names in config.json, what holds where neither says anything.
#[derive(Debug, PartialEq)]
pub struct Number {
    /// Without the architecture's name before it.
    pub key: &'static str,
    /// Names in config.json, the newest first.
    pub config: &'static [&'static str],
    /// What it is.
    pub kind: Kind,
    /// What holds where nothing is said.
    pub default: Default,
}

/// What a hyperparameter is, and its bounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// A whole number of these.
    Count(u64, u64),
    /// One for all layers, or one for each.
    PerLayer(u64, u64),
    /// A float above zero.
    Positive,
    /// A float from zero on; zero for none.
    NotNegative,
    /// True or false.
    Flag,
}

/// What holds where nothing is said.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Default {
    /// It must be said.
    Required,
    /// There is none.
    Absent,
    /// This.
    Is(f64),
    /// What another key says.
    As(&'static str),
}
