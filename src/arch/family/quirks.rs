//! What llama-quantize knows about single architectures, beyond their hyperparameters: of most of them nothing else is described here.

/// How the choice of formats differs for an architecture.
#[derive(Debug, PartialEq)]
pub struct Quirks {
    /// `general.architecture` of those it is true of.
    names: &'static [&'static str],
    /// Layers of its model that counts as 70B, whose value projections are eight times smaller than its query projections.
    pub layers_of_70b: Option<u32>,
    /// Whether only grouped queries make it one.
    pub queries_of_70b: Queries,
    /// Which recipe its feed-forward networks follow.
    pub recipe: Recipe,
    /// Which tensors of three dimensions are experts.
    pub stacks: Stacks,
    /// Parts of names of tensors that are never quantized.
    pub kept: &'static [&'static str],
    /// Parts of names of tensors that no recipe takes below Q8_0 by itself.
    pub eight_bits: &'static [&'static str],
}

/// The queries of a model that counts as 70B.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queries {
    /// In groups or not.
    Any,
    /// In groups.
    Grouped,
}

/// The recipe that networks follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recipe {
    /// That of most.
    Usual,
    /// Falcon's, the first that was tried.
    Falcon,
}

/// Tensors of three dimensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stacks {
    /// Only networks of experts are stacked.
    Experts,
    /// Attention is stacked too.
    All,
}

/// Those of an architecture; of one that is not listed, what is true of most.
pub fn quirks(architecture: &str) -> &'static Quirks {
    QUIRKS.iter().find(|quirks| quirks.names.contains(&architecture)).unwrap_or(&USUAL)
}

const USUAL: Quirks = Quirks {
    names: &[],
    layers_of_70b: None,
    queries_of_70b: Queries::Any,
    recipe: Recipe::Usual,
    stacks: Stacks::Experts,
    kept: &[],
    eight_bits: &[],
};

const QUIRKS: &[Quirks] = &[
    Quirks { names: &["llama", "llama-embed"], layers_of_70b: Some(80), queries_of_70b: Queries::Grouped, ..USUAL },
    Quirks { names: &["deci", "olmo", "qwen2"], layers_of_70b: Some(80), ..USUAL },
    Quirks { names: &["jais2"], layers_of_70b: Some(68), ..USUAL },
    Quirks { names: &["falcon"], recipe: Recipe::Falcon, ..USUAL },
    Quirks { names: &["bailingmoe3"], stacks: Stacks::All, ..USUAL },
    Quirks {
        names: &["glm5-next"],
        kept: &[
            "hc_",
            "indexer.attn_q_b",
            "indexer.attn_k",
            "indexer.proj",
            "indexer_compressor_gate",
            "indexer_compressor_ape",
            "ssm_f_a.weight",
            "ssm_f_b.weight",
            "ssm_g_a.weight",
            "ssm_g_b.weight",
            "ssm_beta.weight",
            "attn_kv_a_mqa.weight",
            "attn_k_b.weight",
            "attn_v_b.weight",
        ],
        eight_bits: &["attn_q_a", "attn_q_b", "nextn.eh_proj"],
        ..USUAL
    },
];
