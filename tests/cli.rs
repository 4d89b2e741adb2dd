//! What the program promises on the command line: help, reports, exit codes, and manners towards stdout and stderr.

mod common;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{commands, fixture, ggforge, root, scratch, succeeds, tool};
use serde_json::Value;

/// Runs the program in `dir` with a line of arguments as a shell would split it.
fn run(dir: &Path, arguments: &str) -> Output {
    ggforge().current_dir(dir).args(arguments.split_whitespace()).output().expect("a program that starts")
}

/// The exit code, stdout and stderr of a run.
fn outcome(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[track_caller]
fn assert_code(output: &Output, code: i32) {
    let (found, stdout, stderr) = outcome(output);
    assert_eq!(found, Some(code), "stdout: {stdout}\nstderr: {stderr}");
}

/// A folder with the fixture model as `model` in it.
fn workplace() -> tempfile::TempDir {
    let dir = scratch();
    symlink(fixture("hf/forge-3m"), dir.path().join("model")).unwrap();
    dir
}

/// A copy of the fixture model that may be changed.
fn copy_model(to: &Path) {
    fs::create_dir(to).unwrap();
    for file in fs::read_dir(fixture("hf/forge-3m")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

/// Everything in a folder but the model, hidden files too.
fn files_in(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name != "model").collect();
    names.sort();
    names
}

#[test]
fn help_is_short_and_goes_to_stdout() {
    let commands = commands();
    assert!(["", "convert", "imatrix merge", "bench model", "completions"].iter().all(|known| commands.iter().any(|c| c == known)));
    for arguments in commands.iter().map(|command| format!("{command} --help")).chain(["help convert".to_owned()]) {
        let (code, stdout, stderr) = outcome(&run(root(), &arguments));
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{arguments}");
        let first = stdout.lines().next().unwrap();
        assert!((10..80).contains(&first.len()) && !first.ends_with('.'), "{arguments}: {first:?}");
        assert!(stdout.contains("Usage: ggforge"), "{arguments}");
    }
    let short = outcome(&run(root(), "convert -h")).1;
    for option in
        "--output --type --tensor-type --output-tensor-type --token-embedding-type --pure --leave-output-tensor --pre --name \
                   --split-max-size --max-memory --dry-run --force --json --threads --quiet"
            .split_whitespace()
    {
        assert!(short.contains(option), "{option} is not in the help of convert");
    }
}

#[test]
fn tables_fit_the_terminal() {
    if !tool("script") {
        return;
    }
    let dir = workplace();
    assert_code(&run(dir.path(), "convert model -t Q4_K_M -o a.gguf"), 0);
    let program = env!("CARGO_BIN_EXE_ggforge");
    for arguments in ["inspect a.gguf --tensors", "error model a.gguf --tensors", "convert model -t Q4_K_M -o b.gguf --dry-run"] {
        let piped = outcome(&run(dir.path(), arguments)).1;
        assert!(piped.lines().any(|line| line.chars().count() > 80), "{arguments}");
        let line = format!("stty cols 80; exec {program} {arguments} --quiet");
        let output =
            Command::new("script").current_dir(dir.path()).args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).output();
        let (code, text, _) = outcome(&output.unwrap());
        assert_eq!(code, Some(0), "{text}");
        let wide: Vec<&str> = text.lines().filter(|line| line.trim_end().chars().count() > 80).collect();
        assert!(wide.iter().all(|line| line.starts_with("total: ") || line.starts_with("tokenizer: ")), "{arguments}: {wide:#?}");
        assert!(text.contains("blk.0.attn_q.weight"), "{arguments}: {text}");
    }
}

#[test]
fn wrong_usage_is_exit_code_2_and_writes_nothing() {
    let dir = workplace();
    fs::write(dir.path().join("old.gguf"), "old").unwrap();
    fs::create_dir(dir.path().join("folder.gguf")).unwrap();
    symlink("old.gguf", dir.path().join("link.gguf")).unwrap();
    let before = files_in(dir.path());
    for arguments in [
        "",
        "frobnicate",
        "convert",
        "convert model --output -",
        "convert model --type Q4_Q --output a.gguf",
        "convert model --type Q4_K_M,Q8_0 --output a.gguf",
        "convert model --type Q8_0 --output a.gguf --threads 0",
        "convert model --type Q8_0 --output a.gguf --threads 1000000",
        "convert model --type Q8_0 --output a.gguf --max-memory 0",
        "convert model --type Q8_0 --output a.gguf --max-memory 100",
        "convert model --type Q8_0 --output a.gguf --split-max-size 1X",
        "convert model --type Q8_0 --output a.gguf --split-max-size 1K",
        "convert model --type Q8_0 --output a.gguf --tensor-type attn_v",
        "convert model --type Q8_0 --output a.gguf --tensor-type ((=Q8_0",
        "convert model --type Q8_0 --output a.gguf --tensor-type attn_v=Q99",
        "convert model --type Q8_0 --output a.gguf --types iq",
        "convert model --type Q8_0 --output a.gguf --size 2M",
        "convert model --type Q8_0 --output a.gguf --ratio 1.5 --calibrate old.gguf",
        "convert model --type Q8_0 --output a.gguf --size 2M --bpw 4 --calibrate old.gguf",
        "convert model --type Q8_0 --output a.gguf --size 2M --types k,Q99 --calibrate old.gguf",
        "convert model --type Q8_0 --output a.gguf --ctx 100 --calibrate old.gguf",
        "fit model --ctx 0",
        "fit model --kv Q2_K",
        "convert model --type COPY --output a.gguf",
        "convert model --type 33 --output a.gguf",
        "convert model --type Q8_0 --output old.gguf",
        "convert model --type Q8_0 --output link.gguf --force",
        "convert model --type Q8_0 --output /dev/null --force",
        "convert model --type Q8_0 --output model/config.json --force",
        "convert model --type Q8_0 --output model/model.safetensors --force",
        "quantize old.gguf --output a.gguf",
        "completions tcsh",
    ] {
        let output = run(dir.path(), arguments);
        assert_code(&output, 2);
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{arguments}");
        assert_eq!(files_in(dir.path()), before, "{arguments}");
    }
    assert_eq!(fs::read(dir.path().join("old.gguf")).unwrap(), b"old");
}

#[test]
fn bad_input_is_exit_code_3_and_failing_io_6() {
    let dir = workplace();
    fs::create_dir(dir.path().join("empty")).unwrap();
    fs::create_dir(dir.path().join("other")).unwrap();
    fs::write(dir.path().join("other/config.json"), r#"{"architectures": ["FrobnicateForCausalLM"], "model_type": "frob"}"#)
        .unwrap();
    fs::copy(fixture("hf/forge-3m/model.safetensors"), dir.path().join("other/model.safetensors")).unwrap();
    fs::write(dir.path().join("text.gguf"), "version https://git-lfs.github.com/spec/v1").unwrap();
    let before = files_in(dir.path());
    for (arguments, code) in [
        ("quantize text.gguf --type Q8_0 --output a.gguf", 3),
        ("convert other --type Q8_0 --output a.gguf", 3),
        ("convert model --type Q8_0 --output a.gguf --tensor-type-file text.gguf", 3),
        ("convert model --type Q8_0 --output a.gguf --recipe text.gguf", 3),
        ("quantize missing.gguf --type Q8_0 --output a.gguf", 6),
        ("convert missing --type Q8_0 --output a.gguf", 6),
        ("convert org/missing --type Q8_0 --output a.gguf", 6),
        ("convert model --type Q8_0 --output a.gguf --tensor-type-file missing.txt", 6),
        ("convert model --type Q8_0 --output missing/a.gguf", 6),
    ] {
        let output = run(dir.path(), arguments);
        assert_code(&output, code);
        let stderr = outcome(&output).2;
        assert!(stderr.starts_with("error: ") && stderr.lines().count() <= 4, "{arguments}: {stderr}");
        assert_eq!(files_in(dir.path()), before, "{arguments}");
    }
    let unknown = outcome(&run(dir.path(), "convert other --type Q8_0 --output a.gguf")).2;
    assert!(unknown.contains("FrobnicateForCausalLM") && unknown.contains("LlamaForCausalLM"), "{unknown}");
    let hub = outcome(&run(dir.path(), "convert org/missing --type Q8_0 --output a.gguf")).2;
    assert!(hub.contains("hf download org/missing --local-dir missing"), "{hub}");
}

/// Changes config.json of a copy of the fixture model.
fn model_with(dir: &Path, name: &str, field: &str, value: Value) {
    copy_model(&dir.join(name));
    let path = dir.join(name).join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config[field] = value;
    fs::write(path, config.to_string()).unwrap();
}

#[test]
fn what_is_given_by_mistake_is_named_with_what_to_do() {
    let dir = workplace();
    let path = dir.path();
    fs::create_dir_all(path.join("hub/models--a--b/snapshots/0123")).unwrap();
    fs::create_dir(path.join("hub/models--a--b/blobs")).unwrap();
    fs::copy(fixture("imatrix/forge-3m.gguf"), path.join("imatrix.gguf")).unwrap();
    fs::create_dir(path.join("lora")).unwrap();
    fs::write(path.join("lora/adapter_config.json"), "{}").unwrap();
    // Only the index is there yet: it is enough to tell.
    for (method, tensor) in [("gptq", "q_proj.qweight"), ("fp8", "q_proj.weight_scale_inv")] {
        let quantized = serde_json::json!({ "quant_method": method, "bits": 4, "group_size": 128 });
        model_with(path, method, "quantization_config", quantized);
        fs::remove_file(path.join(method).join("model.safetensors")).unwrap();
        let name = format!("model.layers.0.self_attn.{tensor}");
        let index = serde_json::json!({ "weight_map": { name: "model-00001-of-00002.safetensors" } });
        fs::write(path.join(method).join("model.safetensors.index.json"), index.to_string()).unwrap();
    }
    model_with(path, "deeper", "num_hidden_layers", 9.into());
    model_with(path, "untied", "tie_word_embeddings", false.into());
    copy_model(&path.join("pickle"));
    fs::rename(path.join("pickle/model.safetensors"), path.join("pickle/pytorch_model.bin")).unwrap();
    fs::create_dir(path.join("out")).unwrap();
    for (arguments, told) in [
        ("inspect model", "a model folder, not a file; `ggforge convert` makes a GGUF file of it"),
        ("quantize model -t Q8_0 -o out/a.gguf", "`ggforge convert` makes"),
        ("quantize . -t Q8_0 -o out/a.gguf", "a folder, not a file"),
        ("quantize model/model.safetensors -t Q8_0 -o out/a.gguf", "give `ggforge convert` the folder it lies in"),
        ("quantize imatrix.gguf -t Q8_0 -o out/a.gguf", "the file is an importance matrix, not a model"),
        ("generate imatrix.gguf --prompt x", "the file is an importance matrix, not a model"),
        ("convert hub/models--a--b -t Q8_0 -o out/a.gguf", "give the folder of one revision below its snapshots/"),
        ("convert lora -t Q8_0 -o out/a.gguf", "merge it into its base model first"),
        ("convert gptq -t Q8_0 -o out/a.gguf", "already quantized (gptq); use the original model"),
        ("convert fp8 -t Q8_0 -o out/a.gguf", "already quantized (fp8); use the original model"),
        ("convert pickle -t Q8_0 -o out/a.gguf", "PyTorch pickle files"),
        (
            "convert deeper -t Q8_0 -o out/a.gguf",
            "model.layers.4.input_layernorm.weight: no such tensor; it becomes blk.4.attn_norm.weight",
        ),
        ("convert untied -t Q8_0 -o out/a.gguf", "lm_head.weight: no such tensor"),
    ] {
        let output = run(path, arguments);
        assert_code(&output, 3);
        let stderr = outcome(&output).2;
        assert!(stderr.contains(told) && stderr.lines().count() <= 3, "{arguments}: {stderr}");
        assert!(files_in(&path.join("out")).is_empty(), "{arguments}");
    }
}

#[test]
fn an_error_is_json_with_json_and_names_its_fault_with_verbose() {
    let dir = workplace();
    fs::write(dir.path().join("text.gguf"), "version https://git-lfs.github.com/spec/v1").unwrap();
    let (code, stdout, stderr) = outcome(&run(dir.path(), "inspect text.gguf"));
    assert_eq!((code, stdout.as_str()), (Some(3), ""));
    assert!(stderr.starts_with("error: text.gguf: ") && !stderr.contains("NotGguf"), "{stderr}");
    let stderr = outcome(&run(dir.path(), "inspect text.gguf -v")).2;
    assert!(stderr.ends_with("\n  fault: NotGguf\n"), "{stderr}");

    let told = |arguments: &str| {
        let output = run(dir.path(), arguments);
        let error: Value = serde_json::from_slice(&output.stderr).unwrap_or_else(|e| panic!("{arguments}: {e}: {output:?}"));
        assert_eq!((output.stdout.len(), error["exit_code"].as_i64()), (0, output.status.code().map(i64::from)), "{arguments}");
        let names: Vec<&String> = error.as_object().unwrap().keys().collect();
        assert_eq!(names, ["message", "fault", "path", "hint", "exit_code", "causes"]);
        error
    };
    let error = told("inspect text.gguf --json");
    assert_eq!((&error["fault"], &error["path"]), (&"NotGguf".into(), &"text.gguf".into()), "{error}");
    let error = told("convert org/name -t Q8_0 -o a.gguf --json");
    assert_eq!(error["causes"].as_array().unwrap().len(), 1, "{error}");
    assert!(error["hint"].as_str().unwrap().contains("hf download org/name"), "{error}");
    let error = told("perplexity --json");
    assert_eq!((&error["exit_code"], &error["fault"]), (&2.into(), &Value::Null), "{error}");
    assert!(["--file <FILE>", "<MODEL>"].iter().all(|option| error["message"].as_str().unwrap().contains(option)), "{error}");
    assert!(told("convert model --tipe Q8_0 --json")["hint"].as_str().unwrap().contains("'--type'"));
    assert_eq!(told("convert model -t Q8_0 -o missing/a.gguf --json")["exit_code"], 6);
}

#[test]
fn what_is_wrong_with_a_type_is_said_on_one_line() {
    let dir = workplace();
    for (arguments, told) in [
        ("convert model -o a.gguf -t q4km", "error: unknown type \"q4km\"; did you mean Q4_K_M? known are Q4_K_M, "),
        ("convert model -o a.gguf -t Q8_1", "did you mean Q8_0? known are Q8_0, "),
        ("convert model -o a.gguf -t Q4_K_XL", "did you mean Q4_K_M or Q4_K_S? known are "),
        ("convert model -o a.gguf -t Q8_0 --tensor-type attn_v=Q6K", "unknown tensor type \"Q6K\"; did you mean Q6_K? "),
        ("convert model -o a.gguf -t Q8_0 --tensor-type attn_v[=Q8_0", "regular expression: unclosed character class\n"),
    ] {
        let (code, _, stderr) = outcome(&run(dir.path(), arguments));
        assert_eq!((code, stderr.lines().count()), (Some(2), 1), "{stderr}");
        assert!(stderr.contains(told), "{arguments}: {stderr}");
    }
    let output = ggforge().current_dir(dir.path()).args(["convert", "model", "-o", "x-{type}.gguf", "-t", "Q4_K_M, Q8_0"]).output();
    assert_code(&output.unwrap(), 0);
    assert_eq!(files_in(dir.path()), ["x-Q4_K_M.gguf", "x-Q8_0.gguf"]);
}

#[test]
fn a_text_may_come_from_standard_input() {
    let dir = workplace();
    assert_code(&run(dir.path(), "convert model -t Q8_0 -o a.gguf"), 0);
    let text = fixture("text/prose.txt");
    let run = |file: &str| {
        let mut command = ggforge();
        command.current_dir(dir.path()).args([
            "perplexity",
            "a.gguf",
            "--chunks",
            "2",
            "--device",
            "cpu",
            "--json",
            "--file",
            file,
        ]);
        let output = command.stdin(File::open(&text).unwrap()).output().unwrap();
        assert_code(&output, 0);
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["perplexity"].clone()
    };
    assert_eq!(run("-"), run(text.to_str().unwrap()));
}

#[test]
fn a_report_that_could_not_be_written_is_refused_before_the_work() {
    let dir = workplace();
    assert_code(&run(dir.path(), "convert model -t F16 -o a.gguf"), 0);
    // NaN as the last weight: any work on it ends in exit code 3.
    let model = OpenOptions::new().write(true).open(dir.path().join("a.gguf")).unwrap();
    model.write_all_at(&0x7e00u16.to_le_bytes(), model.metadata().unwrap().len() - 2).unwrap();
    fs::copy(fixture("text/prose.txt"), dir.path().join("prose.txt")).unwrap();
    for arguments in [
        "compare a.gguf a.gguf --file prose.txt --chunks 1 --device cpu --report missing/a.html",
        "imatrix a.gguf --file prose.txt --chunks 1 --device cpu --output missing/i.gguf",
        "error a.gguf a.gguf --report missing/a.html",
    ] {
        let output = run(dir.path(), arguments);
        assert_code(&output, 6);
        let (_, stdout, stderr) = outcome(&output);
        assert!(stdout.is_empty() && stderr.contains("create the folder first"), "{arguments}: {stdout}{stderr}");
        assert_code(&run(dir.path(), &arguments.replace("missing/", "")), 3);
    }
}

#[test]
fn llama_quantize_s_other_ways_to_name_types_work_too() {
    let dir = workplace();
    fs::write(dir.path().join("types.txt"), "attn_v=Q8_0\n\tffn_down=Q5_0  attn_v=F16\n").unwrap();
    let same = |a: &str, b: &str| {
        let read = |arguments: &str| {
            assert_code(&run(dir.path(), &format!("{arguments} -q --force -o x.gguf")), 0);
            fs::read(dir.path().join("x.gguf")).unwrap()
        };
        assert!(read(a) == read(b), "{a} and {b} differ");
    };
    same("convert model -t 15", "convert model -t Q4_K_M");
    same("convert model -t 0", "convert model -t F32");
    same(
        "convert model -t Q4_0 --tensor-type attn_k=Q4_1 --tensor-type-file types.txt",
        "convert model -t Q4_0 --tensor-type attn_k=Q4_1 --tensor-type attn_v=Q8_0 --tensor-type ffn_down=Q5_0 --tensor-type attn_v=F16",
    );
    // A copy joins what was split, and is the same file otherwise.
    assert_code(&run(dir.path(), "convert model -t Q4_K_M -o whole.gguf -q"), 0);
    assert_code(&run(dir.path(), "quantize whole.gguf -t COPY -o split.gguf --split-max-size 1M -q"), 0);
    assert!(dir.path().join("split-00002-of-00003.gguf").exists());
    assert_code(&run(dir.path(), "quantize split-00001-of-00003.gguf -t copy -o joined.gguf -q"), 0);
    assert!(fs::read(dir.path().join("joined.gguf")).unwrap() == fs::read(dir.path().join("whole.gguf")).unwrap());
}

#[test]
fn a_weight_that_is_not_finite_is_named_and_nothing_is_written() {
    let dir = workplace();
    let copy = dir.path().join("bad");
    copy_model(&copy);
    let mut bytes = fs::read(copy.join("model.safetensors")).unwrap();
    let header_bytes = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + header_bytes]).unwrap();
    let name = "model.layers.2.self_attn.q_proj.weight";
    let tensor = &header[name];
    let (start, columns) = (tensor["data_offsets"][0].as_u64().unwrap() as usize, tensor["shape"][1].as_u64().unwrap() as usize);
    // NaN in bf16, in a row that the conversion moves elsewhere.
    let at = 8 + header_bytes + start + (3 * columns + 11) * 2;
    bytes[at..at + 2].copy_from_slice(&0x7fc0u16.to_le_bytes());
    fs::write(copy.join("model.safetensors"), bytes).unwrap();
    for types in ["F32", "BF16", "Q4_K_M,Q8_0"] {
        let output = run(dir.path(), &format!("convert bad --type {types} --output x-{{type}}.gguf"));
        assert_code(&output, 3);
        let stderr = outcome(&output).2;
        assert!(stderr.contains(&format!("{name}: row 3, column 11")) && !stderr.contains("NonFinite"), "{stderr}");
        assert_eq!(files_in(dir.path()), ["bad"]);
    }
}

#[test]
fn a_dry_run_lists_every_tensor_and_writes_nothing() {
    let dir = workplace();
    let (code, text, _) = outcome(&run(dir.path(), "convert model --type Q4_K_M --output a.gguf --dry-run"));
    assert_eq!(code, Some(0));
    assert!(text.contains("token_embd.weight") && text.contains("token_embd is the head too"), "{text}");
    let (code, json, _) = outcome(&run(dir.path(), "convert model --type Q4_K_M,F16 --output x-{type}.gguf --dry-run --json"));
    assert_eq!(code, Some(0));
    assert!(files_in(dir.path()).is_empty());

    let planned: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(planned["dry_run"], true);
    let output = run(dir.path(), "convert model --type Q4_K_M,F16 --output x-{type}.gguf --json");
    assert_code(&output, 0);
    let done: Value = serde_json::from_str(&outcome(&output).1).unwrap();
    assert!(done["seconds"].as_f64().unwrap() > 0.0 && done["dry_run"] == false);
    for (planned, done) in planned["outputs"].as_array().unwrap().iter().zip(done["outputs"].as_array().unwrap()) {
        for field in ["type", "files", "bytes", "weights", "bits_per_weight", "tensors", "tensors_by_type"] {
            assert_eq!(planned[field], done[field], "{field}");
        }
        let tensors = planned["tensor_list"].as_array().unwrap();
        assert_eq!(tensors.len() as u64, planned["tensors"].as_u64().unwrap());
        assert_eq!(tensors.iter().filter(|t| text.contains(t["name"].as_str().unwrap())).count(), tensors.len());
        let file = &done["files"][0];
        let size = fs::metadata(dir.path().join(file["path"].as_str().unwrap())).unwrap().len();
        assert_eq!(file["bytes"].as_u64(), Some(size));
        let read = ggforge::gguf::File::open(dir.path().join(file["path"].as_str().unwrap())).unwrap();
        for (tensor, planned) in read.tensors().zip(tensors) {
            assert_eq!((tensor.name, tensor.format.name()), (planned["name"].as_str().unwrap(), planned["type"].as_str().unwrap()));
        }
    }
}

#[test]
fn outputs_are_named_by_pattern_folder_and_shard() {
    let dir = workplace();
    fs::create_dir(dir.path().join("out")).unwrap();
    assert_code(&run(dir.path(), "convert model -t Q8_0,F16 -o out -q"), 0);
    assert_eq!(files_in(&dir.path().join("out")), ["Model-3.7M-F16.gguf", "Model-3.7M-Q8_0.gguf"]);
    assert_code(&run(dir.path(), "convert model -t Q8_0 -o s.gguf --split-max-size 1M -q"), 0);
    let shards: Vec<String> = files_in(dir.path()).into_iter().filter(|name| name.starts_with("s-")).collect();
    assert!(shards.len() >= 4 && shards[0] == format!("s-00001-of-{:05}.gguf", shards.len()), "{shards:?}");
    // A split model is quantized like a whole one, from any of its shards.
    assert_code(&run(dir.path(), "convert model -t F32 -o f-32.gguf -q"), 0);
    assert_code(&run(dir.path(), "convert model -t F32 -o g.gguf --split-max-size 5M -q"), 0);
    let shard = files_in(dir.path()).into_iter().find(|name| name.starts_with("g-00002-of-")).unwrap();
    assert_code(&run(dir.path(), &format!("quantize {shard} -t Q4_K_M -o from-shards.gguf -q")), 0);
    assert_code(&run(dir.path(), "quantize f-32.gguf -t Q4_K_M -o from-whole.gguf -q"), 0);
    let [a, b] = ["from-shards.gguf", "from-whole.gguf"].map(|name| fs::read(dir.path().join(name)).unwrap());
    assert!(a == b);
}

#[test]
fn an_existing_output_is_replaced_only_when_asked() {
    let dir = workplace();
    fs::write(dir.path().join("a.gguf"), "old").unwrap();
    let refused = run(dir.path(), "convert model -t Q8_0 -o a.gguf");
    assert_code(&refused, 2);
    assert!(outcome(&refused).2.contains("--force"));
    assert_eq!(fs::read(dir.path().join("a.gguf")).unwrap(), b"old");
    assert_code(&run(dir.path(), "convert model -t Q8_0 -o a.gguf --force"), 0);
    assert!(fs::read(dir.path().join("a.gguf")).unwrap().starts_with(b"GGUF"));
    // An older output inside the model folder is no input.
    let copy = dir.path().join("copy");
    copy_model(&copy);
    fs::write(copy.join("a.gguf"), "old").unwrap();
    assert_code(&run(dir.path(), "convert copy -t Q8_0 -o copy/a.gguf --force"), 0);
    assert_code(&run(dir.path(), "quantize copy/a.gguf -t Q8_0 -o copy/a.gguf --force"), 2);
}

#[test]
fn completions_are_written_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(root(), &format!("completions {shell}"));
        assert_code(&output, 0);
        let script = outcome(&output).1;
        let words =
            commands().iter().flat_map(|command| command.split(' ').map(str::to_owned).collect::<Vec<_>>()).collect::<Vec<_>>();
        assert!(words.iter().all(|word| script.contains(word.as_str())), "{shell}");
    }
    let bash = outcome(&run(root(), "completions bash")).1;
    succeeds(Command::new("bash").args(["-n", "-c", &bash]));
}

#[test]
fn progress_is_shown_on_a_terminal_only() {
    let dir = workplace();
    let piped = run(dir.path(), "convert model -t Q4_K_M -o piped.gguf");
    assert_eq!(outcome(&piped).2, "");
    assert_eq!(outcome(&run(dir.path(), "convert model -t Q4_K_M -o quiet.gguf --quiet")).1, "");

    let program = env!("CARGO_BIN_EXE_ggforge");
    let on_terminal = |options: &str| {
        let line = format!("{program} convert model -t Q4_K_M -o terminal.gguf --force {options}");
        let mut script = Command::new("script");
        let output = script.current_dir(dir.path()).args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).output();
        outcome(&output.expect("`script` starts")).1
    };
    if !tool("script") {
        return;
    }
    let seen = on_terminal("");
    assert!(seen.contains("converting") && seen.contains("/s,") && seen.contains('\u{1b}'), "{seen:?}");
    assert_eq!(on_terminal("--quiet"), "");
}

#[test]
fn closed_and_full_streams_do_not_change_the_result() {
    let dir = workplace();
    let program = env!("CARGO_BIN_EXE_ggforge");
    let shell = |line: &str| {
        let line = line.replace("ggforge", program);
        Command::new("sh").current_dir(dir.path()).args(["-c", &line]).output().expect("a shell")
    };
    assert_code(&shell("ggforge convert model -t F16 -o expected.gguf"), 0);
    let expected = fs::read(dir.path().join("expected.gguf")).unwrap();
    for (line, code) in [
        ("ggforge convert model -t F16 -o a.gguf >&-", 0),
        ("ggforge convert model -t F16 -o a.gguf 2>&-", 0),
        ("ggforge convert model -t F16 -o a.gguf <&- >&- 2>&-", 0),
        ("ggforge convert model -t F16 -o a.gguf 2>/dev/full", 0),
        ("ggforge convert model -t F16 -o a.gguf >/dev/full", 6),
        ("ggforge convert model -t F16 -o a.gguf --json >/dev/full 2>/dev/full", 6),
        ("(ggforge convert model -t F16 -o a.gguf; echo $? >&2) | true", 0),
        ("env -i ggforge convert model -t F16 -o a.gguf", 0),
    ] {
        let output = shell(line);
        assert_code(&output, code);
        assert!(!outcome(&output).2.contains("panic"), "{line}");
        assert!(fs::read(dir.path().join("a.gguf")).unwrap() == expected, "{line}");
        fs::remove_file(dir.path().join("a.gguf")).unwrap();
    }
    // A reader that has seen enough is no failure.
    let output = shell("(ggforge convert model -t F16 -o a.gguf --dry-run; echo $? >&2) | head -1");
    assert_eq!(outcome(&output).2.trim(), "0");
    let help = File::options().write(true).open("/dev/full").unwrap();
    let output = ggforge().args(["convert", "--help"]).stdout(help).output().unwrap();
    assert!(!outcome(&output).2.contains("panic"));
}

/// With `--force` an output replaces a file, but never one that the run reads: another shard, a list of types, a template.
#[test]
fn no_output_replaces_what_the_run_reads() {
    let dir = scratch();
    copy_model(&dir.path().join("model"));
    let templates = dir.path().join("model/additional_chat_templates");
    fs::create_dir(&templates).unwrap();
    fs::write(templates.join("tool.jinja"), "{{ messages }}").unwrap();
    fs::write(dir.path().join("types"), "attn_v=Q8_0").unwrap();
    fs::copy(fixture("text/prose.txt"), dir.path().join("text")).unwrap();
    assert_code(&run(dir.path(), "convert model --type Q8_0 --output whole.gguf -q"), 0);
    assert_code(&run(dir.path(), "quantize whole.gguf --type COPY --output split.gguf --split-max-size 1M -q"), 0);
    let shards: Vec<String> = files_in(dir.path()).into_iter().filter(|name| name.starts_with("split-")).collect();
    let (first, last) = (shards.first().unwrap().as_str(), shards.last().unwrap().as_str());
    assert_ne!(first, last);
    for (arguments, input) in [
        (format!("imatrix {first} --file text --ctx 64 --chunks 1 --output {last}"), last),
        (format!("imatrix {last} --file text --ctx 64 --chunks 1 --output {first}"), first),
        ("imatrix whole.gguf --file text --ctx 64 --chunks 1 --output text".into(), "text"),
        ("quantize whole.gguf --type COPY --tensor-type-file types --output types".into(), "types"),
        (format!("quantize {first} --type COPY --output {last}"), last),
        (
            "convert model --type Q8_0 --output model/additional_chat_templates/tool.jinja".into(),
            "model/additional_chat_templates/tool.jinja",
        ),
        ("convert model --type Q8_0 --output model/config.json".into(), "model/config.json"),
        ("convert model --type Q8_0 --tensor-type-file types --output types".into(), "types"),
        ("convert model --type Q8_0 --recipe types --output types".into(), "types"),
        (format!("compare whole.gguf {first} --file text --ctx 64 --chunks 1 --report {last}"), last),
        (format!("error whole.gguf {first} --report {last}"), last),
        ("error model whole.gguf --report model/config.json".into(), "model/config.json"),
        (format!("logits {first} --tokens 1,2 --output {last}"), last),
    ] {
        let before = fs::read(dir.path().join(input)).unwrap();
        let output = run(dir.path(), &format!("{arguments} --force"));
        let (code, _, stderr) = outcome(&output);
        assert_eq!(code, Some(2), "{arguments}: {stderr}");
        assert!(stderr.contains("is an input of this run; an output cannot replace it"), "{arguments}: {stderr}");
        assert!(fs::read(dir.path().join(input)).unwrap() == before, "{arguments}: {input} has changed");
    }
}
