//! `ggforge imatrix`: looks at importance matrices and merges them.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use ggforge::imatrix::{CHUNK_SIZE_DEFAULT, Imatrix as Matrix, Unit};
use ggforge::pipeline::{self, Existing};
use ggforge::report::{Cell, Table, json_text, printable};
use serde_json::json;

use crate::exit::{self, Failure};
use crate::{Run, Session};

/// Look at importance matrices and merge them
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ggforge imatrix show imatrix.gguf
  ggforge imatrix merge part-1.gguf part-2.dat --output imatrix.gguf")]
pub struct Imatrix {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Show(Show),
    Merge(Merge),
}

/// Print what is known of each tensor
#[derive(Debug, Args)]
struct Show {
    /// Importance matrix, .gguf or .dat
    file: PathBuf,
    /// Report as JSON on stdout
    #[arg(long)]
    json: bool,
}

/// Add up several importance matrices of one model
#[derive(Debug, Args)]
struct Merge {
    /// Importance matrices, .gguf or .dat
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// File to write: the older format if its name ends in .dat, GGUF otherwise
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Tokens that a chunk of a .dat file stands for [default: that of the first GGUF file, or 512]
    #[arg(long, value_name = "N")]
    chunk_size: Option<NonZeroU32>,
    /// Replace an existing output
    #[arg(long)]
    force: bool,
}

impl Run for Imatrix {
    const NAME: &'static str = "imatrix";

    fn run(self, session: &Session) -> Result<(), Failure> {
        match self.action {
            Action::Show(show) => show.run(),
            Action::Merge(merge) => merge.run(session),
        }
    }
}

impl Show {
    fn run(self) -> Result<(), Failure> {
        let matrix = Matrix::open(&self.file)?;
        let table = table(&matrix);
        if !self.json {
            return exit::print(&format!("{}\n{}", describe(&self.file, &matrix), table.text()));
        }
        exit::print(&json_text(&json!({
            "file": self.file.to_string_lossy(),
            "counted_in": unit_name(matrix.unit),
            "datasets": matrix.datasets,
            "chunk_count": matrix.chunk_count,
            "chunk_size": matrix.chunk_size,
            "entries": table.json(),
        })))
    }
}

/// One row per entry; `zero`, `min`, `mean` and `max` are over the importances of all its columns.
fn table(matrix: &Matrix) -> Table {
    let mut table = Table::new(&["tensor", "matrices", "values", "min count", "max count", "zero", "min", "mean", "max"]);
    for (name, entry) in &matrix.entries {
        let statistics = entry.statistics();
        table.push([
            name.as_str().into(),
            entry.counts().len().into(),
            entry.sums().len().into(),
            Cell::Count(statistics.count_min),
            Cell::Count(statistics.count_max),
            statistics.n_zero.into(),
            Cell::Real(statistics.min.into()),
            Cell::Real(statistics.mean),
            Cell::Real(statistics.max.into()),
        ]);
    }
    table
}

/// One line: `imatrix.gguf: 28 entries from 64 chunks of 512 tokens, counted in tokens; calibration.txt`.
fn describe(path: &Path, matrix: &Matrix) -> String {
    let mut text = format!("{}: {} entries", printable(path.as_os_str().as_encoded_bytes()), matrix.entries.len());
    if matrix.chunk_count > 0 {
        text += &format!(" from {} chunks", matrix.chunk_count);
    }
    if matrix.chunk_size > 0 {
        text += &format!(" of {} tokens", matrix.chunk_size);
    }
    text += &format!(", counted in {}", unit_name(matrix.unit));
    if !matrix.datasets.is_empty() {
        text += &format!("; {}", printable(matrix.datasets.join(", ").as_bytes()));
    }
    text.push('\n');
    text
}

fn unit_name(unit: Unit) -> &'static str {
    match unit {
        Unit::Tokens => "tokens",
        Unit::Chunks => "chunks",
    }
}

impl Merge {
    fn run(self, session: &Session) -> Result<(), Failure> {
        let parts = self.files.iter().map(Matrix::open).collect::<ggforge::Result<Vec<Matrix>>>()?;
        let stated = parts.iter().find_map(|part| NonZeroU32::new(part.chunk_size));
        let mut merged = Matrix::new(self.chunk_size.or(stated).unwrap_or(CHUNK_SIZE_DEFAULT));
        parts.into_iter().try_for_each(|part| merged.add(part))?;

        let bytes = if self.output.extension().is_some_and(|e| e.eq_ignore_ascii_case("dat")) {
            merged.to_dat()?
        } else {
            let mut bytes = Vec::new();
            merged.write_gguf(&mut bytes)?;
            bytes
        };
        let existing = if self.force { Existing::Replace } else { Existing::Refuse };
        pipeline::write_file(&self.output, &bytes, existing, &self.files)?;
        if session.quiet {
            return Ok(());
        }
        exit::print(&describe(&self.output, &merged))
    }
}
