//! Which tokens begin a text: a trie laid out level by level.
//!
//! The children of a node lie side by side in the order of their bytes, so a node is where its children begin; they end where those of the
//! next node begin. That is nine bytes a node, and there are no more nodes than bytes of tokens.

use std::collections::VecDeque;

use super::texts::Texts;

/// Longer tokens are never matched: with one of a megabyte, a text of a megabyte could take a year. Real ones have up to some hundred
/// bytes.
const TOKEN_BYTES_MAX: usize = 1024;

/// Names a token that is never matched, if there is one.
pub(super) fn warning(texts: &Texts) -> Option<String> {
    let id = (0..texts.len() as u32).find(|id| texts.get(*id).len() > TOKEN_BYTES_MAX)?;
    Some(format!("token {id} has {} bytes; tokens of more than {TOKEN_BYTES_MAX} are not looked for in text", texts.get(id).len()))
}

/// No token ends here.
const NO_TOKEN: u32 = u32::MAX;

/// The tokens of a vocabulary that may be matched.
pub(super) struct Trie {
    /// By node: its first child. One more than there are nodes.
    first_child: Vec<u32>,
    /// By node: the byte that leads to it.
    byte: Vec<u8>,
    /// By node: the id that ends there.
    token: Vec<u32>,
}

/// What has been walked so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Node(u32);

impl Node {
    /// Its number, from 0 for the root.
    pub(super) fn number(self) -> usize {
        self.0 as usize
    }

    /// The node of a number.
    pub(super) fn numbered(number: usize) -> Node {
        Node(number as u32)
    }
}

impl Trie {
    /// Of equal texts the lowest id counts; empty ones are never matched. The texts together are shorter than 2^32 bytes.
    pub(super) fn new(texts: &Texts, ids: impl Iterator<Item = u32>) -> Trie {
        Trie::of_any_length(texts, ids.filter(|id| texts.get(*id).len() <= TOKEN_BYTES_MAX))
    }

    /// The same with tokens of any length.
    pub(super) fn of_any_length(texts: &Texts, ids: impl Iterator<Item = u32>) -> Trie {
        let mut sorted: Vec<u32> = ids.collect();
        sorted.sort_unstable_by_key(|id| (texts.get(*id), *id));
        sorted.dedup_by_key(|id| texts.get(*id));

        let mut trie = Trie { first_child: Vec::new(), byte: vec![0], token: vec![NO_TOKEN] };
        // Nodes in their order, each with its depth and the sorted tokens that begin with it.
        let mut queue = VecDeque::from([(0, &sorted[..])]);
        while let Some((depth, mut tokens)) = queue.pop_front() {
            let node = trie.first_child.len();
            trie.first_child.push(trie.byte.len() as u32);
            if let Some((first, longer)) = tokens.split_first()
                && texts.get(*first).len() == depth
            {
                trie.token[node] = if depth > 0 { *first } else { NO_TOKEN };
                tokens = longer;
            }
            let byte_of = |id: &u32| texts.get(*id)[depth];
            for child in tokens.chunk_by(|a, b| byte_of(a) == byte_of(b)) {
                trie.byte.push(byte_of(&child[0]));
                trie.token.push(NO_TOKEN);
                queue.push_back((depth + 1, child));
            }
        }
        trie.first_child.push(trie.byte.len() as u32);
        trie
    }

    /// How many nodes there are; they are numbered from the root by depth.
    pub(super) fn n_nodes(&self) -> usize {
        self.token.len()
    }

    /// The nodes one byte further, each with its byte.
    pub(super) fn children(&self, node: Node) -> impl Iterator<Item = (u8, Node)> {
        let node = node.0 as usize;
        (self.first_child[node]..self.first_child[node + 1]).map(|child| (self.byte[child as usize], Node(child)))
    }

    pub(super) fn root(&self) -> Node {
        Node(0)
    }

    /// One byte further; `None` where no token goes on so.
    pub(super) fn step(&self, node: Node, byte: u8) -> Option<Node> {
        /// Up to this many children are looked through one by one.
        const FEW: usize = 8;
        let node = node.0 as usize;
        let start = self.first_child[node] as usize;
        let bytes = &self.byte[start..self.first_child[node + 1] as usize];
        let at = if bytes.len() <= FEW { bytes.iter().position(|b| *b == byte) } else { bytes.binary_search(&byte).ok() };
        at.map(|at| Node((start + at) as u32))
    }

    /// The token that ends here.
    pub(super) fn token(&self, node: Node) -> Option<u32> {
        Some(self.token[node.0 as usize]).filter(|id| *id != NO_TOKEN)
    }

    /// The longest token that `text` begins with, and its length.
    pub(super) fn longest(&self, text: &[u8]) -> Option<(u32, usize)> {
        let mut longest = None;
        let mut node = self.root();
        for (at, byte) in text.iter().enumerate() {
            let Some(next) = self.step(node, *byte) else { break };
            node = next;
            longest = self.token(node).map(|id| (id, at + 1)).or(longest);
        }
        longest
    }

    /// How many bytes of `text` some token begins with.
    pub(super) fn common_len(&self, text: &[u8]) -> usize {
        let mut node = self.root();
        for (len, byte) in text.iter().enumerate() {
            match self.step(node, *byte) {
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

    fn trie<'a>(tokens: impl Iterator<Item = &'a [u8]>) -> Trie {
        let mut texts = Texts::default();
        tokens.for_each(|token| texts.push_hidden(token));
        Trie::new(&texts, 0..texts.len() as u32)
    }

    #[test]
    fn the_longest_prefix_is_found() {
        let trie = trie(["b", "abc", "a", "", "abcde", "a"].iter().map(|text| text.as_bytes()));
        let longest = |text: &str| trie.longest(text.as_bytes());
        assert_eq!([longest("abcd"), longest("ab"), longest("b")], [Some((1, 3)), Some((2, 1)), Some((0, 1))]);
        assert_eq!([longest("c"), longest("")], [None, None]);
        assert_eq!([trie.common_len(b"abcdx"), trie.common_len(b"x"), trie.common_len(b"")], [4, 0, 0]);
    }

    #[test]
    fn nodes_with_many_children_and_with_none_work() {
        let bytes: Vec<u8> = (0..=255).collect();
        let trie256 = trie(bytes.chunks(1));
        assert!((0..=255).all(|byte| trie256.longest(&[byte, 0]) == Some((u32::from(byte), 1))));
        assert_eq!(trie(std::iter::empty()).longest(b"a"), None);
    }
}
