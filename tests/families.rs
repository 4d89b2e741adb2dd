//! Every class that converts gives the file that llama.cpp's converter writes, and runs as transformers does: tiny models of
//! `fixtures/families`, in every way that transformers saves them.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ggforge::Error;
use ggforge::gguf::{File, Model, Value};
use ggforge::matmul::Engine;
use ggforge::model::{Activations, Backend, Batch, Cpu, Network, Residency};
use serde_json::{Value as Json, json};

mod common;
use common::checkpoint::{self, Case, N_CHUNKS, N_CTX};
use common::described::{described, sha256};

/// Largest difference between our scores and those of transformers in float32, which are at most 15 in magnitude.
const LOGITS_TOLERANCE: f64 = 1e-4;
/// Largest difference of the mean negative log-likelihood, relative to it.
const NLL_TOLERANCE: f64 = 1e-6;
/// The same as the first for llama.cpp, which computes GELU by a table of halves.
const LLAMA_CPP_TOLERANCE: f64 = 5e-3;

/// What differs from the converter's file on purpose.
struct Difference {
    case: &'static str,
    /// Only of this layout, where one is named.
    layout: Option<&'static str>,
    /// A key or a tensor.
    what: &'static str,
    /// Our value; `None` for nothing at all.
    ours: Option<Json>,
    why: &'static str,
}

fn differences() -> Vec<Difference> {
    let difference = |case, what, ours, why| Difference { case, layout: None, what, ours, why };
    let scale = Some(json!({"type": "FLOAT32", "value": f64::from(1.0_f32 / 20.0_f32.sqrt())}));
    let is_window = "without it no reader can apply the window";
    vec![
        difference(
            "gpt2-inner",
            "gpt2.feed_forward_length",
            Some(json!({"type": "UINT32", "value": 96})),
            "the converter writes 4 x n_embd whatever n_inner says, and llama.cpp does not load that",
        ),
        difference("mistral-window", "llama.attention.sliding_window", Some(json!({"type": "UINT32", "value": 16})), is_window),
        difference(
            "starcoder2-window",
            "starcoder2.attention.sliding_window",
            Some(json!({"type": "UINT32", "value": 16})),
            is_window,
        ),
        difference("gemma2-scale", "gemma2.attention.scale", scale.clone(), "no other key says what divides the scores"),
        difference("gemma3-types", "gemma3.attention.scale", scale, "no other key says what divides the scores"),
        difference(
            "gemma3-types",
            "gemma3.attention.sliding_window_pattern",
            Some(
                json!({"type": "[BOOL]", "count": 3, "sha256": "85f90dfea1d8027e1463e5ca971a250110a20df0119d204a74220bc63516d15b"}),
            ),
            "no other key says which layers see all, where that is not every sixth",
        ),
        difference(
            "gpt-oss",
            "gpt-oss.rope.scaling.yarn_truncate",
            Some(json!({"type": "BOOL", "value": false})),
            "no other key says that YaRN's bounds are not rounded",
        ),
        difference(
            "gpt-oss-types",
            "gpt-oss.attention.sliding_window_pattern",
            Some(
                json!({"type": "[BOOL]", "count": 3, "sha256": "fbb59ed10e9cd4ff45a12c5bb92cbd80df984ba1fe60f26a30febf218e2f0f5e"}),
            ),
            "no other key says which layers see all, where that is not every second",
        ),
        difference(
            "gemma",
            "tokenizer.ggml.eot_token_id",
            None,
            "the converter writes 107 whatever token that is; of the real vocabulary it is found by its text",
        ),
        difference(
            "gemma3-trimmed",
            "tokenizer.ggml.tokens",
            Some(
                json!({"type": "[STRING]", "count": 301, "sha256": "03dba18c1ea1cac3b97555cded3ff59001c3166e55aa8fdb2f55e97a2e3d0ebd"}),
            ),
            "the converter cuts the embedding but not the list, and llama.cpp does not load that",
        ),
        difference(
            "gemma3-trimmed",
            "tokenizer.ggml.token_type",
            Some(
                json!({"type": "[INT32]", "count": 301, "sha256": "c3ca970fc8f12bc7fe4e84306bae8b9066bace2f73250f22103817030f42ed91"}),
            ),
            "the converter cuts the embedding but not the list, and llama.cpp does not load that",
        ),
        Difference {
            layout: Some("transformers 5"),
            ..difference(
                "gemma3-vision",
                "tokenizer.ggml.padding_token_id",
                Some(json!({"type": "UINT32", "value": 0})),
                "only this config.json says so; what the converter made of it was not recorded",
            )
        },
    ]
}

/// Cases that llama.cpp does not run as transformers does, from files of its own converter as from ours.
const NOT_IN_LLAMA_CPP: &[(&str, &str)] = &[
    ("gemma2-scale", "its scale of attention is that of the width of a head"),
    ("gemma3-types", "every sixth layer sees all, and its scale of attention is that of the width of a head"),
    ("gpt-oss", "it rounds the bounds of YaRN"),
    ("gpt-oss-mxfp4", "it rounds what is multiplied with MXFP4 to 8 bits"),
    ("mistral-window", "Llama's layers have no windows"),
    ("phi", "it does not use the windows of Phi-3"),
    ("phi-short", "the length of its cache decides which factors it takes, which is 256 at least"),
    ("starcoder2-window", "StarCoder's layers have no windows"),
    ("qwen3-vision", "it rotates the last pairs of a head by a position that is 0 in texts"),
];

/// Adds a line to what is wrong unless `is_right`.
fn check(faults: &mut String, is_right: bool, message: std::fmt::Arguments<'_>) {
    if !is_right {
        writeln!(faults, "{message}").expect("a string grows");
    }
}

/// The model in F32.
fn converted(folder: &Path) -> Result<PathBuf, String> {
    let name = folder.file_name().and_then(|name| name.to_str()).expect("a name");
    let path = folder.with_file_name(format!("{name}.gguf"));
    let mut command = common::ggforge();
    command.arg("convert").arg(folder).args(["--quiet", "--type", "F32", "--output"]).arg(&path);
    let output = command.output().expect("a program that starts");
    if output.status.success() { Ok(path) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}

#[test]
fn files_equal_those_of_the_converter() {
    let scratch = common::scratch();
    let differences = differences();
    let mut faults = String::new();
    for case in checkpoint::cases() {
        for layout in case.layouts() {
            let context = format!("{} ({})", case.name, layout.name);
            match converted(&case.write(&layout, scratch.path())) {
                Err(message) => check(&mut faults, false, format_args!("{context}: {message}")),
                Ok(path) => {
                    let file = File::open(&path).expect("a readable file");
                    let own: Vec<&Difference> = differences
                        .iter()
                        .filter(|own| own.case == case.name && own.layout.is_none_or(|name| name == layout.name))
                        .collect();
                    compare_metadata(&file, &case.json["metadata"], &own, &context, &mut faults);
                    compare_tensors(&file, &case.json["tensors"], &own, &context, &mut faults);
                }
            }
        }
    }
    assert!(faults.is_empty(), "\n{faults}");
}

/// Every key of the converter's, and no other, but for what differs on purpose.
fn compare_metadata(file: &File<'_>, expected: &Json, own: &[&Difference], context: &str, faults: &mut String) {
    let mut ours: Vec<(String, Json)> =
        file.metadata().map(|(key, value)| (key.to_owned(), described(&Value::from(value)))).collect();
    let mut theirs: Vec<(String, Json)> = expected
        .as_object()
        .expect("metadata by key")
        .iter()
        .map(|(key, value)| {
            let mut value = value.clone();
            if value.get("sha256").is_some() {
                value.as_object_mut().expect("an object").remove("value");
            }
            (key.clone(), value)
        })
        .collect();
    for difference in own {
        let value = |list: &[(String, Json)]| list.iter().find(|(key, _)| key == difference.what).map(|(_, value)| value.clone());
        check(
            faults,
            value(&ours) == difference.ours && value(&theirs) != difference.ours,
            format_args!("{context}: {} is {:?}: {}", difference.what, value(&ours), difference.why),
        );
        ours.retain(|(key, _)| key != difference.what);
        theirs.retain(|(key, _)| key != difference.what);
    }
    for (key, want) in &theirs {
        let found = ours.iter().find(|(found, _)| found == key).map(|(_, value)| value);
        check(faults, found == Some(want), format_args!("{context}: {key} is {found:?} instead of {want}"));
    }
    for (key, value) in ours.iter().filter(|(key, _)| !theirs.iter().any(|(their, _)| their == key)) {
        check(faults, false, format_args!("{context}: {key} = {value} is not in the converter's file"));
    }
}

/// The converter's tensors, and no others: names, types, shapes, bytes.
fn compare_tensors(file: &File<'_>, expected: &Json, own: &[&Difference], context: &str, faults: &mut String) {
    let is_own = |name: &str| own.iter().any(|difference| difference.what == name);
    let ours: Vec<(String, Json)> = file
        .tensors()
        .filter(|tensor| !is_own(tensor.name))
        .map(|tensor| {
            let dims: Vec<u64> = tensor.shape.iter().rev().copied().collect();
            let bytes = file.tensor_bytes(&tensor).expect("data inside the file");
            (tensor.name.to_owned(), json!([tensor.format.name(), dims, sha256(bytes)]))
        })
        .collect();
    let theirs: Vec<(&String, &Json)> = expected.as_object().expect("tensors").iter().filter(|(name, _)| !is_own(name)).collect();
    for (name, want) in &theirs {
        let found = ours.iter().find(|(found, _)| found == *name).map(|(_, value)| value);
        check(faults, found == Some(want), format_args!("{context}: {name} is {found:?} instead of {want}"));
    }
    let extra: Vec<&String> =
        ours.iter().map(|(name, _)| name).filter(|name| !theirs.iter().any(|(their, _)| their == name)).collect();
    check(faults, extra.is_empty(), format_args!("{context}: {extra:?} are not in the converter's file"));
}

/// Experts that were published in blocks keep them, unless an override names them.
#[test]
fn published_blocks_stay() {
    let scratch = common::scratch();
    let cases = checkpoint::cases();
    let case = cases.iter().find(|case| case.name == "gpt-oss-mxfp4").expect("a case");
    let folder = case.write(&case.layouts()[0], scratch.path());
    for (arguments, down, up, output) in [
        (&["--type", "Q8_0"][..], "MXFP4", "MXFP4", "Q8_0"),
        (&["--type", "Q4_0", "--pure"], "MXFP4", "MXFP4", "Q4_0"),
        (&["--type", "F16", "--tensor-type", "ffn_down_exps=Q5_0"], "Q5_0", "MXFP4", "F16"),
    ] {
        let path = scratch.path().join("model.gguf");
        let mut command = common::ggforge();
        command.arg("convert").arg(&folder).args(["--quiet", "--force", "--output"]).arg(&path).args(arguments);
        assert!(command.status().expect("a program that starts").success(), "{arguments:?}");
        let file = File::open(&path).expect("a readable file");
        let format = |name: &str| file.tensors().find(|tensor| tensor.name == name).expect("the tensor").format.name();
        let found = ["blk.1.ffn_down_exps.weight", "blk.1.ffn_up_exps.weight", "output.weight"].map(format);
        assert_eq!(found, [down, up, output], "{arguments:?}");
        assert!(scores(&path, case).is_ok(), "{arguments:?}");
    }
}

/// Gemma 4 was published with other names for what its layers have of their own.
#[test]
fn layers_of_their_own_are_said_in_either_way() {
    let scratch = common::scratch();
    for (case, published) in [
        ("gemma4", json!({"global_head_dim": 32, "num_global_key_value_heads": null})),
        ("gemma4-large", json!({"global_head_dim": 32, "num_global_key_value_heads": 1})),
    ] {
        let cases = checkpoint::cases();
        let case = cases.iter().find(|own| own.name == case).expect("a case");
        let as_saved = converted(&case.write(&case.layouts()[0], &scratch.path().join("saved"))).expect("a file");
        let folder = scratch.path().join("published").join(&case.name);
        case.write_changed(&case.layouts()[0], &folder, |config, _| {
            config.remove("per_layer_config").expect("what transformers 5 saves");
            config.extend(published.as_object().expect("fields").clone());
        });
        let as_published = converted(&folder).expect("a file");
        assert!(std::fs::read(as_saved).expect("a file") == std::fs::read(as_published).expect("a file"), "{}", case.name);
    }
}

/// Text becomes the tokens that tokenizer.json makes of it: the program compares them after a conversion, and says how many differ.
#[test]
fn merges_of_characters_split_text_as_tokenizer_json_does() {
    let scratch = common::scratch();
    let cases = checkpoint::cases();
    let case = cases.iter().find(|case| case.name == "gemma4").expect("a case");
    let folder = case.write(&case.layouts()[0], scratch.path());
    let mut command = common::ggforge();
    command.arg("convert").arg(&folder).args(["--type", "F32", "--output"]).arg(scratch.path().join("model.gguf"));
    let output = command.output().expect("a program that starts");
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success() && said.contains("are split as tokenizer.json splits them"), "{said}");
}

struct Scores {
    /// Of the recorded positions of the first chunk.
    logits: Vec<(String, Vec<f32>)>,
    /// The mean negative log-likelihood of what has a past.
    nll: f64,
}

fn scores(path: &Path, case: &Case) -> Result<Scores, Error> {
    let model = Model::open(path)?;
    let cpu = Cpu::new(Engine::detect(), 2, Activations::F32)?;
    let network = Network::open(&cpu, &model, N_CTX, Residency::Resident)?;
    let tokens = case.tokens();
    let chunks: Vec<_> = (0..N_CHUNKS).map(|chunk| chunk * N_CTX..(chunk + 1) * N_CTX).collect();
    let states = network.evaluate(Batch { tokens: &tokens, sequences: &chunks }, &mut ())?;
    let with_target = |row: &usize| row % N_CTX != N_CTX - 1;
    let rows: Vec<u32> = (0..tokens.len()).filter(with_target).map(|row| row as u32).collect();
    let targets: Vec<u32> = rows.iter().map(|&row| tokens[row as usize + 1]).collect();
    let found = cpu.score(&network.normalised(&states, &rows)?, network.output(), &targets)?;
    let nll = found.iter().map(|score| score.nll).sum::<f64>() / found.len() as f64;
    let mut logits = Vec::new();
    for position in case.json["logits"].as_object().expect("scores").keys() {
        let row = position.parse().expect("a position");
        logits.push((position.clone(), cpu.logits(&network.normalised(&states, &[row])?, network.output())?));
    }
    Ok(Scores { logits, nll })
}

/// A prompt in two pieces and tokens one by one give what the whole text gives: keys are kept, shared between layers, and forgotten.
#[test]
fn generation_goes_on_where_the_prompt_ended() {
    let scratch = common::scratch();
    let mut faults = String::new();
    for case in checkpoint::cases().iter().filter(|case| case.name.starts_with("gemma4") || case.name.starts_with("gpt-oss")) {
        let path = converted(&case.write(&case.layouts()[0], scratch.path())).expect("a file");
        let model = Model::open(&path).expect("a model");
        let cpu = Cpu::new(Engine::detect(), 2, Activations::F32).expect("threads");
        let network = Network::open(&cpu, &model, N_CTX, Residency::Resident).expect("a network");
        let tokens = &case.tokens()[..N_CTX];
        let mut cache = network.cache().expect("memory");
        let pieces = [&tokens[..20], &tokens[20..50]].into_iter().chain(tokens[50..].chunks(1));
        let states = pieces.map(|piece| network.extend(piece, &mut cache).expect("states")).last().expect("pieces");
        let found = cpu.logits(&network.normalised(&states, &[0]).expect("states"), network.output()).expect("scores");
        let difference = largest_difference(&found, &case.json["logits"][(N_CTX - 1).to_string()]);
        check(&mut faults, difference < LOGITS_TOLERANCE, format_args!("{}: {difference}", case.name));
    }
    assert!(faults.is_empty(), "\n{faults}");
}

fn largest_difference(found: &[f32], expected: &Json) -> f64 {
    let expected = expected.as_array().expect("scores");
    if found.len() != expected.len() {
        return f64::INFINITY;
    }
    let pairs = found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b.as_f64().expect("a number")).abs());
    pairs.fold(0.0, |most, x| if x <= most { most } else { x })
}

#[test]
fn scores_equal_those_of_transformers() {
    let scratch = common::scratch();
    let mut faults = String::new();
    for case in checkpoint::cases() {
        for layout in case.layouts() {
            let context = format!("{} ({})", case.name, layout.name);
            let found = converted(&case.write(&layout, scratch.path()))
                .and_then(|path| scores(&path, &case).map_err(|error| error.to_string()));
            let Scores { logits, nll } = match found {
                Ok(found) => found,
                Err(message) => {
                    check(&mut faults, false, format_args!("{context}: {message}"));
                    continue;
                }
            };
            let difference =
                logits.iter().map(|(at, found)| largest_difference(found, &case.json["logits"][at])).fold(0.0, f64::max);
            let relative = (nll / case.json["nll"].as_f64().expect("a number") - 1.0).abs();
            println!("{context}: logits differ by at most {difference:.1e}, the likelihood by {relative:.1e}");
            let is_equal = difference < LOGITS_TOLERANCE && relative < NLL_TOLERANCE;
            check(&mut faults, is_equal, format_args!("{context}: logits {difference}, likelihood {relative}"));
        }
    }
    assert!(faults.is_empty(), "\n{faults}");
}

/// llama.cpp loads every file, and gives transformers' scores but where it is known that it cannot.
#[test]
fn llama_cpp_gives_the_same_scores() {
    let Some(peers) = common::peers("npm/node_modules/node-llama-cpp") else { return };
    let scratch = common::scratch();
    let cases = checkpoint::cases();
    let mut jobs = String::new();
    for case in &cases {
        let layouts = case.layouts();
        let Some(path) = converted(&case.write(&layouts[0], scratch.path())).ok() else { panic!("{} converts", case.name) };
        let positions: Vec<usize> =
            case.json["logits"].as_object().expect("scores").keys().map(|at| at.parse().expect("a position")).collect();
        writeln!(jobs, "{}", json!({"path": path, "tokens": case.tokens()[..N_CTX], "positions": positions})).expect("a string");
    }
    let mut command = Command::new("node");
    command.env("GGFORGE_PEERS", peers).arg(common::root().join("tools/dev/scores.mjs")).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).spawn().expect("node");
    child.stdin.take().expect("a pipe").write_all(jobs.as_bytes()).expect("a reader");
    let output = child.wait_with_output().expect("an end");
    let answers: Vec<Json> =
        String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(answers.len(), cases.len(), "{}", String::from_utf8_lossy(&output.stdout));
    let mut faults = String::new();
    for (case, answer) in cases.iter().zip(&answers) {
        if answer.get("error").is_some() {
            check(&mut faults, false, format_args!("{}: {}", case.name, answer["error"]));
            continue;
        }
        let expected = case.json["logits"].as_object().expect("scores");
        let difference = expected.iter().map(|(at, expected)| {
            let found: Vec<f32> =
                answer["logits"][at].as_array().expect("scores").iter().map(|x| x.as_f64().expect("a number") as f32).collect();
            largest_difference(&found, expected)
        });
        let difference = difference.fold(0.0, f64::max);
        println!("{}: llama.cpp's logits differ by at most {difference:.1e}", case.name);
        if !NOT_IN_LLAMA_CPP.iter().any(|(name, _)| *name == case.name) {
            check(&mut faults, difference < LLAMA_CPP_TOLERANCE, format_args!("{}: {difference}", case.name));
        }
    }
    assert!(faults.is_empty(), "\n{faults}");
}
