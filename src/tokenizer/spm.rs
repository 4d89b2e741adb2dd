//! Vocabularies from SentencePiece models: their pieces, with what other files add.

use std::collections::{HashMap, HashSet};

use super::added::{Added, Lexicon};
use super::faults::{beyond_embedding, quoted, token_id};
use super::inputs::{Inputs, Tokenizer};
use super::pieces::SentencePiece;
use super::special::Named;
use super::tokens::{PAD_SCORE, check_vocab_size, is_byte_token, looks_special};
use super::vocab::{Model, TokenType, Vocabulary};
use super::{pre, special};
use crate::error::Result;

/// The score of tokens that other files add, in the converter and so in every file made with it.
const ADDED_SCORE: f32 = -1000.0;

/// The first id that `tokenizer.model` and the BPE of tokenizer.json give to different tokens, with the texts of both. Control tokens may
/// be spelled otherwise, and byte tokens as their character: neither changes how text is split.
pub(super) fn disagreement(model: &SentencePiece, tokenizer: &Tokenizer) -> Option<(u32, String, String)> {
    let shown = |piece: Option<&(Vec<u8>, f32, TokenType)>| {
        piece.map_or("nothing".to_owned(), |(text, _, _)| quoted(&String::from_utf8_lossy(text)))
    };
    let mut base: Vec<(&str, u32)> = tokenizer.vocab.iter().map(|(text, id)| (text.as_str(), *id)).collect();
    base.sort_unstable_by_key(|(_, id)| *id);
    let differs = |(text, id): &&(&str, u32)| match model.pieces.get(*id as usize) {
        Some((piece, _, TokenType::Normal)) => piece != text.as_bytes(),
        Some((piece, _, TokenType::Byte)) => is_byte_token(text.as_bytes()) && piece != text.as_bytes(),
        Some(_) => false,
        None => true,
    };
    if let Some((text, id)) = base.iter().find(differs) {
        return Some((*id, shown(model.pieces.get(*id as usize)), quoted(text)));
    }
    let known: HashSet<&str> = base.iter().map(|(text, _)| *text).collect();
    let added: HashSet<u32> = tokenizer.added_tokens.iter().map(|token| token.id).collect();
    (0_u32..).zip(&model.pieces).find_map(|(id, piece)| {
        let is_known = str::from_utf8(&piece.0).is_ok_and(|text| known.contains(text)) || added.contains(&id);
        (piece.2 == TokenType::Normal && !is_known).then(|| (id, shown(Some(piece)), "nothing".to_owned()))
    })
}

/// The vocabulary of a SentencePiece model, with what the other files change in it: `added_tokens.json`, `tokenizer_config.json`, and
/// above them the added tokens of `tokenizer.json`, the only file that newer versions of transformers write them to.
pub(super) fn read(inputs: &Inputs, model: &SentencePiece, vocab_size: u32) -> Result<Vocabulary> {
    let mut warnings = Vec::new();
    let named = Named::read(inputs);
    let listed = added_tokens(inputs, &named, &mut warnings)?;
    check_vocab_size(&model.path, model.pieces.len() + inputs.added_tokens.len() + listed.len(), vocab_size)?;
    let mut rows = Rows::new(&model.pieces, vocab_size as usize);
    let added_path = inputs.files.path("added_tokens.json");
    for (text, id) in &inputs.added_tokens {
        rows.set(token_id(&added_path, text, id)?, text, TokenType::UserDefined);
    }
    for token in inputs.added_tokens_decoder()?.unwrap_or_default() {
        let (text, kind) = if token.flags.special || looks_special(&token.content) {
            (token.content, TokenType::Control)
        } else {
            (token.content.replace('▁', " "), TokenType::UserDefined)
        };
        if let Some(former) = rows.set(token.id, &text, kind) {
            let former = String::from_utf8_lossy(&former).into_owned();
            warnings.push(format!("tokenizer_config.json replaces token {}, {}, by {}", token.id, quoted(&former), quoted(&text)));
        }
    }
    rows.add_listed(&listed, &named, &mut warnings);
    if rows.n_dropped > 0 {
        warnings.push(beyond_embedding(rows.n_dropped, vocab_size));
    }
    if model.is_unigram {
        let what = "the SentencePiece model is of the unigram kind";
        warnings.push(format!("{what}, which llama.cpp's \"llama\" tokenizer only approximates"));
    }

    let mut vocabulary = Vocabulary::new(&model.path, Model::Llama, "default", rows.tokens, rows.types, warnings)?;
    vocabulary.scores = rows.scores;
    let of_json = inputs.tokenizer.as_ref().map_or(&[][..], |tokenizer| &tokenizer.added_tokens);
    let names: HashSet<&str> = of_json.iter().map(|token| token.content.as_str()).collect();
    let id_of = |text: &str| listed.iter().find(|token| names.contains(text) && token.content == text).map(|token| token.id);
    special::resolve(inputs, &id_of, &model.path, &mut vocabulary)?;
    // llama.cpp's default for this kind of tokenizer is a space before the text.
    let json = inputs.bpe().filter(|tokenizer| tokenizer.byte_fallback && tokenizer.pre_tokenizer.is_some());
    let has_prefix = json.map_or(model.add_dummy_prefix, pre::puts_space_before);
    if !has_prefix && vocabulary.add_space_prefix.is_none() {
        vocabulary.add_space_prefix = Some(false);
    }
    Ok(vocabulary)
}

/// The added tokens as Hugging Face's library counts them, where there is a tokenizer.json.
fn added_tokens(inputs: &Inputs, named: &Named, warnings: &mut Vec<String>) -> Result<Vec<Added>> {
    match &inputs.tokenizer {
        Some(tokenizer) if tokenizer.kind == "BPE" && tokenizer.pre_tokenizer.is_some() => {
            Ok(Lexicon::read(inputs, tokenizer, named, warnings)?.into_added())
        }
        // The tokens of other kinds are not read, so the ids are those that the file claims.
        Some(tokenizer) => {
            let added = tokenizer.added_tokens.iter();
            Ok(added.map(|token| Added { content: token.content.clone(), id: token.id, flags: token.flags }).collect())
        }
        None => Ok(Vec::new()),
    }
}

/// Tokens, scores and types by id.
struct Rows {
    tokens: Vec<Vec<u8>>,
    scores: Vec<f32>,
    types: Vec<TokenType>,
    n_dropped: usize,
}

impl Rows {
    /// The pieces, cut or padded to `n` rows.
    fn new(pieces: &[(Vec<u8>, f32, TokenType)], n: usize) -> Rows {
        let unused = |id| (format!("[PAD{id}]").into_bytes(), PAD_SCORE, TokenType::Unused);
        let padding = (pieces.len()..n).map(unused);
        let mut rows =
            Rows { tokens: Vec::new(), scores: Vec::new(), types: Vec::new(), n_dropped: pieces.len().saturating_sub(n) };
        for (text, score, kind) in pieces.iter().take(n).cloned().chain(padding) {
            rows.tokens.push(text);
            rows.scores.push(score);
            rows.types.push(kind);
        }
        rows
    }

    /// Places the added tokens of tokenizer.json. Those that are there already keep what the other files say of them, unless that is
    /// that they are ordinary text.
    fn add_listed(&mut self, listed: &[Added], named: &Named, warnings: &mut Vec<String>) {
        let ids: HashMap<Vec<u8>, usize> = self.tokens.iter().cloned().enumerate().map(|(id, text)| (text, id)).collect();
        let mut replaced = Vec::new();
        for token in listed {
            let (text, spaced) = (&token.content, token.content.replace('▁', " "));
            let is_special = token.flags.special || looks_special(text) || named.contains(text);
            let kind = if is_special { TokenType::Control } else { TokenType::UserDefined };
            let spelled = if kind == TokenType::Control { text } else { &spaced };
            let id = token.id as usize;
            match ids.get(text.as_bytes()).or_else(|| ids.get(spaced.as_bytes())) {
                Some(known) if *known == id && !matches!(self.types[id], TokenType::Normal | TokenType::Unused) => {}
                Some(known) if *known != id => {
                    let text = quoted(text);
                    warnings.push(format!("added token {text} has the id {known} in tokenizer.model, not tokenizer.json's {id}"));
                }
                _ => {
                    if let Some(former) = self.set(token.id, spelled, kind).filter(|former| former != text.as_bytes()) {
                        replaced.push((id, String::from_utf8_lossy(&former).into_owned(), text));
                    }
                }
            }
        }
        if let Some((id, former, text)) = replaced.first() {
            let (n, former, text) = (replaced.len(), quoted(former), quoted(text));
            let example = format!("{n} of its tokens, such as {id}: {text}, not {former}");
            warnings.push(format!("tokenizer.json is used where tokenizer.model disagrees with it: {example}"));
        }
    }

    /// Replaces a row, and returns the former text where that was another token's.
    fn set(&mut self, id: u32, text: &str, kind: TokenType) -> Option<Vec<u8>> {
        let id = id as usize;
        if id >= self.tokens.len() {
            self.n_dropped += 1;
            return None;
        }
        let was_unused = self.types[id] == TokenType::Unused;
        self.scores[id] = ADDED_SCORE;
        self.types[id] = kind;
        let former = std::mem::replace(&mut self.tokens[id], text.as_bytes().to_vec());
        (!was_unused && former != text.as_bytes()).then_some(former)
    }
}
