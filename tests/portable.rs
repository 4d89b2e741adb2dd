//! The bytes of a model depend on nothing but the model and its recipe: not on the CPU level, not on the number of threads.
//!
//! And not on the machine: every digest is printed, and `tools/dev/test-aarch64` compares those of this test on two architectures. Under
//! its emulator the formats made of grid points, which take longest, are left out unless `GGFORGE_TEST_FULL=1`; `tests/formats.rs` has
//! golden blocks of all.

mod common;

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use ggforge::hf::Folder;
use ggforge::imatrix::Imatrix;
use ggforge::pipeline::{self, Options};
use ggforge::plan::recipe::{PRESETS, Preset, preset};
use ggforge::plan::{ConvertOptions, NameOverride, Overrides, Plan, convert};
use ggforge::quant::Format;
use ggforge::simd::Level;
use sha2::{Digest, Sha256};

/// How the work is done.
type Run = (Level, usize);

/// Every level with every number of threads; under an emulator, which takes thirty times as long, the best level once.
fn runs() -> Vec<Run> {
    let levels = Level::available();
    match common::emulator() {
        None => levels.into_iter().flat_map(|level| [1, 3, 16].map(|threads| (level, threads))).collect(),
        Some(_) => vec![(levels[levels.len() - 1], 16)],
    }
}

/// Plans that together hold every format that can be written.
fn plans(model: &Folder, imatrix: &Imatrix) -> Vec<(&'static str, Plan)> {
    let planned = |presets: Vec<&'static Preset>, imatrix, overrides| {
        convert(model, &ConvertOptions { presets, imatrix, overrides, ..ConvertOptions::default() })
    };
    let all_possible = |imatrix| {
        let possible = |preset| planned(vec![preset], imatrix, Overrides::default()).is_ok();
        planned(PRESETS.iter().filter(|preset| possible(preset)).collect(), imatrix, Overrides::default())
            .expect("each is possible")
    };
    let mut plans = vec![("unweighted", all_possible(None)), ("weighted", all_possible(Some(imatrix)))];
    let tensors = plans.iter().flat_map(|(_, plan)| &plan.outputs).flat_map(|output| &output.tensors);
    let formats: Vec<Format> = tensors.map(|tensor| tensor.format).collect();
    let can_write = |format: &Format| format.can_quantize() && !format.is_for_activations();
    for format in Format::ALL.iter().filter(|format| can_write(format) && !formats.contains(format)) {
        let by_name = vec![NameOverride::parse(&format!(".={format}")).expect("a pattern and a format")];
        let overrides = Overrides { by_name, ..Overrides::default() };
        let plan =
            planned(vec![preset("Q8_0").expect("a preset")], Some(imatrix), overrides).expect("a format that can be written");
        plans.push((format.name(), plan));
    }
    if common::emulator().is_some() {
        keep_one_of_each_base(&mut plans);
        if std::env::var_os("GGFORGE_TEST_FULL").is_none() {
            leave_out_grids(&mut plans);
        }
    }
    plans
}

/// Of the file types that differ only in how they mix formats, keeps the first, and that rather with importance.
fn keep_one_of_each_base(plans: &mut [(&'static str, Plan)]) {
    let mut kept = Vec::new();
    let (by_preset, _) = plans.split_at_mut(2);
    for (_, plan) in by_preset.iter_mut().rev() {
        plan.outputs.retain(|output| {
            let base = preset(&output.file_type).expect("a preset's name").base;
            let is_new = !kept.contains(&base);
            kept.push(base);
            is_new
        });
    }
}

/// Leaves out every file type whose base is made of grid points.
fn leave_out_grids(plans: &mut [(&'static str, Plan)]) {
    let has_grid = |format: Format| ["IQ1", "IQ2", "IQ3"].iter().any(|family| format.name().starts_with(family));
    for (_, plan) in plans {
        plan.outputs.retain(|output| !has_grid(preset(&output.file_type).expect("a preset's name").base));
    }
}

/// The digest of every output.
fn digests(plan: &Plan, model: &Folder, (level, threads): Run, folder: &Path) -> Vec<String> {
    let options = Options { level, threads: NonZeroUsize::new(threads), ..Options::default() };
    let paths: Vec<_> = plan.outputs.iter().map(|output| folder.join(&output.file_type)).collect();
    pipeline::run(plan, model, &paths, &options, &|_| {}, &AtomicBool::new(false)).expect("written");
    let digest = |path| {
        let digest = Sha256::digest(std::fs::read(path).expect("written"));
        std::fs::remove_file(path).expect("our own file");
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    paths.iter().map(digest).collect()
}

#[test]
fn a_model_has_the_same_bytes_at_every_level_with_any_number_of_threads() {
    let model = Folder::open(common::fixture("hf/forge-3m")).expect("the fixture");
    let imatrix = Imatrix::open(common::fixture("imatrix/forge-3m.gguf")).expect("the fixture");
    let (folder, runs) = (common::scratch(), runs());
    for (kind, plan) in plans(&model, &imatrix).into_iter().filter(|(_, plan)| !plan.outputs.is_empty()) {
        let expected = digests(&plan, &model, runs[0], folder.path());
        for (output, digest) in plan.outputs.iter().zip(&expected) {
            println!("sha256 {digest} {} {kind}", output.file_type);
        }
        for &(level, threads) in &runs[1..] {
            let got = digests(&plan, &model, (level, threads), folder.path());
            for (output, (got, expected)) in plan.outputs.iter().zip(got.iter().zip(&expected)) {
                assert_eq!(got, expected, "{} {kind}: {} with {threads} threads differs", output.file_type, level.name());
            }
        }
    }
}
