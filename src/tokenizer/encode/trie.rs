//! Which tokens begin a text: a trie that is nothing but the tokens in order.
//!
//! A node is the range of sorted tokens that share a prefix; a step narrows it by binary search. That takes four bytes per token,
//! whatever the tokens are.

use super::texts::Texts;

/// The tokens of a vocabulary that may be matched, sorted by text.
pub(super) struct Trie {
    /// Ids; of equal texts only the lowest.
    sorted: Vec<u32>,
}

/// The tokens that begin with what has been walked so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    start: usize,
    end: usize,
    depth: usize,
}

impl Trie {
    pub(super) fn new(texts: &Texts, ids: impl Iterator<Item = u32>) -> Trie {
        let mut sorted: Vec<u32> = ids.collect();
        sorted.sort_unstable_by_key(|id| (texts.get(*id), *id));
        sorted.dedup_by_key(|id| texts.get(*id));
        Trie { sorted }
    }

    pub(super) fn root(&self) -> Node {
        Node { start: 0, end: self.sorted.len(), depth: 0 }
    }

    /// One byte further; `None` where no token goes on so.
    pub(super) fn step(&self, texts: &Texts, node: Node, byte: u8) -> Option<Node> {
        let range = &self.sorted[node.start..node.end];
        // Where a text ends comes before every byte, as in the order of texts.
        let at_depth = |id: &u32| texts.get(*id).get(node.depth).copied();
        let below = range.partition_point(|id| at_depth(id) < Some(byte));
        let equal = range[below..].partition_point(|id| at_depth(id) == Some(byte));
        let start = node.start + below;
        (equal > 0).then_some(Node { start, end: start + equal, depth: node.depth + 1 })
    }

    /// The token that ends here.
    pub(super) fn token(&self, texts: &Texts, node: Node) -> Option<u32> {
        self.sorted.get(node.start).copied().filter(|id| node.start < node.end && texts.get(*id).len() == node.depth)
    }

    /// The longest token that `text` begins with, never an empty one.
    pub(super) fn longest(&self, texts: &Texts, text: &[u8]) -> Option<u32> {
        let mut longest = None;
        let mut node = self.root();
        for byte in text {
            let Some(next) = self.step(texts, node, *byte) else { break };
            node = next;
            longest = self.token(texts, node).or(longest);
        }
        longest
    }

    /// How many bytes of `text` some token begins with.
    pub(super) fn common_len(&self, texts: &Texts, text: &[u8]) -> usize {
        let mut node = self.root();
        for (len, byte) in text.iter().enumerate() {
            match self.step(texts, node, *byte) {
                Some(next) => node = next,
                None => return len,
            }
        }
        text.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_is_found() {
        let mut texts = Texts::default();
        ["b", "abc", "a", "", "abcde", "a"].iter().for_each(|text| texts.push_hidden(text.as_bytes()));
        let trie = Trie::new(&texts, 0..6);
        let longest = |text: &str| trie.longest(&texts, text.as_bytes());
        assert_eq!(
            [longest("abcd"), longest("ab"), longest("b"), longest("c"), longest("")],
            [Some(1), Some(2), Some(0), None, None]
        );
        assert_eq!([trie.common_len(&texts, b"abcdx"), trie.common_len(&texts, b"x"), trie.common_len(&texts, b"")], [4, 0, 0]);
        assert_eq!(Trie::new(&texts, 0..0).longest(&texts, b"a"), None);
    }
}
