//! What several test files need: where fixtures, shared data and peers are, and how to run the program.
#![allow(dead_code, unused_imports)] // each test file is its own crate and uses a part

pub mod checkpoint;
pub mod described;
pub mod files;
pub mod ggml;
pub mod mutate;
#[path = "../../tools/bench/paint.rs"]
pub mod paint;
pub mod skip;
pub mod tiny;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

pub use paint::Paint;
pub use skip::{skip, skip_without_gpu};

/// The project's root; `GGFORGE_ROOT` where the tests run elsewhere than they were built.
pub fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| std::env::var_os("GGFORGE_ROOT").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from))
}

/// A file or folder below `fixtures/`.
pub fn fixture(name: &str) -> PathBuf {
    root().join("fixtures").join(name)
}

/// A file or folder of the data beside the project, or `None` with a word about it. In CI its absence is a failure.
pub fn shared(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("GGFORGE_SHARED").map_or_else(|| root().join("../shared"), PathBuf::from);
    present(folder.join("data").join(name), "no ../shared/data")
}

/// A file or folder that `tools/dev/peers` installs: returns the peers' folder, or `None` with a word about it. In CI its absence
/// is a failure.
pub fn peers(needed: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("GGFORGE_PEERS").map_or_else(|| root().join("target/peers"), PathBuf::from);
    present(folder.join(needed), "run tools/dev/peers").map(|_| folder)
}

/// True when a program of the system is there, else a word about it. In CI its absence is a failure.
pub fn tool(name: &str) -> bool {
    let found = std::env::var_os("PATH").and_then(|path| std::env::split_paths(&path).find(|folder| folder.join(name).exists()));
    present(found.map_or_else(|| PathBuf::from(name), |folder| folder.join(name)), "install it").is_some()
}

fn present(path: PathBuf, why: &str) -> Option<PathBuf> {
    if path.exists() {
        return Some(path);
    }
    skip(&format!("{why} ({} is missing)", path.display()));
    None
}

/// What this thread has computed: a bound on it holds on a machine that does other things besides, as one on the time of day does not.
pub fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Every command, as the help tells: `convert`, `imatrix show`; the program itself is the empty one.
pub fn commands() -> Vec<String> {
    let mut commands = vec![String::new()];
    let mut next = 0;
    while let Some(command) = commands.get(next).cloned() {
        let help = succeeds(ggforge().args(command.split_whitespace()).arg("--help"));
        let help = String::from_utf8(help.stdout).expect("UTF-8");
        let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
        let names =
            listed.filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).filter(|name| !["", "help"].contains(name));
        commands.extend(names.map(|name| format!("{command} {name}").trim_start().to_owned()));
        next += 1;
    }
    commands
}

/// What runs programs of another architecture, where these tests are of one: the runner that cargo was told.
pub fn emulator() -> Option<OsString> {
    std::env::var_os("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER").filter(|_| cfg!(target_arch = "aarch64"))
}

/// A program of the tests' own architecture.
pub fn program(path: impl AsRef<OsStr>) -> Command {
    match emulator() {
        None => Command::new(path),
        Some(emulator) => {
            let mut command = Command::new(emulator);
            command.arg(path);
            command
        }
    }
}

/// The program under test (`GGFORGE_BIN` where it was built elsewhere), with nothing of the caller's environment that could change its
/// output.
pub fn ggforge() -> Command {
    let mut command = program(std::env::var_os("GGFORGE_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_ggforge").into()));
    command.env_remove("GGFORGE_SIMD");
    command
}

/// Runs the command and returns its output; a failure shows what it printed.
#[track_caller]
pub fn succeeds(command: &mut Command) -> Output {
    let output = command.output().expect("a program that starts");
    assert!(
        output.status.success(),
        "{command:?} ended with {}\nstdout: {}\nstderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// The command under limits of the system, on each process that it starts: seconds of computing and KiB of address space. One that needs
/// more is ended, or refused.
pub fn limited(command: &Command, cpu_seconds: u64, memory_kib: u64) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", &format!("ulimit -t {cpu_seconds} && ulimit -v {memory_kib} && exec \"$0\" \"$@\"")]);
    shell.arg(command.get_program()).args(command.get_args());
    shell
}

/// A folder that vanishes with its handle.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// A parsed JSON file.
pub fn json(path: &Path) -> serde_json::Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
