//! Inputs that are odd, or not what they are taken for: it is said, or they are refused, before anything is made of them.

mod common;

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::checkpoint;
use common::tiny::Tiny;
use common::{fixture, ggforge, scratch, succeeds};
use ggforge::Error;
use ggforge::gguf::{Header, Model, TensorSpec, Value, keys};
use ggforge::imatrix::{Entry, Imatrix};
use ggforge::source::InputFile;
use serde_json::{Value as Json, json};

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// The program in `folder` with a line of arguments.
fn program(folder: &Path, line: &str) -> Command {
    let mut command = ggforge();
    command.current_dir(folder).args(line.split_whitespace());
    command
}

/// Runs the program, which has to end with `code`; returns what it said on stderr.
#[track_caller]
fn ends(folder: &Path, line: &str, code: i32) -> String {
    let Output { status, stderr, .. } = program(folder, line).output().expect("a program that starts");
    let said = text(&stderr);
    assert_eq!(status.code(), Some(code), "{line}: {said}");
    said
}

/// The fixture model as `model.gguf`, in F32.
fn forge_3m(folder: &Path) -> PathBuf {
    let model = folder.join("model.gguf");
    succeeds(ggforge().arg("convert").arg(fixture("hf/forge-3m")).args(["--type", "F32", "-q", "-o"]).arg(&model));
    model
}

fn write_matrix(matrix: &Imatrix, path: &Path) {
    matrix.write_gguf(&mut File::create(path).expect("a file")).expect("a matrix that can be written");
}

#[test]
fn an_importance_matrix_of_another_model_is_warned_of() {
    let dir = scratch();
    forge_3m(dir.path());
    let ours = Imatrix::open(fixture("imatrix/forge-3m.gguf")).expect("a sound file");
    let renamed = |name: &str| name.replace("blk.", "enc.blk.");
    let entries = ours.entries.iter().map(|(name, entry)| (renamed(name), entry.clone())).collect();
    write_matrix(&Imatrix { entries, ..ours.clone() }, &dir.path().join("other.gguf"));
    write_matrix(&ours, &dir.path().join("ours.gguf"));
    for (matrix, matches_nothing) in [("other.gguf", true), ("ours.gguf", false)] {
        for line in ["quantize model.gguf --type Q4_0 --dry-run", "quantize model.gguf --type IQ2_S --force"] {
            let run = format!("{line} --output out.gguf --json --imatrix {matrix}");
            let Output { stdout, stderr, .. } = succeeds(&mut program(dir.path(), &run));
            let report: Json = serde_json::from_slice(&stdout).expect("JSON");
            assert_eq!(report["imatrix"]["matches_nothing"], matches_nothing, "{run}");
            let said = text(&stderr);
            let warnings = said.lines().filter(|line| line.contains("the importance matrix matches no tensor")).count();
            assert_eq!(warnings, usize::from(matches_nothing), "{run}: {said}");
            assert!(!matches_nothing || said.lines().count() == 1, "{run}: {said}");
            assert_eq!(report["warnings"].to_string().contains("matches no tensor"), matches_nothing, "{run}");
            assert!(!matches_nothing || said.contains("it has enc.blk.0.attn_k.weight and 27 more"), "{said}");
        }
    }
    for (matrix, matches_nothing) in [("other.gguf", true), ("ours.gguf", false)] {
        let line = format!("error model.gguf out.gguf --json --imatrix {matrix}");
        let Output { stdout, stderr, .. } = succeeds(&mut program(dir.path(), &line));
        let report: Json = serde_json::from_slice(&stdout).expect("JSON");
        assert_eq!(report["imatrix_matches_nothing"], matches_nothing);
        assert_eq!(text(&stderr).contains("holds nothing about any of these tensors"), matches_nothing, "{}", text(&stderr));
    }
    let line = "quantize model.gguf --type Q4_0 --dry-run --output no.gguf --imatrix ours.gguf --include-weights attn_z";
    assert!(ends(dir.path(), line, 0).contains("warning: no entry of the importance matrix is left"));
    // Nothing is to be quantized, so nothing is missing.
    let said = ends(dir.path(), "quantize model.gguf --type F16 --output f16.gguf --imatrix other.gguf", 0);
    assert!(!said.contains("matches no tensor"), "{said}");
}

#[test]
fn importances_that_overflow_are_the_matrix_s_fault() {
    let dir = scratch();
    forge_3m(dir.path());
    let mut matrix = Imatrix::open(fixture("imatrix/forge-3m.gguf")).expect("a sound file");
    let entry = &matrix.entries["blk.1.attn_k.weight"];
    let mut sums = entry.sums().to_vec();
    sums[5] = 3e38;
    matrix.entries.insert("blk.1.attn_k.weight".into(), Entry::new(sums, vec![1]).expect("a finite entry"));
    write_matrix(&matrix, &dir.path().join("huge.gguf"));
    for file_type in ["Q2_K", "Q4_K_M", "Q6_K", "IQ4_XS", "IQ1_M"] {
        let said = ends(dir.path(), &format!("quantize model.gguf --type {file_type} --output out.gguf --imatrix huge.gguf"), 3);
        let expected = "error: huge.gguf: blk.1.attn_k.weight: row 0, column 5: the importance is 3e38";
        assert!(said.starts_with(expected), "{file_type}: {said}");
    }
    // Where importances count for nothing, and where they are left out, nothing overflows.
    ends(dir.path(), "quantize model.gguf --type Q8_0 --output q8.gguf --imatrix huge.gguf", 0);
    ends(dir.path(), "quantize model.gguf --type Q4_0 -o q4.gguf --imatrix huge.gguf --exclude-weights blk.1.attn_k", 0);
}

/// The same model with everything twice as wide.
fn twice_as_wide(tiny: &Tiny) -> Tiny {
    let mut wide = Tiny { metadata: tiny.metadata.clone(), tensors: Vec::new() };
    for (_, value) in &mut wide.metadata {
        match value {
            Value::U32(n) if *n != 2 && *n != 64 => *n *= 2,
            _ => {}
        }
    }
    for (name, shape, _) in &tiny.tensors {
        wide.add(name, &shape.iter().map(|dim| dim * 2).collect::<Vec<u64>>());
    }
    wide
}

/// Nothing but shapes tells shards of the same names apart.
#[test]
fn a_set_with_a_shard_of_another_model_is_refused() {
    for architecture in ["llama", "qwen3", "nobodys"] {
        let dir = scratch();
        let tiny = Tiny::new(architecture);
        tiny.write(dir.path(), "narrow");
        twice_as_wide(&tiny).write(dir.path(), "wide");
        for (name, size) in [("narrow", "40000"), ("wide", "160000")] {
            let line = format!("quantize {name}.gguf --type COPY --split-max-size {size} --output {name}/x.gguf");
            fs::create_dir(dir.path().join(name)).expect("a folder");
            ends(dir.path(), &line, 0);
        }
        let shards = |name: &str| {
            let mut names: Vec<_> =
                fs::read_dir(dir.path().join(name)).expect("a folder").map(|e| e.expect("an entry").path()).collect();
            names.sort();
            names
        };
        let (narrow, wide) = (shards("narrow"), shards("wide"));
        let first = narrow.first().expect("a shard").strip_prefix(dir.path()).expect("below it").to_str().expect("UTF-8");
        ends(dir.path(), &format!("quantize {first} --type Q8_0 --output sound.gguf"), 0);
        let mut n_refused = 0;
        for (from, to) in wide.iter().zip(&narrow).skip(1) {
            let sound = fs::read(to).expect("a shard");
            if fs::copy(from, to).is_err() || Model::open(narrow.first().expect("a shard")).is_err() {
                // Of another number of shards, or of tensors: that is refused for itself.
                fs::write(to, sound).expect("written");
                continue;
            }
            for file_type in ["Q8_0", "F32", "COPY"] {
                let said = ends(dir.path(), &format!("quantize {first} --type {file_type} --output mixed.gguf"), 3);
                assert!(said.contains("a shard of another model"), "{architecture}: {said}");
                assert!(!dir.path().join("mixed.gguf").exists());
            }
            fs::write(to, sound).expect("written");
            n_refused += 1;
        }
        assert!(n_refused > 0, "{architecture}: no shard could be exchanged");
    }
}

#[test]
fn a_type_that_changes_nothing_is_warned_of() {
    let dir = scratch();
    forge_3m(dir.path());
    let said = ends(dir.path(), "quantize model.gguf --type MXFP4_MOE --output moe.gguf", 0);
    let warning = "warning: MXFP4_MOE is for models with experts, and this is none: no tensor becomes MXFP4";
    assert!(said.contains(warning), "{said}");
    Tiny::with_experts("qwen3moe").write(dir.path(), "experts");
    for line in
        ["experts.gguf --type MXFP4_MOE", "model.gguf --type Q8_0", "model.gguf --type MXFP4_MOE --pure", "model.gguf --type COPY"]
    {
        let said = ends(dir.path(), &format!("quantize {line} --dry-run --output x.gguf"), 0);
        assert!(!said.contains("this is none") && !said.contains("stay as they are"), "{line}: {said}");
    }

    let mut lora = Tiny { metadata: Vec::new(), tensors: Vec::new() };
    lora.set(keys::GENERAL_ARCHITECTURE, Value::from("llama"));
    lora.add("blk.0.attn_q.weight.lora_a", &[8, 256]);
    lora.add("blk.0.attn_q.weight.lora_b", &[256, 8]);
    lora.write(dir.path(), "old-lora");
    lora.set(keys::GENERAL_TYPE, Value::from("adapter"));
    lora.write(dir.path(), "lora");
    let mut vector = Tiny { metadata: Vec::new(), tensors: Vec::new() };
    vector.set(keys::GENERAL_ARCHITECTURE, Value::from("controlvector"));
    vector.add("direction.1", &[256]);
    vector.write(dir.path(), "vector");
    for (name, kind) in [("lora", "an adapter (LoRA)"), ("old-lora", "an adapter (LoRA)"), ("vector", "a control vector")] {
        for file_type in ["Q8_0", "Q4_K_M", "F16"] {
            let line = format!("quantize {name}.gguf --type {file_type} --output {name}-{file_type}.gguf");
            let said = ends(dir.path(), &line, 0);
            assert!(said.contains(&format!("warning: {file_type}: {name}.gguf is {kind}: none of its tensors")), "{line}: {said}");
        }
    }
}

/// By the key, before a weight is read.
#[test]
fn hyperparameters_that_cannot_be_run_are_refused_where_files_are_made() {
    let dir = scratch();
    for (key, value) in [
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(0.0)),
        ("llama.rope.dimension_count", Value::U32(0)),
        ("llama.rope.dimension_count", Value::U32(7)),
        ("llama.rope.freq_base", Value::F32(0.0)),
    ] {
        let mut tiny = Tiny::new("llama");
        tiny.set(key, value);
        tiny.write(dir.path(), "tiny");
        let said = ends(dir.path(), "quantize tiny.gguf --type Q8_0 --output out.gguf", 3);
        assert!(said.contains(&format!("tiny.gguf: {key}: ")), "{said}");
    }

    let cases = checkpoint::cases();
    let case = cases.iter().find(|case| case.name == "llama").or_else(|| cases.iter().find(|case| case.name.starts_with("llama")));
    let case = case.expect("a tiny Llama");
    let layout = &case.layouts()[0];
    let convert = |name: &str, field: &str, value: Json| {
        case.write_changed(layout, &dir.path().join(name), |config, _| drop(config.insert(field.to_owned(), value)));
        ends(dir.path(), &format!("convert {name} --type F16 --output {name}.gguf"), 3)
    };
    for (field, value) in [
        ("rms_norm_eps", json!(0)),
        ("rms_norm_eps", json!(-1e-5)),
        ("rms_norm_eps", json!(1e-60)),
        ("partial_rotary_factor", json!(0.0)),
    ] {
        let said = convert("changed", field, value.clone());
        assert!(said.contains(&format!("config.json: {field}: ")), "{field} = {value}: {said}");
    }
}

/// An odd inner width is unusual and no more: such files are made, and run.
#[test]
fn an_odd_inner_width_is_quantized_and_run() {
    let dir = scratch();
    let mut tiny = Tiny::new("llama");
    tiny.set("llama.feed_forward_length", Value::U32(47));
    for layer in 0..2 {
        for (part, shape) in [("ffn_gate", [47, 32]), ("ffn_up", [47, 32]), ("ffn_down", [32, 47])] {
            let name = format!("blk.{layer}.{part}.weight");
            tiny.tensors.retain(|tensor| tensor.0 != name);
            tiny.add(&name, &shape);
        }
    }
    tiny.write(dir.path(), "odd");
    for file_type in ["F16", "Q8_0", "Q4_K_M"] {
        ends(dir.path(), &format!("quantize odd.gguf --type {file_type} --output {file_type}.gguf"), 0);
        let report = succeeds(&mut program(dir.path(), &format!("logits {file_type}.gguf --tokens 1,2,3 --json --device cpu")));
        let report: Json = serde_json::from_slice(&report.stdout).expect("JSON");
        assert_eq!(report["shape"], json!([1, 64]), "{file_type}");
    }
}

#[test]
fn an_unknown_cpu_level_is_refused() {
    let dir = scratch();
    Tiny::new("llama").write(dir.path(), "tiny");
    for (level, code) in [("bogus", 2), ("avx3", 2), ("", 0), ("scalar", 0), ("AVX2", 0), ("neon", 0)] {
        let output = program(dir.path(), "inspect tiny.gguf").env("GGFORGE_SIMD", level).output().expect("a program that starts");
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{level}: {said}");
        let expected = format!("error: GGFORGE_SIMD is {level:?}; one of scalar, neon, avx2, avx512, amx is needed\n");
        assert_eq!(said, if code == 2 { expected } else { String::new() });
    }
}

/// Does `change` until the file's change time, which has the steps of a clock of some milliseconds, shows it.
fn until_seen(path: &Path, change: impl Fn()) {
    let seen = |path: &Path| fs::metadata(path).map(|found| (found.ctime(), found.ctime_nsec())).expect("a file");
    let before = seen(path);
    while seen(path) == before {
        change();
    }
}

#[test]
fn an_input_that_is_rewritten_with_its_time_restored_has_changed() {
    let dir = scratch();
    let path = dir.path().join("input");
    fs::write(&path, b"weights").expect("written");
    let modified = fs::metadata(&path).expect("a file").modified().expect("a time");
    let input = InputFile::open(&path).expect("a regular file");
    input.check_unchanged().expect("untouched");
    until_seen(&path, || {
        let file = OpenOptions::new().write(true).open(&path).expect("a file");
        file.write_all_at(b"WEIGHTS", 0).expect("written");
        file.set_modified(modified).expect("a time that can be set");
    });
    assert_eq!(fs::metadata(&path).expect("a file").modified().expect("a time"), modified);
    let error = input.check_unchanged().expect_err("other bytes");
    assert!(matches!(&error, Error::InputChanged { detail, .. } if detail.contains("set back")), "{error}");
}

#[test]
fn another_name_link_or_mode_is_no_change_of_an_input() {
    let dir = scratch();
    let path = dir.path().join("input");
    fs::write(&path, b"weights").expect("written");
    let input = InputFile::open(&path).expect("a regular file");
    until_seen(&path, || {
        let link = dir.path().join("link");
        let _ = fs::remove_file(&link);
        fs::hard_link(&path, &link).expect("a link");
    });
    input.check_unchanged().unwrap_or_else(|error| panic!("{error}"));
    let input = InputFile::open(&path).expect("a regular file");
    let mode = |mode| fs::set_permissions(&path, Permissions::from_mode(mode)).expect("a mode");
    until_seen(&path, || [0o640, 0o600].map(mode).into_iter().collect());
    input.check_unchanged().unwrap_or_else(|error| panic!("{error}"));
    let input = InputFile::open(&path).expect("a regular file");
    let other = dir.path().join("other");
    fs::rename(&path, &other).expect("another name");
    until_seen(&other, || {
        [("other", "another"), ("another", "other")]
            .iter()
            .for_each(|(from, to)| fs::rename(dir.path().join(from), dir.path().join(to)).expect("another name"));
    });
    input.check_unchanged().unwrap_or_else(|error| panic!("{error}"));
}

/// A set of two shards and more, of the fixture model in Q8_0; and the same model in one file, `whole.gguf`.
fn split_forge_3m(folder: &Path) -> Vec<PathBuf> {
    let convert = |output: &str, more: &[&str]| {
        let mut command = ggforge();
        command.current_dir(folder).arg("convert").arg(fixture("hf/forge-3m"));
        succeeds(command.args(["--type", "Q8_0", "-q", "-o", output]).args(more));
    };
    convert("whole.gguf", &[]);
    convert("split.gguf", &["--split-max-size", "1M"]);
    let names = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let mut shards: Vec<PathBuf> = names.filter(|path| path.to_string_lossy().contains("split-")).collect();
    shards.sort();
    assert!(shards.len() > 2, "{shards:?}");
    shards
}

/// The file is read as the model it is, which is said, and a copy of it is the model in one file.
fn is_mended(folder: &Path, name: &str, said: &str) {
    let warned = ends(folder, &format!("quantize {name} --type COPY --output mended.gguf --force"), 0);
    assert!(warned.contains(&format!("warning: {name}: {said}")) && warned.contains("quantize --type COPY"), "{warned}");
    let read = |name: &str| fs::read(folder.join(name)).expect("a file");
    assert!(read("mended.gguf") == read("whole.gguf"), "{name} was not mended");
    let [ours, whole] = [name, "whole.gguf"].map(|name| {
        let report = succeeds(&mut program(folder, &format!("inspect {name} --tensors --json")));
        serde_json::from_slice::<Json>(&report.stdout).expect("JSON")
    });
    for field in ["n_tensors", "n_weights", "tensor_bytes", "architecture"] {
        assert_eq!(ours[field], whole[field], "{name}: {field}");
    }
    assert!(ours["warnings"].to_string().contains(said), "{ours}");
    let scores = |name: &str| succeeds(&mut program(folder, &format!("logits {name} --tokens 1,2,3 --device cpu"))).stdout;
    assert_eq!(text(&scores(name)), text(&scores("whole.gguf")));
}

#[test]
fn shards_joined_end_to_end_are_read_and_mended() {
    let dir = scratch();
    let shards = split_forge_3m(dir.path());
    let joined = |shards: &[PathBuf]| shards.iter().flat_map(|path| fs::read(path).expect("a shard")).collect::<Vec<u8>>();
    let n_shards = shards.len();
    let all = joined(&shards);
    fs::write(dir.path().join("joined.gguf"), &all).expect("written");
    let place = format!("split-00001-of-{n_shards:05}.gguf");
    is_mended(dir.path(), "joined.gguf", &format!("{n_shards} shards joined end to end"));
    let report = succeeds(&mut program(dir.path(), "inspect joined.gguf --json"));
    let report: Json = serde_json::from_slice(&report.stdout).expect("JSON");
    assert_eq!(report["file_bytes"], all.len());

    for (parts, detail) in [
        (&shards[..2], format!("2 of {n_shards} shards were joined end to end; the others are missing")),
        (&[shards[0].clone(), shards[2].clone()][..], "split.no: 2, but by its name this is shard 1".to_owned()),
        (&shards[1..], "split.no: 1, but by its name this is shard 0".to_owned()),
    ] {
        fs::write(dir.path().join("parts.gguf"), joined(parts)).expect("written");
        let said = ends(dir.path(), "quantize parts.gguf --type COPY --output no.gguf", 3);
        assert!(said.contains(&detail), "{said}");
    }
    fs::write(dir.path().join("cut.gguf"), &all[..all.len() - 100]).expect("written");
    assert!(ends(dir.path(), "quantize cut.gguf --type COPY --output no.gguf", 3).contains("cut short"));
    // Over the first of them, beside the others.
    fs::write(dir.path().join(&place), &all).expect("written");
    is_mended(dir.path(), &place, &format!("{n_shards} shards joined end to end"));
}

#[test]
fn a_whole_file_with_split_keys_is_read_and_mended() {
    let dir = scratch();
    split_forge_3m(dir.path());
    let whole = fs::read(dir.path().join("whole.gguf")).expect("a file");
    let file = ggforge::gguf::File::parse("whole.gguf", &whole).expect("our own file");
    let n_tensors = file.n_tensors() as i32;
    let mut metadata: Vec<_> = file.metadata().map(|(key, value)| (key.to_owned(), Value::from(value))).collect();
    metadata.push((keys::SPLIT_NO.into(), Value::U16(0)));
    metadata.push((keys::SPLIT_COUNT.into(), Value::U16(3)));
    metadata.push((keys::SPLIT_TENSORS_COUNT.into(), Value::I32(n_tensors)));
    let specs = file.tensors().map(|tensor| TensorSpec {
        name: tensor.name.to_owned(),
        format: tensor.format,
        shape: tensor.shape.clone(),
    });
    let mut header = Header { metadata, tensors: specs.collect() };
    let write = |header: &Header, name: &str| {
        let layout = header.layout().expect("a sound header");
        let mut bytes = layout.header;
        for (tensor, offset) in file.tensors().zip(&layout.offsets_bytes) {
            bytes.resize(*offset as usize, 0);
            bytes.extend_from_slice(file.tensor_bytes(&tensor).expect("in the file"));
        }
        bytes.resize(layout.file_bytes as usize, 0);
        fs::write(dir.path().join(name), bytes).expect("written");
    };
    write(&header, "kept.gguf");
    is_mended(dir.path(), "kept.gguf", "holds the whole model, but says that it is the first of 3 shards");
    // One that says that there are more tensors is a shard, and the others are missing.
    header.metadata.last_mut().expect("a key").1 = Value::I32(n_tensors + 1);
    write(&header, "shard.gguf");
    let said = ends(dir.path(), "quantize shard.gguf --type COPY --output no.gguf", 3);
    assert!(said.contains("must be named"), "{said}");
}

#[test]
fn the_header_of_a_file_that_is_cut_short_is_shown() {
    let dir = scratch();
    split_forge_3m(dir.path());
    let whole = fs::read(dir.path().join("whole.gguf")).expect("a file");
    let header_bytes = ggforge::gguf::File::parse("whole.gguf", &whole).expect("our own file").data_offset_bytes() as usize;
    let whole_report = text(&succeeds(&mut program(dir.path(), "inspect whole.gguf --tensors")).stdout);
    for kept in [header_bytes, header_bytes + 1, whole.len() / 2, whole.len() - 1] {
        fs::write(dir.path().join("cut.gguf"), &whole[..kept]).expect("written");
        let Output { status, stdout, stderr } = program(dir.path(), "inspect cut.gguf --tensors").output().expect("it starts");
        let (shown, said) = (text(&stdout), text(&stderr));
        assert_eq!(status.code(), Some(3), "{said}");
        let missing = whole.len() - kept;
        assert!(said.starts_with("error: cut.gguf: cut short: ") && said.contains(&format!("{missing} bytes (")), "{said}");
        // All but the line of sizes is that of the whole file.
        let rest = |report: &str| report.lines().skip(3).map(str::to_owned).collect::<Vec<String>>();
        assert_eq!(rest(&shown), rest(&whole_report), "{kept} bytes");
        let Output { status, stdout, .. } = program(dir.path(), "inspect cut.gguf --json").output().expect("it starts");
        let report: Json = serde_json::from_slice(&stdout).expect("JSON");
        assert_eq!((status.code(), &report["missing_bytes"]), (Some(3), &json!(missing)));
        // Nothing is made of it.
        ends(dir.path(), "quantize cut.gguf --type COPY --output no.gguf", 3);
    }
    fs::write(dir.path().join("cut.gguf"), &whole[..header_bytes / 2]).expect("written");
    let Output { status, stdout, .. } = program(dir.path(), "inspect cut.gguf").output().expect("it starts");
    assert_eq!((status.code(), stdout.len()), (Some(3), 0), "a header that is cut itself is not shown");

    // A shard of which another one is cut is shown as it is.
    let shards = split_forge_3m(&{
        let folder = dir.path().join("set");
        fs::create_dir(&folder).expect("a folder");
        folder
    });
    let last = shards.last().expect("a shard");
    let bytes = fs::read(last).expect("a shard");
    fs::write(last, &bytes[..bytes.len() - 500]).expect("written");
    let inspected = |path: &Path| ggforge().arg("inspect").arg(path).output().expect("it starts");
    let first = inspected(&shards[0]);
    assert_eq!(first.status.code(), Some(0));
    assert!(text(&first.stderr).contains("only this shard is shown"), "{}", text(&first.stderr));
    let last = inspected(last);
    assert_eq!(last.status.code(), Some(3));
    assert!(text(&last.stderr).contains("500 bytes ("), "{}", text(&last.stderr));
}
