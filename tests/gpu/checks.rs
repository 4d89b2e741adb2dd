//! `tools/dev/gpu-checks` on a CPU in disguise: it ends within its time, tells what was done, failed and was skipped, and names what a
//! kernel that is broken breaks.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::common;
use crate::disguise::{Disguise, disguise};

/// A folder with what a packet has, built for the tests, and one for what is found.
struct Packet {
    folder: tempfile::TempDir,
    out: tempfile::TempDir,
}

impl Packet {
    fn new() -> Packet {
        let [folder, out] = [common::scratch(), common::scratch()];
        let link = |to: &Path, name: &str| std::os::unix::fs::symlink(to, folder.path().join(name)).expect("a link");
        link(&std::env::current_exe().expect("a test binary"), "gpu");
        link(Path::new(env!("CARGO_BIN_EXE_ggforge")), "ggforge");
        link(&common::root().join("../shared"), "shared");
        Packet { folder, out }
    }

    /// `limit_seconds` for the whole command, whatever it is told.
    fn command(&self, disguise: &Disguise, limit_seconds: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.arg(limit_seconds).arg(common::root().join("tools/dev/gpu-checks")).arg("run").args(arguments);
        disguise.give_to(&mut command);
        command.env("GPU_CHECKS_PACKET", self.folder.path()).env("OUT", self.out.path());
        command.env("GPU_CHECKS_BENCH", "--samples 1 --gpu-memory 2MiB").env("GGFORGE_GPU_SMALL", "tiny");
        command.env_remove("CUDA_LAUNCH_BLOCKING");
        command
    }

    fn table(&self) -> String {
        std::fs::read_to_string(self.out.path().join("table.txt")).expect("a table")
    }
}

/// The cases of each list at the end.
fn lists(output: &Output) -> BTreeMap<String, Vec<String>> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lists: BTreeMap<String, Vec<String>> = text
        .lines()
        .skip_while(|line| !line.starts_with("done "))
        .map(|line| {
            let (head, names) = line.split_once(": ").unwrap_or_else(|| panic!("a list: {line}\n{text}"));
            let names: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
            let (list, n) = head.split_once(' ').unwrap_or_else(|| panic!("a count: {line}\n{text}"));
            assert_eq!(n.trim().parse(), Ok(names.len()), "{line}");
            (list.to_owned(), names)
        })
        .collect();
    assert_eq!(
        lists.keys().collect::<Vec<_>>(),
        ["done", "failed", "skipped"],
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    lists
}

const FIRST: &[&str] = &[
    "devices",
    "weights",
    "products",
    "portable-products",
    "generation",
    "experts",
    "log-likelihoods",
    "families",
    "classes",
    "repetition",
    "kernels",
    "layer-shapes",
];

#[test]
fn a_run_ends_by_itself_and_lists_what_it_did() {
    let Some(disguise) = disguise() else { return };
    let packet = Packet::new();
    let output = packet.command(disguise, "60", &["--seconds", "55", "first"]).output().expect("a command that starts");
    let lists = lists(&output);
    let table = packet.table();
    println!("{table}");
    assert_eq!(table, String::from_utf8_lossy(&output.stdout));
    // On a busy machine the last ones are stopped.
    let is_sound = |line: &&str| !line.contains(" FAILED ") || line.contains("stopped after");
    assert!(table.lines().all(|line| is_sound(&line)), "{table}");
    assert_eq!(output.status.code(), Some(i32::from(!lists["failed"].is_empty())), "{table}");
    let mut all: Vec<&str> = lists.values().flatten().map(String::as_str).filter(|name| !name.ends_with(",blocking")).collect();
    all.sort_by_key(|name| FIRST.iter().position(|first| first == name));
    assert_eq!(all, FIRST, "each case once");
    for name in ["devices", "weights"] {
        assert!(lists["done"].iter().any(|done| done == name), "{table}");
    }
    assert!(table.contains("CPU in disguise"), "{table}");
}

#[test]
fn what_does_not_fit_into_the_time_is_skipped_and_what_takes_too_long_is_stopped() {
    let Some(disguise) = disguise() else { return };
    let packet = Packet::new();
    let started = Instant::now();
    let output = packet.command(disguise, "60", &["--seconds", "16", "devices", "products", "layer-shapes"]).output();
    let lists = lists(&output.expect("a command that starts"));
    // 16 s of its own clock; the three would take minutes.
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    assert_eq!(lists["skipped"], ["products", "layer-shapes"], "{}", packet.table());

    // A command that is ended from outside.
    let output = packet.command(disguise, "2", &["--seconds", "400", "log-likelihoods", "layer-shapes"]).output();
    let text = String::from_utf8(output.expect("a command that starts").stdout).expect("UTF-8");
    assert!(text.contains("\nfailed   1: log-likelihoods\nskipped  1: layer-shapes\n"), "{text}");
    assert_eq!(text, packet.table());
}

/// A kernel that does nothing, and what it fails alone, or among others.
struct Fault {
    kernel: &'static str,
    capability: &'static str,
    failed: &'static [&'static str],
    /// In the lines of a case that failed.
    named: &'static str,
    /// What fails with it, as it uses the kernel too.
    may_fail: &'static [&'static str],
}

const FAULTS: &[Fault] = &[
    Fault { kernel: "dequant_f32_Q5_K", capability: "8.0", failed: &["weights"], named: "FAILED Q5_K: ", may_fail: &[] },
    Fault {
        kernel: "gemv_IQ4_XS",
        capability: "8.0",
        failed: &["products", "portable-products"],
        named: "FAILED IQ4_XS [3, 256]",
        may_fail: &[],
    },
    Fault {
        kernel: "gemm_sm90",
        capability: "9.0",
        failed: &["products"],
        named: "FAILED F16 [33, 256]",
        may_fail: &["generation", "experts", "log-likelihoods"],
    },
    Fault {
        kernel: "add_rows_f32",
        capability: "8.0",
        failed: &["experts"],
        named: "FAILED qwen2moe: logits up to",
        may_fail: &[],
    },
    Fault { kernel: "nll_rows", capability: "8.0", failed: &["log-likelihoods"], named: "FAILED forge-3m Q8_0: ", may_fail: &[] },
];

#[test]
fn a_broken_kernel_is_named_and_the_other_cases_run() {
    let Some(disguise) = disguise() else { return };
    std::thread::scope(|scope| {
        for fault in FAULTS {
            scope.spawn(move || names_what_is_broken(disguise, fault));
        }
    });
}

fn names_what_is_broken(disguise: &Disguise, fault: &Fault) {
    let packet = Packet::new();
    let cases = &FIRST[..7];
    let mut command = packet.command(disguise, "400", &[&["--seconds", "390"], cases].concat());
    command.env("FAKE_CUDA_FAULT", fault.kernel).env("FAKE_CUDA_CAPABILITY", fault.capability);
    let output = command.output().expect("a command that starts");
    let (lists, table) = (lists(&output), packet.table());
    assert_eq!(output.status.code(), Some(1), "{}: {table}", fault.kernel);
    assert!(table.lines().any(|line| line.trim_start().starts_with(fault.named)), "{}: {table}", fault.kernel);
    for case in cases {
        let has = |list: &str| lists[list].iter().any(|name| name == case);
        let as_expected =
            if fault.failed.contains(case) { has("failed") } else { has("done") || fault.may_fail.contains(case) && has("failed") };
        assert!(as_expected, "{}, {case}: {table}", fault.kernel);
    }
}

/// Later calls fail, and only with CUDA_LAUNCH_BLOCKING=1 is it the kernel's own.
#[test]
fn a_fault_that_shows_later_has_its_name_the_second_time() {
    let Some(disguise) = disguise() else { return };
    let packet = Packet::new();
    let mut command = packet.command(disguise, "100", &["--seconds", "90", "weights", "generation"]);
    let output = command.env("FAKE_CUDA_FAULT", "rmsnorm_f16:illegal").output().expect("a command that starts");
    let (lists, table) = (lists(&output), packet.table());
    assert_eq!(lists["failed"], ["generation", "generation,blocking"], "{table}");
    assert_eq!(lists["done"], ["weights"], "{table}");
    let [first, second] = ["\ngeneration ", "\ngeneration,blocking "].map(|head| table.split_once(head).expect("a line").1);
    assert!(first.split_once("\ngeneration,").expect("two").0.contains("the GPU failed"), "{table}");
    assert!(second.contains("cannot start rmsnorm_f16: the driver says CUDA_ERROR_ILLEGAL_ADDRESS (700)"), "{table}");
}
