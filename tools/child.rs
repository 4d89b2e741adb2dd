//! Work on a stranger's file that nothing inside a process can bound, done by a child process of this program.
//!
//! A chat template is a program, and a library that reads another's tokenizer trusts it: counting steps, or bytes before they are asked
//! for, bounds neither. So the child takes memory, computing time and stack from itself before it reads anything. It has no
//! environment, no folder but the root, and no file but two pipes: the request comes through one, the answer, of bounded length, goes
//! through the other. It ends with its parent.
//!
//! On Linux all of this holds. Other systems do not enforce each limit on memory; there, time by the clock is the last bound.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read, Write};
use std::panic;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, Signal, getppid, getrlimit, setrlimit};

use crate::exit;

/// What a child can be asked for.
pub struct Job {
    /// The first argument of the program as such a child: an option that no command has.
    pub name: &'static str,
    /// The answer to a request. Its limits are in force.
    pub work: fn(Vec<u8>) -> Vec<u8>,
}

/// What a child may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Address space, the program's own included.
    pub memory_bytes: u64,
    /// Seconds of one core.
    pub cpu_seconds: u64,
    /// Time by the clock, on a machine that has more to do.
    pub wait: Duration,
    pub answer_bytes: u64,
}

/// Stack. Within it everything that is nested to a reasonable depth is read.
const STACK_MAX: u64 = 8 << 20;
/// The exit status of a child that panicked.
const PANICKED: u8 = 70;

/// Why there is no answer, as the rest of a sentence about the file.
#[derive(Debug)]
pub enum NoAnswer {
    /// There was no child.
    NotStarted(io::Error),
    TooSlow(Duration),
    TooMuchComputing(Limits),
    TooMuchMemory(Limits),
    Panicked,
    /// By the system or a person, not for a limit of its own.
    Killed,
    Ended(String),
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoAnswer::NotStarted(error) => write!(f, "no process for it can be started: {error}"),
            NoAnswer::TooSlow(wait) => write!(f, "it takes longer than {} s", wait.as_secs()),
            NoAnswer::TooMuchComputing(limits) => write!(f, "it takes more than {} s of computing", limits.cpu_seconds),
            NoAnswer::TooMuchMemory(limits) => {
                write!(f, "it takes more than {} MiB of memory, or is nested too deeply", limits.memory_bytes >> 20)
            }
            NoAnswer::Panicked => f.write_str("what reads it fails on it"),
            NoAnswer::Killed => f.write_str("its process was killed, as where memory or time run out"),
            NoAnswer::Ended(how) => write!(f, "its process ended with {how}"),
        }
    }
}

/// Starts a child, gives it the request, and waits for the answer. The child ends with the thread that calls this.
///
/// # Errors
/// Why there is no answer.
pub fn ask(job: &Job, limits: Limits, request: Vec<u8>) -> Result<Vec<u8>, NoAnswer> {
    let program = executable().map_err(NoAnswer::NotStarted)?;
    ask_program(&program, job.name, limits, request)
}

/// This program. Linux has a link to it that holds even where the file was deleted or replaced meanwhile.
fn executable() -> io::Result<PathBuf> {
    let link = Path::new("/proc/self/exe");
    if link.exists() || link.is_symlink() { Ok(link.to_owned()) } else { std::env::current_exe() }
}

fn ask_program(program: &Path, job: &str, limits: Limits, request: Vec<u8>) -> Result<Vec<u8>, NoAnswer> {
    let mut command = Command::new(program);
    command.arg(job).args([limits.memory_bytes, limits.cpu_seconds, std::process::id().into()].map(|number| number.to_string()));
    command.env_clear().current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(NoAnswer::NotStarted)?;
    let (mut stdin, stdout) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
    let (sender, receiver) = mpsc::sync_channel(1);
    let exchange = move || {
        // A child that ended early says so by its status.
        let _ = stdin.write_all(&request);
        drop(stdin);
        let mut answer = Vec::new();
        let read = stdout.take(limits.answer_bytes).read_to_end(&mut answer);
        let _ = sender.send(read.map(|_| answer));
    };
    if let Err(error) = thread::Builder::new().name("child".to_owned()).spawn(exchange) {
        end(&mut child);
        return Err(NoAnswer::NotStarted(error));
    }
    match receiver.recv_timeout(limits.wait) {
        // The pipe is closed: the child ends, or what nobody reads ends it.
        Ok(read) => match (child.wait(), read) {
            (Ok(status), Ok(answer)) if status.success() => Ok(answer),
            (Ok(status), Ok(_)) => Err(cause(status, limits)),
            // Where the caller of this program has switched off news of children, the answer has to speak for itself.
            (Err(_), Ok(answer)) => Ok(answer),
            (_, Err(error)) => Err(NoAnswer::Ended(error.to_string())),
        },
        Err(_) => {
            end(&mut child);
            Err(NoAnswer::TooSlow(limits.wait))
        }
    }
}

fn end(child: &mut Child) {
    // It may have ended meanwhile.
    let _ = child.kill();
    let _ = child.wait();
}

/// Which limit ended a child.
fn cause(status: ExitStatus, limits: Limits) -> NoAnswer {
    use std::os::unix::process::ExitStatusExt;

    let is = |signal: Signal| status.signal() == Some(signal.as_raw());
    if is(Signal::XCPU) {
        NoAnswer::TooMuchComputing(limits)
    } else if is(Signal::ABORT) || is(Signal::SEGV) || is(Signal::BUS) {
        // Where memory is refused, the standard library aborts; so it does on an overflow of the stack.
        NoAnswer::TooMuchMemory(limits)
    } else if is(Signal::KILL) {
        NoAnswer::Killed
    } else if status.code() == Some(PANICKED.into()) {
        NoAnswer::Panicked
    } else {
        NoAnswer::Ended(status.to_string())
    }
}

/// Does the job that this process was started for, if it is a child.
pub fn run(jobs: &[&Job]) -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let name = arguments.next()?;
    let job = jobs.iter().find(|job| *job.name == name)?;
    Some(match serve(job, arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Read by whoever tries this by hand.
            exit::say(&format!("error: {}: {error}\n", job.name));
            ExitCode::FAILURE
        }
    })
}

fn serve(job: &Job, arguments: impl Iterator<Item = OsString>) -> io::Result<()> {
    let numbers: Vec<u64> = arguments.filter_map(|text| text.to_str()?.parse().ok()).collect();
    let &[memory_bytes, cpu_seconds, parent] = &numbers[..] else {
        return Err(io::Error::other("only this program itself starts its children"));
    };
    limit(memory_bytes, cpu_seconds)?;
    end_with_parent(parent)?;
    let mut request = Vec::new();
    io::stdin().lock().read_to_end(&mut request)?;
    panic::set_hook(Box::new(|_| {}));
    let Ok(answer) = panic::catch_unwind(|| (job.work)(request)) else { std::process::exit(PANICKED.into()) };
    let mut stdout = io::stdout().lock();
    stdout.write_all(&answer)?;
    stdout.flush()
}

/// Takes from this process whatever it does not need. Systems other than Linux do not all have each limit.
fn limit(memory_bytes: u64, cpu_seconds: u64) -> io::Result<()> {
    // Beyond the lower limit of computing there is a signal that says so, beyond the other the end.
    let limits = [
        (Resource::As, memory_bytes, memory_bytes),
        (Resource::Cpu, cpu_seconds, cpu_seconds + 1),
        (Resource::Stack, STACK_MAX, STACK_MAX),
        (Resource::Core, 0, 0),
        (Resource::Fsize, 0, 0),
        (Resource::Nofile, 0, 0),
    ];
    for (resource, current, maximum) in limits {
        let allowed = getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let limit = Rlimit { current: Some(current.min(allowed)), maximum: Some(maximum.min(allowed)) };
        let set = setrlimit(resource, limit);
        if cfg!(target_os = "linux") {
            set?;
        }
    }
    Ok(())
}

/// From here on this process does not outlive its parent.
fn end_with_parent(parent: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before.
    let is_there = getppid().is_some_and(|found| u64::try_from(found.as_raw_pid()) == Ok(parent));
    if is_there { Ok(()) } else { Err(io::Error::other("the parent has ended")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { memory_bytes: 256 << 20, cpu_seconds: 1, wait: Duration::from_secs(20), answer_bytes: 10 };

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let answer = ask_program(Path::new("/no/such/program"), "--job", LIMITS, Vec::new());
        assert!(matches!(&answer, Err(NoAnswer::NotStarted(_))), "{answer:?}");
    }

    #[test]
    fn how_a_child_ended_is_told() {
        let of_shell = |script: &str| {
            let shell = Command::new("/bin/sh").args(["-c", script]).status().expect("a shell");
            cause(shell, LIMITS).to_string()
        };
        assert_eq!(of_shell("kill -XCPU $$"), "it takes more than 1 s of computing");
        assert_eq!(of_shell("kill -ABRT $$"), "it takes more than 256 MiB of memory, or is nested too deeply");
        assert_eq!(of_shell("kill -SEGV $$"), of_shell("kill -ABRT $$"));
        assert_eq!(of_shell("exit 70"), "what reads it fails on it");
        assert_eq!(of_shell("kill -KILL $$"), "its process was killed, as where memory or time run out");
        assert_eq!(of_shell("exit 3"), "its process ended with exit status: 3");
    }

    /// More than may come back is cut off, and the child is not waited for.
    #[test]
    fn an_answer_has_a_bound() {
        let answer = ask_program(Path::new("/bin/echo"), "0123456789012345", LIMITS, Vec::new());
        assert!(matches!(&answer, Ok(answer) if answer == b"0123456789"), "{answer:?}");
    }
}
