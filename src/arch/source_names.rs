//! Names of a source's tensors as their family has them, whatever a saver put before them: `_orig_mod.` (torch.compile), `module.`
//! (data-parallel training), `base_model.model.` (PEFT), `language_model.` (models of images), or nothing where `model.` belongs.

use super::describe::{Class, Family};

/// What may come before the family's own names, in any order.
const WRAPPERS: &[&str] = &["_orig_mod.", "module.", "base_model.model.", "language_model.", "model.", "transformer."];

/// How names are turned into those of the family.
#[derive(Debug)]
pub(super) struct Renaming {
    /// The family's own beginning: `model.`.
    root: &'static str,
    /// What stands in its place.
    found: String,
    /// True when that is how its class is saved.
    pub is_usual: bool,
}

impl Renaming {
    /// Looks for the one tensor that every model has, its embedding, and takes what precedes its name for what precedes all.
    pub fn of<'n>(family: &'static Family, class: &Class, names: impl Iterator<Item = &'n str>) -> Renaming {
        let anchor = family.embedding.tokens.source;
        let root_len = anchor.find('.').map_or(0, |dot| dot + 1);
        let (root, tail) = anchor.split_at(root_len);
        let mut found: Vec<&str> = names.filter_map(|name| name.strip_suffix(tail)).filter(|before| is_wrapping(before)).collect();
        found.sort_unstable();
        found.dedup();
        let found = match found[..] {
            // Several, or none: the names are taken as they are, and what is missing is said by its own name.
            [one] => one.to_owned(),
            _ => root.to_owned(),
        };
        let is_usual = found == root || class.roots.contains(&found.as_str());
        Renaming { root, found, is_usual }
    }

    /// The family's name of a tensor.
    pub fn apply(&self, name: &str) -> String {
        if self.found == self.root {
            return name.to_owned();
        }
        match name.strip_prefix(&self.found) {
            // What stands beside the model, such as its head, does not have the root's own name.
            Some(rest) if self.found.is_empty() && (rest.starts_with("lm_head.") || rest.starts_with(self.root)) => rest.to_owned(),
            Some(rest) => format!("{}{rest}", self.root),
            None => self.beside(name).to_owned(),
        }
    }

    /// A name that is not within the root: what wraps the root wraps it too.
    fn beside<'n>(&self, name: &'n str) -> &'n str {
        self.found.strip_suffix(self.root).and_then(|outer| name.strip_prefix(outer)).unwrap_or(name)
    }

    /// What was done, for the user.
    pub fn note(&self) -> Option<String> {
        if self.is_usual {
            return None;
        }
        let Renaming { root, found, .. } = self;
        Some(match found.is_empty() {
            true => {
                format!("names of tensors begin without {root:?}; they are read as if they had it")
            }
            false => format!("names of tensors begin with {found:?} instead of {root:?}; they are read as if they began with that"),
        })
    }
}

/// True for nothing, or wrappers one after the other.
fn is_wrapping(before: &str) -> bool {
    let mut rest = before;
    while let Some(inner) = WRAPPERS.iter().find_map(|wrapper| rest.strip_prefix(wrapper)) {
        rest = inner;
    }
    rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::family::FAMILIES;

    fn renamed(before: &str, names: &[&str]) -> Vec<String> {
        let family = &FAMILIES[0];
        let embedding = format!("{before}embed_tokens.weight");
        let renaming = Renaming::of(family, &family.classes[0], [embedding.as_str()].into_iter().chain(names.iter().copied()));
        names.iter().map(|name| renaming.apply(name)).collect()
    }

    #[test]
    fn whatever_precedes_the_embedding_precedes_all() {
        assert_eq!(renamed("model.", &["model.norm.weight", "lm_head.weight"]), ["model.norm.weight", "lm_head.weight"]);
        assert_eq!(
            renamed("", &["norm.weight", "lm_head.weight", "layers.0.x"]),
            ["model.norm.weight", "lm_head.weight", "model.layers.0.x"]
        );
        for before in ["_orig_mod.", "module.", "base_model.model.", "language_model.", "module._orig_mod."] {
            let names = ["model.norm.weight", "lm_head.weight"].map(|name| format!("{before}{name}"));
            let names = names.each_ref().map(String::as_str);
            assert_eq!(renamed(&format!("{before}model."), &names), ["model.norm.weight", "lm_head.weight"], "{before}");
        }
        let inner = ["model.language_model.norm.weight", "lm_head.weight", "model.visual.x"];
        assert_eq!(renamed("model.language_model.", &inner), ["model.norm.weight", "lm_head.weight", "model.visual.x"]);
    }

    #[test]
    fn a_stranger_is_not_taken_for_a_wrapper() {
        assert_eq!(renamed("talker.model.", &["talker.model.norm.weight"]), ["talker.model.norm.weight"]);
    }
}
