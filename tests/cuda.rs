//! Machines without a usable GPU: every one is told in one line what is missing, `--device cuda` fails with it and exit code 7, and
//! `--device auto` goes on with the CPU. The drivers are libraries that this test compiles, as broken as drivers can be.
#![cfg(target_os = "linux")]

use std::path::Path;
use std::process::Command;

use ggforge::cuda::FUNCTIONS;

mod common;
use common::{ggforge, scratch, succeeds};

/// The exit code of a run that needs a GPU and has none.
const NO_GPU: i32 = 7;

/// A C compiler that makes libraries for the program under test.
fn compiler() -> Command {
    Command::new(if cfg!(target_arch = "aarch64") && common::emulator().is_some() { "aarch64-linux-gnu-gcc" } else { "cc" })
}

/// Compiles a `libcuda.so.1` into `folder`.
fn fake_driver(folder: &Path, source: &str) {
    let file = folder.join("libcuda.c");
    std::fs::write(&file, source).expect("a writable folder");
    succeeds(compiler().args(["-shared", "-fPIC", "-o"]).arg(folder.join("libcuda.so.1")).arg(file));
}

/// A driver with every function, of which each returns `code`, but those of `own`, which is C source.
fn driver_returning(code: i32, own: &str) -> String {
    let is_own = |name: &&&str| own.contains(&format!("int {name}("));
    let functions = FUNCTIONS.iter().filter(|name| !is_own(name)).map(|name| format!("int {name}(void) {{ return {code}; }}\n"));
    format!("{own}\n{}", functions.collect::<String>())
}

/// Asks for a GPU, for whatever there is, and for the CPU, with a driver from `folder`. Returns what `--device cuda` says.
#[track_caller]
fn refused(folder: &Path) -> String {
    let devices = |device: &str| {
        let mut command = ggforge();
        command.args(["devices", "--device", device]).env("LD_LIBRARY_PATH", folder).env_remove("CUDA_VISIBLE_DEVICES");
        command
    };
    let cuda = devices("cuda").output().expect("a program that starts");
    let said = String::from_utf8(cuda.stderr).expect("UTF-8");
    assert_eq!(cuda.status.code(), Some(NO_GPU), "{said}");
    assert_eq!(said.lines().count(), 1, "one line: {said}");
    assert!(said.starts_with("error: ") && said.contains("--device cpu"), "{said}");
    assert!(cuda.stdout.is_empty());

    let auto = String::from_utf8(succeeds(&mut devices("auto")).stdout).expect("UTF-8");
    let what = said.trim_start_matches("error: ").split(';').next().expect("a first part");
    assert_eq!(auto.matches(what).count(), 1, "auto says why, once: {auto}");
    assert!(auto.contains("\ncomputing on the CPU"), "{auto}");
    // A benchmark of GPUs has no CPU to advise.
    let bench = ggforge().args(["bench", "cuda"]).env("LD_LIBRARY_PATH", folder).output().expect("a program that starts");
    let advice = String::from_utf8(bench.stderr).expect("UTF-8");
    assert!(bench.status.code() == Some(NO_GPU) && advice.contains(what) && !advice.contains("--device"), "{advice}");
    assert!(advice.lines().count() == 1 && !advice.ends_with([',', ';', ' ']) && !advice.contains("; \n"), "{advice}");
    succeeds(&mut devices("cpu"));
    said
}

#[test]
fn a_machine_without_a_driver_is_told_so() {
    let folder = scratch();
    // An emulator's own libraries and a real driver would be found whatever the path.
    if Command::new("ldconfig").arg("-p").output().is_ok_and(|list| String::from_utf8_lossy(&list.stdout).contains("libcuda.so")) {
        common::skip_without_gpu("this machine has a driver");
        return;
    }
    let said = refused(folder.path());
    assert!(said.contains("no NVIDIA driver") && said.contains("libcuda.so.1"), "{said}");
}

#[test]
fn a_library_without_functions_is_no_driver() {
    let folder = scratch();
    fake_driver(folder.path(), "int nothing;");
    let said = refused(folder.path());
    assert!(said.contains(&format!("lacks {0} of {0} functions", FUNCTIONS.len())), "{said}");

    for absent in ["cuInit", "cuStreamWaitEvent"] {
        let whole = driver_returning(0, "");
        fake_driver(folder.path(), &whole.replace(&format!("int {absent}("), &format!("static int {absent}(")));
        let said = refused(folder.path());
        assert!(said.contains(&format!("lacks 1 of {} functions, {absent}", FUNCTIONS.len())), "{said}");
    }
}

#[test]
fn a_file_that_is_no_library_is_no_driver() {
    let folder = scratch();
    std::fs::write(folder.path().join("libcuda.so.1"), "not a library").expect("a writable folder");
    refused(folder.path());
}

#[test]
fn a_driver_that_does_not_start_is_explained() {
    let folder = scratch();
    for (code, expected) in [
        (34, "no NVIDIA driver: the libcuda.so found first is the stub of a CUDA toolkit (cuInit: 34)"),
        (100, "the NVIDIA driver finds no GPU (cuInit: 100)"),
        (803, "the NVIDIA driver's library and its kernel module have different versions (cuInit: 803)"),
        (999, "the NVIDIA driver does not start (cuInit: 999)"),
        (-123_456, "the NVIDIA driver does not start (cuInit: -123456)"), // no code of CUDA's
    ] {
        fake_driver(folder.path(), &driver_returning(code, ""));
        let said = refused(folder.path());
        assert!(said.contains(expected), "{said}");
    }
}

/// A driver that starts and says that it is of version `version`.
fn started(version: i32, own: &str) -> String {
    let own =
        format!("int cuInit(unsigned f) {{ return 0; }}\nint cuDriverGetVersion(int *v) {{ *v = {version}; return 0; }}\n{own}");
    driver_returning(999, &own)
}

#[test]
fn an_old_driver_and_an_old_gpu_are_refused() {
    let folder = scratch();
    fake_driver(folder.path(), &started(11_040, ""));
    let said = refused(folder.path());
    assert!(said.contains("too old: it brings CUDA 11.4") && said.contains("525"), "{said}");

    fake_driver(folder.path(), &started(12_040, "int cuDeviceGetCount(int *n) { *n = 0; return 0; }"));
    let said = refused(folder.path());
    assert!(said.contains("no GPU was found"), "{said}");

    let turing = r#"
        #include <string.h>
        int cuDeviceGetCount(int *n) { *n = 1; return 0; }
        int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
        int cuDeviceGetName(char *name, int len, int device) { strncpy(name, "Tesla T4", len); return 0; }
        int cuDeviceGetAttribute(int *value, int attribute, int device) {
            *value = attribute == 75 ? 7 : attribute == 76 ? 5 : 40;
            return 0;
        }
        int cuDeviceTotalMem_v2(unsigned long *bytes, int device) { *bytes = 16106127360ul; return 0; }
    "#;
    fake_driver(folder.path(), &started(12_040, turing));
    let said = refused(folder.path());
    assert!(said.contains("GPU 0, Tesla T4, has compute capability 7.5"), "{said}");

    let mut devices = ggforge();
    let list = succeeds(devices.args(["devices", "--json"]).env("LD_LIBRARY_PATH", folder.path()));
    let list: serde_json::Value = serde_json::from_slice(&list.stdout).expect("JSON");
    assert_eq!(list["cuda"]["driver_cuda_version"], "12.4");
    assert_eq!(list["cuda"]["gpus"][0]["name"], "Tesla T4");
    assert_eq!(list["cuda"]["gpus"][0]["usable"], false);
}

#[test]
fn a_gpu_that_does_not_answer_is_an_error() {
    let folder = scratch();
    fake_driver(folder.path(), &started(12_040, "int cuDeviceGetCount(int *n) { *n = 2; return 0; }"));
    let said = refused(folder.path());
    assert!(said.contains("cannot ask a GPU"), "{said}");
}

#[test]
fn the_cpu_needs_no_driver_and_the_help_tells_the_exit_code() {
    let help = String::from_utf8(succeeds(ggforge().arg("--help")).stdout).expect("UTF-8");
    assert!(help.contains("7 no usable GPU"), "{help}");
    let list = String::from_utf8(succeeds(ggforge().args(["devices", "--device", "cpu"])).stdout).expect("UTF-8");
    assert!(list.contains("computing on the CPU\n"), "{list}");
}
