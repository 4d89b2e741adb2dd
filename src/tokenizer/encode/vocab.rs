//! The tokens of a GGUF file: texts, scores, attributes, and the ids that have a role.

use super::fields::Fields;
use super::texts::Texts;
use crate::error::{Fault, Result};
use crate::gguf::{ArrayRef, ValueRef, ValueType, keys};

/// What a token is; several may hold at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attributes(u8);

impl Attributes {
    pub(super) const NONE: Attributes = Attributes(0);
    pub(super) const NORMAL: Attributes = Attributes(1);
    pub(super) const UNKNOWN: Attributes = Attributes(2);
    pub(super) const CONTROL: Attributes = Attributes(4);
    pub(super) const USER_DEFINED: Attributes = Attributes(8);
    pub(super) const UNUSED: Attributes = Attributes(16);
    pub(super) const BYTE: Attributes = Attributes(32);
    /// Takes the white space on its left with it.
    pub(super) const STRIP_LEFT: Attributes = Attributes(64);
    /// Takes the white space on its right with it.
    pub(super) const STRIP_RIGHT: Attributes = Attributes(128);

    /// Tokens that are looked for in the text before anything else.
    pub(super) const SPECIAL: Attributes = Attributes(2 | 4 | 8);
    /// Those of them that are looked for only when the caller asks for it.
    pub(super) const ONLY_PARSED: Attributes = Attributes(2 | 4);

    /// Those of a `tokenizer.ggml.token_type`.
    fn of_type(number: i32) -> Option<Attributes> {
        Some(match number {
            0 => Attributes::NONE,
            1 => Attributes::NORMAL,
            2 => Attributes::UNKNOWN,
            3 => Attributes::CONTROL,
            4 => Attributes::USER_DEFINED,
            5 => Attributes::UNUSED,
            6 => Attributes::BYTE,
            _ => return None,
        })
    }

    /// True when one of `others` holds.
    pub(super) fn any(self, others: Attributes) -> bool {
        self.0 & others.0 != 0
    }

    pub(super) fn with(self, others: Attributes) -> Attributes {
        Attributes(self.0 | others.0)
    }

    pub(super) fn without(self, others: Attributes) -> Attributes {
        Attributes(self.0 & !others.0)
    }
}

/// Bytes of all token texts together. Real vocabularies have a few million; indexes into them have 32 bits.
const TEXTS_BYTES_MAX: usize = 1 << 30;

/// The tokens, by id.
pub(super) struct Vocab {
    pub(super) texts: Texts,
    /// Empty where the file has none.
    pub(super) scores: Vec<f32>,
    pub(super) attributes: Vec<Attributes>,
    pub(super) roles: Roles,
    /// What the user should know, one sentence each.
    pub(super) warnings: Vec<String>,
}

/// The ids with a role.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Roles {
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) unk: Option<u32>,
    pub(super) sep: Option<u32>,
    pub(super) pad: Option<u32>,
    pub(super) mask: Option<u32>,
    pub(super) end_of_turn: Option<u32>,
    pub(super) end_of_message: Option<u32>,
    pub(super) fim_prefix: Option<u32>,
    pub(super) fim_suffix: Option<u32>,
    pub(super) fim_middle: Option<u32>,
    pub(super) fim_pad: Option<u32>,
    pub(super) fim_repository: Option<u32>,
    pub(super) fim_separator: Option<u32>,
    /// Ids after which a model has said all it has to say, ascending.
    pub(super) end_of_generation: Vec<u32>,
}

impl Vocab {
    /// Reads the tokens, none of which can be looked up yet; roles are those that the file names. `defaults` are the roles that hold where the file does not say.
    ///
    /// # Errors
    /// `TokenizerInvalid`, `TokenIdRange` and `SpecialIdRange` for tables that contradict each other, `Limit` for texts without bound.
    pub(super) fn read(fields: Fields, defaults: Roles) -> Result<Vocab> {
        let tokens = fields.array(keys::TOKENIZER_TOKENS, &[ValueType::String])?;
        let tokens = tokens.filter(|tokens| !tokens.is_empty());
        let tokens = tokens.ok_or_else(|| fields.fault(keys::TOKENIZER_TOKENS, Fault::TokenizerInvalid, "there are no tokens"))?;
        if i32::try_from(tokens.len()).is_err() {
            let detail = format!("{} tokens; ids are 31 bits", tokens.len());
            return Err(fields.fault(keys::TOKENIZER_TOKENS, Fault::TokenIdRange, detail));
        }
        let n_bytes = tokens.iter().map(|token| if let ValueRef::String(text) = token { text.len() } else { 0 }).sum();
        if n_bytes > TEXTS_BYTES_MAX {
            return Err(fields.over_limit("bytes of token texts", TEXTS_BYTES_MAX, n_bytes));
        }
        let mut vocab = Vocab {
            texts: Texts::default(),
            scores: scores(fields, tokens.len())?,
            attributes: attributes(fields, tokens.len())?,
            roles: Roles::default(),
            warnings: Vec::new(),
        };
        vocab.read_texts(tokens);
        vocab.roles = roles(fields, defaults, tokens.len())?;
        Ok(vocab)
    }

    /// Number of tokens.
    pub(super) fn len(&self) -> u32 {
        self.attributes.len() as u32
    }

    fn read_texts(&mut self, tokens: ArrayRef) {
        for (id, token) in tokens.iter().enumerate() {
            match token {
                ValueRef::String([]) => self.texts.push_hidden(format!("[EMPTY_{id}]").as_bytes()),
                ValueRef::String(text) => self.texts.push_hidden(text),
                _ => {}
            }
        }
    }

    /// Makes every token one that can be looked up, and warns of those that look alike.
    pub(super) fn index_texts(&mut self) {
        let mut duplicates = Duplicates::default();
        self.texts.index_all(|earlier, later| duplicates.add(earlier, later));
        self.warnings.extend(duplicates.warning());
    }
}

/// The number of the text `<0xFF>` for a byte.
pub(super) fn byte_token(texts: &Texts, byte: u8) -> Option<u32> {
    texts.find(format!("<0x{byte:02X}>").as_bytes())
}

/// Tokens whose text an earlier one has.
#[derive(Debug, Default)]
pub(super) struct Duplicates {
    first: Option<(u32, u32)>,
    n: usize,
}

impl Duplicates {
    pub(super) fn add(&mut self, earlier: u32, later: u32) {
        self.first.get_or_insert((earlier, later));
        self.n += 1;
    }

    pub(super) fn warning(&self) -> Option<String> {
        let (earlier, later) = self.first?;
        Some(format!("{} tokens repeat the text of another, such as {later} that of {earlier}; the lowest id is used", self.n))
    }
}

fn scores(fields: Fields, n_tokens: usize) -> Result<Vec<f32>> {
    let key = keys::TOKENIZER_SCORES;
    let Some(array) = fields.array(key, &[ValueType::F32, ValueType::I32])? else { return Ok(Vec::new()) };
    check_len(fields, key, array, n_tokens)?;
    let scores: Vec<f32> = array.iter().filter_map(number).collect();
    match scores.iter().position(|score| score.is_nan()) {
        Some(id) => Err(fields.fault(key, Fault::TokenizerInvalid, format!("the score of token {id} is not a number"))),
        None => Ok(scores),
    }
}

fn number(value: ValueRef) -> Option<f32> {
    match value {
        ValueRef::F32(score) => Some(score),
        ValueRef::I32(score) => Some(score as f32),
        _ => None,
    }
}

fn attributes(fields: Fields, n_tokens: usize) -> Result<Vec<Attributes>> {
    let key = keys::TOKENIZER_TOKEN_TYPE;
    let Some(array) = fields.array(key, &[ValueType::I32])? else { return Ok(vec![Attributes::NORMAL; n_tokens]) };
    check_len(fields, key, array, n_tokens)?;
    let mut attributes = Vec::with_capacity(n_tokens);
    for (id, value) in array.iter().enumerate() {
        let ValueRef::I32(number) = value else { continue };
        let known = Attributes::of_type(number);
        let fault = || fields.fault(key, Fault::TokenizerInvalid, format!("token {id} is of type {number}; 0 to 6 are known"));
        attributes.push(known.ok_or_else(fault)?);
    }
    Ok(attributes)
}

fn check_len(fields: Fields, key: &str, array: ArrayRef, n_tokens: usize) -> Result<()> {
    if array.len() == n_tokens {
        return Ok(());
    }
    Err(fields.fault(key, Fault::TokenizerInvalid, format!("{} entries for {n_tokens} tokens", array.len())))
}

/// What writers put where a role has no token.
const NO_ID: u32 = u32::MAX;

fn roles(fields: Fields, mut roles: Roles, n_tokens: usize) -> Result<Roles> {
    let read = |role: &mut Option<u32>, key: &str| -> Result<()> {
        *role = role.filter(|id| (*id as usize) < n_tokens);
        match fields.id(key)? {
            None => {}
            Some(NO_ID) => *role = None,
            Some(id) if (id as usize) < n_tokens => *role = Some(id),
            Some(id) => return Err(fields.fault(key, Fault::SpecialIdRange, format!("id {id} of {n_tokens} tokens"))),
        }
        Ok(())
    };
    read(&mut roles.bos, keys::TOKENIZER_BOS_TOKEN_ID)?;
    read(&mut roles.eos, keys::TOKENIZER_EOS_TOKEN_ID)?;
    read(&mut roles.unk, keys::TOKENIZER_UNKNOWN_TOKEN_ID)?;
    read(&mut roles.sep, keys::TOKENIZER_SEPARATOR_TOKEN_ID)?;
    read(&mut roles.pad, keys::TOKENIZER_PADDING_TOKEN_ID)?;
    read(&mut roles.mask, keys::TOKENIZER_MASK_TOKEN_ID)?;
    read(&mut roles.end_of_turn, keys::TOKENIZER_EOT_TOKEN_ID)?;
    read(&mut roles.end_of_message, keys::TOKENIZER_EOM_TOKEN_ID)?;
    read(&mut roles.fim_prefix, keys::TOKENIZER_FIM_PRE_TOKEN_ID)?;
    read(&mut roles.fim_suffix, keys::TOKENIZER_FIM_SUF_TOKEN_ID)?;
    read(&mut roles.fim_middle, keys::TOKENIZER_FIM_MID_TOKEN_ID)?;
    read(&mut roles.fim_pad, keys::TOKENIZER_FIM_PAD_TOKEN_ID)?;
    read(&mut roles.fim_repository, keys::TOKENIZER_FIM_REP_TOKEN_ID)?;
    read(&mut roles.fim_separator, keys::TOKENIZER_FIM_SEP_TOKEN_ID)?;
    read(&mut roles.fim_prefix, keys::TOKENIZER_PREFIX_TOKEN_ID)?;
    read(&mut roles.fim_suffix, keys::TOKENIZER_SUFFIX_TOKEN_ID)?;
    read(&mut roles.fim_middle, keys::TOKENIZER_MIDDLE_TOKEN_ID)?;
    Ok(roles)
}

#[cfg(test)]
impl Vocab {
    /// Normal tokens without scores.
    pub(super) fn of_texts<'a>(texts: impl Iterator<Item = &'a str>) -> Vocab {
        let mut vocab = Vocab {
            texts: Texts::default(),
            scores: Vec::new(),
            attributes: Vec::new(),
            roles: Roles::default(),
            warnings: Vec::new(),
        };
        for text in texts {
            vocab.texts.push(text.as_bytes());
            vocab.attributes.push(Attributes::NORMAL);
        }
        vocab
    }
}
