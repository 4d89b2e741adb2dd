//! What holds for tokens of every kind of vocabulary: what their looks say, and how many there can be.

use std::path::Path;

use crate::error::{Error, Fault, Place, Result};

/// The score of ids without a token.
pub(super) const PAD_SCORE: f32 = -10000.0;

/// `<0x` two hexadecimal digits `>`.
pub(super) fn is_byte_token(text: &[u8]) -> bool {
    matches!(text, [b'<', b'0', b'x', high, low, b'>'] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit())
}

/// Some models mark tokens that must never be part of text as ordinary added tokens; their looks give them away.
pub(super) fn looks_special(text: &str) -> bool {
    const KNOWN: [&str; 4] = ["<pad>", "<mask>", "<2mass>", "[@BOS@]"];
    const BRACKETS: [(&str, &str); 3] = [("<|", "|>"), ("<｜", "｜>"), ("<unused", ">")];
    KNOWN.contains(&text) || BRACKETS.iter().any(|(open, close)| text.starts_with(open) && text.ends_with(close))
}

/// Four times the largest vocabulary known (262,144 tokens): a table of padding up to it costs some ten MB.
const VOCAB_SIZE_MAX: u64 = 1 << 20;

/// Refuses sizes that no honest set of `n_entries` tokens has, before any table of that size is made.
pub(super) fn check_vocab_size(path: &Path, n_entries: usize, vocab_size: u32) -> Result<()> {
    if vocab_size == 0 || u64::from(vocab_size) > dense_max(n_entries).max(VOCAB_SIZE_MAX) {
        let detail = format!("{n_entries} tokens cannot make a vocabulary of {vocab_size}");
        return Err(Error::malformed(path, Place::Field("vocab_size".to_owned()), Fault::HparamRange, detail));
    }
    Ok(())
}

/// Ids are indices into a dense table, so they must not be far above the number of entries: room for padding and for gaps.
pub(super) fn dense_max(n_entries: usize) -> u64 {
    4 * n_entries as u64 + 65536
}
