//! Texts around added tokens: alone, glued to words, between spaces and newlines, twice, in other letters, not quite whole.

use tokenizers::{AddedToken, Tokenizer};

/// Texts at most, which keeps a vocabulary of thousands of added tokens below a second.
const TEXTS_MAX: usize = 8192;
/// Longer tokens are left out: they cost time and say no more.
const TOKEN_BYTES_MAX: usize = 256;

/// The texts for the added tokens of one tokenizer.
pub(super) struct Added {
    /// Added tokens that tokenizer.json has.
    pub n_tokens: usize,
    /// Those of them with texts.
    pub n_tried: usize,
    pub texts: Vec<String>,
}

impl Added {
    pub(super) fn of(tokenizer: &Tokenizer) -> Added {
        let mut tokens: Vec<(u32, AddedToken)> = tokenizer.get_added_tokens_decoder().into_iter().collect();
        let n_tokens = tokens.len();
        tokens.retain(|(_, token)| !token.content.is_empty() && token.content.len() <= TOKEN_BYTES_MAX);
        // What GGUF cannot say comes first, so that it is never among those that there is no room for.
        tokens.sort_unstable_by_key(|(id, token)| (!(token.lstrip || token.rstrip || token.single_word), *id));
        let n_odd = tokens.iter().filter(|(_, token)| token.lstrip || token.rstrip || token.single_word).count();
        let n_max = TEXTS_MAX / N_AROUND;
        let n_tried = tokens.len().min(n_max);
        let (odd, usual) = tokens.split_at(n_odd.min(n_max / 2));
        let n_usual = n_tried.saturating_sub(odd.len());
        // Of the others, some at even distances.
        let spread = (0..n_usual).filter_map(|n| usual.get(n * usual.len() / n_usual));
        let texts = odd.iter().chain(spread).flat_map(|(_, token)| around(&token.content)).collect();
        Added { n_tokens, n_tried, texts }
    }
}

/// Texts of [`around`].
const N_AROUND: usize = 16;

fn around(token: &str) -> [String; N_AROUND] {
    let without_last = token.char_indices().next_back().and_then(|(at, _)| token.get(..at)).unwrap_or_default();
    [
        token.to_owned(),
        format!("the{token}cat"),
        format!("the {token} cat"),
        format!("the  {token}  cat"),
        format!("{token}\nthe"),
        format!("the\n{token}\n\nthe"),
        format!(" {token}"),
        format!("{token} "),
        format!("{token}{token}"),
        format!("{token} {token}"),
        format!("{token}\n{token}"),
        format!("{token}s"),
        format!("x{token}, 1{token}2."),
        without_last.to_owned(),
        token.to_lowercase(),
        token.to_uppercase(),
    ]
}
