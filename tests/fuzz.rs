//! Files and values that nobody thought of, for as long as is given: every parser, tokenizers with a text, chat templates, a model with
//! four tokens, and blocks of every format.
//!
//! Each target changes a sound input and runs it: an error or a result is right; a panic, heap beyond what the input justifies, or an
//! execution that does not end is a finding. An input follows from its number alone, which a finding names:
//!
//! ```text
//! cargo test --all-features --test fuzz                          3 seconds a target; 30 where CI is set
//! GGFORGE_FUZZ_SECONDS=3600 cargo test --all-features --test fuzz gguf -- --nocapture
//! GGFORGE_FUZZ_INPUT=81723 cargo test --all-features --test fuzz gguf        that input alone
//! ```
//!
//! Inputs begin at another number every day, so that days add up. What longer runs found is in `benches/record/`.

#[path = "fuzz/chat.rs"]
mod chat;
mod common;
#[path = "common/heap.rs"]
mod heap;
#[path = "fuzz/targets.rs"]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant, SystemTime};

use common::Paint;
use heap::peak_bytes;

/// No execution of a small input takes as long, on any machine: it hangs.
const EXECUTION_MAX: Duration = Duration::from_secs(60);

/// One execution.
struct Outcome {
    /// Bytes of the input.
    n_bytes: usize,
    /// It was read, or run.
    is_accepted: bool,
}

/// What an input may take: bytes of heap for each of its bytes, and besides.
struct Bound {
    per_byte: u64,
    base: u64,
}

/// Runs inputs until the time is over.
fn fuzz(target: &str, bound: &Bound, execute: impl Fn(&mut Paint) -> Outcome) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap_or_else(|e| panic!("{name}: {e}")));
    let only = number("GGFORGE_FUZZ_INPUT");
    let in_ci = std::env::var_os("CI").is_some();
    let time = Duration::from_secs(number("GGFORGE_FUZZ_SECONDS").unwrap_or(if in_ci { 30 } else { 3 }));
    let today = SystemTime::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_secs() / 86_400;
    let first = only.unwrap_or(today << 32);
    let started = Instant::now();
    let (mut n, mut n_accepted, mut slowest) = (0, 0, Duration::ZERO);
    while n == 0 || only.is_none() && started.elapsed() < time {
        let input = first + n;
        let began = Instant::now();
        let (result, peak) = peak_bytes(|| catch_unwind(AssertUnwindSafe(|| execute(&mut Paint::new(input)))));
        let outcome = result.unwrap_or_else(|_| panic!("{target}: GGFORGE_FUZZ_INPUT={input} panics"));
        let heap_max = bound.per_byte * outcome.n_bytes as u64 + bound.base;
        assert!(peak <= heap_max, "{target}: GGFORGE_FUZZ_INPUT={input} takes {peak} bytes of heap, {heap_max} are its due");
        slowest = slowest.max(began.elapsed());
        assert!(slowest < EXECUTION_MAX, "{target}: GGFORGE_FUZZ_INPUT={input} takes {slowest:?}");
        n_accepted += u64::from(outcome.is_accepted);
        n += 1;
    }
    println!("{target}: {n} executions, {n_accepted} accepted, the slowest {slowest:?}");
}
