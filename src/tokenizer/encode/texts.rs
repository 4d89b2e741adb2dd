//! Many short byte strings in one allocation, found by content.

use std::hash::BuildHasher;

use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashTable};

/// Byte strings numbered from 0. Hashing is seeded at random, so that no file can make it slow.
#[derive(Debug, Default)]
pub(super) struct Texts {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    index: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl Texts {
    /// Makes room for `n` more texts that can be found.
    pub(super) fn reserve(&mut self, n: usize) {
        self.ends.reserve(n);
        let (bytes, ends, hasher) = (&self.bytes, &self.ends, &self.hasher);
        self.index.reserve(n, |other| hasher.hash_one(text(bytes, ends, *other)));
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The text of a number below [`Texts::len`].
    pub(super) fn get(&self, number: u32) -> &[u8] {
        text(&self.bytes, &self.ends, number)
    }

    /// The number of a text that can be found.
    pub(super) fn find(&self, wanted: &[u8]) -> Option<u32> {
        let equal = |number: &u32| text(&self.bytes, &self.ends, *number) == wanted;
        self.index.find(self.hasher.hash_one(wanted), equal).copied()
    }

    /// Adds a text that cannot be found.
    pub(super) fn push_hidden(&mut self, new: &[u8]) {
        self.bytes.extend_from_slice(new);
        self.ends.push(self.bytes.len());
    }

    /// Makes all texts ones that can be found, of equal ones the first; `repeats` is told of the others, with the first of each.
    pub(super) fn index_all(&mut self, mut repeats: impl FnMut(u32, u32)) {
        let (bytes, ends, hasher) = (&self.bytes, &self.ends, &self.hasher);
        let hash = |number: &u32| hasher.hash_one(text(bytes, ends, *number));
        self.index.clear();
        self.index.reserve(ends.len(), hash);
        for number in 0..ends.len() as u32 {
            let new = text(bytes, ends, number);
            match self.index.entry(hash(&number), |other| text(bytes, ends, *other) == new, hash) {
                Entry::Occupied(earlier) => repeats(*earlier.get(), number),
                Entry::Vacant(place) => _ = place.insert(number),
            }
        }
    }

    /// Adds a text. Returns the number by which it was found already, which remains so.
    pub(super) fn push(&mut self, new: &[u8]) -> Option<u32> {
        let earlier = self.find(new);
        let number = self.len() as u32;
        self.push_hidden(new);
        if earlier.is_none() {
            let (bytes, ends, hasher) = (&self.bytes, &self.ends, &self.hasher);
            self.index.insert_unique(hasher.hash_one(new), number, |other| hasher.hash_one(text(bytes, ends, *other)));
        }
        earlier
    }

    /// The number of a text, which is added where it is missing.
    pub(super) fn intern(&mut self, wanted: &[u8]) -> u32 {
        self.find(wanted).unwrap_or_else(|| {
            self.push(wanted);
            self.len() as u32 - 1
        })
    }
}

fn text<'a>(bytes: &'a [u8], ends: &[usize], number: u32) -> &'a [u8] {
    let number = number as usize;
    let start = if number == 0 { 0 } else { ends[number - 1] };
    &bytes[start..ends[number]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_texts_is_found() {
        let mut texts = Texts::default();
        assert_eq!((texts.push(b"a"), texts.push(b""), texts.push(b"a")), (None, None, Some(0)));
        texts.push_hidden(b"b");
        assert_eq!((texts.find(b"a"), texts.find(b""), texts.find(b"b")), (Some(0), Some(1), None));
        assert_eq!((texts.intern(b"b"), texts.get(3), texts.get(4), texts.len()), (4, &b"b"[..], &b"b"[..], 5));
        let mut repeats = Vec::new();
        texts.index_all(|earlier, later| repeats.push((earlier, later)));
        assert_eq!((repeats, texts.find(b"b")), (vec![(0, 2), (3, 4)], Some(3)));
    }
}
