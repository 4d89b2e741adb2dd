//! `ggforge logits` gives the scores that transformers gives, in three forms that agree, and refuses what cannot be.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::tiny::{Tiny, family_case};
use ggforge::gguf::Value as Entry;
use serde_json::Value;

/// Largest difference allowed between our logits and transformers', which are about 10 in magnitude.
const TOLERANCE: f32 = 1e-4;

fn logits(model: &Path, arguments: &[&str]) -> Command {
    let mut command = common::ggforge();
    command.arg("logits").arg(model).args(arguments);
    command
}

/// The model of a folder as a GGUF file.
fn converted(folder: &Path, to: &Path) -> PathBuf {
    let path = to.join("model.gguf");
    common::succeeds(
        common::ggforge().arg("convert").arg(folder).args(["--quiet", "--force", "--type", "F32", "--output"]).arg(&path),
    );
    path
}

fn forge(to: &Path) -> PathBuf {
    converted(&common::fixture("hf/forge-3m"), to)
}

fn list(ids: &[u64]) -> String {
    ids.iter().map(u64::to_string).collect::<Vec<_>>().join(",")
}

fn ids(value: &Value) -> Vec<u64> {
    value.as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id")).collect()
}

/// The shape and the values of a NumPy file, read by what its format's documentation says.
fn read_npy(path: &Path) -> ([usize; 2], Vec<f32>) {
    let bytes = std::fs::read(path).expect("a file");
    assert!(bytes.starts_with(b"\x93NUMPY\x01\x00"), "{:?}", &bytes[..10]);
    let begin = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let dict = std::str::from_utf8(&bytes[10..begin]).expect("ASCII");
    assert!(begin.is_multiple_of(64) && dict.contains("'descr': '<f4'") && dict.contains("'fortran_order': False"), "{dict}");
    let shape = dict.split(['(', ')']).nth(1).expect("a shape");
    let dims: Vec<usize> = shape.split(',').map(|dim| dim.trim().parse().expect("a number")).collect();
    let values: Vec<f32> = bytes[begin..].as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    assert_eq!((values.len(), (bytes.len() - begin) % 4), (dims[0] * dims[1], 0));
    ([dims[0], dims[1]], values)
}

/// The scores that `--output` writes.
fn written(model: &Path, arguments: &[&str], to: &Path) -> ([usize; 2], Vec<f32>) {
    common::succeeds(logits(model, arguments).args(["--quiet", "--force", "--output"]).arg(to));
    read_npy(to)
}

fn parsed(model: &Path, arguments: &[&str]) -> Value {
    serde_json::from_slice(&common::succeeds(logits(model, arguments).arg("--json")).stdout).expect("JSON")
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn scores_are_those_of_transformers() {
    let scratch = common::scratch();
    let npy = scratch.path().join("logits.npy");
    let mut n_compared = 0;
    for name in ["forge-3m", "forge-23m", "stories260K", "tinystories-656K"] {
        let folder = match name {
            "forge-3m" => Some(common::fixture("hf/forge-3m")),
            _ => common::shared(&format!("models/{name}")),
        };
        let Some(folder) = folder else { continue };
        let golden = common::json(&common::fixture(&format!("model/{name}.json")));
        let bytes = std::fs::read(common::fixture(&format!("model/{name}.f32"))).expect("a fixture");
        let expected: Vec<f32> = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let (tokens, positions) = (ids(&golden["tokens"]), ids(&golden["positions"]));
        let all = tokens.len().to_string();
        let (shape, found) = written(&converted(&folder, scratch.path()), &["--tokens", &list(&tokens), "--last", &all], &npy);
        assert_eq!((shape[0], shape[1] * positions.len()), (tokens.len(), expected.len()), "{name}");
        for (position, expected) in positions.iter().zip(expected.chunks_exact(shape[1])) {
            let found = &found[*position as usize * shape[1]..][..shape[1]];
            let difference = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(difference < TOLERANCE, "{name}, position {position}: {difference}");
            n_compared += 1;
        }
    }
    let cases = common::json(&common::fixture("model/families.json"));
    for (case, expected) in cases.as_object().expect("cases") {
        let model = family_case(case, expected).write(scratch.path(), case);
        let (_, found) = written(&model, &["--tokens", &list(&ids(&expected["tokens"]))], &npy);
        for (found, expected) in found.iter().zip(expected["logits"].as_array().expect("scores")) {
            let difference = (f64::from(*found) - expected.as_f64().expect("a score")).abs();
            assert!(difference < f64::from(TOLERANCE), "{case}: {found} is not {expected}");
        }
        n_compared += 1;
    }
    assert!(n_compared > 10, "{n_compared}");
}

/// The array, JSON and text hold the same scores, whatever else is asked for, and on however many threads.
#[test]
fn every_form_has_the_same_bits() {
    let scratch = common::scratch();
    let (model, npy) = (forge(scratch.path()), scratch.path().join("logits.npy"));
    let tokens = [1, 300, 17, 900, 2047, 5, 5];
    let given = list(&tokens);
    let (shape, values) = written(&model, &["--tokens", &given, "--last", "7"], &npy);
    assert_eq!(shape, [7, 2048]);
    for n_last in [1, 2, 5] {
        let (shape, some) = written(&model, &["--tokens", &given, "--last", &n_last.to_string()], &npy);
        assert_eq!(shape, [n_last, 2048]);
        assert_eq!(bits(&some), bits(&values[(7 - n_last) * 2048..]), "the last {n_last}");
    }
    for threads in ["1", "2", "5"] {
        let (_, same) = written(&model, &["--tokens", &given, "--last", "7", "--threads", threads], &npy);
        assert_eq!(bits(&same), bits(&values), "{threads} threads");
    }

    let report = parsed(&model, &["--tokens", &given, "--last", "3"]);
    assert_eq!(report["shape"], serde_json::json!([3, 2048]));
    assert_eq!((ids(&report["tokens"]), &report["activations"]), (tokens.to_vec(), &Value::from("f32")));
    let rows = report["logits"].as_array().expect("rows");
    let reread: Vec<f32> =
        rows.iter().flat_map(|row| row.as_array().expect("a row")).map(|x| x.as_f64().expect("a score") as f32).collect();
    assert_eq!(bits(&reread), bits(&values[4 * 2048..]));

    let text = common::succeeds(&mut logits(&model, &["--tokens", &given, "--last", "3", "--top", "4"])).stdout;
    let text = String::from_utf8(text).expect("UTF-8");
    for (index, position) in report["positions"].as_array().expect("positions").iter().enumerate() {
        let at = 4 + index;
        assert_eq!((position["position"].as_u64(), position["token"].as_u64()), (Some(at as u64), Some(tokens[at])));
        let row: Vec<f64> = values[at * 2048..][..2048].iter().map(|x| f64::from(*x)).collect();
        let sum = row.iter().map(|x| x.exp()).sum::<f64>().ln();
        let mut best: Vec<usize> = (0..2048).collect();
        best.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
        let heading = format!("position {at}, after {} '", tokens[at]);
        let part = text.split_once(&heading).expect("a heading").1;
        let lines: Vec<Vec<&str>> = part.lines().skip(3).take(5).map(|line| line.split_whitespace().collect()).collect();
        for (line, id) in lines.iter().zip(&best[..4]) {
            assert_eq!((line[0], line[line.len() - 2]), (id.to_string().as_str(), format!("{:.5}", row[*id]).as_str()), "{text}");
            let probability: f64 = line[line.len() - 1].parse().expect("a probability");
            assert!((probability / (row[*id] - sum).exp() - 1.0).abs() < 1e-3, "{text}");
        }
        assert!(lines[4].is_empty(), "four are asked for: {text}");
        match tokens.get(at + 1) {
            None => assert!(position["next"].is_null() && position["nll"].is_null()),
            Some(next) => {
                let nll = position["nll"].as_f64().expect("a likelihood");
                assert!((nll - (sum - row[*next as usize])).abs() < 1e-9 && position["next"] == *next);
                assert!(part.lines().next().expect("a line").contains(&format!("nll {nll:.5} nats")), "{text}");
            }
        }
    }
    assert!(text.ends_with("logits at 3 of 7 positions, of 2048 tokens each, on the CPU\n"), "{text}");
}

#[test]
fn numpy_reads_what_is_written() {
    let Some(peers) = common::peers("venv/bin/python") else { return };
    let scratch = common::scratch();
    let (model, npy) = (forge(scratch.path()), scratch.path().join("logits.npy"));
    let (_, values) = written(&model, &["--tokens", "[1, 2, 3]", "--last", "2"], &npy);
    let script = "import numpy, sys\n\
                  a = numpy.load(sys.argv[1], allow_pickle=False)\n\
                  assert a.dtype.str == '<f4' and a.shape == (2, 2048) and a.flags.c_contiguous, (a.dtype, a.shape)\n\
                  sys.stdout.buffer.write(a.tobytes())";
    let output = common::succeeds(Command::new(peers.join("venv/bin/python")).args(["-c", script]).arg(&npy));
    let expected: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    assert!(output.stdout == expected);
}

/// A prompt is the tokens that `tokenize` prints, with and without special tokens.
#[test]
fn a_prompt_has_the_tokens_of_tokenize() {
    let scratch = common::scratch();
    let model = forge(scratch.path());
    let vocabulary = common::succeeds(common::ggforge().arg("tokenize").arg(&model).args(["--json", "--", ""])).stdout;
    let bos: Value = serde_json::from_slice(&vocabulary).expect("JSON");
    let bos = bos["tokens"][0]["text"].as_str().expect("a token that begins texts").to_owned();
    let spelled = format!("a{bos}b");
    for prompt in ["Once upon a time", "", "--last", "- one\n", &spelled] {
        for options in [&[][..], &["--no-bos"], &["--no-special"], &["--no-bos", "--no-special"]] {
            let tokens =
                common::succeeds(common::ggforge().arg("tokenize").arg(&model).args(options).args(["--ids", "--", prompt]));
            let expected: Value = serde_json::from_slice(&tokens.stdout).expect("JSON");
            if expected.as_array().is_some_and(Vec::is_empty) {
                let output = logits(&model, &["--prompt", prompt]).args(options).output().expect("a program that starts");
                check(&output, 2, "the prompt has no tokens", "no tokens");
                continue;
            }
            let found = parsed(&model, &[&["--prompt", prompt], options].concat());
            assert_eq!(found["tokens"], expected, "{prompt:?} with {options:?}");
        }
    }
    // As for generate, what begins a text already is not begun once more.
    let twice = parsed(&model, &["--prompt", &format!("{bos}a")]);
    assert_eq!(twice["tokens"], parsed(&model, &["--prompt", "a"])["tokens"]);
}

#[track_caller]
fn check(output: &Output, code: i32, expected: &str, what: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{what}: {text}");
    assert!(text.contains(expected), "{what}: {text}");
    assert!(output.stdout.is_empty(), "{what}");
    // With --json it is an object.
    let n_errors = text.lines().filter(|line| line.starts_with("error: ") || line.starts_with("{\"message\":")).count();
    assert_eq!(n_errors, 1, "{what}: {text}");
}

#[test]
fn what_makes_no_sense_is_a_usage_error() {
    let scratch = common::scratch();
    let model = forge(scratch.path());
    std::fs::write(scratch.path().join("old.npy"), "old").expect("a temporary file");
    let cases: [(&[&str], &str); 22] = [
        (&[], "--tokens"),
        (&["--tokens", "1", "--prompt", "a"], "cannot be used with"),
        (&["--tokens", ""], "at least one token id"),
        (&["--tokens", "[]"], "at least one token id"),
        (&["--tokens", "1,,2"], "\"\" is no token id"),
        (&["--tokens", "1,x"], "\"x\" is no token id"),
        (&["--tokens", "-1"], "\"-1\" is no token id"),
        (&["--tokens", "4294967296"], "is no token id"),
        (&["--tokens", "1,2048"], "token 2048, but the vocabulary has 2048 tokens"),
        (&["--tokens", "4294967295"], "token 4294967295, but the vocabulary has 2048 tokens"),
        (&["--tokens", "1,2,3", "--last", "0"], "0 is not in 1..="),
        (&["--tokens", "1,2,3", "--last", "-1"], "-1 is not in 1..="),
        (&["--tokens", "1,2,3", "--last", "4"], "--last 4, but there are 3 positions"),
        (&["--tokens", "1,2,3", "--last", "1048577"], "1048577 is not in 1..="),
        (&["--tokens", "1,2,3", "--last", "1048576"], "--last 1048576, but there are 3 positions"),
        (&["--tokens", "1", "--no-bos"], "cannot be used with"),
        (&["--tokens", "1", "--force"], "--output"),
        (&["--tokens", "1", "--json", "--output", "new.npy"], "cannot be used with"),
        (&["--tokens", "1", "--output", "old.npy"], "exists"),
        (&["--tokens", "1", "--output", "model.gguf", "--force"], "model.gguf"),
        (&["--tokens", "1", "--device", "gpu"], "auto, cpu, cuda or cuda:N"),
        (&["--tokens", "1", "--top", "-1"], "-1"),
    ];
    let before = std::fs::read(&model).expect("a file");
    for (arguments, expected) in cases {
        let output = logits(&model, arguments).current_dir(scratch.path()).output().expect("a program that starts");
        check(&output, 2, expected, &format!("{arguments:?}"));
    }
    assert_eq!(std::fs::read(scratch.path().join("old.npy")).expect("a file"), b"old");
    assert!(std::fs::read(&model).expect("a file") == before && !scratch.path().join("new.npy").exists());
}

#[test]
fn broken_models_are_refused_and_leave_nothing_behind() {
    let scratch = common::scratch();
    let npy = scratch.path().join("logits.npy");
    let tiny = Tiny::new("llama");
    let changed = |name: &str, change: &dyn Fn(&mut Tiny)| {
        let mut other = tiny.clone();
        change(&mut other);
        other.write(scratch.path(), name)
    };
    let cases = [
        ("nan", changed("nan", &|m| m.tensor("blk.0.ffn_up.weight").2[7] = f32::NAN), "NonFinite"),
        ("late", changed("late", &|m| m.tensor("token_embd.weight").2[2 * 32] = f32::INFINITY), "are not numbers"),
        ("norm", changed("norm", &|m| m.tensor("blk.1.attn_norm.weight").2[5] = f32::NAN), "NonFinite"),
        ("vocabulary", changed("vocabulary", &|m| m.tensors.clear()), "only metadata"),
        ("unknown", changed("unknown", &|m| m.set("general.architecture", Entry::from("rwkv"))), "can be run"),
    ];
    for (what, model, expected) in &cases {
        for arguments in [&["--json"][..], &[], &["--output", npy.to_str().expect("UTF-8")]] {
            let output =
                logits(model, &["--tokens", "1,2,3", "--last", "3", "-v"]).args(arguments).output().expect("a program that starts");
            check(&output, 3, expected, what);
            assert!(!npy.exists(), "{what}");
        }
    }
    let n_files = std::fs::read_dir(scratch.path()).expect("a folder").count();
    assert_eq!(n_files, cases.len(), "only the models are there");
}

#[test]
fn a_context_beyond_the_model_s_is_warned_of_or_refused() {
    let scratch = common::scratch();
    let long = list(&vec![7; 70]);
    let model = Tiny::new("llama").write(scratch.path(), "llama");
    let output = common::succeeds(&mut logits(&model, &["--tokens", &long]));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("trained for contexts of 64 tokens, these are 70"), "{text}");
    // It has no vocabulary, so ids stand alone.
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("ids are shown without their text") && shown.starts_with("position 69, after 7\n"), "{text}{shown}");
    let model = Tiny::new("gpt2").write(scratch.path(), "gpt2");
    let output = logits(&model, &["--tokens", &long]).output().expect("a program that starts");
    check(&output, 2, "this model has learned 64 positions", "gpt2");
}
