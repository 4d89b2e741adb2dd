//! `ggforge bench` times what it names, on answers that were checked.

mod common;

use common::{ggforge, succeeds};
use ggforge::matmul::Engine;
use ggforge::simd::Level;
use serde_json::Value;

/// Small and quick; the figures mean nothing.
const QUICK: &[&str] = &["bench", "formats", "--rows", "1", "--row-len", "256", "--samples", "1"];

fn usage_error(arguments: &[&str]) -> String {
    let output = ggforge().args(["bench", "formats"]).args(arguments).output().expect("it runs");
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    String::from_utf8(output.stderr).expect("UTF-8")
}

#[test]
fn formats_are_timed_at_every_level_of_this_machine() {
    let output = succeeds(ggforge().env_remove("GGFORGE_PEERS").args(QUICK).args(["--filter", "q4_k,IQ2_XXS", "--json"]));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let timings = report["timings"].as_array().expect("a list");
    let levels: Vec<&str> = Level::available().iter().map(|level| level.name()).collect();
    let by = |format: &str, work: &str| -> Vec<&str> {
        let same = timings.iter().filter(|t| t["format"] == format && t["work"] == work);
        same.map(|t| t["by"].as_str().expect("a name")).collect()
    };
    for (format, work) in [("Q4_K", "quantize"), ("Q4_K", "weighted"), ("Q4_K", "dequantize"), ("IQ2_XXS", "weighted")] {
        assert_eq!(by(format, work), levels, "{format} {work}");
    }
    assert_eq!(by("F32", "copy"), ["memcpy"]);
    assert_eq!(by("IQ2_XXS", "quantize"), [""; 0], "it needs importance");
    assert_eq!(timings.len(), 1 + 5 * levels.len());
    for timing in timings {
        let weights_per_s = timing["weights_per_s"].as_f64().expect("a number");
        let gb_per_s = timing["gb_per_s"].as_f64().expect("a number");
        assert!(weights_per_s > 0.0 && (gb_per_s * 1e9 / 4.0 / weights_per_s - 1.0).abs() < 1e-9, "{timing}");
        assert!(timing["times_copy"].as_f64().is_some_and(|x| x > 0.0) && timing["times_ggml"].is_null(), "{timing}");
    }
}

#[test]
fn formats_are_timed_beside_ggml_where_its_library_is() {
    const LIBRARY: &str = "npm/node_modules/@node-llama-cpp/linux-x64/bins/linux-x64/libggml-base.so";
    let Some(peers) = common::peers(LIBRARY) else { return };
    let arguments = ["--filter", "Q4_0,TQ2_0", "--csv"];
    let by_variable = succeeds(ggforge().env("GGFORGE_PEERS", &peers).args(QUICK).args(arguments));
    let by_option = succeeds(ggforge().args(QUICK).args(arguments).arg("--ggml").arg(peers.join(LIBRARY)));
    for output in [by_variable, by_option] {
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(text.starts_with("format,work,by,gb_per_s,weights_per_s,times_ggml,times_copy\nF32,copy,memcpy,"), "{text}");
        let rivals: Vec<&str> = text.lines().filter(|line| line.contains(",ggml,")).collect();
        // Q4_0 without and with importance, TQ2_0 without, and the reading of both.
        assert_eq!(rivals.len(), 5, "{text}");
        let ratio = |line: &str| line.split(',').nth(5).expect("a field").parse::<f64>().ok();
        assert!(text.lines().skip(2).all(|line| ratio(line).is_some()), "{text}");
        assert!(rivals.iter().all(|line| ratio(line) == Some(1.0)), "{text}");
    }
}

#[test]
fn what_cannot_be_timed_is_refused() {
    assert!(usage_error(&["--filter", "Q4_9"]).contains("no format is called Q4_9; there are F32, F16, Q4_0"));
    assert!(usage_error(&["--row-len", "96"]).contains("--row-len 96 is not a multiple of the 256 weights in a block of Q2_K"));
    assert!(usage_error(&["--rows", "0"]).contains("--rows times --row-len must be from 1 to"));
    assert!(usage_error(&["--rows", "18446744073709551615"]).contains("--rows times --row-len must be from 1 to"));
    assert!(usage_error(&["--samples", "0"]).contains("--samples must be from 1 to"));

    let library = common::root().join("Cargo.toml");
    let output = ggforge().args(QUICK).arg("--ggml").arg(&library).output().expect("it runs");
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(text.contains("Cargo.toml") && text.contains("libggml-base.so of ggml 0.25 or later is needed"), "{text}");
}

#[test]
fn products_are_timed_at_every_vector_level_beside_ceilings() {
    let small = ["bench", "matmul", "--tokens", "3", "--outputs", "40", "--inputs", "256", "--samples", "1", "--threads", "2"];
    let output = succeeds(ggforge().args(small).args(["--format", "q4_k,F32", "--json"]));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let levels: Vec<&str> = Engine::available().iter().map(|engine| engine.name()).collect();
    let levels = if levels.len() > 1 { &levels[1..] } else { &levels[..] };
    let of = |list: &str, key: &str| -> Vec<String> {
        let list = report[list].as_array().expect("a list");
        list.iter().map(|entry| entry[key].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(of("ceilings", "level"), levels);
    assert_eq!(of("speeds", "level"), [levels, levels].concat());
    assert_eq!(report["threads"], 2);
    for speed in report["speeds"].as_array().expect("a list") {
        for key in ["prompt_flop_per_s", "prompt_of_best", "token_bytes_per_s", "token_of_best", "token_weights_per_s"] {
            assert!(speed[key].as_f64().is_some_and(|figure| figure > 0.0), "{key}: {speed}");
        }
    }
    let text = String::from_utf8(succeeds(ggforge().args(small).args(["--format", "Q4_K"])).stdout).expect("UTF-8");
    assert!(text.contains("[40, 256] on 2 threads") && text.contains("GFLOP/s at best"), "{text}");

    for (wrong, message) in [
        (["--format", "Q4_9"], "Q4_9 is no format of weights to time; there are F32"),
        (["--format", "IQ2_XXS"], "IQ2_XXS is no format of weights to time"),
        (["--inputs", "96"], "--inputs 96 is not a multiple of the 256 weights in a block of Q6_K"),
        (["--tokens", "0"], "0 is not in 1..=65536"),
    ] {
        let output = ggforge().args(["bench", "matmul"]).args(wrong).output().expect("it runs");
        let text = String::from_utf8(output.stderr).expect("UTF-8");
        assert!(output.status.code() == Some(2) && text.contains(message), "{wrong:?}: {text}");
    }
}

#[test]
fn help_names_every_benchmark_and_its_options() {
    let help = |arguments: &[&str]| String::from_utf8(succeeds(ggforge().args(arguments)).stdout).expect("UTF-8");
    assert!(help(&["bench", "--help"]).contains("  formats  "));
    let formats = help(&["bench", "formats", "--help"]);
    assert!(formats.contains("Usage: ggforge bench formats") && formats.lines().next().is_some_and(|line| line.len() < 80));
    for option in ["--filter", "--ggml", "--rows", "--row-len", "--samples", "--json", "--csv"] {
        assert!(formats.contains(option), "{option}");
    }
}

#[test]
fn a_model_is_timed_beside_what_the_machine_could_do() {
    let scratch = common::scratch();
    let model = common::tiny::Tiny::new("llama").write(scratch.path(), "tiny");
    let arguments = ["--prompt", "3,5", "--generate", "4", "--samples", "1", "--threads", "1"];
    let output = succeeds(ggforge().args(["bench", "model"]).arg(&model).args(arguments).arg("--json"));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let work: Vec<(&str, u64)> = report["timings"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|t| {
            let flops = t["flops_per_s"].as_f64().expect("a number") * t["seconds"].as_f64().expect("a number");
            assert!(flops > 0.0 && t["tokens_per_s"].as_f64().is_some_and(|x| x > 0.0), "{t}");
            (t["work"].as_str().expect("a name"), t["n_tokens"].as_u64().expect("a count"))
        })
        .collect();
    assert_eq!(work, [("prompt", 3), ("prompt", 5), ("generate", 4)]);
    assert!(report["ceilings"]["flops_per_s"].as_f64().is_some_and(|x| x > 1e8), "{report}");
    let output = succeeds(ggforge().args(["bench", "model"]).arg(&model).args(arguments));
    assert!(String::from_utf8_lossy(&output.stdout).contains("tokens/s"));
    let output = succeeds(ggforge().args(["bench", "model", "--device", "cpu", "--json"]).arg(&model).args(arguments));
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).expect("JSON")["device"], "cpu");
    let output = ggforge().args(["bench", "model", "--prompt", "0"]).arg(&model).output().expect("it runs");
    assert_eq!(output.status.code(), Some(2));
}
