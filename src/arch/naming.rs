//! What a model's name says: `Llama-3.2-1B-Instruct` is basename `Llama-3.2`, size `1B`, fine-tune `Instruct`.
//!
//! The same heuristics as llama.cpp's converter, so that both give a model the same metadata and file name.

use std::sync::LazyLock;

use regex::Regex;

/// The parts of a model's name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct NameParts {
    /// Everything behind the organisation.
    pub full_name: Option<String>,
    /// Who published it.
    pub organization: Option<String>,
    pub basename: Option<String>,
    pub finetune: Option<String>,
    pub version: Option<String>,
    pub size_label: Option<String>,
}

/// What a word of a name can be; several at once until [`split`] has decided.
#[derive(Debug, Default, Clone, Copy)]
struct Marks {
    basename: bool,
    size_label: bool,
    finetune: bool,
    version: bool,
    quant_type: bool,
}

impl Marks {
    fn count(self) -> usize {
        [self.basename, self.size_label, self.finetune, self.version, self.quant_type].into_iter().filter(|&mark| mark).count()
    }
}

static VERSION: LazyLock<Regex> = LazyLock::new(|| whole_word(r"(v|iter)?\d+([.]\d+)*"));
static QUANT_TYPE: LazyLock<Regex> = LazyLock::new(|| whole_word(r"i?q\d(_\w)*|b?fp?(16|32)"));
static SIZE: LazyLock<Regex> = LazyLock::new(|| whole_word(r"(A|\d+x)?\d+([._]\d+)?[KMBT]\d?|small|mini|medium|large|x?xl"));
static FINETUNE: LazyLock<Regex> = LazyLock::new(|| whole_word("chat|instruct|vision|lora"));

fn whole_word(pattern: &str) -> Regex {
    Regex::new(&format!("^(?i:{pattern})$")).expect("a constant pattern")
}

/// Splits a model id, `org/name` or `name`. `n_params` tells a size from a context length.
pub(super) fn split(id: &str, n_params: u64) -> NameParts {
    if id.is_empty() {
        return NameParts::default();
    }
    if id.contains(' ') {
        return NameParts { full_name: Some(id.to_owned()), ..NameParts::default() };
    }
    let (organization, full_name) = match id.split_once('/') {
        Some((organization, name)) => (Some(organization), name),
        None => (None, id),
    };
    let mut words: Vec<(String, Marks)> =
        full_name.split('-').filter(|word| !word.is_empty()).enumerate().map(|(at, word)| mark(at, word, n_params)).collect();
    keep_numeric_sizes(&mut words);
    mark_basename(&mut words);

    let part = |is_part: fn(&Marks) -> bool| {
        let found: Vec<&str> = words.iter().filter(|(_, marks)| is_part(marks)).map(|(word, _)| word.as_str()).collect();
        if found.is_empty() { None } else { Some(found.join("-")) }
    };
    let size_label = part(|marks| marks.size_label).map(|joined| without_repeats(&joined));
    let finetune = part(|marks| marks.finetune);
    let version = part(|marks| marks.version && !marks.basename);
    // A name of plain words alone does not say where its basename ends.
    let is_telling = size_label.is_some() || finetune.is_some() || version.is_some();
    NameParts {
        full_name: Some(full_name.to_owned()),
        organization: organization.filter(|name| !name.is_empty() && !name.starts_with('.')).map(str::to_owned),
        basename: part(|marks| marks.basename).filter(|_| is_telling),
        finetune,
        version,
        size_label,
    }
}

/// What the word can be, and its normal spelling. The first word is never a size or a fine-tune.
fn mark(at: usize, word: &str, n_params: u64) -> (String, Marks) {
    let mut marks = Marks::default();
    if VERSION.is_match(word) {
        marks.version = true;
    } else if QUANT_TYPE.is_match(word) {
        marks.quant_type = true;
        return (word.to_uppercase(), marks);
    } else if at > 0 && SIZE.is_match(word) {
        let size = normal_size(word);
        if is_far_from(&size, n_params) {
            // More likely a context length, which is written with a small letter.
            marks.finetune = true;
            return (size.to_lowercase(), marks);
        }
        marks.size_label = true;
        return (size, marks);
    } else if at > 0 && FINETUNE.is_match(word) {
        marks.finetune = true;
    }
    (word.to_owned(), marks)
}

/// `1_5b` is `1.5B`; `7b1`, as Bloom writes it, is `7.1B`.
fn normal_size(word: &str) -> String {
    let mut size: Vec<char> = word.replace('_', ".").chars().collect();
    if let [.., unit, tenth] = size[..]
        && tenth.is_ascii_digit()
    {
        size.truncate(size.len() - 2);
        size.extend(['.', tenth, unit]);
    }
    if let [.., digit, unit] = &mut size[..]
        && digit.is_ascii_digit()
    {
        *unit = unit.to_ascii_uppercase();
    }
    size.into_iter().collect()
}

/// True when a size such as `128K` is nowhere near the number of parameters. `8x7B` and `A3B` cannot be told.
fn is_far_from(size: &str, n_params: u64) -> bool {
    if n_params == 0 {
        return false;
    }
    let Some(exponent) = size.chars().last().and_then(|unit| "KMBT".find(unit)) else { return false };
    let Ok(number) = size[..size.len() - 1].parse::<f64>() else { return false };
    let labelled = number * 1000f64.powi(exponent as i32 + 1);
    (labelled - n_params as f64).abs() > (u128::from(n_params) * 7 / 8) as f64
}

/// `small` is not a size where another word gives it in numbers.
fn keep_numeric_sizes(words: &mut [(String, Marks)]) {
    let has_number = words.iter().any(|(word, marks)| marks.size_label && word.contains(|c: char| c.is_ascii_digit()));
    for (word, marks) in words {
        if has_number && word.chars().all(char::is_alphabetic) {
            marks.size_label = false;
        }
    }
}

/// The basename is the plain words and versions at the start, without the versions at its end. Plain words behind it are fine-tunes.
fn mark_basename(words: &mut [(String, Marks)]) {
    let mut at_start = true;
    for (word, marks) in words.iter_mut() {
        let is_plain = marks.count() == 0;
        if at_start && ((is_plain && word.starts_with(char::is_alphabetic)) || marks.version) {
            marks.basename = true;
        } else {
            at_start = false;
            marks.finetune |= is_plain;
        }
    }
    for (_, marks) in words.iter_mut().rev() {
        if !marks.basename || marks.count() == 1 {
            break;
        }
        marks.basename = false;
    }
}

fn without_repeats(joined: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for word in joined.split('-') {
        if !kept.contains(&word) {
            kept.push(word);
        }
    }
    kept.join("-")
}

/// `llama-3-8b` as a title: `Llama 3 8b`. Words with capitals keep them, versions and numbers stay small.
pub(super) fn title(id: &str) -> String {
    let words = id.split(|c: char| c == '-' || c.is_whitespace()).filter(|word| !word.is_empty());
    words.map(title_word).collect::<Vec<_>>().join(" ")
}

fn title_word(word: &str) -> String {
    let is_lower = word.contains(char::is_lowercase) && !word.contains(char::is_uppercase);
    let starts_with_digit = word.starts_with(|c: char| c.is_ascii_digit());
    let is_version =
        word.strip_prefix('v').is_some_and(|rest| VERSION.is_match(rest) && rest.starts_with(|c: char| c.is_ascii_digit()));
    if !is_lower || starts_with_digit || is_version {
        return word.to_owned();
    }
    let mut titled = String::with_capacity(word.len());
    let mut inside_letters = false;
    for c in word.chars() {
        if inside_letters {
            titled.push(c);
        } else {
            titled.extend(c.to_uppercase());
        }
        inside_letters = c.is_alphabetic();
    }
    titled
}

/// The number of parameters for people, two digits or more: `656K`, `3.7M`, `8.0B`.
pub(super) fn size_label(n_params: u64) -> String {
    let n = n_params as f64;
    let (scaled, unit) = match n {
        _ if n > 1e12 => (n * 1e-12, "T"),
        _ if n > 1e9 => (n * 1e-9, "B"),
        _ if n > 1e6 => (n * 1e-6, "M"),
        _ => (n * 1e-3, "K"),
    };
    let whole = scaled.round_ties_even();
    let whole_digits = if whole == 0.0 { 0 } else { whole.to_string().len() };
    format!("{scaled:.*}{unit}", 2usize.saturating_sub(whole_digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values are those of gguf-py's `Metadata.get_model_id_components`.
    #[test]
    fn names_split_as_in_the_reference() {
        let cases: &[(&str, u64, [&str; 5])] = &[
            ("meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400, ["meta-llama", "Llama-3.2", "Instruct", "", "1B"]),
            ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 1_100_048_384, ["TinyLlama", "TinyLlama", "Chat", "v1.0", "1.1B"]),
            ("mistralai/Mistral-7B-Instruct-v0.3", 7_248_023_552, ["mistralai", "Mistral", "Instruct", "v0.3", "7B"]),
            ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008, ["HuggingFaceTB", "SmolLM2", "Instruct", "", "135M"]),
            ("lmsys/vicuna-7b-v1.5-16k", 6_738_415_616, ["lmsys", "vicuna", "16k", "v1.5", "7B"]),
            ("forge-3m", 3_672_320, ["", "forge", "", "", "3M"]),
            ("stories260K", 262_144, ["", "", "", "", ""]),
            ("tinystories-656K", 656_000, ["", "tinystories", "", "", "656K"]),
            ("NousResearch/Llama-2-7b-hf", 6_738_415_616, ["NousResearch", "Llama-2", "hf", "", "7B"]),
            ("bigscience/bloom-7b1", 7_069_016_064, ["bigscience", "bloom", "", "", "7.1B"]),
            ("microsoft/Phi-3-mini-128k-instruct", 3_821_079_552, ["microsoft", "Phi-3", "128k-instruct", "", "mini"]),
            ("Meta-Llama-3-8B", 8_000_000_000, ["", "Meta-Llama-3", "", "", "8B"]),
            ("gpt2-large", 774_000_000, ["", "gpt2", "", "", "large"]),
            ("Mixtral-8x7B-Instruct-v0.1", 46_000_000_000, ["", "Mixtral", "Instruct", "v0.1", "8x7B"]),
            ("Qwen3-30B-A3B", 30_000_000_000, ["", "Qwen3", "", "", "30B-A3B"]),
            ("Hermes-2-Pro-Llama-3-8B", 8_000_000_000, ["", "Hermes-2-Pro-Llama-3", "", "", "8B"]),
            ("./models", 7, ["", "", "", "", ""]),
            ("a b c", 5, ["", "", "", "", ""]),
            ("DeepSeek-R1-Distill-Qwen-1_5b", 1_500_000_000, ["", "DeepSeek-R1-Distill-Qwen", "", "", "1.5B"]),
            ("model-q4_k_m", 1_000_000_000, ["", "", "", "", ""]),
            ("llama-fp16-7b-7b", 7_000_000_000, ["", "llama", "", "", "7B"]),
            ("3d-thing-1B", 1_000_000_000, ["", "", "3d-thing", "", "1B"]),
            ("openchat-3.5-0106", 7_000_000_000, ["", "openchat", "", "3.5-0106", ""]),
            ("--x--", 3, ["", "", "", "", ""]),
            ("org/", 3, ["org", "", "", "", ""]),
        ];
        for (id, n_params, expected) in cases {
            let parts = split(id, *n_params);
            let found = [parts.organization, parts.basename, parts.finetune, parts.version, parts.size_label];
            assert_eq!(found.map(Option::unwrap_or_default), *expected, "{id}");
        }
    }

    #[test]
    fn titles_are_those_of_the_reference() {
        for (id, expected) in [
            ("forge-3m", "Forge 3m"),
            ("stories260K", "stories260K"),
            ("llama-2-7b-chat-hf", "Llama 2 7b Chat Hf"),
            ("qwen2.5-coder", "Qwen2.5 Coder"),
            ("v1.0-beta", "v1.0 Beta"),
            ("a1b-x_y", "A1B X_Y"),
            ("Meta-Llama", "Meta Llama"),
            ("3d model", "3d Model"),
            ("phi-3.5-v2", "Phi 3.5 v2"),
            ("émile", "Émile"),
        ] {
            assert_eq!(title(id), expected);
        }
    }

    #[test]
    fn size_labels_have_two_digits() {
        for (n_params, expected) in [
            (1, "0.00K"),
            (999, "1.0K"),
            (1000, "1.0K"),
            (9949, "10K"),
            (9950, "10K"),
            (262_144, "262K"),
            (999_999, "1000K"),
            (1_000_000, "1000K"),
            (1_000_001, "1.0M"),
            (3_672_320, "3.7M"),
            (23_000_000, "23M"),
            (134_515_008, "135M"),
            (999_600_000, "1000M"),
            (1_235_814_400, "1.2B"),
            (8_030_261_248, "8.0B"),
            (70_553_706_496, "71B"),
            (405_000_000_000, "405B"),
            (1_200_000_000_000, "1.2T"),
            (9_500_000, "10M"),
            (9_499_999, "9.5M"),
            (10_500_000, "10M"),
            (500, "0.50K"),
        ] {
            assert_eq!(size_label(n_params), expected, "{n_params}");
        }
    }
}
