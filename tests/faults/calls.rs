//! Every system call of every command that writes: the process is killed at it, or it fails. Spread evenly over all of a run's calls, so
//! that it takes seconds; each of them with `GGFORGE_TEST_FULL=1`.

use std::collections::BTreeMap;

use super::commands::{AT_ONE_TIME, COMMANDS, Inputs, State, Writing};
use super::*;

/// Calls of one run that faults happen to, where not all are wanted. Besides, those that decide what is under a name.
const N_CALLS: usize = 24;

/// Calls that decide what is under a name.
const DECIDING: &[&str] = &["fallocate", "fsync", "linkat", "rename", "renameat", "renameat2", "unlink", "unlinkat"];

/// Calls about files. What fails else is memory, threads and clocks; and `close`, at which the standard library panics for a folder, after
/// which nothing is left to fail: files are synced before.
const ABOUT_FILES: &[&str] = &[
    "openat",
    "read",
    "pread64",
    "write",
    "pwrite64",
    "ftruncate",
    "fdatasync",
    "newfstatat",
    "fstat",
    "statx",
    "lseek",
    "getdents64",
    "fchmod",
    "flock",
];

/// The `n`th call of a thread by that name.
type Call = (String, usize);

/// How often a run makes each call: the most of all its threads, as faults are counted by thread.
fn calls(writing: &Writing<'_>) -> BTreeMap<String, usize> {
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut strace = Command::new("strace");
    strace.arg("-fqqo").arg(log.path()).arg(env!("CARGO_BIN_EXE_ggforge")).args(writing.arguments.split(' ')).arg("--force");
    writing.restore_old();
    succeeds(strace.envs(AT_ONE_TIME).current_dir(writing.run().get_current_dir().unwrap()));
    let mut by_thread: BTreeMap<(String, String), usize> = BTreeMap::new();
    for line in fs::read_to_string(log.path()).unwrap().lines() {
        let (thread, rest) = line.split_once(' ').expect("a thread and a call");
        if let Some((name, _)) = rest.trim_start().split_once('(').filter(|(name, _)| name.bytes().all(|b| b != b' ')) {
            *by_thread.entry((thread.to_owned(), name.to_owned())).or_default() += 1;
        }
    }
    let mut calls = BTreeMap::new();
    for ((_, name), n) in by_thread {
        let most = calls.entry(name).or_default();
        *most = n.max(*most);
    }
    calls
}

/// Those of some calls that faults happen to.
fn chosen(calls: &BTreeMap<String, usize>, is_wanted: impl Fn(&str) -> bool) -> Vec<Call> {
    let all = calls.iter().filter(|(name, _)| is_wanted(name)).flat_map(|(name, n)| (1..=*n).map(|n| (name.clone(), n)));
    let (mut chosen, others): (Vec<Call>, Vec<Call>) = all.partition(|(name, _)| DECIDING.contains(&name.as_str()));
    let step = if std::env::var_os("GGFORGE_TEST_FULL").is_some() { 1 } else { others.len().div_ceil(N_CALLS).max(1) };
    chosen.extend(others.into_iter().step_by(step));
    chosen
}

/// A run with `--force` over older outputs, with a fault.
fn run_with(writing: &Writing<'_>, fault: &str) -> std::process::Output {
    writing.restore_old();
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("inject={fault}")]);
    strace.arg(env!("CARGO_BIN_EXE_ggforge")).args(writing.arguments.split(' ')).arg("--force");
    strace.envs(AT_ONE_TIME).current_dir(writing.run().get_current_dir().unwrap()).output().unwrap()
}

#[test]
fn a_kill_at_any_system_call_of_any_command_leaves_old_or_new() {
    if !tool("strace") {
        return;
    }
    let inputs = Inputs::new();
    for arguments in COMMANDS {
        let writing = Writing::new(&inputs, arguments);
        let (mut n_runs, mut n_new) = (0, 0);
        for (name, n) in chosen(&calls(&writing), |_| true) {
            let fault = format!("{name}:signal=KILL:when={n}");
            let is_killed = !run_with(&writing, &fault).status.success();
            let state = writing.state(&fault);
            let is_right = match state {
                State::New => true,
                State::Old => is_killed,
                State::Nothing | State::Refused => is_killed && writing.is_of_a_set(),
            };
            assert!(is_right, "{arguments}, {fault}: {state:?}");
            (n_runs, n_new) = (n_runs + 1, n_new + usize::from(state == State::New));
        }
        println!("{arguments}: killed at {n_runs} calls, {n_new} times the outputs were complete");
        assert!(0 < n_new && n_new < n_runs, "{arguments}: {n_new} of {n_runs}");
        writing.a_rerun_is_complete();
    }
}

#[test]
fn an_error_of_any_system_call_of_any_command_is_told_and_leaves_old_or_new() {
    if !tool("strace") {
        return;
    }
    let inputs = Inputs::new();
    for arguments in COMMANDS {
        let writing = Writing::new(&inputs, arguments);
        let (mut n_runs, mut n_failed) = (0, 0);
        for (name, n) in chosen(&calls(&writing), |name| ABOUT_FILES.contains(&name) || DECIDING.contains(&name)) {
            let fault = format!("{name}:error=EIO:when={n}");
            let output = run_with(&writing, &fault);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let context = format!("{arguments}, {fault}: {said}");
            let state = writing.state(&fault);
            match output.status.code() {
                Some(0) => assert_eq!(state, State::New, "{context}"),
                // The loader of programs met it, before there was a program, or nothing can be said any more.
                Some(127) | Some(1) => assert!(state == State::Old && !said.starts_with("error: "), "{context}"),
                Some(3..=6) => {
                    assert!(said.starts_with("error: ") || name == "write", "{context}");
                    // Once the names are being given, a set can be in between.
                    let is_between = writing.is_of_a_set() && ["fsync", "rename", "renameat", "unlink"].contains(&name.as_str());
                    let is_after = name == "fsync" || name == "write";
                    let is_right = match state {
                        State::Old => true,
                        State::New => is_after,
                        State::Nothing | State::Refused => is_between,
                    };
                    assert!(is_right, "{context}: {state:?}");
                }
                code => panic!("{code:?}: {context}"),
            }
            if !name.starts_with("unlink") {
                assert_eq!(writing.leftovers(), [""; 0], "{context}");
            }
            (n_runs, n_failed) = (n_runs + 1, n_failed + usize::from(!output.status.success()));
        }
        println!("{arguments}: {n_runs} calls failed, {n_failed} times the run did");
        assert!(0 < n_failed, "{arguments}: {n_failed} of {n_runs}");
        writing.a_rerun_is_complete();
    }
}
