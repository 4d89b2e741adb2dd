//! How a sound input becomes another one.

use super::Paint;

/// A number below `n`.
pub fn below(random: &mut Paint, n: usize) -> usize {
    (random.next() % n.max(1) as u64) as usize
}

/// One of them.
pub fn one_of<'a, T>(random: &mut Paint, items: &'a [T]) -> &'a T {
    &items[below(random, items.len())]
}

/// Numbers at which counts, lengths, dimensions and offsets like to break.
pub const EDGES: &[u64] = &[
    0,
    1,
    2,
    4,
    8,
    9,
    31,
    32,
    33,
    63,
    64,
    255,
    256,
    65_535,
    65_536,
    1 << 30,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    1 << 40,
    1 << 61,
    1 << 62,
    i64::MAX as u64,
    1 << 63,
    u64::MAX - 63,
    u64::MAX - 31,
    u64::MAX,
    // As floats: infinity, NaN, the largest, the smallest.
    0x7f80_0000,
    0x7fc0_0000,
    0x7f7f_ffff,
    1 << 23,
];

/// Words of JSON and of tokenizers' files, and bytes that are no UTF-8.
const WORDS: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b"[[[[[[[[",
    b"\"",
    b",",
    b":",
    b"0",
    b"-1",
    b"1e999",
    b"4294967296",
    b"18446744073709551616",
    b"NaN",
    b"null",
    b"true",
    b"\\u0000",
    b"\\ud800",
    b"\xff",
    b"\x00",
    b"\xe2\x96\x81",
    b"\xf0\x9f\x98\x80",
    b"<0x00>",
    b"(?",
    b"\\p{L}+",
    b"{2000}",
];

/// Up to five changes. The first `header_bytes` are changed most often; weights behind them mean little.
pub fn mutated(original: &[u8], header_bytes: usize, random: &mut Paint) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for _ in 0..=below(random, 5) {
        let n = bytes.len().max(1);
        let within = if below(random, 8) == 0 { n } else { header_bytes.clamp(1, n) };
        change(&mut bytes, below(random, within), random);
    }
    bytes
}

fn word(random: &mut Paint) -> impl Iterator<Item = u8> + use<> {
    WORDS[below(random, WORDS.len())].iter().copied()
}

fn change(bytes: &mut Vec<u8>, at: usize, random: &mut Paint) {
    let len = below(random, 24).min(bytes.len().saturating_sub(at));
    match below(random, 9) {
        _ if at >= bytes.len() => bytes.extend(word(random)),
        0 => bytes[at] ^= 1 << below(random, 8),
        1 => bytes[at] = random.next() as u8,
        2 => {
            let len = len.min(*one_of(random, &[4, 8]));
            bytes[at..at + len].copy_from_slice(&one_of(random, EDGES).to_le_bytes()[..len]);
        }
        3 => drop(bytes.drain(at..at + len)),
        4 => {
            let copy = bytes[at..at + len].to_vec();
            let to = below(random, bytes.len());
            bytes.splice(to..to, copy);
        }
        5 => {
            let copy = bytes[at..at + len].to_vec();
            let to = below(random, bytes.len() - len + 1);
            bytes[to..to + len].copy_from_slice(&copy);
        }
        6 => drop(bytes.splice(at..at, word(random))),
        7 => drop(bytes.splice(at..=at, word(random))),
        _ => bytes.truncate(bytes.len() - below(random, bytes.len() / 4 + 1)),
    }
}

/// Text of letters, spaces, marks and odd characters.
pub fn text(random: &mut Paint) -> String {
    const PIECES: &[&str] = &[
        "a", "aa", "b", " ", "  ", "\n", "\r\n", "\t", "7", "1234", "'s", "É", "é", "中", "\u{0}", "\u{300}", "😀", "<s>", "▁",
        "\u{a0}", "<0x41>", "!",
    ];
    (0..below(random, 200)).map(|_| *one_of(random, PIECES)).collect()
}
