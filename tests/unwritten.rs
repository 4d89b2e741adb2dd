//! A model folder is run as the file that it would become: byte for byte that file, without its being written.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use common::checkpoint::cases;
use common::{fixture, ggforge, scratch, succeeds};
use ggforge::gguf::Model;
use ggforge::pipeline::{self, Options};
use ggforge::plan::{self, ConvertOptions};
use ggforge::source::TensorSource;
use serde_json::Value;

/// Bytes that are read at a time: within rows, over the ends of tensors, and all of it.
const LENGTHS: [usize; 4] = [7, 1000, 65_537, 1 << 30];

/// The folder as a file of its own type, and the same without writing one.
fn both(folder: &Path, to: &Path) -> (PathBuf, Model) {
    let open = || plan::open_folder(folder).expect("a model folder");
    let mut planned = plan::convert(&open(), &ConvertOptions::default()).expect("a plan");
    let never = AtomicBool::new(false);
    let _ = fs::remove_file(to);
    pipeline::run(&planned, &open(), &[to.to_owned()], &Options::default(), &|_| {}, &never).expect("a conversion");
    let input = pipeline::unwritten(open(), planned.outputs.swap_remove(0)).expect("an output");
    (to.to_owned(), Model::of_input(input).expect("a model"))
}

#[test]
fn every_byte_is_that_of_the_file() {
    let scratch = scratch();
    let mut folders: Vec<PathBuf> = vec![fixture("hf/forge-3m")];
    for case in cases() {
        folders.extend(case.layouts().iter().map(|layout| case.write(layout, scratch.path())));
    }
    assert!(folders.len() > 20, "{folders:?}");
    for folder in folders {
        let (path, model) = both(&folder, &scratch.path().join("written.gguf"));
        let written = fs::read(path).expect("the file");
        let [input] = model.files() else { panic!("one file") };
        assert_eq!(input.size_bytes(), written.len() as u64, "{}", folder.display());
        // Small pieces of large models would take long, and show no more.
        let lengths = LENGTHS.iter().filter(|length| written.len() / **length < 10_000);
        for length in lengths {
            let mut found = vec![0xaa; written.len()];
            for (piece, bytes) in found.chunks_mut(*length).enumerate() {
                input.read_exact_at(bytes, (piece * length) as u64).expect("bytes");
            }
            let differs = found.iter().zip(&written).position(|(a, b)| a != b);
            assert_eq!(differs, None, "{}: in pieces of {length}", folder.display());
        }
        let beyond = input.read_exact_at(&mut [0; 2], written.len() as u64 - 1);
        assert!(beyond.is_err(), "{}: a byte behind the end", folder.display());
        input.check_unchanged().expect("nobody has changed it");
    }
}

#[test]
fn a_change_of_the_folder_is_noticed() {
    let scratch = scratch();
    let folder = scratch.path().join("folder");
    fs::create_dir(&folder).unwrap();
    for entry in fs::read_dir(fixture("hf/forge-3m")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    let (_, model) = both(&folder, &scratch.path().join("written.gguf"));
    let weights = fs::read(folder.join("model.safetensors")).unwrap();
    fs::write(folder.join("model.safetensors"), &weights[..weights.len() - 100]).unwrap();
    let [input] = model.files() else { panic!("one file") };
    let mut all = vec![0; input.size_bytes() as usize];
    for error in [input.check_unchanged().unwrap_err(), input.read_exact_at(&mut all, 0).unwrap_err()] {
        assert!(matches!(error, ggforge::Error::InputChanged { .. }), "{error}");
    }
}

/// What a command prints, as JSON without what the time and the name of the model make different.
fn report(dir: &Path, arguments: &str, without: &[&str]) -> Value {
    let output = succeeds(ggforge().current_dir(dir).args(arguments.split_whitespace()));
    let mut report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let object = report.as_object_mut().expect("an object");
    without.iter().for_each(|key| drop(object.remove(*key)));
    report
}

#[test]
fn commands_that_run_a_model_take_its_folder() {
    let scratch = scratch();
    let dir = scratch.path();
    std::os::unix::fs::symlink(fixture("hf/forge-3m"), dir.join("model")).unwrap();
    std::os::unix::fs::symlink(fixture("text/prose.txt"), dir.join("text")).unwrap();
    succeeds(ggforge().current_dir(dir).args(["convert", "model", "-q", "-o", "base.gguf"]));
    succeeds(ggforge().current_dir(dir).args(["convert", "model", "-q", "-o", "quant.gguf", "-t", "Q4_0"]));
    let same = |arguments: &str, without: &[&str]| {
        let of = |model: &str| report(dir, &arguments.replace("MODEL", model), without);
        assert_eq!(of("model"), of("base.gguf"), "{arguments}");
    };
    let time = ["seconds", "tokens_per_second", "model"];
    same("perplexity MODEL -f text --ctx 64 --chunks 20 --json", &time);
    same("tokenize MODEL Hello --json", &[]);
    same("generate MODEL Once -n 8 --json", &time);
    same("logits MODEL --tokens 1,2,3 --json", &time);
    same("imatrix MODEL -f text --ctx 64 --chunks 8 --output i.gguf --force --json", &time);
    let compared = |base: &str| {
        let mut report = report(dir, &format!("compare {base} quant.gguf -f text --ctx 64 --chunks 20 --json"), &time);
        report["base"]["file"] = Value::Null;
        report
    };
    let found = compared("model");
    assert_eq!(found, compared("base.gguf"));
    assert!(found["files"][0]["kld"]["mean"]["value"].as_f64().is_some_and(|kld| kld > 0.0), "{found}");
    succeeds(ggforge().current_dir(dir).args(["bench", "model", "model", "--prompt", "8", "--generate", "2", "--samples", "1"]));

    // Its files are inputs as those of a file are.
    let config = fs::read(dir.join("model/config.json")).unwrap();
    for arguments in [
        "compare model quant.gguf -f text --report model/config.json --force",
        "imatrix model -f text --output model/config.json --force",
        "logits model --tokens 1 --output model/config.json --force",
    ] {
        let output = ggforge().current_dir(dir).args(arguments.split_whitespace()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments}: {output:?}");
        assert!(fs::read(dir.join("model/config.json")).unwrap() == config, "{arguments}");
    }
    // A folder that is no model is refused as a conversion refuses it.
    fs::create_dir(dir.join("empty")).unwrap();
    let output = ggforge().current_dir(dir).args(["perplexity", "empty", "-f", "text"]).output().unwrap();
    assert!(output.status.code() == Some(3) && String::from_utf8_lossy(&output.stderr).contains("config.json"), "{output:?}");
}
