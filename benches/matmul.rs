//! How fast products are at each CPU level and format: 512 tokens through panels, and one token along the rows.
//!
//! `cargo bench --bench matmul [FILTER]`: products are compared with f64 before they are timed; throughput is in multiply-adds. Threads:
//! `RAYON_NUM_THREADS`. `ggforge bench matmul` tells the same beside what the machine could do.

#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;
use std::time::Duration;

use common::Paint;
use criterion::{Criterion, Throughput};
use ggforge::matmul::{Accumulate, Activations, Engine, Rows, Weights};
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

    /// One product of a prompt, or with one token one product with each copy.
    fn multiply(&self, engine: Engine, x: &[f32], out: &mut [f32]) {
        let x = black_box(x);
        if x.len() == N_IN {
            return (0..N_MATRICES).for_each(|copy| engine.multiply_token(x, self.weights(copy), out, Accumulate::Store));
        }
        engine.multiply(&Activations::pack(engine, Rows::new(x, N_IN)), self.weights(0), out, Accumulate::Store);
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
    let mut criterion = Criterion::default().configure_from_args().warm_up_time(Duration::from_millis(300));
    criterion = criterion.measurement_time(Duration::from_secs(2)).sample_size(10);
    for &format in FORMATS {
        let matrix = Matrix::new(format);
        for (name, n_tokens) in [("token", 1), ("prompt", N_TOKENS)] {
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
