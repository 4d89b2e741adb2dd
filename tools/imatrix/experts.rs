//! Experts that a text says little about.

use ggforge::imatrix::Imatrix;
use serde_json::{Value, json};

/// Tokens from which an importance can be trusted: the mean of a hundred squares errs by about 14 %.
const TOKENS_MIN: u64 = 100;

/// Experts that a line of text names.
const NAMED_MAX: usize = 12;

/// An expert with fewer tokens than that.
struct Short<'a> {
    /// `blk.N`.
    block: &'a str,
    expert: usize,
    n_tokens: u64,
}

/// The experts that saw too few tokens, those with the fewest first; and how many experts there are.
fn short_of_tokens(matrix: &Imatrix) -> (Vec<Short<'_>>, usize) {
    let (mut short, mut n_experts, mut last_block) = (Vec::new(), 0, "");
    for (name, entry) in matrix.entries.iter().filter(|(_, entry)| entry.counts().len() > 1) {
        let block = name.split_inclusive('.').take(2).map(str::len).sum::<usize>().saturating_sub(1);
        let block = &name[..block];
        // All matrices of an expert see the same tokens.
        if block == last_block {
            continue;
        }
        last_block = block;
        n_experts += entry.counts().len();
        let few = entry.counts().iter().enumerate().filter(|(_, n_tokens)| **n_tokens < TOKENS_MIN);
        short.extend(few.map(|(expert, &n_tokens)| Short { block, expert, n_tokens }));
    }
    short.sort_by_key(|expert| expert.n_tokens);
    (short, n_experts)
}

/// One line: `3 of 16 experts saw fewer than 100 tokens; a longer text helps: blk.1 expert 2 (16), ..`; nothing where all saw enough.
pub(super) fn line(matrix: &Imatrix) -> String {
    let (short, n_experts) = short_of_tokens(matrix);
    if short.is_empty() {
        return String::new();
    }
    let named = short.iter().take(NAMED_MAX);
    let mut named: Vec<String> =
        named.map(|Short { block, expert, n_tokens }| format!("{block} expert {expert} ({n_tokens})")).collect();
    if short.len() > NAMED_MAX {
        named.push(format!("{} more", short.len() - NAMED_MAX));
    }
    let n_short = short.len();
    format!("  {n_short} of {n_experts} experts saw fewer than {TOKENS_MIN} tokens; a longer text helps: {}\n", named.join(", "))
}

/// All of them.
pub(super) fn as_json(matrix: &Imatrix) -> Value {
    let one = |Short { block, expert, n_tokens }: &Short<'_>| json!({ "block": block, "expert": expert, "tokens": n_tokens });
    short_of_tokens(matrix).0.iter().map(one).collect()
}
