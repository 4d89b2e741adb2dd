//! Chat templates: rendered as transformers does, in a process of their own that takes no more than it may.

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const CHILD: &str = "--render-chat-template";
/// Address space and seconds of one core, of each process.
const MEMORY_KIB: u64 = 256 << 10;
const CPU_SECONDS: u64 = 1;

/// What a fixture has in common for its templates.
struct Fixture(Value);

impl Fixture {
    fn open(name: &str) -> Fixture {
        Fixture(common::json(&common::fixture("chat").join(name)))
    }

    fn templates(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.0["templates"].as_object().expect("templates").iter()
    }

    /// The child's texts of all conversations, `None` where there is none, with why.
    fn render(&self, template: &str) -> Vec<(String, Result<String, String>)> {
        let conversations = self.0["conversations"].as_object().expect("conversations");
        let values = conversations.values().map(|messages| {
            let mut values = json!({"messages": messages, "tools": null, "documents": null, "add_generation_prompt": true});
            let tokens = self.0["tokens"].as_object().expect("tokens").clone();
            values.as_object_mut().expect("an object").extend(tokens);
            values
        });
        let request = json!({"template": template, "conversations": values.collect::<Vec<_>>(), "now": self.0["now"]});
        let output = child(&request.to_string(), std::process::id());
        assert!(output.status.success(), "{} for {template:.200}", output.status);
        let answer: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
        let text = |answer: Value| match (answer["text"].as_str(), answer["error"].as_str()) {
            (Some(text), None) => Ok(text.to_owned()),
            (None, Some(why)) => Err(why.to_owned()),
            _ => panic!("{answer}"),
        };
        conversations.keys().cloned().zip(answer.into_iter().map(text)).collect()
    }
}

/// Runs the program as the child that it starts.
fn child(request: &str, parent: u32) -> Output {
    let mut command = common::ggforge();
    command.args([CHILD, &(MEMORY_KIB << 10).to_string(), &CPU_SECONDS.to_string(), &parent.to_string()]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a child");
    // A child that refuses does not read.
    let _ = child.stdin.take().expect("a pipe").write_all(request.as_bytes());
    child.wait_with_output().expect("an end")
}

/// fixtures/chat/templates.json is what tools/dev/chat_templates.py found, with transformers 4.57.6.
#[test]
fn real_templates_are_rendered_as_by_transformers() {
    const FOLDER: &str = "llama.cpp/models/templates";
    let Some(peers) = common::peers(FOLDER) else { return };
    let fixture = Fixture::open("templates.json");
    let (mut n_equal, mut different) = (0, Vec::new());
    for (name, entry) in fixture.templates() {
        let template = fs::read_to_string(peers.join(FOLDER).join(format!("{name}.jinja"))).expect("a template of the fixture");
        assert_eq!(common::described::sha256(template.as_bytes()), entry["sha256"], "{name}: another template");
        for (conversation, found) in fixture.render(&template) {
            // Where transformers fails, nothing is right.
            let Some(expected) = entry["texts"][&conversation].as_str() else { continue };
            match found {
                Ok(text) if common::described::sha256(text.as_bytes()) == expected => n_equal += 1,
                found => different.push(format!("{name}, {conversation}: {found:?}")),
            }
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
    assert!(n_equal > 230, "only {n_equal} texts");
}

#[test]
fn what_templates_ask_for_is_what_transformers_gives() {
    let fixture = Fixture::open("features.json");
    let mut different = Vec::new();
    for (name, entry) in fixture.templates() {
        let template = entry["template"].as_str().expect("a template");
        for (conversation, found) in fixture.render(template) {
            let expected = entry["texts"][&conversation].as_str();
            if found.as_deref().ok() != expected {
                different.push(format!("{name}, {conversation}: {template}\n    {found:?}, not {expected:?}"));
            }
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

/// A copy of forge-3m.
fn forge(scratch: &Path) -> PathBuf {
    let folder = scratch.join("chat");
    fs::create_dir_all(&folder).expect("a folder");
    for entry in fs::read_dir(common::fixture("hf/forge-3m")).expect("a folder") {
        let path = entry.expect("an entry").path();
        fs::copy(&path, folder.join(path.file_name().expect("a name"))).expect("a copy");
    }
    folder
}

fn limited(command: &Command) -> Command {
    common::limited(command, CPU_SECONDS, MEMORY_KIB)
}

/// Each is refused, or done, within the time and the memory that a template may have, though it takes few instructions. The program
/// itself is held to the same limits, and conversion loses nothing.
#[test]
fn templates_that_attack_are_refused_or_done() {
    let nested = |end: &str| {
        format!("{{% set n = namespace(x=[]) %}}{{% for i in range(23000) %}}{{% set n.x = [n.x] %}}{{% endfor %}}{end}")
    };
    let trees = |end: &str| {
        format!(
            "{{% set n = namespace(x=[1], y=[1]) %}}{{% for i in range(60) %}}{{% set n.x = [n.x, n.x] %}}{{% set n.y = [n.y, n.y] %}}\
             {{% endfor %}}{end}"
        )
    };
    let blocks = format!("{}{}", "{% if true %}".repeat(20_000), "{% endif %}".repeat(20_000));
    let templates = [
        format!("{{{{ {}1 }}}}", "1+".repeat(20_000)),
        format!("{{{{ ({}1) | length }}}}", "1~".repeat(20_000)),
        format!("{{{{ {}true }}}}", "not ".repeat(20_000)),
        format!("{{{{ {}1 }}}}", "-".repeat(20_000)),
        format!("{{{{ x{} }}}}", ".a".repeat(20_000)),
        format!("{{{{ 'a'{} }}}}", "|e".repeat(20_000)),
        format!("{{{{ {}1{} }}}}", "1 if x else ".repeat(10_000), ""),
        format!("{{{{ {}{} }}}}", "[".repeat(23_000), "]".repeat(23_000)),
        blocks,
        nested("{% set text %}{{ n.x }}{% endset %}{{ text | length }}"),
        nested("{{ n.x == n.x }}"),
        nested("{{ n.x == [n.x] }}"),
        nested("{{ n.x | tojson }}"),
        nested("{{ n.x | string | length }}"),
        nested("{{ {n.x: 1} }}"),
        trees("{{ n.x == n.y }}"),
        trees("{{ n.x }}"),
        trees("{{ n.x | tojson | length }}"),
        trees("{{ [n.x, n.y] | sort | length }}"),
        trees("{{ n.x in [n.y] }}"),
        trees("{{ [n.x, n.y] | unique | list | length }}"),
        "{{ '%100000000000d' | format(1) }}".to_owned(),
        "{{ '%.100000000000f' | format(1.5) }}".to_owned(),
        "{{ '{:>100000000000}'.format(1) }}".to_owned(),
        "{{ 'a\nb' | indent(100000000000) }}".to_owned(),
        "{{ [1] | tojson(indent=100000000000) }}".to_owned(),
        "{{ 'a'.ljust(100000000000) }}".to_owned(),
        "{{ strftime_now('%999999999999Y') | length }}{{ strftime_now('%255Y' * 1000000) | length }}".to_owned(),
        "{{ range(1000000000) | list | length }}".to_owned(),
        "{{ 'ab' * 100000000000 }}".to_owned(),
        "{{ [1] * 100000000000 }}".to_owned(),
        "{{ 2 ** 1000000000 }}".to_owned(),
        "{% set n = namespace(x='a' * 1000000) %}{% for i in range(1000) %}{% set n.x = n.x.replace('a', 'aa') %}{% endfor %}"
            .to_owned(),
        "{% set n = namespace(x='12345678') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}".to_owned(),
        "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}".to_owned(),
        "{{ ('a' * 1000000).count('a' * 500000) }}{{ 'a' * 10000000 | replace('a', 'b' * 1000) }}".to_owned(),
    ];
    let scratch = common::scratch();
    let (folder, model) = (forge(scratch.path()), scratch.path().join("model.gguf"));
    let run = |arguments: &[&str], file: &Path| {
        let mut command = common::ggforge();
        command.args(arguments).arg(file).args(["--threads", "1", "--quiet"]);
        command
    };
    let mut sound: Option<Vec<u8>> = None;
    for template in templates {
        let head = &template[..template.len().min(100)];
        fs::write(folder.join("chat_template.jinja"), &template).expect("a template");
        let mut convert = run(&["convert", "--type", "F32", "--force", "--output", model.to_str().expect("UTF-8")], &folder);
        common::succeeds(&mut limited(convert.args(["--max-memory", "16M"])));
        let weights = fs::read(&model).expect("a file").split_off(fs::metadata(&model).expect("a file").len() as usize - (1 << 20));
        assert!(*sound.get_or_insert_with(|| weights.clone()) == weights, "{head}: other weights");
        let generate = run(&["generate", "--prompt", "a", "--chat", "-n", "1", "--device", "cpu"], &model);
        let output = limited(&generate).output().expect("a process");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(0 | 3)), "{head}: {}: {text}", output.status);
        if output.status.code() == Some(3) {
            assert!(text.contains("tokenizer.chat_template") && text.lines().count() == 1 && text.len() < 1500, "{head}: {text}");
        }
    }
}

/// What cannot be done in few steps, for as long as nobody ends it.
const ENDLESS: &str = "{% set n = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}\
    {% endfor %}{{ n.x == n.y }}";

#[test]
fn a_child_ends_with_its_parent() {
    let scratch = common::scratch();
    let request = scratch.path().join("request");
    let content = json!({"template": ENDLESS, "conversations": [{}], "now": "2026-03-05T07:08:09"});
    fs::write(&request, content.to_string()).expect("a request");
    let ggforge = common::ggforge();
    let script = format!("\"$0\" {CHILD} {} 600 $$ <\"$1\" >/dev/null & echo $!; sleep 0.5", MEMORY_KIB << 10);
    let output = common::succeeds(Command::new("/bin/sh").args(["-c", &script]).arg(ggforge.get_program()).arg(request));
    let stat = PathBuf::from(format!("/proc/{}/stat", String::from_utf8_lossy(&output.stdout).trim()));
    // A process that nobody waited for stays as a name.
    let is_there = || fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
    let deadline = Instant::now() + Duration::from_secs(30);
    while is_there() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    assert!(!is_there(), "a child goes on without its parent");
    // Nor does it begin without.
    let begun = Instant::now();
    assert_eq!(child(&content.to_string(), 1).status.code(), Some(1));
    assert!(begun.elapsed() < Duration::from_secs(20));
}

/// What the system says of the child that the program starts, while it renders.
#[test]
fn a_child_has_its_limits_and_nothing_else() {
    let scratch = common::scratch();
    let (folder, model) = (forge(scratch.path()), scratch.path().join("model.gguf"));
    fs::write(folder.join("chat_template.jinja"), ENDLESS).expect("a template");
    common::succeeds(common::ggforge().arg("convert").arg(&folder).args(["--type", "F32", "--quiet", "--output"]).arg(&model));
    let mut command = common::ggforge();
    command.arg("generate").arg(&model).args(["--prompt", "a", "--chat"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut parent = command.spawn().expect("a process");
    let children = PathBuf::from(format!("/proc/{0}/task/{0}/children", parent.id()));
    let of_child = || -> Option<(String, Vec<u8>, PathBuf, Vec<PathBuf>)> {
        let process = PathBuf::from(format!("/proc/{}", fs::read_to_string(&children).ok()?.trim()));
        let limits = fs::read_to_string(process.join("limits")).ok()?;
        let environment = fs::read(process.join("environ")).ok()?;
        let open = fs::read_dir(process.join("fd")).ok()?.map(|file| file.ok()?.path().read_link().ok()).collect::<Option<_>>()?;
        Some((limits, environment, process.join("cwd").read_link().ok()?, open))
    };
    let is_limited = |limits: &str| {
        let line = |name: &str| {
            limits.lines().find(|line| line.starts_with(name)).unwrap_or_default().split_whitespace().collect::<Vec<_>>()
        };
        line("Max address space").contains(&(MEMORY_KIB << 10).to_string().as_str())
            && line("Max cpu time")[3..5] == [CPU_SECONDS.to_string(), (CPU_SECONDS + 1).to_string()]
            && line("Max open files")[3..5] == ["0", "0"]
    };
    let mut seen = None;
    while seen.is_none() && parent.try_wait().expect("a state").is_none() {
        seen = of_child().filter(|(limits, ..)| is_limited(limits));
    }
    assert_eq!(parent.wait().expect("an end").code(), Some(3));
    let (_, environment, folder, open) = seen.expect("limits before the template is done");
    assert_eq!((environment.as_slice(), folder.as_path()), (&b""[..], Path::new("/")));
    // Whoever runs the tests may hand files down.
    let ours: Vec<PathBuf> =
        fs::read_dir("/proc/self/fd").expect("files").filter_map(|file| file.ok()?.path().read_link().ok()).collect();
    let own: Vec<&PathBuf> = open.iter().filter(|file| !ours.contains(file)).collect();
    let is_stream = |file: &&&PathBuf| file.as_path() == Path::new("/dev/null") || file.to_string_lossy().starts_with("pipe:");
    assert!(own.len() <= 3 && own.iter().all(|file| is_stream(&file)), "{own:?}");
}

#[test]
fn a_child_is_started_from_a_program_that_was_deleted() {
    let scratch = common::scratch();
    let (folder, model, program) = (forge(scratch.path()), scratch.path().join("model.gguf"), scratch.path().join("ggforge"));
    fs::write(folder.join("chat_template.jinja"), "[{{ messages[0].content }}]").expect("a template");
    common::succeeds(common::ggforge().arg("convert").arg(&folder).args(["--type", "F32", "--output"]).arg(&model));
    fs::copy(common::ggforge().get_program(), &program).expect("a copy");
    let script = "exec 3<\"$0\" && rm \"$0\" && exec /proc/self/fd/3 generate \"$1\" --prompt a --chat -n 1 --json";
    let output = common::succeeds(Command::new("/bin/sh").args(["-c", script]).args([&program, &model]));
    assert!(!program.exists() && serde_json::from_slice::<Value>(&output.stdout).expect("JSON")["prompt"].is_array());
}

/// A template says itself what a text begins with, and may name any token.
#[test]
fn a_prompt_is_what_the_template_makes() {
    let scratch = common::scratch();
    let (folder, model) = (forge(scratch.path()), scratch.path().join("model.gguf"));
    let config = folder.join("tokenizer_config.json");
    let mut settings: Value = fs::read(&config).map_or_else(|_| json!({}), |bytes| serde_json::from_slice(&bytes).expect("JSON"));
    settings["unk_token"] = "!".into();
    settings["add_bos_token"] = true.into();
    fs::write(&config, settings.to_string()).expect("a configuration");
    fs::write(folder.join("chat_template.jinja"), "{{ messages[0].content }}{{ unk_token }}").expect("a template");
    common::succeeds(common::ggforge().arg("convert").arg(&folder).args(["--type", "F32", "--output"]).arg(&model));
    let run = |arguments: &[&str]| {
        let output = common::succeeds(common::ggforge().args(arguments).arg(&model));
        serde_json::from_slice::<Value>(&output.stdout).expect("JSON")
    };
    let found = run(&["generate", "--prompt", "Once", "--chat", "-n", "1", "--json"]);
    let output = common::succeeds(common::ggforge().arg("tokenize").arg(&model).args(["--ids", "--no-bos", "Once!"]));
    assert_eq!(found["prompt"], serde_json::from_slice::<Value>(&output.stdout).expect("JSON"));
}

/// As some programs that start others do: news of children is switched off, and so are the standard streams.
#[test]
fn a_template_is_rendered_however_the_program_is_started() {
    let scratch = common::scratch();
    let (folder, model) = (forge(scratch.path()), scratch.path().join("model.gguf"));
    fs::write(folder.join("chat_template.jinja"), "[{{ messages[0].content }}]").expect("a template");
    common::succeeds(common::ggforge().arg("convert").arg(&folder).args(["--type", "F32", "--output"]).arg(&model));
    let prompt = |script: &str| {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).arg(common::ggforge().get_program()).arg(&model);
        serde_json::from_slice::<Value>(&common::succeeds(&mut command).stdout).expect("JSON")["prompt"].clone()
    };
    let generate = "\"$0\" generate \"$1\" --prompt a --chat -n 1 --json --quiet";
    let expected = prompt(generate);
    for start in
        ["trap '' CHLD; ", "trap '' PIPE; ", "ulimit -s 256; ", "ulimit -s unlimited; ", "exec <&- 2>&-; ", "cd /; env -i "]
    {
        assert_eq!(prompt(&format!("{start}{generate}")), expected, "{start}");
    }
}
