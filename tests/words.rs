//! What the program says and takes, as people expect it from programs that they know: names of options, messages, prompts, places.

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{fixture, ggforge, root, scratch, succeeds, tool};
use serde_json::{Value, json};

#[path = "../build.rs"]
#[allow(dead_code)] // it has a main of its own
mod build;

/// A folder with the fixture model as `model` and its text as `text` in it.
fn workplace() -> tempfile::TempDir {
    let dir = scratch();
    symlink(fixture("hf/forge-3m"), dir.path().join("model")).unwrap();
    symlink(fixture("text/prose.txt"), dir.path().join("text")).unwrap();
    dir
}

/// The same with the model as `a.gguf`.
fn with_file() -> tempfile::TempDir {
    let dir = workplace();
    done(dir.path(), "convert model -t Q8_0 -o a.gguf -q");
    dir
}

/// Everything in a folder but the model and the text.
fn files_in(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name != "model" && name != "text").collect();
    names.sort();
    names
}

fn run(dir: &Path, arguments: &str) -> Output {
    ggforge().current_dir(dir).args(arguments.split_whitespace()).output().expect("a program that starts")
}

/// What a run that succeeds prints on stdout and stderr.
#[track_caller]
fn done(dir: &Path, arguments: &str) -> (String, String) {
    let Output { status, stdout, stderr } = run(dir, arguments);
    let [stdout, stderr] = [stdout, stderr].map(|bytes| String::from_utf8(bytes).expect("UTF-8"));
    assert!(status.success(), "{arguments}: {stdout}{stderr}");
    (stdout, stderr)
}

/// What a run that fails says.
#[track_caller]
fn refused(dir: &Path, arguments: &str, code: i32) -> String {
    let Output { status, stdout, stderr } = run(dir, arguments);
    let stderr = String::from_utf8(stderr).expect("UTF-8");
    assert_eq!((status.code(), stdout.len()), (Some(code), 0), "{arguments}: {stderr}");
    stderr
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn a_machine_without_a_card_is_told_so_where_that_was_asked() {
    let has_driver =
        Command::new("ldconfig").arg("-p").output().is_ok_and(|list| String::from_utf8_lossy(&list.stdout).contains("libcuda.so"));
    let vendors = fs::read_dir("/sys/bus/pci/devices").into_iter().flatten().flatten();
    let has_card =
        vendors.map(|device| fs::read_to_string(device.path().join("vendor"))).any(|id| id.is_ok_and(|id| id.trim() == "0x10de"));
    if has_driver || has_card {
        common::skip_without_gpu("this machine has something of NVIDIA's");
        return;
    }
    let dir = with_file();
    for (arguments, ends) in [
        ("perplexity a.gguf --file text --chunks 2 --ctx 64", "f32 activations, on the CPU\n"),
        ("imatrix a.gguf --file text --chunks 2 --ctx 64 --output i.gguf", "tokens/s on the CPU\n"),
        ("logits a.gguf --tokens 1,2", "of 2048 tokens each, on the CPU\n"),
    ] {
        let (stdout, stderr) = done(dir.path(), arguments);
        assert!(stderr.is_empty() && stdout.ends_with(ends), "{arguments}: {stdout}{stderr}");
    }
    let (_, stderr) = done(dir.path(), "generate a.gguf Once -n 2");
    assert!(stderr.starts_with("prompt: ") && stderr.ends_with("; on the CPU\n") && stderr.lines().count() == 1, "{stderr}");
    let (stdout, stderr) = done(dir.path(), "perplexity a.gguf --file text --chunks 2 --ctx 64 --device auto --json");
    assert!(stderr.starts_with("computing on the CPU: no NVIDIA driver: "), "{stderr}");
    assert_eq!(parsed(&stdout)["device"], "cpu");
    for arguments in ["devices", "devices --device auto"] {
        let (list, _) = done(dir.path(), arguments);
        assert!(list.matches("no NVIDIA driver").count() == 1 && list.ends_with("\ncomputing on the CPU\n"), "{list}");
    }
}

#[test]
fn no_output_is_standard_output() {
    let dir = with_file();
    for arguments in [
        "convert model -t Q8_0 -o -",
        "quantize a.gguf -t Q4_0 --output -",
        "imatrix a.gguf --file text -o -",
        "imatrix merge a.gguf -o -",
        "logits a.gguf --tokens 1 -o -",
        "error model a.gguf --report -",
        "compare a.gguf a.gguf --file text --report -",
        "bench cuda --output -",
    ] {
        let stderr = refused(dir.path(), arguments, 2);
        assert!(stderr.contains("an output is a file") && stderr.contains("never standard output"), "{arguments}: {stderr}");
        assert_eq!(files_in(dir.path()), ["a.gguf"], "{arguments}");
    }
    done(dir.path(), "convert model -t Q8_0 -o ./- -q");
}

#[test]
fn without_output_the_name_is_that_of_a_folder_s() {
    let dir = workplace();
    let (stdout, _) = done(dir.path(), "convert model");
    assert!(stdout.starts_with("Model-3.7M-BF16.gguf\n"), "{stdout}");
    done(dir.path(), "convert model -t Q8_0,Q4_K_M -q");
    done(dir.path(), "quantize Model-3.7M-BF16.gguf -t Q5_K_M -q");
    let all = ["BF16", "Q4_K_M", "Q5_K_M", "Q8_0"].map(|kind| format!("Model-3.7M-{kind}.gguf"));
    assert_eq!(files_in(dir.path()), all);
    assert!(refused(dir.path(), "convert model -t Q8_0", 2).contains("--force"));
}

#[test]
fn a_folder_with_a_slash_is_made_and_goes_with_a_failure() {
    let dir = workplace();
    done(dir.path(), "convert model -t Q8_0 -o new/er/ --dry-run");
    assert!(refused(dir.path(), "convert model -t Q8_0 -o new/er/ --max-memory 100", 2).contains("--max-memory"));
    assert!(files_in(dir.path()).is_empty(), "a folder was left behind");
    done(dir.path(), "convert model -t Q8_0 -o new/er/ -q");
    assert_eq!(files_in(&dir.path().join("new/er")), ["Model-3.7M-Q8_0.gguf"]);
    // What was there before stays, whatever happens.
    refused(dir.path(), "convert model -t Q8_0 -o new/er/", 2);
    refused(dir.path(), "convert model -t Q8_0 -o new/other/ --max-memory 100", 2);
    assert_eq!(files_in(&dir.path().join("new")), ["er"]);
    fs::write(dir.path().join("file"), "").unwrap();
    refused(dir.path(), "convert model -t Q8_0 -o file/", 6);
    refused(dir.path(), "convert model -t Q8_0 -o missing/a.gguf", 6);
}

#[test]
fn error_lists_all_tensors_only_where_asked() {
    let dir = with_file();
    let lines = |arguments: &str| done(dir.path(), &format!("error model a.gguf --worst 3 {arguments}")).0;
    let short = lines("");
    assert!(short.contains("a.gguf: roles\n") && short.contains("a.gguf: worst rows\n"), "{short}");
    assert!(!short.contains("a.gguf: tensors\n") && short.lines().count() < 30, "{short}");
    for arguments in ["--tensors", "--sort mse"] {
        let long = lines(arguments);
        assert!(long.contains("a.gguf: tensors\n") && long.lines().count() > 50, "{long}");
    }
}

#[test]
fn the_perplexity_so_far_is_shown_while_it_is_measured() {
    if !tool("script") {
        return;
    }
    let dir = with_file();
    let line = format!("{} perplexity a.gguf --file text", env!("CARGO_BIN_EXE_ggforge"));
    let mut script = Command::new("script");
    script.current_dir(dir.path()).args(["-qec", &line, "/dev/null"]).stdin(Stdio::null());
    let seen = String::from_utf8(succeeds(&mut script).stdout).expect("UTF-8");
    assert!(seen.contains("measuring, perplexity "), "{seen:?}");
}

/// What `generate --json` finds, with a text on standard input.
fn generated(dir: &Path, arguments: &[&str], stdin: &str) -> Value {
    let mut command = ggforge();
    command.current_dir(dir).args(["generate", "a.gguf", "-n", "12", "--json"]).args(arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a program that starts");
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).expect("a reader");
    parsed(&String::from_utf8(child.wait_with_output().expect("an end").stdout).expect("UTF-8"))
}

#[test]
fn a_prompt_is_taken_wherever_it_is_given() {
    let dir = with_file();
    fs::write(dir.path().join("prompt"), "Once upon a time\n").unwrap();
    let expected = generated(dir.path(), &["--prompt", "Once upon a time"], "");
    assert_eq!(expected["tokens"].as_array().unwrap().len(), 12);
    for (arguments, stdin) in [
        (&["Once upon a time"][..], ""),
        (&[], "Once upon a time\n"),
        (&["-"], "Once upon a time\r\n"),
        (&["--file", "-"], "Once upon a time"),
        (&["-f", "prompt"], ""),
    ] {
        let found = generated(dir.path(), arguments, stdin);
        assert_eq!((&found["prompt"], &found["text"]), (&expected["prompt"], &expected["text"]), "{arguments:?} {stdin:?}");
    }
    assert!(refused(dir.path(), "generate a.gguf", 2).contains("a prompt is needed"));
    refused(dir.path(), "generate a.gguf one --prompt two", 2);
    refused(dir.path(), "generate a.gguf one --file prompt", 2);
}

#[test]
fn a_text_ends_where_it_is_told_to_and_says_why() {
    let dir = with_file();
    let run = |arguments: &[&str]| generated(dir.path(), &[&["Once upon a time"], arguments].concat(), "");
    let free = run(&[]);
    let text = free["text"].as_str().unwrap();
    assert_eq!((&free["stop_reason"], &free["stop_text"]), (&json!("length"), &Value::Null));

    // Neither begins nor ends with a token.
    let (at, stop) = (text.len() / 2, &text[text.len() / 2..][..3]);
    let found = run(&["--stop", "never that", "--stop", stop]);
    assert_eq!((&found["stop_reason"], &found["stop_text"]), (&json!("stop_text"), &json!(stop)), "{found}");
    assert_eq!(found["text"], text[..text.find(stop).unwrap().min(at)], "{found}");
    let shown = done(dir.path(), "generate a.gguf Once -n 12 -q").0;
    let first = shown.split_whitespace().nth(1).unwrap();
    let ended = done(dir.path(), &format!("generate a.gguf Once -n 12 -q --stop {first}")).0;
    assert_eq!(ended.trim_end_matches('\n'), &shown[..shown.find(first).unwrap()]);

    let n_prompt = free["prompt"].as_array().unwrap().len();
    let found = run(&["--ctx", &(n_prompt + 5).to_string()]);
    assert_eq!((&found["stop_reason"], found["tokens"].as_array().unwrap().len()), (&json!("context"), 5));
    assert_eq!(found["tokens"].as_array().unwrap()[..], free["tokens"].as_array().unwrap()[..5]);
    assert_eq!(run(&["--ctx", "1000"])["stop_reason"], "length");
    assert!(refused(dir.path(), "generate a.gguf Once --ctx 1", 2).contains("--ctx 1 leaves no room"));
    refused(dir.path(), "generate a.gguf Once --stop=", 2);
}

#[test]
fn a_signal_is_told_as_json_where_that_is_asked_for() {
    let dir = with_file();
    for (more, is_json) in [(&[][..], false), (&["--json"], true)] {
        let mut command = ggforge();
        command.current_dir(dir.path()).args(["generate", "a.gguf", "Once", "-n", "1000000", "--ctx", "1000000"]).args(more);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("a program that starts");
        let heeds_sigterm = || {
            let status = fs::read_to_string(format!("/proc/{}/status", child.id())).expect("a process");
            let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect("a mask");
            u64::from_str_radix(caught.trim(), 16).expect("a mask") & (1 << (15 - 1)) != 0
        };
        while !heeds_sigterm() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        succeeds(Command::new("kill").args(["-TERM", &child.id().to_string()]));
        let Output { status, stderr, .. } = child.wait_with_output().expect("an end");
        let said = String::from_utf8(stderr).expect("UTF-8");
        let last = said.lines().last().expect("a word");
        assert_eq!(status.code(), Some(143), "{said}");
        if is_json {
            let error = parsed(last);
            assert_eq!((&error["message"], &error["exit_code"]), (&json!("stopped by signal 15"), &json!(143)), "{said}");
        } else {
            assert_eq!(last, "stopped by signal 15");
        }
    }
}

#[test]
fn an_unsupported_architecture_is_called_so_beside_the_file() {
    let dir = scratch();
    let mut tiny = common::tiny::Tiny::new("llama");
    tiny.set("general.architecture", ggforge::gguf::Value::from("rwkv"));
    tiny.write(dir.path(), "foo");
    let file = files_in(dir.path()).remove(0);
    let stderr = refused(dir.path(), &format!("generate {file} hi"), 3);
    assert!(stderr.starts_with(&format!("error: {file}: unsupported architecture rwkv; llama, ")), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    let error = parsed(&refused(dir.path(), &format!("generate {file} hi --json"), 3));
    assert_eq!(error["path"], json!(file), "{error}");
}

#[test]
fn a_shell_completes_the_names_of_types() {
    let dir = scratch();
    let script = done(dir.path(), "completions bash").0;
    fs::write(dir.path().join("ggforge.bash"), &script).unwrap();
    let completed = |words: &str| {
        let line = format!(
            "source ./ggforge.bash; COMP_WORDS=(ggforge {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _ggforge ggforge \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"; echo \"${{COMPREPLY[@]}}\""
        );
        let output = succeeds(Command::new("bash").current_dir(dir.path()).args(["-c", &line]));
        String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
    };
    assert_eq!(completed("convert model --type Q4_K"), "Q4_K_S Q4_K_M");
    assert_eq!(completed("quantize a.gguf --type CO"), "COPY");
    assert_eq!(completed("convert model --output-tensor-type Q6"), "Q6_K");
    // What none of them is, the library explains; the help stays short.
    let help = done(dir.path(), "convert --help").0;
    assert!(!help.contains("possible values: F32"), "{help}");
}

#[test]
fn the_version_names_the_commit_and_the_cpu_level() {
    let dir = scratch();
    let (long, short) = (done(dir.path(), "--version").0, done(dir.path(), "-V").0);
    assert_eq!(short, concat!("ggforge ", env!("CARGO_PKG_VERSION"), "\n"));
    let inside = long.strip_prefix(&short.replace('\n', " (")).and_then(|rest| rest.strip_suffix(")\n")).expect(&long);
    let (commit, level) = inside.split_once(", ").expect(&long);
    assert_eq!(level, ggforge::simd::Level::detect().name());
    // Only what is built to be used knows its commit.
    assert!(commit == "debug build" || commit.len() == 12 && commit.bytes().all(|c| c.is_ascii_hexdigit()), "{long}");

    // A package of a registry has no repository, but a file.
    assert_eq!(build::commit(dir.path()), None);
    let hash = "0123456789abcdef0123456789abcdef01234567";
    let package = json!({ "git": { "sha1": hash }, "path_in_vcs": "" });
    fs::write(dir.path().join(".cargo_vcs_info.json"), package.to_string()).unwrap();
    assert_eq!(build::commit(dir.path()).as_deref(), Some(&hash[..12]));
    if root().join(".git").exists() && tool("git") {
        let head = succeeds(Command::new("git").arg("-C").arg(root()).args(["rev-parse", "HEAD"])).stdout;
        assert_eq!(build::commit(root()).expect("a commit"), String::from_utf8(head).unwrap()[..12]);
    }
}

#[test]
fn inspect_takes_several_files() {
    let dir = with_file();
    done(dir.path(), "convert model -t Q4_0 -o b.gguf -q");
    let (text, _) = done(dir.path(), "inspect a.gguf b.gguf");
    assert!(text.starts_with("a.gguf: llama, Q8_0\n") && text.contains("\n\nb.gguf: llama, Q4_0\n"), "{text}");
    assert_eq!(text, format!("{}\n{}", done(dir.path(), "inspect a.gguf").0, done(dir.path(), "inspect b.gguf").0));
    let both = parsed(&done(dir.path(), "inspect a.gguf b.gguf --json").0);
    let paths: Vec<&Value> = both.as_array().unwrap().iter().map(|report| &report["path"]).collect();
    assert_eq!(paths, ["a.gguf", "b.gguf"]);
    assert_eq!(parsed(&done(dir.path(), "inspect a.gguf --json").0)["path"], "a.gguf");
    // Nothing is printed where one of them cannot be shown.
    refused(dir.path(), "inspect a.gguf missing.gguf --json", 6);
    refused(dir.path(), "inspect a.gguf b.gguf --key missing --json", 2);
    let (values, _) = done(dir.path(), "inspect a.gguf b.gguf --key general.architecture");
    assert_eq!(values, "a.gguf:\nllama\n\nb.gguf:\nllama\n");
}

#[test]
fn a_page_that_was_written_is_named() {
    let dir = with_file();
    for (name, arguments) in [("c.html", "compare a.gguf a.gguf --file text --chunks 2 --ctx 64"), ("e.html", "error model a.gguf")]
    {
        let (stdout, _) = done(dir.path(), &format!("{arguments} --report {name}"));
        let last = stdout.lines().last().unwrap();
        assert!(last.starts_with(&format!("{name}: the same as a page with plots, ")), "{stdout}");
        let (quiet, _) = done(dir.path(), &format!("{arguments} --report {name} --force --quiet"));
        assert!(!quiet.contains("page with plots"), "{quiet}");
        parsed(&done(dir.path(), &format!("{arguments} --report {name} --force --json")).0);
    }
}

#[test]
fn a_page_says_how_it_was_made_and_is_the_same_for_the_same_files() {
    let dir = with_file();
    let page = |arguments: &str, second: &str| {
        let mut command = ggforge();
        command.current_dir(dir.path()).args(arguments.split_whitespace()).args(["--report", "p.html", "--force"]);
        succeeds(command.env("SOURCE_DATE_EPOCH", second));
        fs::read_to_string(dir.path().join("p.html")).expect("a page")
    };
    let size = fs::metadata(dir.path().join("a.gguf")).unwrap().len();
    for arguments in ["compare a.gguf a.gguf -f text --chunks 2 --ctx 64", "error model a.gguf"] {
        let html = page(arguments, "1000000000");
        let (_, foot) = html.split_once("<footer>").expect("a foot");
        let version = done(dir.path(), "--version").0;
        for part in [
            "2001-09-09T01:46:40Z",
            &format!("<dd>ggforge {arguments} --report p.html --force</dd>"),
            version.trim(),
            " threads",
            &format!("<dt>a.gguf</dt><dd>{size} bytes</dd>"),
        ] {
            assert_eq!(foot.matches(part).count(), 1, "{part}: {foot}");
        }
        assert!(html == page(arguments, "1000000000"), "{arguments}");
        let (before, after) = (html.split_once("<footer>").unwrap().0, page(arguments, "1000000001"));
        assert!(after.starts_with(before) && after != html, "only the foot knows the time: {arguments}");
    }
    let html = page("compare model a.gguf -f text --chunks 2 --ctx 64", "0");
    assert!(html.contains("<dt>model/model.safetensors</dt>") && html.contains("1970-01-01T00:00:00Z"), "{html}");
    let places = ["config.json", "model.safetensors", "tokenizer.json"].map(|name| html.find(&format!("<dt>model/{name}</dt>")));
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "in whatever order a disk has them: {html}");
    assert!(html.contains("A mean KLD of 0.01 nats means"), "an aid to reading: {html}");
}

#[test]
fn the_words_of_other_programs_are_understood() {
    let dir = with_file();
    done(dir.path(), "convert model --outtype q8_0 --outfile b.gguf -q");
    assert!(fs::read(dir.path().join("a.gguf")).unwrap() == fs::read(dir.path().join("b.gguf")).unwrap());
    done(dir.path(), "convert model --outtype auto --outfile c.gguf -q");
    assert!(done(dir.path(), "info c.gguf").0.starts_with("c.gguf: llama, BF16\n"));
    done(dir.path(), "ppl a.gguf -f text --chunks 2 --ctx 64");
    done(dir.path(), "imatrix a.gguf -f text --chunks 2 --ctx 64 --output-file i.gguf -q");
    done(dir.path(), "compare a.gguf b.gguf -f text --chunks 2 --ctx 64");
    assert!(done(dir.path(), "tokenize a.gguf -f text --ids").0.starts_with('['));
    done(dir.path(), "run a.gguf Once -n 2");
    // A letter is like no name; a slip is.
    let stderr = refused(dir.path(), "convert model --x", 2);
    assert!(stderr.starts_with("error: unexpected argument '--x' found\n") && !stderr.contains("--max-memory"), "{stderr}");
    assert!(refused(dir.path(), "convert model --outptu x", 2).contains("'--output'"));
    // They are accepted, and not advertised.
    let help = ["--help", "convert --help"].map(|arguments| done(dir.path(), arguments).0).concat();
    assert!(!help.contains("--outtype") && !help.contains("--outfile") && !help.contains("ppl"), "{help}");
}

#[test]
fn an_unsupported_class_is_named_before_a_missing_shard() {
    let dir = scratch();
    let folder = dir.path().join("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("config.json"), json!({ "architectures": ["FrobForCausalLM"], "model_type": "frob" }).to_string())
        .unwrap();
    let index = json!({ "weight_map": { "a.weight": "model-00001-of-00002.safetensors" } });
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    for arguments in ["convert folder -t Q4_K_M -o x.gguf --dry-run", "convert folder"] {
        let stderr = refused(dir.path(), arguments, 3);
        assert!(stderr.contains("\"FrobForCausalLM\" are not supported") && !stderr.contains("shard"), "{stderr}");
    }
}
