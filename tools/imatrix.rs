//! `ggforge imatrix`: makes importance matrices, looks at them, and merges them.

mod collect;
mod experts;

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use clap::{ArgMatches, Args, Command, FromArgMatches, Subcommand};
use ggforge::imatrix::{CHUNK_SIZE_DEFAULT, Imatrix as Matrix, Unit};
use ggforge::pipeline::{self, Existing};
use ggforge::report::{Cell, Table, json_text, printable};
use serde_json::json;

use collect::Collect;

use crate::arguments::output_path;
use crate::exit::{self, Failure};
use crate::measuring::chunks;
use crate::terminal::fitted;
use crate::{Run, Session};

/// Make importance matrices: which columns of each matrix matter for a text
///
/// Runs the model over a text and adds up the squares of what goes into each of its matrices, as llama-imatrix does. Give the file to
/// `ggforge convert --imatrix` or `ggforge quantize --imatrix`; llama-quantize takes it too.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_help = "\
Examples:
  ggforge imatrix llama-BF16.gguf --file calibration.txt --output imatrix.gguf
  ggforge imatrix llama-BF16.gguf --file calibration.txt --chunks 100 --output imatrix.gguf
  ggforge imatrix show imatrix.gguf
  ggforge imatrix merge part-1.gguf part-2.dat --output imatrix.gguf")]
struct Arguments {
    #[command(flatten)]
    collect: Collect,
    #[command(subcommand)]
    action: Option<Action>,
}

/// What to do, decided by the first argument: the arguments of [`Collect`] are required where there is no subcommand.
#[derive(Debug)]
pub enum Imatrix {
    Collect(Box<Collect>),
    Act(Action),
}

impl Args for Imatrix {
    fn augment_args(command: Command) -> Command {
        Arguments::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Arguments::augment_args_for_update(command)
    }
}

impl FromArgMatches for Imatrix {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Imatrix, clap::Error> {
        match matches.subcommand() {
            Some(_) => Action::from_arg_matches(matches).map(Imatrix::Act),
            None => Collect::from_arg_matches(matches).map(|collect| Imatrix::Collect(Box::new(collect))),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Imatrix::from_arg_matches(matches)?;
        Ok(())
    }
}

#[derive(Debug, Subcommand)]
pub enum Action {
    Show(Show),
    Merge(Merge),
}

/// Print what is known of each tensor
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ggforge imatrix show imatrix.gguf
  ggforge imatrix show imatrix.gguf --json")]
pub struct Show {
    /// Importance matrix, .gguf or .dat
    file: PathBuf,
    /// Report as JSON on stdout
    #[arg(long)]
    json: bool,
}

/// Add up several importance matrices of one model
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ggforge imatrix merge part-1.gguf part-2.dat --output imatrix.gguf
  ggforge imatrix merge part-1.gguf part-2.dat --output imatrix.dat --chunk-size 512")]
pub struct Merge {
    /// Importance matrices, .gguf or .dat
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// File to write: the older format if its name ends in .dat, GGUF otherwise
    #[arg(long, short, value_name = "FILE", value_parser = output_path(), alias = "output-file")]
    output: PathBuf,
    /// Tokens that a chunk of a .dat file stands for [default: that of the first GGUF file, or 512]
    #[arg(long, value_name = "N")]
    chunk_size: Option<NonZeroU32>,
    /// Replace an existing output
    #[arg(long)]
    force: bool,
    /// Report as JSON on stdout
    #[arg(long)]
    json: bool,
}

impl Run for Imatrix {
    const NAME: &'static str = "imatrix";

    fn run(self, session: &Session) -> Result<(), Failure> {
        match self {
            Imatrix::Collect(collect) => collect.run(session),
            Imatrix::Act(Action::Show(show)) => show.run(),
            Imatrix::Act(Action::Merge(merge)) => merge.run(session),
        }
    }
}

impl Show {
    fn run(self) -> Result<(), Failure> {
        let matrix = Matrix::open(&self.file)?;
        if !self.json {
            return exit::print(&format!(
                "{}{}
{}",
                describe(&self.file, &matrix),
                experts::line(&matrix),
                fitted(&table(&matrix))
            ));
        }
        exit::print(&as_json(&self.file, &matrix))
    }
}

/// All that is known of a matrix.
fn as_json(path: &Path, matrix: &Matrix) -> String {
    json_text(&json!({
        "file": path.to_string_lossy(),
        "counted_in": unit_name(matrix.unit),
        "datasets": matrix.datasets,
        "chunk_count": matrix.chunk_count,
        "chunk_size": matrix.chunk_size,
        "experts_short_of_tokens": experts::as_json(matrix),
        "entries": table(matrix).json(),
    }))
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
        text += &format!(" from {}", chunks(matrix.chunk_count.into()));
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

        write(&self.output, &merged, self.force, &self.files)?;
        match (self.json, session.quiet) {
            (true, _) => exit::print(&as_json(&self.output, &merged)),
            (false, false) => exit::print(&describe(&self.output, &merged)),
            (false, true) => Ok(()),
        }
    }
}

/// Writes a matrix in the format that the name of its file asks for.
fn write(path: &Path, matrix: &Matrix, force: bool, inputs: &[PathBuf]) -> ggforge::Result<()> {
    let bytes = if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("dat")) {
        matrix.to_dat()?
    } else {
        let mut bytes = Vec::new();
        matrix.write_gguf(&mut bytes)?;
        bytes
    };
    pipeline::write_file(path, &bytes, existing(force), inputs)
}

fn existing(force: bool) -> Existing {
    if force { Existing::Replace } else { Existing::Refuse }
}
