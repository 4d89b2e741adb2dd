//! Where text can be cut although the tokenizer does not cut it into words.
//!
//! SentencePiece, and BPE in its manner, merge over the whole text. Every merge makes a known token, so two neighbouring characters that
//! no token has side by side are never merged across: there the text falls into pieces that do not influence each other. Pieces are
//! short and repeat, and give exactly the ids that the whole text would.

use hashbrown::HashSet;

/// SentencePiece's visible space.
pub(super) const SPACE: char = '\u{2581}';

/// The text with its spaces made visible.
pub(super) fn with_visible_spaces(text: &str) -> String {
    let mut visible = String::with_capacity(text.len() + text.len() / 2);
    for (index, part) in text.split(' ').enumerate() {
        visible.extend((index > 0).then_some(SPACE));
        visible.push_str(part);
    }
    visible
}

/// The text of a token with visible spaces made plain. Bytes, since a token need not be UTF-8.
pub(super) fn with_spaces(token: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(token.len());
    let mut rest = token;
    while let Some((first, after)) = rest.split_first() {
        if let Some(after) = rest.strip_prefix("\u{2581}".as_bytes()) {
            plain.push(b' ');
            rest = after;
        } else {
            plain.push(*first);
            rest = after;
        }
    }
    plain
}

/// Characters that are looked up in the dense table: ASCII and [`SPACE`].
const N_DENSE: usize = 129;

/// Pairs of characters that may be merged across.
#[derive(Debug)]
pub(super) struct Joints {
    dense: Vec<bool>,
    others: HashSet<(char, char)>,
}

impl Joints {
    pub(super) fn new() -> Joints {
        Joints { dense: vec![false; N_DENSE * N_DENSE], others: HashSet::new() }
    }

    /// Adds the neighbours inside a token.
    pub(super) fn add_inside(&mut self, token: &str) {
        for (left, right) in token.chars().zip(token.chars().skip(1)) {
            self.add(left, right);
        }
    }

    /// Adds the neighbours that a merge of `left` and `right` brings together.
    pub(super) fn add_between(&mut self, left: &str, right: &str) {
        if let (Some(left), Some(right)) = (left.chars().next_back(), right.chars().next()) {
            self.add(left, right);
        }
    }

    fn add(&mut self, left: char, right: char) {
        match dense(left, right) {
            Some(at) => self.dense[at] = true,
            None => _ = self.others.insert((left, right)),
        }
    }

    fn contains(&self, left: char, right: char) -> bool {
        match dense(left, right) {
            Some(at) => self.dense[at],
            None => self.others.contains(&(left, right)),
        }
    }

    /// Calls `each` with every piece of `text`, in order.
    pub(super) fn for_each_piece<'t>(&self, text: &'t str, mut each: impl FnMut(&'t str)) {
        let mut start = 0;
        let mut chars = text.char_indices();
        let Some((_, mut left)) = chars.next() else { return };
        for (at, right) in chars {
            if !self.contains(left, right) {
                each(&text[start..at]);
                start = at;
            }
            left = right;
        }
        each(&text[start..]);
    }
}

fn dense(left: char, right: char) -> Option<usize> {
    let slot = |c: char| match c {
        SPACE => Some(N_DENSE - 1),
        c if c.is_ascii() => Some(c as usize),
        _ => None,
    };
    Some(slot(left)? * N_DENSE + slot(right)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spaces_become_visible_and_plain_again() {
        assert_eq!(with_visible_spaces(" a  b"), "▁a▁▁b");
        assert_eq!(with_spaces("▁a▁▁b".as_bytes()), b" a  b");
        assert_eq!(with_spaces(b"\xe2\x96 \xff"), b"\xe2\x96 \xff");
    }

    #[test]
    fn text_falls_apart_where_no_token_holds_it_together() {
        let mut joints = Joints::new();
        ["\u{2581}the", "äö", "ab"].iter().for_each(|token| joints.add_inside(token));
        joints.add_between("xa", "ä");
        let mut pieces = Vec::new();
        joints.for_each_piece("\u{2581}thebabaäöä\u{2581}", |piece| pieces.push(piece));
        assert_eq!(pieces, ["\u{2581}the", "b", "ab", "aäö", "ä", "\u{2581}"]);
        joints.for_each_piece("", |_| panic!("no piece in nothing"));
    }
}
