//! `ggforge bench matmul`: how fast products with weights in blocks are at each CPU level, beside what the machine could do.

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::Instant;

use clap::Args;
use ggforge::matmul::{Accumulate, Activations, Engine, Rows, Weights, ceiling};
use ggforge::quant::Format;
use ggforge::report::{Cell, Table, json_text};
use ggforge::{Error, Result};
use serde_json::json;

use super::paint::Paint;
use crate::exit::{self, Failure};
use crate::terminal::{Steps, fitted};
use crate::{Run, Session};

/// Time products of activations with weights at every CPU level
///
/// A prompt is limited by multiply-adds, one token by reading the weights; both ceilings are measured too. Products are compared with
/// f64 before they are timed.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ggforge bench matmul
  ggforge bench matmul --format Q4_K --threads 1
  ggforge bench matmul --outputs 4096 --inputs 14336 --json")]
pub struct Matmul {
    /// Formats of the weights
    #[arg(long, value_name = "TYPE", value_delimiter = ',', default_value = "F16,BF16,Q8_0,Q6_K,Q4_K,IQ4_XS")]
    format: Vec<String>,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    tokens: u32,
    /// Rows of the matrix
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    outputs: u32,
    /// Columns of the matrix
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    inputs: u32,
    /// Samples of which the median is taken
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    samples: u32,
    /// Report as JSON on stdout
    #[arg(long)]
    json: bool,
}

/// Blocks that one token is multiplied with: more than caches hold, as the weights of a model are.
const TOKEN_BYTES: usize = 256 << 20;

/// Floats of an operand at most, 4 GiB of them.
const FLOATS_MAX: u64 = 1 << 30;

/// A product may be off by this much of the sum of its terms' magnitudes: a thousand roundings to f32, several times what is seen.
const ERROR_MAX: f64 = 6e-5;

/// What one level could do at best.
struct Ceiling {
    engine: Engine,
    flops_of_one: f64,
    flops: f64,
    bytes: f64,
}

/// What it does with one format.
struct Speed {
    engine: Engine,
    format: Format,
    /// Operations per second of the prompt.
    flops: f64,
    /// Weights and bytes of blocks per second of one token.
    weights: f64,
    bytes: f64,
}

struct Report<'a> {
    arguments: &'a Matmul,
    n_threads: usize,
    ceilings: Vec<Ceiling>,
    speeds: Vec<Speed>,
}

impl Run for Matmul {
    const NAME: &'static str = "matmul";

    fn run(self, session: &Session) -> Result<(), Failure> {
        let formats = self.formats()?;
        let n_threads = session.threads.map_or(0, NonZeroUsize::get);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build();
        let pool = pool.map_err(|error| Error::Internal(format!("no threads: {error}")))?;
        let report = pool.install(|| self.measure(&formats, session))?;
        exit::print(&if self.json { report.json() } else { report.text() })
    }
}

impl Matmul {
    fn formats(&self) -> Result<Vec<Format>> {
        let (n_tokens, n_out, n_in) = (u64::from(self.tokens), u64::from(self.outputs), u64::from(self.inputs));
        if [n_tokens * n_out, n_tokens * n_in, n_out * n_in].iter().any(|&n| n > FLOATS_MAX) {
            return Err(Error::usage(format!("products of --tokens, --outputs and --inputs must not be over {FLOATS_MAX}")));
        }
        self.format.iter().map(|name| self.parse(name)).collect()
    }

    fn parse(&self, name: &str) -> Result<Format> {
        let writable = |format: &Format| format.can_quantize() && !format.needs_importance() && !format.is_for_activations();
        let Some(format) = name.parse::<Format>().ok().filter(writable) else {
            let names: Vec<&str> = Format::ALL.iter().filter(|format| writable(format)).map(|format| format.name()).collect();
            return Err(Error::usage(format!("{name} is no format of weights to time; there are {}", names.join(", "))));
        };
        if !(self.inputs as usize).is_multiple_of(format.block_len()) {
            let (n_in, block_len) = (self.inputs, format.block_len());
            return Err(Error::usage(format!(
                "--inputs {n_in} is not a multiple of the {block_len} weights in a block of {format}"
            )));
        }
        Ok(format)
    }

    fn measure(&self, formats: &[Format], session: &Session) -> Result<Report<'_>> {
        // What runs without vector instructions is right, and too slow to wait for.
        let engines = Engine::available();
        let engines = if engines.len() > 1 { &engines[1..] } else { &engines[..] };
        let steps = Steps::new(session, "timing", engines.len() * (formats.len() + 1));
        let (mut ceilings, mut speeds) = (Vec::new(), Vec::new());
        for &engine in engines {
            steps.begin("ceilings");
            let (flops_of_one, flops) = (ceiling::flops(engine), ceiling::flops_of_pool(engine));
            ceilings.push(Ceiling { engine, flops_of_one, flops, bytes: ceiling::bytes_read(engine, TOKEN_BYTES) });
        }
        let x = Paint::new(2).weights(self.tokens as usize * self.inputs as usize, Paint::gaussian);
        for &format in formats {
            let matrix = Matrix::painted(format, self.outputs as usize, self.inputs as usize)?;
            for &engine in engines {
                steps.begin(format.name());
                speeds.push(matrix.speed(engine, &x, self.samples as usize)?);
            }
        }
        Ok(Report { arguments: self, n_threads: rayon::current_num_threads(), ceilings, speeds })
    }
}

/// The same matrix in blocks, several times.
struct Matrix {
    format: Format,
    n_out: usize,
    n_in: usize,
    n_copies: usize,
    bytes: Vec<u8>,
}

impl Matrix {
    fn painted(format: Format, n_out: usize, n_in: usize) -> Result<Matrix> {
        let weights = Paint::new(1).weights(n_out * n_in, |p| 0.02 * p.gaussian());
        let mut bytes = vec![0; weights.len() / format.block_len() * format.block_bytes()];
        let done = format.quantize_rows(Engine::detect().level(), &weights, n_in, None, &mut bytes);
        done.map_err(|fault| Error::Internal(format!("{format} does not hold {}", fault.value)))?;
        let n_copies = TOKEN_BYTES.div_ceil(bytes.len());
        Ok(Matrix { format, n_out, n_in, n_copies, bytes: bytes.repeat(n_copies) })
    }

    fn weights(&self, copy: usize) -> Weights<'_> {
        let size_bytes = self.bytes.len() / self.n_copies;
        Weights::new(self.format, self.n_out, self.n_in, &self.bytes[copy * size_bytes..][..size_bytes])
    }

    fn speed(&self, engine: Engine, x: &[f32], n_samples: usize) -> Result<Speed> {
        let n_weights = self.n_out * self.n_in;
        let n_products = x.len() * self.n_out;
        let mut out = vec![0.0; x.len() / self.n_in * self.n_out];
        let prompt = median_seconds(n_samples, &mut || {
            let x = Activations::pack(engine, Rows::new(black_box(x), self.n_in));
            engine.multiply(&x, self.weights(0), &mut out, Accumulate::Store);
        });
        self.check(engine, x, &out)?;
        let (x, out) = (&x[..self.n_in], &mut out[..self.n_out]);
        let token = median_seconds(n_samples, &mut || {
            (0..self.n_copies).for_each(|copy| engine.multiply_token(black_box(x), self.weights(copy), out, Accumulate::Store));
        });
        self.check(engine, x, out)?;
        Ok(Speed {
            engine,
            format: self.format,
            flops: (2 * n_products) as f64 / prompt,
            weights: (self.n_copies * n_weights) as f64 / token,
            bytes: self.bytes.len() as f64 / token,
        })
    }

    /// The first output and the last against f64.
    fn check(&self, engine: Engine, x: &[f32], out: &[f32]) -> Result<()> {
        let mut row = vec![0.0; self.n_in];
        let row_bytes = self.n_in / self.format.block_len() * self.format.block_bytes();
        let last = x.len() / self.n_in - 1;
        for (token, output) in [(0, 0), (last, self.n_out - 1)] {
            self.format.dequantize(engine.level(), &self.bytes[output * row_bytes..][..row_bytes], &mut row);
            let terms = row.iter().zip(&x[token * self.n_in..]).map(|(&w, &x)| f64::from(w) * f64::from(x));
            let (sum, magnitudes) = terms.fold((0.0, 0.0), |(sum, abs), term| (sum + term, abs + term.abs()));
            let got = out[token * self.n_out + output];
            if (f64::from(got) - sum).abs() > ERROR_MAX * magnitudes {
                let (format, level) = (self.format, engine.name());
                return Err(Error::Internal(format!("{format}: a product at level {level} is {got}, not {sum}")));
            }
        }
        Ok(())
    }
}

/// Wall seconds of one call, the median of some.
fn median_seconds(n_samples: usize, run: &mut dyn FnMut()) -> f64 {
    run();
    let mut seconds: Vec<f64> = (0..n_samples)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds[n_samples / 2]
}

impl Report<'_> {
    fn ceiling(&self, speed: &Speed) -> &Ceiling {
        self.ceilings.iter().find(|ceiling| ceiling.engine == speed.engine).expect("a ceiling for every engine")
    }

    fn text(&self) -> String {
        let mut ceilings = Table::new(&["level", "GFLOP/s at best", "of one thread", "GB/s at best"]);
        for Ceiling { engine, flops_of_one, flops, bytes } in &self.ceilings {
            ceilings.push([
                engine.name().into(),
                Cell::Fixed(flops / 1e9, 0),
                Cell::Fixed(flops_of_one / 1e9, 0),
                Cell::Fixed(bytes / 1e9, 1),
            ]);
        }
        let mut table = Table::new(&["format", "level", "prompt GFLOP/s", "% of best", "token GB/s", "% of best", "Gweights/s"]);
        for speed in &self.speeds {
            let ceiling = self.ceiling(speed);
            table.push([
                speed.format.name().into(),
                speed.engine.name().into(),
                Cell::Fixed(speed.flops / 1e9, 0),
                Cell::Fixed(100.0 * speed.flops / ceiling.flops, 0),
                Cell::Fixed(speed.bytes / 1e9, 1),
                Cell::Fixed(100.0 * speed.bytes / ceiling.bytes, 0),
                Cell::Fixed(speed.weights / 1e9, 2),
            ]);
        }
        let Matmul { tokens, outputs, inputs, samples, .. } = self.arguments;
        format!(
            "f32 activations times weights [{outputs}, {inputs}] on {} threads, medians of {samples}; a prompt is {tokens} tokens\n\
             best: multiply-adds in registers and reading memory, measured now\n\n{}\n{}",
            self.n_threads,
            fitted(&ceilings),
            fitted(&table)
        )
    }

    fn json(&self) -> String {
        let ceilings = self.ceilings.iter().map(|ceiling| {
            json!({
                "level": ceiling.engine.name(),
                "flop_per_s": ceiling.flops,
                "flop_per_s_of_one_thread": ceiling.flops_of_one,
                "bytes_per_s": ceiling.bytes,
            })
        });
        let speeds = self.speeds.iter().map(|speed| {
            json!({
                "format": speed.format.name(),
                "level": speed.engine.name(),
                "prompt_flop_per_s": speed.flops,
                "prompt_of_best": speed.flops / self.ceiling(speed).flops,
                "token_bytes_per_s": speed.bytes,
                "token_of_best": speed.bytes / self.ceiling(speed).bytes,
                "token_weights_per_s": speed.weights,
            })
        });
        json_text(&json!({
            "tokens": self.arguments.tokens,
            "outputs": self.arguments.outputs,
            "inputs": self.arguments.inputs,
            "samples": self.arguments.samples,
            "threads": self.n_threads,
            "ceilings": ceilings.collect::<Vec<_>>(),
            "speeds": speeds.collect::<Vec<_>>(),
        }))
    }
}
