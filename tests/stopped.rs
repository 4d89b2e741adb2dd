//! What a measurement that is stopped half way leaves: what is known by then, said as what it is, to go on with.

mod common;

use std::cell::RefCell;
use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::tiny::Tiny;
use common::{fixture, ggforge, scratch, succeeds};
use ggforge::Error;
use ggforge::eval::collect::{self, Checkpoints, OutputLayer};
use ggforge::eval::{Cut, Progress, Watch, Windows, divergence};
use ggforge::gguf::Model;
use ggforge::imatrix::Imatrix;
use ggforge::matmul::Engine;
use ggforge::model::{Activations, Backend, Cpu, Network, Residency};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value as Json;

const CTX: usize = 64;

/// The fixture model as `model.gguf`, and as `small.gguf` in fewer bits.
fn models(folder: &Path) -> [PathBuf; 2] {
    ["F16", "Q4_0"].map(|name| {
        let path = folder.join(format!("{name}.gguf"));
        succeeds(ggforge().arg("convert").arg(fixture("hf/forge-3m")).args(["--type", name, "-q", "-o"]).arg(&path));
        path
    })
}

/// Windows of the tokens that a tiny model has.
fn windows(n: usize) -> Windows {
    let tokens = (0..(n * CTX) as u32).map(|i| (i * 7 + i / 11) % 64).collect();
    Windows::of_tokens("text", tokens, None, &Cut { ctx: CTX, stride: None, windows_max: None }).expect("long enough")
}

/// Chunks of these texts: three batches and a part of one.
const N_CHUNKS: usize = 200;

/// Measures with a watch that stops when `n_tokens` have gone through; 0 for never.
fn watched<T>(n_tokens: u64, measure: impl FnOnce(Watch<'_>) -> T) -> T {
    let stop = AtomicBool::new(false);
    let progress = |progress: Progress| {
        if n_tokens > 0 && progress.done_tokens >= n_tokens {
            stop.store(true, Ordering::Relaxed);
        }
    };
    measure(Watch { progress: &progress, stop: &stop })
}

#[test]
fn a_checkpoint_is_what_the_chunks_so_far_give() {
    let dir = scratch();
    let model = Model::open(Tiny::new("llama").write(dir.path(), "tiny")).expect("our own file");
    let cpu = Cpu::new(Engine::detect(), 2, Activations::F32).expect("threads");
    let network = Network::open(&cpu, &model, CTX, Residency::Streamed).expect("a model");
    let all = windows(N_CHUNKS);
    let n_per_batch = cpu.batch_limits().n_sequences(network.hparams(), CTX);
    assert!(3 * n_per_batch < N_CHUNKS, "{n_per_batch} chunks make a batch");
    let of_first = |n: usize| {
        let mut windows = all.clone();
        windows.truncate(n);
        watched(0, |watch| collect::measure(&network, &windows, OutputLayer::Collect, "text", watch)).expect("a measurement")
    };
    let collected = |stop_at: u64| {
        let saved = RefCell::new(Vec::new());
        let save = |matrix: Imatrix| saved.borrow_mut().push(matrix);
        let checkpoints = Checkpoints { every: NonZeroUsize::new(2 * n_per_batch).expect("above 0"), save: &save };
        let output = OutputLayer::Collect;
        let found = watched(stop_at, |watch| collect::measure_saving(&network, &all, output, "text", watch, Some(checkpoints)));
        (found, saved.into_inner())
    };
    let (found, saved) = collected(0);
    assert_eq!(found.expect("a measurement"), of_first(N_CHUNKS));
    let counts: Vec<usize> = saved.iter().map(|matrix| matrix.chunk_count as usize).collect();
    assert_eq!(counts, (1..).map(|i| i * 2 * n_per_batch).take_while(|n| *n < N_CHUNKS).collect::<Vec<usize>>());
    assert!(saved.iter().all(|matrix| *matrix == of_first(matrix.chunk_count as usize)));

    // In the middle of the second batch: the first is saved, and nothing of the second.
    let in_second = (n_per_batch * CTX + n_per_batch * CTX / 2) as u64;
    let (found, saved) = collected(in_second);
    assert!(matches!(found, Err(Error::Interrupted)), "{found:?}");
    assert_eq!(saved, [of_first(n_per_batch)]);
    let (found, saved) = collected(1);
    assert!(matches!(found, Err(Error::Interrupted)) && saved.is_empty(), "no chunk was done");
}

#[test]
fn a_comparison_that_is_stopped_is_that_of_the_chunks_done() {
    let dir = scratch();
    let path = Tiny::new("llama").write(dir.path(), "base");
    let small = dir.path().join("small.gguf");
    succeeds(ggforge().arg("quantize").arg(&path).args(["--type", "Q4_0", "-q", "-o"]).arg(&small));
    let [base, small] = [path, small].map(|path| Model::open(path).expect("our own file"));
    let cpu = Cpu::new(Engine::detect(), 2, Activations::F32).expect("threads");
    let network = |model| Network::open(&cpu, model, CTX, Residency::Streamed).expect("a model");
    let (base_network, others) = (network(&base), [network(&small), network(&base)]);
    let all = windows(N_CHUNKS);
    // Of three models the second is in the middle of a later batch.
    let total = (N_CHUNKS * CTX * 3) as u64;
    let partly = watched(total * 6 / 10, |watch| divergence::measure_until_stopped(&base_network, &others, &all, watch));
    let partly = partly.expect("what was done");
    assert!((1..N_CHUNKS).contains(&partly.n_windows), "{}", partly.n_windows);
    let mut first = all.clone();
    first.truncate(partly.n_windows);
    let expected = watched(0, |watch| divergence::measure(&base_network, &others, &first, watch)).expect("a measurement");
    assert_eq!(partly, expected);
    let stopped = watched(total * 6 / 10, |watch| divergence::measure(&base_network, &others, &all, watch));
    assert!(matches!(stopped, Err(Error::Interrupted)));
    let at_once = watched(1, |watch| divergence::measure_until_stopped(&base_network, &others, &all, watch));
    assert!(matches!(at_once, Err(Error::Interrupted)), "no chunk was done");
}

/// Waits for something of a running program.
fn wait_for(child: &mut Child, is_there: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !is_there() {
        assert!(Instant::now() < deadline && child.try_wait().expect("a child").is_none(), "it has ended too soon");
        thread::sleep(Duration::from_millis(5));
    }
}

fn terminated(child: Child) -> Output {
    kill_process(Pid::from_child(&child), Signal::TERM).expect("it runs");
    child.wait_with_output().expect("an end")
}

fn started(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a program that starts")
}

#[test]
fn a_stopped_imatrix_leaves_what_it_knows_and_is_resumed() {
    let dir = scratch();
    let [model, _] = models(dir.path());
    let prose = fs::read_to_string(fixture("text/prose.txt")).expect("a text");
    let text = dir.path().join("long.txt");
    fs::write(&text, prose.repeat(20)).expect("written");
    let imatrix = |output: &str, more: &[&str]| {
        let mut command = ggforge();
        command.current_dir(dir.path()).arg("imatrix").arg(&model).args(["--file", "long.txt", "--ctx", "64", "--device", "cpu"]);
        command.args(["--output", output]).args(more);
        command
    };
    let part = dir.path().join("part.gguf");
    let mut child = started(&mut imatrix("part.gguf", &["--save-every", "1"]));
    wait_for(&mut child, || part.exists());
    let output = terminated(child);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(143), "{said}");
    let saved = Imatrix::open(&part).expect("a complete file");
    assert!(saved.chunk_count > 0 && said.contains(&format!("part.gguf holds {} chunk", saved.chunk_count)), "{said}");
    let names =
        |folder: &Path| fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry").file_name()).collect::<Vec<_>>();
    assert_eq!(names(dir.path()).len(), 4, "nothing but models, text and output: {:?}", names(dir.path()));

    // Two more batches' worth: both ways give the same up to a rounding of f32.
    let n_chunks = saved.chunk_count + 30;
    succeeds(&mut imatrix("resumed.gguf", &["--resume", "part.gguf", "--chunks", &n_chunks.to_string(), "-q"]));
    succeeds(&mut imatrix("whole.gguf", &["--chunks", &n_chunks.to_string(), "-q"]));
    let [resumed, whole] = ["resumed.gguf", "whole.gguf"].map(|name| Imatrix::open(dir.path().join(name)).expect("a file"));
    assert_eq!((resumed.chunk_count, &resumed.datasets), (whole.chunk_count, &whole.datasets));
    for (name, entry) in &whole.entries {
        let sums = entry.sums().iter().zip(resumed.entries[name].sums());
        assert!(sums.clone().all(|(a, b)| (a - b).abs() <= 3e-7 * a.abs()), "{name}");
        assert_eq!(entry.counts(), resumed.entries[name].counts(), "{name}");
    }

    // An older file is not replaced unasked.
    let refused = imatrix("part.gguf", &["--save-every", "1"]).output().expect("it starts");
    assert_eq!(refused.status.code(), Some(2));
}

#[test]
fn a_stopped_comparison_prints_what_it_knows() {
    let dir = scratch();
    let [base, small] = models(dir.path());
    let prose = fs::read_to_string(fixture("text/prose.txt")).expect("a text");
    fs::write(dir.path().join("long.txt"), prose.repeat(100)).expect("written");
    let mut compare = ggforge();
    compare.current_dir(dir.path()).arg("compare").arg(&base).arg(&small);
    compare.args(["--file", "long.txt", "--ctx", "64", "--device", "cpu", "--json", "--report", "page.html"]);
    // How long the first chunks take depends on the machine.
    let mut patience = Duration::from_millis(200);
    let output = loop {
        let child = started(&mut compare);
        thread::sleep(patience);
        let output = terminated(child);
        if output.status.code() == Some(143) && !output.stdout.is_empty() {
            break output;
        }
        assert!(patience < Duration::from_secs(60), "{}", String::from_utf8_lossy(&output.stderr));
        patience *= 2;
    };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let report: Json = serde_json::from_slice(&output.stdout).expect("JSON");
    let n_chunks = report["chunks"].as_u64().expect("a number");
    assert_eq!(report["complete"], false);
    assert!(n_chunks > 0 && said.contains(&format!("these figures are of the first {n_chunks} of ")), "{said}");
    assert!(!dir.path().join("page.html").exists(), "no page of a part");
    let whole = succeeds(compare.args(["--chunks", &n_chunks.to_string()]));
    let whole: Json = serde_json::from_slice(&whole.stdout).expect("JSON");
    assert_eq!((&whole["files"], &whole["base"]), (&report["files"], &report["base"]));
    assert_eq!((&whole["complete"], dir.path().join("page.html").exists()), (&Json::Bool(true), true));
}

/// Chunks left out are those at the start of the text, and `--chunks` counts from there.
#[test]
fn the_first_chunks_can_be_left_out() {
    let dir = scratch();
    let [model, _] = models(dir.path());
    let run = |output: &str, more: &str, code: i32| {
        let mut command = ggforge();
        command
            .current_dir(dir.path())
            .arg("imatrix")
            .arg(&model)
            .args(["--ctx", "64", "--device", "cpu", "-q", "--output", output]);
        let done = command.arg("--file").arg(fixture("text/prose.txt")).args(more.split_whitespace()).output().expect("it starts");
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(code), "{said}");
        said
    };
    run("first", "--chunks 3", 0);
    run("rest", "--first-chunk 3 --chunks 4", 0);
    run("resumed", "--resume first --chunks 7", 0);
    let [first, rest, resumed] = ["first", "rest", "resumed"].map(|name| Imatrix::open(dir.path().join(name)).expect("a file"));
    assert_eq!((first.chunk_count, rest.chunk_count, resumed.chunk_count), (3, 4, 7));
    let mut both = first;
    both.add(Imatrix { datasets: Vec::new(), ..rest }).expect("parts of one matrix");
    assert_eq!(both.entries, resumed.entries);
    let said = run("none", "--from-chunk 100000", 2);
    assert!(said.contains("--first-chunk 100000, but the text has "), "{said}");
    run("none", "--first-chunk 2 --chunks 0", 2);
}
