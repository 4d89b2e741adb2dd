//! Tokens with a role: which text has it, which id, and which are put around every text.
//!
//! The rules and their order are those of llama.cpp's `SpecialVocab`: tokenizer_config.json names the texts, tokenizer.json's
//! post-processor corrects them and says what is added, config.json gives the ids that are still missing. Beyond these, bos and eos
//! are searched in the other files too, because llama.cpp takes the ids 1 and 2, or 11, where a file says nothing.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::ends::{self, content, integer};
use super::faults::quoted;
use super::inputs::Inputs;
use super::pre;
use super::vocab::{Special, Vocabulary};
use crate::error::{Error, Fault, Place, Result};
use crate::hf::json::Value;

/// Roles in the order in which they are looked up.
const ROLES: [Special; 6] = [Special::Bos, Special::Eos, Special::Unk, Special::Sep, Special::Pad, Special::Mask];

/// The texts that the files name as special tokens, for deciding which tokens are control tokens.
pub(super) struct Named {
    /// Text, and whether it is only a default of the tokenizer's class.
    texts: Vec<(String, bool)>,
    known: HashSet<String>,
}

impl Named {
    pub fn read(inputs: &Inputs) -> Named {
        let mut named = Named { texts: Vec::new(), known: HashSet::new() };
        // Newer folders keep everything in tokenizer_config.json; in older ones the map overrides it.
        let is_legacy = inputs.tokenizer_setting("added_tokens_decoder").is_none();
        for role in ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"] {
            let from_map = inputs.special_tokens_map.get(role).filter(|_| is_legacy);
            let from_config = inputs.tokenizer_config.as_ref().and_then(|config| config.get(role));
            match from_map.or(from_config) {
                Some(value) => named.push(content(value), false),
                None if role == "pad_token" => {
                    named.push(inputs.tokenizer.as_ref().and_then(|tokenizer| tokenizer.padding_token.as_deref()), false);
                }
                None => named.push(class_default(inputs, role), true),
            }
        }
        for list in ["additional_special_tokens", "extra_special_tokens"] {
            let from_map = inputs.special_tokens_map.get(list).filter(|_| is_legacy);
            for value in [inputs.tokenizer_setting(list), from_map].into_iter().flatten() {
                match value {
                    Value::Array(tokens) => tokens.iter().for_each(|token| named.push(content(token), false)),
                    Value::Object(tokens) => tokens.values().for_each(|token| named.push(content(token), false)),
                    _ => {}
                }
            }
        }
        named
    }

    pub fn contains(&self, text: &str) -> bool {
        self.known.contains(text)
    }

    /// Each text with whether it is only a default.
    pub fn texts(&self) -> impl Iterator<Item = (&str, bool)> {
        self.texts.iter().map(|(text, is_default)| (text.as_str(), *is_default))
    }

    fn push(&mut self, text: Option<&str>, is_default: bool) {
        if let Some(text) = text.filter(|text| !text.is_empty())
            && self.known.insert(text.to_owned())
        {
            self.texts.push((text.to_owned(), is_default));
        }
    }
}

/// What Hugging Face's Llama tokenizer class assumes where no file says it.
fn class_default(inputs: &Inputs, role: &str) -> Option<&'static str> {
    let is_llama = match inputs.tokenizer_setting("tokenizer_class").and_then(Value::as_str) {
        Some(class) => matches!(class, "LlamaTokenizer" | "LlamaTokenizerFast" | "CodeLlamaTokenizer" | "CodeLlamaTokenizerFast"),
        None => matches!(inputs.config.get("model_type").and_then(Value::as_str), Some("llama" | "mistral")),
    };
    match role {
        "bos_token" if is_llama => Some("<s>"),
        "eos_token" if is_llama => Some("</s>"),
        "unk_token" if is_llama => Some("<unk>"),
        _ => None,
    }
}

/// What the post-processor is compared with and changes: the text of each role.
#[derive(Default)]
struct Roles {
    text: HashMap<&'static str, String>,
    /// Whether there is a tokenizer_config.json: without one llama.cpp's converter takes no ids from texts.
    from_config: bool,
    has_eot: bool,
    has_eom: bool,
}

impl Roles {
    fn read(inputs: &Inputs) -> Roles {
        let from_config = inputs.tokenizer_config.as_ref().is_some_and(|config| !config.is_empty());
        let mut roles = Roles { from_config, ..Roles::default() };
        for role in ["bos", "eos", "unk", "sep", "pad", "cls", "mask", "eot", "eom"] {
            if let Some(text) = inputs.tokenizer_setting(&format!("{role}_token")).and_then(content).filter(|text| !text.is_empty())
            {
                roles.text.insert(role, text.to_owned());
            }
        }
        // BERT's spelling of the same roles.
        if inputs.tokenizer.as_ref().is_some_and(|tokenizer| tokenizer.pre_tokenizer.is_some()) {
            for (role, other) in [("bos", "cls"), ("eos", "sep")] {
                if let (None, Some(text)) = (roles.get(role), roles.text.get(other).cloned()) {
                    roles.text.insert(role, text);
                }
            }
        }
        roles
    }

    fn get(&self, role: &str) -> Option<&str> {
        self.text.get(role).map(String::as_str)
    }

    fn is_any(&self, text: &str, roles: &[&str]) -> bool {
        roles.iter().any(|role| self.get(role) == Some(text))
    }

    /// The template ends with another token than eos: that one is eos, and the former eos ends turns or messages.
    fn replace_eos(&mut self, text: &str) {
        let former = self.text.insert("eos", text.to_owned());
        if let Some(former) = former.filter(|_| self.from_config) {
            if !self.has_eot {
                self.has_eot = true;
                self.text.insert("eot", former);
            } else if !self.has_eom {
                self.has_eom = true;
                self.text.insert("eom", former);
            }
        }
    }
}

/// Which tokens are put around a text, in the order in which that became known.
#[derive(Default)]
struct Add(Vec<(Special, bool)>);

impl Add {
    fn set(&mut self, special: Special, add: bool) {
        match self.0.iter_mut().find(|(known, _)| *known == special) {
            Some(entry) => entry.1 = add,
            None => self.0.push((special, add)),
        }
    }

    fn get(&self, special: Special) -> Option<bool> {
        self.0.iter().find(|(known, _)| *known == special).map(|(_, add)| *add)
    }
}

/// Fills in the special ids, what is added around a text, and the normalizer's flags. `lookup` gives the id of an added token.
pub(super) fn resolve(
    inputs: &Inputs,
    lookup: &dyn Fn(&str) -> Option<u32>,
    path: &Path,
    vocabulary: &mut Vocabulary,
) -> Result<()> {
    let (mut roles, mut add) = (Roles::read(inputs), Add::default());
    if let Some(tokenizer) = &inputs.tokenizer {
        normalizer_flags(&tokenizer.normalizer, vocabulary);
        read_post_processor(&tokenizer.post_processor, &mut roles, &mut add);
    }

    let extra = [(Special::Eot, roles.has_eot), (Special::Eom, roles.has_eom)];
    let all: Vec<Special> = ROLES.into_iter().chain(extra.into_iter().filter(|(_, has)| *has).map(|(role, _)| role)).collect();
    for &role in &all {
        if let (Some(Value::Bool(wanted)), None) = (inputs.tokenizer_setting(&format!("add_{}_token", role.name())), add.get(role))
        {
            add.set(role, *wanted);
        }
        if let Some(id) = roles.get(role.name()).filter(|_| roles.from_config).and_then(lookup) {
            set_id(vocabulary, path, role, i64::from(id))?;
        }
    }
    let config_path = inputs.files.path("config.json");
    for &role in &all {
        let field = format!("{}_token_id", role.name());
        let nested = || inputs.config.get("text_config")?.get(&field);
        let value = inputs.config.get(&field).filter(|value| !value.is_null()).or_else(nested);
        if let Some(id) = value.and_then(integer) {
            set_id(vocabulary, &config_path, role, id)?;
        }
    }
    search_further(inputs, &roles, vocabulary)?;
    ends::settle(inputs, vocabulary);
    if add.get(Special::Bos) == Some(true) && vocabulary.special_id(Special::Bos).is_none() {
        vocabulary.warnings.push("every text begins with bos, but no file says which token that is".to_owned());
    }
    vocabulary.add = add.0;
    if let Some(Value::Bool(prefix)) = inputs.tokenizer_setting("add_prefix_space") {
        vocabulary.add_space_prefix = Some(*prefix);
    }
    family_rules(vocabulary);
    Ok(())
}

/// Rules of the Llama family that the converter ties to the size of the vocabulary.
fn family_rules(vocabulary: &mut Vocabulary) {
    match vocabulary.tokens.len() {
        // CodeLlama; its other infill tokens are found by their text.
        32016 if vocabulary.special_id(Special::Eot).is_none() => vocabulary.special_ids.push((Special::Eot, 32010)),
        // Granite's small models, and every other user of that tokenizer.
        49152 => {
            let mut add = Add(std::mem::take(&mut vocabulary.add));
            add.set(Special::Bos, false);
            vocabulary.add = add.0;
        }
        _ => {}
    }
}

/// Says explicitly that no bos is added where Hugging Face adds none but llama.cpp would, going by the pre-tokenizer's name.
pub(super) fn settle_add_bos(pre: &pre::Name, vocabulary: &mut Vocabulary) {
    if pre.adds_bos && !vocabulary.add.iter().any(|(special, _)| *special == Special::Bos) {
        vocabulary.add.push((Special::Bos, false));
    }
}

/// Sets the id of a role that has none yet. -1 means none. An id without a token is an error for bos and eos, without which no text
/// begins or ends; other roles go without.
fn set_id(vocabulary: &mut Vocabulary, path: &Path, role: Special, id: i64) -> Result<()> {
    let n_tokens = vocabulary.tokens.len();
    if id == -1 || vocabulary.special_id(role).is_some() {
        return Ok(());
    }
    match u32::try_from(id).ok().filter(|id| (*id as usize) < n_tokens) {
        Some(id) => vocabulary.special_ids.push((role, id)),
        None if matches!(role, Special::Bos | Special::Eos) || id < 0 => {
            let place = Place::Field(format!("{}_token_id", role.name()));
            let detail = format!("{id} is not the id of one of {n_tokens} tokens");
            return Err(Error::malformed(path, place, Fault::SpecialIdRange, detail));
        }
        None => {
            let name = role.name();
            vocabulary.warnings.push(format!("{name}_token_id {id} is beyond the {n_tokens} tokens and left out"));
        }
    }
    Ok(())
}

/// bos and eos from what the converter does not read: ordinary tokens of that text, lists of ids, special_tokens_map.json and
/// generation_config.json.
fn search_further(inputs: &Inputs, roles: &Roles, vocabulary: &mut Vocabulary) -> Result<()> {
    for role in [Special::Bos, Special::Eos] {
        if vocabulary.special_id(role).is_some() {
            continue;
        }
        let name = role.name();
        let text = roles.get(name).or_else(|| content(inputs.special_tokens_map.get(&format!("{name}_token"))?));
        if let Some((text, id)) = text.and_then(|text| Some((text, vocabulary.id(text)?))) {
            vocabulary.special_ids.push((role, id));
            vocabulary.warnings.push(format!("{name} is token {id}, the one spelled {}", quoted(text)));
            continue;
        }
        let field = format!("{name}_token_id");
        for (file, config) in [("config.json", &inputs.config), ("generation_config.json", &inputs.generation_config)] {
            let first = config.get(&field).and_then(|ids| integer(ids).or_else(|| integer(ids.as_array()?.first()?)));
            if let Some(id) = first.filter(|_| vocabulary.special_id(role).is_none()) {
                set_id(vocabulary, &inputs.files.path(file), role, id)?;
            }
        }
    }
    Ok(())
}

/// unk and pad that are ordinary tokens, where the chat template asks for them by name: it finds them by their ids in the file.
pub(super) fn find_for_template(inputs: &Inputs, vocabulary: &mut Vocabulary) {
    for role in [Special::Unk, Special::Pad] {
        let setting = format!("{}_token", role.name());
        let is_named = vocabulary.chat_templates.default.as_ref().is_some_and(|template| template.contains(&setting));
        let id = inputs.tokenizer_setting(&setting).and_then(content).and_then(|text| vocabulary.id(text));
        if let Some(id) = id.filter(|_| is_named && vocabulary.special_id(role).is_none()) {
            vocabulary.special_ids.push((role, id));
        }
    }
}

/// What the post-processor says about tokens around a text.
fn read_post_processor(post_processor: &Value, roles: &mut Roles, add: &mut Add) {
    let alone = std::slice::from_ref(post_processor);
    let steps = post_processor["processors"].as_array().map_or(alone, Vec::as_slice);
    for step in steps {
        match step["type"].as_str() {
            Some("ByteLevel") => {
                for special in [Special::Bos, Special::Eos] {
                    if add.get(special).is_none() {
                        add.set(special, false);
                    }
                }
            }
            Some("RobertaProcessing") => {
                for (special, role) in [(Special::Bos, "cls"), (Special::Eos, "sep"), (Special::Sep, "sep")] {
                    add.set(special, true);
                    if let (None, Some(text)) = (roles.get(role), step[role][0].as_str()) {
                        roles.text.insert(role, text.to_owned());
                    }
                }
            }
            Some("TemplateProcessing") => read_template(step, roles, add),
            _ => {}
        }
    }
}

/// The special token at one place of a template, or `None` where text stands.
fn special_at(piece: Option<&Value>) -> Option<String> {
    piece?["SpecialToken"]["id"].as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

/// A template such as `<s> A </s>`, and `<s> A </s> B </s>` for pairs.
fn read_template(step: &Value, roles: &mut Roles, add: &mut Add) {
    let pieces = |name: &str| step[name].as_array().map_or(&[][..], Vec::as_slice);
    let (single, mut pair) = (pieces("single"), pieces("pair"));
    let (mut first, mut last) = (None, None);
    if single.len() > 1 {
        first = special_at(single.first());
        if let Some(text) = &first {
            if !roles.is_any(text, &["bos", "cls"]) {
                for role in ["bos", "cls"] {
                    roles.text.entry(role).or_insert_with(|| text.clone());
                }
            }
            add.set(Special::Bos, roles.is_any(text, &["bos", "cls"]));
        }
        last = special_at(single.last());
        if let Some(text) = &last {
            if !roles.is_any(text, &["eos"]) {
                roles.replace_eos(text);
            }
            add.set(Special::Eos, true);
        }
    }

    // Between A and B of a pair: a separator, or nothing that llama.cpp knows.
    if first.is_some() && special_at(pair.first()) == first {
        pair = &pair[1..];
    }
    if last.is_some() && special_at(pair.last()) == last {
        pair = &pair[..pair.len() - 1];
    }
    let [a, between @ .., b] = pair else { return };
    if a["Sequence"]["id"] != "A" || b["Sequence"]["id"] != "B" || between.is_empty() {
        return;
    }
    let separates = |piece: Option<&Value>| special_at(piece).is_some_and(|text| roles.is_any(&text, &["sep", "eos"]));
    let add_sep = (last.is_none() && separates(between.first())) || (between.len() == 2 && separates(between.get(1)));
    add.set(Special::Sep, add_sep);
    if add_sep
        && roles.get("sep").is_none()
        && let Some(eos) = roles.get("eos").map(str::to_owned)
    {
        roles.text.insert("sep", eos);
    }
}

/// Lower case and accents, from one normalizer or a sequence of them. Nesting is bounded by the JSON's depth.
fn normalizer_flags(normalizer: &Value, vocabulary: &mut Vocabulary) {
    match normalizer["type"].as_str() {
        Some("Lowercase") => vocabulary.lowercase = Some(true),
        Some("StripAccents") => vocabulary.strip_accents = Some(true),
        Some("BertNormalizer") => {
            vocabulary.lowercase = normalizer["lowercase"].as_bool().or(vocabulary.lowercase);
            vocabulary.strip_accents = normalizer["strip_accents"].as_bool().or(vocabulary.strip_accents);
        }
        Some("Sequence") => {
            for step in normalizer["normalizers"].as_array().into_iter().flatten() {
                normalizer_flags(step, vocabulary);
            }
        }
        _ => {}
    }
}
