//! README.md says what is true: its table of formats is the table of the code.

use ggforge::arch::describe::Family;
use ggforge::arch::{self, FAMILIES};
use ggforge::cuda;
use ggforge::quant::Format;

mod common;

#[test]
fn the_table_of_formats_is_that_of_the_code() {
    let readme = std::fs::read_to_string(common::root().join("README.md")).expect("a readable README.md");
    let expected = table();
    assert!(readme.contains(&expected), "README.md should hold this table:\n\n{expected}");
}

#[test]
fn the_table_of_architectures_is_that_of_the_code() {
    let readme = std::fs::read_to_string(common::root().join("README.md")).expect("a readable README.md");
    let runs_on = |family: &Family| if cuda::runs(family) { "CPU, CUDA" } else { "CPU" };
    let expected = arch::table(FAMILIES, runs_on);
    assert!(readme.contains(&expected), "README.md should hold this table:\n\n{expected}");
    let (widest, unit) = cuda::head_dims_max();
    let heads = format!("On CUDA heads are multiples of {unit} up to {widest} wide");
    assert!(readme.contains(&heads), "README.md should say: {heads}");
    let help = common::ggforge().args(["convert", "--help"]).output().expect("a program that starts");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for line in arch::list(FAMILIES).lines() {
        assert!(help.contains(line.trim_end()), "`ggforge convert --help` should say {line:?}:\n{help}");
    }
}

fn table() -> String {
    let mut table = String::from(
        "| format | bits per weight | weights per block | bytes per block | read | written |\n|---|---|---|---|---|---|\n",
    );
    let mark = |yes: bool| if yes { "yes" } else { "" };
    for &format in Format::ALL {
        let bits = 8.0 * format.block_bytes() as f64 / format.block_len() as f64;
        table += &format!(
            "| {format} | {bits} | {} | {} | {} | {} |\n",
            format.block_len(),
            format.block_bytes(),
            mark(format.can_dequantize()),
            mark(format.can_quantize() && !format.is_for_activations())
        );
    }
    table
}
