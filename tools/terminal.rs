//! What a person sees while a run lasts.

use std::fmt::Write;
use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use ggforge::eval;
use ggforge::pipeline::Progress;
use ggforge::report::Table;
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::Session;
use crate::exit;

/// A progress bar on stderr, or nothing where stderr is no terminal or quiet was asked for.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    /// Workers report out of order; the bar only goes forward.
    done_bytes: AtomicU64,
}

impl Bar {
    /// `what` is being done, in one word.
    pub fn new(session: &Session, what: &'static str) -> Bar {
        let bar = ProgressBar::with_draw_target(None, target(session));
        let template = "{msg} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec}, {eta} left";
        bar.set_style(ProgressStyle::with_template(template).expect("a fixed template"));
        bar.set_message(what);
        Bar { bar, done_bytes: AtomicU64::new(0) }
    }

    /// Shows how far the run has come; may be called from any thread.
    pub fn show(&self, progress: Progress) {
        match progress {
            Progress::Converted { done_bytes, total_bytes } => self.show_bytes(done_bytes, total_bytes),
            Progress::Syncing => self.show_waiting("bringing the output to the disk"),
            Progress::ReadingBack => self.show_waiting("reading the output back"),
        }
    }

    fn show_waiting(&self, what: &'static str) {
        self.bar.set_style(ProgressStyle::with_template("{msg} {elapsed}").expect("a fixed template"));
        self.bar.set_message(what);
        // It needs a thread, and panics where there is none to be had.
        if !self.bar.is_hidden() && thread::Builder::new().spawn(|| ()).is_ok() {
            self.bar.enable_steady_tick(Duration::from_millis(200));
        }
    }
}

impl Bar {
    /// As [`Bar::show`], for what is counted in bytes.
    pub fn show_bytes(&self, done_bytes: u64, total_bytes: u64) {
        self.bar.set_length(total_bytes);
        let before = self.done_bytes.fetch_max(done_bytes, Ordering::Relaxed);
        self.bar.inc(done_bytes.saturating_sub(before));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A bar on stderr for work that is done in named steps, or nothing where stderr is no terminal or quiet was asked for.
#[derive(Debug)]
pub struct Steps {
    bar: ProgressBar,
}

impl Steps {
    /// `doing` stands before the bar, as in `timing`.
    pub fn new(session: &Session, doing: &'static str, n_steps: usize) -> Steps {
        let bar = ProgressBar::with_draw_target(Some(n_steps as u64), target(session));
        let template = "{prefix} {msg} {wide_bar} {pos}/{len}, {eta} left";
        bar.set_style(ProgressStyle::with_template(template).expect("a fixed template"));
        bar.set_prefix(doing);
        Steps { bar }
    }

    /// The next step begins, and the one before is done.
    pub fn begin(&self, step: &'static str) {
        if !self.bar.message().is_empty() {
            self.bar.inc(1);
        }
        self.bar.set_message(step);
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A bar for runs that take tokens through a model.
#[derive(Debug)]
pub struct TokenBar {
    bar: ProgressBar,
    what: &'static str,
}

impl TokenBar {
    /// `what` the run does, in one word.
    pub fn new(session: &Session, what: &'static str) -> TokenBar {
        let bar = ProgressBar::with_draw_target(None, target(session));
        let template = "{msg} {wide_bar} {human_pos}/{human_len} tokens, {rate}/s, {eta} left";
        let style = ProgressStyle::with_template(template).expect("a fixed template");
        bar.set_style(style.with_key("rate", |state: &ProgressState, to: &mut dyn Write| {
            let _ = to.write_str(&rate(state.per_sec()));
        }));
        bar.set_message(what);
        TokenBar { bar, what }
    }

    /// Shows how far the run has come, and the perplexity so far.
    pub fn show(&self, progress: eval::Progress) {
        self.bar.set_length(progress.total_tokens);
        self.bar.set_position(progress.done_tokens);
        if let Some(ppl) = progress.ppl {
            self.bar.set_message(format!("{}, perplexity {ppl:.3}", self.what));
        }
    }
}

impl Drop for TokenBar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Whole ones: indicatif's own has four decimals.
fn rate(per_second: f64) -> String {
    HumanCount(per_second.round() as u64).to_string()
}

fn target(session: &Session) -> ProgressDrawTarget {
    match session.quiet || !io::stderr().is_terminal() {
        true => ProgressDrawTarget::hidden(),
        false => ProgressDrawTarget::stderr(),
    }
}

/// Columns of the terminal that stdout is; without end where it is none.
pub fn width() -> usize {
    let size = rustix::termios::tcgetwinsize(io::stdout());
    size.ok().map(|size| usize::from(size.ws_col)).filter(|&columns| columns > 0).unwrap_or(usize::MAX)
}

/// A table as text, no wider than the terminal where that can be.
pub fn fitted(table: &Table) -> String {
    table.text_within(width())
}

/// Prints a warning on stderr, also when quiet: it tells that the result may not be what was wanted.
pub fn warn(text: &str) {
    exit::say(&format!("warning: {}\n", ggforge::error::Escaped(text)));
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_rate_has_no_decimals() {
        assert_eq!(["4972.1963", "0.4", "NaN"].map(|text| super::rate(text.parse().expect("a number"))), ["4,972", "0", "0"]);
    }
}
