//! A model gives the same on a GPU as on the CPU: weights bit for bit, products within what halves allow, log-likelihoods within 1e-4 in
//! the mean; and the same bits every time, however little memory there is.
//!
//! Where there is no GPU these tests say so and pass, and the same tests run in a child process whose `libcuda.so.1` is
//! `tests/cuda/driver.cpp`: a driver that runs the kernels, compiled by g++, on this CPU. Everything above it is what a GPU gets: the
//! probe, cudarc, the memory, every launch.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

#[path = "gpu/checked.rs"]
mod checked;
#[path = "gpu/checks.rs"]
mod checks;
#[path = "gpu/classes.rs"]
mod classes;
#[path = "gpu/decode.rs"]
mod decode;
#[path = "gpu/disguise.rs"]
mod disguise;
#[path = "gpu/fallback.rs"]
mod fallback;
#[path = "gpu/layers.rs"]
mod layers;
#[path = "gpu/measure.rs"]
mod measure;
#[path = "gpu/products.rs"]
mod products;
#[path = "gpu/random_model.rs"]
mod random_model;
#[path = "gpu/references.rs"]
mod references;
#[path = "gpu/streaming.rs"]
mod streaming;

use std::path::{Path, PathBuf};

use ggforge::Error;
use ggforge::cuda::{Cuda, Driver, Products};
use ggforge::gguf::{Model, Value};
use ggforge::matmul::Engine;
use ggforge::model::{Activations, Backend, Batch, Blocks, Cpu, Matrix, Network, Residency};
use ggforge::quant::Format;
use ggforge::simd::Level;

mod common;

#[allow(dead_code, unused_macros, unused_imports)] // of which only the library is used
#[path = "kernels/shim.rs"]
mod shim;

use checked::Checked;
use common::Paint;
use common::tiny::Tiny;
use disguise::{is_small, is_tiny};
use measure::{Text, bits, check_agreement, greedy, measure, text};

/// Memory of each test: they run side by side.
const MEMORY_BYTES: u64 = 2 << 30;
const MEMORY_BYTES_SMALL: u64 = 60 << 20;

/// The GPU, or `None` with a word about it. For tools that watch it: `GGFORGE_GPU_PRODUCTS=portable`, where they do not understand the best
/// products, and `GGFORGE_GPU_GUARD=1`, where they know allocations.
fn gpu(products: Products, memory_bytes: u64) -> Option<Cuda> {
    let is_portable = std::env::var_os("GGFORGE_GPU_PRODUCTS").is_some_and(|products| products == "portable");
    let products = if is_portable { Products::Portable } else { products };
    match Driver::start().and_then(|driver| driver.choose(None)) {
        Ok(gpu) => {
            let open = if std::env::var_os("GGFORGE_GPU_GUARD").is_some() { Cuda::open_guarded } else { Cuda::open };
            Some(open(&gpu, Some(memory_bytes), products).expect("a GPU that starts"))
        }
        Err(error) => {
            common::skip_without_gpu(&format!("no device ({error})"));
            None
        }
    }
}

fn any_gpu() -> Option<Cuda> {
    gpu(Products::Best, memory_bytes())
}

fn memory_bytes() -> u64 {
    if is_small() { MEMORY_BYTES_SMALL } else { MEMORY_BYTES }
}

/// Formats that a model's weights can have.
fn formats() -> impl Iterator<Item = Format> {
    Format::ALL.iter().copied().filter(|f| f.can_dequantize() && !f.is_for_activations() && *f != Format::F64)
}

fn random_floats(len: usize, paint: &mut Paint) -> Vec<f32> {
    (0..len).map(|_| (paint.next() >> 8) as u32 as f32 / (1u32 << 31) as f32 - 0.5).collect()
}

fn matrix(format: Format, n_rows: usize, n_cols: usize, paint: &mut Paint) -> Matrix<'static> {
    let weights = random_floats(n_rows * n_cols, paint);
    let mut bytes = vec![0; format.row_bytes(n_cols as u64).expect("whole blocks") as usize * n_rows];
    format.quantize_rows(Level::detect(), &weights, n_cols, None, &mut bytes).expect("finite weights");
    Matrix { format, n_rows, n_cols, blocks: Blocks::Read(bytes) }
}

#[test]
fn weights_have_the_bits_of_the_cpu() {
    let Some(cuda) = any_gpu() else { return };
    let mut checked = Checked::new();
    for format in formats() {
        checked.run(&format.to_string(), || {
            [8, 11 * (256 / format.block_len()).max(1)].into_iter().for_each(|n_blocks| has_the_bits(&cuda, format, n_blocks));
            String::new()
        });
    }
    checked.end();
}

fn has_the_bits(cuda: &Cuda, format: Format, n_blocks: usize) {
    let mut paint = Paint::new(11 + n_blocks as u64);
    let n_cols = n_blocks * format.block_len().max(8);
    let n_rows = 7;
    let row_bytes = format.row_bytes(n_cols as u64).expect("whole blocks") as usize;
    let bytes: Vec<u8> = (0..n_rows * row_bytes).map(|_| paint.next() as u8).collect();
    let mut expected = vec![0.0; n_rows * n_cols];
    format.dequantize(Level::detect(), &bytes, &mut expected);
    let weight = cuda.weight(Matrix { format, n_rows, n_cols, blocks: Blocks::Read(bytes) }).expect("room");
    let tokens = [3, 0, 6, 6, 1];
    let found = cuda.download(&cuda.embed(&weight, &tokens).expect("rows")).expect("a GPU that works");
    let expected = tokens.iter().flat_map(|token| &expected[*token as usize * n_cols..][..n_cols]);
    for (at, (a, b)) in found.iter().zip(expected).enumerate() {
        let same = a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        assert!(same, "{n_cols} columns, weight {at}: {a} where {b} is expected");
    }
}

#[test]
fn log_likelihoods_agree_with_the_cpu() {
    let Some(cuda) = any_gpu() else { return };
    let mut checked = Checked::new();
    for_each_converted(|name, model, text, batch| {
        checked.run(name, || {
            let expected = references::expected(name, model, text, batch);
            check_agreement(&measure(&cuda, model, Residency::Resident, text, batch), &expected)
        });
    });
    checked.end();
}

/// A model in several file types, its text, and how many sequences are computed together.
fn for_each_converted(mut run: impl FnMut(&str, &Model, &Text, usize)) {
    let (name, file_types): (_, &[&str]) = match (is_tiny(), is_small()) {
        (true, _) => ("forge-3m", &["Q8_0"]),
        (false, true) => ("forge-3m", &["F16", "Q8_0", "Q4_K_M", "Q2_K", "IQ4_XS"]),
        (false, false) => ("forge-23m", &["F16", "Q8_0", "Q4_K_M", "Q2_K", "IQ4_XS"]),
    };
    let Some(folder) = model_folder(name) else { return };
    let scratch = common::scratch();
    for file_type in file_types {
        let model = Model::open(converted(&folder, file_type, scratch.path())).expect("a model");
        run(&format!("{name} {file_type}"), &model, &text(&model, name), 8);
    }
}

#[test]
fn generated_text_is_that_of_the_cpu() {
    let name = if is_small() { "stories260K" } else { "forge-23m" };
    let Some(cuda) = any_gpu() else { return };
    let Some(folder) = model_folder(name) else { return };
    let scratch = common::scratch();
    let model = Model::open(converted(&folder, "Q8_0", scratch.path())).expect("a model");
    let (prompt_len, n_tokens) = if is_tiny() { (3, 4) } else { (11, 16) };
    let prompt = &text(&model, name).tokens[..prompt_len];
    let cpu = Cpu::new(Engine::detect(), threads(), Activations::F32).expect("a CPU");
    assert_eq!(greedy(&cuda, &model, prompt, n_tokens), greedy(&cpu, &model, prompt, n_tokens));
}

/// GELU, norms with a bias, learned positions, windows, bounds of scores: for whole sequences, and token by token with a cache.
#[test]
fn families_compute_what_they_do_on_the_cpu() {
    let Some(cuda) = any_gpu() else { return };
    let scratch = common::scratch();
    let cpu = Cpu::new(Engine::detect(), threads(), Activations::F32).expect("a CPU");
    let tokens: Vec<u32> = (0..40).map(|i| (7 * i * i + 3 * i + 5) % 64).collect();
    let mut checked = Checked::new();
    for architecture in if is_tiny() { &["gemma2"][..] } else { &["gemma", "gemma2", "gemma3", "gpt2"] } {
        let mut tiny = Tiny::new(architecture);
        if matches!(*architecture, "gemma2" | "gemma3") {
            tiny.set(&format!("{architecture}.attention.sliding_window"), Value::U32(16));
        }
        if *architecture == "gemma2" {
            // Near the scores that there are.
            tiny.set("gemma2.attn_logit_softcapping", Value::F32(0.5));
            tiny.set("gemma2.final_logit_softcapping", Value::F32(2.0));
        }
        let model = Model::open(tiny.write(scratch.path(), architecture)).expect("a model");
        checked.run(&format!("{architecture}, whole"), || {
            are_close(&last_logits(&cuda, &model, &tokens), &last_logits(&cpu, &model, &tokens))
        });
        checked.run(&format!("{architecture}, extended"), || {
            are_close(&extended_logits(&cuda, &model, &tokens), &extended_logits(&cpu, &model, &tokens))
        });
    }
    checked.end();
}

/// Fails where logits are further apart than halves explain, and tells how far they are.
#[track_caller]
fn are_close(found: &[f32], expected: &[f32]) -> String {
    let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    let difference = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let note = format!("logits up to {largest} differ by {difference}");
    // NaN is far from everything.
    assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 4e-3 * largest), "{note}");
    note
}

/// A model with heads that no kernel takes is refused before anything is computed.
#[test]
fn heads_that_are_too_wide_for_a_gpu_are_refused() {
    let Some(cuda) = any_gpu() else { return };
    let scratch = common::scratch();
    let mut tiny = Tiny::new("llama");
    for (key, name, n_heads) in [("key_length", "attn_k", 2), ("value_length", "attn_v", 2), ("", "attn_q", 4)] {
        if !key.is_empty() {
            tiny.set(&format!("llama.attention.{key}"), Value::U32(520));
        }
        for layer in 0..2 {
            let name = format!("blk.{layer}.{name}.weight");
            tiny.tensors.retain(|tensor| tensor.0 != name);
            tiny.add(&name, &[n_heads * 520, 32]);
        }
    }
    for layer in 0..2 {
        let name = format!("blk.{layer}.attn_output.weight");
        tiny.tensors.retain(|tensor| tensor.0 != name);
        tiny.add(&name, &[32, 4 * 520]);
    }
    let model = Model::open(tiny.write(scratch.path(), "wide")).expect("a model");
    let Err(error) = Network::open(&cuda, &model, 64, Residency::Resident) else { panic!("heads of 520 run on a GPU") };
    assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
    let line = error.to_string();
    assert!(line.contains("520") && line.contains("--device cpu"), "{line}");
}

/// The scores after all tokens, of which the last ten come one by one.
fn extended_logits<B: Backend>(backend: &B, model: &Model, tokens: &[u32]) -> Vec<f32> {
    let network = Network::open(backend, model, tokens.len(), Residency::Resident).expect("a network");
    let mut cache = network.cache().expect("a cache");
    let (first, others) = tokens.split_at(tokens.len() - 10);
    let mut states = network.extend(first, &mut cache).expect("a prompt");
    for token in others {
        states = network.extend(&[*token], &mut cache).expect("a token");
    }
    backend.logits(&network.normalised(&states, &[0]).expect("a row"), network.output()).expect("logits")
}

/// The same tokens choose the same experts, for scores that are not as close as halves are coarse.
#[test]
fn experts_compute_what_they_do_on_the_cpu() {
    let Some(cuda) = any_gpu() else { return };
    let scratch = common::scratch();
    let cpu = Cpu::new(Engine::detect(), threads(), Activations::F32).expect("a CPU");
    let tokens: Vec<u32> = (0..40).map(|i| (7 * i * i + 3 * i + 5) % 64).collect();
    let mut checked = Checked::new();
    for architecture in if is_tiny() { &["qwen2moe"][..] } else { &["llama", "qwen2moe", "qwen3moe"] } {
        let model = Model::open(Tiny::with_experts(architecture).write(scratch.path(), architecture)).expect("a model");
        checked.run(architecture, || are_close(&last_logits(&cuda, &model, &tokens), &last_logits(&cpu, &model, &tokens)));
    }
    checked.end();
}

fn last_logits<B: Backend>(backend: &B, model: &Model, tokens: &[u32]) -> Vec<f32> {
    let network = Network::open(backend, model, tokens.len(), Residency::Resident).expect("a network");
    let whole = 0..tokens.len();
    let states = network.evaluate(Batch { tokens, sequences: std::slice::from_ref(&whole) }, &mut ()).expect("a pass");
    let last = network.normalised(&states, &[tokens.len() as u32 - 1]).expect("a row");
    backend.logits(&last, network.output()).expect("logits")
}

/// Not in small: a disguised CPU has tests of its own for this.
#[test]
fn neither_repetition_nor_memory_changes_a_bit() {
    if is_small() {
        common::skip_without_gpu("too slow in small");
        return;
    }
    let Some(folder) = common::shared("models/forge-23m") else { return };
    let scratch = common::scratch();
    let model = Model::open(converted(&folder, "Q4_K_M", scratch.path())).expect("a model");
    let text = text(&model, "forge-23m");
    let mut expected: Option<[Vec<u64>; 2]> = None;
    for (memory_bytes, residency, windows) in [
        (MEMORY_BYTES, Residency::Resident, 16),
        (MEMORY_BYTES, Residency::Resident, 16),
        (MEMORY_BYTES, Residency::Streamed, 16),
        (96 << 20, Residency::Streamed, 1),
        (200 << 20, Residency::Streamed, 3),
    ] {
        let Some(cuda) = gpu(Products::Best, memory_bytes) else { return };
        let found = bits(&measure(&cuda, &model, residency, &text, windows));
        let peak = cuda.memory_bytes_peak();
        println!("{memory_bytes} bytes, {residency:?}, {windows} windows at a time: peak {peak} bytes");
        assert!(*expected.get_or_insert_with(|| found.clone()) == found, "{memory_bytes} bytes, {residency:?}: other bits");
    }
}

fn model_folder(name: &str) -> Option<PathBuf> {
    let own = common::fixture(&format!("hf/{name}"));
    if own.exists() { Some(own) } else { common::shared(&format!("models/{name}")) }
}

fn converted(folder: &Path, file_type: &str, to: &Path) -> PathBuf {
    let path = to.join(format!("{file_type}.gguf"));
    common::succeeds(common::ggforge().arg("convert").arg(folder).args(["--quiet", "--type", file_type, "--output"]).arg(&path));
    path
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
