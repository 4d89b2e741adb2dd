//! SentencePiece: the protobuf message in `tokenizer.model`.
//!
//! ```text
//! ModelProto  1 pieces  repeated { 1 piece: string  2 score: float  3 type: enum }
//!             2 trainer { 3 model_type: enum  35 byte_fallback: bool }
//!             3 normalizer { 3 add_dummy_prefix: bool }
//! ```
//!
//! The piece is read as bytes, because protobuf 2 does not check that a string is UTF-8.

use std::path::{Path, PathBuf};

use prost::Message;

use super::bpe::{check_vocab_size, looks_special};
use super::inputs::{Inputs, beyond_embedding, invalid, quoted, token_id};
use super::vocab::{Model, TokenType, Vocabulary};
use super::{Files, special};
use crate::error::{Error, Fault, Place, Result};

/// The score of tokens that other files add, in the converter and so in every file made with it.
const ADDED_SCORE: f32 = -1000.0;
/// The score of ids without a token.
pub(super) const PAD_SCORE: f32 = -10000.0;

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<Normalizer>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(bytes = "vec", optional, tag = "1")]
    piece: Option<Vec<u8>>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Trainer {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Normalizer {
    #[prost(bool, optional, tag = "3")]
    add_dummy_prefix: Option<bool>,
}

/// A `tokenizer.model` whose pieces have been checked.
pub(super) struct SentencePiece {
    path: PathBuf,
    pieces: Vec<(Vec<u8>, f32, TokenType)>,
    is_unigram: bool,
    add_dummy_prefix: bool,
}

const NAME: &str = "tokenizer.model";

impl SentencePiece {
    /// `None` when there is no such file.
    pub fn read(files: &dyn Files) -> Result<Option<SentencePiece>> {
        let Some(bytes) = files.read_optional(NAME)? else { return Ok(None) };
        SentencePiece::parse(files.path(NAME), &bytes).map(Some)
    }

    /// The same where another file gives the vocabulary too: `None` also for a file that is something else, with a warning.
    pub fn read_beside_another(files: &dyn Files, warnings: &mut Vec<String>) -> Result<Option<SentencePiece>> {
        let Some(bytes) = files.read_optional(NAME)? else { return Ok(None) };
        if is_tiktoken(&bytes) {
            warnings.push("tokenizer.model is a tiktoken list, not SentencePiece; tokenizer.json is used".to_owned());
            return Ok(None);
        }
        SentencePiece::parse(files.path(NAME), &bytes).map(Some)
    }

    fn parse(path: PathBuf, bytes: &[u8]) -> Result<SentencePiece> {
        let proto = ModelProto::decode(bytes)
            .map_err(|e| Error::malformed(&path, Place::File, Fault::ProtobufInvalid, format!("not a SentencePiece model: {e}")))?;
        if proto.pieces.is_empty() {
            return Err(invalid(&path, "pieces", "no pieces"));
        }
        let pieces = proto.pieces.into_iter().enumerate();
        let pieces = pieces.map(|(id, piece)| checked(&path, id, piece)).collect::<Result<Vec<_>>>()?;
        let n_unknown = pieces.iter().filter(|(_, _, kind)| *kind == TokenType::Unknown).count();
        if n_unknown != 1 {
            return Err(invalid(&path, "pieces", format!("expected one unknown piece, found {n_unknown}")));
        }
        Ok(SentencePiece {
            path,
            pieces,
            // 1, unigram, is the enum's default.
            is_unigram: proto.trainer.is_none_or(|trainer| trainer.model_type.unwrap_or(1) == 1),
            add_dummy_prefix: proto.normalizer.is_none_or(|normalizer| normalizer.add_dummy_prefix.unwrap_or(true)),
        })
    }
}

/// One piece, with its type in GGUF's terms.
fn checked(path: &Path, id: usize, piece: Piece) -> Result<(Vec<u8>, f32, TokenType)> {
    let place = format!("piece {id}");
    let text = piece.piece.unwrap_or_default();
    let score = piece.score.unwrap_or(0.0);
    if !score.is_finite() {
        return Err(Error::malformed(path, Place::Field(place), Fault::NonFinite, format!("its score is {score}")));
    }
    let kind = match piece.kind.unwrap_or(1) {
        // 4 is user-defined; llama.cpp's converter has always written such pieces as normal ones.
        1 | 4 => TokenType::Normal,
        2 => TokenType::Unknown,
        3 => TokenType::Control,
        5 => TokenType::Unused,
        6 if is_byte_token(&text) => TokenType::Byte,
        6 => return Err(invalid(path, &place, "a byte piece that is not <0x00> to <0xFF>")),
        other => return Err(invalid(path, &place, format!("unknown type {other}"))),
    };
    Ok((text, score, kind))
}

/// `<0x` two hexadecimal digits `>`.
pub(super) fn is_byte_token(text: &[u8]) -> bool {
    matches!(text, [b'<', b'0', b'x', high, low, b'>'] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit())
}

/// Some repositories give the name `tokenizer.model` to a list of `base64 rank` lines.
fn is_tiktoken(bytes: &[u8]) -> bool {
    let line = bytes.split(|&b| b == b'\n').next().unwrap_or_default();
    let mut words = line.split(|&b| b == b' ');
    let (Some(token), Some(rank), None) = (words.next(), words.next(), words.next()) else { return false };
    let is_base64 = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=');
    !token.is_empty() && token.iter().all(is_base64) && !rank.is_empty() && rank.iter().all(u8::is_ascii_digit)
}

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
