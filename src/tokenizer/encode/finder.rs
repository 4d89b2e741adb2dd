//! Which of many texts occur in another: the automaton of Aho and Corasick (1975) over a [`Trie`].
//!
//! A crate would do, were the texts not hostile. `aho-corasick` builds its fastest form in time quadratic in the length of one text (40,000
//! times the same letter: 18 s), and all of its forms list at each node every text that ends there, which is more than any file justifies
//! where the texts lie in each other. Here only "occurs" is asked, so nodes are marked and the marks follow the links: building takes time
//! and memory in proportion to the texts, 13 bytes for each of theirs, and searching time in proportion to the text.

use super::texts::Texts;
use super::trie::{Node, Trie};

/// The texts that are looked for, by their number.
pub(super) struct Finder {
    trie: Trie,
    /// By node: that of its longest proper suffix.
    suffix: Vec<u32>,
    /// By byte: where the root leads.
    from_root: Box<[u32; 256]>,
}

impl Finder {
    /// Of equal texts the first is found, and empty ones are not.
    pub(super) fn new(texts: &Texts) -> Finder {
        let trie = Trie::of_any_length(texts, 0..texts.len() as u32);
        let mut from_root = Box::new([0; 256]);
        for (byte, node) in trie.children(trie.root()) {
            from_root[usize::from(byte)] = node.number() as u32;
        }
        let mut finder = Finder { suffix: vec![0; trie.n_nodes()], trie, from_root };
        // By depth, so that the suffixes of a node are done before it. Along one text the suffix grows by a byte at most with each byte,
        // so all the steps back are no more than the bytes of the texts.
        for number in 1..finder.trie.n_nodes() {
            let node = Node::numbered(number);
            let shorter = finder.suffix_of(node);
            let children: Vec<(u8, Node)> = finder.trie.children(node).collect();
            for (byte, child) in children {
                finder.suffix[child.number()] = finder.step(shorter, byte).number() as u32;
            }
        }
        finder
    }

    fn suffix_of(&self, node: Node) -> Node {
        Node::numbered(self.suffix[node.number()] as usize)
    }

    /// The node of the longest suffix of what was read, and `byte`, that some text begins with.
    fn step(&self, mut node: Node, byte: u8) -> Node {
        while node != self.trie.root() {
            if let Some(next) = self.trie.step(node, byte) {
                return next;
            }
            node = self.suffix_of(node);
        }
        Node::numbered(self.from_root[usize::from(byte)] as usize)
    }

    /// The numbers of the texts that occur in `text`, ascending.
    pub(super) fn occurring(&self, text: &[u8]) -> Vec<u32> {
        let mut found = Vec::new();
        let mut is_marked = vec![false; self.trie.n_nodes()];
        let mut node = self.trie.root();
        for byte in text {
            node = self.step(node, *byte);
            // Where a node is marked, its suffixes are too.
            let mut suffix = node;
            while suffix != self.trie.root() && !is_marked[suffix.number()] {
                is_marked[suffix.number()] = true;
                found.extend(self.trie.token(suffix));
                suffix = self.suffix_of(suffix);
            }
        }
        found.sort_unstable();
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finder(texts: &[&str]) -> Finder {
        let mut all = Texts::default();
        texts.iter().for_each(|text| all.push_hidden(text.as_bytes()));
        Finder::new(&all)
    }

    #[test]
    fn every_text_that_occurs_is_found_once() {
        let texts = ["she", "he", "hers", "", "his", "he", "é", "abab", "ba"];
        let finder = finder(&texts);
        for text in ["", "ushers", "hhhis", "ababab", "éhé", "sheshe", "xyz", "her", "aabab"] {
            let wanted = |number: &u32| {
                let wanted = texts[*number as usize];
                !wanted.is_empty() && text.contains(wanted) && *number != 5
            };
            assert_eq!(finder.occurring(text.as_bytes()), (0..9).filter(wanted).collect::<Vec<u32>>(), "{text}");
        }
        assert!(super::Finder::new(&Texts::default()).occurring(b"a").is_empty());
    }
}
