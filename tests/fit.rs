//! Memory of a model that runs: as llama.cpp takes it, before there is a file, and what is chosen for a memory fits into it.

mod common;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::checkpoint;
use serde_json::{Value, json};

/// llama.cpp's printed sizes have two decimals of a MiB.
const PRINTED_BYTES: f64 = 0.006 * 1048576.0;

/// A scheduler puts tensors where others have been, here and there with a gap; what is small is alignment.
const BUFFERS_OFF: f64 = 0.25;
const BUFFERS_SMALL_BYTES: f64 = 1.0 * 1048576.0;

fn fit(model: &Path, arguments: &[&str]) -> Value {
    let output = common::succeeds(common::ggforge().arg("fit").arg(model).arg("--json").args(arguments));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn of_type<'v>(found: &'v Value, name: &str) -> &'v Value {
    found["types"].as_array().expect("types").iter().find(|row| row["type"] == name).unwrap_or_else(|| panic!("{name}: {found}"))
}

/// Keys and values to the digit that llama.cpp prints, with windows and without; buffers near enough.
#[test]
fn llama_cpp_takes_as_much() {
    let Some(peers) = common::peers("npm/node_modules/node-llama-cpp") else { return };
    let scratch = common::scratch();
    let mut models: Vec<PathBuf> = Vec::new();
    let trained = scratch.path().join("forge-3m.gguf");
    common::succeeds(common::ggforge().arg("convert").arg(common::fixture("hf/forge-3m")).arg("--output").arg(&trained));
    models.push(trained);
    for case in checkpoint::cases().iter().filter(|case| ["gemma2", "gemma3", "qwen3moe", "llama-3"].contains(&case.name.as_str()))
    {
        let path = scratch.path().join(format!("{}.gguf", case.name));
        let folder = case.write(&case.layouts()[0], scratch.path());
        common::succeeds(common::ggforge().arg("convert").arg(folder).arg("--output").arg(&path));
        models.push(path);
    }
    let jobs: Vec<(&PathBuf, u64, &str)> =
        models.iter().flat_map(|path| [(512, "F16"), (4096, "F16"), (8192, "Q8_0")].map(|(ctx, kv)| (path, ctx, kv))).collect();
    let mut asked = String::new();
    for (path, ctx, kv) in &jobs {
        writeln!(asked, "{}", json!({ "path": path, "ctx": ctx, "kv": kv })).expect("a string");
    }
    let mut command = Command::new("node");
    command.env("GGFORGE_PEERS", peers).arg(common::root().join("tools/dev/memory.mjs")).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).spawn().expect("node");
    child.stdin.take().expect("a pipe").write_all(asked.as_bytes()).expect("a reader");
    let output = child.wait_with_output().expect("an end");
    let answers: Vec<Value> =
        String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(answers.len(), jobs.len(), "{}", String::from_utf8_lossy(&output.stdout));
    let (mut faults, mut n_compared) = (String::new(), 0);
    for ((path, ctx, kv), answer) in jobs.iter().zip(&answers) {
        let name = format!("{} with {ctx} tokens in {kv}", path.file_stem().expect("a name").to_string_lossy());
        let ours = common::ggforge()
            .args(["fit", "--json", "--type", "Q8_0", "--ctx", &ctx.to_string(), "--kv", kv])
            .arg(path)
            .output()
            .expect("a program that starts");
        // Heads that are no whole blocks: neither keeps them so.
        if !ours.status.success() {
            assert!(
                answer["error"].is_string() && String::from_utf8_lossy(&ours.stderr).contains("whole blocks"),
                "{name}: {answer}"
            );
            continue;
        }
        let found: Value = serde_json::from_slice(&ours.stdout).expect("JSON");
        let memory = &of_type(&found, "this file")["memory"][0];
        let [cache, buffers] = ["cache_bytes", "buffers_bytes"]
            .map(|key| (memory[key].as_f64().expect("bytes"), answer[key].as_f64().unwrap_or_else(|| panic!("{name}: {answer}"))));
        println!("{name}: cache {cache:?}, buffers {buffers:?}");
        n_compared += 1;
        // Two caches where some layers have a window.
        if (cache.0 - cache.1).abs() > 2.0 * PRINTED_BYTES {
            writeln!(faults, "{name}: cache {cache:?}").expect("a string");
        }
        if (buffers.0 - buffers.1).abs() > (BUFFERS_OFF * buffers.1).max(BUFFERS_SMALL_BYTES) {
            writeln!(faults, "{name}: buffers {buffers:?}").expect("a string");
        }
    }
    assert!(faults.is_empty() && n_compared >= 8, "{n_compared} compared\n{faults}");
}

/// Weights are what the files have, but for the table of embeddings where there is a head beside it.
#[test]
fn weights_are_those_of_the_files() {
    let scratch = common::scratch();
    let path = scratch.path().join("tied.gguf");
    common::succeeds(
        common::ggforge().arg("convert").arg(common::fixture("hf/forge-3m")).args(["--type", "Q4_K_M", "--output"]).arg(&path),
    );
    let file = ggforge::gguf::File::open(&path).expect("a file that was just made");
    let bytes: u64 = file.tensors().map(|tensor| tensor.size_bytes).sum();
    // The same from the folder, where no such file is.
    let of_folder = fit(&common::fixture("hf/forge-3m"), &["--type", "Q4_K_M"]);
    let of_file = fit(&path, &[]);
    for row in [of_type(&of_folder, "Q4_K_M"), of_type(&of_file, "this file")] {
        assert_eq!(row["memory"][0]["weights_bytes"].as_u64(), Some(bytes), "{row}");
    }
    let untied = checkpoint::cases().into_iter().find(|case| case.name == "llama").expect("a case");
    let folder = untied.write(&untied.layouts()[0], scratch.path());
    let found = fit(&folder, &["--type", "F16"]);
    let row = of_type(&found, "F16");
    let hidden = row["tensor_bytes"].as_u64().expect("bytes") - row["memory"][0]["weights_bytes"].as_u64().expect("bytes");
    let config: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).expect("a file")).expect("JSON");
    let size = |key: &str| config[key].as_u64().expect("a number");
    assert_eq!(hidden, size("vocab_size") * size("hidden_size") * 2, "the embedding in halves");
}

/// What fits is told, and up to which context; more context never takes less.
#[test]
fn the_longest_context_that_fits_is_told() {
    let found = fit(&common::fixture("hf/forge-3m"), &["--gpu-memory", "12MB", "--ctx", "256,1024", "--type", "Q8_0,Q4_0"]);
    for row in found["types"].as_array().expect("types") {
        let memory = row["memory"].as_array().expect("contexts");
        let totals: Vec<u64> = memory.iter().map(|at| at["total_bytes"].as_u64().expect("bytes")).collect();
        assert!(totals[0] < totals[1]);
        for (at, total) in memory.iter().zip(&totals) {
            assert_eq!(at["fits"].as_bool(), Some(*total <= 12_000_000), "{row}");
            let n_ctx = at["ctx"].as_u64().expect("a number");
            assert_eq!(row["ctx_max"].as_u64().expect("a number") >= n_ctx, *total <= 12_000_000, "{row}");
        }
    }
    let text = common::succeeds(common::ggforge().arg("fit").arg(common::fixture("hf/forge-3m")).args([
        "--gpu-memory",
        "1MB",
        "--type",
        "Q8_0",
    ]));
    assert!(String::from_utf8_lossy(&text.stdout).contains("does not fit"));
}
