//! A machine that grants little: no thread, less address space than the model has bytes. Commands do the same work with the same result, or
//! say what is missing; none aborts.

mod common;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output};

use common::{fixture, ggforge, scratch, succeeds, tool};
use ggforge::gguf::{Header, TensorSpec, Value};
use ggforge::quant::Format;

/// The fixture model as `model.gguf`, in F16, and a text.
fn model(folder: &Path) {
    succeeds(
        ggforge().arg("convert").arg(fixture("hf/forge-3m")).args(["--type", "F16", "-q", "-o"]).arg(folder.join("model.gguf")),
    );
    fs::copy(fixture("text/prose.txt"), folder.join("text")).expect("a copy");
}

/// The program in `folder`, started by a shell after `setup`.
fn in_shell(folder: &Path, setup: &str, line: &str) -> Output {
    let line = format!("{setup}; exec {} {line}", env!("CARGO_BIN_EXE_ggforge"));
    Command::new("sh").current_dir(folder).args(["-c", &line]).output().expect("a shell")
}

#[test]
fn without_a_thread_to_spare_the_bytes_are_the_same() {
    let dir = scratch();
    model(dir.path());
    if !tool("strace") {
        return;
    }
    let hf = fixture("hf/forge-3m");
    let hf = hf.to_str().expect("UTF-8");
    let read = |name: &str| fs::read(dir.path().join(name)).ok();
    for (line, output) in [
        ("quantize model.gguf --type Q4_K_M --output out --verify -q".to_owned(), Some("out")),
        (format!("convert {hf} --type Q5_K_M --output out -q"), Some("out")),
        ("imatrix model.gguf --file text --chunks 4 --ctx 64 --output out -q --device cpu".to_owned(), Some("out")),
        ("perplexity model.gguf --file text --chunks 4 --ctx 64 --json --device cpu".to_owned(), None),
        ("generate model.gguf --prompt Once -n 8 --temp 0 --device cpu".to_owned(), None),
        ("logits model.gguf --tokens 1,2,3,4 --last 2 --device cpu".to_owned(), None),
        ("error model.gguf model.gguf --json".to_owned(), None),
        ("inspect model.gguf".to_owned(), None),
    ] {
        let run = |command: &mut Command| {
            if let Some(output) = output {
                let _ = fs::remove_file(dir.path().join(output));
            }
            let done = succeeds(command.current_dir(dir.path()).args(line.split_whitespace()));
            let said = String::from_utf8(done.stdout).expect("UTF-8");
            // Time is another each time.
            let said: Vec<String> = said.lines().filter(|line| !line.contains("second")).map(str::to_owned).collect();
            (said, output.and_then(read))
        };
        let expected = run(&mut ggforge());
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "inject=clone,clone3:error=EAGAIN"]);
        let found = run(strace.arg(env!("CARGO_BIN_EXE_ggforge")));
        assert_eq!(found.0, expected.0, "{line}");
        assert!(found.1 == expected.1 && found.1.is_some() == output.is_some(), "{line}: other bytes");
    }
}

/// 16 GiB of weights, all of them a hole, and 1 GB of address space.
#[test]
fn a_model_larger_than_the_address_space_is_read() {
    let dir = scratch();
    let matrix =
        |n: u32| TensorSpec { name: format!("blk.{n}.ffn_down.weight"), format: Format::F32, shape: vec![1 << 15, 1 << 15] };
    let metadata = vec![("general.architecture".to_owned(), "llama".into()), ("llama.block_count".to_owned(), Value::U32(4))];
    let layout = Header { metadata, tensors: (0..4).map(matrix).collect() }.layout().expect("a sound header");
    let path = dir.path().join("large.gguf");
    fs::write(&path, &layout.header).expect("written");
    File::options().write(true).open(&path).and_then(|file| file.set_len(layout.file_bytes)).expect("a file with a hole");
    for line in ["quantize large.gguf --type Q4_K_M --output out.gguf --dry-run", "inspect large.gguf"] {
        let output = in_shell(dir.path(), "ulimit -v 1000000", line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// The angles, keys and values of 300 000 positions have 1.3 GB together: what fails first depends on how much there is.
#[test]
fn a_long_context_without_the_memory_for_it_is_an_error() {
    let dir = scratch();
    model(dir.path());
    let mut n_refused = 0;
    for mib in (100..1000).step_by(75) {
        let setup = format!("export MALLOC_ARENA_MAX=1; ulimit -c 0; ulimit -v {}", mib * 1024);
        let output = in_shell(dir.path(), &setup, "generate model.gguf --prompt Once -n 300000 --threads 1 --device cpu");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(6), "{mib} MiB: {said}");
        n_refused += usize::from(said.contains("cannot allocate") && said.contains("-n"));
    }
    assert!(n_refused >= 8, "only {n_refused} runs came to the work");
}
