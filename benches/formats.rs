//! How fast each format is quantized and read at each CPU level, beside ggml's own function on the same rows in the same process.
//!
//! `cargo bench --bench formats [FILTER]`: throughput is bytes of f32, one thread. The bytes are compared with ggml's before they are
//! timed. `GGFORGE_BENCH_TABLE=1` prints one table of medians instead of criterion's report, in which FILTER is the start of a format's
//! name.

#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;
use std::time::Duration;

use common::Paint;
use common::ggml::Ggml;
use criterion::{Criterion, Throughput};
use ggforge::quant::Format;
use ggforge::simd::Level;

/// 1 MiB of f32: more than the first-level cache, less than the second with its blocks, as the row batches of a conversion are.
const ROW_LEN: usize = 4096;
const N_ROWS: usize = 64;

fn main() {
    let ggml = Ggml::load();
    let weights = Paint::new(1).weights(ROW_LEN * N_ROWS, |p| 0.02 * p.gaussian());
    let importance = Paint::new(2).weights(ROW_LEN, |p| p.gaussian().exp());
    if std::env::var_os("GGFORGE_BENCH_TABLE").is_some() {
        return table(ggml.as_ref(), &weights, &importance);
    }
    let mut criterion = Criterion::default().configure_from_args().warm_up_time(Duration::from_millis(300));
    criterion = criterion.measurement_time(Duration::from_secs(1)).sample_size(20);
    for &format in Format::ALL.iter().filter(|format| format.can_quantize()) {
        let mut blocks = Vec::new();
        for (what, importance) in weightings(format, &importance) {
            blocks = checked_blocks(ggml.as_ref(), format, &weights, importance);
            let mut quantize = criterion.benchmark_group(format!("{what}/{format}"));
            quantize.throughput(Throughput::Bytes(4 * weights.len() as u64));
            for (name, mut run) in quantizers(ggml.as_ref(), format, &weights, importance) {
                quantize.bench_function(name, |bencher| bencher.iter(&mut run));
            }
            quantize.finish();
        }
        let mut dequantize = criterion.benchmark_group(format!("dequantize/{format}"));
        dequantize.throughput(Throughput::Bytes(4 * weights.len() as u64));
        for (name, mut run) in dequantizers(ggml.as_ref(), format, &blocks) {
            dequantize.bench_function(name, |bencher| bencher.iter(&mut run));
        }
        dequantize.finish();
    }
    criterion.final_summary();
}

type Named<'a> = (&'static str, Box<dyn FnMut() + 'a>);

/// What is timed: quantizing without importance where the format can do without, and with it where that makes a difference.
fn weightings(format: Format, importance: &[f32]) -> Vec<(&'static str, Option<&[f32]>)> {
    let both = [("quantize", None), ("weighted", Some(importance))];
    let fits = |importance: bool| if importance { format.uses_importance() } else { !format.needs_importance() };
    both.into_iter().filter(|(_, importance)| fits(importance.is_some())).collect()
}

/// ggml first when it is there, then every level.
fn quantizers<'a>(ggml: Option<&'a Ggml>, format: Format, weights: &'a [f32], importance: Option<&'a [f32]>) -> Vec<Named<'a>> {
    let n_bytes = weights.len() / format.block_len() * format.block_bytes();
    let mut all: Vec<Named> = Vec::new();
    if let Some(ggml) = ggml {
        let mut blocks = vec![0; n_bytes];
        all.push(("ggml", Box::new(move || ggml.quantize(format, black_box(weights), ROW_LEN, importance, &mut blocks))));
    }
    for level in Level::available() {
        let mut blocks = vec![0; n_bytes];
        let run =
            move || format.quantize_rows(level, black_box(weights), ROW_LEN, importance, &mut blocks).expect("finite weights");
        all.push((level.name(), Box::new(run)));
    }
    all
}

/// ggml first when it is there and has a reader, then every level.
fn dequantizers<'a>(ggml: Option<&'a Ggml>, format: Format, blocks: &'a [u8]) -> Vec<Named<'a>> {
    let n = blocks.len() / format.block_bytes() * format.block_len();
    let mut all: Vec<Named> = Vec::new();
    if let Some(ggml) = ggml.filter(|ggml| ggml.can_dequantize(format)) {
        let mut weights = vec![0.0; n];
        all.push(("ggml", Box::new(move || ggml.dequantize(format, black_box(blocks), &mut weights))));
    }
    for level in Level::available() {
        let mut weights = vec![0.0; n];
        all.push((level.name(), Box::new(move || format.dequantize(level, black_box(blocks), &mut weights))));
    }
    all
}

/// The blocks of `weights`, the same at every level and in ggml.
fn checked_blocks(ggml: Option<&Ggml>, format: Format, weights: &[f32], importance: Option<&[f32]>) -> Vec<u8> {
    let mut expected = vec![0; weights.len() / format.block_len() * format.block_bytes()];
    format.quantize_rows(Level::available()[0], weights, ROW_LEN, importance, &mut expected).expect("finite weights");
    let mut blocks = vec![0; expected.len()];
    for level in Level::available() {
        format.quantize_rows(level, weights, ROW_LEN, importance, &mut blocks).expect("finite weights");
        assert!(blocks == expected, "{format}: {} differs from scalar", level.name());
    }
    if let Some(ggml) = ggml {
        ggml.quantize(format, weights, ROW_LEN, importance, &mut blocks);
        assert!(blocks == expected, "{format}: ggml differs");
    }
    expected
}

/// Medians of 9 runs in GB/s of f32, and the ratio to ggml.
fn table(ggml: Option<&Ggml>, weights: &[f32], importance: &[f32]) {
    let mut copy = vec![0.0f32; weights.len()];
    let rate = |seconds: f64| 4.0 * weights.len() as f64 / seconds / 1e9;
    println!("memcpy {:.1} GB/s", rate(median_seconds(&mut || copy.copy_from_slice(black_box(weights)))));
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    for &format in Format::ALL.iter().filter(|format| format.can_quantize() && format.name().starts_with(&filter)) {
        let mut blocks = Vec::new();
        let mut runs = Vec::new();
        for (what, importance) in weightings(format, importance) {
            blocks = checked_blocks(ggml, format, weights, importance);
            runs.push((what, quantizers(ggml, format, weights, importance)));
        }
        runs.push(("dequantize", dequantizers(ggml, format, &blocks)));
        for (what, runs) in runs {
            print!("{what:10} {format:7}");
            let mut rival = None;
            for (name, mut run) in runs {
                let gbps = rate(median_seconds(&mut run));
                print!("  {name} {gbps:.3}");
                match rival {
                    None if name == "ggml" => rival = Some(gbps),
                    Some(rival) => print!(" ({:.1}x)", gbps / rival),
                    None => {}
                }
            }
            println!();
        }
    }
}

/// Of 9 samples of at least 20 ms, in time of this thread on its core, so that neighbours disturb less.
fn median_seconds(run: &mut dyn FnMut()) -> f64 {
    run();
    let mut samples: Vec<f64> = (0..9)
        .map(|_| {
            let (start, mut n) = (thread_seconds(), 0);
            while thread_seconds() - start < 0.02 {
                run();
                n += 1;
            }
            (thread_seconds() - start) / f64::from(n)
        })
        .collect();
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

fn thread_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64
}
