//! Models whose layers have a state beside attention: the state is what the whole text makes of it, in time that is linear in tokens.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ggforge::cuda;
use ggforge::error::Fault;
use ggforge::gguf::{Array, Header, Metadata, Model, TensorSpec, Value};
use ggforge::imatrix::Imatrix;
use ggforge::matmul::Engine;
use ggforge::model::{Activations, Backend, Batch, Cpu, Generation, Network, Observer, Residency, Sampler, Sampling, SideBySide};
use ggforge::model::{Needs, Operation};
use serde_json::json;

mod common;
use common::checkpoint::{self, Case};

const N_CTX: usize = 96;

/// The cases with a state, each converted to F32.
fn converted(scratch: &Path) -> Vec<(Case, PathBuf)> {
    let has_state = |case: &Case| case.layouts()[0].has_tensor("linear_attn.A_log");
    let cases: Vec<Case> = checkpoint::cases().into_iter().filter(has_state).collect();
    assert!(cases.len() >= 6, "the fixtures");
    let convert = |case: Case| {
        let path = convert(&case.write(&case.layouts()[0], scratch));
        (case, path)
    };
    cases.into_iter().map(convert).collect()
}

fn convert(folder: &Path) -> PathBuf {
    let path = folder.with_extension("gguf");
    let mut command = common::ggforge();
    common::succeeds(command.arg("convert").arg(folder).args(["--quiet", "--type", "F32", "--output"]).arg(&path));
    path
}

fn cpu(n_threads: usize) -> Cpu {
    Cpu::new(Engine::detect(), n_threads, Activations::F32).expect("a backend")
}

/// The likeliest tokens after a prompt, which is read in pieces of this size.
fn greedy(network: &Network<'_, Cpu>, prompt: &[u32], piece: usize, n: usize) -> Vec<u32> {
    let mut cache = network.cache().expect("memory");
    let mut next = None;
    let mut read = |tokens: &[u32]| {
        let states = network.extend(tokens, &mut cache).expect("a pass");
        let last = network.normalised(&states, &[tokens.len() as u32 - 1]).expect("a norm");
        let logits = network.backend().logits(&last, network.output()).expect("scores");
        let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
        best.map(|(token, _)| token as u32)
    };
    for tokens in prompt.chunks(piece) {
        next = read(tokens);
    }
    let mut text = Vec::new();
    for _ in 0..n {
        let token = next.expect("a prompt");
        text.push(token);
        next = read(&[token]);
    }
    text
}

#[test]
fn a_prompt_in_one_piece_and_token_by_token_give_the_same_text() {
    let scratch = common::scratch();
    for (case, path) in converted(scratch.path()) {
        let model = Model::open(&path).expect("a model");
        let cpu = cpu(2);
        let network = Network::open(&cpu, &model, N_CTX, Residency::Resident).expect("a network");
        let prompt = &case.tokens()[..48];
        let whole = greedy(&network, prompt, prompt.len(), 40);
        for piece in [1, 3, 32] {
            assert_eq!(greedy(&network, prompt, piece, 40), whole, "{} in pieces of {piece}", case.name);
        }
        // What generates for users, and what evaluates, agree with it.
        let sampler = Sampler::new(Sampling::default()).expect("the likeliest token");
        let mut generation = Generation::start(&network, prompt, sampler).expect("a prompt");
        let text: Vec<u32> = (0..40).map(|_| generation.next_token().expect("a token")).collect();
        assert_eq!(text, whole, "{}", case.name);
        let states = network.evaluate(Batch { tokens: prompt, sequences: &[0..24, 24..48] }, &mut ()).expect("a pass");
        let alone = network.evaluate(Batch { tokens: &prompt[24..], sequences: &[std::ops::Range { start: 0, end: 24 }] }, &mut ());
        let alone = alone.expect("a pass");
        assert_eq!(states.values()[alone.values().len()..], *alone.values(), "{}: no sequence sees another", case.name);
    }
}

/// Sequences side by side, of which one begins a new text on the way, have the scores that each has alone.
#[test]
fn sequences_side_by_side_do_not_see_each_other() {
    let scratch = common::scratch();
    for (case, path) in converted(scratch.path()) {
        let model = Model::open(&path).expect("a model");
        let cpu = cpu(2);
        let network = Network::open(&cpu, &model, N_CTX, Residency::Resident).expect("a network");
        let tokens = case.tokens();
        let (one, other, new) = (&tokens[..12], &tokens[20..27], &tokens[40..45]);
        let mut both = SideBySide::new(&network, 2).expect("memory");
        let mut scores = Vec::new();
        for step in 0..12 {
            if step == 7 {
                both.begin_text(1);
            }
            let second = if step < 7 { other[step] } else { new[step - 7] };
            scores = both.read(&[one[step], second], &[0, 1]).expect("a token of each");
        }
        for (found, text) in scores.chunks(scores.len() / 2).zip([one, new]) {
            let states =
                network.evaluate(Batch { tokens: text, sequences: &[std::ops::Range { start: 0, end: text.len() }] }, &mut ());
            let last = network.normalised(&states.expect("a pass"), &[text.len() as u32 - 1]).expect("a norm");
            let alone = cpu.logits(&last, network.output()).expect("scores");
            let most = found.iter().zip(&alone).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(most < 1e-4, "{}: scores differ by {most}", case.name);
        }
    }
}

/// A state does not know what it was.
#[test]
fn tokens_of_a_state_are_not_forgotten() {
    let scratch = common::scratch();
    let (case, path) = converted(scratch.path()).remove(0);
    let model = Model::open(&path).expect("a model");
    let cpu = cpu(1);
    let network = Network::open(&cpu, &model, N_CTX, Residency::Resident).expect("a network");
    let mut cache = network.cache().expect("memory");
    network.extend(&case.tokens()[..9], &mut cache).expect("a pass");
    cache.truncate(9).expect("nothing to forget");
    let error = cache.truncate(5).expect_err("a state").to_string();
    assert!(error.contains("begin a new sequence"), "{error}");
    assert_eq!(cache.len(), 9);
}

/// A model of delta nets alone.
fn without_attention(scratch: &Path) -> (Case, PathBuf) {
    let case = checkpoint::cases().into_iter().find(|case| case.name == "qwen35").expect("the fixture");
    let folder = scratch.join("deltas");
    case.write_changed(&case.layouts()[0], &folder, |config, tensors| {
        config.insert("num_hidden_layers".into(), json!(3));
        config.insert("layer_types".into(), json!(vec!["linear_attention"; 3]));
        tensors.retain(|(name, ..)| !["model.layers.3.", "model.layers.4."].iter().any(|layer| name.starts_with(layer)));
    });
    let path = convert(&folder);
    (case, path)
}

#[test]
fn four_times_the_tokens_take_four_times_the_time() {
    let scratch = common::scratch();
    let (case, path) = without_attention(scratch.path());
    let model = Model::open(&path).expect("a model");
    let cpu = cpu(1);
    let network = Network::open(&cpu, &model, 4096, Residency::Resident).expect("a network");
    let tokens: Vec<u32> = case.tokens().into_iter().cycle().take(4096).collect();
    let time = |n: usize| {
        let run = || {
            let start = Instant::now();
            network
                .evaluate(Batch { tokens: &tokens[..n], sequences: &[std::ops::Range { start: 0, end: n }] }, &mut ())
                .expect("a pass");
            start.elapsed()
        };
        // The quickest, since others use this machine too.
        (0..5).map(|_| run()).min().unwrap_or(Duration::MAX).as_secs_f64()
    };
    let (short, long) = (time(1024), time(4096));
    println!("1,024 tokens in {:.1} ms, 4,096 in {:.1} ms", 1e3 * short, 1e3 * long);
    // Four where it is linear, sixteen where it is quadratic.
    assert!(long < 8.0 * short, "{short} s, then {long} s");
}

/// Names of what is multiplied.
#[derive(Default)]
struct Names(Vec<String>);

impl<B: Backend> Observer<B> for Names {
    fn operand(&mut self, observed: ggforge::model::Observed<'_>, _: &B::Operand) -> ggforge::Result<()> {
        self.0.extend(observed.names.iter().map(|name| (*name).to_owned()));
        Ok(())
    }
}

#[test]
fn importance_is_measured_for_every_matrix() {
    let scratch = common::scratch();
    for (case, path) in converted(scratch.path()) {
        let model = Model::open(&path).expect("a model");
        let cpu = cpu(1);
        let network = Network::open(&cpu, &model, N_CTX, Residency::Resident).expect("a network");
        let mut names = Names::default();
        let tokens = &case.tokens()[..32];
        network.evaluate(Batch { tokens, sequences: &[std::ops::Range { start: 0, end: 32 }] }, &mut names).expect("a pass");
        let matrices = if case.name.contains("next") {
            &["attn_qkv", "attn_gate", "ssm_ba", "ssm_out"][..]
        } else {
            &["attn_qkv", "attn_gate", "ssm_alpha", "ssm_beta", "ssm_out"]
        };
        for matrix in matrices {
            assert!(names.0.iter().any(|name| name.ends_with(&format!(".{matrix}.weight"))), "{}: {matrix}", case.name);
        }
    }
}

#[test]
fn the_program_measures_importance_and_perplexity_and_rounds_by_them() {
    let scratch = common::scratch();
    let (_, path) = without_attention(scratch.path());
    let text = common::fixture("text/prose.txt");
    let at = |name: &str| scratch.path().join(name);
    let run = |arguments: &[&str], paths: &[&Path]| {
        let mut command = common::ggforge();
        command.args(arguments).args(paths);
        String::from_utf8_lossy(&common::succeeds(&mut command).stdout).into_owned()
    };
    let (imatrix, small, base) = (at("imatrix.gguf"), at("small.gguf"), path.as_path());
    let [text, imatrix_name, small_name] = [&text, &imatrix, &small].map(|path| path.to_str().expect("UTF-8"));
    run(&["imatrix", "--quiet", "--ctx", "32", "--chunks", "9", "--file", text, "--output", imatrix_name], &[base]);
    let measured = Imatrix::open(&imatrix).expect("a matrix");
    for layer in 0..3 {
        for matrix in ["attn_qkv", "attn_gate", "ssm_alpha", "ssm_beta", "ssm_out", "ffn_down"] {
            assert!(measured.entries.contains_key(&format!("blk.{layer}.{matrix}.weight")), "{matrix} of layer {layer}");
        }
    }
    run(&["quantize", "--quiet", "--type", "Q8_0", "--imatrix", imatrix_name, "--output", small_name], &[base]);
    let calibrated = at("calibrated.gguf");
    let calibrated_name = calibrated.to_str().expect("UTF-8");
    let rounding = ["quantize", "--quiet", "--type", "Q4_0", "--calibrate", text, "--calibrate-chunks", "9"];
    run(&[&rounding[..], &["--output", calibrated_name]].concat(), &[base]);
    let plain = at("plain.gguf");
    run(&["quantize", "--quiet", "--type", "Q4_0", "--output", plain.to_str().expect("UTF-8")], &[base]);
    let files = [base, &small, &calibrated, &plain];
    let compared = run(&["compare", "--quiet", "--json", "--ctx", "32", "--chunks", "40", "--file", text], &files);
    let report: serde_json::Value = serde_json::from_str(&compared).expect("JSON");
    let divergences: Vec<f64> = report["files"]
        .as_array()
        .expect("files")
        .iter()
        .map(|file| file["kld"]["mean"]["value"].as_f64().expect("a number"))
        .collect();
    let [eight_bits, by_text, by_weights] = divergences[..] else { panic!("{report}") };
    assert!(eight_bits < by_text && by_text < by_weights, "{divergences:?}");
}

/// Reasons are known before a weight is read, without a device.
#[test]
fn a_gpu_without_kernels_says_so_in_one_line() {
    let scratch = common::scratch();
    for (case, path) in converted(scratch.path()) {
        let needs = Needs::of(&Model::open(&path).expect("a model"), N_CTX).expect("needs");
        assert!(needs.operations.contains(&Operation::DeltaNet), "{}", case.name);
        let error = cuda::check(&needs).expect_err("no kernel").to_string();
        assert!(error.contains("no kernel does") && error.contains("--device cpu") && error.lines().count() == 1, "{error}");
    }
}

/// A file with other metadata.
fn with(path: &Path, change: &dyn Fn(&mut Metadata), to: &Path) -> PathBuf {
    let bytes = std::fs::read(path).expect("a readable file");
    let parsed = ggforge::gguf::File::parse("model.gguf", &bytes).expect("a GGUF file");
    let mut metadata: Metadata = parsed.metadata().map(|(key, value)| (key.to_owned(), Value::from(value))).collect();
    change(&mut metadata);
    let tensors = parsed.tensors().map(|tensor| TensorSpec {
        name: tensor.name.to_owned(),
        format: tensor.format,
        shape: tensor.shape.to_vec(),
    });
    let layout = Header { metadata, tensors: tensors.collect() }.layout().expect("a sound header");
    let mut out = layout.header.clone();
    out.resize(layout.file_bytes as usize, 0);
    for (tensor, at) in parsed.tensors().zip(&layout.offsets_bytes) {
        let data = parsed.tensor_bytes(&tensor).expect("data inside the file");
        out[*at as usize..][..data.len()].copy_from_slice(data);
    }
    std::fs::write(to, out).expect("a temporary file");
    to.to_owned()
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let scratch = common::scratch();
    let case = checkpoint::cases().into_iter().find(|case| case.name == "qwen35-mtp").expect("the fixture");
    let path = convert(&case.write(&case.layouts()[0], scratch.path()));
    let set = |key: &'static str, value: Value| {
        move |metadata: &mut Metadata| {
            let full = format!("qwen35.{key}");
            metadata.retain(|(found, _)| *found != full);
            metadata.push((full, value.clone()));
        }
    };
    let cases: Vec<(&str, Value, Fault)> = vec![
        ("ssm.conv_kernel", Value::U32(1), Fault::HparamRange),
        ("ssm.conv_kernel", Value::U32(5), Fault::ShapeMismatch),
        ("ssm.conv_kernel", Value::from("four"), Fault::ValueType),
        ("ssm.state_size", Value::U32(0), Fault::HparamRange),
        ("ssm.state_size", Value::U32(u32::MAX), Fault::HparamRange),
        ("ssm.state_size", Value::U32(1 << 24), Fault::HparamRange),
        ("ssm.group_count", Value::U32(0), Fault::HparamRange),
        ("ssm.group_count", Value::U32(4), Fault::HparamRange),
        ("ssm.time_step_rank", Value::U32(5), Fault::HparamRange),
        ("ssm.inner_size", Value::U32(95), Fault::HparamRange),
        ("ssm.inner_size", Value::U32(192), Fault::ShapeMismatch),
        ("nextn_predict_layers", Value::U32(6), Fault::HparamRange),
        ("nextn_predict_layers", Value::U32(0), Fault::UnmappedTensor),
        ("attention.recurrent_layers", Value::Array(Array::Bool(vec![true; 3])), Fault::HparamRange),
        ("attention.recurrent_layers", Value::Array(Array::Bool(vec![true; 6])), Fault::MissingTensor),
        ("full_attention_interval", Value::U32(4), Fault::HparamRange),
    ];
    let cpu = cpu(1);
    for (index, (key, value, fault)) in cases.into_iter().enumerate() {
        let to = scratch.path().join(format!("{index}.gguf"));
        let is_sound = key == "full_attention_interval";
        let changed = with(&path, &set(key, value), &to);
        let model = Model::open(&changed).expect("a GGUF file");
        match Network::open(&cpu, &model, 16, Residency::Resident) {
            Ok(_) => assert!(is_sound, "{key} of case {index}"),
            Err(error) => assert_eq!(error.fault(), Some(fault), "{key} of case {index}: {error}"),
        }
    }
}
