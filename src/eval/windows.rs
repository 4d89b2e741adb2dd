//! Which tokens of a text a model sees together, and which of them are scored: the protocol of llama-perplexity.
//!
//! ```text
//! tokens    | window 0          | window 1          | window 2          | rest
//!           | B . . . S S S S S | B . . . S S S S S | B . . . S S S S S | not used
//!             0       c/2+1   c-1
//! ```
//!
//! A text of `n` tokens, the one that begins it included, has `n / ctx` windows. Where the vocabulary wants a BOS token, it *replaces* the
//! first token of each window. The predictions made at positions `ctx / 2` to `ctx - 2` are scored, those of the tokens one later, so every
//! scored token has at least half a window before it.
//!
//! With a stride, windows overlap: they start `stride` tokens apart, the last `stride` tokens of each are scored, and only the first
//! begins with BOS. That is what llama-perplexity's `--ppl-stride` computes, whose windows are longer than its `--ctx-size` says: by half
//! a stride, then rounded up to a multiple of 256.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::{Error, Fault, Place, Result};
use crate::tokenizer::encode::{self, Ends, Specials, Tokenizer};

/// How a text is cut into windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Tokens of a window.
    pub ctx: usize,
    /// Tokens from the start of one window to the next, where that is not `ctx`.
    pub stride: Option<usize>,
    /// Windows to use, from the start of the text; all where it is `None`.
    pub windows_max: Option<usize>,
}

/// A text in tokens, and where its windows are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// What the text was read from.
    path: PathBuf,
    tokens: Vec<u32>,
    /// What replaces the first token of every window.
    bos: Option<u32>,
    ctx: usize,
    /// From the start of a window to that of the next.
    step: usize,
    /// Positions in a window whose predictions are scored.
    scored: Range<usize>,
    /// The windows, counted from the start of the text.
    windows: Range<usize>,
}

/// Windows that go through a model together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Batch {
    pub tokens: Vec<u32>,
    /// Where each window lies in `tokens`.
    pub sequences: Vec<Range<usize>>,
    /// The tokens whose predictions are scored, as indices into `tokens`.
    pub scored: Vec<u32>,
    /// What came after each of them.
    pub targets: Vec<u32>,
}

/// A window has one at the very least that is scored: 3 tokens; this leaves room to see something.
const CTX_MIN: usize = 8;

/// Positions are 32-bit integers, and the angles of all of them are kept in a table.
const CTX_MAX: usize = 1 << 24;

/// Reads a text to measure with, as llama.cpp's programs do: a line feed that ends the file is left out.
///
/// # Errors
/// `Io`; `NotUtf8`, with the place of the first byte that belongs to no character; `EmptyText`.
pub fn read_text(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    text_of(path, File::open(path).map_err(|e| Error::io(path, "open", e))?)
}

/// As [`read_text`]; `name` is what messages call it.
///
/// # Errors
/// As [`read_text`].
pub fn text_of(name: impl AsRef<Path>, from: impl Read) -> Result<String> {
    let path = name.as_ref();
    let mut text = encode::text_of(path, from)?;
    if text.ends_with('\n') {
        text.pop();
    }
    if text.is_empty() {
        return Err(Error::malformed(path, Place::File, Fault::EmptyText, "there is no text in it"));
    }
    Ok(text)
}

impl Windows {
    /// Encodes `text` and cuts it. `path` is what messages call it.
    ///
    /// # Errors
    /// `Usage` for a cut that makes no sense; `TextTooShort` when the text is not two windows long, as in llama-perplexity, or with a
    /// stride not longer than one.
    pub fn of_text(path: impl AsRef<Path>, text: &str, tokenizer: &Tokenizer, cut: &Cut) -> Result<Windows> {
        // No token that ends a text: most of its windows would not have one.
        let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
        let mut tokens: Vec<u32> = bos.into_iter().collect();
        tokens.extend(tokenizer.encode(text, Specials::Literal, Ends::Omit));
        Windows::of_tokens(path, tokens, bos, cut)
    }

    /// Cuts a text that is encoded already, `bos` before it where there is one.
    ///
    /// # Errors
    /// As [`Windows::of_text`].
    pub fn of_tokens(path: impl AsRef<Path>, tokens: Vec<u32>, bos: Option<u32>, cut: &Cut) -> Result<Windows> {
        let &Cut { ctx, stride, windows_max } = cut;
        if !(CTX_MIN..=CTX_MAX).contains(&ctx) {
            return Err(Error::usage(format!("a context of {ctx} tokens; {CTX_MIN} to {CTX_MAX} are possible")));
        }
        if let Some(stride) = stride
            && !(1..ctx).contains(&stride)
        {
            return Err(Error::usage(format!(
                "a stride of {stride} with a context of {ctx} tokens; 1 to {} are possible",
                ctx - 1
            )));
        }
        if windows_max == Some(0) {
            return Err(Error::usage("no chunk to measure: at least 1 is needed"));
        }
        let n_tokens_min = if stride.is_some() { ctx + 1 } else { 2 * ctx };
        if tokens.len() < n_tokens_min {
            return Err(too_short(path.as_ref(), tokens.len(), ctx, n_tokens_min));
        }
        let n_windows = match stride {
            None => tokens.len() / ctx,
            // The window that would end with the text is left out, as in llama-perplexity.
            Some(stride) => (tokens.len() - ctx).div_ceil(stride),
        };
        Ok(Windows {
            path: path.as_ref().to_owned(),
            tokens,
            bos: bos.filter(|_| stride.is_none()),
            ctx,
            step: stride.unwrap_or(ctx),
            scored: stride.map_or(ctx / 2, |stride| ctx - 1 - stride)..ctx - 1,
            windows: 0..windows_max.map_or(n_windows, |most| most.min(n_windows)),
        })
    }

    /// The windows of several texts in turn, the first of each, then the second of each, as long as there are any: `shares` of each text,
    /// by [`Windows::shares`].
    ///
    /// # Errors
    /// `Usage` where there are none.
    ///
    /// # Panics
    /// When texts have windows of several lengths or overlapping ones.
    pub fn in_turn(texts: &[Windows], shares: &[usize]) -> Result<Windows> {
        let Some(first) = texts.first() else { return Err(Error::usage("no text")) };
        let mut tokens = Vec::new();
        for index in 0..shares.iter().copied().max().unwrap_or(0) {
            for (text, _) in texts.iter().zip(shares).filter(|(_, share)| index < **share) {
                assert!(text.ctx == first.ctx && text.step == text.ctx, "windows of one length");
                tokens.extend(text.batch(text.windows.start + index..text.windows.start + index + 1).tokens);
            }
        }
        Windows::of_tokens(&first.path, tokens, None, &Cut { ctx: first.ctx, stride: None, windows_max: None })
    }

    /// How many windows each of several texts gives that have so many, when they give them in turn up to `windows_max`.
    pub fn shares(lens: &[usize], windows_max: usize) -> Vec<usize> {
        let mut shares = vec![0; lens.len()];
        let mut left = windows_max;
        while left > 0 && shares.iter().zip(lens).any(|(share, len)| share < len) {
            for (share, _) in shares.iter_mut().zip(lens).filter(|(share, len)| **share < **len) {
                if left > 0 {
                    *share += 1;
                    left -= 1;
                }
            }
        }
        shares
    }

    /// What the text was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tokens of a window.
    pub fn ctx(&self) -> usize {
        self.ctx
    }

    /// Number of windows.
    pub fn len(&self) -> usize {
        self.windows.len()
    }

    /// True when no window is left.
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }

    /// Positions within a window whose predictions are scored; the token that each foretells is one later.
    pub fn scored(&self) -> Range<usize> {
        self.scored.clone()
    }

    /// Tokens that all windows together score.
    pub fn n_scored(&self) -> usize {
        self.len() * self.scored.len()
    }

    /// Tokens that all windows together have, overlaps counted each time: the work there is.
    pub fn n_tokens(&self) -> usize {
        self.len() * self.ctx
    }

    /// All tokens of the text.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Leaves out the first `n` windows.
    pub fn skip(&mut self, n: usize) {
        self.windows.start = self.windows.start.saturating_add(n).min(self.windows.end);
    }

    /// Leaves out all windows but the first `n`.
    pub fn truncate(&mut self, n: usize) {
        self.windows.end = self.windows.start.saturating_add(n).min(self.windows.end);
    }

    /// Windows in batches of `per_batch`, in order; the last may have fewer.
    pub(crate) fn batches(&self, per_batch: usize) -> impl Iterator<Item = Batch> {
        let starts = self.windows.clone().step_by(per_batch);
        starts.map(move |start| self.batch(start..(start + per_batch).min(self.windows.end)))
    }

    fn batch(&self, windows: Range<usize>) -> Batch {
        let mut batch = Batch { tokens: Vec::new(), sequences: Vec::new(), scored: Vec::new(), targets: Vec::new() };
        for window in windows {
            let (at, start) = (batch.tokens.len(), window * self.step);
            let tokens = &self.tokens[start..start + self.ctx];
            batch.tokens.extend(tokens);
            if let Some(bos) = self.bos {
                batch.tokens[at] = bos;
            }
            batch.sequences.push(at..at + self.ctx);
            batch.scored.extend(self.scored.clone().map(|position| (at + position) as u32));
            batch.targets.extend(&tokens[self.scored.start + 1..self.scored.end + 1]);
        }
        batch
    }
}

fn too_short(path: &Path, n_tokens: usize, ctx: usize, n_tokens_min: usize) -> Error {
    let fits = if n_tokens_min == 2 * ctx { n_tokens / 2 } else { n_tokens.saturating_sub(1) };
    let advice = if fits >= CTX_MIN { format!("take a longer text, or --ctx {fits} or less") } else { "take a longer text".into() };
    let detail = format!("the text has {n_tokens} tokens; a context of {ctx} needs at least {n_tokens_min}: {advice}");
    Error::malformed(path, Place::File, Fault::TextTooShort, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOS: u32 = 999;

    fn cut(n_tokens: u32, ctx: usize, stride: Option<usize>, windows_max: Option<usize>) -> Result<Windows> {
        Windows::of_tokens("text", (0..n_tokens).collect(), Some(BOS), &Cut { ctx, stride, windows_max })
    }

    #[test]
    fn the_second_half_of_every_window_is_scored() {
        let windows = cut(35, 10, None, None).expect("long enough");
        assert_eq!((windows.len(), windows.n_scored(), windows.n_tokens()), (3, 12, 30));
        let batches: Vec<Batch> = windows.batches(2).collect();
        assert_eq!(batches.len(), 2);
        assert_eq!(batches[0].sequences, [0..10, 10..20]);
        assert_eq!(batches[0].tokens[..11], [BOS, 1, 2, 3, 4, 5, 6, 7, 8, 9, BOS]);
        assert_eq!(batches[0].scored, [5, 6, 7, 8, 15, 16, 17, 18], "the last position foretells a token of the next window");
        assert_eq!(batches[0].targets, [6, 7, 8, 9, 16, 17, 18, 19]);
        assert_eq!((&batches[1].tokens[1..3], &batches[1].targets[..]), (&[21, 22][..], &[26, 27, 28, 29][..]));
    }

    #[test]
    fn texts_give_windows_in_turn() {
        assert_eq!(Windows::shares(&[2, 9, 4], 10), [2, 4, 4]);
        assert_eq!(Windows::shares(&[2, 1], 10), [2, 1]);
        assert_eq!(Windows::shares(&[5, 5], 3), [2, 1]);
        let texts = [cut(35, 10, None, None).expect("long enough"), cut(20, 10, None, None).expect("long enough")];
        let windows = Windows::in_turn(&texts, &[3, 1]).expect("four windows");
        assert_eq!(windows.len(), 4);
        let batch = windows.batches(4).next().expect("one batch");
        let firsts: Vec<u32> = batch.sequences.iter().map(|window| batch.tokens[window.start + 1]).collect();
        assert_eq!(firsts, [1, 1, 11, 21]);
        assert!(batch.sequences.iter().all(|window| batch.tokens[window.start] == BOS));
        assert_eq!(Windows::in_turn(&texts[..1], &[3]).expect("three").batches(3).next(), texts[0].batches(3).next());
    }

    #[test]
    fn a_text_that_ends_with_a_window_has_it_whole() {
        let windows = cut(30, 10, None, None).expect("long enough");
        assert_eq!((windows.len(), cut(29, 10, None, None).expect("long enough").len()), (3, 2));
        let last = windows.batches(3).next().expect("one batch");
        assert_eq!((last.tokens[29], last.targets[11]), (29, 29));
        // 18 = 10 + 2 * 4: a third window would end with the text.
        assert_eq!(cut(18, 10, Some(4), None).expect("long enough").len(), 2);
        assert_eq!(cut(19, 10, Some(4), None).expect("long enough").len(), 3);
    }

    #[test]
    fn an_odd_window_scores_from_the_middle() {
        let windows = cut(22, 11, None, None).expect("long enough");
        assert_eq!(windows.scored(), 5..10);
    }

    #[test]
    fn windows_of_a_stride_overlap_and_score_their_ends() {
        let windows = cut(25, 10, Some(4), None).expect("long enough");
        assert_eq!(windows.len(), 4, "starts 0, 4, 8 and 12; a fifth at 16 would leave the text");
        let batch = windows.batches(8).next().expect("one batch");
        assert_eq!((batch.tokens[0], batch.tokens[10]), (0, 4), "no token is replaced");
        assert_eq!((&batch.scored[..4], &batch.targets[..8]), (&[5, 6, 7, 8][..], &[6, 7, 8, 9, 10, 11, 12, 13][..]));
    }

    #[test]
    fn windows_can_be_limited_and_skipped() {
        let mut windows = cut(100, 10, None, Some(4)).expect("long enough");
        windows.skip(3);
        assert_eq!(windows.len(), 1);
        assert_eq!(windows.batches(4).next().expect("one batch").tokens[1], 31);
        let mut two = cut(100, 10, None, Some(6)).expect("long enough");
        two.skip(1);
        two.truncate(2);
        assert_eq!((two.len(), two.n_scored()), (2, 8));
        two.truncate(5);
        assert_eq!(two.len(), 2);
        windows.skip(9);
        assert!(windows.is_empty() && windows.batches(4).next().is_none());
    }

    #[test]
    fn a_short_text_is_refused_with_the_context_that_would_fit() {
        let error = cut(101, 64, None, None).expect_err("less than two windows").to_string();
        assert!(error.contains("101 tokens") && error.contains("128") && error.contains("--ctx 50"), "{error}");
        assert_eq!(cut(65, 64, Some(8), None).expect("a window and the token after it").len(), 1);
        let error = cut(64, 64, Some(8), None).expect_err("no token after the window").to_string();
        assert!(error.contains("64 tokens") && error.contains("65") && error.contains("--ctx 63"), "{error}");
        let error = cut(3, 64, None, None).expect_err("less than two windows").to_string();
        assert!(!error.contains("--ctx"), "{error}");
        for (ctx, stride, windows) in [(7, None, None), (10, Some(0), None), (10, Some(10), None), (10, None, Some(0))] {
            assert!(matches!(cut(1000, ctx, stride, windows), Err(Error::Usage(_))), "{ctx} {stride:?} {windows:?}");
        }
    }
}
