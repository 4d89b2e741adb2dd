//! The forward pass agrees with transformers' in float32, and its digits depend on nothing but the model and the tokens.

use std::ops::Range;
use std::path::{Path, PathBuf};

use ggforge::error::{Error, Fault};
use ggforge::gguf::{Array, Model, Value};
use ggforge::matmul::Engine;
use ggforge::model::{Activations, Backend, Batch, Cpu, Network, Residency, architectures};

mod common;
use common::checkpoint;
use common::tiny::{Tiny, family_case};

/// Largest difference allowed between our logits and transformers', which are about 10 in magnitude.
const LOGITS_TOLERANCE: f32 = 1e-4;

/// What tools/dev/logits.py recorded.
struct Golden {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    logits: Vec<f32>,
    prompt: Vec<u32>,
    continuation: Vec<u32>,
}

fn golden(name: &str) -> Golden {
    let json = common::json(&common::fixture(&format!("model/{name}.json")));
    let ids = |value: &serde_json::Value| value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    let bytes = std::fs::read(common::fixture(&format!("model/{name}.f32"))).unwrap();
    Golden {
        tokens: ids(&json["tokens"]),
        positions: ids(&json["positions"]),
        logits: bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        prompt: ids(&json["greedy"]["prompt"]),
        continuation: ids(&json["greedy"]["tokens"]),
    }
}

/// The folders of the models whose logits are recorded.
fn folders() -> Vec<PathBuf> {
    let shared = ["forge-23m", "stories260K", "tinystories-656K"].map(|name| common::shared(&format!("models/{name}")));
    std::iter::once(common::fixture("hf/forge-3m")).chain(shared.into_iter().flatten()).collect()
}

fn name(folder: &Path) -> &str {
    folder.file_name().unwrap().to_str().unwrap()
}

/// The model of a folder as a GGUF file.
fn converted(folder: &Path, format: &str, to: &Path) -> PathBuf {
    let path = to.join(format!("{}-{format}.gguf", name(folder)));
    common::succeeds(common::ggforge().arg("convert").arg(folder).args(["--quiet", "--type", format, "--output"]).arg(&path));
    path
}

fn cpu(engine: Engine, threads: usize) -> Cpu {
    Cpu::new(engine, threads, Activations::F32).unwrap()
}

fn logits(network: &Network<'_, Cpu>, tokens: &[u32], sequences: &[Range<usize>], rows: &[u32]) -> Vec<f32> {
    let states = network.evaluate(Batch { tokens, sequences }, &mut ()).unwrap();
    let normalised = network.normalised(&states, rows).unwrap();
    network.backend().logits(&normalised, network.output()).unwrap()
}

#[test]
fn logits_equal_those_of_transformers() {
    let scratch = common::scratch();
    for folder in folders() {
        let golden = golden(name(&folder));
        let model = Model::open(converted(&folder, "F32", scratch.path())).unwrap();
        let cpu = cpu(Engine::detect(), 2);
        let network = Network::open(&cpu, &model, golden.tokens.len(), Residency::Streamed).unwrap();
        let found = logits(&network, &golden.tokens, std::slice::from_ref(&(0..golden.tokens.len())), &golden.positions);
        let difference = found.iter().zip(&golden.logits).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{}: logits differ by at most {difference}", name(&folder));
        assert_eq!(found.len(), golden.logits.len());
        assert!(difference < LOGITS_TOLERANCE, "{}: {difference}", name(&folder));
    }
}

#[test]
fn greedy_text_equals_that_of_transformers() {
    let scratch = common::scratch();
    for folder in folders() {
        let golden = golden(name(&folder));
        let model = Model::open(converted(&folder, "F32", scratch.path())).unwrap();
        let cpu = cpu(Engine::detect(), 1);
        let n_ctx = golden.prompt.len() + golden.continuation.len();
        let network = Network::open(&cpu, &model, n_ctx, Residency::Resident).unwrap();
        let mut cache = network.cache().unwrap();
        let mut next = golden.prompt.clone();
        let mut found = Vec::new();
        while found.len() < golden.continuation.len() {
            let states = network.extend(&next, &mut cache).unwrap();
            let last = network.normalised(&states, &[next.len() as u32 - 1]).unwrap();
            let logits = cpu.logits(&last, network.output()).unwrap();
            let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32;
            found.push(best);
            next = vec![best];
        }
        assert_eq!(found, golden.continuation, "{}", name(&folder));
    }
}

#[test]
fn digits_depend_on_nothing_but_model_and_tokens() {
    let scratch = common::scratch();
    let tokens = &golden("forge-3m").tokens[..100];
    check_digits(&converted(&common::fixture("hf/forge-3m"), "Q4_K_M", scratch.path()), tokens);
    // Some of its experts get a single one of many tokens.
    let tokens: Vec<u32> = tokens.iter().map(|token| token % 64).collect();
    check_digits(&Tiny::with_experts("qwen2moe").write(scratch.path(), "experts"), &tokens);
    // A window ends within a block of keys, and leaves others out.
    let mut windows = Tiny::new("gemma3");
    windows.set("gemma3.attention.sliding_window", Value::U32(24));
    windows.set("gemma3.attention.sliding_window_pattern", Value::Array(Array::Bool(vec![true, false])));
    check_digits(&windows.write(scratch.path(), "windows"), &tokens);
}

/// One pass, several batches of it, a cache, other sequences beside it, any level, any number of threads: the same bits. Only a token
/// that comes alone is summed in another order.
fn check_digits(path: &Path, tokens: &[u32]) {
    let model = Model::open(path).unwrap();
    let rows: Vec<u32> = (0..100).collect();
    let mut expected: Option<Vec<u32>> = None;
    let mut check = |what: &str, found: Vec<f32>| {
        let bits: Vec<u32> = found.into_iter().map(f32::to_bits).collect();
        assert!(*expected.get_or_insert_with(|| bits.clone()) == bits, "{what} gives other logits");
    };
    // AMX is as fixed, but keeps fewer bits.
    for engine in Engine::available().into_iter().filter(|engine| engine.name() != "amx") {
        for threads in [1, 2, 4] {
            let cpu = cpu(engine, threads);
            let network = Network::open(&cpu, &model, 100, Residency::Streamed).unwrap();
            let what = format!("{} with {threads} threads", engine.name());
            check(&what, logits(&network, tokens, std::slice::from_ref(&(0..100)), &rows));
        }
    }
    let cpu = cpu(Engine::detect(), 2);
    let network = Network::open(&cpu, &model, 100, Residency::Resident).unwrap();
    // Between two other sequences, of which one is longer.
    let crowd: Vec<u32> = [&tokens[50..], tokens, &tokens[..17]].concat();
    let crowd_rows: Vec<u32> = (50..150).collect();
    check("another sequence beside it", logits(&network, &crowd, &[0..50, 50..150, 150..167], &crowd_rows));
    let in_parts = |parts: &[usize]| {
        let (mut cache, mut all) = (network.cache().unwrap(), Vec::new());
        for ends in parts.windows(2) {
            let states = network.extend(&tokens[ends[0]..ends[1]], &mut cache).unwrap();
            let part_rows: Vec<u32> = (0..(ends[1] - ends[0]) as u32).collect();
            all.extend(cpu.logits(&network.normalised(&states, &part_rows).unwrap(), network.output()).unwrap());
        }
        all
    };
    check("a cache", in_parts(&[0, 2, 5, 70, 100]));
    let alone = in_parts(&[0, 1, 2, 3, 99, 100]);
    let differs = |(found, expected): (&f32, &u32)| (found - f32::from_bits(*expected)).abs() > LOGITS_TOLERANCE;
    assert!(!alone.iter().zip(expected.iter().flatten()).any(differs), "tokens that come alone give other logits");
}

/// Scores come from the logits, and a model does not diverge from itself.
#[test]
fn scores_are_those_of_the_logits() {
    let scratch = common::scratch();
    let golden = golden("forge-3m");
    let folder = common::fixture("hf/forge-3m");
    let models = ["F32", "Q2_K"].map(|format| Model::open(converted(&folder, format, scratch.path())).unwrap());
    let cpu = cpu(Engine::detect(), 2);
    let networks = models.each_ref().map(|model| Network::open(&cpu, model, 192, Residency::Streamed).unwrap());
    let (tokens, targets) = (&golden.tokens[..100], &golden.tokens[1..101]);
    let rows: Vec<u32> = (0..100).collect();
    let operands = networks.each_ref().map(|network| {
        let states = network.evaluate(Batch { tokens, sequences: std::slice::from_ref(&(0..100)) }, &mut ()).unwrap();
        network.normalised(&states, &rows).unwrap()
    });
    let [a, b] = std::array::from_fn(|i| (&operands[i], networks[i].output()));
    let log_softmax = |logits: &[f32]| -> Vec<f64> {
        let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        logits.iter().map(|x| f64::from(*x) - sum.ln()).collect()
    };
    let [logits_a, logits_b] = [a, b].map(|(x, w)| cpu.logits(x, w).unwrap());
    let scores = cpu.score(a.0, a.1, targets).unwrap();
    let divergences = cpu.compare(a, b, targets).unwrap();
    for (row, (score, divergence)) in scores.iter().zip(&divergences).enumerate() {
        let n_vocab = networks[0].hparams().n_vocab;
        let [p, q] = [&logits_a, &logits_b].map(|logits| log_softmax(&logits[row * n_vocab..][..n_vocab]));
        let kld: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
        let target = targets[row] as usize;
        assert!((score.nll + p[target]).abs() < 1e-12 * score.nll.max(1.0), "{row}: {} is not {}", score.nll, -p[target]);
        assert!((0..n_vocab).all(|token| p[token] <= p[score.argmax as usize]));
        assert_eq!(divergence.a, *score);
        assert!((divergence.b.nll + q[target]).abs() < 1e-12 * divergence.b.nll.max(1.0));
        assert!((divergence.kld - kld).abs() < 1e-12 && kld > 0.0, "{row}: {} is not {kld}", divergence.kld);
    }
    assert!(cpu.compare(a, a, targets).unwrap().iter().all(|same| same.kld == 0.0));
}

/// Biases, norms of heads, fused matrices, both rotations and every way to stretch a context, against transformers in float32.
#[test]
fn every_family_computes_what_transformers_does() {
    let scratch = common::scratch();
    let cases = common::json(&common::fixture("model/families.json"));
    let mut seen = std::collections::BTreeSet::new();
    for (case, expected) in cases.as_object().unwrap() {
        let path = family_case(case, expected).write(scratch.path(), case);
        let model = Model::open(path).unwrap();
        let tokens: Vec<u32> = expected["tokens"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        let cpu = cpu(Engine::detect(), 1);
        let network = Network::open(&cpu, &model, tokens.len(), Residency::Resident).unwrap();
        let found = logits(&network, &tokens, std::slice::from_ref(&(0..tokens.len())), &[tokens.len() as u32 - 1]);
        for (found, expected) in found.iter().zip(expected["logits"].as_array().unwrap()) {
            let difference = (f64::from(*found) - expected.as_f64().unwrap()).abs();
            assert!(difference < f64::from(LOGITS_TOLERANCE), "{case}: {found} is not {expected}");
        }
        seen.insert(network.hparams().family.name);
    }
    // The others have theirs in tests/families.rs.
    let elsewhere: Vec<_> =
        checkpoint::cases().into_iter().map(|case| case.json["metadata"]["general.architecture"].clone()).collect();
    let is_elsewhere = |name: &str| elsewhere.iter().any(|described| described["value"] == name);
    assert!(architectures().all(|name| seen.contains(name) || is_elsewhere(name)), "an architecture without a proof");
    assert!(architectures().all(ggforge::arch::is_known), "an architecture that llama.cpp calls otherwise");
}

/// The logits after the tokens, all layers in memory.
fn last_logits(path: &Path, tokens: &[u32]) -> Vec<f32> {
    let model = Model::open(path).unwrap();
    let cpu = cpu(Engine::detect(), 1);
    let network = Network::open(&cpu, &model, tokens.len(), Residency::Resident).unwrap();
    logits(&network, tokens, std::slice::from_ref(&(0..tokens.len())), &[tokens.len() as u32 - 1])
}

/// llama.cpp's converter writes no `rope.scaling.type` for Phi-3's long contexts: the tensors tell them.
#[test]
fn rotary_factors_tell_a_long_context_without_a_type() {
    let scratch = common::scratch();
    let cases = common::json(&common::fixture("model/families.json"));
    for case in ["phi3-short", "phi3-long"] {
        let expected = &cases[case];
        let tokens: Vec<u32> = expected["tokens"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        let mut tiny = family_case(case, expected);
        let named = last_logits(&tiny.write(scratch.path(), case), &tokens);
        let mut without = tiny.clone();
        without.unset("phi3.rope.scaling.type");
        assert_eq!(last_logits(&without.write(scratch.path(), "without"), &tokens), named, "{case}: without a type");
        tiny.set("phi3.rope.scaling.type", Value::from("none"));
        assert_eq!(last_logits(&tiny.write(scratch.path(), "none"), &tokens), named, "{case}: none");
        // The two keys that go with them count without a type too.
        for key in ["phi3.rope.scaling.attn_factor", "phi3.rope.scaling.original_context_length"] {
            let mut other = without.clone();
            other.unset(key);
            let found = last_logits(&other.write(scratch.path(), "other"), &tokens);
            // A short text is within either context.
            let is_read = key.ends_with("attn_factor") || case == "phi3-long";
            assert_eq!(found != named, is_read, "{case}: {key}");
        }
    }
}

/// GGUF knows dimensions of 1 at the end: the converter writes the gate of a shared expert with one, llama-quantize without.
#[test]
fn dimensions_of_one_make_no_difference() {
    let scratch = common::scratch();
    let tokens: Vec<u32> = (0..20).collect();
    let plain = Tiny::with_experts("qwen2moe");
    let expected = last_logits(&plain.write(scratch.path(), "plain"), &tokens);
    let mut padded = plain.clone();
    for name in ["blk.0.ffn_gate_inp_shexp.weight", "blk.1.ffn_gate_inp_shexp.weight", "blk.1.attn_q.bias", "output_norm.weight"] {
        padded.tensor(name).1.insert(0, 1);
    }
    padded.tensor("blk.0.attn_k.weight").1.splice(0..0, [1, 1]);
    assert_eq!(last_logits(&padded.write(scratch.path(), "padded"), &tokens), expected);
    for shape in [vec![32, 1], vec![2, 16], vec![1, 16, 2]] {
        let mut other = plain.clone();
        other.tensor("blk.0.ffn_gate_inp_shexp.weight").1 = shape.clone();
        let model = Model::open(other.write(scratch.path(), "other")).unwrap();
        let found = Network::open(&cpu(Engine::detect(), 1), &model, 1, Residency::Streamed).map(drop);
        let is_refused = matches!(found, Err(Error::Malformed { fault: Fault::ShapeMismatch, .. }));
        assert!(is_refused, "{shape:?}: {found:?}");
    }
}
