//! Every example works: those of each command's help, and those of README.md.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{commands, fixture, ggforge, root, scratch};

/// Names that examples give to files of every kind; here all of them are the fixture model.
const MODELS: &[&str] = &[
    "llama.gguf",
    "llama-F16.gguf",
    "llama-BF16.gguf",
    "llama-Q8_0.gguf",
    "llama-Q4_K_M.gguf",
    "model.gguf",
    "forge-3m-BF16.gguf",
    "forge-3m-Q8_0.gguf",
    "forge-3m-Q4_K_M.gguf",
    "forge-3m-Q2_K.gguf",
    "forge-23m-F32.gguf",
    "forge-23m-Q8_0.gguf",
];

/// Commands that take minutes, or want a GPU: their examples are only parsed.
const ONLY_PARSED: &[&str] = &["ggforge bench formats", "ggforge bench matmul", "ggforge bench cuda"];

/// A folder with everything that examples read.
fn prepared() -> tempfile::TempDir {
    let dir = scratch();
    let path = dir.path();
    symlink(root().join("fixtures"), path.join("fixtures")).unwrap();
    for folder in ["models", "Llama-3.2-1B"] {
        fs::create_dir(path.join(folder)).unwrap();
    }
    for file in fs::read_dir(fixture("hf/forge-3m")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), path.join("Llama-3.2-1B").join(file.file_name())).unwrap();
    }
    fs::write(path.join("Llama-3.2-1B/chat_template.jinja"), "{{ messages }}").unwrap();
    symlink("../Llama-3.2-1B", path.join("models/Llama-3.2-1B")).unwrap();
    fs::write(path.join("chapter.txt"), "It was a dark and stormy night.").unwrap();
    for text in ["wiki.test.raw", "calibration.txt"] {
        fs::copy(fixture("text/prose.txt"), path.join(text)).unwrap();
    }
    for (name, part) in [("imatrix.gguf", "forge-3m.gguf"), ("part-1.gguf", "forge-3m.gguf"), ("part-2.dat", "forge-3m.dat")] {
        fs::copy(fixture("imatrix").join(part), path.join(name)).unwrap();
    }
    let convert = |arguments: &[&str]| {
        common::succeeds(ggforge().current_dir(path).args(["convert", "Llama-3.2-1B", "--type"]).args(arguments));
    };
    convert(&["F16", "--output", "model.gguf", "--split-max-size", "3M"]);
    for name in MODELS {
        let types = ["F32", "BF16", "Q8_0", "Q4_K_M", "Q2_K"];
        convert(&[types.into_iter().find(|kind| name.contains(kind)).unwrap_or("F16"), "--output", name]);
    }
    dir
}

/// The files of `prepared` once more, but for those that the example is going to write.
fn workplace(prepared: &Path, example: &str) -> tempfile::TempDir {
    let dir = scratch();
    for folder in ["out", ".local/share/bash-completion/completions", ".config/fish/completions"] {
        fs::create_dir_all(dir.path().join(folder)).unwrap();
    }
    let outputs = outputs(example);
    for entry in fs::read_dir(prepared).unwrap() {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name().into_string().unwrap())).unwrap();
        if !outputs.contains(&name) {
            symlink(fs::canonicalize(path).unwrap(), dir.path().join(name)).unwrap();
        }
    }
    dir
}

/// What stands behind `--output`, once for each type.
fn outputs(example: &str) -> Vec<String> {
    let value =
        |option: &str| example.split_whitespace().skip_while(|word| *word != option).nth(1).unwrap_or("").trim_matches('\'');
    value("--type").split(',').map(|kind| value("--output").replace("{type}", kind)).collect()
}

/// Runs the examples, each in a place of its own, with `ggforge` on the path.
fn all_work(examples: &[String]) {
    let prepared = prepared();
    let mut failures = String::new();
    for example in examples {
        let output = result(prepared.path(), example);
        // Where there is no GPU, a command that asks for one says so.
        let is_well = output.status.success() || example.contains("--device cuda") && output.status.code() == Some(7);
        if !is_well {
            failures += &format!("$ {example}\n{}\n{}\n", output.status, String::from_utf8_lossy(&output.stderr));
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

fn result(prepared: &Path, example: &str) -> Output {
    let dir = workplace(prepared, example);
    let program = PathBuf::from(env!("CARGO_BIN_EXE_ggforge"));
    let search = format!("{}:/usr/bin:/bin", program.parent().unwrap().display());
    let line = match ONLY_PARSED.iter().find_map(|command| example.find(command)) {
        Some(at) => format!("{} --help", &example[at..]),
        None => example.to_owned(),
    };
    let mut shell = Command::new("sh");
    shell.current_dir(dir.path()).env("HOME", dir.path()).env("PATH", search).args(["-c", &line]);
    shell.output().expect("a shell")
}

#[test]
fn every_command_s_help_has_examples_that_work() {
    let mut examples = Vec::new();
    for command in commands() {
        let help = common::succeeds(ggforge().args(command.split_whitespace()).arg("--help"));
        let help = String::from_utf8(help.stdout).unwrap().replace("\\\n", " ");
        let (_, below) = help.split_once("Examples:\n").unwrap_or_else(|| panic!("ggforge {command}: no examples"));
        let before = examples.len();
        let lines = below.lines().take_while(|line| line.starts_with("  "));
        examples.extend(lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")));
        assert!(examples.len() > before && examples[before..].iter().all(|e| e.contains("ggforge")), "ggforge {command}");
    }
    all_work(&examples);
}

#[test]
fn every_command_line_of_the_readme_works() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let mut examples = Vec::new();
    for block in readme.split("```").skip(1).step_by(2) {
        let is_script = block.starts_with("sh\n");
        for line in block.lines().skip(1) {
            let line = if is_script { Some(line) } else { line.strip_prefix("$ ") };
            let command = line.map(|line| line.split("  #").next().unwrap_or(line).trim());
            examples.extend(command.filter(|command| command.contains("ggforge ")).map(str::to_owned));
        }
    }
    assert!(examples.len() >= 20, "{examples:#?}");
    all_work(&examples);
}
