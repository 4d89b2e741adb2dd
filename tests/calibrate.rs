//! Rounding by what a text puts into the matrices: files of the same size that lose less on other texts, no matrix that loses more on the
//! text that was held out, and the same bytes whatever computes them.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use ggforge::gguf::{Array, File, Model, Value};
use serde_json::Value as Json;

fn forge_3m() -> PathBuf {
    common::fixture("hf/forge-3m")
}

fn prose() -> PathBuf {
    common::fixture("text/prose.txt")
}

/// The model as it was trained, as a file.
fn base(folder: &Path) -> PathBuf {
    let path = folder.join("base.gguf");
    common::succeeds(common::ggforge().arg("convert").arg(forge_3m()).args(["--type", "F32", "--output"]).arg(&path));
    path
}

fn quantize(base: &Path, types: &str, to: &Path) -> Command {
    let mut command = common::ggforge();
    command.arg("quantize").arg(base).args(["--type", types, "--json", "--output"]).arg(to);
    command
}

fn json(output: std::process::Output) -> Json {
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// What a file says of its calibration, by the last part of the key.
fn entries_of(path: &Path) -> impl Fn(&str) -> Value + use<> {
    let metadata = Model::open(path).expect("a file that was just made").to_metadata();
    move |name| {
        let key = format!("ggforge.calibration.{name}");
        metadata.iter().find(|(found, _)| *found == key).unwrap_or_else(|| panic!("{key}")).1.clone()
    }
}

/// The mean divergences of files from the base, on a text.
fn divergences(base: &Path, files: &[PathBuf], text: &Path) -> Vec<f64> {
    let mut command = common::ggforge();
    command.arg("compare").arg(base).args(files).args(["--json", "--chunks", "8", "--file"]).arg(text);
    let compared = json(common::succeeds(&mut command));
    let of = |file: &Json| file["kld"]["mean"]["value"].as_f64().unwrap_or_else(|| panic!("a mean divergence: {file}"));
    compared["files"].as_array().expect("files").iter().map(of).collect()
}

/// As the reference quantizes with an importance matrix of the same text, and calibrated: each at most 0.7 of the divergence on a text that
/// neither has seen.
#[test]
fn calibrated_files_lose_less_on_another_text() {
    let Some(text) = common::shared("text/calibration.txt") else { return };
    let folder = common::scratch();
    let base = base(folder.path());
    let imatrix = folder.path().join("imatrix.gguf");
    common::succeeds(
        common::ggforge()
            .arg("imatrix")
            .arg(&base)
            .args(["--output-layer", "--chunks", "16", "--file"])
            .arg(&text)
            .arg("--output")
            .arg(&imatrix),
    );
    let types = ["Q4_K_M", "Q4_0", "IQ4_XS", "Q2_K", "Q8_0"];
    let paths = |name: &str| -> Vec<PathBuf> { types.iter().map(|t| folder.path().join(format!("{name}-{t}.gguf"))).collect() };
    let to = |name: &str| folder.path().join(format!("{name}-{{type}}.gguf"));
    common::succeeds(quantize(&base, &types.join(","), &to("importance")).arg("--imatrix").arg(&imatrix));
    let made = json(common::succeeds(
        quantize(&base, &types.join(","), &to("calibrated")).args(["--calibrate-chunks", "12", "--calibrate"]).arg(&text),
    ));
    for choice in made["calibration"]["matrices"].as_array().expect("choices") {
        assert!(choice["held_out_error"].as_f64() <= choice["held_out_error_by_importance"].as_f64(), "{choice}");
    }
    let before = divergences(&base, &paths("importance"), &prose());
    let after = divergences(&base, &paths("calibrated"), &prose());
    for (name, (before, after)) in types.iter().zip(before.iter().zip(&after)) {
        println!("{name}: {after:.3e} of {before:.3e}, {:.3}", after / before);
        assert!(after < &(0.7 * before), "{name}: {after} calibrated, {before} by importance");
    }
    for (before, after) in paths("importance").iter().zip(&paths("calibrated")) {
        let tensors = |path: &Path| -> Vec<(String, ggforge::quant::Format)> {
            let file = File::open(path).expect("a file that was just made");
            file.tensors().map(|tensor| (tensor.name.to_owned(), tensor.format)).collect()
        };
        assert_eq!(tensors(before), tensors(after), "the same types");
    }
    let entry = entries_of(&paths("calibrated")[0]);
    let hash = common::described::sha256(&std::fs::read(&text).expect("the text"));
    let strings = |text: &str| Value::Array(Array::String(vec![text.as_bytes().to_vec()]));
    assert_eq!(entry("texts"), strings("calibration.txt"));
    assert_eq!(entry("sha256"), strings(&hash));
    assert_eq!(entry("tokens"), Value::Array(Array::U32(vec![12 * 512])));
    assert_eq!(entry("chunk_count"), Value::U32(12));
}

#[test]
fn threads_and_levels_do_not_change_the_bytes() {
    let folder = common::scratch();
    let base = base(folder.path());
    let made = |name: &str, threads: &str, level: &str| {
        let path = folder.path().join(name);
        let mut command = quantize(&base, "Q4_K_M", &path);
        command.args(["--calibrate-chunks", "2", "--threads", threads, "--calibrate"]).arg(prose()).env("GGFORGE_SIMD", level);
        common::succeeds(&mut command);
        std::fs::read(path).expect("the file")
    };
    let one = made("one.gguf", "1", "avx2");
    assert!(one == made("three.gguf", "3", "avx2"), "one thread, three threads");
    assert!(one == made("best.gguf", "2", "amx"), "AVX2, the best level");
}

/// Texts that say next to nothing of what the model will read: one word again and again, two chunks.
#[test]
fn no_matrix_loses_more_on_what_was_held_out() {
    let folder = common::scratch();
    let base = base(folder.path());
    let text = folder.path().join("text.txt");
    for (name, words) in [("one word", "the ".repeat(4000)), ("two chunks", std::fs::read_to_string(prose()).expect("prose"))] {
        std::fs::write(&text, words).expect("a text");
        let to = folder.path().join(format!("{name}.gguf"));
        let made =
            json(common::succeeds(quantize(&base, "Q3_K_M", &to).args(["--calibrate-chunks", "2", "--calibrate"]).arg(&text)));
        let choices = made["calibration"]["matrices"].as_array().expect("choices");
        assert!(choices.len() > 20, "{name}: {} matrices", choices.len());
        for choice in choices {
            let [error, before] =
                ["held_out_error", "held_out_error_by_importance"].map(|key| choice[key].as_f64().expect("a number"));
            assert!(error <= before, "{name}: {choice}");
        }
    }
}

/// Before the work, not after it; and `--dry-run` does none.
#[test]
fn what_cannot_be_written_is_refused_before_the_text_is_read_by_the_model() {
    let folder = common::scratch();
    let base = base(folder.path());
    let to = folder.path().join("to.gguf");
    std::fs::write(&to, "something else").expect("a file");
    let output = quantize(&base, "Q4_0", &to).arg("--calibrate").arg(prose()).output().expect("a program that starts");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && message.contains("--force"), "{message}");
    let planned = json(common::succeeds(
        quantize(&base, "Q4_0", &folder.path().join("new.gguf")).args(["--dry-run", "--calibrate"]).arg(prose()),
    ));
    assert_eq!(planned["calibration"], Json::Null);
    let mut sized = common::ggforge();
    sized.arg("convert").arg(forge_3m()).args(["--type", "Q4_0", "--dry-run", "--bpw", "5", "--calibrate"]).arg(prose());
    let said = common::succeeds(&mut sized).stderr;
    assert!(String::from_utf8_lossy(&said).contains("types are chosen when the model has read the text"));
    assert!(!folder.path().join("new.gguf").exists());
}

/// The same as through a file of the folder's own type.
#[test]
fn a_model_folder_is_calibrated_as_its_file_is() {
    let folder = common::scratch();
    let (own, by_file, at_once) =
        (folder.path().join("own.gguf"), folder.path().join("by-file.gguf"), folder.path().join("at-once.gguf"));
    common::succeeds(common::ggforge().arg("convert").arg(forge_3m()).arg("--output").arg(&own));
    let text = ["--calibrate-chunks", "2", "--calibrate"];
    common::succeeds(quantize(&own, "Q4_0", &by_file).args(text).arg(prose()));
    let mut convert = common::ggforge();
    convert.arg("convert").arg(forge_3m()).args(["--type", "Q4_0", "--output"]).arg(&at_once).args(text).arg(prose());
    common::succeeds(&mut convert);
    assert!(std::fs::read(by_file).expect("a file") == std::fs::read(at_once).expect("a file"), "the same bytes");
}

/// Types chosen for a size: within it, near it, and better than the preset of that size.
#[test]
fn types_chosen_for_a_size_lose_less_than_the_preset_of_that_size() {
    let Some(text) = common::shared("text/calibration.txt") else { return };
    let folder = common::scratch();
    let base = base(folder.path());
    let (preset, chosen, sized) =
        (folder.path().join("preset.gguf"), folder.path().join("chosen.gguf"), folder.path().join("sized.gguf"));
    let with_text =
        |command: &mut Command| json(common::succeeds(command.args(["--calibrate-chunks", "6", "--calibrate"]).arg(&text)));
    let of_preset = with_text(&mut quantize(&base, "Q4_K_M", &preset));
    let bpw = of_preset["outputs"][0]["bits_per_weight"].as_f64().expect("bits");
    let of_chosen = with_text(quantize(&base, "Q4_K_M", &chosen).args(["--bpw", &bpw.to_string()]));
    let found = of_chosen["outputs"][0]["bits_per_weight"].as_f64().expect("bits");
    assert!(found <= bpw && found > 0.97 * bpw, "{found} bits for {bpw}");
    let [before, after] = divergences(&base, &[preset.clone(), chosen], &prose())[..] else { panic!("two files") };
    println!("{after} by choice, {before} by the preset");
    assert!(after < before, "{after} by choice, {before} by the preset");
    let wanted = std::fs::metadata(&preset).expect("a file").len() * 9 / 10;
    with_text(quantize(&base, "Q4_K_M", &sized).args(["--size", &wanted.to_string()]));
    let size = std::fs::metadata(&sized).expect("a file").len();
    assert!(size <= wanted && size > wanted / 100 * 97, "{size} bytes for {wanted}");
    let mut too_small = quantize(&base, "Q4_K_M", &folder.path().join("none.gguf"));
    let output = too_small.args(["--bpw", "2", "--calibrate-chunks", "2", "--calibrate"]).arg(&text).output();
    let message = String::from_utf8(output.expect("a program that starts").stderr).expect("UTF-8");
    assert!(message.contains("allow more") && !folder.path().join("none.gguf").exists(), "{message}");
}

/// Text that the model writes: the same whatever computes it, in turn with a file's, and better than none on a text that it has not seen.
#[test]
fn the_model_writes_the_text_itself() {
    let folder = common::scratch();
    let base = base(folder.path());
    let to = |name: &str| folder.path().join(name);
    let with_self = |name: &str, threads: &str, level: &str, chunks: &str, texts: &[&Path]| {
        let mut command = quantize(&base, "Q4_0", &to(name));
        command.args(["--calibrate-chunks", chunks, "--threads", threads]).env("GGFORGE_SIMD", level);
        for text in texts {
            command.arg("--calibrate").arg(text);
        }
        common::succeeds(&mut command);
        std::fs::read(to(name)).expect("the file")
    };
    let itself = Path::new("self");
    let one = with_self("one.gguf", "1", "avx2", "8", &[itself]);
    assert!(one == with_self("three.gguf", "3", "amx", "8", &[itself]), "one thread, three threads at the best level");
    common::succeeds(&mut quantize(&base, "Q4_0", &to("plain.gguf")));
    let [before, after] = divergences(&base, &[to("plain.gguf"), to("one.gguf")], &prose())[..] else { panic!("two files") };
    println!("{after} by its own text, {before} without");
    assert!(after < 0.6 * before, "{after} by its own text, {before} without");
    with_self("both.gguf", "2", "amx", "3", &[&prose(), itself]);
    let entry = entries_of(&to("both.gguf"));
    let names = [&b"prose.txt"[..], b"self"].map(<[u8]>::to_vec).to_vec();
    assert_eq!(entry("texts"), Value::Array(Array::String(names)));
    assert_eq!(entry("tokens"), Value::Array(Array::U32(vec![1024, 512])));
    let Value::Array(Array::String(hashes)) = entry("sha256") else { panic!("hashes") };
    assert!(hashes.len() == 2 && hashes.iter().all(|hash| hash.len() == 64 && hash.iter().any(|digit| *digit != b'0')));
}
