//! The format of every tensor: recipe, the user's overrides, and the fallback where a row is not whole blocks.
//!
//! Pure: names, shapes, facts and options go in, choices come out. Nothing depends on the order of the list given.

use regex::{Regex, RegexBuilder};

use super::kept::{never_quantized, wants_eight_bits};
use super::likeness::suggestion;
use super::recipe::{Facts, Position, Preset};
use crate::error::{Error, Result};
use crate::names::{PER_LAYER_TOKEN_EMBD, Role, block_of, file_order};
use crate::quant::Format;
use crate::quant::Format::{
    F16, IQ1_M, IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS, IQ4_NL, IQ4_XS, Q2_0, Q2_K, Q3_K, Q4_0, Q4_K, Q5_0, Q5_1, Q5_K,
    Q6_K, Q8_0, TQ1_0, TQ2_0,
};

/// What the user asked for beyond the preset.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--tensor-type`, in order: the first that matches a name decides.
    pub by_name: Vec<NameOverride>,
    /// `--output-tensor-type`: the head, by whichever name it goes.
    pub output: Option<Format>,
    /// `--token-embedding-type`.
    pub token_embd: Option<Format>,
    /// `--pure`: the preset's base format for every tensor that may be quantized.
    pub pure: bool,
    /// `--leave-output-tensor`: `output.weight` stays as it is.
    pub keep_output: bool,
}

/// One `--tensor-type REGEX=T`.
#[derive(Debug, Clone)]
pub struct NameOverride {
    pattern: Regex,
    format: Format,
}

impl NameOverride {
    /// Reads `REGEX=T`. The pattern may match anywhere in a name, in any case.
    ///
    /// # Errors
    /// `Usage` for a missing part, a pattern that is no regular expression, or a type that ggml does not have.
    pub fn parse(text: &str) -> Result<NameOverride> {
        let (pattern, format) = text
            .rsplit_once('=')
            .filter(|(pattern, format)| !pattern.is_empty() && !format.is_empty())
            .ok_or_else(|| Error::usage(format!("tensor type {text:?} is not REGEX=TYPE, such as attn_v=Q8_0")))?;
        let pattern = RegexBuilder::new(pattern)
            .case_insensitive(true)
            .size_limit(1 << 20)
            .build()
            .map_err(|e| Error::usage(format!("tensor type {text:?}: {}", on_one_line(&e.to_string()))))?;
        Ok(NameOverride { pattern, format: parse_format(format)? })
    }

    /// The regular expression as given.
    pub fn pattern(&self) -> &str {
        self.pattern.as_str()
    }

    /// True for a tensor of this name.
    pub fn is_for(&self, name: &str) -> bool {
        self.pattern.is_match(name)
    }
}

/// What is wrong with a regular expression, without the drawing of it: `unclosed character class`.
fn on_one_line(error: &str) -> String {
    let last = error.lines().last().unwrap_or(error);
    format!("no regular expression: {}", last.trim_start_matches("error: "))
}

/// A tensor format named on a command line, in any case.
///
/// # Errors
/// `Usage` when ggml has no such type.
pub fn parse_format(text: &str) -> Result<Format> {
    text.trim().parse().map_err(|()| {
        let known: Vec<&str> = Format::ALL.iter().map(|format| format.name()).collect();
        Error::usage(format!("unknown tensor type {text:?}; {}", suggestion(text, &known)))
    })
}

/// A tensor about to be placed.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// GGUF name.
    pub name: &'a str,
    /// Row-major.
    pub shape: &'a [u64],
    /// The format it has when nothing quantizes it.
    pub kept: Format,
    /// What a recipe may do with it.
    pub source: Source,
}

/// What a tensor is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Weights that a recipe may bring into any format.
    Weights,
    /// Blocks that a converted model was published in: only an override that names the tensor makes something else of them.
    Blocks,
}

/// What a tensor gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The format.
    pub format: Format,
    /// Why, where it is not simply the preset's base format.
    pub reason: Option<String>,
    /// Its rows are not whole blocks of the format wanted, so another stands in.
    pub is_fallback: bool,
    /// It cannot be made without an importance matrix, or would be garbage.
    pub needs_imatrix: bool,
}

/// What [`choose`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choices {
    /// Per candidate.
    pub tensors: Vec<Choice>,
    /// Indices of name overrides that decided nothing.
    pub unused: Vec<usize>,
}

/// Chooses the format of every tensor of a model.
///
/// # Errors
/// `Usage` for a format that fits no row of a tensor and for which no other stands in.
pub fn choose(preset: &Preset, overrides: &Overrides, facts: &Facts, tensors: &[Candidate]) -> Result<Choices> {
    let deciders: Vec<Decider> = tensors.iter().map(|tensor| decider(tensor, preset, overrides, facts)).collect();
    let positions = positions(tensors, &deciders, facts);
    let mut chosen = Vec::with_capacity(tensors.len());
    for ((tensor, decider), &at) in tensors.iter().zip(&deciders).zip(&positions) {
        chosen.push(decide(tensor, *decider, at, preset, overrides, facts)?);
    }
    let used = |index| deciders.contains(&Decider::Name(index));
    let unused = (0..overrides.by_name.len()).filter(|&index| !used(index)).collect();
    Ok(Choices { tensors: chosen, unused })
}

/// Who decides about a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decider {
    /// Nothing quantizes it, for this reason.
    Kept(&'static str),
    /// The override of this index.
    Name(usize),
    /// `--output-tensor-type`.
    Output(Format),
    /// `--token-embedding-type`.
    TokenEmbd(Format),
    /// The preset's base format.
    Base,
    /// The preset's rules.
    Recipe,
}

fn decider(tensor: &Candidate, preset: &Preset, overrides: &Overrides, facts: &Facts) -> Decider {
    if preset.copies {
        return Decider::Kept("copied");
    }
    if let Some(reason) = never_quantized(tensor.name, tensor.shape, &facts.arch) {
        return Decider::Kept(reason);
    }
    let role = Role::of(tensor.name);
    let named = overrides.by_name.iter().position(|rule| rule.is_for(tensor.name));
    match (role, named) {
        (Role::Output, _) if overrides.keep_output => Decider::Kept("left as it is"),
        // The table per layer is a tensor of its own kind: an override that names it is meant for it.
        (Role::TokenEmbd, Some(index)) if tensor.name == PER_LAYER_TOKEN_EMBD => Decider::Name(index),
        (Role::TokenEmbd, _) if overrides.token_embd.is_some() => overrides.token_embd.map_or(Decider::Base, Decider::TokenEmbd),
        (Role::Output, _) if overrides.output.is_some() => overrides.output.map_or(Decider::Base, Decider::Output),
        (_, Some(index)) => Decider::Name(index),
        _ if tensor.source == Source::Blocks => Decider::Kept("published in these blocks"),
        _ if overrides.pure || !preset.is_quantized() => Decider::Base,
        (Role::TokenEmbd, _) if facts.tied => overrides.output.map_or(Decider::Recipe, Decider::Output),
        _ => Decider::Recipe,
    }
}

/// Where each tensor stands among those of its class, in file order.
///
/// Counting rather than the block index alone, because hybrid models have blocks without attention. Tensors that the user
/// placed by hand are not counted, but do count into the total: so does llama-quantize, and the same options must give the
/// same file.
fn positions(tensors: &[Candidate], deciders: &[Decider], facts: &Facts) -> Vec<Position> {
    let mut in_file_order: Vec<usize> = (0..tensors.len()).collect();
    in_file_order.sort_by(|&a, &b| file_order(tensors[a].name, tensors[b].name));
    let n_values = tensors.iter().filter(|tensor| Role::of(tensor.name).carries_values()).count();
    let n_values = u32::try_from(n_values).unwrap_or(u32::MAX);

    let (mut values, mut down, mut gate, mut up) = (0, 0, 0, 0);
    let mut positions = vec![Position::default(); tensors.len()];
    for index in in_file_order {
        let role = Role::of(tensors[index].name);
        let (counter, of) = match role {
            _ if deciders[index] != Decider::Recipe => continue,
            _ if role.carries_values() => (&mut values, n_values),
            Role::FfnDown => (&mut down, facts.n_layer),
            Role::FfnGate => (&mut gate, facts.n_layer),
            Role::FfnUp => (&mut up, facts.n_layer),
            _ => continue,
        };
        let count: u32 = *counter;
        *counter += 1;
        // A block with experts has several tensors of a class, so there the count is no measure of depth.
        let block = block_of(tensors[index].name).filter(|_| facts.n_expert > 1 && !role.carries_values());
        positions[index] = Position { layer: block.unwrap_or(count), count, of };
    }
    positions
}

fn decide(
    tensor: &Candidate,
    decider: Decider,
    at: Position,
    preset: &Preset,
    overrides: &Overrides,
    facts: &Facts,
) -> Result<Choice> {
    let role = Role::of(tensor.name);
    let (wanted, reason) = match decider {
        Decider::Kept(reason) => {
            return Ok(Choice { format: tensor.kept, reason: Some(reason.to_owned()), is_fallback: false, needs_imatrix: false });
        }
        Decider::Name(index) => {
            let rule = &overrides.by_name[index];
            (rule.format, Some(format!("override {}", rule.pattern())))
        }
        Decider::Output(format) => (format, Some("output tensor type".to_owned())),
        Decider::TokenEmbd(format) => (format, Some("token embedding type".to_owned())),
        Decider::Base => (preset.base, None),
        Decider::Recipe if wants_eight_bits(tensor.name, &facts.arch) => (Q8_0, Some("sensitive".to_owned())),
        Decider::Recipe => preset.format_for(role, tensor.shape, at, facts),
    };
    let row_len = tensor.shape.last().copied().unwrap_or(1);
    let (format, fallback) = fit(wanted, row_len).ok_or_else(|| {
        let block_len = wanted.block_len();
        Error::usage(format!(
            "{}: {row_len} columns, not a multiple of {block_len} ({wanted}), and no format stands in",
            tensor.name
        ))
    })?;
    let is_fallback = fallback.is_some();
    let reason = match (reason, fallback) {
        (Some(reason), Some(fallback)) => Some(format!("{reason}; {fallback}")),
        (reason, fallback) => reason.or(fallback),
    };
    Ok(Choice { format, reason, is_fallback, needs_imatrix: preset.needs_imatrix(role, format) })
}

/// The format itself where rows are whole blocks of it, else the one that stands in, with the reason; `None` where none does.
fn fit(wanted: Format, row_len: u64) -> Option<(Format, Option<String>)> {
    let fits = |format: Format| row_len.is_multiple_of(format.block_len() as u64);
    if fits(wanted) {
        return Some((wanted, None));
    }
    let smaller = match wanted {
        IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S | IQ4_XS => IQ4_NL,
        Q2_0 | Q2_K | Q3_K | TQ1_0 | TQ2_0 => Q4_0,
        Q4_K => Q5_0,
        Q5_K => Q5_1,
        Q6_K => Q8_0,
        _ if wanted.block_len() <= 32 => F16,
        _ => return None,
    };
    let format = if fits(smaller) { smaller } else { F16 };
    Some((format, Some(format!("{row_len} columns, not a multiple of {} ({wanted})", wanted.block_len()))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::recipe::preset;

    fn facts() -> Facts {
        let arch = "llama".to_owned();
        Facts { arch, n_layer: 2, n_layer_nextn: 0, n_head: 8, n_head_kv: 8, n_expert: 0, tied: false, has_imatrix: false }
    }

    fn chosen(type_name: &str, overrides: &Overrides, facts: &Facts, tensors: &[(&str, &[u64])]) -> Vec<Format> {
        let candidates: Vec<Candidate> =
            tensors.iter().map(|&(name, shape)| Candidate { name, shape, kept: Format::F32, source: Source::Weights }).collect();
        let choices = choose(preset(type_name).unwrap(), overrides, facts, &candidates).unwrap();
        choices.tensors.iter().map(|choice| choice.format).collect()
    }

    #[test]
    fn the_order_of_the_list_does_not_matter() {
        let mut tensors: Vec<(String, [u64; 2])> = (0..32).map(|i| (format!("blk.{i}.attn_v.weight"), [256, 256])).collect();
        let of = |tensors: &[(String, [u64; 2])]| {
            let list: Vec<(&str, &[u64])> = tensors.iter().map(|(name, shape)| (name.as_str(), &shape[..])).collect();
            chosen("Q4_K_M", &Overrides::default(), &facts(), &list)
        };
        let forwards = of(&tensors);
        tensors.reverse();
        let mut backwards = of(&tensors);
        backwards.reverse();
        assert_eq!(forwards, backwards);
        assert!(forwards.contains(&Format::Q6_K) && forwards.contains(&Format::Q4_K));
    }

    #[test]
    fn the_first_override_that_matches_decides() {
        let by_name = ["attn_V=q8_0", "attn=Q6_K", "nowhere=F16"].map(|text| NameOverride::parse(text).unwrap()).to_vec();
        let overrides = Overrides { by_name, ..Overrides::default() };
        let candidates = ["blk.0.attn_v.weight", "blk.0.attn_k.weight", "blk.0.attn_norm.weight"].map(|name| Candidate {
            name,
            shape: if name.contains("norm") { &[256] } else { &[256, 256] },
            kept: Format::F32,
            source: Source::Weights,
        });
        let choices = choose(preset("Q4_0").unwrap(), &overrides, &facts(), &candidates).unwrap();
        let formats: Vec<Format> = choices.tensors.iter().map(|choice| choice.format).collect();
        assert_eq!(formats, [Format::Q8_0, Format::Q6_K, Format::F32]);
        assert_eq!(choices.unused, [2]);
        assert_eq!(choices.tensors[0].reason.as_deref(), Some("override attn_V"));
    }

    #[test]
    fn overrides_that_make_no_sense_are_refused() {
        for text in ["", "attn", "=Q8_0", "attn=", "attn=Q9_9", "a(=Q8_0"] {
            assert!(matches!(NameOverride::parse(text), Err(Error::Usage(_))), "{text:?}");
        }
        assert_eq!(NameOverride::parse("a=b=F16").unwrap().pattern(), "a=b");
    }

    #[test]
    fn a_copy_keeps_everything_whatever_else_is_asked_for() {
        let overrides = Overrides { pure: true, output: Some(Format::Q5_K), ..Overrides::default() };
        let tensors: &[(&str, &[u64])] = &[("output.weight", &[512, 256]), ("blk.0.attn_v.weight", &[256, 256])];
        assert_eq!(chosen("copy", &overrides, &facts(), tensors), [Format::F32, Format::F32]);
    }

    #[test]
    fn the_head_is_found_by_either_name() {
        let overrides = Overrides { output: Some(Format::Q5_K), ..Overrides::default() };
        let tied = Facts { tied: true, ..facts() };
        let embedding: &[(&str, &[u64])] = &[("token_embd.weight", &[512, 256])];
        assert_eq!(chosen("Q4_K_M", &overrides, &tied, embedding), [Format::Q5_K]);
        assert_eq!(chosen("Q4_K_M", &overrides, &facts(), embedding), [Format::Q4_K]);
        assert_eq!(chosen("Q4_K_M", &Overrides::default(), &tied, embedding), [Format::Q6_K]);
        let pure = Overrides { pure: true, ..Overrides::default() };
        assert_eq!(chosen("Q4_K_M", &pure, &tied, embedding), [Format::Q4_K]);
        let both = Overrides { token_embd: Some(Format::F16), ..overrides };
        assert_eq!(chosen("Q4_K_M", &both, &tied, embedding), [Format::F16]);
    }

    #[test]
    fn keeping_the_head_keeps_only_the_head() {
        let overrides = Overrides { keep_output: true, ..Overrides::default() };
        let tensors: &[(&str, &[u64])] = &[("output.weight", &[512, 256]), ("token_embd.weight", &[512, 256])];
        assert_eq!(chosen("Q4_K_M", &overrides, &facts(), tensors), [Format::F32, Format::Q4_K]);
    }

    #[test]
    fn no_model_is_too_odd_to_choose_for() {
        let names =
            ["blk.4294967295.attn_v.weight", "blk.0.ffn_down_exps.weight", "ffn_up.weight", "token_embd.weight", "weight", ""];
        let odd = [0, 1, 7, 8, u32::MAX];
        let mut facts = facts();
        for (n_layer, n_head, n_head_kv) in odd.into_iter().flat_map(|a| odd.map(|b| (a, b, odd[(a ^ b) as usize % odd.len()]))) {
            facts = Facts { n_layer, n_layer_nextn: n_head, n_head, n_head_kv, n_expert: n_layer, tied: !facts.tied, ..facts };
            for preset in crate::plan::recipe::PRESETS {
                let shapes: [&[u64]; 4] = [&[256, 256], &[u64::MAX, u64::MAX, 0], &[8, 100, 100], &[]];
                for (name, shape) in names.into_iter().flat_map(|name| shapes.map(|shape| (name, shape))) {
                    let candidate = Candidate { name, shape, kept: Format::F32, source: Source::Weights };
                    let _either = choose(preset, &Overrides::default(), &facts, &[candidate, candidate]);
                }
            }
        }
    }

    #[test]
    fn rows_that_are_not_whole_blocks_fall_back_and_say_so() {
        assert_eq!(fit(Format::Q4_K, 256).unwrap(), (Format::Q4_K, None));
        for (wanted, row_len, format) in [
            (Format::Q4_K, 896, Format::Q5_0),
            (Format::Q5_K, 896, Format::Q5_1),
            (Format::Q6_K, 64, Format::Q8_0),
            (Format::Q3_K, 64, Format::Q4_0),
            (Format::IQ2_XS, 64, Format::IQ4_NL),
            (Format::Q6_K, 172, Format::F16),
            (Format::Q8_0, 172, Format::F16),
        ] {
            let (found, reason) = fit(wanted, row_len).unwrap();
            assert_eq!(found, format, "{wanted} {row_len}");
            assert_eq!(reason.unwrap(), format!("{row_len} columns, not a multiple of {} ({wanted})", wanted.block_len()));
        }
        assert_eq!(fit(Format::Q1_0, 64), None);
        let error = choose(
            preset("Q1_0").unwrap(),
            &Overrides::default(),
            &facts(),
            &[Candidate { name: "blk.0.attn_q.weight", shape: &[64, 64], kept: Format::F32, source: Source::Weights }],
        );
        assert!(matches!(error, Err(Error::Usage(_))));
    }
}
