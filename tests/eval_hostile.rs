//! Texts and models that cannot be measured: a message that says what is wrong and what to do, the right exit code, and nothing written.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ggforge::gguf::{Array, File, Header, TensorSpec, Value};
use ggforge::imatrix::{Entry, Imatrix};
use rustix::process::{Pid, Signal, kill_process};

const BAD_INPUT: i32 = 3;
const USAGE: i32 = 2;

/// A model, and room for whatever a test needs.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let place = Place { dir: common::scratch() };
        let mut command = common::ggforge();
        command.arg("convert").arg(common::fixture("hf/forge-3m")).args(["--type", "Q8_0", "--output"]).arg(place.model());
        common::succeeds(&mut command);
        place
    }

    fn model(&self) -> PathBuf {
        self.path("model.gguf")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), content).expect("a file");
        self.path(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).expect("a folder");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
        names.sort();
        names
    }

    /// The three commands on one model and text. Importance matrices go to `out.gguf`.
    fn commands(&self, model: &Path, text: &Path) -> [Command; 3] {
        let [mut perplexity, mut compare, mut imatrix] = [common::ggforge(), common::ggforge(), common::ggforge()];
        perplexity.arg("perplexity").arg(model);
        compare.arg("compare").arg(model).arg(model);
        imatrix.arg("imatrix").arg(model).arg("--output").arg(self.path("out.gguf"));
        for command in [&mut perplexity, &mut compare, &mut imatrix] {
            command.arg("--file").arg(text).args(["--threads", "2"]);
        }
        [perplexity, compare, imatrix]
    }

    /// All three commands refuse, and their message holds every one of `expected`.
    #[track_caller]
    fn all_refuse(&self, model: &Path, text: &Path, more: &[&str], code: i32, expected: &[&str]) {
        let before = self.names();
        for mut command in self.commands(model, text) {
            refuses(command.args(more), code, expected);
        }
        assert_eq!(self.names(), before, "something was left behind");
    }
}

#[track_caller]
fn refuses(command: &mut Command, code: i32, expected: &[&str]) -> Output {
    let output = command.arg("--verbose").output().expect("a program that starts");
    // Where it computes is told before anything can go wrong there.
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let message: String = said.split_inclusive('\n').skip_while(|line| line.starts_with("computing on ")).collect();
    assert_eq!(output.status.code(), Some(code), "{command:?}\n{message}");
    assert!(message.starts_with("error: ") && message.lines().count() <= 8, "{command:?}\n{message}");
    for part in expected {
        assert!(message.contains(part), "{command:?}: `{part}` is missing in\n{message}");
    }
    assert!(output.stdout.is_empty(), "{command:?} printed a result");
    output
}

#[test]
fn texts_that_cannot_be_measured_are_refused() {
    let place = Place::new();
    let model = place.model();
    let cases: &[(&str, &[u8], &[&str])] = &[
        ("empty.txt", b"", &["empty.txt", "no text", "EmptyText"]),
        ("newline.txt", b"\n", &["newline.txt", "no text", "EmptyText"]),
        ("binary.txt", b"Once upon a\xff time", &["binary.txt", "byte 11", "NotUtf8"]),
        ("short.txt", b"Once upon a time there was a word.", &["short.txt", "512", "1024", "take a longer text", "TextTooShort"]),
    ];
    for (name, content, expected) in cases {
        place.all_refuse(&model, &place.file(name, content), &[], BAD_INPUT, expected);
    }
    let long_enough = place.file("words.txt", "a word and a word ".repeat(60));
    place.all_refuse(&model, &long_enough, &[], BAD_INPUT, &["--ctx ", "or less"]);
    place.all_refuse(&model, &place.path("missing.txt"), &[], 6, &["missing.txt", "cannot open"]);
    place.all_refuse(&model, &place.path(""), &[], 6, &["cannot read"]);
}

#[test]
fn extents_that_make_no_sense_are_usage_errors() {
    let place = Place::new();
    let (model, text) = (place.model(), common::fixture("text/prose.txt"));
    place.all_refuse(&model, &text, &["--ctx", "4"], USAGE, &["a context of 4 tokens"]);
    place.all_refuse(&model, &text, &["--ctx", "18446744073709551615"], USAGE, &["are possible"]);
    place.all_refuse(&model, &text, &["--ctx", "16777216"], BAD_INPUT, &["TextTooShort"]);
    place.all_refuse(&model, &text, &["--chunks", "0"], USAGE, &["at least 1"]);
    // llama.cpp's way to say all; no word of an option of that name.
    place.all_refuse(&model, &text, &["--chunks", "-1"], USAGE, &["invalid value '-1' for '--chunks <N>'"]);
    place.all_refuse(&model, &text, &["--device", "abacus"], USAGE, &["abacus"]);
    let short = place.file("short.txt", "a word and a word ".repeat(20));
    refuses(
        place.commands(&model, &short)[0].args(["--ctx", "200", "--stride", "8"]),
        BAD_INPUT,
        &["at least 201", "TextTooShort"],
    );
    common::succeeds(place.commands(&model, &short)[0].args(["--ctx", "100", "--stride", "8"]));
    for stride in ["0", "512", "99999999999"] {
        let [mut perplexity, ..] = place.commands(&model, &text);
        refuses(perplexity.args(["--stride", stride]), USAGE, &["stride"]);
    }
}

#[test]
fn files_that_are_no_models_are_refused() {
    let place = Place::new();
    let text = common::fixture("text/prose.txt");
    place.all_refuse(&text, &text, &[], BAD_INPUT, &["prose.txt"]);
    place.all_refuse(&common::fixture("imatrix/forge-3m.gguf"), &text, &[], BAD_INPUT, &["forge-3m.gguf"]);
    place.all_refuse(&place.path("missing.gguf"), &text, &[], 6, &["missing.gguf", "cannot open"]);
    let without_weights = rewritten(&place, "vocab.gguf", |header| header.tensors.clear());
    place.all_refuse(&without_weights, &text, &[], BAD_INPUT, &["vocab.gguf"]);
}

#[test]
fn a_model_that_computes_no_numbers_is_refused() {
    let place = Place::new();
    let mut bytes = fs::read(place.model()).expect("the model");
    let file = File::parse("model", &bytes).expect("a sound model");
    let tensor = file.tensor("blk.0.ffn_down.weight").expect("a tensor of the model");
    let first_block = file.tensor_bytes(&tensor).expect("data inside the file").as_ptr() as usize - bytes.as_ptr() as usize;
    // The scale of a Q8_0 block is its first two bytes; this one is not a number.
    bytes[first_block..first_block + 2].copy_from_slice(&0x7e00u16.to_le_bytes());
    let broken = place.file("nan.gguf", bytes);
    place.all_refuse(&broken, &common::fixture("text/prose.txt"), &["--ctx", "64"], BAD_INPUT, &["nan.gguf", "NonFinite"]);
}

#[test]
fn models_of_different_vocabularies_are_not_compared() {
    let place = Place::new();
    let text = common::fixture("text/prose.txt");
    let other = rewritten(&place, "other.gguf", |header| {
        let tokens = header.metadata.iter_mut().find(|(key, _)| key == "tokenizer.ggml.tokens").expect("a vocabulary");
        let Value::Array(Array::String(tokens)) = &mut tokens.1 else { panic!("tokens are strings") };
        tokens[1000] = b"\x1b[2Jhello".to_vec();
    });
    let mut compare = common::ggforge();
    compare.arg("compare").arg(place.model()).arg(&other).arg("--file").arg(&text);
    let message = refuses(&mut compare, BAD_INPUT, &["other.gguf", "token 1000", "one vocabulary", "VocabularyMismatch"]).stderr;
    assert!(!message.contains(&0x1b), "a file drives the terminal");
}

#[test]
fn an_importance_matrix_is_not_resumed_with_another_text() {
    let place = Place::new();
    let text = common::fixture("text/prose.txt");
    let imatrix = |output: &str, ctx: &str, more: &[&str]| {
        let mut command = common::ggforge();
        command.arg("imatrix").arg(place.model()).arg("--file").arg(&text).arg("--output").arg(place.path(output));
        command.args(["--ctx", ctx]).args(more);
        command
    };
    common::succeeds(&mut imatrix("part.gguf", "64", &["--chunks", "2"]));
    let part = place.path("part.gguf");
    let resume = ["--resume", part.to_str().expect("UTF-8")];
    let before = fs::read(&part).expect("the matrix");
    refuses(&mut imatrix("part.gguf", "64", &[]), USAGE, &["part.gguf", "--force"]);
    refuses(imatrix("out.gguf", "64", &["--chunks", "2"]).args(resume), USAGE, &["2 chunks already"]);
    refuses(imatrix("out.gguf", "32", &[]).args(resume), USAGE, &["--ctx 64", "merge"]);
    let calibration = common::fixture("imatrix/forge-3m.gguf");
    let resumed = ["--resume", calibration.to_str().expect("UTF-8")];
    refuses(imatrix("out.gguf", "64", &[]).args(resumed), USAGE, &["calibration.txt", "not from prose.txt", "merge"]);
    assert_eq!(fs::read(&part).expect("the matrix"), before, "a failed run changed it");
    // As another model's: a column more, and a tensor more.
    let wide = with_entry(&place, &part, "wide.gguf", "blk.0.attn_q.weight", 512);
    let deep = with_entry(&place, &part, "deep.gguf", "blk.99.attn_q.weight", 256);
    for (file, expected) in [(&wide, "blk.0.attn_q.weight"), (&deep, "blk.99.attn_q.weight")] {
        let mut command = imatrix("out.gguf", "64", &["--resume", file.to_str().expect("UTF-8")]);
        let code = if *file == wide { BAD_INPUT } else { USAGE };
        let said = refuses(&mut command, code, &[file.to_str().expect("UTF-8"), expected, "another model"]).stderr;
        assert!(!String::from_utf8_lossy(&said).contains("computing on"), "it was found out after the work");
    }
    assert_eq!(place.names(), ["deep.gguf", "model.gguf", "part.gguf", "wide.gguf"]);

    let output = common::succeeds(imatrix("out.gguf", "64", &["--chunks", "3", "--json"]).args(resume));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&report["chunk_count"], &report["datasets"]), (&3.into(), &serde_json::json!(["prose.txt"])));
}

/// An importance matrix with another entry under `name`.
fn with_entry(place: &Place, matrix: &Path, file: &str, name: &str, n_columns: usize) -> PathBuf {
    let mut matrix = Imatrix::open(matrix).expect("a matrix");
    matrix.entries.insert(name.to_owned(), Entry::new(vec![1.0; n_columns], vec![1]).expect("sound numbers"));
    let mut bytes = Vec::new();
    matrix.write_gguf(&mut bytes).expect("a matrix that can be written");
    place.file(file, bytes)
}

/// Where several files are read, a message that names none is of little use.
#[test]
fn what_cannot_be_run_is_said_of_a_file() {
    let place = Place::new();
    let text = common::fixture("text/prose.txt");
    let set = |header: &mut Header, key: &str, to: &str| {
        header.metadata.iter_mut().find(|(found, _)| found == key).expect("a key").1 = Value::from(to);
    };
    let other_words = rewritten(&place, "words.gguf", |header| set(header, "tokenizer.ggml.pre", "martian"));
    let other_family = rewritten(&place, "family.gguf", |header| set(header, "general.architecture", "martian"));
    for model in [&other_words, &other_family] {
        let name = model.file_name().and_then(|name| name.to_str()).expect("UTF-8");
        place.all_refuse(model, &text, &[], BAD_INPUT, &["martian", name]);
        let mut generate = common::ggforge();
        refuses(generate.arg("generate").arg(model).args(["--prompt", "a"]), BAD_INPUT, &["martian", name]);
    }
}

#[test]
fn a_vocabulary_that_is_not_the_models_is_refused() {
    let place = Place::new();
    let model = rewritten(&place, "more.gguf", |header| {
        for (key, value) in &mut header.metadata {
            match (key.as_str(), value) {
                ("tokenizer.ggml.tokens", Value::Array(Array::String(tokens))) => tokens.push(b"<|more|>".to_vec()),
                ("tokenizer.ggml.token_type", Value::Array(Array::I32(types))) => types.push(3),
                _ => {}
            }
        }
    });
    let expected = ["more.gguf: tokenizer.ggml.tokens: 2049 tokens", "2048 rows", "TokenizerInvalid"];
    place.all_refuse(&model, &common::fixture("text/prose.txt"), &[], BAD_INPUT, &expected);
}

/// Without it nobody would know why the text makes no sense.
#[test]
fn what_is_odd_about_a_vocabulary_is_told_before_it_is_used() {
    let place = Place::new();
    let odd = rewritten(&place, "odd.gguf", |header| header.metadata.retain(|(key, _)| key != "tokenizer.ggml.pre"));
    let output = common::succeeds(common::ggforge().arg("generate").arg(odd).args(["--prompt", "a", "-n", "1"]));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("warning: ") && said.contains("tokenizer.ggml.pre"), "{said}");
}

#[test]
fn a_signal_leaves_no_importance_matrix() {
    let place = Place::new();
    let text = place.file("long.txt", fs::read_to_string(common::fixture("text/prose.txt")).expect("a text").repeat(40));
    let before = place.names();
    let [_, _, mut command] = place.commands(&place.model(), &text);
    let child =
        command.args(["--save-every", "0"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("a program that starts");
    let output = stopped(child);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(143), "{message}");
    assert!(message.contains("no output was written"), "{message}");
    assert_eq!(place.names(), before);
}

/// What writes nothing ends at once, and says so as the others do.
#[test]
fn a_signal_ends_a_measurement() {
    let place = Place::new();
    let text = place.file("long.txt", fs::read_to_string(common::fixture("text/prose.txt")).expect("a text").repeat(400));
    let [mut perplexity, mut compare, _] = place.commands(&place.model(), &text);
    let mut generate = common::ggforge();
    generate.arg("generate").arg(place.model()).args(["--prompt", "a", "-n", "100000"]);
    for command in [&mut perplexity, &mut compare, &mut generate] {
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("a program that starts");
        let output = stopped(child);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(143), "{command:?}: {message}");
        assert!(message.contains("stopped by signal 15"), "{command:?}: {message}");
    }
}

/// How a program ends that is asked to by a signal, a little after it has begun to heed it.
fn stopped(child: Child) -> Output {
    // Not SIGINT, which a shell has its background jobs ignore.
    let signal = Signal::TERM;
    let deadline = Instant::now() + Duration::from_secs(60);
    let heeds = || {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).map(|mask| u64::from_str_radix(mask.trim(), 16));
        // Where the system does not tell, it is given its time.
        caught.is_none_or(|mask| mask.expect("a mask") & (1 << (signal.as_raw() - 1)) != 0)
    };
    while !heeds() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    thread::sleep(Duration::from_millis(300));
    kill_process(Pid::from_child(&child), signal).expect("it runs for longer");
    child.wait_with_output().expect("an end")
}

/// The model again under another name, with its header changed and its tensor data kept where it is still asked for.
fn rewritten(place: &Place, name: &str, change: impl FnOnce(&mut Header)) -> PathBuf {
    let bytes = fs::read(place.model()).expect("the model");
    let file = File::parse("model", &bytes).expect("a sound model");
    let specs = file.tensors().map(|tensor| TensorSpec {
        name: tensor.name.to_owned(),
        format: tensor.format,
        shape: tensor.shape.clone(),
    });
    let metadata = file.metadata().map(|(key, value)| (key.to_owned(), Value::from(value)));
    let mut header = Header { metadata: metadata.collect(), tensors: specs.collect() };
    change(&mut header);
    let layout = header.layout().expect("a sound header");
    let mut out = layout.header.clone();
    out.resize(layout.file_bytes as usize, 0);
    for (spec, (offset, size)) in header.tensors.iter().zip(layout.offsets_bytes.iter().zip(&layout.sizes_bytes)) {
        let tensor = file.tensor(&spec.name).expect("a tensor of the model");
        out[*offset as usize..][..*size as usize].copy_from_slice(file.tensor_bytes(&tensor).expect("data inside the file"));
    }
    place.file(name, out)
}
