//! The tests of a GPU on a CPU in disguise.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use ggforge::cuda::Products;
use ggforge::gguf::Model;
use ggforge::model::Residency;

use crate::measure::{greedy, measure, text};
use crate::{common, converted, gpu, model_folder, shim};

/// Tells a child that its GPU is this CPU, and where its kernels are.
const KERNELS: &str = "FAKE_CUDA_KERNELS";

/// True in a child that has the fake driver.
pub fn is_disguised() -> bool {
    std::env::var_os(KERNELS).is_some()
}

/// True where work has to be small: in such a child, and under tools that slow a GPU down a hundredfold.
pub fn is_small() -> bool {
    is_disguised() || std::env::var_os("GGFORGE_GPU_SMALL").is_some()
}

/// True where it has to be so small that all of it is done in seconds: in tests of what runs the tests.
pub fn is_tiny() -> bool {
    std::env::var_os("GGFORGE_GPU_SMALL").is_some_and(|size| size == "tiny")
}

/// What makes a child see a GPU.
pub struct Disguise {
    folder: PathBuf,
    kernels: PathBuf,
}

/// The driver and the kernels, compiled; `None`, with a word about it, where there is no g++, and in children.
pub fn disguise() -> Option<&'static Disguise> {
    static DISGUISE: OnceLock<Option<Disguise>> = OnceLock::new();
    let build = || {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("driver");
        std::fs::create_dir_all(&folder).expect("a folder below target");
        let library = tempfile::NamedTempFile::new_in(&folder).expect("a writable folder").into_temp_path();
        let source = common::root().join("tests/cuda/driver.cpp");
        let options = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"];
        common::succeeds(Command::new("g++").args(options).arg(&library).arg(source));
        // cudarc looks for the first name first, and the system may have one.
        std::fs::copy(&library, folder.join("libcuda.so.1")).expect("a writable folder");
        library.persist(folder.join("libcuda.so")).expect("a writable folder");
        Disguise { folder, kernels: shim::build() }
    };
    if is_disguised() {
        return None;
    }
    DISGUISE.get_or_init(|| common::tool("g++").then(build)).as_ref()
}

impl Disguise {
    /// The program, with a GPU that is this CPU.
    pub fn program(&self, arguments: &[&str]) -> Command {
        let mut command = common::ggforge();
        command.args(arguments).env("LD_LIBRARY_PATH", &self.folder).env(KERNELS, &self.kernels);
        command
    }

    /// This test binary again, running the tests of these names.
    pub fn child(&self, tests: &[&str]) -> Command {
        let mut command = Command::new(std::env::current_exe().expect("a test binary"));
        command.args(["--exact", "--include-ignored", "--nocapture"]).args(tests);
        self.give_to(&mut command);
        command
    }

    /// Lets whatever the command starts find this GPU.
    pub fn give_to(&self, command: &mut Command) {
        command.env("LD_LIBRARY_PATH", &self.folder).env(KERNELS, &self.kernels);
    }
}

#[test]
fn a_cpu_in_disguise_passes_as_a_gpu() {
    let Some(disguise) = disguise() else { return };
    let tests = [
        "weights_have_the_bits_of_the_cpu",
        "products::products_agree_with_f64",
        "products::portable_products_agree_with_f64",
        "log_likelihoods_agree_with_the_cpu",
        "generated_text_is_that_of_the_cpu",
        "experts_compute_what_they_do_on_the_cpu",
        "families_compute_what_they_do_on_the_cpu",
        "classes::compute_what_they_do_on_the_cpu",
        "heads_that_are_too_wide_for_a_gpu_are_refused",
    ];
    passes(&mut disguise.child(&tests), tests.len());
}

#[test]
fn a_cpu_in_disguise_runs_every_layer_shape() {
    let Some(disguise) = disguise() else { return };
    let tests = ["layers::every_layer_shape_agrees_with_the_cpu", "layers::a_model_larger_than_the_memory_has_the_same_bits"];
    passes(&mut disguise.child(&tests), tests.len());
}

/// Runs tests in a child.
#[track_caller]
fn passes(child: &mut Command, n_tests: usize) {
    let output = String::from_utf8(common::succeeds(child).stdout).expect("UTF-8");
    println!("{output}");
    assert!(output.contains(&format!("{n_tests} passed")) && !output.contains("skipped: no device"), "{output}");
}

/// The way of wgmma and TMA, which GPUs of compute capability 9.0 go.
#[test]
fn a_cpu_in_disguise_passes_as_a_hopper() {
    let Some(disguise) = disguise() else { return };
    let tests = ["products::products_agree_with_f64", "layers::every_layer_shape_agrees_with_the_cpu"];
    passes(disguise.child(&tests).env("FAKE_CUDA_CAPABILITY", "9.0"), tests.len());
}

/// Every buffer ends where memory ends, and holds NaN until it is written.
#[test]
fn a_cpu_in_disguise_keeps_to_its_buffers() {
    let Some(disguise) = disguise() else { return };
    let tests = [
        "products::products_agree_with_f64",
        "generated_text_is_that_of_the_cpu",
        "experts_compute_what_they_do_on_the_cpu",
        "families_compute_what_they_do_on_the_cpu",
        "classes::compute_what_they_do_on_the_cpu",
        "layers::every_layer_shape_agrees_with_the_cpu",
    ];
    let guarded = |tests: &[&str]| {
        let mut child = disguise.child(tests);
        child.env("GGFORGE_GPU_GUARD", "1").env("GGFORGE_GPU_SMALL", "tiny");
        child
    };
    passes(&mut guarded(&tests), tests.len());
    // What is read without having been written shows.
    let output = guarded(&tests[..1]).env("FAKE_CUDA_FAULT", "rmsnorm_f16").output().expect("a child that starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success() && said.contains("FAILED F16 [3, 256]") && said.contains("NaN where"), "{said}");
}

/// One line of JSON from a child whose streams do their work in some order.
fn bits(disguise: &Disguise, order: &str, memory_kib: usize, residency: &str, batch: usize) -> serde_json::Value {
    let mut command = disguise.child(&["disguise::bits_of_a_model"]);
    command.env("FAKE_CUDA_ORDER", order).env("CASE_RESIDENCY", residency);
    command.env("CASE_MEMORY_KIB", memory_kib.to_string()).env("CASE_BATCH", batch.to_string());
    let output = String::from_utf8(common::succeeds(&mut command).stdout).expect("UTF-8");
    let line = output.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("no result: {output}"));
    serde_json::from_str(line).expect("JSON")
}

#[test]
#[ignore = "a part of others, which start it in a child"]
fn bits_of_a_model() {
    let setting = |name: &str| std::env::var(name).expect("set by the parent");
    let number = |name: &str| setting(name).parse::<usize>().expect("a number");
    let cuda = gpu(Products::Best, (number("CASE_MEMORY_KIB") as u64) << 10).expect("a GPU");
    let scratch = common::scratch();
    let folder = model_folder("stories260K").expect("checked by the parent");
    let model = Model::open(converted(&folder, "Q8_0", scratch.path())).expect("a model");
    let residency = if setting("CASE_RESIDENCY") == "resident" { Residency::Resident } else { Residency::Streamed };
    let text = text(&model, "stories260K");
    let measured = measure(&cuda, &model, residency, &text, number("CASE_BATCH"));
    let peak = cuda.memory_bytes_peak();
    let greedy = greedy(&cuda, &model, &text.tokens[..5], 4);
    cuda.synchronize().expect("a GPU that works");
    let bits = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    let figures = serde_json::json!({
        "nll": bits(&measured.nll), "argmax": measured.argmax, "kld": bits(&measured.kld), "greedy": greedy, "peak_bytes": peak,
    });
    println!("{figures}");
}

#[test]
fn no_order_of_the_streams_and_no_memory_changes_a_bit() {
    let (Some(disguise), Some(_)) = (disguise(), model_folder("stories260K")) else { return };
    let expected = bits(disguise, "eager", 60 << 10, "resident", 3);
    let cases = [
        ("lazy", 60 << 10, "resident", 3),
        ("lazy", 600, "streamed", 3),
        ("copies-first", 600, "streamed", 3),
        ("copies-last", 480, "streamed", 2),
    ];
    std::thread::scope(|scope| {
        for (order, memory_kib, residency, batch) in cases {
            let expected = &expected;
            scope.spawn(move || {
                let found = bits(disguise, order, memory_kib, residency, batch);
                println!("{order}, {memory_kib} KiB, {residency}: peak {} bytes", found["peak_bytes"]);
                for figure in ["nll", "argmax", "kld", "greedy"] {
                    assert!(found[figure] == expected[figure], "{order}, {memory_kib} KiB, {residency}: other {figure}");
                }
            });
        }
    });
}

/// What the program itself does with a GPU: the devices it lists, a text it continues, kernels it times.
#[test]
fn the_program_runs_on_a_cpu_in_disguise() {
    let (Some(disguise), Some(folder)) = (disguise(), model_folder("stories260K")) else { return };
    let run = |arguments: &[&str], memory_mib: &str| {
        let mut command = disguise.program(arguments);
        String::from_utf8(common::succeeds(command.env("FAKE_CUDA_MEMORY", memory_mib)).stdout).expect("UTF-8")
    };
    let devices = run(&["devices"], "256");
    assert!(devices.contains("CPU in disguise") && devices.contains("computing on GPU 0"), "{devices}");

    let scratch = common::scratch();
    let model = converted(&folder, "Q8_0", scratch.path());
    let model = model.to_str().expect("UTF-8");
    let generate = |device| run(&["generate", model, "--prompt", "Once upon a time", "-n", "8", "--device", device], "256");
    assert_eq!(generate("cuda"), generate("cpu"));

    let text = common::shared("text/tinystories_eval.txt").expect("the text beside the model");
    let measured = |arguments: &[&str], device| -> serde_json::Value {
        let text = ["--file", text.to_str().expect("UTF-8"), "--ctx", "32", "--chunks", "2", "--json", "--device", device];
        serde_json::from_str(&run(&[arguments, &text].concat(), "256")).expect("JSON")
    };
    let nll = |device| measured(&["perplexity", model], device)["nll"].as_f64().expect("a number");
    let (on_gpu, on_cpu) = (nll("cuda"), nll("cpu"));
    assert!((on_gpu - on_cpu).abs() < 1e-3, "perplexity: {on_gpu} where {on_cpu} is expected");
    let compared = measured(&["compare", model, model], "cuda").to_string();
    assert!(compared.contains("\"kld\""), "{compared}");
    // Bytes that are made while they are read go the same way.
    let own = converted(&folder, "F32", scratch.path());
    let of = |model: &Path| measured(&["perplexity", model.to_str().expect("UTF-8")], "cuda")["nll"].clone();
    assert_eq!(of(&folder), of(&own));
    let speed = ["bench", "model", model, "--prompt", "9", "--generate", "2", "--samples", "1", "--json", "--device", "cuda"];
    let speed: serde_json::Value = serde_json::from_str(&run(&speed, "256")).expect("JSON");
    assert_eq!((&speed["device"], speed["timings"].as_array().map(Vec::len)), (&"cuda:0".into(), Some(2)), "{speed}");
    assert!(speed["ceilings"]["flops_per_s"].as_f64().is_some_and(|flops| flops > 0.0), "{speed}");

    let folder = scratch.path().to_str().expect("UTF-8");
    let sizes = ["--samples", "1", "--shape", "tiny", "--folder", folder, "--ctx", "16", "--batch", "32"];
    let figures = scratch.path().join("figures.json");
    let output = ["--gpu-memory", "4MiB", "--output", figures.to_str().expect("UTF-8")];
    let bench = run(&[&["bench", "cuda"], sizes.as_slice(), output.as_slice()].concat(), "16");
    for expected in ["resident", "streamed", "4 multiprocessors x 1.000 GHz x 2048 operations a clock = 8.2 TFLOP/s"] {
        assert!(bench.contains(expected), "{bench}");
    }
    has_every_figure(&common::json(&figures), &bench);
}

/// Every kernel with what it moves and computes, beside what the same card copies and could compute; lines are of the same run.
fn has_every_figure(json: &serde_json::Value, text: &str) {
    let kernels = json["kernels"].as_array().expect("kernels");
    let number = |kernel: &serde_json::Value, name: &str| kernel[name].as_f64().unwrap_or_else(|| panic!("{name} of {kernel}"));
    let [copy, peak] = [number(&kernels[0], "n_bytes") / number(&kernels[0], "seconds"), 4.0 * 1e9 * 2048.0];
    let works =
        ["copy", "product", "gemv Q4_0", "gemv IQ4_XS", "dequantize Q4_K", "attention", "rope", "swiglu", "rms norm", "nll"];
    for work in works {
        let kernel = kernels.iter().find(|kernel| kernel["work"] == work).unwrap_or_else(|| panic!("no {work} in {text}"));
        let seconds = number(kernel, "seconds");
        assert!((number(kernel, "of_copying") / (number(kernel, "n_bytes") / seconds / copy) - 1.0).abs() < 1e-9, "{kernel}");
        if work != "copy" {
            let share = number(kernel, "of_computed_peak") / (number(kernel, "n_operations") / seconds / peak);
            assert!((share - 1.0).abs() < 1e-9 && number(kernel, "of_fastest_product") > 0.0, "{kernel}");
        }
        let ms = format!("{:.4}", seconds * 1e3);
        assert!(text.lines().any(|line| line.starts_with(work) && line.contains(&ms)), "{text}");
    }
}

#[test]
fn too_little_memory_says_how_much_is_needed() {
    let (Some(disguise), Some(_)) = (disguise(), model_folder("stories260K")) else { return };
    let mut command = disguise.child(&["disguise::bits_of_a_model"]);
    command.envs([("CASE_MEMORY_KIB", "100"), ("CASE_RESIDENCY", "resident"), ("CASE_BATCH", "1")]);
    let output = command.output().expect("a child that starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains("not enough GPU memory") && said.contains("--gpu-memory"), "{said}");
}
