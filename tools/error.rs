//! `ggforge error`: what quantizing did to the weights.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use ggforge::eval::tensor_error::{self, FileError, Options, SortBy, Watch, Weights};
use ggforge::gguf::Model;
use ggforge::hf::Folder;
use ggforge::imatrix::Imatrix;
use ggforge::plan::{self, ConvertOptions, Plan};
use ggforge::report::{Table, json_text, printable};
use ggforge::source::TensorSource;
use serde_json::json;

use crate::exit::{self, Failure};
use crate::page::PageOptions;
use crate::signals::Stop;
use crate::terminal::{Bar, fitted, warn};
use crate::{Run, Session};

/// Compare the weights of quantized files with those they were made from
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ggforge error llama-F16.gguf llama-Q4_K_M.gguf
  ggforge error llama-F16.gguf llama-Q4_K_M.gguf --tensors
  ggforge error models/Llama-3.2-1B llama-Q4_K_M.gguf --imatrix imatrix.gguf
  ggforge error llama-F16.gguf llama-Q4_K_M.gguf --report error.html --force

Relative MSE is |w - q|^2 / |w|^2 with w the weights of BASE and q those of
the file; SQNR is the same in decibels, of which 6 are one bit. An alpha above
1 says that q has shrunk by that factor. With --imatrix each weight's error
counts as much as its column. How much a model's predictions suffer is another
question.")]
pub struct ErrorCommand {
    /// What the files were made from: GGUF file, any shard, or model folder
    base: PathBuf,
    /// GGUF files to compare with it, or any shard of each
    #[arg(value_name = "QUANT", required = true)]
    files: Vec<PathBuf>,
    /// Give figures weighted by this importance matrix too
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// List every tensor, in this order [default: file]
    #[arg(long, value_parser = sort_by())]
    sort: Option<SortBy>,
    /// List so many of the worst rows of each file, up to 1000
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(..=1000))]
    worst: u16,
    /// Compare only tensors whose name contains this; may be repeated
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Leave out tensors whose name contains this; may be repeated
    #[arg(long, value_name = "TEXT")]
    skip: Vec<String>,
    #[command(flatten)]
    page: PageOptions,
    /// Report as JSON on stdout
    #[arg(long)]
    json: bool,
}

/// The orders by their names.
fn sort_by() -> impl TypedValueParser<Value = SortBy> {
    let values = SortBy::ALL.map(|order| PossibleValue::new(order.name()).help(order.about()));
    PossibleValuesParser::new(values)
        .map(|name| SortBy::ALL.into_iter().find(|order| order.name() == name).expect("one of the possible values"))
}

impl Run for ErrorCommand {
    const NAME: &'static str = "error";

    fn run(self, session: &Session) -> Result<(), Failure> {
        if self.sort == Some(SortBy::Weighted) && self.imatrix.is_none() {
            return Err(ggforge::Error::usage("--sort weighted needs the weights: give them with --imatrix FILE").into());
        }
        let imatrix = self.imatrix.as_ref().map(Imatrix::open).transpose()?;
        let base = Base::open(&self.base)?;
        let models = self.files.iter().map(Model::open_unmapped).collect::<ggforge::Result<Vec<Model>>>()?;
        let weights = models.iter().map(Weights::of_gguf).collect::<ggforge::Result<Vec<_>>>()?;
        let inputs = self.inputs(&base, &models);
        self.page.check(&inputs)?;
        let options = Options {
            threads: session.threads,
            imatrix: imatrix.as_ref(),
            worst_rows: self.worst.into(),
            only: self.only.clone(),
            skip: self.skip.clone(),
            ..Options::default()
        };

        let stop = Stop::on_signals().map_err(|e| ggforge::Error::io("signal", "handle", e))?;
        let started = Instant::now();
        let bar = Bar::new(session, "comparing");
        let watch = Watch { progress: &|done, total| bar.show_bytes(done, total), stop: stop.flag() };
        let found = tensor_error::measure(&base.weights()?, &weights, &options, watch);
        drop(bar);
        let files = found.map_err(|error| stop.ended(error))?;
        let seconds = started.elapsed().as_secs_f64();
        if imatrix.is_some() && !is_weighted(&files) {
            warn("the importance matrix holds nothing about any of these tensors: there are no weighted figures");
        }

        let page = || tensor_error::page(&self.base, self.facts(), &files, self.order(), self.worst.into());
        let written = self.page.write(page, &inputs, None)?;
        if self.json {
            return exit::print(&json_text(&self.as_json(&files)));
        }
        let mut text = self.as_text(&files);
        if !session.quiet {
            text += &format!("\ncompared in {seconds:.1} s\n{}", written.trim_start());
        }
        exit::print(&text)
    }
}

impl ErrorCommand {
    /// Of the tensors.
    fn order(&self) -> SortBy {
        self.sort.unwrap_or(SortBy::File)
    }

    /// Files that the page may not replace.
    fn inputs(&self, base: &Base, models: &[Model]) -> Vec<PathBuf> {
        let sources = std::iter::once(base.source()).chain(models.iter().map(|model| model as &dyn TensorSource));
        let files = sources.flat_map(|source| source.files()).map(|file| file.path().to_owned());
        files.chain(self.imatrix.clone()).chain(crate::convert::files_in(&self.base)).collect()
    }

    fn facts(&self) -> Vec<(String, String)> {
        let shown = |path: &Path| path.to_string_lossy().into_owned();
        let mut facts = vec![("base".to_owned(), shown(&self.base))];
        facts.extend(self.imatrix.as_ref().map(|path| ("importance matrix".to_owned(), shown(path))));
        facts
    }

    fn as_json(&self, files: &[FileError]) -> serde_json::Value {
        json!({
            "base": self.base.to_string_lossy(),
            "imatrix": self.imatrix.as_ref().map(|path| path.to_string_lossy()),
            "imatrix_matches_nothing": self.imatrix.as_ref().map(|_| !is_weighted(files)),
            "files": files.iter().map(|file| tensor_error::file_json(file, self.order())).collect::<Vec<_>>(),
        })
    }

    fn as_text(&self, files: &[FileError]) -> String {
        let mut text = format!("weights against {}\n", printable(self.base.as_os_str().as_encoded_bytes()));
        text += &fitted(&tensor_error::files_table(files));
        for file in files {
            let name = printable(file.path.as_os_str().as_encoded_bytes());
            if file.total().sums.ee == 0.0 {
                text += &format!("\n{name}: no weight differs\n");
                continue;
            }
            let mut section = |title: &str, table: Table| {
                if !table.is_empty() {
                    text += &format!("\n{name}: {title}\n{}", fitted(&table));
                }
            };
            section("roles", tensor_error::roles_table(file));
            if self.tensors || self.sort.is_some() {
                section("tensors", tensor_error::tensors_table(file, self.order()));
            }
            section("worst rows", tensor_error::worst_rows_table(file, self.worst.into()));
        }
        text
    }
}

/// True where an importance matrix has something for a tensor at least.
fn is_weighted(files: &[FileError]) -> bool {
    files.iter().flat_map(|file| &file.tensors).any(|tensor| tensor.weighted.is_some())
}

/// What the files are compared with.
enum Base {
    File(Box<Model>),
    /// A model folder, and how it would be converted.
    Folder(Box<Folder>, Plan),
}

impl Base {
    fn open(path: &Path) -> ggforge::Result<Base> {
        if !path.is_dir() {
            return Ok(Base::File(Box::new(Model::open_unmapped(path)?)));
        }
        let folder = plan::open_folder(path)?;
        let plan = plan::convert(&folder, &ConvertOptions::default())?;
        Ok(Base::Folder(Box::new(folder), plan))
    }

    fn weights(&self) -> ggforge::Result<Weights<'_>> {
        match self {
            Base::File(model) => Weights::of_gguf(model),
            Base::Folder(folder, plan) => Weights::of_plan(folder.path(), folder.as_ref(), &plan.outputs[0]),
        }
    }

    fn source(&self) -> &dyn TensorSource {
        match self {
            Base::File(model) => model.as_ref(),
            Base::Folder(folder, _) => folder.as_ref(),
        }
    }
}
