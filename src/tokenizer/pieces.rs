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

use super::Files;
use super::faults::invalid;
use super::tokens::is_byte_token;
use super::vocab::TokenType;
use crate::error::{Error, Fault, Place, Result};

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
    pub path: PathBuf,
    pub pieces: Vec<(Vec<u8>, f32, TokenType)>,
    pub is_unigram: bool,
    pub add_dummy_prefix: bool,
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
        if let Some(what) = crate::hf::instead(bytes) {
            return Err(Error::malformed(&path, Place::File, Fault::UnsupportedFormat, what));
        }
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

/// Some repositories give the name `tokenizer.model` to a list of `base64 rank` lines.
fn is_tiktoken(bytes: &[u8]) -> bool {
    let line = bytes.split(|&b| b == b'\n').next().unwrap_or_default();
    let mut words = line.split(|&b| b == b' ');
    let (Some(token), Some(rank), None) = (words.next(), words.next(), words.next()) else { return false };
    let is_base64 = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=');
    !token.is_empty() && token.iter().all(is_base64) && !rank.is_empty() && rank.iter().all(u8::is_ascii_digit)
}
