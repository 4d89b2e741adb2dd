//! Rounding by what a text puts into the matrices: files of the same size that lose less on other texts, no matrix that loses more on the
//! text that was held out, and the same bytes whatever computes them.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use ggforge::gguf::{Array, File, Header, Model, TensorSpec, Value};
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

/// As `compare` measures it; what was predicted is of that size, and in the file.
#[test]
fn the_divergence_is_measured_and_predicted() {
    let folder = common::scratch();
    let base = base(folder.path());
    let to = folder.path().join("to.gguf");
    let mut command = quantize(&base, "Q4_K_M", &to);
    command.args(["--bpw", "4.5", "--calibrate-chunks", "3", "--calibrate", "self", "--measure"]).arg(prose());
    let made = json(common::succeeds(&mut command));
    let measured = made["measured"]["kld"][0]["mean"].as_f64().expect("a mean divergence");
    let n_chunks = made["measured"]["chunks"].as_u64().expect("a number").to_string();
    let mut compare = common::ggforge();
    compare.arg("compare").arg(&base).arg(&to).args(["--json", "--chunks", &n_chunks, "--file"]).arg(prose());
    assert_eq!(json(common::succeeds(&mut compare))["files"][0]["kld"]["mean"]["value"], measured);
    let Value::F32(predicted) = entries_of(&to)("predicted_kld") else { panic!("a number") };
    println!("{predicted} predicted, {measured} measured");
    assert!(f64::from(predicted) > measured / 4.0 && f64::from(predicted) < 4.0 * measured, "{predicted} for {measured}");
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

/// The arguments of a text that is read in a few chunks.
fn with_text<'c>(command: &'c mut Command, text: &Path, chunks: &str) -> &'c mut Command {
    command.args(["--calibrate-chunks", chunks, "--calibrate"]).arg(text)
}

/// Types chosen for a size: within it, near it, and better than the preset of that size. Written down, they give the same bytes again.
#[test]
fn types_chosen_for_a_size_lose_less_than_the_preset_of_that_size() {
    let Some(text) = common::shared("text/calibration.txt") else { return };
    let folder = common::scratch();
    let base = base(folder.path());
    let path = |name: &str| folder.path().join(name);
    let made = |command: &mut Command| json(common::succeeds(with_text(command, &text, "6")));
    let of_preset = made(&mut quantize(&base, "Q4_K_M", &path("preset.gguf")));
    assert!(of_preset["calibration"]["chosen"].is_null());
    let wanted = std::fs::metadata(path("preset.gguf")).expect("a file").len();
    let recipe = path("recipe.txt");
    let mut sized = quantize(&base, "Q4_K_M", &path("sized.gguf"));
    let chosen = made(sized.args(["--size", &wanted.to_string(), "--recipe"]).arg(&recipe));
    let size = std::fs::metadata(path("sized.gguf")).expect("a file").len();
    assert!(size <= wanted && size as f64 > 0.995 * wanted as f64, "{size} bytes for {wanted}");
    let [before, after] = divergences(&base, &[path("preset.gguf"), path("sized.gguf")], &prose())[..] else { panic!("two files") };
    println!("{after} by choice, {before} by the preset; {}", chosen["calibration"]["predicted_kld"]);
    assert!(after < before, "{after} by choice, {before} by the preset");
    let of = |key: &str| -> f64 {
        let list = chosen["calibration"]["chosen"].as_array().expect("choices");
        list.iter().map(|choice| choice[key].as_f64().expect("a number")).sum()
    };
    let predicted = chosen["calibration"]["predicted_kld"].as_f64().expect("a number");
    assert!((of("cost") - predicted).abs() < 1e-9 && predicted > 0.3 * after && predicted < 3.0 * after, "{predicted} for {after}");
    assert!(of("bytes") < size as f64 && of("bytes") > 0.9 * size as f64, "{} of {size}", of("bytes"));

    let again = path("again.gguf");
    made(quantize(&base, "Q4_K_M", &again).arg("--recipe").arg(&recipe));
    assert!(std::fs::read(again).expect("a file") == std::fs::read(path("sized.gguf")).expect("a file"), "the same bytes");
    let mut too_small = quantize(&base, "Q4_K_M", &path("none.gguf"));
    let output = with_text(too_small.args(["--bpw", "2"]), &text, "2").output();
    let message = String::from_utf8(output.expect("a program that starts").stderr).expect("UTF-8");
    assert!(message.contains("allow more") && !path("none.gguf").exists(), "{message}");
}

/// Only types of the list, and only that many bits.
#[test]
fn types_are_chosen_from_a_list() {
    let folder = common::scratch();
    let base = base(folder.path());
    let path = folder.path().join("chosen.gguf");
    let mut command = quantize(&base, "Q4_0", &path);
    let made = json(common::succeeds(with_text(command.args(["--bpw", "4.6", "--types", "IQ4_XS,legacy"]), &prose(), "2")));
    let bits = made["outputs"][0]["bits_per_weight"].as_f64().expect("bits");
    assert!(bits <= 4.6 && bits > 0.995 * 4.6, "{bits}");
    let chosen = made["calibration"]["chosen"].as_array().expect("choices");
    let types: Vec<&str> = chosen.iter().map(|choice| choice["type"].as_str().expect("a type")).collect();
    assert!(types.iter().all(|name| ["IQ4_XS", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"].contains(name)), "{types:?}");
    assert!(types.contains(&"IQ4_XS") && types.iter().any(|name| *name != "IQ4_XS"), "{types:?}");
}

/// What is chosen for a memory takes that much by `ggforge fit`: at most, and nearly.
#[test]
fn types_chosen_for_a_memory_fit_into_it() {
    let folder = common::scratch();
    let base = base(folder.path());
    let path = folder.path().join("chosen.gguf");
    let total_of = |model: &Path, row: usize| {
        let mut command = common::ggforge();
        command.arg("fit").arg(model).args(["--type", "Q4_K_M", "--ctx", "2048", "--kv", "q8_0", "--json"]);
        let found = json(common::succeeds(&mut command));
        found["types"][row]["memory"][0]["total_bytes"].as_u64().expect("bytes")
    };
    // As much as another map of types would take.
    let memory = total_of(&base, 1);
    let mut command = quantize(&base, "Q4_K_M", &path);
    command.args(["--gpu-memory", &memory.to_string(), "--ctx", "2048", "--kv", "q8_0"]);
    common::succeeds(with_text(&mut command, &prose(), "2"));
    let total = total_of(&path, 0);
    assert!(total <= memory && total as f64 > 0.97 * memory as f64, "{total} of {memory}");
    let mut too_small = quantize(&base, "Q4_K_M", &folder.path().join("none.gguf"));
    let output = with_text(too_small.args(["--gpu-memory", "2M"]), &prose(), "2").output().expect("a program that starts");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("choose a smaller --ctx"), "{message}");
}

/// That share of the layers' weights in the type of 4 bits, all others in 8.
#[test]
fn a_ratio_is_the_share_of_weights_with_4_bits() {
    let folder = common::scratch();
    let base = base(folder.path());
    let path = folder.path().join("chosen.gguf");
    let mut command = quantize(&base, "Q4_K_M", &path);
    common::succeeds(with_text(command.args(["--ratio", "0.6"]), &prose(), "2"));
    let file = File::open(&path).expect("a file that was just made");
    let (mut small, mut all) = (0, 0);
    for tensor in file.tensors().filter(|tensor| tensor.format.block_len() > 1) {
        let n_weights: u64 = tensor.shape.iter().product();
        if tensor.name == "token_embd.weight" {
            assert_eq!(tensor.format, ggforge::quant::Format::Q8_0);
            continue;
        }
        assert!([ggforge::quant::Format::Q4_K, ggforge::quant::Format::Q8_0].contains(&tensor.format), "{}", tensor.format);
        all += n_weights;
        small += if tensor.format == ggforge::quant::Format::Q4_K { n_weights } else { 0 };
    }
    let share = small as f64 / all as f64;
    assert!((0.6..0.65).contains(&share), "{share}");
    let output = with_text(quantize(&base, "Q6_K", &path).args(["--force", "--ratio", "0.6"]), &prose(), "2").output();
    let message = String::from_utf8(output.expect("a program that starts").stderr).expect("UTF-8");
    assert!(message.contains("a type of 4 bits"), "{message}");
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
    let mut files = vec![to("plain.gguf"), to("one.gguf")];
    if let Some(text) = common::shared("text/calibration.txt") {
        with_self("text.gguf", "2", "amx", "8", &[&text]);
        files.push(to("text.gguf"));
    }
    let found = divergences(&base, &files, &prose());
    println!("without, by its own text, by a text: {found:?}");
    assert!(found[1] < 0.6 * found[0], "{} by its own text, {} without", found[1], found[0]);
    if let Some(by_text) = found.get(2) {
        assert!(found[1] < 1.2 * by_text, "{} by its own text, {by_text} by another", found[1]);
    }
    with_self("both.gguf", "2", "amx", "3", &[&prose(), itself]);
    let entry = entries_of(&to("both.gguf"));
    let names = [&b"prose.txt"[..], b"self"].map(<[u8]>::to_vec).to_vec();
    assert_eq!(entry("texts"), Value::Array(Array::String(names)));
    assert_eq!(entry("tokens"), Value::Array(Array::U32(vec![1024, 512])));
    let Value::Array(Array::String(hashes)) = entry("sha256") else { panic!("hashes") };
    assert!(hashes.len() == 2 && hashes.iter().all(|hash| hash.len() == 64 && hash.iter().any(|digit| *digit != b'0')));
}

fn copied(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder").flatten() {
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
    }
}

/// A run that takes what another has kept writes the same bytes; half of it, too, and for another type.
#[test]
fn a_checkpoint_changes_no_byte() {
    let folder = common::scratch();
    let base = base(folder.path());
    let (kept, half) = (folder.path().join("kept"), folder.path().join("half"));
    let made = |types: &str, name: &str, checkpoint: Option<&Path>| {
        let to = folder.path().join(name);
        let mut command = quantize(&base, types, &to);
        command.args(["--calibrate-chunks", "4", "--calibrate"]).arg(prose());
        if let Some(folder) = checkpoint {
            command.arg("--checkpoint").arg(folder);
        }
        let said = json(common::succeeds(&mut command))["calibration"]["matrices"].clone();
        (std::fs::read(to).expect("the file"), said)
    };
    let expected = made("Q4_K_M", "none.gguf", None);
    assert!(made("Q4_K_M", "first.gguf", Some(&kept)) == expected, "while it is kept");
    copied(&kept, &half);
    for step in ["layer-0-1", "layer-2-0", "head"] {
        std::fs::remove_file(half.join(step).with_extension("gguf")).expect("a step that is kept");
    }
    assert!(made("Q4_K_M", "second.gguf", Some(&kept)) == expected, "all of it kept");
    assert!(made("Q4_K_M", "third.gguf", Some(&half)) == expected, "half of it kept");
    let other = made("Q4_K_S", "other.gguf", None);
    assert!(made("Q4_K_S", "other-kept.gguf", Some(&kept)) == other, "another type");
    assert!(made("Q4_K_M", "fourth.gguf", Some(&kept)) == expected, "the first type again");
}

/// Of another model, of another text, of more chunks; cut, changed, or no checkpoint at all: an error that names the file.
#[test]
fn a_checkpoint_is_not_believed() {
    let folder = common::scratch();
    let base = base(folder.path());
    let (kept, tried) = (folder.path().join("kept"), folder.path().join("tried"));
    let run = |base: &Path, checkpoint: &Path, chunks: &str| {
        let mut command = quantize(base, "Q4_0", &folder.path().join("to.gguf"));
        command.args(["--force", "--checkpoint"]).arg(checkpoint).args(["--calibrate-chunks", chunks, "--calibrate"]).arg(prose());
        command.output().expect("a program that starts")
    };
    let refused = |output: std::process::Output, why: &str| {
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && message.contains("layer-0-0.gguf") && message.contains(why), "{why}: {message}");
    };
    assert!(run(&base, &kept, "2").status.success());
    refused(run(&base, &kept, "3"), "another text");
    let other = folder.path().join("other.gguf");
    common::succeeds(common::ggforge().arg("convert").arg(forge_3m()).args(["--type", "F16", "--output"]).arg(&other));
    refused(run(&other, &kept, "2"), "another model");
    let step = kept.join("layer-0-0.gguf");
    let bytes = std::fs::read(&step).expect("a step that is kept");
    copied(&kept, &tried);
    let with = |bytes: &[u8]| {
        std::fs::write(tried.join("layer-0-0.gguf"), bytes).expect("a file");
        run(&base, &tried, "2")
    };
    refused(with(&bytes[..bytes.len() - 9]), "");
    refused(with(b"something else"), "");
    let file = File::open(&step).expect("our own file");
    let changed = |key: &str, change: &dyn Fn(&mut Value)| {
        let mut metadata = Model::open(&step).expect("our own file").to_metadata();
        change(&mut metadata.iter_mut().find(|(found, _)| found == key).unwrap_or_else(|| panic!("{key}")).1);
        let tensors: Vec<TensorSpec> = file
            .tensors()
            .map(|tensor| TensorSpec { name: tensor.name.to_owned(), format: tensor.format, shape: tensor.shape.to_vec() })
            .collect();
        let layout = Header { metadata, tensors }.layout().expect("a sound header");
        [&layout.header[..], &bytes[file.data_offset_bytes() as usize..]].concat()
    };
    for (key, value, why) in [
        ("general.type", Value::from("model"), "general.type"),
        ("ggforge.checkpoint.version", Value::U32(77), "another version"),
        ("ggforge.checkpoint.matrices", Value::Array(Array::String(vec![b"x".to_vec()])), "matrices"),
        ("ggforge.checkpoint.lambdas", Value::from("none"), "lambdas"),
    ] {
        refused(with(&changed(key, &|entry| *entry = value.clone())), why);
    }
    let first = |to: f64| {
        move |entry: &mut Value| match entry {
            Value::Array(Array::F64(values)) => values[0] = to,
            Value::Array(Array::F32(values)) => values[0] = to as f32,
            Value::Array(Array::U32(values)) => values[0] = to as u32,
            other => panic!("{other:?}"),
        }
    };
    for (key, to, why) in [
        ("errors", f64::NAN, "an error of NaN"),
        ("errors", 1e30, "an error of"),
        ("errors", -1.0, "an error of -1"),
        ("plain_errors", f64::NAN, "importance NaN"),
        ("lambdas", 0.7, "a damping"),
        ("first_rows", 5.0, "no matrix of this step"),
    ] {
        refused(with(&changed(&format!("ggforge.checkpoint.{key}"), &first(to))), why);
    }
    // A scale that is no number.
    let mut infinite = bytes.clone();
    let at = file.tensor("0").expect("a matrix").offset_bytes as usize;
    infinite[at..at + 2].copy_from_slice(&[0x00, 0x7c]);
    refused(with(&infinite), "no number");
    assert!(with(&bytes).status.success(), "as it was");
}
