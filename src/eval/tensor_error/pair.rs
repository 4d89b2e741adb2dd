//! Which tensors are compared: the same name in all files, checked before a weight is read.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::Options;
use crate::error::{Error, Fault, Place, Result};
use crate::gguf;
use crate::imatrix::{Importance, Wanted};
use crate::names::file_order;
use crate::plan::OutputPlan;
use crate::quant::Format;
use crate::rows::{Origin, Rows};
use crate::source::{InputFile, TensorSource, significant_dims};

/// The weights of a model under their GGUF names: those of a GGUF file, or those of a model folder as a plan would write them.
pub struct Weights<'a> {
    path: PathBuf,
    source: &'a dyn TensorSource,
    tensors: HashMap<&'a str, Tensor<'a>>,
}

/// Where the weights of one tensor are.
#[derive(Clone, Copy)]
struct Tensor<'a> {
    shape: &'a [u64],
    stored: Stored<'a>,
}

#[derive(Clone, Copy)]
enum Stored<'a> {
    /// All of a tensor of the source.
    Whole(usize),
    /// What a plan says.
    Planned(&'a Origin),
}

/// One tensor in the base and in every other file.
pub(super) struct Pair<'a> {
    pub name: &'a str,
    pub shape: &'a [u64],
    pub n_rows: u64,
    pub row_len: u64,
    pub base: Rows<'a>,
    /// One per file.
    pub others: Vec<Rows<'a>>,
    pub importance: Option<Importance>,
}

impl<'a> Weights<'a> {
    /// Those of a GGUF file and its shards.
    ///
    /// # Errors
    /// `Malformed` for a file without weights.
    pub fn of_gguf(model: &'a gguf::Model) -> Result<Weights<'a>> {
        model.check_has_weights()?;
        let tensors = model.tensors().iter().enumerate();
        let tensors =
            tensors.map(|(index, tensor)| (tensor.name.as_str(), Tensor { shape: &tensor.shape, stored: Stored::Whole(index) }));
        Ok(Weights { path: path_of(model), source: model, tensors: tensors.collect() })
    }

    /// Those that a plan would take from `source`, before they are brought into any format.
    ///
    /// # Errors
    /// `Internal` for a plan that was made for another source.
    pub fn of_plan(path: &Path, source: &'a dyn TensorSource, plan: &'a OutputPlan) -> Result<Weights<'a>> {
        let tensors = plan.tensors.iter().map(|planned| {
            let is_there = planned.origin.tensors().all(|tensor| tensor < source.tensors().len());
            let tensor = Tensor { shape: &planned.shape, stored: Stored::Planned(&planned.origin) };
            is_there.then_some((planned.name.as_str(), tensor))
        });
        let tensors = tensors.collect::<Option<_>>();
        let tensors = tensors.ok_or_else(|| Error::Internal("the plan names no tensor of the source".to_owned()))?;
        Ok(Weights { path: path.to_owned(), source, tensors })
    }

    /// The file, the first of its shards, or the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size of all its files.
    pub fn size_bytes(&self) -> u64 {
        self.source.files().iter().map(InputFile::size_bytes).sum()
    }

    pub(super) fn source(&self) -> &'a dyn TensorSource {
        self.source
    }
}

fn path_of(model: &gguf::Model) -> PathBuf {
    model.files().first().map_or_else(PathBuf::new, |file| file.path().to_owned())
}

impl<'a> Tensor<'a> {
    /// How it divides into rows: their number, and the weights in each.
    fn rows(&self) -> (u64, u64) {
        match self.stored {
            Stored::Whole(tensor) => Origin::copy(tensor, self.shape).rows(self.shape),
            Stored::Planned(origin) => origin.rows(self.shape),
        }
    }

    /// The formats that its weights are read in.
    fn formats(&self, source: &dyn TensorSource) -> Vec<Format> {
        let format = |tensor: usize| source.tensors()[tensor].format;
        match self.stored {
            Stored::Whole(tensor) => vec![format(tensor)],
            Stored::Planned(origin) => origin.tensors().map(format).collect(),
        }
    }

    fn divided(&self, name: &str, rows: (u64, u64), source: &'a dyn TensorSource) -> Result<Rows<'a>> {
        match self.stored {
            Stored::Whole(tensor) => Rows::whole(name, rows, tensor, source),
            Stored::Planned(origin) => Rows::divided(name, rows, origin, source),
        }
    }
}

/// Every tensor that is to be compared, in llama.cpp's order.
pub(super) fn pairs<'a>(base: &Weights<'a>, files: &[Weights<'a>], options: &Options<'_>) -> Result<Vec<Pair<'a>>> {
    let named = |name: &str, texts: &[String]| texts.iter().any(|text| name.contains(text.as_str()));
    let is_chosen = |name: &&str| (options.only.is_empty() || named(name, &options.only)) && !named(name, &options.skip);
    let chosen = |weights: &Weights<'a>| {
        let mut names: Vec<&'a str> = weights.tensors.keys().copied().filter(is_chosen).collect();
        names.sort_by(|a, b| file_order(a, b));
        names
    };
    let names = chosen(base);
    for file in files {
        let unknown: Vec<&str> = chosen(file).into_iter().filter(|name| !base.tensors.contains_key(name)).collect();
        refuse_missing(&unknown, base, file)?;
        let missing: Vec<&str> = names.iter().copied().filter(|name| !file.tensors.contains_key(name)).collect();
        refuse_missing(&missing, file, base)?;
    }
    if names.is_empty() {
        return Err(Error::usage("no tensor is left to compare; fewer of --only and --skip choose more"));
    }
    names.into_iter().map(|name| pair(name, base, files, options)).collect()
}

/// Names the tensors that `lacking` has not and `having` has.
fn refuse_missing(names: &[&str], lacking: &Weights<'_>, having: &Weights<'_>) -> Result<()> {
    let Some(first) = names.first() else { return Ok(()) };
    let more = match names.len() - 1 {
        0 => String::new(),
        more => format!(" (so are {more} more)"),
    };
    let detail = format!("is missing here, but in {}{more}; what both have is compared with --skip {first}", having.path.display());
    Err(Error::malformed(&lacking.path, Place::Tensor((*first).to_owned()), Fault::MissingTensor, detail))
}

fn pair<'a>(name: &'a str, base: &Weights<'a>, files: &[Weights<'a>], options: &Options<'_>) -> Result<Pair<'a>> {
    let tensor = base.tensors[name];
    let all = || std::iter::once(base).chain(files);
    // A vector of which one picks elements has rows of one, and so have the others.
    let (n_rows, row_len) = all().map(|weights| weights.tensors[name].rows()).min_by_key(|(_, row_len)| *row_len).unwrap_or((0, 0));
    let mut others = Vec::with_capacity(files.len());
    for weights in all() {
        let other = weights.tensors[name];
        // Quantizing drops dimensions of 1.
        if significant_dims(other.shape) != significant_dims(tensor.shape) {
            let detail = format!("shape {:?}, but {:?} in {}", other.shape, tensor.shape, base.path.display());
            return Err(Error::malformed(&weights.path, Place::Tensor(name.to_owned()), Fault::ShapeMismatch, detail));
        }
        check_readable(name, weights, &other, row_len)?;
        others.push(other.divided(name, (n_rows, row_len), weights.source)?);
    }
    let base_again = others.remove(0);
    let len = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let n_experts = tensor.shape.iter().rev().skip(2).fold(1, |n: usize, &dim| n.saturating_mul(len(dim)));
    let wanted = Wanted { name, n_experts, n_columns: len(row_len) };
    let importance = options.imatrix.map(|imatrix| imatrix.importance(wanted)).transpose()?.flatten();
    // An entry that holds no data says nothing.
    let importance = importance.filter(|importance| importance.without_data().len() < importance.n_experts());
    Ok(Pair { name, shape: tensor.shape, n_rows, row_len, base: base_again, others, importance })
}

fn check_readable(name: &str, weights: &Weights<'_>, tensor: &Tensor<'_>, row_len: u64) -> Result<()> {
    for format in tensor.formats(weights.source) {
        if !format.can_dequantize() {
            let what = format!("{}: {name} is {format}, which holds no weights", weights.path.display());
            return Err(Error::unsupported(what, format!("leave it out with --skip {name}")));
        }
        if format.row_bytes(row_len).is_none() {
            let what = format!("{}: rows of {row_len} weights of {name} are no whole {format} blocks", weights.path.display());
            return Err(Error::unsupported(what, format!("leave it out with --skip {name}")));
        }
    }
    Ok(())
}
