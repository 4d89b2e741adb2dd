//! What to say about a class that no family covers: which family comes nearest, and what it has no rule for.

use std::collections::BTreeSet;

use super::config_numbers::InConfig;
use super::describe::Family;
use super::map::refuse_quantized;
use super::source_names::Renaming;
use super::tensors::{From, wanted};
use super::{FAMILIES, Found, find, supported_classes};
use crate::error::{Error, Result};
use crate::hf::Config;

/// Names of tensors that are shown.
const SHOWN_MAX: usize = 4;

/// Checks what can be told before any weight file is opened: the class, and whether names of tensors say that weights are quantized.
/// `names`: those that an index lists, none where there is none.
///
/// # Errors
/// Those of [`find`]; `Unsupported` for quantized weights.
pub fn check(config: &Config, names: &[&str]) -> Result<()> {
    match find(config) {
        Ok(_) => refuse_quantized(config, names.iter().copied()),
        Err(Error::Unsupported { .. }) => Err(unknown_class(config, names)),
        Err(other) => Err(other),
    }
}

/// The refusal of a class. With the names of its tensors, it says what the nearest family lacks.
pub(super) fn unknown_class(config: &Config, names: &[&str]) -> Error {
    let class = config.class().unwrap_or_default();
    let what = format!("{}: models of class {class:?} are not supported", config.path().display());
    let hint = format!("supported are {}", supported_classes());
    let candidates = FAMILIES.iter().filter_map(|family| Some((family, unmatched(family, config, names)?)));
    match candidates.min_by_key(|(_, unmatched)| unmatched.len()) {
        Some((family, unmatched)) if unmatched.len() < names.len() => {
            let shown: Vec<&str> = unmatched.iter().take(SHOWN_MAX).map(String::as_str).collect();
            let more = if unmatched.len() > SHOWN_MAX { ", ..." } else { "" };
            let lacks = match unmatched.len() {
                0 => "which has a rule for each of its tensors".to_owned(),
                n => format!("which has no rule for {n} of its {} tensors ({}{more})", names.len(), shown.join(", ")),
            };
            Error::unsupported(format!("{what}; the nearest is {} ({}), {lacks}", family.name, family.models), hint)
        }
        _ => Error::unsupported(what, hint),
    }
}

/// Names that a family has no tensor for, each layer's once. `None` where config.json cannot be read as one of its.
fn unmatched(family: &'static Family, config: &Config, names: &[&str]) -> Option<BTreeSet<String>> {
    let found = Found { family, class: family.classes.first()? };
    let hparams = InConfig::new(config, family, found.class).and_then(|numbers| numbers.hparams()).ok()?;
    let renaming = Renaming::of(family, found.class, names.iter().copied());
    let mut known = BTreeSet::new();
    for tensor in wanted(&hparams) {
        match tensor.from {
            From::One { names, .. } => known.extend(names),
            From::Stack { each, packed } => known.extend(each.names().chain(packed.into_iter().flat_map(|(names, _)| names))),
            From::Elements { name, .. } => known.extend([name]),
        }
    }
    let is_known = |name: &str| {
        let is_left_out = family.left_out.iter().any(|beginning| name.starts_with(beginning));
        is_left_out || family.ignored_ends.iter().any(|end| name.ends_with(end)) || known.contains(&renaming.apply(name))
    };
    Some(names.iter().filter(|name| !is_known(name)).map(|name| without_numbers(name)).collect())
}

/// `model.layers.3.x` as `model.layers.N.x`.
fn without_numbers(name: &str) -> String {
    let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    name.split('.').map(|part| if is_number(&part) { "N" } else { part }).collect::<Vec<_>>().join(".")
}
