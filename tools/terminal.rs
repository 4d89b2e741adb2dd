//! What a person sees while a run lasts.

use std::io::{self, IsTerminal};
use std::time::Duration;

use ggforge::pipeline::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::Session;
use crate::exit;

/// A progress bar on stderr, or nothing where stderr is no terminal or quiet was asked for.
#[derive(Debug)]
pub struct Bar(ProgressBar);

impl Bar {
    pub fn new(session: &Session) -> Bar {
        let visible = !session.quiet && io::stderr().is_terminal();
        let bar =
            ProgressBar::with_draw_target(None, if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() });
        let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
        bar.set_style(ProgressStyle::with_template(template).expect("a fixed template"));
        bar.set_message("converting");
        Bar(bar)
    }

    /// Shows how far the run has come; may be called from any thread.
    pub fn show(&self, progress: Progress) {
        match progress {
            Progress::Converted { done_bytes, total_bytes } => {
                self.0.set_length(total_bytes);
                self.0.set_position(done_bytes);
            }
            Progress::Syncing => {
                self.0.set_style(ProgressStyle::with_template("{msg} {elapsed}").expect("a fixed template"));
                self.0.set_message("bringing the output to the disk");
                self.0.enable_steady_tick(Duration::from_millis(200));
            }
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Prints a warning on stderr, also when quiet: it tells that the result may not be what was wanted.
pub fn warn(text: &str) {
    exit::say(&format!("warning: {}\n", ggforge::error::Escaped(text)));
}
