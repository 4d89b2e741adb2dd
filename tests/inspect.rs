//! `ggforge inspect`: what it shows of a file is what the file holds, nothing in it reaches the terminal raw, and a file that
//! cannot be read ends the program with 3.

#[path = "hostile/build.rs"]
mod build;
mod common;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use build::*;
use ggforge::error::is_harmless;
use serde_json::{Value as Json, json};

fn inspect(path: &Path) -> Command {
    let mut command = common::ggforge();
    command.arg("inspect").arg(path);
    command
}

fn stdout(command: &mut Command) -> String {
    String::from_utf8(common::succeeds(command).stdout).expect("UTF-8")
}

fn parsed(command: &mut Command) -> Json {
    let text = stdout(command.arg("--json"));
    assert_printable(&text);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[track_caller]
fn assert_printable(text: &str) {
    let bad = text.chars().find(|&c| c != '\n' && !is_harmless(c));
    assert_eq!(bad, None, "{text:?}");
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(common::scratch())
    }

    fn file(&self, name: &str, bytes: Vec<u8>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).expect("a writable folder");
        path
    }
}

/// A small model: 3 x 64 weights in Q8_0 (34 bytes per 32), 5 in F32.
fn model() -> Gg {
    gg().kv("general.architecture", STRING, s("llama"))
        .kv("general.file_type", U32, d(15))
        .kv("llama.attention.layer_norm_rms_epsilon", F32, 1e-5f32.to_le_bytes())
        .kv("numbers", ARRAY, a(U8, 100, &(0..100).collect::<Vec<u8>>()))
        .kv("template", STRING, s("{% if a %}\n\tb\n{% endif %}"))
        .ti("token_embd.weight", &[64, 3], ggml::Q8_0, 0)
        .ti("output_norm.weight", &[5], ggml::F32, 224)
        .data(vec![0; 256])
}

#[test]
fn the_report_shows_metadata_types_and_tensors() {
    let folder = Folder::new();
    let path = folder.file("m.gguf", model().bytes());
    let text = stdout(inspect(&path).arg("--tensors"));
    let lines: Vec<&str> = text.lines().map(|line| line.strip_prefix(&*path.to_string_lossy()).unwrap_or(line)).collect();
    let header = model().header().len();
    let offset = header.next_multiple_of(32);
    let expected = format!(
        "\
: llama, Q4_K_M
  197 weights in 2 tensors, 9.10 bits per weight
  {size} B, of which header {header} B; GGUF version 3, alignment 32

metadata
  general.architecture                    string   llama
  general.file_type                       u32      15 (Q4_K_M)
  llama.attention.layer_norm_rms_epsilon  f32      1e-5
  numbers                                 u8[100]  [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, …]
  template                                string   {{% if a %}}\\n\\tb\\n{{% endif %}}

types
  type  tensors  weights   size  percent  bits per weight
  Q8_0        1      192  204 B     91.1             8.50
  F32         1        5   20 B      8.9            32.00

tensors
  name                type  shape   weights   size  offset
  token_embd.weight   Q8_0  3 x 64      192  204 B     {offset}
  output_norm.weight  F32   5             5   20 B     {}",
        offset + 224,
        size = model().bytes().len(),
    );
    assert_eq!(lines.join("\n"), expected);
}

#[test]
fn json_holds_the_same_exactly() {
    let folder = Folder::new();
    let path = folder.file("m.gguf", model().bytes());
    let report = parsed(inspect(&path).arg("--tensors"));
    assert_eq!(report["architecture"], json!("llama"));
    assert_eq!(report["file_type"], json!("Q4_K_M"));
    assert_eq!((&report["n_weights"], &report["n_tensors"], &report["tensor_bytes"]), (&json!(197), &json!(2), &json!(224)));
    assert_eq!(report["bits_per_weight"], json!(224.0 * 8.0 / 197.0));
    assert_eq!(report["metadata"][2], json!({"key": "llama.attention.layer_norm_rms_epsilon", "type": "f32", "value": 1e-5}));
    let numbers: Vec<u8> = (0..16).collect();
    assert_eq!(
        report["metadata"][3],
        json!({"key": "numbers", "type": "array", "element_type": "u8", "length": 100, "value": numbers, "shortened": true})
    );
    let offset = model().header().len().next_multiple_of(32);
    assert_eq!(
        report["tensors"][0],
        json!({"name": "token_embd.weight", "type": "Q8_0", "shape": [3, 64], "n_weights": 192, "size_bytes": 204,
            "offset_bytes": offset, "file": "m.gguf"})
    );
    assert_eq!(report["types"][0]["bits_per_weight"], json!(8.5));
    assert_eq!(parsed(&mut inspect(&path))["tensors"], Json::Null);
}

#[test]
fn one_key_is_printed_whole() {
    let folder = Folder::new();
    let path = folder.file("m.gguf", model().bytes());
    assert_eq!(stdout(inspect(&path).args(["--key", "template"])), "{% if a %}\n\tb\n{% endif %}\n");
    assert_eq!(stdout(inspect(&path).args(["--key", "numbers"])).lines().count(), 100);
    let numbers = parsed(inspect(&path).args(["--key", "numbers"]));
    assert_eq!((numbers["value"].as_array().map(Vec::len), &numbers["shortened"]), (Some(100), &json!(false)));
    let output = inspect(&path).args(["--key", "rms"]).output().expect("a program that starts");
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("there is llama.attention.layer_norm_rms_epsilon"), "{text}");
}

#[test]
fn a_split_model_is_shown_whole_or_by_its_shard() {
    let folder = Folder::new();
    let shard = |no: u16, tensor: &str| {
        gg().kv("split.no", U16, no.to_le_bytes())
            .kv("split.count", U16, [2, 0])
            .kv("split.tensors.count", I32, d(2))
            .ti(tensor, &[4], ggml::F32, 0)
            .data(vec![0; 32])
            .bytes()
    };
    let first = folder.file("m-00001-of-00002.gguf", shard(0, "a"));
    let second = folder.file("m-00002-of-00002.gguf", shard(1, "b"));
    for path in [&first, &second] {
        let report = parsed(inspect(path).arg("--tensors"));
        assert_eq!((report["files"].as_array().map(Vec::len), &report["n_tensors"]), (Some(2), &json!(2)));
        assert_eq!(report["tensors"][1]["file"], json!("m-00002-of-00002.gguf"));
    }
    std::fs::remove_file(&first).expect("a file");
    let output = common::succeeds(&mut inspect(&second));
    assert!(String::from_utf8_lossy(&output.stderr).contains("shard 1 of 2 does not exist"), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("4 weights in 1 tensor,"), "{output:?}");
    assert_eq!(parsed(&mut inspect(&second))["warnings"].as_array().map(Vec::len), Some(1));
}

#[test]
fn rows_55_to_65_odd_hyperparameters_and_vocabularies_are_only_shown() {
    let folder = Folder::new();
    let arch = |name: &str| gg().kv("general.architecture", STRING, s(name));
    let llama = |key: &str, value_type, value: Vec<u8>| arch("llama").kv(key, value_type, value);
    let long = "%s%n".repeat(20_000);
    let cases = [
        gg(),
        gg().kv("general.architecture", U32, d(1)),
        arch(&long),
        arch(&long).kv(format!("{}.block_count", &long[..65_000]), U32, d(1)),
        llama("llama.block_count", U32, d(0)),
        llama("llama.block_count", U32, d(u32::MAX)),
        llama("llama.attention.head_count", U32, d(0)),
        llama("llama.attention.layer_norm_rms_epsilon", F32, f32::NAN.to_le_bytes().to_vec()),
        llama("x", F64, f64::INFINITY.to_le_bytes().to_vec()),
        llama("general.file_type", U32, d(u32::MAX)),
        llama("general.file_type", STRING, s("x")),
        llama("tokenizer.ggml.tokens", ARRAY, a(U32, 2, &[0; 8])),
        llama("tokenizer.ggml.tokens", ARRAY, a(STRING, 3, &[s(b"\xff\xfe"), s(""), s(&long)].concat())),
        llama("tokenizer.ggml.bos_token_id", U32, d(4_000_000_000)),
        llama("tokenizer.chat_template", STRING, s(format!("{{{{ {} }}}}", "(".repeat(10_000)))),
        arch("llama").ti("t", &[0], ggml::Q4_K, 0).data(vec![]),
    ];
    for (i, case) in cases.iter().enumerate() {
        let path = folder.file(&format!("{i}.gguf"), case.bytes());
        let text = stdout(inspect(&path).arg("--tensors"));
        assert_printable(&text);
        let longest = text.lines().map(|line| line.chars().count()).max();
        assert!(longest < Some(400), "case {i}: a line of {longest:?} characters");
        parsed(inspect(&path).arg("--tensors"));
    }
}

#[test]
fn nothing_in_a_file_reaches_the_terminal_raw() {
    let folder = Folder::new();
    let evil = "\u{1b}[2J\u{1b}]0;x\u{7}\r\n\u{9b}31m\u{202e}\u{2066}\u{7f}";
    let gg = gg()
        .kv("general.architecture", STRING, s(evil))
        .kv("text", STRING, s(evil))
        .kv("texts", ARRAY, a(STRING, 2, &[s(evil), s(b"\x1b\xff")].concat()))
        .ti(evil, &[4], ggml::F32, 0)
        .data(vec![0; 40]);
    let path = folder.file("\u{1b}[31m evil.gguf", gg.bytes());
    let output = common::succeeds(inspect(&path).arg("--tensors"));
    assert_printable(&String::from_utf8(output.stdout).expect("UTF-8"));
    let warnings = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(warnings.contains("8 bytes follow the last tensor"), "{warnings}");
    assert_printable(&warnings);
    for key in ["text", "texts"] {
        assert_printable(&stdout(inspect(&path).args(["--key", key])));
    }
    assert_eq!(parsed(inspect(&path).args(["--key", "text"]))["value"], json!(evil));
    assert_eq!(parsed(inspect(&path).arg("--tensors"))["tensors"][0]["name"], json!(evil));
}

#[test]
fn what_cannot_be_read_ends_with_3_and_a_reader_that_leaves_is_no_failure() {
    let folder = Folder::new();
    let code = |path: &Path| -> (Option<i32>, String) {
        let Output { status, stderr, stdout } = inspect(path).arg("--verbose").output().expect("a program that starts");
        assert_eq!(stdout, b"");
        (status.code(), String::from_utf8(stderr).expect("UTF-8"))
    };
    let cut = model().bytes()[..100].to_vec();
    for (name, bytes, fault) in
        [("cut.gguf", cut, "Truncated"), ("lfs.gguf", b"version https://git-lfs.github.com/spec/v1".to_vec(), "NotGguf")]
    {
        let (code, text) = code(&folder.file(name, bytes));
        assert_eq!(code, Some(3), "{text}");
        assert!(text.contains(fault) && text.contains(name), "{text}");
    }
    assert_eq!(code(folder.0.path()).0, Some(3));
    assert_eq!(code(Path::new("absent.gguf")).0, Some(6));

    let many = (0..20_000).fold(gg(), |gg, i| gg.kv(format!("key.{i}"), U8, [1]));
    let path = folder.file("many.gguf", many.bytes());
    let mut child = inspect(&path).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a program that starts");
    let mut first = [0; 10];
    child.stdout.take().expect("piped").read_exact(&mut first).expect("ten bytes");
    let output = child.wait_with_output().expect("an end");
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}

/// 200,000 tensors in a header of 10 MiB, and an array of three million numbers: reports are written while they are made, in the address
/// space that the program, the file and what is known of each tensor take. As trees they took 390 MiB.
#[test]
fn long_reports_take_little_memory() {
    const N_TENSORS: usize = 200_000;
    const N_NUMBERS: usize = 3_000_000;
    let folder = Folder::new();
    let start = gg().kv("numbers", ARRAY, a(U8, N_NUMBERS as u64, &vec![7; N_NUMBERS]));
    let tensors = (0..N_TENSORS).fold(start, |gg, i| gg.ti(format!("t{i:06}"), &[1], ggml::F32, 32 * i as u64));
    let path = folder.file("m.gguf", tensors.data(vec![0; 32 * N_TENSORS]).bytes());
    let report = |arguments: &[&str]| -> Json {
        let line = "ulimit -v 280000; exec \"$0\" inspect --json \"$@\"";
        let mut command = Command::new("sh");
        command.env("MALLOC_ARENA_MAX", "1").args(["-c", line]).arg(common::ggforge().get_program()).args(arguments).arg(&path);
        serde_json::from_slice(&common::succeeds(&mut command).stdout).expect("JSON")
    };
    let tensors = &report(&["--tensors"])["tensors"];
    assert_eq!(tensors.as_array().map(Vec::len), Some(N_TENSORS));
    assert_eq!(tensors[N_TENSORS - 1]["name"], json!("t199999"));
    assert_eq!(report(&["--key", "numbers"])["value"].as_array().map(Vec::len), Some(N_NUMBERS));
}

#[test]
fn every_gguf_file_of_the_shared_data_can_be_shown() {
    let Some(folder) = common::shared("vocab") else { return };
    let mut n_shown = 0;
    for entry in std::fs::read_dir(&folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "gguf") {
            assert_printable(&stdout(&mut inspect(&path)));
            assert!(parsed(&mut inspect(&path))["metadata"].as_array().is_some_and(|entries| entries.len() > 10));
            n_shown += 1;
        }
    }
    assert!(n_shown >= 9, "only {n_shown} files");
}
