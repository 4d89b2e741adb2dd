//! `ggforge generate` writes what llama.cpp writes.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

mod common;

fn converted(folder: &Path, to: &Path) -> PathBuf {
    let path = to.join("model.gguf");
    common::succeeds(
        common::ggforge().arg("convert").arg(folder).args(["--quiet", "--force", "--type", "F32", "--output"]).arg(&path),
    );
    path
}

fn generated(model: &Path, arguments: &[&str]) -> Value {
    let output = common::succeeds(common::ggforge().arg("generate").arg(model).args(arguments).arg("--json"));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// fixtures/model/greedy.jsonl is what tools/dev/generate.mjs printed for F32 conversions, by llama.cpp in node-llama-cpp.
#[test]
fn greedy_text_equals_that_of_llama_cpp() {
    let scratch = common::scratch();
    let lines = std::fs::read_to_string(common::fixture("model/greedy.jsonl")).unwrap();
    for expected in lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        let name = expected["model"].as_str().unwrap();
        let folder = match name {
            "forge-3m" => Some(common::fixture("hf/forge-3m")),
            _ => common::shared(&format!("models/{name}")),
        };
        let Some(folder) = folder else { continue };
        let found = generated(&converted(&folder, scratch.path()), &["--prompt", "Once upon a time", "-n", "64"]);
        for part in ["prompt", "tokens", "text"] {
            assert_eq!(found[part], expected[part], "{name}: {part}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_text_and_another_seed_another() {
    let scratch = common::scratch();
    let model = converted(&common::fixture("hf/forge-3m"), scratch.path());
    let tokens = |seed: &str| {
        let arguments = ["--prompt", "Once", "-n", "24", "--temp", "1", "--top-k", "0", "--top-p", "1", "--seed", seed];
        generated(&model, &arguments)["tokens"].clone()
    };
    assert_eq!(tokens("1"), tokens("1"));
    assert_ne!(tokens("1"), tokens("2"));
}

/// A copy of forge-3m with a chat template.
fn with_template(template: &str, scratch: &Path) -> PathBuf {
    let folder = scratch.join("chat");
    std::fs::create_dir_all(&folder).unwrap();
    for entry in std::fs::read_dir(common::fixture("hf/forge-3m")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    std::fs::write(folder.join("chat_template.jinja"), template).unwrap();
    converted(&folder, scratch)
}

/// Both ends of a length that nobody waits for: the cache takes memory as it fills, and what nobody reads is not written.
#[test]
fn a_long_text_takes_what_is_read_of_it() {
    const MIB: u64 = 1 << 20;
    let scratch = common::scratch();
    let model = converted(&common::fixture("hf/forge-3m"), scratch.path());
    let mut command = common::ggforge();
    command.arg("generate").arg(model).args(["--prompt", "Once", "-n", "300000", "--quiet"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut text = child.stdout.take().unwrap();
    text.read_exact(&mut [0; 100]).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    drop(text);
    let deadline = Instant::now() + Duration::from_secs(60);
    let ended = loop {
        match child.try_wait().unwrap() {
            None if Instant::now() < deadline => thread::sleep(Duration::from_millis(10)),
            ended => break ended,
        }
    };
    let _ = child.kill();
    assert_eq!(ended.map(|status| status.code()), Some(Some(0)), "it writes to a closed pipe");
    // Keys and values of 300000 tokens would be 1.2 GB, the angles of their positions are 77 MB.
    assert!(kib.unwrap_or(0) < 600 * MIB / 1024, "{kib:?} KiB");
}

/// A prompt is what it is, even if it looks like an option.
#[test]
fn a_prompt_may_begin_with_a_hyphen() {
    let scratch = common::scratch();
    let model = converted(&common::fixture("hf/forge-3m"), scratch.path());
    for prompt in ["- one\n- two\n-", "--seed", "-n"] {
        let found = generated(&model, &["--prompt", prompt, "-n", "1"]);
        let tokens = common::succeeds(common::ggforge().arg("tokenize").arg(&model).args(["--ids", "--", prompt]));
        assert_eq!(found["prompt"], serde_json::from_slice::<Value>(&tokens.stdout).unwrap(), "{prompt}");
    }
}

#[test]
fn numbers_that_make_no_sense_are_usage_errors() {
    let scratch = common::scratch();
    let model = converted(&common::fixture("hf/forge-3m"), scratch.path());
    let cases = [
        (["-n", "18446744073709551615"], "too large"),
        (["-n", "1048577"], "1048576"),
        (["-n", "-1"], "1048576"),
        (["--temp", "-1"], "a temperature of -1"),
        (["--top-p", "-0.5"], "a top-p of -0.5"),
    ];
    for (arguments, expected) in cases {
        let output = common::ggforge().arg("generate").arg(&model).args(["--prompt", "a"]).args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(text.contains(expected), "{arguments:?}: {text}");
    }
}

#[test]
fn a_chat_template_is_rendered_as_transformers_does() {
    let scratch = common::scratch();
    let template = "{{ bos_token }}\n{%- for message in messages %}\n    {% set role = message['role'].upper() %}\n\
        [{{ role }}] {{ message.content.strip() }};\n{% endfor %}\n{% if tools is not none or add_generation_prompt %}[ASSISTANT] {% endif %}";
    let model = with_template(template, scratch.path());
    let found = generated(&model, &["--prompt", " Who? ", "--chat", "--system", "Be brief", "-n", "1"]);
    // Jinja takes the line break after a block away, and the spaces before it.
    let text = "[SYSTEM] Be brief;\n[USER] Who?;\n[ASSISTANT] ";
    let tokens = common::succeeds(common::ggforge().arg("tokenize").arg(&model).args([text, "--json"]));
    let tokens: Value = serde_json::from_slice(&tokens.stdout).unwrap();
    let ids: Vec<&Value> = tokens["tokens"].as_array().unwrap().iter().map(|token| &token["id"]).collect();
    assert_eq!(found["prompt"], json!(ids));
}

#[test]
fn a_chat_template_that_does_not_work_is_a_fault_of_the_file() {
    let scratch = common::scratch();
    let templates = [
        ("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}", "fuel"),
        ("{{ raise_exception('only in pairs') }}", "only in pairs"),
        ("{% if %}", "syntax error"),
        (
            "{% set text = namespace(x='12345678') %}{% for i in range(60) %}{% set text.x = text.x ~ text.x %}{% endfor %}",
            "memory",
        ),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "recursion"),
        ("{% for i in range(9000) %}{% for j in range(90) %}12345678901234567890{% endfor %}{% endfor %}", "mebibyte"),
    ];
    for (template, expected) in templates {
        let model = with_template(template, scratch.path());
        let output = common::ggforge().arg("generate").arg(&model).args(["--prompt", "a", "--chat", "-v"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{template}: {text}");
        assert!(text.contains("ChatTemplate") && text.contains(expected), "{template}: {text}");
    }
    let model = converted(&common::fixture("hf/forge-3m"), scratch.path());
    let output = common::ggforge().arg("generate").arg(model).args(["--prompt", "a", "--chat"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
}

/// The end of a turn stands only in the list of generation_config.json, as in many folders.
#[test]
fn generation_stops_at_every_end_and_says_why() {
    let scratch = common::scratch();
    let folder = scratch.path().join("folder");
    std::fs::create_dir_all(&folder).unwrap();
    for entry in std::fs::read_dir(common::fixture("hf/forge-3m")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    let arguments = ["--prompt", "Once upon a time", "-n", "12"];
    let free = generated(&converted(&folder, scratch.path()), &arguments);
    assert_eq!((&free["stop_reason"], &free["stop_token"]), (&json!("length"), &Value::Null));
    let tokens = free["tokens"].as_array().unwrap();
    let end = &tokens[5];
    let first = tokens.iter().position(|token| token == end).unwrap();
    std::fs::write(folder.join("generation_config.json"), json!({ "eos_token_id": [2047, end] }).to_string()).unwrap();
    let ended = generated(&converted(&folder, scratch.path()), &arguments);
    assert_eq!(ended["tokens"].as_array().unwrap(), &tokens[..=first]);
    assert_eq!((&ended["stop_reason"], &ended["stop_token"]), (&json!("end_of_generation"), end));
}
