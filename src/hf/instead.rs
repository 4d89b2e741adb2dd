//! What lies in the place of a file where a download failed, told from how it begins, and what its owner can do about it.

const POINTER: &str = "a Git LFS pointer, not the file itself; run `git lfs pull` in the folder";
const PAGE: &str = "a web page, not the file itself; download it again";
const ANSWER: &str =
    "a server's error message, not the file itself; download it again (a gated model wants a token: `hf auth login`)";

/// How such files begin, in any case. All differ in the first eight bytes, which is what is read of a safetensors file.
const KINDS: &[(&[u8], &str)] = &[
    (b"version https://git-lfs", POINTER),
    (b"<!doctype", PAGE),
    (b"<html", PAGE),
    (b"<head", PAGE),
    (b"<?xml", PAGE),
    (b"entry not found", ANSWER),
    (b"repository not found", ANSWER),
    (b"invalid username or password", ANSWER),
    (b"access to model", ANSWER),
];

/// What the file is instead, with what to do; `None` where nothing is recognised. `start` are at least its first eight bytes, where it has
/// as many.
pub(crate) fn instead(start: &[u8]) -> Option<&'static str> {
    let text = start.trim_ascii_start();
    let begins = |prefix: &[u8]| {
        let len = prefix.len().min(text.len());
        text[..len].eq_ignore_ascii_case(&prefix[..len]) && (len == prefix.len() || len == 8)
    };
    KINDS.iter().find(|(prefix, _)| begins(prefix)).map(|(_, what)| *what)
}

#[cfg(test)]
mod tests {
    use super::{ANSWER, PAGE, POINTER, instead};

    #[test]
    fn what_a_failed_download_leaves_is_recognised_by_its_first_bytes() {
        for (start, what) in [
            (&b"version https://git-lfs.github.com/spec/v1\n"[..], POINTER),
            (b"version ", POINTER),
            (b"\n<!DOCTYPE html>", PAGE),
            (b"<html lang", PAGE),
            (b"Entry not found", ANSWER),
            (b"Entry no", ANSWER),
        ] {
            assert_eq!(instead(start), Some(what), "{start:?}");
        }
        for start in [&b""[..], b"{", b"vers", b"version 1: a", b"entry", b"<", b"\x0a\x0e\x0a\x05<unk>"] {
            assert_eq!(instead(start), None, "{start:?}");
        }
    }
}
