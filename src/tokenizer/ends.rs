//! Tokens at which generation stops, and whether the files agree about them.
//!
//! Files of Hugging Face list any number of ids in `eos_token_id`; GGUF has one key each for the end of a text, a turn and a message.
//! Readers stop at all three, and at tokens that they know by their spelling. So what they do not know by its spelling gets a key first.

use super::encode::ends_generation_by_spelling;
use super::faults::quoted;
use super::inputs::Inputs;
use super::vocab::{Special, Vocabulary};
use crate::hf::json::Value;

const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// The ids that one file gives for a role.
struct Claim {
    file: &'static str,
    ids: Vec<u32>,
}

/// Gives the further ids of eos their roles, and says where the files disagree or say nothing.
pub(super) fn settle(inputs: &Inputs, vocabulary: &mut Vocabulary) {
    for role in [Special::Bos, Special::Eos] {
        let claims = claims(inputs, role, vocabulary);
        if role == Special::Eos {
            end_turns(&claims, vocabulary);
        }
        if let Some(warning) = disagreement(&claims, role, vocabulary) {
            vocabulary.warnings.push(warning);
        }
        // Without bos a text begins with its first word, which many models want; only the older form has no place to say so.
        let is_older_form = inputs.tokenizer.as_ref().is_some_and(|tokenizer| tokenizer.pre_tokenizer.is_none());
        if vocabulary.special_id(role).is_none() && (role == Special::Eos || is_older_form) {
            let name = role.name();
            vocabulary.warnings.push(format!("no file says which token is {name}; llama.cpp takes one of its own choice"));
        }
    }
}

fn claims(inputs: &Inputs, role: Special, vocabulary: &Vocabulary) -> Vec<Claim> {
    let field = format!("{}_token_id", role.name());
    let n_tokens = vocabulary.tokens.len();
    let known = |id: i64| u32::try_from(id).ok().filter(|id| (*id as usize) < n_tokens);
    let ids_of = |value: &Value| -> Vec<u32> {
        let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        list.iter().filter_map(|id| known(integer(id)?)).collect()
    };
    let nested = || inputs.config.get("text_config")?.get(&field);
    let config = inputs.config.get(&field).filter(|value| !value.is_null()).or_else(nested);
    let text = inputs.tokenizer_setting(&format!("{}_token", role.name())).and_then(content);
    let claims = [
        Claim { file: "config.json", ids: config.map(ids_of).unwrap_or_default() },
        Claim { file: "generation_config.json", ids: inputs.generation_config.get(&field).map(ids_of).unwrap_or_default() },
        Claim { file: TOKENIZER_CONFIG, ids: text.and_then(|text| vocabulary.id(text)).into_iter().collect() },
    ];
    claims.into_iter().filter(|claim| !claim.ids.is_empty()).collect()
}

/// Writes what eos has no room for as the ends of turns and messages.
fn end_turns(claims: &[Claim], vocabulary: &mut Vocabulary) {
    let mut further: Vec<u32> = Vec::new();
    for id in claims.iter().flat_map(|claim| &claim.ids) {
        if !further.contains(id) && vocabulary.special_ids.iter().all(|(role, known)| known != id || !is_end(*role)) {
            further.push(*id);
        }
    }
    let is_spelled = |id: &u32| vocabulary.tokens.get(*id as usize).is_some_and(|text| ends_generation_by_spelling(text));
    let (spelled, mut unspelled): (Vec<u32>, Vec<u32>) = further.into_iter().partition(is_spelled);
    let is_message = |id: u32| vocabulary.tokens.get(id as usize).is_some_and(|text| text == b"<|eom_id|>");
    let (messages, turns): (Vec<u32>, Vec<u32>) = spelled.into_iter().partition(|id| is_message(*id));
    for (role, preferred) in [(Special::Eot, turns), (Special::Eom, messages)] {
        if vocabulary.special_id(role).is_some() {
            continue;
        }
        let id = if unspelled.is_empty() { preferred.first().copied() } else { Some(unspelled.remove(0)) };
        vocabulary.special_ids.extend(id.map(|id| (role, id)));
    }
    if !unspelled.is_empty() {
        let texts = unspelled.iter().filter_map(|id| vocabulary.tokens.get(*id as usize));
        let texts: Vec<String> = texts.take(4).map(|text| quoted(&String::from_utf8_lossy(text))).collect();
        let (n, texts) = (unspelled.len(), texts.join(", "));
        let what = format!("GGUF has no key for {n} of the ids in eos_token_id");
        vocabulary.warnings.push(format!("{what}, and generation does not stop there: {texts}"));
    }
}

fn is_end(role: Special) -> bool {
    matches!(role, Special::Eos | Special::Eot | Special::Eom)
}

/// One sentence where two files do not give the same ids.
fn disagreement(claims: &[Claim], role: Special, vocabulary: &Vocabulary) -> Option<String> {
    // tokenizer_config.json has room for one token, which need only be among the others.
    let covers = |a: &Claim, b: &Claim| a.file == TOKENIZER_CONFIG || b.ids.iter().all(|id| a.ids.contains(id));
    if claims.iter().all(|a| claims.iter().all(|b| covers(a, b))) {
        return None;
    }
    let shown = |claim: &Claim| {
        let ids: Vec<String> = claim.ids.iter().take(8).map(u32::to_string).collect();
        format!("{} in {}", ids.join(", "), claim.file)
    };
    let files: Vec<String> = claims.iter().map(shown).collect();
    let (name, written) = (role.name(), vocabulary.special_id(role)?);
    let also = if role == Special::Eos { ", and generation stops at the others too" } else { "" };
    Some(format!("the files disagree about {name}: {}; token {written} is written as {name}{also}", files.join("; ")))
}

/// The text of a token given as text or as an object with its content.
pub(super) fn content(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// Whole numbers; config.json may have lists of ids here, which are not one.
pub(super) fn integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_u64().map(|_| i64::MAX))
}
