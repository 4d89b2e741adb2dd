//! Models and GPUs that do not go together, through the program: `--device auto` computes on the CPU and says why, `--device cuda` fails
//! with one line. And how much memory those that do go together take.

use std::path::{Path, PathBuf};
use std::process::Command;

use ggforge::gguf::{Array, Value};

use crate::common::tiny::Tiny;
use crate::common::{scratch, succeeds};
use crate::disguise::{Disguise, disguise};
use crate::{converted, model_folder};

const USAGE: i32 = 2;
const UNSUPPORTED: i32 = 3;
const NO_GPU: i32 = 7;

/// A word for each of 64 tokens: letters, digits, the blank and the full stop.
fn with_words(mut tiny: Tiny) -> Tiny {
    let words = ('a'..='z').chain('A'..='Z').chain('0'..='9').chain(['Ġ', '.']);
    let words: Vec<Vec<u8>> = words.map(|c| c.to_string().into_bytes()).collect();
    assert_eq!(words.len(), 64);
    tiny.set("tokenizer.ggml.model", Value::from("gpt2"));
    tiny.set("tokenizer.ggml.pre", Value::from("gpt-2"));
    tiny.set("tokenizer.ggml.tokens", Value::Array(Array::String(words)));
    tiny.set("tokenizer.ggml.merges", Value::Array(Array::String(Vec::new())));
    tiny
}

/// A model whose heads are as wide as that.
fn with_heads(head_dim: u32) -> Tiny {
    let mut tiny = Tiny::new("llama");
    for (key, value) in [("head_count", 1), ("head_count_kv", 1), ("key_length", head_dim), ("value_length", head_dim)] {
        tiny.set(&format!("llama.attention.{key}"), Value::U32(value));
    }
    tiny.tensors.retain(|(name, ..)| !["attn_q", "attn_k", "attn_v", "attn_output"].iter().any(|part| name.contains(part)));
    let n = u64::from(head_dim);
    for layer in 0..2 {
        ["attn_q", "attn_k", "attn_v"].iter().for_each(|part| tiny.add(&format!("blk.{layer}.{part}.weight"), &[n, 32]));
        tiny.add(&format!("blk.{layer}.attn_output.weight"), &[32, n]);
    }
    tiny
}

/// A model with a matrix whose rows no product writes in pairs.
fn with_odd_network() -> Tiny {
    let mut tiny = Tiny::new("llama");
    tiny.set("llama.feed_forward_length", Value::U32(47));
    tiny.tensors.retain(|(name, ..)| !["ffn_gate", "ffn_up", "ffn_down"].iter().any(|part| name.contains(part)));
    for layer in 0..2 {
        ["ffn_gate", "ffn_up"].iter().for_each(|part| tiny.add(&format!("blk.{layer}.{part}.weight"), &[47, 32]));
        tiny.add(&format!("blk.{layer}.ffn_down.weight"), &[32, 47]);
    }
    tiny
}

/// Twenty megabytes, of which a token uses little.
fn of_20_mb() -> Tiny {
    const N_EXPERT: u64 = 528;
    let mut tiny = Tiny::with_experts("llama");
    tiny.set("llama.expert_count", Value::U32(N_EXPERT as u32));
    tiny.set("llama.expert_used_count", Value::U32(1));
    tiny.tensors.retain(|(name, ..)| !name.contains("_exps.") && !name.contains("_inp."));
    for layer in 0..2 {
        let mut add = |part: &str, shape: &[u64]| tiny.add(&format!("blk.{layer}.{part}.weight"), shape);
        add("ffn_gate_inp", &[N_EXPERT, 32]);
        ["ffn_gate_exps", "ffn_up_exps"].iter().for_each(|part| add(part, &[N_EXPERT, 48, 32]));
        add("ffn_down_exps", &[N_EXPERT, 32, 48]);
    }
    tiny
}

/// A folder with a text, and the commands that run a model.
struct Place {
    folder: tempfile::TempDir,
    disguise: &'static Disguise,
}

impl Place {
    fn new(disguise: &'static Disguise) -> Place {
        let folder = scratch();
        std::fs::write(folder.path().join("text.txt"), "The quick brown fox jumps over the lazy dog. ".repeat(4)).expect("a file");
        Place { folder, disguise }
    }

    fn write(&self, tiny: Tiny) -> PathBuf {
        with_words(tiny).write(self.folder.path(), "model")
    }

    /// Both ways to run a model.
    fn commands(&self, model: &Path, device: &str) -> [Command; 2] {
        let [model, text] = [model, &self.folder.path().join("text.txt")].map(|path| path.to_str().expect("UTF-8").to_owned());
        let on = ["--device", device];
        let measuring = [&["perplexity", &model, "--file", &text, "--ctx", "32", "--chunks", "2"][..], &on].concat();
        let generating = [&["generate", &model, "--prompt", "The quick brown fox", "-n", "4"][..], &on].concat();
        [self.disguise.program(&measuring), self.disguise.program(&generating)]
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// What the driver was asked for since the last time, line by line.
    fn logged(&self, kind: &str) -> Vec<String> {
        let log = std::fs::read_to_string(self.log()).expect("a log");
        log.lines().filter_map(|line| line.strip_prefix(kind)).map(|rest| rest.trim().to_owned()).collect()
    }
}

/// On a GPU the command fails with that exit code and one line that begins like this; otherwise it computes on the CPU for the same reason.
#[track_caller]
fn falls_back(on_gpu: &mut Command, otherwise: &mut Command, exit_code: i32, why: &str) {
    let failed = on_gpu.output().expect("a program that starts");
    let said = String::from_utf8(failed.stderr).expect("UTF-8");
    assert_eq!(failed.status.code(), Some(exit_code), "{said}");
    assert!(said.starts_with(&format!("error: {why}")) && said.lines().count() == 1, "{said}");
    assert!(said.contains("--device cpu") && failed.stdout.is_empty(), "{said}");

    let done = succeeds(otherwise);
    let told = String::from_utf8(done.stderr).expect("UTF-8");
    let reason = said.trim_start_matches("error: ").split(';').next().expect("a first part");
    assert_eq!(told.lines().filter(|line| *line == format!("computing on the CPU: {reason}")).count(), 1, "{said}{told}");
    assert!(!done.stdout.is_empty());
}

#[test]
fn what_no_kernel_does_is_done_by_the_cpu() {
    let Some(disguise) = disguise() else { return };
    let place = Place::new(disguise);
    for (tiny, lack) in [
        (with_heads(520), "attention with heads of 520"),
        (with_heads(12), "attention with heads of 12"),
        (with_odd_network(), "products with a matrix [47, 32] in F32"),
    ] {
        let model = place.write(tiny);
        let why = format!("running architecture llama on a GPU: no kernel does {lack}; ");
        for (mut cuda, mut auto) in place.commands(&model, "cuda").into_iter().zip(place.commands(&model, "auto")) {
            falls_back(&mut cuda, &mut auto, UNSUPPORTED, &why);
        }
    }
}

/// Every family, and the widest heads that there are kernels for.
#[test]
fn what_kernels_do_is_done_by_the_gpu() {
    let Some(disguise) = disguise() else { return };
    let place = Place::new(disguise);
    for tiny in [Tiny::new("gemma"), Tiny::new("gemma2"), Tiny::new("gemma3"), Tiny::new("gpt2"), with_heads(512)] {
        let model = place.write(tiny);
        for mut auto in place.commands(&model, "auto") {
            let told = String::from_utf8(succeeds(&mut auto).stderr).expect("UTF-8");
            assert!(told.contains("computing on GPU 0: "), "{told}");
        }
    }
}

#[test]
fn a_full_gpu_leaves_the_work_to_another_or_to_the_cpu() {
    let Some(disguise) = disguise() else { return };
    let place = Place::new(disguise);
    let model = place.write(Tiny::new("llama"));
    for (mut cuda, mut auto) in place.commands(&model, "cuda").into_iter().zip(place.commands(&model, "auto")) {
        for command in [&mut cuda, &mut auto] {
            command.envs([("FAKE_CUDA_MEMORY", "256"), ("FAKE_CUDA_USED", "256")]);
        }
        falls_back(&mut cuda, &mut auto, NO_GPU, "not enough GPU memory: ");
        // Where the second of two is free, it is taken.
        for command in [&mut cuda, &mut auto] {
            succeeds(command.env("FAKE_CUDA_USED", "256,0"));
        }
        let told = String::from_utf8(succeeds(&mut auto).stderr).expect("UTF-8");
        assert!(told.starts_with("computing on GPU 1: "), "{told}");
    }
    let [mut measuring, _] = place.commands(&model, "cuda:0");
    let output = measuring.env("FAKE_CUDA_USED", "256,0").output().expect("a program that starts");
    assert_eq!(output.status.code(), Some(NO_GPU));
    for device in ["cuda", "auto"] {
        let [mut measuring, _] = place.commands(&model, device);
        let output = measuring.args(["--gpu-memory", "300MiB"]).output().expect("a program that starts");
        let said = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(if device == "auto" { 0 } else { NO_GPU }), "{said}");
        assert!(said.contains("315 MB of GPU memory were asked for, but 268 MB are free"), "{said}");
    }
}

#[test]
fn a_model_larger_than_the_gpu_is_generated_with_by_the_cpu() {
    let (Some(disguise), Some(folder)) = (disguise(), model_folder("forge-3m")) else { return };
    let place = Place::new(disguise);
    let model = converted(&folder, "F16", place.folder.path());
    let commands = [place.commands(&model, "cuda"), place.commands(&model, "auto")];
    let [[_, mut cuda], [_, mut auto]] = commands;
    for command in [&mut cuda, &mut auto] {
        command.env("FAKE_CUDA_MEMORY", "6");
    }
    falls_back(&mut cuda, &mut auto, NO_GPU, "not enough GPU memory: ");
}

/// The least that the program says it needs is enough for it, and taken in one piece.
#[test]
fn as_much_memory_as_is_asked_for_is_enough() {
    let (Some(disguise), Some(folder)) = (disguise(), model_folder("forge-3m")) else { return };
    let place = Place::new(disguise);
    let models = [
        place.write(Tiny::with_experts("qwen2moe")),
        with_words(Tiny::new("phi3")).write(place.folder.path(), "fused"),
        converted(&folder, "Q8_0", place.folder.path()),
    ];
    for model in models {
        for (turn, command) in place.commands(&model, "cuda").iter_mut().enumerate() {
            let refused = command.args(["--gpu-memory", "1KiB"]).output().expect("a program that starts");
            let said = String::from_utf8(refused.stderr).expect("UTF-8");
            assert_eq!(refused.status.code(), Some(NO_GPU), "{said}");
            let needed = said.strip_prefix("error: not enough GPU memory: ").and_then(|rest| rest.split(" are needed").next());
            let (number, unit) = needed.and_then(|needed| needed.split_once(' ')).unwrap_or_else(|| panic!("{said}"));
            let unit: f64 = if unit == "MB" { 1e6 } else { 1e3 };
            // Three digits are said.
            let needed_bytes = (number.parse::<f64>().expect("a number") * 1.005 * unit).ceil() as u64;

            let [measuring, generating] = place.commands(&model, "cuda");
            let mut command = if turn == 0 { measuring } else { generating };
            let _ = std::fs::remove_file(place.log());
            succeeds(command.args(["--gpu-memory", &needed_bytes.to_string()]).env("FAKE_CUDA_LOG", place.log()));
            assert_eq!(place.logged("alloc ").len(), 1, "{}: more than the plan", model.display());
        }
    }
}

#[test]
fn a_model_of_20_mb_takes_less_than_a_gibibyte() {
    let Some(disguise) = disguise() else { return };
    let place = Place::new(disguise);
    let model = place.write(of_20_mb());
    let n_bytes = model.metadata().expect("a file").len();
    assert!((19_000_000..21_000_000).contains(&n_bytes), "{n_bytes}");
    let mut taken_mib = 0;
    for mut first in place.commands(&model, "cuda") {
        let _ = std::fs::remove_file(place.log());
        succeeds(first.envs([("FAKE_CUDA_MEMORY", "81920")]).env("FAKE_CUDA_LOG", place.log()));
        let taken: Vec<u64> = place.logged("alloc ").iter().map(|len| len.parse().expect("a number")).collect();
        println!("{n_bytes} bytes of model: {taken:?} bytes of GPU memory");
        assert_eq!(taken.len(), 1, "{taken:?}: more than the plan");
        assert!((n_bytes..1 << 30).contains(&taken[0]), "{taken:?}");
        taken_mib = taken[0].div_ceil(1 << 20);
    }
    // Beside it on a GPU of half a gibibyte, another starts.
    let [_, mut second] = place.commands(&model, "cuda");
    succeeds(second.envs([("FAKE_CUDA_MEMORY", "512"), ("FAKE_CUDA_USED", &taken_mib.to_string())]));
}

#[test]
fn the_environment_chooses_the_products() {
    let Some(disguise) = disguise() else { return };
    let place = Place::new(disguise);
    let model = place.write(Tiny::new("llama"));
    for (value, expected) in [("portable", false), ("best", true), ("", true)] {
        let [mut measuring, _] = place.commands(&model, "cuda");
        let _ = std::fs::remove_file(place.log());
        measuring.envs([("GGFORGE_GPU_PRODUCTS", value), ("FAKE_CUDA_CAPABILITY", "9.0")]).env("FAKE_CUDA_LOG", place.log());
        succeeds(&mut measuring);
        let products: Vec<String> = place.logged("launch ").into_iter().filter(|name| name.starts_with("gemm_")).collect();
        assert!(!products.is_empty() && products.iter().all(|name| name.contains("sm90") == expected), "{value}: {products:?}");
    }
    for device in ["cuda", "auto", "cpu"] {
        for mut command in place.commands(&model, device) {
            let output = command.env("GGFORGE_GPU_PRODUCTS", "fast\u{1b}").output().expect("a program that starts");
            let said = String::from_utf8(output.stderr).expect("UTF-8");
            assert_eq!(output.status.code(), Some(USAGE), "{said}");
            assert_eq!(said, "error: GGFORGE_GPU_PRODUCTS is fast\\u{1b}; best or portable is needed\n");
        }
    }
}
