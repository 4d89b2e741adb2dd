//! Sound files with changes that nobody thought of: fixed seeds, so that a failure can be repeated.

use super::*;
use crate::common::Paint;

/// A number below `n`.
fn below(random: &mut Paint, n: usize) -> usize {
    (random.next() % n.max(1) as u64) as usize
}

/// Numbers at which lengths, counts, dimensions and offsets like to break.
const EDGES: &[u64] = &[
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
    65535,
    65536,
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
    u64::MAX,
];

/// An error with a harmless message, or a view that holds.
#[track_caller]
fn survives(bytes: &[u8]) -> bool {
    // A mutation can turn weights into header, so the whole file counts as one.
    match parse(bytes, bytes.len()) {
        Ok(file) => {
            explore(&file);
            true
        }
        Err(error) => {
            assert_message(&error, "case.gguf: ");
            false
        }
    }
}

#[test]
fn every_byte_of_a_header_can_have_any_value() {
    let sound = sound();
    let (bytes, header_bytes) = (sound.bytes(), sound.header().len());
    let mut n_accepted = 0;
    for at in 0..header_bytes {
        for value in 0..=255 {
            let mut changed = bytes.clone();
            changed[at] = value;
            n_accepted += usize::from(survives(&changed));
        }
    }
    println!("{} of {} accepted", n_accepted, 256 * header_bytes);
}

#[test]
fn every_field_can_have_every_edge_value() {
    let sound = sound();
    let (bytes, header_bytes) = (sound.bytes(), sound.header().len());
    for at in 0..header_bytes - 8 {
        for edge in EDGES {
            let mut changed = bytes.clone();
            changed[at..at + 8].copy_from_slice(&edge.to_le_bytes());
            survives(&changed);
            let mut changed = bytes.clone();
            changed[at..at + 4].copy_from_slice(&edge.to_le_bytes()[..4]);
            survives(&changed);
        }
    }
}

#[test]
fn seeded_mutations_give_an_error_or_a_view_that_holds() {
    const ROUNDS: u64 = 100_000;
    let sound = sound();
    let (original, header_bytes) = (sound.bytes(), sound.header().len());
    let mut n_accepted = 0;
    for seed in 0..ROUNDS {
        let mut random = Paint::new(seed);
        let mut bytes = original.clone();
        for _ in 0..=below(&mut random, 4) {
            mutate(&mut bytes, header_bytes, &mut random);
        }
        let result = std::panic::catch_unwind(|| survives(&bytes));
        n_accepted += usize::from(result.unwrap_or_else(|_| panic!("seed {seed}")));
    }
    println!("{n_accepted} of {ROUNDS} accepted");
}

fn mutate(bytes: &mut Vec<u8>, header_bytes: usize, random: &mut Paint) {
    let at = below(random, header_bytes.min(bytes.len()));
    let len = below(random, 24).min(bytes.len() - at);
    match below(random, 7) {
        0 => bytes[at] ^= 1 << below(random, 8),
        1 => bytes[at] = random.next() as u8,
        2 => bytes[at..at + len.min(8)].copy_from_slice(&EDGES[below(random, EDGES.len())].to_le_bytes()[..len.min(8)]),
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
        _ => bytes.truncate(bytes.len().max(1) - below(random, bytes.len() / 4 + 1)),
    }
    if bytes.is_empty() {
        bytes.push(b'G');
    }
}
