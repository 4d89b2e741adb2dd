//! Presets as rows of data: which format a tensor gets, by role, layer and a few facts about the model.
//!
//! A preset is a base format, a format each for the head and for the token embedding, and rules; the first rule that fits a
//! tensor decides, else it gets the base. The rows state llama-quantize's choices (llama.cpp of October 2026), file type by file
//! type. Nothing here looks at weights, or knows which formats this crate can already produce.

use std::str::FromStr;

use super::likeness::suggestion;
use crate::arch::family::{Queries, Recipe, Stacks, quirks};
use crate::error::{Error, Result};
use crate::names::Role;
use crate::quant::Format;
use crate::quant::Format::{
    BF16, F16, F32, IQ1_M, IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS, IQ4_NL, IQ4_XS, MXFP4, Q1_0, Q2_0, Q2_K, Q3_K, Q4_0,
    Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0, TQ1_0, TQ2_0,
};

/// A file type: what `--type` names.
#[derive(Debug, PartialEq)]
pub struct Preset {
    /// Spelled as llama-quantize spells it.
    pub name: &'static str,
    /// `general.file_type`.
    pub file_type: u32,
    /// What a tensor gets when no rule fits.
    pub base: Format,
    /// The head, or the token embedding where it is the head as well.
    pub output: Format,
    /// The token embedding where the head is separate.
    pub token_embd: Format,
    /// Tried in order, set by set.
    pub rules: &'static [&'static [Rule]],
    /// Every tensor stays as it is, and so does the metadata: see [`COPY`].
    pub copies: bool,
}

/// Tensors of these roles get this format when every condition holds.
#[derive(Debug, PartialEq)]
pub struct Rule {
    /// Empty for any role.
    pub roles: &'static [Role],
    /// Empty for always.
    pub when: &'static [When],
    /// The format given.
    pub format: Format,
}

/// A condition of a rule. `i` is the tensor's position among the `n` of its class: see [`Position`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// `i` below this number.
    First(u32),
    /// `i` in the first of so many parts of the layers.
    FirstPart(u32),
    /// The same, but by the tensor's count even where experts make the block index the better measure.
    FirstPartByCount(u32),
    /// The first and last eighth and every third layer between.
    MoreBits,
    /// Neither the first nor the last eighth.
    Middle,
    /// Four or more query heads share a key head.
    Gqa4,
    /// The same, or four or more experts.
    Gqa4OrExperts4,
    /// Exactly eight experts.
    Experts8,
    /// Any other number of experts.
    NotExperts8,
    /// The models of 80 layers whose value projection is eight times smaller than the query's.
    Size70B,
    /// An importance matrix guides the run.
    Imatrix,
    /// None does.
    NoImatrix,
    /// Falcon.
    Falcon,
    /// Any other architecture.
    NotFalcon,
    /// Three dimensions: experts stacked into one tensor.
    Stacked,
    /// An architecture whose attention projections are never stacked like experts.
    OnlyExpertsStack,
}

/// Where a tensor stands among those of its class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// The layer by which rules judge: the block index for feed-forward tensors of a model with experts, else the count.
    pub layer: u32,
    /// How many tensors of the class precede this one in file order.
    pub count: u32,
    /// Out of how many.
    pub of: u32,
}

/// What a choice depends on besides the tensor itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// `general.architecture`.
    pub arch: String,
    /// All layers, those of a draft head included.
    pub n_layer: u32,
    /// Of these, layers that belong to a draft head (multi-token prediction).
    pub n_layer_nextn: u32,
    /// Query heads of the first layer.
    pub n_head: u32,
    /// Key heads of the first layer.
    pub n_head_kv: u32,
    /// 0 for a dense model.
    pub n_expert: u32,
    /// The token embedding is the head as well: there is no `output.weight`.
    pub tied: bool,
    /// An importance matrix guides the run.
    pub has_imatrix: bool,
}

impl Facts {
    /// Query heads per key head, 0 where the model has no attention.
    pub fn gqa(&self) -> u32 {
        self.n_head.checked_div(self.n_head_kv).unwrap_or(0)
    }

    /// True for those that llama.cpp classes as 70B: for llama only with grouped queries.
    fn is_70b(&self) -> bool {
        let n_layer = self.n_layer.saturating_sub(self.n_layer_nextn);
        let quirks = quirks(&self.arch);
        let is_grouped = quirks.queries_of_70b == Queries::Any || self.n_head != self.n_head_kv;
        quirks.layers_of_70b == Some(n_layer) && is_grouped
    }

    fn is_falcon(&self) -> bool {
        quirks(&self.arch).recipe == Recipe::Falcon
    }
}

impl When {
    fn holds(self, facts: &Facts, at: Position, stacked: bool) -> bool {
        let (i, n) = (u64::from(at.layer), u64::from(at.of));
        match self {
            When::First(k) => i < u64::from(k),
            When::FirstPart(parts) => i < n / u64::from(parts),
            When::FirstPartByCount(parts) => u64::from(at.count) < n / u64::from(parts),
            When::MoreBits => i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2,
            When::Middle => i >= n / 8 && i < 7 * n / 8,
            When::Gqa4 => facts.gqa() >= 4,
            When::Gqa4OrExperts4 => facts.gqa() >= 4 || facts.n_expert >= 4,
            When::Experts8 => facts.n_expert == 8,
            When::NotExperts8 => facts.n_expert != 8,
            When::Size70B => facts.is_70b(),
            When::Imatrix => facts.has_imatrix,
            When::NoImatrix => !facts.has_imatrix,
            When::Falcon => facts.is_falcon(),
            When::NotFalcon => !facts.is_falcon(),
            When::Stacked => stacked,
            When::OnlyExpertsStack => quirks(&facts.arch).stacks == Stacks::Experts,
        }
    }
}

impl When {
    /// What a person needs to hear; `None` for a condition that nobody would wonder about.
    fn told(self) -> Option<String> {
        Some(match self {
            When::First(k) => format!("first {k}"),
            When::FirstPart(parts) | When::FirstPartByCount(parts) => format!("first 1/{parts} of the layers"),
            When::MoreBits => "layer chosen for more bits".to_owned(),
            When::Middle => "inner layer".to_owned(),
            When::Gqa4 => "4 or more query heads per key head".to_owned(),
            When::Gqa4OrExperts4 => "4 or more query heads per key head, or experts".to_owned(),
            When::Experts8 => "8 experts".to_owned(),
            When::Size70B => "70B".to_owned(),
            When::Imatrix => "imatrix".to_owned(),
            When::NoImatrix => "no imatrix".to_owned(),
            When::Falcon => "Falcon".to_owned(),
            When::Stacked => "stacked experts".to_owned(),
            When::NotExperts8 | When::NotFalcon | When::OnlyExpertsStack => return None,
        })
    }
}

impl Preset {
    /// The format that the rules give a tensor, and why where that is not the base. A pure function: no order of asking matters.
    ///
    /// `shape`: row-major. Whether the row is whole blocks is for the caller to see to.
    pub fn format_for(&self, role: Role, shape: &[u64], at: Position, facts: &Facts) -> (Format, Option<String>) {
        if role == Role::Output || (role == Role::TokenEmbd && facts.tied) {
            return self.format_for_output(role, shape, facts);
        }
        if role == Role::TokenEmbd {
            return (self.token_embd, (self.token_embd != self.base).then(|| role.name().to_owned()));
        }
        let stacked = shape.len() >= 3 && shape[shape.len() - 3] > 1;
        let rule = self.rules.iter().copied().flatten().find(|rule| {
            (rule.roles.is_empty() || rule.roles.contains(&role)) && rule.when.iter().all(|when| when.holds(facts, at, stacked))
        });
        match rule {
            Some(rule) if rule.format != self.base => {
                let conditions: String = rule.when.iter().filter_map(|when| Some(format!(", {}", when.told()?))).collect();
                (rule.format, Some(format!("{}{conditions}", role.name())))
            }
            _ => (self.base, None),
        }
    }

    /// The head, by whichever name it goes.
    fn format_for_output(&self, role: Role, shape: &[u64], facts: &Facts) -> (Format, Option<String>) {
        let row_len = shape.last().copied().unwrap_or(0);
        let fits = row_len.is_multiple_of(self.base.block_len() as u64);
        let format = if facts.is_falcon() || !fits { Q8_0 } else { self.output };
        let reason = match role {
            Role::TokenEmbd => "token_embd is the head too",
            _ => "head",
        };
        (format, (format != self.base).then(|| reason.to_owned()))
    }

    /// True when tensors get blocks: false for F32, F16 and BF16, which know no rules.
    pub fn is_quantized(&self) -> bool {
        self.base.block_len() > 1
    }

    /// True for the types that llama.cpp's converter writes: of a model folder, they come out as it has them.
    pub fn is_of_converter(&self) -> bool {
        !self.is_quantized() || self.base == Q8_0
    }

    /// True for a tensor that cannot be made in this format without an importance matrix, or would be garbage.
    pub fn needs_imatrix(&self, role: Role, format: Format) -> bool {
        match format {
            _ if format.needs_importance() => true,
            _ if matches!(role, Role::TokenEmbd | Role::Output) => false,
            IQ1_M | IQ2_S | IQ3_XXS => true,
            Q2_K => self.name == "Q2_K_S",
            _ => false,
        }
    }

    const fn new(name: &'static str, file_type: u32, base: Format) -> Preset {
        Preset { name, file_type, base, output: Q6_K, token_embd: base, rules: &[], copies: false }
    }

    const fn output(self, output: Format) -> Preset {
        Preset { output, ..self }
    }

    const fn token_embd(self, token_embd: Format) -> Preset {
        Preset { token_embd, ..self }
    }

    const fn rules(self, rules: &'static [&'static [Rule]]) -> Preset {
        Preset { rules, ..self }
    }
}

impl FromStr for &'static Preset {
    type Err = Error;

    /// Any case, or the number of the file type; `Q3_K`, `Q4_K` and `Q5_K` mean their medium mixes.
    fn from_str(text: &str) -> Result<&'static Preset> {
        let text = text.trim();
        let name = match text.to_ascii_uppercase().as_str() {
            short @ ("Q3_K" | "Q4_K" | "Q5_K") => format!("{short}_M"),
            name => name.to_owned(),
        };
        let mut by_name = PRESETS.iter().chain([&COPY]);
        let by_number = || text.parse().ok().and_then(|number: u32| PRESETS.iter().find(|preset| preset.file_type == number));
        by_name.find(|preset| preset.name == name).or_else(by_number).ok_or_else(|| {
            let known: Vec<&str> = PRESETS.iter().chain([&COPY]).map(|preset| preset.name).collect();
            Error::usage(format!("unknown type {text:?}; {}", suggestion(text, &known)))
        })
    }
}

/// The preset of this name, in any case, or of this number as llama-quantize has it: `15` is `Q4_K_M`.
///
/// # Errors
/// `Usage`, with the list of names, when there is none.
pub fn preset(name: &str) -> Result<&'static Preset> {
    name.parse()
}

const VALUES: &[Role] = &[Role::AttnV, Role::AttnQkv, Role::AttnKvB];
const KEYS: &[Role] = &[Role::AttnK];
const QUERIES_AND_KEYS: &[Role] = &[Role::AttnQ, Role::AttnK];
const ATTN_OUTPUT: &[Role] = &[Role::AttnOutput];
const DOWN: &[Role] = &[Role::FfnDown];
const GATE_AND_UP: &[Role] = &[Role::FfnGate, Role::FfnUp];
const FFN: &[Role] = &[Role::FfnGate, Role::FfnUp, Role::FfnDown];
const ANY: &[Role] = &[];

const fn give(roles: &'static [Role], when: &'static [When], format: Format) -> Rule {
    Rule { roles, when, format }
}

/// With exactly eight experts attention is a small part of the model: keep it sharp.
const EXPERTS_8: &[Rule] = &[give(VALUES, &[When::Experts8], Q8_0), give(KEYS, &[When::Experts8], Q8_0)];
const EXPERTS_8_OUTPUT: &[Rule] = &[give(ATTN_OUTPUT, &[When::Experts8, When::NotFalcon], Q5_K)];

const Q2_K_RULES: &[Rule] = &[
    give(VALUES, &[When::Size70B], Q5_K),
    give(VALUES, &[When::Gqa4], Q4_K),
    give(VALUES, &[], Q3_K),
    give(DOWN, &[], Q3_K),
    give(ATTN_OUTPUT, &[When::NotFalcon], Q3_K),
];

const Q2_K_S_RULES: &[Rule] =
    &[give(VALUES, &[When::Size70B, When::Gqa4], Q5_K), give(VALUES, &[When::Gqa4], Q4_K), give(DOWN, &[When::FirstPart(8)], Q4_K)];

const Q3_K_S_RULES: &[Rule] = &[give(VALUES, &[When::Size70B], Q5_K)];

const Q3_K_M_RULES: &[Rule] = &[
    give(VALUES, &[When::Size70B], Q5_K),
    give(VALUES, &[When::First(2)], Q5_K),
    give(VALUES, &[], Q4_K),
    give(DOWN, &[When::FirstPart(16)], Q5_K),
    give(DOWN, &[When::NotFalcon], Q4_K),
    give(DOWN, &[When::MoreBits], Q4_K),
    give(ATTN_OUTPUT, &[When::NotFalcon], Q4_K),
];

const Q3_K_L_RULES: &[Rule] = &[
    give(VALUES, &[], Q5_K),
    give(DOWN, &[When::Falcon], Q4_K),
    give(DOWN, &[], Q5_K),
    give(ATTN_OUTPUT, &[When::Falcon], Q4_K),
    give(ATTN_OUTPUT, &[When::NotExperts8], Q5_K),
];

const Q4_K_S_RULES: &[Rule] = &[
    give(VALUES, &[When::First(4)], Q5_K),
    give(VALUES, &[When::Size70B], Q5_K),
    give(DOWN, &[When::NotFalcon, When::FirstPart(8)], Q5_K),
];

const Q4_K_M_RULES: &[Rule] = &[
    give(VALUES, &[When::MoreBits], Q6_K),
    give(VALUES, &[When::Size70B], Q5_K),
    give(DOWN, &[When::Falcon, When::FirstPart(16)], Q6_K),
    give(DOWN, &[When::Falcon, When::MoreBits], Q5_K),
    give(DOWN, &[When::NotFalcon, When::MoreBits], Q6_K),
];

const Q5_K_M_RULES: &[Rule] = &[give(VALUES, &[When::MoreBits], Q6_K), give(DOWN, &[When::MoreBits], Q6_K)];

/// Without the first layers' spread of values, four bits with one scale lose too much even when weighted.
const Q4_0_RULES: &[Rule] = &[give(DOWN, &[When::Imatrix, When::FirstPart(8)], Q4_1)];
const Q5_0_RULES: &[Rule] = &[give(DOWN, &[When::Imatrix, When::FirstPart(8)], Q5_1)];

const IQ4_RULES: &[Rule] = &[give(VALUES, &[When::Gqa4], Q5_K), give(DOWN, &[When::NoImatrix, When::FirstPart(8)], Q5_K)];

const IQ3_XXS_RULES: &[Rule] = &[
    give(VALUES, &[When::Size70B, When::Gqa4], Q5_K),
    give(VALUES, &[When::Gqa4], Q4_K),
    give(VALUES, &[When::NoImatrix], IQ3_S),
    give(QUERIES_AND_KEYS, &[], IQ2_S),
    give(DOWN, &[When::NoImatrix, When::FirstPart(8)], Q4_K),
    give(DOWN, &[When::NoImatrix], Q3_K),
    give(ATTN_OUTPUT, &[When::NotFalcon], IQ3_S),
];

const IQ3_XS_RULES: &[Rule] = &[give(QUERIES_AND_KEYS, &[], IQ3_XXS), give(GATE_AND_UP, &[When::Middle], IQ3_XXS)];

const IQ3_S_RULES: &[Rule] = &[give(VALUES, &[When::Size70B, When::Gqa4], Q5_K), give(VALUES, &[When::Gqa4], Q4_K)];

const IQ3_M_RULES: &[Rule] = &[
    give(VALUES, &[When::Size70B], Q5_K),
    give(VALUES, &[], Q4_K),
    give(DOWN, &[When::FirstPart(8)], Q4_K),
    give(DOWN, &[When::Experts8, When::MoreBits], Q4_K),
    give(ATTN_OUTPUT, &[When::NotFalcon], Q4_K),
];

/// Of the presets below three bits.
const LOW_BITS: &[Rule] =
    &[give(VALUES, &[When::Gqa4OrExperts4], Q4_K), give(KEYS, &[When::Experts8], Q4_K), give(ATTN_OUTPUT, &[When::Experts8], Q5_K)];
const LOW_BITS_Q2_K: &[Rule] = &[give(VALUES, &[], Q2_K), give(DOWN, &[When::FirstPartByCount(8)], Q2_K)];
const LOW_BITS_IQ3_S: &[Rule] =
    &[give(VALUES, &[], IQ3_S), give(DOWN, &[When::FirstPartByCount(8)], IQ3_S), give(ATTN_OUTPUT, &[], IQ3_S)];
const IQ1_OUTPUT: &[Rule] = &[give(ATTN_OUTPUT, &[], IQ2_XXS)];

const MXFP4_MOE_RULES: &[Rule] =
    &[give(FFN, &[When::Stacked], MXFP4), give(ANY, &[When::Stacked, When::OnlyExpertsStack], MXFP4), give(ANY, &[], Q8_0)];

/// No file type, but what llama-quantize calls by this name: a GGUF model again, tensor by tensor the same, to split or to join it.
pub const COPY: Preset = Preset { copies: true, ..Preset::new("COPY", 0, F32) };

/// Every file type of llama-quantize, by id.
pub const PRESETS: &[Preset] = &[
    Preset::new("F32", 0, F32),
    Preset::new("F16", 1, F16),
    Preset::new("Q4_0", 2, Q4_0).rules(&[EXPERTS_8, Q4_0_RULES]),
    Preset::new("Q4_1", 3, Q4_1).rules(&[EXPERTS_8]),
    Preset::new("Q8_0", 7, Q8_0).output(Q8_0).rules(&[EXPERTS_8]),
    Preset::new("Q5_0", 8, Q5_0).rules(&[EXPERTS_8, Q5_0_RULES]),
    Preset::new("Q5_1", 9, Q5_1).rules(&[EXPERTS_8]),
    Preset::new("Q2_K", 10, Q2_K).rules(&[EXPERTS_8, EXPERTS_8_OUTPUT, Q2_K_RULES]),
    Preset::new("Q3_K_S", 11, Q3_K).rules(&[EXPERTS_8, EXPERTS_8_OUTPUT, Q3_K_S_RULES]),
    Preset::new("Q3_K_M", 12, Q3_K).rules(&[EXPERTS_8, EXPERTS_8_OUTPUT, Q3_K_M_RULES]),
    Preset::new("Q3_K_L", 13, Q3_K).rules(&[EXPERTS_8, Q3_K_L_RULES]),
    Preset::new("Q4_K_S", 14, Q4_K).rules(&[EXPERTS_8, EXPERTS_8_OUTPUT, Q4_K_S_RULES]),
    Preset::new("Q4_K_M", 15, Q4_K).rules(&[EXPERTS_8, EXPERTS_8_OUTPUT, Q4_K_M_RULES]),
    Preset::new("Q5_K_S", 16, Q5_K).rules(&[EXPERTS_8]),
    Preset::new("Q5_K_M", 17, Q5_K).rules(&[EXPERTS_8, Q5_K_M_RULES]),
    Preset::new("Q6_K", 18, Q6_K).rules(&[EXPERTS_8]),
    Preset::new("IQ2_XXS", 19, IQ2_XXS).output(Q5_K).token_embd(Q2_K).rules(&[LOW_BITS, LOW_BITS_Q2_K]),
    Preset::new("IQ2_XS", 20, IQ2_XS).output(Q5_K).token_embd(Q2_K).rules(&[LOW_BITS, LOW_BITS_Q2_K]),
    Preset::new("Q2_K_S", 21, Q2_K).rules(&[EXPERTS_8, Q2_K_S_RULES]),
    Preset::new("IQ3_XS", 22, IQ3_S).rules(&[EXPERTS_8, EXPERTS_8_OUTPUT, IQ3_XS_RULES, IQ3_S_RULES]),
    Preset::new("IQ3_XXS", 23, IQ3_XXS).output(Q5_K).token_embd(IQ3_S).rules(&[EXPERTS_8, EXPERTS_8_OUTPUT, IQ3_XXS_RULES]),
    Preset::new("IQ1_S", 24, IQ1_S).output(Q5_K).token_embd(Q2_K).rules(&[LOW_BITS, LOW_BITS_Q2_K, IQ1_OUTPUT]),
    Preset::new("IQ4_NL", 25, IQ4_NL).rules(&[EXPERTS_8, EXPERTS_8_OUTPUT, IQ4_RULES]),
    Preset::new("IQ3_S", 26, IQ3_S).rules(&[EXPERTS_8, EXPERTS_8_OUTPUT, IQ3_S_RULES]),
    Preset::new("IQ3_M", 27, IQ3_S).rules(&[EXPERTS_8, EXPERTS_8_OUTPUT, IQ3_M_RULES]),
    // Named before the formats were: the preset IQ2_S is made of IQ2_XS blocks, IQ2_M of IQ2_S blocks.
    Preset::new("IQ2_S", 28, IQ2_XS).output(Q5_K).token_embd(IQ3_S).rules(&[LOW_BITS, LOW_BITS_IQ3_S]),
    Preset::new("IQ2_M", 29, IQ2_S).output(Q5_K).token_embd(IQ3_S).rules(&[LOW_BITS, LOW_BITS_IQ3_S]),
    Preset::new("IQ4_XS", 30, IQ4_XS).rules(&[EXPERTS_8, EXPERTS_8_OUTPUT, IQ4_RULES]),
    Preset::new("IQ1_M", 31, IQ1_M).output(Q5_K).token_embd(Q2_K).rules(&[LOW_BITS, LOW_BITS_Q2_K, IQ1_OUTPUT]),
    Preset::new("BF16", 32, BF16),
    Preset::new("TQ1_0", 36, TQ1_0).token_embd(Q4_K).rules(&[EXPERTS_8]),
    Preset::new("TQ2_0", 37, TQ2_0).token_embd(Q4_K).rules(&[EXPERTS_8]),
    Preset::new("MXFP4_MOE", 38, MXFP4).output(Q8_0).token_embd(Q8_0).rules(&[MXFP4_MOE_RULES]),
    Preset::new("Q1_0", 40, Q1_0).rules(&[EXPERTS_8]),
    Preset::new("Q2_0", 41, Q2_0).token_embd(Q4_K).rules(&[EXPERTS_8]),
];
