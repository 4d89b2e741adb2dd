//! Merging neighbours, best first: the common core of BPE and SentencePiece.
//!
//! A word starts as a chain of symbols. Of all neighbours that may merge, those of the least rank merge first, of equal rank the leftmost;
//! a heap keeps them, so a word of n symbols takes O(n log n), whatever its content.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// No neighbour on this side, or no piece for this symbol.
pub(super) const NONE: u32 = u32::MAX;

/// A stretch of the word that is one piece so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Symbol {
    /// Where it begins, in bytes from the start of the word.
    pub start: u32,
    /// In bytes; 0 once it has been merged into its left neighbour.
    pub len: u32,
    /// What the caller knows it by; [`NONE`] when it is nothing known.
    pub piece: u32,
    prev: u32,
    next: u32,
}

impl Symbol {
    /// One past its last byte.
    pub(super) fn end(&self) -> u32 {
        self.start + self.len
    }
}

/// Two neighbours that may merge. Ordered by rank, then by place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    left: u32,
    right: u32,
    /// Bytes of both: when it differs from what they have now, one of them has changed since.
    len: u32,
    /// What both become.
    piece: u32,
}

/// A word being merged. Kept between words for its allocations.
#[derive(Debug, Default)]
pub(super) struct Chain {
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Reverse<Candidate>>,
}

impl Chain {
    /// Forgets the word.
    pub(super) fn clear(&mut self) {
        self.symbols.clear();
        self.heap.clear();
    }

    /// Puts a symbol of `len` bytes at the end of the word.
    pub(super) fn push(&mut self, len: u32, piece: u32) {
        let index = self.symbols.len() as u32;
        let (start, prev) = match self.symbols.last_mut() {
            Some(last) => {
                last.next = index;
                (last.end(), index - 1)
            }
            None => (0, NONE),
        };
        self.symbols.push(Symbol { start, len, piece, prev, next: NONE });
    }

    /// Merges until no neighbours may. `pair` says of two neighbours whether they may: their rank, and what they become.
    pub(super) fn merge(&mut self, pair: impl Fn(&Symbol, &Symbol) -> Option<(u32, u32)>) {
        for right in 1..self.symbols.len() as u32 {
            self.consider(right - 1, right, &pair);
        }
        while let Some(Reverse(best)) = self.heap.pop() {
            let (left, right) = (self.symbols[best.left as usize], self.symbols[best.right as usize]);
            if left.len == 0 || right.len == 0 || left.len + right.len != best.len {
                continue;
            }
            self.symbols[best.right as usize].len = 0;
            let merged = &mut self.symbols[best.left as usize];
            merged.len = best.len;
            merged.piece = best.piece;
            merged.next = right.next;
            if right.next != NONE {
                self.symbols[right.next as usize].prev = best.left;
                self.consider(best.left, right.next, &pair);
            }
            if left.prev != NONE {
                self.consider(left.prev, best.left, &pair);
            }
        }
    }

    fn consider(&mut self, left: u32, right: u32, pair: impl Fn(&Symbol, &Symbol) -> Option<(u32, u32)>) {
        let (l, r) = (&self.symbols[left as usize], &self.symbols[right as usize]);
        if let Some((rank, piece)) = pair(l, r) {
            self.heap.push(Reverse(Candidate { rank, left, right, len: l.len + r.len, piece }));
        }
    }

    /// What is left of the word, in order.
    pub(super) fn symbols(&self) -> impl Iterator<Item = &Symbol> {
        self.symbols.iter().filter(|symbol| symbol.len > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lengths that a word of `n` equal symbols merges into when two of the same length may merge, shorter ones first.
    fn doubled(n: usize) -> Vec<u32> {
        let mut chain = Chain::default();
        (0..n).for_each(|_| chain.push(1, 0));
        chain.merge(|l, r| (l.len == r.len).then_some((l.len, 0)));
        chain.symbols().map(|symbol| symbol.len).collect()
    }

    #[test]
    fn equal_ranks_merge_from_the_left() {
        assert_eq!(doubled(1), [1]);
        assert_eq!(doubled(7), [4, 2, 1]);
        assert_eq!(doubled(8), [8]);
    }

    #[test]
    fn a_long_word_takes_no_quadratic_time() {
        assert_eq!(doubled(1 << 20), [1 << 20]);
    }

    #[test]
    fn positions_are_kept() {
        let mut chain = Chain::default();
        [2, 1, 3].iter().for_each(|len| chain.push(*len, NONE));
        chain.merge(|l, r| (l.len + r.len == 4).then_some((0, 7)));
        let left: Vec<_> = chain.symbols().map(|s| (s.start, s.end(), s.piece)).collect();
        assert_eq!(left, [(0, 2, NONE), (2, 6, 7)]);
    }
}
