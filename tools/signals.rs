//! Signals that ask a run to stop.

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;
use signal_hook::iterator::Signals;

use ggforge::Error;

use crate::exit::{self, Failure};

/// Set by the first of SIGINT, SIGTERM and SIGHUP; further ones change nothing, since the run is stopping already.
#[derive(Debug)]
pub struct Stop {
    flag: Arc<AtomicBool>,
    signal: Arc<AtomicUsize>,
}

impl Stop {
    /// From here on these signals no longer end the process: whoever calls this must look at [`Stop::flag`].
    ///
    /// # Errors
    /// When the system refuses to register a handler.
    pub fn on_signals() -> io::Result<Stop> {
        let stop = Stop { flag: Arc::default(), signal: Arc::default() };
        for signal in heeded_signals() {
            flag::register_usize(signal, Arc::clone(&stop.signal), signal as usize)?;
            flag::register(signal, Arc::clone(&stop.flag))?;
        }
        // A write beyond `ulimit -f` then gives an error instead of killing the process.
        flag::register(SIGXFSZ, Arc::default())?;
        Ok(stop)
    }

    /// True once a signal has come.
    pub fn flag(&self) -> &AtomicBool {
        &self.flag
    }

    /// What ended a run: the signal that came, or its error.
    pub fn ended(&self, error: Error) -> Failure {
        match (error, self.signal()) {
            (Error::Interrupted, Some(signal)) => Failure::Signal(signal),
            (error, _) => Failure::Library(error, None),
        }
    }

    /// The signal that came, if any.
    pub fn signal(&self) -> Option<u8> {
        u8::try_from(self.signal.load(Ordering::Relaxed)).ok().filter(|&signal| signal != 0)
    }
}

/// From here on these signals end the process at once, with the exit code that says so, where they would have ended it without one: for
/// commands that have nothing to tidy up.
pub fn end_at_once() {
    let wait = || {
        let signal = Signals::new(heeded_signals()).ok().and_then(|mut signals| signals.forever().next());
        signal.and_then(|signal| u8::try_from(signal).ok()).map(exit::stopped)
    };
    // Without room for a thread, they end it as ever.
    let _ = thread::Builder::new().spawn(wait);
}

/// The signals that ask to stop, without what `nohup` or a shell's `&` has switched off: that stays off.
fn heeded_signals() -> impl Iterator<Item = i32> {
    let ignored = ignored_signals();
    [SIGINT, SIGTERM, SIGHUP].into_iter().filter(move |signal| ignored & (1 << (signal - 1)) == 0)
}

/// The signals that this process was started with as ignored: bit `n - 1` stands for signal `n`.
fn ignored_signals() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
