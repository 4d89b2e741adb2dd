//! The name that llama.cpp gives to a pre-tokenizer, found by comparing structures.
//!
//! tokenizer.json says how text is cut into words before BPE; GGUF only has a name, `tokenizer.ggml.pre`, for which llama.cpp has the
//! expressions built in. llama.cpp's converter finds the name by the hash of one encoded text, so it knows only vocabularies it has
//! seen. Here the steps of the `pre_tokenizer` are compared by meaning with those behind each name, whatever the vocabulary. Among
//! names with the same steps, the one counts whose other effects in llama.cpp are the file's: whether words that are tokens skip the
//! merges, whether text is normalized, whether spaces are cleaned up.

use std::sync::LazyLock;

use super::faults::quoted;
use super::inputs::{Inputs, Tokenizer};
use super::pre_regex::Pattern;
use crate::error::{Error, Result};
use crate::hf::json::Value;

mod table;

pub(super) use table::Name;
use table::{BYTES, FALLBACK, GPT2, NAMES, QWEN2, STRUCTURES, Structure};

/// How a split treats what its expression finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// Each match is a word, and so is what lies between.
    Isolated,
    /// Matches that touch are one word.
    Contiguous,
    MergedWithPrevious,
    MergedWithNext,
    Removed,
}

/// One step of a pre-tokenizer.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    Split(Pattern, Cut),
    /// Bytes become the 256 characters of GPT-2's alphabet.
    Bytes,
    /// A step that llama.cpp has nothing for.
    Other(String),
}

/// Steps looked at; the longest known pre-tokenizer has 7, so one of this length is unknown anyway.
const STEPS_MAX: usize = 16;
/// Escapes in the expressions of all steps: each, such as `\p{L}`, can stand for a class of many KB. The most known are 48.
const ESCAPES_MAX: usize = 128;
/// What Hugging Face's library takes for punctuation.
const PUNCTUATION: &str = r"[\p{P}!-/:-@\[-`{-~]";

/// What matters of the files.
struct Wanted {
    steps: Vec<Step>,
    n_escapes: usize,
    /// The splits are spelled by what they keep instead of what they cut, as in files made from tiktoken.
    is_inverted: bool,
    is_nfc: bool,
    ignores_merges: bool,
    /// `None` where tokenizer_config.json does not say.
    cleans_spaces: Option<bool>,
}

/// Every name that llama.cpp's loader accepts for byte-level BPE.
pub fn known_pre_names() -> impl Iterator<Item = &'static str> {
    NAMES.iter().map(|name| name.name)
}

/// The name as llama.cpp knows it.
///
/// # Errors
/// `Usage` listing the names, but for those that only repeat another.
pub(super) fn known(name: &str) -> Result<&'static Name> {
    NAMES.iter().find(|known| known.name == name).ok_or_else(|| {
        let names: Vec<&str> = NAMES.iter().filter(|name| name.name == name.like).map(|name| name.name).collect();
        Error::usage(format!("llama.cpp has no pre-tokenizer {}; it has {} and others like them", quoted(name), names.join(", ")))
    })
}

/// The name for the files, or the caller's.
///
/// # Errors
/// `Unsupported` when the tokenizer is not byte-level and no name was given.
pub(super) fn choose(
    inputs: &Inputs,
    tokenizer: &Tokenizer,
    given: Option<&'static Name>,
    warnings: &mut Vec<String>,
) -> Result<&'static Name> {
    let wanted = Wanted::read(inputs, tokenizer);
    let found = best(&wanted);
    let is_guess = tokenizer.pre_tokenizer.is_none() && !says_how_to_cut(inputs);
    if let Some(given) = given {
        if let Some(found) = found.filter(|found| !is_guess && !found.same_effect(given)) {
            warnings.push(format!("--pre {} is used although the tokenizer has the steps of {}", given.name, found.name));
        }
        return Ok(given);
    }
    if is_guess {
        let name = found.map_or(FALLBACK.name, |found| found.name);
        warnings.push(format!(
            "there is no tokenizer.json, and vocab.json and merges.txt do not say how text is cut into words; {name}'s way is assumed, \
             and --pre NAME takes another, such as llama-bpe for Llama 3"
        ));
    }
    if !wanted.steps.contains(&Step::Bytes) && tokenizer.decoder["type"] != "ByteLevel" {
        let what = format!("{}: BPE that is neither byte-level nor with byte fallback", tokenizer.path.display());
        return Err(Error::unsupported(what, "choose the nearest of llama.cpp's pre-tokenizers with --pre NAME"));
    }
    let chosen = found.unwrap_or_else(|| {
        let nearest = nearest(&wanted);
        warnings.push(format!(
            "no pre-tokenizer of llama.cpp has the steps of tokenizer.json; the nearest, {}, is used, and --pre NAME takes another",
            nearest.name
        ));
        nearest
    });
    warn_of_differences(&wanted, chosen, tokenizer, warnings);
    Ok(chosen)
}

/// True where the tokenizer's class, or without one the model's kind, is bound to one way of cutting.
fn says_how_to_cut(inputs: &Inputs) -> bool {
    const CLASSES: [&str; 4] = ["GPT2Tokenizer", "Qwen2Tokenizer", "RobertaTokenizer", "BartTokenizer"];
    match inputs.tokenizer_setting("tokenizer_class").and_then(Value::as_str) {
        Some(class) => CLASSES.contains(&class.strip_suffix("Fast").unwrap_or(class)),
        None => inputs.config.get("model_type").and_then(Value::as_str) == Some("gpt2"),
    }
}

/// What the name cannot express.
fn warn_of_differences(wanted: &Wanted, chosen: &Name, tokenizer: &Tokenizer, warnings: &mut Vec<String>) {
    if wanted.ignores_merges != chosen.ignores_merges {
        let (theirs, ours) = if wanted.ignores_merges { ("takes", "does not") } else { ("does not take", "does") };
        warnings.push(format!(
            "this tokenizer {theirs} words that are tokens without merging; llama.cpp {ours} with the pre-tokenizer {}",
            chosen.name
        ));
    }
    if has_prefix_space(tokenizer.pre_tokenizer.as_ref().unwrap_or(&Value::Null)) {
        warnings.push("this tokenizer puts a space before every text; llama.cpp does not for byte-level BPE".to_owned());
    }
    for normalizer in flatten(&tokenizer.normalizer, "normalizers") {
        let kind = normalizer["type"].as_str().unwrap_or_default();
        if !matches!(kind, "" | "NFC") {
            warnings.push(format!("this tokenizer normalizes text with {}; llama.cpp does not for byte-level BPE", quoted(kind)));
        }
    }
}

impl Wanted {
    fn read(inputs: &Inputs, tokenizer: &Tokenizer) -> Wanted {
        let class = inputs.tokenizer_setting("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
        let is_qwen2 = tokenizer.pre_tokenizer.is_none() && class.starts_with("Qwen2Tokenizer");
        let mut wanted = Wanted {
            steps: Vec::new(),
            n_escapes: 0,
            is_inverted: false,
            is_nfc: is_qwen2 || flatten(&tokenizer.normalizer, "normalizers").any(|step| step["type"] == "NFC"),
            ignores_merges: tokenizer.ignore_merges,
            cleans_spaces: inputs.tokenizer_setting("clean_up_tokenization_spaces").and_then(Value::as_bool),
        };
        match &tokenizer.pre_tokenizer {
            Some(pre_tokenizer) => flatten(pre_tokenizer, "pretokenizers").take(STEPS_MAX).for_each(|step| wanted.push(step)),
            // vocab.json and merges.txt do not say how text is cut; the class of the tokenizer does.
            None if is_qwen2 => wanted.steps = steps_of(&[QWEN2, BYTES]),
            None => wanted.steps = steps_of(&[GPT2, BYTES]),
        }
        wanted
    }

    fn push(&mut self, step: &Value) {
        let flag = |name: &str, default| step[name].as_bool().unwrap_or(default);
        match step["type"].as_str().unwrap_or_default() {
            "ByteLevel" => {
                if flag("use_regex", true) {
                    self.steps.push(Step::Split(Pattern::regex(GPT2), Cut::Isolated));
                }
                self.steps.push(Step::Bytes);
            }
            "Digits" => {
                let pattern = if flag("individual_digits", false) { r"\p{N}" } else { r"\p{N}+" };
                self.steps.push(Step::Split(Pattern::regex(pattern), Cut::Isolated));
            }
            "Punctuation" => match cut(step, Cut::Isolated) {
                Some(Cut::Contiguous) => {
                    self.steps.push(Step::Split(Pattern::regex(&format!("{PUNCTUATION}+")), Cut::Isolated));
                }
                Some(cut) => self.steps.push(Step::Split(Pattern::regex(PUNCTUATION), cut)),
                None => self.other(step),
            },
            "Split" => {
                let pattern = &step["pattern"];
                let regex = pattern["Regex"].as_str().filter(|regex| self.afford(regex)).map(Pattern::regex);
                let pattern = regex.or_else(|| pattern["String"].as_str().map(Pattern::literal));
                match (pattern, cut(step, Cut::Isolated), flag("invert", false)) {
                    (Some(pattern), Some(cut), false) => self.steps.push(Step::Split(pattern, cut)),
                    // The expressions that are used this way match all text, so removing the rest removes nothing.
                    (Some(pattern), Some(Cut::Removed), true) => {
                        self.is_inverted = true;
                        self.steps.push(Step::Split(pattern, Cut::Isolated));
                    }
                    _ => self.other(step),
                }
            }
            _ => self.other(step),
        }
    }

    /// False when this expression would make the whole larger than any pre-tokenizer known.
    fn afford(&mut self, regex: &str) -> bool {
        self.n_escapes += regex.matches('\\').count();
        self.n_escapes <= ESCAPES_MAX
    }

    fn other(&mut self, step: &Value) {
        self.steps.push(Step::Other(step["type"].as_str().unwrap_or_default().to_owned()));
    }
}

fn cut(step: &Value, default: Cut) -> Option<Cut> {
    match step["behavior"].as_str() {
        None => Some(default),
        Some("Isolated") => Some(Cut::Isolated),
        Some("Contiguous") => Some(Cut::Contiguous),
        Some("MergedWithPrevious") => Some(Cut::MergedWithPrevious),
        Some("MergedWithNext") => Some(Cut::MergedWithNext),
        Some("Removed") => Some(Cut::Removed),
        Some(_) => None,
    }
}

/// The steps of a component that may be a sequence of components; `null` has none. Depth is bounded by the JSON's.
fn flatten<'a>(component: &'a Value, list: &'static str) -> Box<dyn Iterator<Item = &'a Value> + 'a> {
    match component[list].as_array() {
        Some(components) => Box::new(components.iter().flat_map(move |component| flatten(component, list))),
        None if component.is_null() => Box::new(std::iter::empty()),
        None => Box::new(std::iter::once(component)),
    }
}

/// True when a space is put before every text: by a normalizer, as in Llama 2, or by the step that marks spaces.
pub(super) fn puts_space_before(tokenizer: &Tokenizer) -> bool {
    let is_space = |text: &Value| text.as_str().is_some_and(|text| text.starts_with(['▁', ' ']));
    let at_start = |regex: &Value| regex.as_str().is_some_and(|regex| regex.starts_with('^') || regex.starts_with(r"\A"));
    let prepends = |step: &Value| match step["type"].as_str() {
        Some("Prepend") => is_space(&step["prepend"]),
        Some("Replace") => at_start(&step["pattern"]["Regex"]) && is_space(&step["content"]),
        _ => false,
    };
    // Older files say the same with a flag, which is true where it is left out.
    let marks = |step: &Value| {
        step["type"] == "Metaspace"
            && step["prepend_scheme"].as_str().map_or(step["add_prefix_space"] != false, |scheme| scheme != "never")
    };
    let pre_tokenizer = tokenizer.pre_tokenizer.as_ref().unwrap_or(&Value::Null);
    flatten(&tokenizer.normalizer, "normalizers").any(prepends) || flatten(pre_tokenizer, "pretokenizers").any(marks)
}

fn has_prefix_space(pre_tokenizer: &Value) -> bool {
    flatten(pre_tokenizer, "pretokenizers").any(|step| step["type"] == "ByteLevel" && step["add_prefix_space"] == true)
}

/// A line of the table of structures, parsed.
struct Known {
    structure: &'static Structure,
    name: &'static Name,
    steps: Vec<Step>,
}

static KNOWN: LazyLock<Vec<Known>> = LazyLock::new(|| {
    let named = STRUCTURES.iter().filter_map(|structure| Some((structure, known(structure.name).ok()?)));
    named.map(|(structure, name)| Known { structure, name, steps: steps_of(structure.steps) }).collect()
});

fn steps_of(steps: &[&str]) -> Vec<Step> {
    let step = |text: &&str| match *text {
        BYTES => Step::Bytes,
        regex => Step::Split(Pattern::regex(regex), Cut::Isolated),
    };
    steps.iter().map(step).collect()
}

/// The best name among those with exactly these steps. The first of equals wins: the table has the usual ones first.
fn best(wanted: &Wanted) -> Option<&'static Name> {
    let fits = |known: &Known| {
        let (name, structure) = (known.name, known.structure);
        [
            name.ignores_merges == wanted.ignores_merges,
            wanted.cleans_spaces.is_none_or(|cleans| cleans == name.cleans_spaces),
            structure.is_nfc == wanted.is_nfc,
            structure.is_inverted == wanted.is_inverted,
        ]
    };
    first_max(KNOWN.iter().filter(|known| known.steps == wanted.steps), fits).map(|known| known.name)
}

/// The name whose steps share most alternatives with these, by the Jaccard index.
fn nearest(wanted: &Wanted) -> &'static Name {
    let ours = parts(&wanted.steps);
    let share = |known: &Known| {
        let theirs = parts(&known.steps);
        let n_shared = ours.iter().filter(|part| theirs.contains(part)).count();
        let n_all = (ours.len() + theirs.len()).saturating_sub(n_shared).max(1);
        // In millionths, since floating-point numbers have no order of their own.
        (n_shared * 1_000_000 / n_all, known.name.ignores_merges == wanted.ignores_merges)
    };
    first_max(KNOWN.iter(), share).map_or(FALLBACK, |known| known.name)
}

/// The first of the greatest, where [`Iterator::max_by_key`] gives the last.
fn first_max<'a, K: Ord>(known: impl Iterator<Item = &'a Known>, key: impl Fn(&Known) -> K) -> Option<&'a Known> {
    known.map(|known| (key(known), known)).reduce(|best, next| if next.0 > best.0 { next } else { best }).map(|(_, known)| known)
}

fn parts(steps: &[Step]) -> Vec<Step> {
    let mut parts: Vec<Step> = Vec::new();
    for step in steps {
        let split = match step {
            Step::Split(pattern, cut) => pattern.alternatives().into_iter().map(|p| Step::Split(p, *cut)).collect(),
            other => vec![other.clone()],
        };
        parts.extend(split);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_structure_has_a_known_name_and_expressions_that_parse() {
        assert_eq!(KNOWN.len(), STRUCTURES.len());
        for known in KNOWN.iter() {
            for step in &known.steps {
                assert!(!matches!(step, Step::Split(Pattern::Opaque(_), _)), "{}: {step:?}", known.name.name);
            }
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> = known_pre_names().collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), NAMES.len());
    }
}
