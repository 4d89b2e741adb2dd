//! Sound files with changes that nobody thought of: fixed seeds, so that a failure can be repeated.

use super::*;
use crate::common::Paint;
use crate::common::mutate::{EDGES, mutated};

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
        let bytes = mutated(&original, header_bytes, &mut random);
        let result = std::panic::catch_unwind(|| survives(&bytes));
        n_accepted += usize::from(result.unwrap_or_else(|_| panic!("seed {seed}")));
    }
    println!("{n_accepted} of {ROUNDS} accepted");
}
