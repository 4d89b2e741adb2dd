//! `ggforge bench formats`: how fast block formats are written and read at each CPU level, beside ggml's own functions.

use std::hint::black_box;
use std::path::PathBuf;

use clap::Args;
use ggforge::quant::Format;
use ggforge::report::{Cell, Table, json_text};
use ggforge::{Error, Result};
use serde_json::json;

use super::clock::median_seconds;
use super::ggml::Ggml;
use super::runs::{Rows, checked_runs};
use crate::exit::{self, Failure};
use crate::terminal::{Steps, fitted, warn};
use crate::{Run, Session};

/// Time every block format at every CPU level, on one thread
///
/// Bytes and weights are checked before they are timed: every level must give the same, and ggml too.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ggforge bench formats
  ggforge bench formats --filter Q4_K,IQ4 --ggml libggml-base.so
  taskset -c 2 ggforge bench formats --csv > formats.csv

ggml's library is the file given with --ggml, or the one that tools/dev/peers installed in the
folder that the environment variable GGFORGE_PEERS names. Without it nothing is compared.")]
pub struct Formats {
    /// Only formats whose names start with this; may be repeated
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    filter: Vec<String>,
    /// ggml's libggml-base.so, to time its functions on the same rows
    #[arg(long, value_name = "FILE")]
    ggml: Option<PathBuf>,
    /// Rows of weights
    #[arg(long, value_name = "N", default_value_t = Rows::N_DEFAULT)]
    rows: usize,
    /// Weights in a row
    #[arg(long, value_name = "N", default_value_t = Rows::LEN_DEFAULT)]
    row_len: usize,
    /// Samples of which the median is taken
    #[arg(long, value_name = "N", default_value_t = 9)]
    samples: usize,
    /// Report as JSON on stdout
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Report as comma-separated values on stdout
    #[arg(long)]
    csv: bool,
}

/// Where `tools/dev/peers` puts ggml's library.
const PEERS_LIBRARY: &str = "npm/node_modules/@node-llama-cpp/linux-x64/bins/linux-x64/libggml-base.so";

/// 4 GiB of f32; what is timed has copies of it.
const WEIGHTS_MAX: usize = 1 << 30;

/// Beyond this nobody waits.
const SAMPLES_MAX: usize = 1000;

/// The median time of one who did one work.
struct Timing {
    format: Format,
    work: &'static str,
    by: &'static str,
    seconds: f64,
}

/// Everything that was measured.
struct Report {
    n_rows: usize,
    row_len: usize,
    n_samples: usize,
    ggml: Option<String>,
    copy_seconds: f64,
    timings: Vec<Timing>,
}

impl Run for Formats {
    const NAME: &'static str = "formats";

    fn run(self, session: &Session) -> Result<(), Failure> {
        let formats = self.formats()?;
        let ggml = self.ggml()?;
        let report = self.measure(&formats, ggml.as_ref(), session)?;
        exit::print(&match (self.json, self.csv) {
            (true, _) => report.json(),
            (_, true) => report.long_table().csv(),
            _ => report.text(),
        })
    }
}

impl Formats {
    /// The formats asked for, which the row length must suit.
    fn formats(&self) -> Result<Vec<Format>> {
        let starts = |format: &Format, start: &String| {
            let name = format.name();
            name.get(..start.len()).is_some_and(|head| head.eq_ignore_ascii_case(start))
        };
        let writable = || Format::ALL.iter().copied().filter(|format| format.can_quantize());
        for start in &self.filter {
            if !writable().any(|format| starts(&format, start)) {
                let names: Vec<&str> = writable().map(Format::name).collect();
                return Err(Error::usage(format!("no format is called {start}; there are {}", names.join(", "))));
            }
        }
        let chosen: Vec<Format> =
            writable().filter(|format| self.filter.is_empty() || self.filter.iter().any(|start| starts(format, start))).collect();
        let n_weights = self.rows.saturating_mul(self.row_len);
        if n_weights == 0 || n_weights > WEIGHTS_MAX {
            return Err(Error::usage(format!("--rows times --row-len must be from 1 to {WEIGHTS_MAX}")));
        }
        if !(1..=SAMPLES_MAX).contains(&self.samples) {
            return Err(Error::usage(format!("--samples must be from 1 to {SAMPLES_MAX}")));
        }
        match chosen.iter().find(|format| !self.row_len.is_multiple_of(format.block_len())) {
            Some(format) => {
                let (row_len, block_len) = (self.row_len, format.block_len());
                Err(Error::usage(format!(
                    "--row-len {row_len} is not a multiple of the {block_len} weights in a block of {format}"
                )))
            }
            None => Ok(chosen),
        }
    }

    /// ggml's library, from where the help says.
    fn ggml(&self) -> Result<Option<Ggml>> {
        if let Some(path) = &self.ggml {
            return Ggml::open(path).map(Some);
        }
        let Some(peers) = std::env::var_os("GGFORGE_PEERS") else { return Ok(None) };
        let path = PathBuf::from(peers).join(PEERS_LIBRARY);
        if !path.exists() {
            warn(&format!("GGFORGE_PEERS has no {}; tools/dev/peers installs it", path.display()));
            return Ok(None);
        }
        Ggml::open(&path).map(Some)
    }

    fn measure(&self, formats: &[Format], ggml: Option<&Ggml>, session: &Session) -> Result<Report> {
        let rows = Rows::painted(self.rows, self.row_len);
        let mut copy = vec![0.0f32; rows.weights.len()];
        let copy_seconds = median_seconds(self.samples, &mut || copy.copy_from_slice(black_box(&rows.weights)));
        let steps = Steps::new(session, "timing", formats.len());
        let mut timings = Vec::new();
        for &format in formats {
            steps.begin(format.name());
            for (work, runners) in checked_runs(ggml, format, &rows)? {
                for mut runner in runners {
                    let seconds = median_seconds(self.samples, &mut runner.run);
                    timings.push(Timing { format, work: work.name(), by: runner.name, seconds });
                }
            }
        }
        Ok(Report {
            n_rows: self.rows,
            row_len: self.row_len,
            n_samples: self.samples,
            ggml: ggml.map(|ggml| ggml.version().to_owned()),
            copy_seconds,
            timings,
        })
    }
}

impl Report {
    fn n_weights(&self) -> usize {
        self.n_rows * self.row_len
    }

    /// GB of f32 in a second, in or out.
    fn rate(&self, seconds: f64) -> f64 {
        4.0 * self.n_weights() as f64 / seconds / 1e9
    }

    /// The same work of the same format as `timing`, done by another.
    fn by(&self, name: &str, timing: &Timing) -> Option<&Timing> {
        self.timings.iter().find(|t| (t.format, t.work, t.by) == (timing.format, timing.work, name))
    }

    fn times_ggml(&self, timing: &Timing) -> Option<f64> {
        self.by("ggml", timing).map(|ggml| ggml.seconds / timing.seconds)
    }

    /// One row for each work of each format, one column for each level.
    fn text(&self) -> String {
        const LEVELS: [&str; 4] = ["scalar", "neon", "avx2", "avx512"];
        let titles = ["format", "work", "ggml", "scalar", "x", "neon", "x", "avx2", "x", "avx512", "x", "Mweights/s", "% of copy"];
        let mut table = Table::new(&titles);
        for first in self.timings.iter().filter(|timing| timing.by == "scalar") {
            let rate = |name| self.by(name, first).map_or(Cell::Empty, |timing| Cell::Real(self.rate(timing.seconds)));
            let ratio = |name| self.by(name, first).and_then(|t| self.times_ggml(t)).map_or(Cell::Empty, |x| Cell::Fixed(x, 1));
            let best = LEVELS.iter().rev().find_map(|name| self.by(name, first)).unwrap_or(first);
            let [a, b, c, d] = LEVELS.map(|name| (rate(name), ratio(name)));
            table.push([
                first.format.name().into(),
                first.work.into(),
                rate("ggml"),
                a.0,
                a.1,
                b.0,
                b.1,
                c.0,
                c.1,
                d.0,
                d.1,
                Cell::Real(self.n_weights() as f64 / best.seconds / 1e6),
                Cell::Fixed(100.0 * self.copy_seconds / best.seconds, 0),
            ]);
        }
        let (copy, n_rows, row_len, n_samples) = (self.rate(self.copy_seconds), self.n_rows, self.row_len, self.n_samples);
        let beside = match &self.ggml {
            Some(version) => format!("x: times as fast as ggml {version}"),
            None => "--ggml libggml-base.so compares with ggml".to_owned(),
        };
        format!(
            "GB/s of f32 on one thread, medians of {n_samples}, {n_rows} rows of {row_len} weights; {beside}\n\
             copying the same f32: {copy:.1} GB/s; the last two columns are of the highest level\n\n{}",
            fitted(&table)
        )
    }

    /// One row for each timing.
    fn long_table(&self) -> Table {
        let mut table = Table::new(&["format", "work", "by", "gb per s", "weights per s", "times ggml", "times copy"]);
        let mut push = |timing: &Timing, times_ggml: Option<f64>| {
            table.push([
                timing.format.name().into(),
                timing.work.into(),
                timing.by.into(),
                Cell::Real(self.rate(timing.seconds)),
                Cell::Real(self.n_weights() as f64 / timing.seconds),
                times_ggml.map_or(Cell::Empty, Cell::Real),
                Cell::Real(self.copy_seconds / timing.seconds),
            ]);
        };
        push(&Timing { format: Format::F32, work: "copy", by: "memcpy", seconds: self.copy_seconds }, None);
        self.timings.iter().for_each(|timing| push(timing, self.times_ggml(timing)));
        table
    }

    fn json(&self) -> String {
        json_text(&json!({
            "rows": self.n_rows,
            "row_len": self.row_len,
            "samples": self.n_samples,
            "threads": 1,
            "ggml": self.ggml,
            "timings": self.long_table().json(),
        }))
    }
}
