//! Names that are like a text that is none of them: what a person may have meant.

use std::cmp::Reverse;

/// Edits up to which a name is taken for one that was meant.
const EDITS_MAX: usize = 2;
/// Names that are suggested.
const SUGGESTED_MAX: usize = 3;
/// Letters of a text that are looked at: no name has as many.
const LETTERS_MAX: usize = 32;

/// `did you mean Q4_K_M? known are Q4_K_M, Q4_K_S, ...`: all names, the most alike first, and the question where some are much alike.
pub fn suggestion(text: &str, known: &[&'static str]) -> String {
    let plain = letters(text);
    let mut names: Vec<(usize, Reverse<usize>, &str)> = known
        .iter()
        .map(|name| {
            let letters = letters(name);
            let n_same = letters.iter().zip(&plain).take_while(|(a, b)| a == b).count();
            (n_edits(&plain, &letters), Reverse(n_same), *name)
        })
        .collect();
    names.sort_unstable();
    let least = names.first().map(|(n_edits, n_same, _)| (*n_edits, *n_same));
    let is_near = least.is_some_and(|(n_edits, _)| n_edits <= EDITS_MAX && n_edits < plain.len());
    let near = names.iter().filter(|(n_edits, n_same, _)| is_near && least == Some((*n_edits, *n_same))).take(SUGGESTED_MAX);
    let near: Vec<&str> = near.map(|(_, _, name)| *name).collect();
    let question = if near.is_empty() { String::new() } else { format!("did you mean {}? ", near.join(" or ")) };
    format!("{question}known are {}", names.iter().map(|(_, _, name)| *name).collect::<Vec<_>>().join(", "))
}

/// Letters and digits in upper case: people leave underscores out.
fn letters(text: &str) -> Vec<u8> {
    text.bytes().filter(u8::is_ascii_alphanumeric).map(|c| c.to_ascii_uppercase()).take(LETTERS_MAX).collect()
}

/// Letters to insert, remove or replace to make one text of the other (Levenshtein).
fn n_edits(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_alike_come_first() {
        let known = ["BF16", "F16", "Q3_K_L", "Q4_K_M", "Q4_K_S", "Q8_0"];
        let of = |text| suggestion(text, &known);
        assert_eq!(of("q4km"), "did you mean Q4_K_M? known are Q4_K_M, Q4_K_S, Q3_K_L, Q8_0, BF16, F16");
        assert!(of("Q4_K_XL").starts_with("did you mean Q4_K_M or Q4_K_S? "), "{}", of("Q4_K_XL"));
        assert!(of("fp16").starts_with("did you mean F16? "), "{}", of("fp16"));
        for text in ["", "_", "x", "a long text that is like nothing that is known"] {
            assert!(of(text).starts_with("known are "), "{text}: {}", of(text));
        }
    }

    #[test]
    fn edits_are_counted_in_both_directions() {
        for (a, b, n) in [("", "", 0), ("", "AB", 2), ("KITTEN", "SITTING", 3), ("Q4KM", "Q4KM", 0)] {
            assert_eq!((n_edits(a.as_bytes(), b.as_bytes()), n_edits(b.as_bytes(), a.as_bytes())), (n, n), "{a} {b}");
        }
    }
}
