//! The vocabulary as GGUF stores it, and its spelling as metadata.

use std::collections::HashMap;
use std::path::Path;

use super::encode::SPECIAL_BYTES_MAX;
use crate::error::{Error, Fault, Place, Result};
use crate::gguf::{Array, Metadata, Value, keys};

/// What kind of tokenizer llama.cpp is to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    /// SentencePiece: merges in the order of the tokens' scores, unknown characters as byte tokens.
    Llama,
    /// Byte-level BPE: merges from a list.
    Gpt2,
    /// Merges of characters from a list, lines as words, unknown characters as byte tokens; the kind that says how, by its name.
    Merged(&'static str),
}

impl Model {
    /// The value of `tokenizer.ggml.model`.
    pub fn name(self) -> &'static str {
        match self {
            Model::Llama => "llama",
            Model::Gpt2 => "gpt2",
            Model::Merged(kind) => kind,
        }
    }
}

/// What a token is; the numbers are those of `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum TokenType {
    /// Part of text.
    Normal = 1,
    /// Stands for what the vocabulary cannot spell.
    Unknown = 2,
    /// Never part of text: begin, end, role markers.
    Control = 3,
    /// Text that is always one token.
    UserDefined = 4,
    /// A row of the embedding that no text uses.
    Unused = 5,
    /// One byte, spelled `<0xFF>`.
    Byte = 6,
}

/// A token with a role that llama.cpp knows by id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Special {
    Bos,
    Eos,
    Unk,
    Sep,
    Pad,
    Mask,
    Eot,
    Eom,
}

impl Special {
    /// The role's name in Hugging Face files: `bos` of `bos_token` and `bos_token_id`.
    pub fn name(self) -> &'static str {
        match self {
            Special::Bos => "bos",
            Special::Eos => "eos",
            Special::Unk => "unk",
            Special::Sep => "sep",
            Special::Pad => "pad",
            Special::Mask => "mask",
            Special::Eot => "eot",
            Special::Eom => "eom",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Special::Bos => keys::TOKENIZER_BOS_TOKEN_ID,
            Special::Eos => keys::TOKENIZER_EOS_TOKEN_ID,
            Special::Unk => keys::TOKENIZER_UNKNOWN_TOKEN_ID,
            Special::Sep => keys::TOKENIZER_SEPARATOR_TOKEN_ID,
            Special::Pad => keys::TOKENIZER_PADDING_TOKEN_ID,
            Special::Mask => keys::TOKENIZER_MASK_TOKEN_ID,
            Special::Eot => keys::TOKENIZER_EOT_TOKEN_ID,
            Special::Eom => keys::TOKENIZER_EOM_TOKEN_ID,
        }
    }

    /// The key that says whether the token is put around every text; only three roles have one.
    fn add_key(self) -> Option<&'static str> {
        match self {
            Special::Bos => Some(keys::TOKENIZER_ADD_BOS_TOKEN),
            Special::Eos => Some(keys::TOKENIZER_ADD_EOS_TOKEN),
            Special::Sep => Some(keys::TOKENIZER_ADD_SEP_TOKEN),
            _ => None,
        }
    }
}

/// The chat templates of a model: Jinja source, never executed here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChatTemplates {
    /// The template used where none is asked for by name.
    pub default: Option<String>,
    /// Others, by name; names are ASCII letters, digits and `_`.
    pub named: Vec<(String, String)>,
}

/// A vocabulary with everything GGUF says about it. Lists of pairs are in the order in which they are written.
#[derive(Debug, Clone, PartialEq)]
pub struct Vocabulary {
    /// The kind of tokenizer.
    pub model: Model,
    /// llama.cpp's name for how text is cut into words before BPE.
    pub pre: &'static str,
    /// By id; as many as the embedding has rows. Bytes, since SentencePiece does not promise UTF-8.
    pub tokens: Vec<Vec<u8>>,
    /// By id.
    pub types: Vec<TokenType>,
    /// By id, or empty where the model has no scores.
    pub scores: Vec<f32>,
    /// `left right` with a space between, best first.
    pub merges: Vec<String>,
    /// The ids of tokens with a role.
    pub special_ids: Vec<(Special, u32)>,
    /// Which tokens are put around every text.
    pub add: Vec<(Special, bool)>,
    /// Whether a space is put before the text; left out where llama.cpp's own default is to hold.
    pub add_space_prefix: Option<bool>,
    /// What is written to `tokenizer.chat_template` and its named siblings.
    pub chat_templates: ChatTemplates,
    /// The normalizer lowers the case of text.
    pub lowercase: Option<bool>,
    /// The normalizer strips accents.
    pub strip_accents: Option<bool>,
    /// What the user should know: assumptions made, entries dropped. One sentence each, safe to print.
    pub warnings: Vec<String>,
}

impl Vocabulary {
    /// Tokens and types, checked; everything else is left unsaid.
    ///
    /// # Errors
    /// `DuplicateToken` for two tokens of one text: llama.cpp stops on such a file. `Limit` for more bytes of special tokens than
    /// [`encode`](super::encode) looks for.
    pub(super) fn new(
        path: &Path,
        model: Model,
        pre: &'static str,
        tokens: Vec<Vec<u8>>,
        types: Vec<TokenType>,
        mut warnings: Vec<String>,
    ) -> Result<Vocabulary> {
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            if let Some(other) = ids.insert(token.as_slice(), id) {
                let place = Place::Field(format!("token {id}"));
                let detail = format!("{:?} is token {other} too", String::from_utf8_lossy(token));
                return Err(Error::malformed(path, place, Fault::DuplicateToken, detail));
            }
        }
        let is_special = |kind: TokenType| matches!(kind, TokenType::Control | TokenType::UserDefined | TokenType::Unknown);
        let n_bytes: usize = tokens.iter().zip(&types).filter(|(_, kind)| is_special(**kind)).map(|(text, _)| text.len()).sum();
        if n_bytes > SPECIAL_BYTES_MAX {
            let (limit, found) = (SPECIAL_BYTES_MAX as u64, n_bytes as u64);
            return Err(Error::Limit { path: path.to_owned(), what: "bytes of special tokens".to_owned(), limit, found });
        }
        if let Some(id) = ids.get(&b""[..]) {
            warnings.push(format!("token {id} is empty; llama.cpp names it after its id"));
        }
        Ok(Vocabulary {
            model,
            pre,
            tokens,
            types,
            scores: Vec::new(),
            merges: Vec::new(),
            special_ids: Vec::new(),
            add: Vec::new(),
            add_space_prefix: None,
            chat_templates: ChatTemplates::default(),
            lowercase: None,
            strip_accents: None,
            warnings,
        })
    }

    /// The id of the token with this text.
    pub fn id(&self, text: &str) -> Option<u32> {
        self.tokens.iter().position(|token| token == text.as_bytes()).and_then(|id| u32::try_from(id).ok())
    }

    /// The id of a role's token.
    pub fn special_id(&self, special: Special) -> Option<u32> {
        self.special_ids.iter().find(|(s, _)| *s == special).map(|(_, id)| *id)
    }

    /// The metadata, in the order in which llama.cpp's converter writes it.
    pub fn metadata(&self) -> Metadata {
        let mut metadata = Metadata::new();
        let mut put = |key: &str, value: Value| metadata.push((key.to_owned(), value));
        if let Some(prefix) = self.add_space_prefix {
            put(keys::TOKENIZER_ADD_SPACE_PREFIX, Value::Bool(prefix));
        }
        put(keys::TOKENIZER_MODEL, self.model.name().into());
        // Such a kind has a pre-tokenizer of its own.
        if !matches!(self.model, Model::Merged(_)) {
            put(keys::TOKENIZER_PRE, self.pre.into());
        }
        put(keys::TOKENIZER_TOKENS, Value::Array(Array::String(self.tokens.clone())));
        if !self.scores.is_empty() {
            put(keys::TOKENIZER_SCORES, Value::Array(Array::F32(self.scores.clone())));
        }
        put(keys::TOKENIZER_TOKEN_TYPE, Value::Array(Array::I32(self.types.iter().map(|t| *t as i32).collect())));
        if !self.merges.is_empty() {
            put(keys::TOKENIZER_MERGES, strings(self.merges.iter()));
        }
        for (special, id) in &self.special_ids {
            put(special.key(), Value::U32(*id));
        }
        for (special, add) in &self.add {
            if let Some(key) = special.add_key() {
                put(key, Value::Bool(*add));
            }
        }
        for (name, template) in &self.chat_templates.named {
            put(&keys::of(keys::TOKENIZER_CHAT_TEMPLATE, name), template.as_str().into());
        }
        if !self.chat_templates.named.is_empty() {
            put(keys::TOKENIZER_CHAT_TEMPLATES, strings(self.chat_templates.named.iter().map(|(name, _)| name)));
        }
        if let Some(template) = &self.chat_templates.default {
            put(keys::TOKENIZER_CHAT_TEMPLATE, template.as_str().into());
        }
        if let Some(lowercase) = self.lowercase {
            put(keys::TOKENIZER_NORMALIZER_LOWERCASE, Value::Bool(lowercase));
        }
        if let Some(strip) = self.strip_accents {
            put(keys::TOKENIZER_NORMALIZER_STRIP_ACCENTS, Value::Bool(strip));
        }
        metadata
    }
}

fn strings<'a>(texts: impl Iterator<Item = &'a String>) -> Value {
    Value::Array(Array::String(texts.map(|text| text.clone().into_bytes()).collect()))
}
