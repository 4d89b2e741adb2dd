//! Remembers the ids of words, since text repeats itself.

use super::texts::Texts;

/// Words beyond this length seldom come again.
const WORD_BYTES_MAX: usize = 48;

/// No word is added beyond this many, so memory stays within a few megabytes whatever the text.
const WORDS_MAX: usize = 1 << 16;

/// The ids of words seen during one call.
#[derive(Debug, Default)]
pub(super) struct WordCache {
    words: Texts,
    /// By word: where its ids end; they begin where those of the word before end.
    ends: Vec<usize>,
    ids: Vec<u32>,
}

impl WordCache {
    /// Appends the ids of `word` to `out`, from memory where possible, from `encode` where not.
    pub(super) fn append(&mut self, word: &[u8], out: &mut Vec<u32>, encode: impl FnOnce(&mut Vec<u32>)) {
        if let Some(number) = self.words.find(word) {
            let number = number as usize;
            let start = if number == 0 { 0 } else { self.ends[number - 1] };
            out.extend_from_slice(&self.ids[start..self.ends[number]]);
            return;
        }
        let before = out.len();
        encode(out);
        if word.len() <= WORD_BYTES_MAX && self.ends.len() < WORDS_MAX {
            self.words.push(word);
            self.ids.extend_from_slice(&out[before..]);
            self.ends.push(self.ids.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_encoded_once() {
        let (mut cache, mut out) = (WordCache::default(), Vec::new());
        cache.append(b"a", &mut out, |out| out.extend([1, 2]));
        cache.append(b"b", &mut out, |_| {});
        cache.append(b"a", &mut out, |_| panic!("known"));
        cache.append(b"b", &mut out, |_| panic!("known"));
        assert_eq!(out, [1, 2, 1, 2]);
    }
}
