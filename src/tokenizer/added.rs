//! The vocabulary as Hugging Face's library sees it: the model's own tokens and those added around it, each with its id.
//!
//! The library does not take the ids of added tokens from the files. A text that the model knows keeps its id; any other gets the
//! next free one, in the order of `added_tokens` in tokenizer.json, then `added_tokens_decoder` of tokenizer_config.json, then the
//! special tokens that are named there. A model was trained with the ids that this gives, so they are what counts.

use std::collections::HashMap;
use std::path::Path;

use super::faults::{quoted, token_id};
use super::inputs::{AddedToken, Flags, Inputs, Tokenizer};
use super::special::Named;
use super::tokens::dense_max;
use crate::error::{Error, Fault, Place, Result};

/// Base and added tokens with their ids.
pub(super) struct Lexicon<'a> {
    /// Ids of the model's own tokens.
    base: HashMap<&'a str, u32>,
    /// Added tokens in the order of their first appearance.
    added: Vec<Added>,
    /// Index into `added`.
    added_by_text: HashMap<String, usize>,
    /// The highest id of an added token.
    added_id_max: Option<u32>,
}

/// An added token.
pub(super) struct Added {
    pub content: String,
    pub id: u32,
    pub flags: Flags,
}

impl<'a> Lexicon<'a> {
    /// Adds everything that the files add, and notes ids that differ from those the files claim.
    pub fn read(inputs: &Inputs, tokenizer: &'a Tokenizer, named: &Named, warnings: &mut Vec<String>) -> Result<Lexicon<'a>> {
        let mut lexicon = Lexicon {
            base: tokenizer.vocab.iter().map(|(text, id)| (text.as_str(), *id)).collect(),
            added: Vec::new(),
            added_by_text: HashMap::new(),
            added_id_max: None,
        };
        let decoder = inputs.added_tokens_decoder()?;
        let legacy = if decoder.is_none() { older_tokens(inputs, named)? } else { Vec::new() };
        let n_entries = tokenizer.vocab.len() + tokenizer.added_tokens.len() + decoder.as_ref().map_or(0, Vec::len) + legacy.len();
        let mut claims = Claims { path: &tokenizer.path, id_max: dense_max(n_entries), warnings };

        for token in &tokenizer.added_tokens {
            lexicon.add(&token.content, token.flags);
            claims.check(&lexicon, token)?;
        }
        for token in decoder.unwrap_or_default() {
            // An entry equal to the one of tokenizer.json says nothing new; any other replaces it.
            if lexicon.added(&token.content).is_none_or(|known| known.flags != token.flags) {
                let special = token.flags.special || named.contains(&token.content);
                lexicon.add(&token.content, Flags { special, ..token.flags });
            }
            claims.check(&lexicon, &token)?;
        }
        for token in legacy {
            if lexicon.added(&token.content).is_none() {
                lexicon.add(&token.content, token.flags);
            }
            claims.check(&lexicon, &token)?;
        }
        for (text, is_default) in named.texts() {
            let is_known = lexicon.base.contains_key(text);
            if lexicon.added(text).is_none() && (is_known || !is_default) {
                lexicon.add(text, Flags::SPECIAL);
            }
        }
        Ok(lexicon)
    }

    /// Every added token.
    pub fn all_added(&self) -> &[Added] {
        &self.added
    }

    /// Every added token, without the rest.
    pub fn into_added(self) -> Vec<Added> {
        self.added
    }

    /// The added token with this text.
    pub fn added(&self, text: &str) -> Option<&Added> {
        self.added_by_text.get(text).map(|index| &self.added[*index])
    }

    /// The number of the model's own tokens.
    pub fn base_len(&self) -> usize {
        self.base.len()
    }

    /// The id of a token of the model itself.
    pub fn base_id(&self, text: &str) -> Option<u32> {
        self.base.get(text).copied()
    }

    /// The id of any token.
    pub fn id(&self, text: &str) -> Option<u32> {
        self.base_id(text).or_else(|| self.added(text).map(|added| added.id))
    }

    /// The id of a token that tokenizer.json lists as added. llama.cpp's converter looks nowhere else for the text of a role.
    pub fn listed_id(&self, tokenizer: &Tokenizer, text: &str) -> Option<u32> {
        tokenizer.added_tokens.iter().any(|token| token.content == text).then(|| self.id(text)).flatten()
    }

    fn add(&mut self, text: &str, flags: Flags) {
        if text.is_empty() {
            return;
        }
        if let Some(index) = self.added_by_text.get(text) {
            self.added[*index].flags = flags;
            return;
        }
        let id = self.base_id(text).unwrap_or_else(|| self.next_id());
        self.added_id_max = self.added_id_max.max(Some(id));
        self.added_by_text.insert(text.to_owned(), self.added.len());
        self.added.push(Added { content: text.to_owned(), id, flags });
    }

    /// One after the highest added id, but not below the number of the model's own tokens.
    fn next_id(&self) -> u32 {
        let n_base = u32::try_from(self.base.len()).unwrap_or(u32::MAX);
        self.added_id_max.map_or(n_base, |max| max.saturating_add(1).max(n_base))
    }
}

/// `added_tokens.json`, which older folders have instead; whether a token is special is only known by its name.
fn older_tokens(inputs: &Inputs, named: &Named) -> Result<Vec<AddedToken>> {
    let path = inputs.files.path("added_tokens.json");
    let mut tokens = Vec::with_capacity(inputs.added_tokens.len());
    for (text, id) in &inputs.added_tokens {
        let special = named.contains(text);
        let flags = Flags { special, normalized: !special, ..Flags::SPECIAL };
        tokens.push(AddedToken { content: text.clone(), id: token_id(&path, text, id)?, flags });
    }
    tokens.sort_by_key(|token| token.id);
    Ok(tokens)
}

/// Compares the ids that the files claim for added tokens with those that count.
struct Claims<'a> {
    path: &'a Path,
    id_max: u64,
    warnings: &'a mut Vec<String>,
}

impl Claims<'_> {
    fn check(&mut self, lexicon: &Lexicon, token: &AddedToken) -> Result<()> {
        let (text, claimed) = (&token.content, token.id);
        if u64::from(claimed) >= self.id_max {
            let detail = format!("the id {claimed} is far beyond the number of tokens");
            return Err(Error::malformed(self.path, Place::Field(text.clone()), Fault::TokenIdRange, detail));
        }
        if let Some(id) = lexicon.id(text).filter(|id| *id != claimed) {
            let text = quoted(text);
            let rule = "as Hugging Face's library counts";
            self.warnings.push(format!("added token {text} has the id {id}, {rule}, not the {claimed} of its entry"));
        }
        Ok(())
    }
}
