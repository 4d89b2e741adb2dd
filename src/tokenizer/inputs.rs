//! The files a tokenizer is spread over, parsed but not yet interpreted.

use std::path::{Path, PathBuf};

use super::Files;
use super::faults::{id_error, invalid, token_id};
use super::merges::Merge;
use super::pieces::SentencePiece;
use crate::error::{Error, Result};
use crate::hf::json::{self, Map, Value};

type Object = Map<String, Value>;

/// Everything in the folder that says something about the tokenizer.
pub(super) struct Inputs<'a> {
    pub files: &'a dyn Files,
    /// `tokenizer.model`.
    pub sentencepiece: Option<SentencePiece>,
    /// `tokenizer.json`; without one, `vocab.json` and `merges.txt`.
    pub tokenizer: Option<Tokenizer>,
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<Object>,
    /// `special_tokens_map.json`.
    pub special_tokens_map: Object,
    /// `added_tokens.json`: id by text.
    pub added_tokens: Object,
    /// `config.json`.
    pub config: Object,
    /// `generation_config.json`.
    pub generation_config: Object,
    pub warnings: Vec<String>,
}

/// What `tokenizer.json` says.
pub(super) struct Tokenizer {
    pub path: PathBuf,
    /// `BPE`, `Unigram`, ...; the fields about BPE are empty for the others.
    pub kind: String,
    /// Text and id, in the order of the file.
    pub vocab: Vec<(String, u32)>,
    pub merges: Vec<Merge>,
    pub byte_fallback: bool,
    pub ignore_merges: bool,
    pub added_tokens: Vec<AddedToken>,
    /// The token that Hugging Face's library pads with.
    pub padding_token: Option<String>,
    pub normalizer: Value,
    /// `None` when there is no `tokenizer.json` to say it.
    pub pre_tokenizer: Option<Value>,
    pub post_processor: Value,
    pub decoder: Value,
}

/// An entry of `added_tokens`.
pub(super) struct AddedToken {
    pub content: String,
    pub id: u32,
    pub flags: Flags,
}

/// How an added token is searched in text. Two entries that differ here are different to Hugging Face's library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flags {
    pub single_word: bool,
    pub lstrip: bool,
    pub rstrip: bool,
    pub normalized: bool,
    pub special: bool,
}

impl Flags {
    /// Those of a special token given only by its text.
    pub const SPECIAL: Flags = Flags { single_word: false, lstrip: false, rstrip: false, normalized: false, special: true };

    fn read(entry: &Object) -> Flags {
        let flag = |name: &str, default| entry.get(name).and_then(Value::as_bool).unwrap_or(default);
        let special = flag("special", false);
        Flags {
            single_word: flag("single_word", false),
            lstrip: flag("lstrip", false),
            rstrip: flag("rstrip", false),
            normalized: flag("normalized", !special),
            special,
        }
    }
}

impl<'a> Inputs<'a> {
    pub fn read(files: &'a dyn Files) -> Result<Inputs<'a>> {
        let mut warnings = Vec::new();
        let tokenizer = match object(files, "tokenizer.json")? {
            Some(root) => Some(Tokenizer::read(files.path("tokenizer.json"), root)?),
            None => Tokenizer::read_split(files)?,
        };
        Ok(Inputs {
            files,
            sentencepiece: match &tokenizer {
                Some(_) => SentencePiece::read_beside_another(files, &mut warnings)?,
                None => SentencePiece::read(files)?,
            },
            tokenizer,
            tokenizer_config: object(files, "tokenizer_config.json")?,
            special_tokens_map: object(files, "special_tokens_map.json")?.unwrap_or_default(),
            added_tokens: object(files, "added_tokens.json")?.unwrap_or_default(),
            config: object(files, "config.json")?.unwrap_or_default(),
            // Only advice: invalid ones exist on the hub, and the folder has noted it.
            generation_config: object(files, "generation_config.json").ok().flatten().unwrap_or_default(),
            warnings,
        })
    }

    /// A BPE vocabulary whose tokens are text, with byte tokens for the rest: Llama 2's kind.
    pub fn byte_fallback(&self) -> Option<&Tokenizer> {
        self.bpe().filter(|tokenizer| tokenizer.byte_fallback && tokenizer.decoder["type"] == "Sequence")
    }

    /// Any BPE vocabulary.
    pub fn bpe(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref().filter(|tokenizer| tokenizer.kind == "BPE")
    }

    /// A field of `tokenizer_config.json`; null counts as absent.
    pub fn tokenizer_setting(&self, name: &str) -> Option<&Value> {
        self.tokenizer_config.as_ref()?.get(name).filter(|value| !value.is_null())
    }

    /// `added_tokens_decoder` of `tokenizer_config.json`, sorted by id.
    pub fn added_tokens_decoder(&self) -> Result<Option<Vec<AddedToken>>> {
        let path = self.files.path("tokenizer_config.json");
        let place = "added_tokens_decoder";
        let Some(entries) = self.tokenizer_setting(place) else { return Ok(None) };
        let entries = entries.as_object().ok_or_else(|| invalid(&path, place, "expected an object"))?;
        let mut tokens = Vec::with_capacity(entries.len());
        for (key, entry) in entries {
            let id = key.parse().map_err(|_| id_error(&path, place, key))?;
            let entry = entry.as_object().ok_or_else(|| invalid(&path, place, "expected an object for each id"))?;
            let content = entry.get("content").and_then(Value::as_str);
            let content = content.ok_or_else(|| invalid(&path, place, "an entry without text in its content"))?.to_owned();
            tokens.push(AddedToken { content, id, flags: Flags::read(entry) });
        }
        tokens.sort_by_key(|token| token.id);
        Ok(Some(tokens))
    }
}

impl Tokenizer {
    fn read(path: PathBuf, mut root: Object) -> Result<Tokenizer> {
        let Some(Value::Object(mut model)) = root.remove("model") else {
            return Err(invalid(&path, "model", "expected an object"));
        };
        let kind = match model.get("type") {
            Some(Value::String(kind)) => kind.clone(),
            // Older files do not name their kind, and it is known by its parts, as to Hugging Face's library.
            None | Some(Value::Null) => match kind_of_parts(&model) {
                Some(kind) => kind.to_owned(),
                None => return Err(invalid(&path, "model", "it has no type, nor the parts of a known one")),
            },
            _ => return Err(invalid(&path, "model.type", "expected the name of a model")),
        };
        let mut take = |name: &str| root.remove(name).unwrap_or_default();
        let mut tokenizer = Tokenizer {
            kind,
            vocab: Vec::new(),
            merges: Vec::new(),
            byte_fallback: model.get("byte_fallback") == Some(&Value::Bool(true)),
            ignore_merges: model.get("ignore_merges") == Some(&Value::Bool(true)),
            added_tokens: added_tokens(&path, take("added_tokens"))?,
            padding_token: take("padding")["pad_token"].as_str().map(str::to_owned),
            normalizer: take("normalizer"),
            pre_tokenizer: Some(take("pre_tokenizer")),
            post_processor: take("post_processor"),
            decoder: take("decoder"),
            path,
        };
        if tokenizer.kind == "BPE" {
            tokenizer.read_bpe(&mut model)?;
        }
        Ok(tokenizer)
    }

    fn read_bpe(&mut self, model: &mut Object) -> Result<()> {
        for affix in ["continuing_subword_prefix", "end_of_word_suffix"] {
            if model.get(affix).and_then(Value::as_str).is_some_and(|text| !text.is_empty()) {
                let what = format!("{}: BPE with a {affix}", self.path.display());
                return Err(Error::unsupported(what, "llama.cpp's BPE has none"));
            }
        }
        let Some(Value::Object(vocab)) = model.remove("vocab") else {
            return Err(invalid(&self.path, "model.vocab", "expected an object"));
        };
        self.vocab = ids_by_text(&self.path, "model.vocab", vocab)?;
        let merges = match model.remove("merges") {
            Some(Value::Array(merges)) => merges,
            None | Some(Value::Null) => Vec::new(),
            Some(_) => return Err(invalid(&self.path, "model.merges", "expected a list")),
        };
        let path = &self.path;
        let merges = merges.into_iter().enumerate();
        self.merges = merges.map(|(index, merge)| Merge::from_json(path, index, merge)).collect::<Result<_>>()?;
        Ok(())
    }

    /// The form before tokenizer.json: `vocab.json` and `merges.txt`, always byte-level BPE.
    fn read_split(files: &dyn Files) -> Result<Option<Tokenizer>> {
        let Some(vocab) = object(files, "vocab.json")? else { return Ok(None) };
        let Some(merges) = files.read_optional("merges.txt")? else { return Ok(None) };
        let path = files.path("vocab.json");
        Ok(Some(Tokenizer {
            kind: "BPE".to_owned(),
            vocab: ids_by_text(&path, "vocabulary", vocab)?,
            merges: Merge::from_text(&files.path("merges.txt"), &merges)?,
            byte_fallback: false,
            ignore_merges: false,
            added_tokens: Vec::new(),
            padding_token: None,
            normalizer: Value::Null,
            pre_tokenizer: None,
            post_processor: Value::Null,
            decoder: Value::Null,
            path,
        }))
    }
}

/// The kind of a model that does not name it. The library tries them in this order, by the fields that each must have.
fn kind_of_parts(model: &Object) -> Option<&'static str> {
    let has = |name: &str| model.contains_key(name);
    match model.get("vocab")? {
        Value::Object(_) if has("merges") => Some("BPE"),
        Value::Object(_) if has("max_input_chars_per_word") && has("continuing_subword_prefix") => Some("WordPiece"),
        Value::Object(_) => Some("WordLevel"),
        Value::Array(_) => Some("Unigram"),
        _ => None,
    }
}

fn object(files: &dyn Files, name: &str) -> Result<Option<Object>> {
    let Some(bytes) = files.read_optional(name)? else { return Ok(None) };
    json::parse_object(&files.path(name), &bytes).map(Some)
}

fn added_tokens(path: &Path, list: Value) -> Result<Vec<AddedToken>> {
    let place = "added_tokens";
    let list = match list {
        Value::Array(list) => list,
        Value::Null => return Ok(Vec::new()),
        _ => return Err(invalid(path, place, "expected a list")),
    };
    let mut tokens = Vec::with_capacity(list.len());
    for entry in &list {
        let entry = entry.as_object().ok_or_else(|| invalid(path, place, "expected objects"))?;
        let content = entry.get("content").and_then(Value::as_str);
        let content = content.ok_or_else(|| invalid(path, place, "an entry without text in its content"))?;
        let id = token_id(path, content, entry.get("id").unwrap_or(&Value::Null))?;
        tokens.push(AddedToken { content: content.to_owned(), id, flags: Flags::read(entry) });
    }
    Ok(tokens)
}

/// The entries of an object of ids by text.
pub(super) fn ids_by_text(path: &Path, place: &str, object: Object) -> Result<Vec<(String, u32)>> {
    if object.is_empty() {
        return Err(invalid(path, place, "no tokens"));
    }
    let entries = object.into_iter();
    entries.map(|(text, id)| token_id(path, &text, &id).map(|id| (text, id))).collect()
}
