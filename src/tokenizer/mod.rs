//! Vocabularies: read from Hugging Face files, written as GGUF metadata.
//!
//! The rules are those of llama.cpp's converter for the Llama family, tried in its order:
//!
//! | files | becomes | where |
//! |---|---|---|
//! | `tokenizer.model` | `llama`: pieces, scores and types of SentencePiece | `spm` |
//! | `tokenizer.json`, BPE with byte fallback | `llama`: scores from the order of merges; for Gemma 4 its own kind, with merges | `bpe` |
//! | `tokenizer.json`, byte-level BPE, or `vocab.json` with `merges.txt` | `gpt2`: merges, and a name for the pre-tokenizer | `bpe`, `pre` |
//!
//! What is written equals the converter's, key by key, but for these:
//!
//! - The pre-tokenizer is known by its structure, so a new vocabulary is converted where the converter refuses it.
//! - The vocabulary always has as many tokens as the embedding has rows. The converter stops when there are more tokens, and leaves
//!   byte-fallback vocabularies short when there are fewer, which makes a file that does not load.
//! - A byte-fallback vocabulary without `tokenizer.model` gets scores with which llama.cpp merges as Hugging Face's library does, see
//!   [`Scores`]; the converter gives every token the same.
//! - Where bos or eos stay unknown, they are searched in files that the converter does not read; and `add_bos_token` is written as
//!   false where llama.cpp would otherwise add a token that Hugging Face does not add.
//! - Special tokens spelled as objects are compared by their text, added tokens keep letters from U+0080 to U+00FF, and
//!   `chat_template.jinja` goes before the template in tokenizer_config.json: in all three as Hugging Face's library does.
//! - A SentencePiece model without a dummy prefix says so (`add_space_prefix`).
//! - Where `tokenizer.json` lies beside `tokenizer.model`, its added tokens are placed too, and it alone is read where the two disagree
//!   about ordinary tokens: Hugging Face's library reads nothing else.
//! - The ids of an `eos_token_id` list end turns and messages (`eot_token_id`, `eom_token_id`), so that generation stops at each.
//! - A byte-fallback tokenizer.json that puts no space before a text says so (`add_space_prefix`).
//! - Two tokens of one text are refused, since llama.cpp aborts on them.
//!
//! Files are untrusted: JSON has no key twice and a bounded depth, ids are bounded by the number of entries before any table is made,
//! and whatever contradicts itself is an error. Templates are copied, never run. Knows nothing of tensors.
//! Text is encoded in [`encode`], which starts from GGUF metadata alone and knows nothing of these files.

// Files are hostile: nothing that panics. (Indexing stays allowed for JSON values, which give null where there is nothing.)
#![deny(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::expect_used,
    clippy::panic,
    clippy::string_slice,
    clippy::unreachable,
    clippy::unwrap_used
)]

mod added;
mod bpe;
pub mod encode;
mod ends;
mod faults;
mod inputs;
mod merges;
mod pieces;
mod pre;
mod pre_regex;
pub mod proof;
mod special;
mod spm;
mod template;
mod tokens;
mod vocab;

use std::path::PathBuf;

pub use pre::known_pre_names;
pub use vocab::{ChatTemplates, Model, Special, TokenType, Vocabulary};

use crate::error::{Error, Result};
use crate::hf;
use inputs::Inputs;

/// Where tokenizer files are read from: a model folder, or a map in a test.
pub trait Files {
    /// The content of the file `name`, or `None` when there is none.
    ///
    /// # Errors
    /// What opening and reading can meet; `Limit` for a file larger than any real one.
    fn read_optional(&self, name: &str) -> Result<Option<Vec<u8>>>;

    /// The files of the subfolder `folder` whose names end with `suffix`, sorted by name; none when there is no such folder.
    ///
    /// # Errors
    /// As [`Files::read_optional`].
    fn read_folder(&self, folder: &str, suffix: &str) -> Result<Vec<(String, Vec<u8>)>>;

    /// The path to name in messages about the file `name`.
    fn path(&self, name: &str) -> PathBuf;
}

impl Files for hf::Folder {
    fn read_optional(&self, name: &str) -> Result<Option<Vec<u8>>> {
        hf::Folder::read_optional(self, name)
    }

    fn read_folder(&self, folder: &str, suffix: &str) -> Result<Vec<(String, Vec<u8>)>> {
        self.read_subfolder(folder, suffix)
    }

    fn path(&self, name: &str) -> PathBuf {
        hf::Folder::path(self).join(name)
    }
}

/// Warnings given in full.
const WARNINGS_MAX: usize = 16;

/// What the caller decides.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options<'a> {
    /// llama.cpp's name for the pre-tokenizer, instead of the one found by comparison.
    pub pre: Option<&'a str>,
    /// What stands for the scores that tokenizer.json does not have.
    pub scores: Scores,
    /// llama.cpp's kind of tokenizer for byte fallback with merges, where the model has one of its own.
    pub merged: Option<&'static str>,
}

/// Scores of a byte-fallback vocabulary without `tokenizer.model`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scores {
    /// The rank of the first merge that makes the token, negated: llama.cpp merges in the order of the list, as Hugging Face does.
    /// With Phi-3's vocabulary this gives the same tokens for ten texts of 2.5 million characters; the constant gives others for the
    /// three of them whose scripts have merges, English and Russian.
    #[default]
    FromMerges,
    /// -1000 for every token, as llama.cpp's converter writes. llama.cpp then merges from left to right whatever it can, and splits
    /// text into other tokens than the model was trained with.
    Constant,
}

/// Reads the vocabulary of a model whose embedding has `vocab_size` rows.
///
/// Ids without a token become unused `[PADi]` tokens; tokens beyond the embedding are dropped with a warning.
///
/// # Errors
/// `Malformed` for files that contradict themselves, `Unsupported` for kinds of tokenizer other than those above, `Usage` for a
/// pre-tokenizer name that llama.cpp does not know.
pub fn read(files: &dyn Files, vocab_size: u32, options: Options) -> Result<Vocabulary> {
    let pre = options.pre.map(pre::known).transpose()?;
    let mut inputs = Inputs::read(files)?;
    settle_disagreement(&mut inputs);
    let mut vocabulary = if let Some(model) = &inputs.sentencepiece {
        spm::read(&inputs, model, vocab_size)?
    } else if let Some(tokenizer) = inputs.byte_fallback() {
        match options.merged {
            Some(kind) => bpe::read_merged(&inputs, tokenizer, vocab_size, kind)?,
            None => bpe::read_byte_fallback(&inputs, tokenizer, vocab_size, options.scores)?,
        }
    } else if let Some(tokenizer) = inputs.bpe() {
        bpe::read_byte_level(&inputs, tokenizer, vocab_size, pre)?
    } else {
        return Err(no_tokenizer(&inputs));
    };
    let mut warnings = std::mem::take(&mut inputs.warnings);
    warnings.append(&mut vocabulary.warnings);
    vocabulary.chat_templates = template::read(&inputs, &mut warnings)?;
    special::find_for_template(&inputs, &mut vocabulary);
    vocabulary.warnings = shortened(warnings);
    Ok(vocabulary)
}

/// Drops a tokenizer.model that has other tokens than the tokenizer.json beside it, which Hugging Face's library reads alone: a model that
/// was trained further got new tokens there, or another tokenizer altogether.
fn settle_disagreement(inputs: &mut Inputs) {
    let json = inputs.bpe().filter(|tokenizer| tokenizer.pre_tokenizer.is_some());
    let found = inputs.sentencepiece.as_ref().zip(json).and_then(|(model, json)| spm::disagreement(model, json));
    if let Some((id, of_model, of_json)) = found {
        let where_ = format!("token {id} is {of_json} in tokenizer.json and {of_model} in tokenizer.model");
        inputs.warnings.push(format!("{where_}; tokenizer.json is used, tokenizer.model is not"));
        inputs.sentencepiece = None;
    }
}

/// How many tokens tokenizer.json lists, where it is what the vocabulary is read from; `None` beside a `tokenizer.model`.
///
/// # Errors
/// As [`read`].
pub fn count(files: &dyn Files) -> Result<Option<u32>> {
    let mut inputs = Inputs::read(files)?;
    settle_disagreement(&mut inputs);
    let Some(tokenizer) = inputs.tokenizer.as_ref().filter(|_| inputs.sentencepiece.is_none()) else { return Ok(None) };
    let n_listed = tokenizer.vocab.len().saturating_add(tokenizer.added_tokens.len());
    // Ids beyond the number of tokens leave holes below them.
    let ids = tokenizer.vocab.iter().map(|(_, id)| *id).chain(tokenizer.added_tokens.iter().map(|token| token.id));
    let n_ids = ids.max().map_or(0, |last| last.saturating_add(1));
    Ok(Some(u32::try_from(n_listed).unwrap_or(u32::MAX).max(n_ids)))
}

/// At most [`WARNINGS_MAX`] warnings: a file can earn one per token.
fn shortened(mut warnings: Vec<String>) -> Vec<String> {
    warnings.dedup();
    if let Some(n_more) = warnings.len().checked_sub(WARNINGS_MAX).filter(|n_more| *n_more > 0) {
        warnings.truncate(WARNINGS_MAX);
        warnings.push(format!("and {n_more} more warnings about the tokenizer"));
    }
    warnings
}

fn no_tokenizer(inputs: &Inputs) -> Error {
    match &inputs.tokenizer {
        Some(tokenizer) => Error::unsupported(
            format!("{}: a tokenizer of kind {}", tokenizer.path.display(), tokenizer.kind),
            "SentencePiece (tokenizer.model) and byte-level or byte-fallback BPE are supported",
        ),
        None if matches!(inputs.files.read_optional("tekken.json"), Ok(Some(_))) => Error::unsupported(
            format!("{}: a tokenizer of Mistral's own form", inputs.files.path("tekken.json").display()),
            "copy tokenizer.json from the repository's version for transformers into the folder",
        ),
        None => Error::unsupported(
            format!("no tokenizer in {}", inputs.files.path("").display()),
            "copy tokenizer.model, or tokenizer.json, or vocab.json and merges.txt, from the original model into the folder",
        ),
    }
}
