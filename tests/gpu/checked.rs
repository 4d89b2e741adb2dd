//! Tests of many cases: each runs whatever the others did, and has a line.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The cases of a test. A line for each is printed when it is done, `ok NAME: NOTE` or `FAILED NAME: MESSAGE`, so that what a test found
/// is known also when it is stopped; [`Checked::end`] fails when one of them did.
pub struct Checked {
    n_cases: usize,
    failed: Vec<String>,
}

impl Checked {
    pub fn new() -> Checked {
        // Ends the line that the harness began, so that every case has a line of its own.
        println!();
        Checked { n_cases: 0, failed: Vec::new() }
    }

    /// Runs a case, which panics when it fails and returns what there is to tell when it does not.
    pub fn run(&mut self, name: &str, case: impl FnOnce() -> String) {
        self.n_cases += 1;
        match catch_unwind(AssertUnwindSafe(case)) {
            Ok(note) if note.is_empty() => println!("ok {name}"),
            Ok(note) => println!("ok {name}: {note}"),
            Err(panic) => {
                let message = message(panic.as_ref()).lines().collect::<Vec<_>>().join("; ");
                println!("FAILED {name}: {message}");
                self.failed.push(name.to_owned());
            }
        }
    }

    #[track_caller]
    pub fn end(self) {
        assert!(self.failed.is_empty(), "{} of {} cases failed: {}", self.failed.len(), self.n_cases, self.failed.join(", "));
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message")
}

#[test]
fn a_case_that_fails_is_named_and_the_others_run() {
    let mut checked = Checked::new();
    let mut n_run = 0;
    for number in 0..4 {
        checked.run(&format!("case {number}"), || {
            n_run += 1;
            assert!(number % 2 == 0, "number {number} is odd");
            String::new()
        });
    }
    assert_eq!((n_run, checked.failed.as_slice()), (4, &["case 1".to_owned(), "case 3".to_owned()][..]));
    let end = catch_unwind(AssertUnwindSafe(|| checked.end())).expect_err("two cases failed");
    assert_eq!(message(end.as_ref()), "2 of 4 cases failed: case 1, case 3");
}
