//! How a run ends: exit codes, error messages, hints.

use std::error::Error as _;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::ops::ControlFlow;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use clap::error::{ContextKind, ContextValue};
use ggforge::Error;
use ggforge::error::{Escaped, Fault};
use ggforge::report::{printable, write_json};
use serde::Serialize;
use serde_json::{Value, json};

const DONE: u8 = 0;
const USAGE: u8 = 2;
const BAD_INPUT: u8 = 3;
const NO_SPACE: u8 = 4;
const INPUT_CHANGED: u8 = 5;
const IO: u8 = 6;
const GPU: u8 = 7;
const INTERNAL: u8 = 70;

/// `EMFILE`, for which the standard library has no name yet.
const TOO_MANY_OPEN_FILES: i32 = rustix::io::Errno::MFILE.raw_os_error();

/// How failures are told, wherever in the program they happen: `--json` and `--verbose`.
static AS_JSON: AtomicBool = AtomicBool::new(false);
static IS_VERBOSE: AtomicBool = AtomicBool::new(false);

/// From here on failures are told as the arguments ask.
pub fn tell_as(as_json: bool, is_verbose: bool) {
    AS_JSON.store(as_json, Ordering::Relaxed);
    IS_VERBOSE.store(is_verbose, Ordering::Relaxed);
}

/// Why a command did not end well.
#[derive(Debug)]
pub enum Failure {
    /// The arguments are wrong, or help was asked for: clap says it best.
    Arguments(clap::Error),
    /// The library refused; the path is that of the file concerned, where the error does not name it.
    Library(Error, Option<PathBuf>),
    /// A signal asked to stop.
    Signal(u8),
    /// The same, of a run that leaves what the text says.
    Stopped(u8, String),
    /// Standard output cannot be written to.
    Stdout(io::Error),
}

impl From<clap::Error> for Failure {
    fn from(mut error: clap::Error) -> Failure {
        // To clap a single letter is like any name that it is in.
        let is_letter = matches!(error.get(ContextKind::InvalidArg), Some(ContextValue::String(name)) if name.len() < "--xx".len());
        if is_letter {
            error.remove(ContextKind::SuggestedArg);
            error.remove(ContextKind::Usage);
        }
        Failure::Arguments(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Library(error, None)
    }
}

/// The failure of a command that read the file at `path`: an [`Error::Unsupported`] does not name it itself.
pub fn named(path: &Path) -> impl Fn(Error) -> Failure {
    move |error| {
        let is_nameless = matches!(error, Error::Unsupported { .. });
        Failure::Library(error, is_nameless.then(|| path.to_owned()))
    }
}

impl Failure {
    /// Prints what a person needs to act, on stderr; as JSON where that was asked for.
    fn report(&self) -> u8 {
        if AS_JSON.load(Ordering::Relaxed)
            && let Some(object) = self.json()
        {
            say(&format!("{object}\n"));
            return self.code();
        }
        let text = match self {
            Failure::Arguments(error) => {
                // Help and version go to stdout, where a closed pipe is no failure.
                let _ = error.print();
                return if error.use_stderr() { USAGE } else { DONE };
            }
            Failure::Signal(signal) => format!("{}; no output was written\n", ended_by(*signal)),
            Failure::Stopped(signal, left) => format!("{}; {left}\n", ended_by(*signal)),
            Failure::Stdout(error) => format!("error: cannot write to standard output\n  because: {error}\n"),
            Failure::Library(error, path) => explain(error, path.as_deref()),
        };
        say(&text);
        self.code()
    }

    /// The failure for programs, on one line; `None` for help, which is none.
    fn json(&self) -> Option<Value> {
        let (message, hint) = match self {
            Failure::Arguments(error) if !error.use_stderr() => return None,
            Failure::Arguments(error) => said_by_clap(&error.render().to_string()),
            Failure::Signal(signal) => (ended_by(*signal), None),
            Failure::Stopped(signal, left) => (format!("{}; {left}", ended_by(*signal)), None),
            Failure::Stdout(_) => ("cannot write to standard output".to_owned(), None),
            Failure::Library(error, path) => (message(error, path.as_deref()), hint(error)),
        };
        let (error, path) = match self {
            Failure::Library(error, path) => (Some(error), path.as_deref().or(error.path())),
            _ => (None, None),
        };
        let mut causes = Vec::new();
        let mut cause = match self {
            Failure::Library(error, _) => error.source(),
            Failure::Stdout(error) => Some(error as &dyn std::error::Error),
            _ => None,
        };
        while let Some(source) = cause {
            causes.push(source.to_string());
            cause = source.source();
        }
        Some(json!({
            "message": message,
            "fault": error.and_then(Error::fault).map(Fault::name),
            "path": path.map(Path::to_string_lossy),
            "hint": hint,
            "exit_code": self.code(),
            "causes": causes,
        }))
    }

    fn code(&self) -> u8 {
        match self {
            Failure::Arguments(_) => USAGE,
            Failure::Signal(signal) | Failure::Stopped(signal, _) => 128 + signal,
            Failure::Stdout(_) => IO,
            Failure::Library(error, _) => match error {
                Error::Usage(_) => USAGE,
                Error::Malformed { .. } | Error::Unsupported { .. } | Error::Limit { .. } => BAD_INPUT,
                Error::NoSpace { .. } => NO_SPACE,
                Error::InputChanged { .. } => INPUT_CHANGED,
                Error::Io { .. } => IO,
                Error::Gpu { .. } => GPU,
                _ => INTERNAL,
            },
        }
    }
}

/// What clap says of arguments, as a message and a hint: the first paragraph, and the one that begins with `tip:`.
fn said_by_clap(text: &str) -> (String, Option<String>) {
    let mut paragraphs = text.split("\n\n").map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "));
    let message = paragraphs.next().unwrap_or_default();
    (
        message.trim_start_matches("error: ").to_owned(),
        paragraphs.find_map(|paragraph| paragraph.strip_prefix("tip: ").map(str::to_owned)),
    )
}

/// What is wrong, and with which file.
fn message(error: &Error, path: Option<&Path>) -> String {
    path.map_or(error.to_string(), |path| format!("{}: {error}", printable(path.as_os_str().as_encoded_bytes())))
}

/// The message, its causes, and what to do.
fn explain(error: &Error, path: Option<&Path>) -> String {
    let mut text = format!("error: {}\n", message(error, path));
    if let Some(fault) = error.fault().filter(|_| IS_VERBOSE.load(Ordering::Relaxed)) {
        text += &format!("  fault: {}\n", fault.name());
    }
    let mut cause = error.source();
    while let Some(source) = cause {
        text += &format!("  because: {}\n", Escaped(&source.to_string()));
        cause = source.source();
    }
    if let Some(hint) = hint(error) {
        text += &format!("hint: {hint}\n");
    }
    text
}

/// What usually helps, where that is not in the message itself.
fn hint(error: &Error) -> Option<String> {
    let fixed = match error {
        Error::NoSpace { .. } => "free some space or choose another disk, or a smaller --type for a model; nothing was written",
        Error::InputChanged { .. } => "run again once nothing writes to the model any more; nothing was written",
        Error::Io { path, op, source } => return io_hint(path, op, source),
        _ => return None,
    };
    Some(fixed.to_owned())
}

fn io_hint(path: &Path, op: &str, source: &io::Error) -> Option<String> {
    let fixed = match source.kind() {
        io::ErrorKind::NotFound if op == "open the directory" => "create the folder first",
        io::ErrorKind::NotFound if op == "open the folder" => return hub_hint(path),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => "check the permissions of that path",
        io::ErrorKind::FileTooLarge => "the file system or a limit (ulimit -f) forbids files of this size; --split-max-size helps",
        _ if source.raw_os_error() == Some(TOO_MANY_OPEN_FILES) => {
            "raise the limit (ulimit -n), or choose a larger --split-max-size"
        }
        io::ErrorKind::OutOfMemory => {
            "fewer --threads take less memory, and so do a smaller --max-memory, --ctx or -n where a command has them"
        }
        _ => return None,
    };
    Some(fixed.to_owned())
}

/// What to do where the folder that is not there is named as models of the hub are: `org/name`, of the hub's characters.
fn hub_hint(path: &Path) -> Option<String> {
    let (org, name) = path.to_str()?.split_once('/')?;
    let is_plain = |part: &str| {
        !part.is_empty() && !part.starts_with('.') && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let hint = "if it is a model of the Hugging Face hub, download it first:";
    (is_plain(org) && is_plain(name)).then(|| format!("{hint} hf download {org}/{name} --local-dir {name}"))
}

/// How a run ended that a signal stopped, as people say it.
fn ended_by(signal: u8) -> String {
    if i32::from(signal) == signal_hook::consts::SIGINT { "interrupted".to_owned() } else { format!("stopped by signal {signal}") }
}

/// Ends the process as a signal asks, below what stands on the terminal.
pub fn stopped(signal: u8) {
    let next_line = if io::stderr().is_terminal() { "\n" } else { "" };
    match Failure::Signal(signal).json().filter(|_| AS_JSON.load(Ordering::Relaxed)) {
        Some(object) => say(&format!("{next_line}{object}\n")),
        None => say(&format!("{next_line}{}\n", ended_by(signal))),
    }
    std::process::exit((128 + signal).into())
}

/// Writes to stderr; that it is closed or full changes nothing about the result.
pub fn say(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Writes a report to stdout. A reader that has seen enough (`| head`) is a success.
///
/// # Errors
/// `Stdout` for anything but a closed pipe.
pub fn print(text: &str) -> Result<(), Failure> {
    stream(text).map(drop)
}

/// As [`print`], of a report that is written while it is made.
///
/// # Errors
/// `Stdout` for anything but a closed pipe.
pub fn print_json(report: &impl Serialize) -> Result<(), Failure> {
    let mut stdout = BufWriter::with_capacity(STDOUT_BYTES, io::stdout().lock());
    match write_json(report, &mut stdout).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Stdout(e)),
        _ => Ok(()),
    }
}

/// What is written at once of a report that is written while it is made.
const STDOUT_BYTES: usize = 1 << 16;

/// As [`print`], for the next part of a long text: `Break` once nobody reads it any more.
///
/// # Errors
/// `Stdout` for anything but a closed pipe.
pub fn stream(text: &str) -> Result<ControlFlow<()>, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        Err(e) => Err(Failure::Stdout(e)),
    }
}

/// Where the last panic happened, for the one line that reports it.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Runs the program and turns whatever happens into an exit code. A panic is our mistake: one line, exit code 70.
pub fn catching_panics(program: impl FnOnce() -> Result<(), Failure>) -> ExitCode {
    panic::set_hook(Box::new(|info| {
        *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = Some(info.to_string().replace('\n', " "));
    }));
    let code = match panic::catch_unwind(AssertUnwindSafe(program)) {
        Ok(Ok(())) => DONE,
        Ok(Err(failure)) => failure.report(),
        Err(_) => INTERNAL,
    };
    if code == INTERNAL
        && let Some(panic) = PANIC.lock().unwrap_or_else(PoisonError::into_inner).take()
    {
        say(&format!("internal error: {}; please report this\n", Escaped(&panic)));
    }
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::{ended_by, said_by_clap};

    #[test]
    fn a_run_that_was_interrupted_is_called_so() {
        assert_eq!([2, 15].map(ended_by), ["interrupted", "stopped by signal 15"]);
    }

    #[test]
    fn the_first_paragraph_is_the_message_and_the_tip_a_hint() {
        let text = "error: these are missing:\n  --type <T>\n  --file <FILE>\n\nUsage: ggforge\n\nFor more, try '--help'.\n";
        assert_eq!(said_by_clap(text), ("these are missing: --type <T> --file <FILE>".to_owned(), None));
        let text = "error: unexpected argument '--tipe'\n\n  tip: a similar argument exists: '--type'\n\nUsage: x\n";
        let hint = Some("a similar argument exists: '--type'".to_owned());
        assert_eq!(said_by_clap(text), ("unexpected argument '--tipe'".to_owned(), hint));
    }
}
