//! Vocabularies from SentencePiece models: their pieces, with what other files add.

use super::faults::{beyond_embedding, quoted, token_id};
use super::inputs::Inputs;
use super::pieces::SentencePiece;
use super::special;
use super::tokens::{PAD_SCORE, check_vocab_size, looks_special};
use super::vocab::{Model, TokenType, Vocabulary};
use crate::error::Result;

/// The score of tokens that other files add, in the converter and so in every file made with it.
const ADDED_SCORE: f32 = -1000.0;

/// The vocabulary of a SentencePiece model, with what `added_tokens.json` and `tokenizer_config.json` change in it.
pub(super) fn read(inputs: &Inputs, model: &SentencePiece, vocab_size: u32) -> Result<Vocabulary> {
    check_vocab_size(&model.path, model.pieces.len() + inputs.added_tokens.len(), vocab_size)?;
    let mut warnings = Vec::new();
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
    if rows.n_dropped > 0 {
        warnings.push(beyond_embedding(rows.n_dropped, vocab_size));
    }
    if model.is_unigram {
        let what = "the SentencePiece model is of the unigram kind";
        warnings.push(format!("{what}, which llama.cpp's \"llama\" tokenizer only approximates"));
    }

    let mut vocabulary = Vocabulary::new(&model.path, Model::Llama, "default", rows.tokens, rows.types, warnings)?;
    vocabulary.scores = rows.scores;
    let added = inputs.tokenizer.as_ref().map_or(&[][..], |tokenizer| &tokenizer.added_tokens);
    let listed = |text: &str| added.iter().find(|token| token.content == text).map(|token| token.id);
    special::resolve(inputs, &listed, &model.path, &mut vocabulary)?;
    // llama.cpp's default for this kind of tokenizer is a space before the text.
    if !model.add_dummy_prefix && vocabulary.add_space_prefix.is_none() {
        vocabulary.add_space_prefix = Some(false);
    }
    Ok(vocabulary)
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
