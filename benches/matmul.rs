//! How fast products are at each CPU level, beside what the machine could do: GFLOP/s beside its fused multiply-adds in registers, and for
//! one token GB/s of blocks beside what it reads from memory.
//!
//! `cargo bench --bench matmul [FILTER]`: products are compared with f64 before they are timed. `GGFORGE_BENCH_TABLE=1` prints one table
//! of medians instead of criterion's report, in which FILTER is the start of a format's name. Threads: `RAYON_NUM_THREADS`.

#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;
use std::time::{Duration, Instant};

use common::Paint;
use criterion::{Criterion, Throughput};
use ggforge::matmul::{Accumulate, Activations, Engine, Rows, Weights, ceiling};
use ggforge::quant::Format;

/// A matrix of a 1-billion-parameter model, `ffn_up`: `[N_OUT, N_IN]`.
const N_OUT: usize = 8192;
const N_IN: usize = 2048;

/// Tokens of a prompt.
const N_TOKENS: usize = 512;

/// Matrices that one token is multiplied with in turn: together more than any cache, as the weights of a model are.
const N_MATRICES: usize = 16;

/// Formats whose way into panels differs most.
const FORMATS: &[Format] =
    &[Format::F32, Format::F16, Format::BF16, Format::Q8_0, Format::Q6_K, Format::Q4_K, Format::IQ4_XS, Format::Q2_K];

/// A matrix in blocks, and as many copies as [`N_MATRICES`] says, back to back.
struct Matrix {
    format: Format,
    bytes: Vec<u8>,
}

impl Matrix {
    fn new(format: Format) -> Matrix {
        let weights = Paint::new(1).weights(N_OUT * N_IN, |p| 0.02 * p.gaussian());
        let size_bytes = N_OUT * format.row_bytes(N_IN as u64).expect("whole blocks") as usize;
        let mut bytes = vec![0; size_bytes];
        format.quantize_rows(Engine::detect().level(), &weights, N_IN, None, &mut bytes).expect("finite weights");
        Matrix { format, bytes: bytes.repeat(N_MATRICES) }
    }

    fn weights(&self, copy: usize) -> Weights<'_> {
        let size_bytes = self.bytes.len() / N_MATRICES;
        Weights::new(self.format, N_OUT, N_IN, &self.bytes[copy * size_bytes..][..size_bytes])
    }

    /// One product of `x`, or with one token one product with each copy.
    fn multiply(&self, engine: Engine, x: &[f32], out: &mut [f32]) {
        let x = Activations::pack(engine, Rows::new(black_box(x), N_IN));
        let n_copies = if x.n_rows() == 1 { N_MATRICES } else { 1 };
        (0..n_copies).for_each(|copy| engine.multiply(&x, self.weights(copy), out, Accumulate::Store));
    }

    /// The first and last outputs against f64.
    fn check(&self, engine: Engine, x: &[f32], out: &[f32]) {
        let mut row = vec![0.0; N_IN];
        let row_bytes = self.bytes.len() / N_MATRICES / N_OUT;
        for (token, output) in [(0, 0), (x.len() / N_IN - 1, N_OUT - 1)] {
            self.format.dequantize(engine.level(), &self.bytes[output * row_bytes..][..row_bytes], &mut row);
            let terms = row.iter().zip(&x[token * N_IN..]).map(|(&w, &x)| f64::from(w) * f64::from(x));
            let (sum, magnitudes) = terms.fold((0.0, 0.0), |(sum, abs), term| (sum + term, abs + term.abs()));
            let got = f64::from(out[token * N_OUT + output]);
            assert!((got - sum).abs() < 2e-5 * magnitudes, "{} {}: {got}, not {sum}", self.format, engine.name());
        }
    }
}

fn main() {
    let x = Paint::new(2).weights(N_TOKENS * N_IN, |p| p.gaussian());
    let mut out = vec![0.0; N_TOKENS * N_OUT];
    let vector_engines: Vec<Engine> = Engine::available().into_iter().skip(1).collect();
    if std::env::var_os("GGFORGE_BENCH_TABLE").is_some() {
        return table(&vector_engines, &x, &mut out);
    }
    let mut criterion = Criterion::default().configure_from_args().warm_up_time(Duration::from_millis(300));
    criterion = criterion.measurement_time(Duration::from_secs(2)).sample_size(10);
    for &format in FORMATS {
        let matrix = Matrix::new(format);
        for (name, n_tokens) in [("gemv", 1), ("gemm", N_TOKENS)] {
            let mut group = criterion.benchmark_group(format!("{name}/{format}"));
            let n_elements = if n_tokens == 1 { N_MATRICES * N_OUT * N_IN } else { N_TOKENS * N_OUT * N_IN };
            group.throughput(Throughput::Elements(n_elements as u64));
            for &engine in &vector_engines {
                let (x, out) = (&x[..n_tokens * N_IN], &mut out[..n_tokens * N_OUT]);
                matrix.multiply(engine, x, out);
                matrix.check(engine, x, out);
                group.bench_function(engine.name(), |bencher| bencher.iter(|| matrix.multiply(engine, x, out)));
            }
            group.finish();
        }
    }
    criterion.final_summary();
}

/// Medians: GFLOP/s of a prompt and its share of the ceiling; for one token GB/s of blocks, its share of the ceiling, and weights/s.
fn table(engines: &[Engine], x: &[f32], out: &mut [f32]) {
    let wanted = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    for &engine in engines {
        let (flops, bytes) = (ceiling::flops_of_pool(engine), ceiling::bytes_read(engine, 256 << 20));
        println!(
            "{}: {} threads, {:.0} GFLOP/s ({:.0} by one thread), {:.1} GB/s",
            engine.name(),
            rayon::current_num_threads(),
            flops / 1e9,
            ceiling::flops(engine) / 1e9,
            bytes / 1e9
        );
        for &format in FORMATS.iter().filter(|format| format.name().starts_with(&wanted)) {
            let matrix = Matrix::new(format);
            let gemm = (2 * N_TOKENS * N_OUT * N_IN) as f64 / median_seconds(&mut || matrix.multiply(engine, x, out));
            matrix.check(engine, x, out);
            let (x, out) = (&x[..N_IN], &mut out[..N_OUT]);
            let seconds = median_seconds(&mut || matrix.multiply(engine, x, out));
            matrix.check(engine, x, out);
            let (gemv, weights) = (matrix.bytes.len() as f64 / seconds, (N_MATRICES * N_OUT * N_IN) as f64 / seconds);
            println!(
                "  {:7} {:5.0} GFLOP/s {:3.0} %   one token {:5.1} GB/s {:3.0} %  {:5.2} Gweights/s",
                format.name(),
                gemm / 1e9,
                100.0 * gemm / flops,
                gemv / 1e9,
                100.0 * gemv / bytes,
                weights / 1e9
            );
        }
    }
}

fn median_seconds(run: &mut dyn FnMut()) -> f64 {
    run();
    let mut seconds: Vec<f64> = (0..9)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
