//! Faults to survive: kills, full disks, limits, signals, inputs that change. Whatever happens, the output's name holds its old bytes,
//! the complete new file, or nothing; and a run after the fault gives the same bytes as if nothing had happened.

#[path = "faults/calls.rs"]
mod calls;
#[path = "faults/commands.rs"]
mod commands;
mod common;
#[path = "faults/kills.rs"]
mod kills;
#[path = "faults/network.rs"]
mod network;
#[path = "faults/power.rs"]
mod power;

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use common::{Paint, fixture, ggforge, scratch, skip, succeeds, tool};
use ggforge::gguf::{Header, TensorSpec};
use ggforge::quant::Format;
use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest, Sha256};

const OLD: &[u8] = b"an older output";

/// A folder with a model of 16 M weights, large enough that a run can be caught in the middle.
struct Place {
    dir: tempfile::TempDir,
    /// What a run without faults writes.
    expected: Vec<u8>,
    /// How long that takes.
    duration: Duration,
}

impl Place {
    fn new() -> Place {
        let dir = scratch();
        fs::write(dir.path().join("in.gguf"), model()).unwrap();
        let place = Place { dir, expected: Vec::new(), duration: Duration::ZERO };
        let started = Instant::now();
        succeeds(&mut place.run());
        let duration = started.elapsed();
        let expected = fs::read(place.output()).unwrap();
        fs::remove_file(place.output()).unwrap();
        Place { expected, duration, ..place }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn output(&self) -> PathBuf {
        self.path().join("out.gguf")
    }

    /// The run that faults happen to.
    fn run(&self) -> Command {
        let mut command = ggforge();
        command.current_dir(self.path()).args(["quantize", "in.gguf", "-t", "Q4_K_M", "-o", "out.gguf", "--threads", "2", "-q"]);
        command
    }

    fn spawn(&self, command: &mut Command) -> Child {
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a program that starts")
    }

    /// The same run below a shell that sets a limit first.
    fn run_in_shell(&self, setup: &str) -> Command {
        let line = format!("{setup}; exec {} quantize in.gguf -t Q4_K_M -o out.gguf", env!("CARGO_BIN_EXE_ggforge"));
        let mut command = Command::new("sh");
        command.current_dir(self.path()).args(["-c", &line]);
        command
    }

    /// Names besides the input, hidden ones too.
    fn names(&self) -> Vec<String> {
        names_in(self.path()).into_iter().filter(|name| name != "in.gguf").collect()
    }

    /// True for the complete file, false for none; anything else fails.
    #[track_caller]
    fn is_complete_or_absent(&self) -> bool {
        match fs::read(self.output()) {
            Ok(bytes) => {
                assert!(bytes == self.expected, "{} bytes that are not the output", bytes.len());
                true
            }
            Err(e) => {
                assert_eq!(e.kind(), std::io::ErrorKind::NotFound);
                false
            }
        }
    }

    #[track_caller]
    fn a_rerun_is_complete(&self) {
        succeeds(self.run().arg("--force"));
        assert!(self.is_complete_or_absent());
        assert_eq!(self.names(), ["out.gguf"]);
        fs::remove_file(self.output()).unwrap();
    }
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Eight tensors of 512 x 4096 weights as F16, and a vector.
fn model() -> Vec<u8> {
    let matrix = |n: u32| TensorSpec { name: format!("blk.{n}.ffn_down.weight"), format: Format::F16, shape: vec![512, 4096] };
    let mut tensors: Vec<TensorSpec> = (0..8).map(matrix).collect();
    tensors.push(TensorSpec { name: "output_norm.weight".into(), format: Format::F32, shape: vec![4096] });
    let metadata =
        vec![("general.architecture".to_owned(), "llama".into()), ("llama.block_count".to_owned(), ggforge::gguf::Value::U32(8))];
    let layout = Header { metadata, tensors }.layout().unwrap();
    let mut bytes = layout.header.clone();
    bytes.resize(layout.file_bytes as usize, 0);
    let mut paint = Paint::new(1);
    for (&offset, &size) in layout.offsets_bytes.iter().zip(&layout.sizes_bytes).take(8) {
        // Any 16 bits with an exponent from 2^-15 to 2^-8 are a sound weight.
        for pair in bytes[offset as usize..(offset + size) as usize].chunks_exact_mut(2) {
            pair.copy_from_slice(&((paint.next() as u16) & 0x9fff).to_le_bytes());
        }
    }
    bytes
}

fn signal(child: &Child, signal: Signal) {
    // The child may have ended already.
    let _ = kill_process(Pid::from_child(child), signal);
}

/// A moment somewhere in a run, a little beyond its end at most.
fn moment(paint: &mut Paint, duration: Duration) -> Duration {
    duration.mul_f64((paint.next() % 1000) as f64 / 900.0)
}

#[test]
fn kill_9_at_random_moments_leaves_nothing_or_the_complete_file() {
    let place = Place::new();
    let mut paint = Paint::new(2);
    let mut n_killed = 0;
    for _ in 0..100 {
        let mut child = place.spawn(&mut place.run());
        thread::sleep(moment(&mut paint, place.duration));
        signal(&child, Signal::KILL);
        let status = child.wait().unwrap();
        n_killed += usize::from(status.signal() == Some(9));
        if place.is_complete_or_absent() {
            fs::remove_file(place.output()).unwrap();
        } else {
            assert_eq!(status.signal(), Some(9));
        }
        assert_eq!(place.names(), [""; 0], "an unnamed file leaves no trace");
    }
    assert!(n_killed >= 10, "only {n_killed} of 100 runs were caught");
    place.a_rerun_is_complete();
}

#[test]
fn kill_9_leaves_the_old_file_or_the_complete_new_one() {
    let place = Place::new();
    let mut paint = Paint::new(3);
    for _ in 0..50 {
        fs::write(place.output(), OLD).unwrap();
        let mut child = place.spawn(place.run().arg("--force"));
        thread::sleep(moment(&mut paint, place.duration));
        signal(&child, Signal::KILL);
        child.wait().unwrap();
        let bytes = fs::read(place.output()).unwrap();
        assert!(bytes == OLD || bytes == place.expected, "{} bytes that are neither file", bytes.len());
    }
    // A kill between the link and the rename leaves a temporary name, which the next run sweeps.
    place.a_rerun_is_complete();
}

#[test]
fn kill_9_at_every_system_call_that_writes() {
    let place = Place::new();
    if !tool("strace") {
        return;
    }
    for call in ["openat", "fallocate", "pwrite64", "fsync", "linkat", "renameat,rename,renameat2"] {
        for force in [false, true] {
            let mut n = 1;
            let ended_well = loop {
                fs::write(place.output(), OLD).unwrap();
                if !force {
                    fs::remove_file(place.output()).unwrap();
                }
                let mut strace = Command::new("strace");
                let inject = format!("inject={call}:signal=KILL:when={n}");
                strace.current_dir(place.path()).args(["-f", "-qq", "-o", "/dev/null", "-e"]).arg(&inject);
                strace.arg(env!("CARGO_BIN_EXE_ggforge")).args("quantize in.gguf -t Q4_K_M -o out.gguf -q".split(' '));
                strace.args(force.then_some("--force"));
                let output = strace.output().unwrap();
                let killed = !output.status.success();
                match fs::read(place.output()) {
                    Ok(bytes) => assert!(bytes == place.expected || force && bytes == OLD, "{inject}, force {force}"),
                    Err(_) => assert!(killed && !force, "{inject}, force {force}"),
                }
                if !killed || n >= 400 {
                    break !killed;
                }
                // The many writes of weights are all alike.
                n += if call == "pwrite64" && n > 4 { 40 } else { 1 };
            };
            assert!(ended_well || call == "openat", "{call} never let the run end");
        }
    }
    place.a_rerun_is_complete();
}

#[test]
fn an_error_of_any_system_call_is_an_error_and_leaves_nothing() {
    let place = Place::new();
    if !tool("strace") {
        return;
    }
    let outcome = |inject: &str| {
        let mut strace = Command::new("strace");
        strace.current_dir(place.path()).args(["-f", "-qq", "-o", "/dev/null", "-e", inject]);
        strace.arg(env!("CARGO_BIN_EXE_ggforge")).args("quantize in.gguf -t Q4_K_M -o out.gguf -q".split(' '));
        strace.output().unwrap()
    };
    for (fault, code) in [
        ("pwrite64:error=EIO:when=3", 6),
        ("pwrite64:error=ENOSPC:when=5+", 4),
        ("pread64:error=EIO:when=9", 6),
        ("fsync:error=EIO:when=1", 6),
        ("fsync:error=ENOSPC:when=1", 4),
        ("fallocate:error=ENOSPC", 4),
        ("fallocate:error=EIO", 6),
        ("linkat:error=EIO", 6),
        // A network file system whose server forgot the file, or is full.
        ("pread64:error=ESTALE:when=9", 6),
        ("pwrite64:error=ESTALE:when=5+", 6),
        ("fsync:error=ESTALE:when=1", 6),
        ("pwrite64:error=EDQUOT:when=5+", 4),
    ] {
        let output = outcome(&format!("inject={fault}"));
        assert_eq!(output.status.code(), Some(code), "{fault}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(place.names(), [""; 0], "{fault}");
    }
    // What the system may do at any time, or cannot do at all, changes nothing.
    for harmless in [
        "pwrite64:error=EINTR:when=3+7",
        "pread64:error=EINTR:when=3+7",
        "fallocate:error=EOPNOTSUPP",
        "fallocate:error=EINTR:when=1",
    ] {
        let output = outcome(&format!("inject={harmless}"));
        assert!(output.status.success(), "{harmless}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(place.is_complete_or_absent(), "{harmless}");
        fs::remove_file(place.output()).unwrap();
    }
}

#[test]
fn bytes_that_change_on_their_way_to_the_disk_are_found_by_verify() {
    let place = Place::new();
    if !tool("strace") {
        return;
    }
    // The system writes other bytes than the program gave it.
    let inject = "inject=pwrite64:poke_enter=@arg2=a55aa55aa55aa55a:when=3";
    let run = |more: &str| {
        let mut strace = Command::new("strace");
        strace.current_dir(place.path()).args(["-f", "-qq", "-o", "/dev/null", "-e", inject]);
        strace.arg(env!("CARGO_BIN_EXE_ggforge")).args("quantize in.gguf -t Q4_K_M -o out.gguf -q".split(' ')).arg(more);
        strace.output().unwrap()
    };
    let output = run("--verify");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(6), "{stderr}");
    assert!(stderr.contains("ffn_down.weight: bytes ") && stderr.contains("are not those that were written"), "{stderr}");
    assert_eq!(place.names(), [""; 0]);
    // Without it nobody looks, which shows that the bytes did change.
    assert!(run("--force").status.success());
    assert!(fs::read(place.output()).unwrap() != place.expected);
    succeeds(place.run().args(["--verify", "--force"]));
    assert!(place.is_complete_or_absent());
}

/// What the promise "an output appears under its name only when it is complete" rests on, in order: the header is read back after the last
/// write, then the file is synced, then it gets its name, then the name is synced.
#[test]
fn a_name_is_given_after_reading_back_and_syncing_and_is_synced_itself() {
    let place = Place::new();
    if !tool("strace") {
        return;
    }
    for force in [false, true] {
        let log = place.path().join("calls");
        let mut strace = Command::new("strace");
        strace.current_dir(place.path()).args(["-f", "-qq", "-y", "-o"]).arg(&log);
        strace.args(["-e", "trace=pread64,pwrite64,fsync,linkat,rename,renameat,renameat2"]);
        strace.arg(env!("CARGO_BIN_EXE_ggforge")).args("quantize in.gguf -t Q4_K_M -o out.gguf -q --threads 1".split(' '));
        assert!(strace.args(force.then_some("--force")).output().unwrap().status.success());
        let calls: Vec<String> = fs::read_to_string(&log).unwrap().lines().map(str::to_owned).collect();
        fs::remove_file(&log).unwrap();
        let write = calls.iter().rposition(|call| call.contains("pwrite64(")).expect("something is written");
        let fd = calls[write].split_once("pwrite64(").and_then(|(_, rest)| rest.split('<').next()).expect("a descriptor");
        // Each step after the one before it.
        let directory = format!("<{}>", place.path().canonicalize().unwrap().display());
        let mut from = write + 1;
        for (step, is_it) in [
            (
                "the header is read back",
                &(|call: &str| call.contains(&format!("pread64({fd}<")) && call.contains(", 0) = ")) as &dyn Fn(&str) -> bool,
            ),
            ("the file is synced", &|call| call.contains(&format!("fsync({fd}<"))),
            ("it gets its name", &|call| (call.contains("linkat(") || call.contains("rename")) && call.contains("out.gguf")),
            ("the name is synced", &|call| call.contains("fsync(") && call.contains(&directory)),
        ] {
            let at = calls[from..].iter().position(|call| is_it(call));
            from += at.unwrap_or_else(|| panic!("{step}, with force {force}: not among\n{}", calls[from..].join("\n"))) + 1;
        }
    }
}

/// True for SIGHUP under `nohup`, say, and for SIGINT in a shell's background jobs: the program then ignores them as well, as it should.
fn is_ignored(signal: Signal) -> bool {
    ignores("self", signal)
}

fn ignores(process: &str, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    u64::from_str_radix(ignored.trim(), 16).unwrap() & (1 << (signal.as_raw() - 1)) != 0
}

/// The run as it is where nothing ignores a signal.
fn heeding(run: &Command) -> Command {
    let mut command = Command::new("env");
    command.current_dir(run.get_current_dir().unwrap()).arg("--default-signal=INT,TERM,HUP");
    command.arg(run.get_program()).args(run.get_args());
    command
}

/// A run stops within a second of being asked on a disk of 1 GB/s (0.8 s at most in a hundred tries, with four times as many programs
/// as cores). This bound only tells a stop from a hang, on any disk.
const STOP_MAX: Duration = Duration::from_secs(60);

#[test]
fn a_signal_stops_the_run_soon_and_leaves_nothing() {
    let place = Place::new();
    let mut paint = Paint::new(4);
    for (sent, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let (mut n_stopped, mut round) = (0, 0);
        while round < 17 || n_stopped < 3 {
            assert!(round < 300, "only {n_stopped} runs were caught by {sent:?}");
            round += 1;
            let mut child = place.spawn(&mut if is_ignored(sent) { heeding(&place.run()) } else { place.run() });
            thread::sleep(moment(&mut paint, place.duration));
            let asked = Instant::now();
            signal(&child, sent);
            if round % 2 == 1 {
                signal(&child, sent);
            }
            let status = child.wait().unwrap();
            assert!(asked.elapsed() < STOP_MAX, "{:?}", asked.elapsed());
            if place.is_complete_or_absent() {
                fs::remove_file(place.output()).unwrap();
            } else {
                // Before the handlers stand, the signal itself ends the process.
                assert!(status.code() == Some(code) || status.signal() == Some(sent.as_raw()), "{status}");
                n_stopped += usize::from(status.code() == Some(code));
            }
            assert_eq!(place.names(), [""; 0]);
        }
    }
    place.a_rerun_is_complete();
}

#[test]
fn an_ignored_hangup_stays_ignored() {
    let place = Place::new();
    let mut command = place.run_in_shell("trap '' HUP");
    let mut child = place.spawn(&mut command);
    while !ignores(&child.id().to_string(), Signal::HUP) {
        assert!(child.try_wait().unwrap().is_none(), "a shell that sets its trap");
        thread::sleep(Duration::from_millis(1));
    }
    for _ in 0..20 {
        thread::sleep(place.duration / 25);
        signal(&child, Signal::HUP);
    }
    assert!(child.wait().unwrap().success());
    assert!(place.is_complete_or_absent());
}

/// Runs a shell script with a file system of its own on `disk` and returns what it prints on stdout and on stderr, or says why that is not
/// possible.
fn on_own_disk(place: &Place, mount: &str, script: &str) -> Option<(String, String)> {
    let disk = place.path().join("disk");
    fs::create_dir_all(&disk).unwrap();
    let as_user: &[&str] = if rustix::process::geteuid().is_root() { &["-m"] } else { &["-rm"] };
    let line = format!("{mount} disk || exit 99; cd disk; {script}").replace("ggforge", env!("CARGO_BIN_EXE_ggforge"));
    let output = Command::new("unshare").current_dir(place.path()).args(as_user).args(["sh", "-c", &line]).output();
    match output {
        Ok(output) if output.status.code() != Some(99) => {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            Some((text(&output.stdout), text(&output.stderr)))
        }
        _ => {
            skip(&format!("no mount namespace for `{mount}`"));
            None
        }
    }
}

#[test]
fn a_full_disk_is_found_before_the_first_weight_and_keeps_the_old_file() {
    let place = Place::new();
    let script =
        "echo old > out.gguf; ggforge quantize ../in.gguf -t Q4_K_M -o out.gguf --force; echo code $?; ls -A; cat out.gguf";
    let Some((text, said)) = on_own_disk(&place, "mount -t tmpfs -o size=4M none", script) else { return };
    assert_eq!(text, "code 4\nout.gguf\nold\n", "{said}");
    assert!(said.contains("no space: ") && said.contains("bytes are needed") && said.contains("are free"), "{said}");
    // Two outputs of which only the first fits.
    let script = "ggforge quantize ../in.gguf -t Q4_K_M,Q8_0 -o 'x-{type}.gguf'; echo code $?; ls -A";
    let Some((text, said)) = on_own_disk(&place, "mount -t tmpfs -o size=12M none", script) else { return };
    assert_eq!(text, "code 4\n", "{said}");
    assert!(said.starts_with("error:"), "{said}");
}

#[test]
fn a_file_system_that_cannot_reserve_space_works_all_the_same() {
    let place = Place::new();
    let script = "ggforge quantize ../in.gguf -t Q4_K_M -o out.gguf -q; echo code $?; ls -A; sha256sum out.gguf";
    let Some((text, said)) = on_own_disk(&place, "mount -t ramfs none", script) else { return };
    let expected = format!("code 0\nout.gguf\n{}", hex(&Sha256::digest(&place.expected)));
    assert!(text.starts_with(&expected), "{text}{said}");
}

#[test]
fn a_directory_that_cannot_be_written_to_is_found_at_once() {
    let place = Place::new();
    let script = "mount -o remount,ro . && ggforge quantize ../in.gguf -t Q4_K_M -o out.gguf; echo code $?; ls -A";
    let Some((text, said)) = on_own_disk(&place, "mount -t tmpfs -o size=64M none", script) else { return };
    assert_eq!(text, "code 6\n", "{said}");
    assert!(said.contains("error: .: cannot create a file in the directory") && said.contains("because:"), "{said}");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn limits_of_the_process_give_errors_not_damage() {
    let place = Place::new();
    let output = place.run_in_shell("ulimit -f 1000").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(6), "{stderr}");
    assert!(stderr.contains("File too large") && stderr.contains("ulimit -f"), "{stderr}");
    assert_eq!(place.names(), [""; 0]);

    // Little address space, few descriptors, a small stack: enough all the same, if need be with fewer threads. One arena, since glibc
    // reserves up to 128 MiB of addresses for each thread that allocates, and then fails anywhere.
    for setup in ["export MALLOC_ARENA_MAX=1; ulimit -v 400000", "ulimit -n 16", "ulimit -s 256"] {
        succeeds(&mut place.run_in_shell(setup));
        assert!(place.is_complete_or_absent(), "{setup}");
        fs::remove_file(place.output()).unwrap();
    }
    // More threads than the address space has stacks for.
    let program = env!("CARGO_BIN_EXE_ggforge");
    let line =
        format!("export MALLOC_ARENA_MAX=1; ulimit -v 300000; exec {program} quantize in.gguf -t Q4_K_M -o out.gguf --threads 500");
    succeeds(Command::new("sh").current_dir(place.path()).args(["-c", &line]));
    assert!(place.is_complete_or_absent());
}

/// Between too little memory to start and enough, a run ends somewhere in the middle: with an error, or, where the allocation of a few
/// bytes fails, with SIGABRT. Nothing is left behind in either case.
#[test]
fn too_little_memory_leaves_nothing() {
    let place = Place::new();
    let mut n_failed = 0;
    for kib in (8..200).step_by(8).map(|mib| mib * 1024) {
        let output = place.run_in_shell(&format!("ulimit -c 0; ulimit -v {kib}")).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() {
            assert!(place.is_complete_or_absent(), "{kib} KiB");
            fs::remove_file(place.output()).unwrap();
        } else {
            n_failed += 1;
            assert_eq!(place.names(), [""; 0], "{kib} KiB: {stderr}");
            assert!(!stderr.contains("internal error"), "{kib} KiB: {stderr}");
        }
    }
    assert!(n_failed > 0, "8 MiB were enough");
    place.a_rerun_is_complete();
}

#[test]
fn many_shards_need_descriptors_and_say_so() {
    let place = Place::new();
    let shards = |limit: &str| {
        let program = env!("CARGO_BIN_EXE_ggforge");
        let line = format!("{limit} && exec {program} quantize in.gguf -t Q8_0 -o out.gguf --split-max-size 2300K");
        Command::new("sh").current_dir(place.path()).args(["-c", &line]).output().unwrap()
    };
    let output = shards("ulimit -n 16");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(6), "{stderr}");
    assert!(stderr.contains("Too many open files") && stderr.contains("ulimit -n"), "{stderr}");
    assert_eq!(place.names(), [""; 0]);
    // A soft limit is raised to what the system allows.
    let output = shards("ulimit -Sn 16");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(place.names().len() >= 8, "{:?}", place.names());
}

#[test]
fn of_two_runs_to_one_output_one_wins_whole() {
    let place = Place::new();
    let mut other = ggforge();
    other.current_dir(place.path()).args(["quantize", "in.gguf", "-t", "Q8_0", "-o", "out.gguf", "-q"]);
    succeeds(&mut other);
    let others = fs::read(place.output()).unwrap();
    fs::remove_file(place.output()).unwrap();
    for _ in 0..10 {
        let mut children = [place.spawn(&mut place.run()), place.spawn(&mut other)];
        let codes = children.each_mut().map(|child| child.wait().unwrap().code());
        let bytes = fs::read(place.output()).unwrap();
        match codes {
            [Some(0), Some(2)] => assert!(bytes == place.expected),
            [Some(2), Some(0)] => assert!(bytes == others),
            other => panic!("{other:?}"),
        }
        assert_eq!(place.names(), ["out.gguf"]);
        fs::remove_file(place.output()).unwrap();
    }
}

#[test]
fn outputs_that_are_no_regular_files_are_left_alone() {
    let place = Place::new();
    succeeds(Command::new("mkfifo").arg(place.path().join("fifo")));
    symlink("in.gguf", place.path().join("to-input")).unwrap();
    symlink("nowhere", place.path().join("dangling")).unwrap();
    fs::hard_link(place.path().join("in.gguf"), place.path().join("hard-link")).unwrap();
    let before = names_in(place.path());
    let input = fs::read(place.path().join("in.gguf")).unwrap();
    for name in ["fifo", "to-input", "dangling", "hard-link", "in.gguf", "./in.gguf", "/dev/null"] {
        let mut command = ggforge();
        let output = command.current_dir(place.path()).args(["quantize", "in.gguf", "-t", "Q8_0", "--force", "-o", name]).output();
        assert_eq!(output.unwrap().status.code(), Some(2), "{name}");
        assert_eq!(names_in(place.path()), before, "{name}");
    }
    assert!(fs::read(place.path().join("in.gguf")).unwrap() == input);
}

#[test]
fn an_input_that_changes_meanwhile_gives_no_output() {
    let place = Place::new();
    let input = place.path().join("in.gguf");
    let sound = fs::read(&input).unwrap();
    let mut paint = Paint::new(5);
    let cut = |path: &Path| OpenOptions::new().write(true).open(path).unwrap().set_len(20 << 20).unwrap();
    let touch = |path: &Path| OpenOptions::new().write(true).open(path).unwrap().set_modified(SystemTime::now()).unwrap();
    let (mut n_found, mut round) = (0, 0);
    while round < 20 || n_found < 3 {
        assert!(round < 300, "only {n_found} changes fell into a run");
        round += 1;
        let mut child = place.spawn(&mut place.run());
        thread::sleep(moment(&mut paint, place.duration));
        if round % 2 == 0 {
            cut(&input)
        } else {
            touch(&input)
        }
        let code = child.wait().unwrap().code();
        match code {
            Some(0) => assert!(place.is_complete_or_absent()),
            // 3: cut before it was opened.
            Some(3 | 5) => assert_eq!(place.names(), [""; 0]),
            other => panic!("exit code {other:?}"),
        }
        n_found += usize::from(code == Some(5));
        let _ = fs::remove_file(place.output());
        fs::write(&input, &sound).unwrap();
    }
    place.a_rerun_is_complete();
}

#[test]
fn threads_cpu_levels_and_environment_do_not_change_a_byte() {
    let dir = scratch();
    symlink(fixture("hf/forge-3m"), dir.path().join("model")).unwrap();
    let hashes = |command: &mut Command| {
        succeeds(command.current_dir(dir.path()).args(["-t", "Q4_K_M,Q6_K,Q8_0,F16", "-o", "x-{type}.gguf", "-q"]));
        ["Q4_K_M", "Q6_K", "Q8_0", "F16"].map(|name| {
            let path = dir.path().join(format!("x-{name}.gguf"));
            let hash = hex(&Sha256::digest(fs::read(&path).unwrap()));
            fs::remove_file(path).unwrap();
            hash
        })
    };
    let convert = || {
        let mut command = ggforge();
        command.args(["convert", "model"]);
        command
    };
    let expected = hashes(&mut convert());
    for n in ["1", "2", "3", "7", "16", "64"] {
        for level in ["scalar", "avx2", "avx512", "neon"] {
            assert_eq!(hashes(convert().args(["--threads", n]).env("GGFORGE_SIMD", level)), expected, "{n} threads, {level}");
        }
    }
    assert_eq!(hashes(convert().args(["--max-memory", "100K"])), expected, "little memory");
    let odd = [
        ("LANG", "tr_TR.UTF-8"),
        ("LC_ALL", "de_DE.UTF-8"),
        ("TZ", "Asia/Kathmandu"),
        ("SOURCE_DATE_EPOCH", "1"),
        ("COLUMNS", "20"),
    ];
    assert_eq!(hashes(convert().envs(odd)), expected, "other locale and time zone");
    assert_eq!(hashes(convert().env_clear()), expected, "empty environment");
}

#[test]
fn a_working_directory_that_is_gone_does_not_matter() {
    let place = Place::new();
    fs::create_dir(place.path().join("gone")).unwrap();
    let root = place.path().display();
    let program = env!("CARGO_BIN_EXE_ggforge");
    let line = format!("cd gone && rmdir ../gone && {program} quantize {root}/in.gguf -t Q4_K_M -o {root}/out.gguf -q");
    succeeds(Command::new("sh").current_dir(place.path()).args(["-c", &line]));
    assert!(place.is_complete_or_absent());
}

#[test]
fn odd_names_work() {
    let place = Place::new();
    // Not UTF-8, and with an escape sequence.
    let odd = OsString::from_vec(b"a \xff\x1b[2Jb.gguf".to_vec());
    let mut command = ggforge();
    command.current_dir(place.path()).args(["quantize", "in.gguf", "-t", "Q4_K_M", "-o"]).arg(&odd);
    let output = succeeds(&mut command);
    assert!(output.stdout.is_ascii(), "escaped: {:?}", String::from_utf8_lossy(&output.stdout));
    assert!(fs::read(place.path().join(&odd)).unwrap() == place.expected);
}
