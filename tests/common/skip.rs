//! What is not tested here, and why: said where it happens, and once more in the list that `tools/dev/test` ends with.

use std::fs::OpenOptions;
use std::io::Write;

/// A file that every skip adds a line to; `cargo test` shows nothing that a passing test prints.
const LIST: &str = "GGFORGE_SKIPPED";

/// The running test leaves something out. In CI it fails instead: all that tests compare with is installed there.
///
/// # Panics
/// In CI.
#[track_caller]
pub fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "nothing may be skipped in CI: {why}");
    list(why);
}

/// As [`skip`], for what only a machine with a GPU can do, or one without: CI's have none.
pub fn skip_without_gpu(why: &str) {
    list(why);
}

fn list(why: &str) {
    println!("skipped: {why}");
    if let Some(path) = std::env::var_os(LIST) {
        let line = format!("{}: {why}\n", std::thread::current().name().unwrap_or("a thread of a test"));
        // One write, so that lines of tests that run side by side stay whole.
        let file = OpenOptions::new().append(true).create(true).open(&path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the list of skipped tests can be written");
    }
}
