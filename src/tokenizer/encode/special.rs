//! Tokens that stand for themselves: which ones there are, and where they occur in a text.
//!
//! Two things live here because llama.cpp decides both by the spelling of tokens: files do not say reliably which of their tokens end a
//! turn or mark a place to fill in, nor which ones swallow the white space beside them.

use super::Specials;
use super::fields::Fields;
use super::finder::Finder;
use super::texts::Texts;
use super::vocab::{Attributes, Vocab};
use crate::error::Result;
use crate::gguf::keys;

/// Spellings by which a role's token is found where the file does not name it.
const END_OF_TURN: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
];
const END_OF_MESSAGE: &[&str] = &["<|eom_id|>"];
const FIM_PREFIX: &[&str] =
    &["<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>", "<|prefix|>"];
const FIM_SUFFIX: &[&str] =
    &["<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>", "<|suffix|>"];
const FIM_MIDDLE: &[&str] =
    &["<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>", "<|middle|>"];
const FIM_PAD: &[&str] = &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"];
const FIM_REPOSITORY: &[&str] = &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"];
const FIM_SEPARATOR: &[&str] = &["<|file_sep|>"];

/// Spellings that end generation, beside those of a role.
const END_OF_GENERATION: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Parts of gpt-oss's message format: text, whatever the file says.
const ALWAYS_TEXT: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// True for tokens after which generation ends, whatever role a file gives them.
pub(in crate::tokenizer) fn ends_generation_by_spelling(text: &[u8]) -> bool {
    END_OF_GENERATION.iter().any(|known| known.as_bytes() == text)
}

/// Finds the roles that the file does not name, and corrects attributes that contradict a token's spelling.
pub(super) fn complete_roles(vocab: &mut Vocab) {
    let spelled = Spelled::new(vocab);
    let Vocab { attributes, roles, .. } = vocab;
    let mut find = |role: &mut Option<u32>, spellings: &[&str]| {
        if role.is_none() {
            *role = spelled.lowest(spellings);
            role.iter().for_each(|id| add(attributes, *id, Attributes::CONTROL));
        }
    };
    find(&mut roles.end_of_turn, END_OF_TURN);
    find(&mut roles.end_of_message, END_OF_MESSAGE);
    find(&mut roles.fim_prefix, FIM_PREFIX);
    find(&mut roles.fim_suffix, FIM_SUFFIX);
    find(&mut roles.fim_middle, FIM_MIDDLE);
    find(&mut roles.fim_pad, FIM_PAD);
    find(&mut roles.fim_repository, FIM_REPOSITORY);
    find(&mut roles.fim_separator, FIM_SEPARATOR);

    let mut ends: Vec<u32> = [roles.fim_pad, roles.fim_repository, roles.fim_separator].into_iter().flatten().collect();
    for id in spelled.all(END_OF_GENERATION) {
        add(attributes, id, Attributes::CONTROL);
        ends.push(id);
    }
    for id in spelled.all(ALWAYS_TEXT) {
        attributes[id as usize] = Attributes::USER_DEFINED;
    }
    ends.extend([roles.eos, roles.end_of_turn, roles.end_of_message].into_iter().flatten());
    ends.sort_unstable();
    ends.dedup();
    roles.end_of_generation = without_parts_of_messages(&spelled, ends, attributes);
}

/// Two families use a token that ends generation elsewhere as part of their messages; llama.cpp tells them by the company it keeps.
fn without_parts_of_messages(spelled: &Spelled, mut ends: Vec<u32>, attributes: &mut [Attributes]) -> Vec<u32> {
    let has = |ends: &[u32], spellings: &[&str]| spelled.all(spellings).any(|id| ends.contains(&id));
    let calls = has(&ends, &["<|call|>", "<|calls|>"]) && has(&ends, &["<|return|>", "<|flush|>"]);
    if calls && let Some(end) = spelled.lowest(&["<|end|>"]) {
        ends.retain(|id| *id != end);
        attributes[end as usize] = Attributes::USER_DEFINED;
    }
    if has(&ends, &["<|tool_response>", "<|plamo:eos|>"])
        && let Some(end) = spelled.lowest(&["</s>"])
        && ends.contains(&end)
    {
        ends.retain(|id| *id != end);
        attributes[end as usize] = Attributes::NORMAL;
    }
    ends
}

fn add(attributes: &mut [Attributes], id: u32, more: Attributes) {
    attributes[id as usize] = attributes[id as usize].with(more);
}

/// The tokens with one of the spellings above, with their ids, ascending.
struct Spelled(Vec<(&'static str, u32)>);

impl Spelled {
    fn new(vocab: &Vocab) -> Spelled {
        const OTHERS: &[&str] = &["<|plamo:eos|>"];
        let lists = [END_OF_TURN, END_OF_MESSAGE, FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE, FIM_PAD, FIM_REPOSITORY, FIM_SEPARATOR];
        let lists = lists.into_iter().chain([END_OF_GENERATION, ALWAYS_TEXT, OTHERS]);
        let known: hashbrown::HashMap<&[u8], &'static str> = lists.flatten().map(|text| (text.as_bytes(), *text)).collect();
        let longest = known.keys().map(|text| text.len()).max().unwrap_or(0);
        let ids = (0..vocab.len()).filter(|id| vocab.texts.get(*id).len() <= longest);
        Spelled(ids.filter_map(|id| known.get(vocab.texts.get(id)).map(|text| (*text, id))).collect())
    }

    fn all<'a>(&'a self, spellings: &'a [&str]) -> impl Iterator<Item = u32> + 'a {
        self.0.iter().filter(|(text, _)| spellings.contains(text)).map(|(_, id)| *id)
    }

    fn lowest(&self, spellings: &[&str]) -> Option<u32> {
        self.all(spellings).next()
    }
}

/// Marks the tokens that swallow white space, which llama.cpp knows by the model's name.
///
/// # Errors
/// When a name is not a string.
pub(super) fn mark_strips(vocab: &mut Vocab, fields: Fields) -> Result<()> {
    let pre = fields.string(keys::TOKENIZER_PRE)?.unwrap_or("");
    let arch = fields.string(keys::GENERAL_ARCHITECTURE)?.unwrap_or("");
    let name = fields.string(keys::GENERAL_NAME)?.unwrap_or("").to_ascii_lowercase();
    let contains = |text: &str, parts: &[&str]| parts.iter().any(|part| text.contains(part));

    if contains(pre, &["jina-v2-de", "jina-v2-es", "jina-v2-code"]) || contains(arch, &["nomic-bert-moe", "jina-bert-v3"]) {
        change(vocab, &["<mask>"], |was| was.with(Attributes::STRIP_LEFT));
    } else if name.split("phi").skip(1).any(|rest| rest.strip_prefix('-').unwrap_or(rest).starts_with('3')) {
        for attributes in vocab.attributes.iter_mut().filter(|was| was.any(Attributes::SPECIAL)) {
            *attributes = attributes.with(Attributes::STRIP_RIGHT);
        }
        change(vocab, &["</s>"], |was| was.with(Attributes::STRIP_RIGHT));
        change(vocab, &["<unk>", "<s>", "<|endoftext|>"], |was| was.without(Attributes::STRIP_RIGHT));
    } else if contains(&name, &["modern-bert"]) {
        change(vocab, &["[MASK]"], |was| was.with(Attributes::STRIP_LEFT));
    }
    Ok(())
}

fn change(vocab: &mut Vocab, texts: &[&str], to: impl Fn(Attributes) -> Attributes) {
    for text in texts {
        if let Some(id) = (0..vocab.len()).find(|id| vocab.texts.get(*id) == text.as_bytes()) {
            vocab.attributes[id as usize] = to(vocab.attributes[id as usize]);
        }
    }
}

/// A part of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fragment {
    /// A token that stands there as such.
    Token(u32),
    /// Text between tokens, never empty, as a range of bytes.
    Text(std::ops::Range<usize>),
}

/// The tokens that stand for themselves, longest first, and how they are found.
pub(super) struct SpecialTokens {
    tokens: Vec<SpecialToken>,
    finder: Finder,
}

struct SpecialToken {
    id: u32,
    text: String,
    attributes: Attributes,
}

/// Bytes of all special tokens together; real vocabularies have some hundred thousand at most. Finding them takes 13 bytes of memory for
/// each byte.
pub(in crate::tokenizer) const SPECIAL_BYTES_MAX: usize = 1 << 22;

impl SpecialTokens {
    /// The control, unknown and user-defined tokens of a vocabulary; those that are not UTF-8 occur in no text.
    ///
    /// # Errors
    /// `Limit` for more than [`SPECIAL_BYTES_MAX`] bytes of them.
    pub(super) fn new(vocab: &Vocab, fields: Fields) -> Result<SpecialTokens> {
        let n_bytes = special_ids(vocab).map(|id| vocab.texts.get(id).len()).sum();
        if n_bytes > SPECIAL_BYTES_MAX {
            return Err(fields.over_limit("bytes of special tokens", SPECIAL_BYTES_MAX, n_bytes));
        }
        Ok(SpecialTokens::of(vocab))
    }

    fn of(vocab: &Vocab) -> SpecialTokens {
        let mut tokens: Vec<SpecialToken> = special_ids(vocab)
            .filter_map(|id| {
                let text = str::from_utf8(vocab.texts.get(id)).ok()?.to_owned();
                Some(SpecialToken { id, text, attributes: vocab.attributes[id as usize] })
            })
            .collect();
        tokens.sort_by_key(|token| std::cmp::Reverse(token.text.len()));
        let mut texts = Texts::default();
        tokens.iter().for_each(|token| texts.push_hidden(token.text.as_bytes()));
        SpecialTokens { tokens, finder: Finder::new(&texts) }
    }

    /// Takes the special tokens out of `text`: every occurrence of the longest first, then of the next one in what is left.
    pub(super) fn partition(&self, text: &str, specials: Specials) -> Vec<Fragment> {
        let mut fragments = Vec::new();
        if !text.is_empty() {
            fragments.push(Fragment::Text(0..text.len()));
        }
        for token in self.present(text) {
            if specials == Specials::Literal && token.attributes.any(Attributes::ONLY_PARSED) {
                continue;
            }
            let mut finer = Vec::with_capacity(fragments.len());
            for fragment in fragments {
                match fragment {
                    Fragment::Token(_) => finer.push(fragment),
                    Fragment::Text(range) => token.cut(text, range, &mut finer),
                }
            }
            fragments = finer;
        }
        fragments
    }

    /// The tokens that occur in `text`, longest first.
    fn present(&self, text: &str) -> impl Iterator<Item = &SpecialToken> {
        self.finder.occurring(text.as_bytes()).into_iter().map(|index| &self.tokens[index as usize])
    }
}

fn special_ids(vocab: &Vocab) -> impl Iterator<Item = u32> {
    (0..vocab.len()).filter(|id| vocab.attributes[*id as usize].any(Attributes::SPECIAL))
}

impl SpecialToken {
    /// Cuts its occurrences out of `range`.
    fn cut(&self, text: &str, mut range: std::ops::Range<usize>, out: &mut Vec<Fragment>) {
        while let Some(at) = text[range.clone()].find(&self.text) {
            let before = &text[range.start..range.start + at];
            let kept = if self.attributes.any(Attributes::STRIP_LEFT) { before.trim_end_matches(is_space) } else { before };
            if !kept.is_empty() {
                out.push(Fragment::Text(range.start..range.start + kept.len()));
            }
            out.push(Fragment::Token(self.id));
            range.start += at + self.text.len();
            if self.attributes.any(Attributes::STRIP_RIGHT) {
                range.start = range.end - text[range.clone()].trim_start_matches(is_space).len();
            }
        }
        if !range.is_empty() {
            out.push(Fragment::Text(range));
        }
    }
}

/// C's `isspace`.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t'..='\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn special(tokens: &[(&str, Attributes)]) -> SpecialTokens {
        let mut vocab = Vocab::of_texts(tokens.iter().map(|(text, _)| *text));
        vocab.attributes = tokens.iter().map(|(_, attributes)| *attributes).collect();
        SpecialTokens::of(&vocab)
    }

    fn shown(fragments: &[Fragment], text: &str) -> String {
        let shown = fragments.iter().map(|fragment| match fragment {
            Fragment::Token(id) => format!("<{id}>"),
            Fragment::Text(range) => text[range.clone()].to_owned(),
        });
        shown.collect::<Vec<_>>().join("|")
    }

    #[test]
    fn longer_tokens_are_taken_first() {
        let special = special(&[("ab", Attributes::USER_DEFINED), ("xabx", Attributes::CONTROL), ("q", Attributes::NORMAL)]);
        let text = "abxabxqab";
        assert_eq!(shown(&special.partition(text, Specials::Parse), text), "<0>|<1>|q|<0>");
        assert_eq!(shown(&special.partition(text, Specials::Literal), text), "<0>|x|<0>|xq|<0>");
        assert_eq!(special.partition("", Specials::Parse), []);
    }

    #[test]
    fn white_space_is_stripped_on_one_side() {
        let strip_left = Attributes::CONTROL.with(Attributes::STRIP_LEFT);
        let strip_right = Attributes::CONTROL.with(Attributes::STRIP_RIGHT);
        let special = special(&[("<l>", strip_left), ("<r>", strip_right)]);
        let text = "a \u{b}<l> b <r>\n <l>";
        assert_eq!(shown(&special.partition(text, Specials::Parse), text), "a|<0>| b |<1>|<0>");
    }

    #[test]
    fn nested_tokens_do_not_take_quadratic_time() {
        let texts: Vec<String> = (1..300).map(|n| "a".repeat(n)).collect();
        let tokens: Vec<_> = texts.iter().map(|text| (text.as_str(), Attributes::USER_DEFINED)).collect();
        let fragments = special(&tokens).partition(&"a".repeat(299 * 1000 + 5), Specials::Parse);
        assert_eq!((fragments.len(), fragments.last()), (1001, Some(&Fragment::Token(4))));
    }
}
