//! BPE vocabularies from tokenizer.json: byte-level ones (GPT-2, Llama 3) and those with byte fallback (Llama 2).
//!
//! Added tokens are written with the text that users type. (llama.cpp's converter sends them through the tokenizer's decoder, which
//! damages those with letters from U+0080 to U+00FF; no other token differs.)

use std::collections::HashMap;
use std::path::Path;

use super::Scores;
use super::added::Lexicon;
use super::faults::beyond_embedding;
use super::inputs::{Inputs, Tokenizer};
use super::merges::{Merge, merge_error};
use super::pre;
use super::special::{self, Named};
use super::tokens::{PAD_SCORE, check_vocab_size, dense_max, is_byte_token, looks_special};
use super::vocab::{Model, Special, TokenType, Vocabulary};
use crate::error::{Error, Fault, Place, Result};

/// The score of every token in the converter's files where tokenizer.json has none.
const CONSTANT_SCORE: f32 = -1000.0;

const SAME_SCORES: &str = "with the same score for every token, llama.cpp splits text otherwise than the model's own tokenizer";

/// The vocabulary of a byte-level tokenizer, `gpt2`.
pub(super) fn read_byte_level(
    inputs: &Inputs,
    tokenizer: &Tokenizer,
    vocab_size: u32,
    pre: Option<&'static pre::Name>,
) -> Result<Vocabulary> {
    let mut warnings = Vec::new();
    let named = Named::read(inputs);
    let lexicon = Lexicon::read(inputs, tokenizer, &named, &mut warnings)?;
    check_merges(tokenizer, &lexicon)?;
    let chosen = pre::choose(inputs, tokenizer, pre, &mut warnings)?;

    let mut table = Table::new(tokenizer, &lexicon, vocab_size)?;
    for (text, id) in &tokenizer.vocab {
        table.set(*id, text, TokenType::Normal)?;
    }
    for added in lexicon.all_added() {
        if added.flags.special || looks_special(&added.content) {
            table.set(added.id, &added.content, TokenType::Control)?;
        } else {
            table.set(added.id, &added.content.replace('▁', " "), TokenType::UserDefined)?;
        }
    }
    let (tokens, types) = table.finish(&mut warnings);

    let mut vocabulary = Vocabulary::new(&tokenizer.path, Model::Gpt2, chosen.name, tokens, types, warnings)?;
    vocabulary.merges = tokenizer.merges.iter().map(Merge::text).collect();
    if vocabulary.merges.is_empty() {
        return Err(merge_error(&tokenizer.path, "model.merges".to_owned(), "no merges; llama.cpp needs them"));
    }
    special::resolve(inputs, &|text| lexicon.listed_id(tokenizer, text), &tokenizer.path, &mut vocabulary)?;
    special::settle_add_bos(chosen, &mut vocabulary);
    Ok(vocabulary)
}

/// The vocabulary of a tokenizer with byte fallback, `llama`.
pub(super) fn read_byte_fallback(inputs: &Inputs, tokenizer: &Tokenizer, vocab_size: u32, scores: Scores) -> Result<Vocabulary> {
    let mut warnings = Vec::new();
    let named = Named::read(inputs);
    let lexicon = Lexicon::read(inputs, tokenizer, &named, &mut warnings)?;
    check_merges(tokenizer, &lexicon)?;

    let mut table = Table::new(tokenizer, &lexicon, vocab_size)?;
    for (text, id) in &tokenizer.vocab {
        let kind = match text {
            text if is_byte_token(text.as_bytes()) => TokenType::Byte,
            text if named.contains(text) => TokenType::Control,
            _ => TokenType::Normal,
        };
        table.set(*id, text, kind)?;
    }
    for added in lexicon.all_added().iter().filter(|added| lexicon.base_id(&added.content).is_none()) {
        let kind = if named.contains(&added.content) { TokenType::Control } else { TokenType::UserDefined };
        table.set(added.id, &added.content, kind)?;
    }
    let (tokens, types) = table.finish(&mut warnings);
    if !types.contains(&TokenType::Byte) {
        warnings.push("there are no byte tokens, so llama.cpp fails on text with characters that the vocabulary lacks".to_owned());
    }
    if scores == Scores::Constant && !tokenizer.merges.is_empty() {
        warnings.push(SAME_SCORES.to_owned());
    }

    let scores = match scores {
        Scores::Constant => vec![CONSTANT_SCORE; tokens.len()],
        Scores::FromMerges => scores_from_merges(&tokenizer.merges, &tokens),
    };
    let scores = scores.into_iter().zip(&types).map(|(score, kind)| if *kind == TokenType::Unused { PAD_SCORE } else { score });
    let scores = scores.collect();
    let mut vocabulary = Vocabulary::new(&tokenizer.path, Model::Llama, "default", tokens, types, warnings)?;
    vocabulary.scores = scores;
    special::resolve(inputs, &|text| lexicon.listed_id(tokenizer, text), &tokenizer.path, &mut vocabulary)?;
    // llama.cpp's default for this kind of tokenizer is a space before the text.
    if vocabulary.add_space_prefix.is_none() && !pre::puts_space_before(tokenizer) {
        vocabulary.add_space_prefix = Some(false);
    }
    Ok(vocabulary)
}

/// Tokens that are shown as text, since those who read conversations look for them, though tokenizer.json counts them as special.
const SHOWN: &[&str] =
    &["<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", "<|\"|>"];

/// The vocabulary of a tokenizer with byte fallback that llama.cpp merges by the list itself. No space is put before a text, and a token for
/// its begin always is: such tokenizers have no other way.
pub(super) fn read_merged(inputs: &Inputs, tokenizer: &Tokenizer, vocab_size: u32, kind: &'static str) -> Result<Vocabulary> {
    let mut vocabulary = read_byte_fallback(inputs, tokenizer, vocab_size, Scores::Constant)?;
    vocabulary.warnings.retain(|warning| warning != SAME_SCORES);
    if tokenizer.merges.is_empty() {
        return Err(merge_error(&tokenizer.path, "model.merges".to_owned(), "no merges; llama.cpp needs them"));
    }
    for (token, kind) in vocabulary.tokens.iter().zip(&mut vocabulary.types) {
        if SHOWN.iter().any(|shown| shown.as_bytes() == token) {
            *kind = TokenType::UserDefined;
        }
    }
    vocabulary.model = Model::Merged(kind);
    vocabulary.merges = tokenizer.merges.iter().map(Merge::text).collect();
    vocabulary.add_space_prefix = Some(false);
    vocabulary.add.retain(|(special, _)| *special != Special::Bos);
    vocabulary.add.push((Special::Bos, true));
    Ok(vocabulary)
}

/// The negated rank of the first merge that makes each token; tokens that none makes come after all others. SentencePiece merges the
/// pair with the highest score first, so this is the order of the list.
fn scores_from_merges(merges: &[Merge], tokens: &[Vec<u8>]) -> Vec<f32> {
    let mut ranks = HashMap::with_capacity(merges.len());
    for (rank, merge) in merges.iter().enumerate() {
        ranks.entry(merge.joined.as_bytes()).or_insert(rank);
    }
    // Exact in f32 below 2^24, and no vocabulary has as many merges.
    tokens.iter().map(|token| 0.0 - ranks.get(token.as_slice()).copied().unwrap_or(merges.len()) as f32).collect()
}

/// Every merge must join two tokens into a third: Hugging Face's library refuses or crashes otherwise.
fn check_merges(tokenizer: &Tokenizer, lexicon: &Lexicon) -> Result<()> {
    for (index, merge) in tokenizer.merges.iter().enumerate() {
        let (left, right) = merge.parts();
        if let Some(unknown) = [left, right, &merge.joined].into_iter().find(|text| lexicon.base_id(text).is_none()) {
            let detail = format!("{left:?} and {right:?}: {unknown:?} is not in the vocabulary");
            return Err(merge_error(&tokenizer.path, format!("model.merges[{index}]"), detail));
        }
    }
    Ok(())
}

/// Tokens by id, while they are collected.
struct Table<'a> {
    path: &'a Path,
    id_max: u64,
    slots: Vec<Option<(String, TokenType)>>,
    n_dropped: usize,
}

impl<'a> Table<'a> {
    fn new(tokenizer: &'a Tokenizer, lexicon: &Lexicon, vocab_size: u32) -> Result<Table<'a>> {
        let n_entries = lexicon.base_len() + lexicon.all_added().len();
        check_vocab_size(&tokenizer.path, n_entries, vocab_size)?;
        let slots = vec![None; vocab_size as usize];
        Ok(Table { path: &tokenizer.path, id_max: dense_max(n_entries), slots, n_dropped: 0 })
    }

    /// Gives `id` to `text`. An added token may restate a token of the model; two different texts may not share an id.
    fn set(&mut self, id: u32, text: &str, kind: TokenType) -> Result<()> {
        if u64::from(id) >= self.id_max {
            return Err(self.error(text, format!("the id {id} is far beyond the number of tokens")));
        }
        let Some(slot) = self.slots.get_mut(id as usize) else {
            self.n_dropped += 1;
            return Ok(());
        };
        if let Some((other, _)) = slot
            && other != text
            && other.replace('▁', " ") != text
        {
            let detail = format!("the id {id} belongs to {other:?} too");
            return Err(self.error(text, detail));
        }
        *slot = Some((text.to_owned(), kind));
        Ok(())
    }

    fn error(&self, text: &str, detail: String) -> Error {
        Error::malformed(self.path, Place::Field(text.to_owned()), Fault::TokenIdRange, detail)
    }

    /// The dense table; ids without a token become unused ones.
    fn finish(self, warnings: &mut Vec<String>) -> (Vec<Vec<u8>>, Vec<TokenType>) {
        if self.n_dropped > 0 {
            let (n, n_rows) = (self.n_dropped, self.slots.len());
            warnings.push(beyond_embedding(n, n_rows));
        }
        let unused = |id| (format!("[PAD{id}]"), TokenType::Unused);
        let tokens = self.slots.into_iter().enumerate().map(|(id, slot)| slot.unwrap_or_else(|| unused(id)));
        tokens.map(|(text, kind)| (text.into_bytes(), kind)).unzip()
    }
}
