//! From metadata to a tokenizer: which algorithm, which defaults, which tokens around a text.

use super::bpe::Bpe;
use super::charsmap::Charsmap;
use super::fields::Fields;
use super::pretokenizers::{self, Alphabet};
use super::special::{self, SpecialTokens};
use super::spm::SentencePiece;
use super::trie;
use super::unigram::Unigram;
use super::vocab::{Roles, Vocab};
use super::wordpiece::WordPiece;
use super::{Algorithm, Tokenizer};
use crate::error::{Error, Fault, Result};
use crate::gguf::{ValueRef, ValueType, keys};

/// Reads the tokenizer that the metadata describes.
pub(super) fn read(fields: Fields) -> Result<Tokenizer> {
    let flags = Flags::read(fields)?;
    let missing = || fields.fault(keys::TOKENIZER_MODEL, Fault::TokenizerInvalid, "the file has no tokenizer");
    let loaded = match fields.string(keys::TOKENIZER_MODEL)?.ok_or_else(missing)? {
        "gpt2" => bpe(fields, &flags, fields.string(keys::TOKENIZER_PRE)?),
        "gemma4" => bpe(fields, &flags, Some("gemma4")),
        "llama" => sentence_piece(fields, &flags),
        "bert" => word_piece(fields, &flags),
        "t5" => unigram(fields, &flags),
        other => Err(Error::unsupported(format!("a tokenizer of kind {other}"), "gpt2, gemma4, llama, bert and t5 can be used")),
    };
    let Loaded { mut vocab, algorithm, first, last, space_before } = loaded?;
    for (end, name) in [(&first, "begin"), (&last, "end")] {
        if *end == End::Nameless {
            vocab.warnings.push(format!("the model wants a token at the {name} of a text but names none; none is put there"));
        }
    }
    special::mark_strips(&mut vocab, fields)?;
    let special = SpecialTokens::new(&vocab, fields)?;
    let space_before = flags.space_before.unwrap_or(space_before);
    Ok(Tokenizer { vocab, algorithm, special, first: first.id(), last: last.id(), space_before })
}

/// What a file says with yes and no, where it says it.
struct Flags {
    add_bos: Option<bool>,
    add_eos: Option<bool>,
    space_before: Option<bool>,
    remove_extra_spaces: Option<bool>,
    lowercase: Option<bool>,
    strip_accents: Option<bool>,
}

impl Flags {
    fn read(fields: Fields) -> Result<Flags> {
        Ok(Flags {
            add_bos: fields.flag(keys::TOKENIZER_ADD_BOS_TOKEN)?,
            add_eos: fields.flag(keys::TOKENIZER_ADD_EOS_TOKEN)?,
            space_before: fields.flag(keys::TOKENIZER_ADD_SPACE_PREFIX)?,
            remove_extra_spaces: fields.flag(keys::TOKENIZER_REMOVE_EXTRA_WHITESPACES)?,
            lowercase: fields.flag(keys::TOKENIZER_NORMALIZER_LOWERCASE)?,
            strip_accents: fields.flag(keys::TOKENIZER_NORMALIZER_STRIP_ACCENTS)?,
        })
    }
}

/// What is put at one end of a text.
#[derive(PartialEq, Eq)]
enum End {
    Nothing,
    Token(u32),
    /// The model wants a token there but says not which.
    Nameless,
}

impl End {
    fn new(is_wanted: bool, token: Option<u32>) -> End {
        match token {
            _ if !is_wanted => End::Nothing,
            Some(id) => End::Token(id),
            None => End::Nameless,
        }
    }

    fn id(&self) -> Option<u32> {
        if let End::Token(id) = self { Some(*id) } else { None }
    }
}

/// A tokenizer but for its special tokens.
struct Loaded {
    vocab: Vocab,
    algorithm: Algorithm,
    first: End,
    last: End,
    /// Where the file does not say.
    space_before: bool,
}

fn bpe(fields: Fields, flags: &Flags, name: Option<&str>) -> Result<Loaded> {
    let pre = pretokenizers::by_name(name.unwrap_or("default")).ok_or_else(|| {
        let what = format!("{}: the pre-tokenizer {}", keys::TOKENIZER_PRE, name.unwrap_or_default());
        Error::unsupported(what, "convert the model again, with --pre NAME where the nearest one is known")
    })?;
    // The first model of this kind, Falcon, had token 11 for both.
    let bos = pre.has_default_bos.then_some(11);
    let mut vocab = read_vocab(fields, Roles { bos, eos: Some(11), ..Roles::default() })?;
    if name.is_none() {
        let key = keys::TOKENIZER_PRE;
        vocab.warnings.push(format!("{key} is missing; words are cut in a general way, which few models were trained with"));
    }
    let algorithm = Algorithm::Bpe(Box::new(Bpe::read(fields, &mut vocab, pre)?));
    // Gemma 4's first conversions say that it wants no bos; llama.cpp adds it all the same.
    let add_bos = flags.add_bos.unwrap_or(pre.add_bos) || pre.alphabet == Alphabet::VisibleWithNewlines;
    let (first, last) = (End::new(add_bos, vocab.roles.bos), End::new(flags.add_eos == Some(true), vocab.roles.eos));
    Ok(Loaded { vocab, algorithm, first, last, space_before: false })
}

fn sentence_piece(fields: Fields, flags: &Flags) -> Result<Loaded> {
    let mut vocab = read_vocab(fields, Roles { bos: Some(1), eos: Some(2), unk: Some(0), ..Roles::default() })?;
    vocab.index_texts();
    let algorithm = Algorithm::SentencePiece(SentencePiece::new(&vocab));
    let first = End::new(flags.add_bos.unwrap_or(true), vocab.roles.bos);
    let last = End::new(flags.add_eos == Some(true), vocab.roles.eos);
    Ok(Loaded { vocab, algorithm, first, last, space_before: true })
}

fn word_piece(fields: Fields, flags: &Flags) -> Result<Loaded> {
    let defaults = Roles { bos: Some(101), unk: Some(100), sep: Some(102), pad: Some(0), mask: Some(103), ..Roles::default() };
    let mut vocab = read_vocab(fields, defaults)?;
    vocab.index_texts();
    vocab.warnings.extend(trie::warning(&vocab.texts));
    let lowercase = flags.lowercase.unwrap_or(true);
    let word_piece = WordPiece::new(&vocab, lowercase, flags.strip_accents.unwrap_or(lowercase));
    // Models of this kind are never without, whatever the file says.
    let (first, last) = (End::new(true, vocab.roles.bos), End::new(true, vocab.roles.sep));
    Ok(Loaded { vocab, algorithm: Algorithm::WordPiece(Box::new(word_piece)), first, last, space_before: false })
}

fn unigram(fields: Fields, flags: &Flags) -> Result<Loaded> {
    let mut vocab = read_vocab(fields, Roles { eos: Some(1), unk: Some(2), pad: Some(0), ..Roles::default() })?;
    vocab.index_texts();
    vocab.warnings.extend(trie::warning(&vocab.texts));
    let key = keys::TOKENIZER_PRECOMPILED_CHARSMAP;
    let charsmap = match fields.array(key, &[ValueType::U8, ValueType::I8])? {
        Some(array) => {
            let bytes: Vec<u8> = array.iter().filter_map(byte).collect();
            Charsmap::read(&bytes).map_err(|detail| fields.fault(key, Fault::CharsmapInvalid, detail))?
        }
        None => Charsmap::default(),
    };
    let unigram = Unigram::new(&vocab, charsmap, flags.remove_extra_spaces == Some(true));
    let first = End::new(flags.add_bos == Some(true), vocab.roles.bos);
    let last = End::new(flags.add_eos.unwrap_or(true), vocab.roles.eos);
    Ok(Loaded { vocab, algorithm: Algorithm::Unigram(unigram), first, last, space_before: false })
}

fn byte(value: ValueRef) -> Option<u8> {
    match value {
        ValueRef::U8(byte) => Some(byte),
        ValueRef::I8(byte) => Some(byte.cast_unsigned()),
        _ => None,
    }
}

/// The tokens, with the roles that only their spelling tells.
fn read_vocab(fields: Fields, defaults: Roles) -> Result<Vocab> {
    let mut vocab = Vocab::read(fields, defaults)?;
    special::complete_roles(&mut vocab);
    Ok(vocab)
}
