//! From a source's tensors to the model's: names by the family's description, shapes checked against the hyperparameters, nothing left over.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use super::config_numbers::InConfig;
use super::describe::{Assumed, Class, Family, Head, Need, Order, Packed};
use super::long_rope::long_factors;
use super::rope::rope_freqs;
use super::sizes::Hparams;
use super::source_names::Renaming;
use super::tensors::{Each, From, Wanted, wanted};
use crate::error::{Error, Fault, Place, Result};
use crate::hf::{Config, UnreadableTensor, mxfp4};
use crate::names::{OUTPUT, TOKEN_EMBD};
use crate::quant::Format;
use crate::rows::{ColumnMap, Edit, Origin, Part, RowMap};
use crate::source::SourceTensor;

/// A tensor of the GGUF model, before its format is chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct MappedTensor {
    /// GGUF name.
    pub name: String,
    /// Row-major, 1 to 4 dimensions, none zero.
    pub shape: Vec<u64>,
    /// Where its weights come from.
    pub origin: Origin,
}

/// A model's tensors, and what is to be said about them.
#[derive(Debug, Clone, PartialEq)]
pub struct Mapped {
    /// Computed ones first, then the source's in its own order.
    pub tensors: Vec<MappedTensor>,
    /// One sentence each.
    pub notes: Vec<String>,
}

/// Parts of names that training tools give to what is not yet a part of the model.
const OF_ADAPTERS: &[&str] =
    &[".lora_A.", ".lora_B.", ".lora_embedding_", ".base_layer.", ".modules_to_save.", ".original_module."];
/// Ends of names that quantized weights have beside them, or instead.
const OF_QUANTIZED: &[&str] = &[
    ".qweight",
    ".qzeros",
    ".scales",
    ".g_idx",
    ".SCB",
    ".absmax",
    ".quant_map",
    ".weight_packed",
    ".weight_scale",
    ".weight_scale_inv",
    ".weight_shape",
    "_blocks",
    "_scales",
];
/// The head of a reward model, which no text needs.
const VALUE_HEAD: &str = "v_head.";

/// Maps every tensor of the source. `n_tokens`: rows of the embedding that are written, where these are fewer than config.json says.
///
/// # Errors
/// `MissingTensor`, `UnmappedTensor`, `ShapeMismatch` by name; `Unsupported` when a tensor of the model is not of type F32, F16, BF16 or
/// F64, or the source holds an adapter or quantized weights.
pub(super) fn map(
    numbers: &InConfig<'_>,
    hparams: &Hparams,
    source: &[SourceTensor],
    unreadable: &[UnreadableTensor],
    n_tokens: Option<u64>,
) -> Result<Mapped> {
    let InConfig { config, family, class, .. } = *numbers;
    let all_names = || source.iter().map(|tensor| tensor.name.as_str()).chain(unreadable.iter().map(|tensor| tensor.name.as_str()));
    refuse_adapter(config, all_names())?;
    let renaming = Renaming::of(family, class, all_names());
    let own_name = |name: &str| without_model(family, renaming.apply(name));
    let mut mapping = Mapping {
        config,
        family,
        class,
        is_tied: numbers.is_tied()?,
        source,
        unreadable: unreadable.iter().map(|tensor| (own_name(&tensor.name), tensor)).collect(),
        by_name: HashMap::with_capacity(source.len()),
        taken: BTreeSet::new(),
        found: Vec::new(),
    };
    for (index, tensor) in source.iter().enumerate() {
        if let Some(other) = mapping.by_name.insert(own_name(&tensor.name), index) {
            let detail = format!("the same tensor as {}", source[other].name);
            return Err(mapping.fault(&tensor.name, Fault::DuplicateTensor, detail));
        }
    }
    let tied = mapping.tie_if_unsaid();
    let mapped = wanted(hparams).iter().try_for_each(|wanted| mapping.apply(wanted, n_tokens)).and_then(|()| {
        let left_out = mapping.left_out(hparams.layers.len())?;
        Ok([renaming.note(), left_out, tied].into_iter().flatten().collect())
    });
    let mut notes: Vec<String> = mapped.map_err(|error| explain_quantized(config, all_names(), error))?;
    notes.extend(left_over_quantization(config, source));
    let computed = rope_freqs(numbers, hparams).into_iter().chain(long_factors(numbers, hparams)?);
    let computed = computed.map(|(name, weights)| {
        let shape = vec![weights.len() as u64];
        MappedTensor { name: name.to_owned(), shape, origin: Origin::Computed(weights) }
    });
    let mut found = mapping.found;
    found.sort_by_key(|tensor| tensor.origin.tensors().next());
    Ok(Mapped { tensors: computed.chain(found).collect(), notes })
}

/// How many blocks that foretell more tokens a source has, by the names of its tensors.
pub(super) fn n_drafts<'n>(family: &Family, names: impl Iterator<Item = &'n str>) -> u64 {
    let Some(drafts) = family.drafts else { return 0 };
    let number = |name: &str| {
        let (_, rest) = name.split_once(drafts.root)?;
        let (number, _) = rest.strip_prefix(drafts.source_layers)?.strip_prefix('.')?.split_once('.')?;
        number.parse::<u32>().ok()
    };
    names.filter_map(number).max().map_or(0, |last| u64::from(last) + 1)
}

/// What foretells more tokens may stand within the model or beside it.
fn without_model(family: &Family, name: String) -> String {
    let is_draft = |rest: &&str| family.drafts.is_some_and(|drafts| rest.starts_with(drafts.root));
    match name.strip_prefix("model.").filter(is_draft) {
        Some(rest) => rest.to_owned(),
        None => name,
    }
}

struct Mapping<'a> {
    config: &'a Config,
    family: &'static Family,
    class: &'static Class,
    is_tied: bool,
    source: &'a [SourceTensor],
    /// With the family's names.
    unreadable: Vec<(String, &'a UnreadableTensor)>,
    /// By the family's names: what nothing has used yet.
    by_name: HashMap<String, usize>,
    taken: BTreeSet<usize>,
    found: Vec<MappedTensor>,
}

impl Mapping<'_> {
    fn apply(&mut self, wanted: &Wanted, n_tokens: Option<u64>) -> Result<()> {
        let origin = match &wanted.from {
            From::One { names, shape, rows, columns, edit } => self.one(wanted, (names, shape), rows, (*columns, *edit))?,
            From::Stack { each, packed } => Some(self.stack(wanted, each, packed)?),
            From::Elements { name, part } => Some(self.elements(wanted, name, *part)?),
        };
        let Some(mut origin) = origin else { return Ok(()) };
        let mut shape = wanted.shape.clone();
        let is_table = wanted.name == TOKEN_EMBD || wanted.name == OUTPUT;
        if let (true, Some(n_tokens), Origin::Parts(parts)) = (is_table, n_tokens, &mut origin) {
            (shape[0], parts[0].n_rows) = (n_tokens.min(shape[0]), n_tokens.min(parts[0].n_rows));
        }
        self.found.push(MappedTensor { name: wanted.name.clone(), shape, origin });
        Ok(())
    }

    fn one(
        &mut self,
        wanted: &Wanted,
        (names, shape): (&[String], &[u64]),
        rows: &[(RowMap, u64)],
        (columns, edit): (ColumnMap, Edit),
    ) -> Result<Option<Origin>> {
        let is_dropped = wanted.need == Need::UnlessTied && self.is_tied && names.iter().any(|name| self.is_ignored(name));
        if is_dropped {
            return Ok(None);
        }
        let Some(tensor) = names.iter().find_map(|name| self.by_name.get(name).copied()).or_else(|| self.stand_in(wanted)) else {
            return self.check_dispensable(wanted, names).map(|()| None);
        };
        self.take(tensor, shape)?;
        let part = |&(rows, n_rows): &(RowMap, u64)| Part { tensor, n_rows, rows, columns, edit };
        Ok(Some(Origin::Parts(rows.iter().map(part).collect())))
    }

    /// Every expert's matrix, one below the other.
    fn stack(&mut self, wanted: &Wanted, each: &Each, packed: &[(Vec<String>, Packed)]) -> Result<Origin> {
        let [_, n_rows, n_cols] = wanted.shape[..] else {
            return Err(Error::Internal(format!("{} is no stack", wanted.name)));
        };
        let found = |(names, packed): &(Vec<String>, Packed)| {
            names.iter().find_map(|name| self.by_name.get(name).copied()).map(|tensor| (tensor, *packed))
        };
        if let Some((tensor, packed)) = packed.iter().find_map(found) {
            return self.packed(wanted, tensor, packed);
        }
        let mut parts = Vec::new();
        if each.names().next().is_none() {
            let names: Vec<String> = packed.iter().flat_map(|(names, _)| names).cloned().collect();
            self.check_dispensable(wanted, &names)?;
        }
        for name in each.names() {
            let Some(tensor) = self.by_name.get(&name).copied() else {
                self.check_dispensable(wanted, std::slice::from_ref(&name))?;
                continue;
            };
            self.take(tensor, &[n_rows, n_cols])?;
            let rows = RowMap::Range { first: 0 };
            parts.push(Part { tensor, n_rows, rows, columns: ColumnMap::Same, edit: Edit::Same });
        }
        Ok(Origin::Parts(parts))
    }

    /// Every expert's matrix out of one tensor, in which it may be one of several parts.
    fn packed(&mut self, wanted: &Wanted, tensor: usize, packed: Packed) -> Result<Origin> {
        let [n_expert, n_rows, n_cols] = wanted.shape[..] else {
            return Err(Error::Internal(format!("{} is no stack", wanted.name)));
        };
        let [nth, of] = packed.part.map(u64::from);
        let (all_rows, columns, edit) = (of * n_rows, ColumnMap::Same, Edit::Same);
        if packed.order == Order::ColumnsInTurns {
            self.take(tensor, &[n_expert, n_cols, all_rows])?;
            let part = |matrix| Part { tensor, n_rows, rows: RowMap::Columns { matrix, first: nth, step: of }, columns, edit };
            return Ok(Origin::Parts((0..n_expert).map(part).collect()));
        }
        self.take(tensor, &[n_expert, all_rows, n_cols])?;
        let rows = match packed.order {
            _ if of == 1 => RowMap::Range { first: 0 },
            Order::InTurns => RowMap::Groups { first: nth, len: 1, stride: of },
            _ => RowMap::Groups { first: nth * n_rows, len: n_rows, stride: all_rows },
        };
        Ok(Origin::Parts(vec![Part { tensor, n_rows: n_expert * n_rows, rows, columns, edit }]))
    }

    /// One of several numbers that lie in turns.
    fn elements(&mut self, wanted: &Wanted, name: &String, [nth, of]: [u32; 2]) -> Result<Origin> {
        let Some(tensor) = self.by_name.get(name).copied() else {
            self.check_dispensable(wanted, std::slice::from_ref(name))?;
            return Err(Error::Internal(format!("{} is needed", wanted.name)));
        };
        let (first, step) = (u64::from(nth), u64::from(of));
        let mut expected = wanted.shape.clone();
        expected.iter_mut().next_back().into_iter().for_each(|len| *len *= step);
        self.take(tensor, &expected)?;
        let n_rows = wanted.shape.iter().product();
        let rows = RowMap::Elements { first, step };
        Ok(Origin::Parts(vec![Part { tensor, n_rows, rows, columns: ColumnMap::Same, edit: Edit::Same }]))
    }

    /// Checks a source tensor that is used.
    fn take(&mut self, tensor: usize, expected: &[u64]) -> Result<()> {
        let found = &self.source[tensor];
        if !matches!(found.format, Format::F32 | Format::F16 | Format::BF16 | Format::F64 | Format::MXFP4) {
            return Err(self.wrong_type(&found.name, found.format.name()));
        }
        if !is_shape(&found.shape, expected) {
            let detail = format!("shape {:?}, config.json makes it {expected:?}", found.shape);
            return Err(self.fault(&found.name, Fault::ShapeMismatch, detail));
        }
        self.taken.insert(tensor);
        Ok(())
    }

    /// A tied model may have been saved with the head's copy of the shared matrix only: that one is the token embedding.
    fn stand_in(&mut self, wanted: &Wanted) -> Option<usize> {
        let is_embedding = wanted.name == TOKEN_EMBD && self.is_tied;
        let heads = || self.family.output.source.iter().map(|source| format!("{source}.weight"));
        if is_embedding { heads().find_map(|name| self.by_name.remove(&name)) } else { None }
    }

    /// The tensor is not there, or not in a type that can be read.
    fn check_dispensable(&self, wanted: &Wanted, names: &[String]) -> Result<()> {
        if let Some((_, tensor)) = self.unreadable.iter().find(|(name, _)| names.contains(name)) {
            return Err(self.wrong_type(&tensor.name, tensor.dtype));
        }
        let is_needed = match wanted.need {
            Need::Required => true,
            Need::If(flag) => self.config.bool(flag)?.unwrap_or_else(|| self.class.assumes(flag)),
            Need::Unless(flag) => !self.config.bool(flag)?.unwrap_or_else(|| self.class.assumes(flag)),
            Need::UnlessTied => !self.is_tied && self.class.head == Head::Scores,
            Need::IfThere | Need::Never => false,
        };
        match (is_needed, names.first()) {
            (true, Some(name)) => {
                Err(self.fault(name, Fault::MissingTensor, format!("no such tensor; it becomes {}", wanted.name)))
            }
            _ => Ok(()),
        }
    }

    /// Without a head, and without a word in config.json on what stands for it, the output can only be the token embedding: llama.cpp loads
    /// such files so, while transformers would make up a head. Returns what to say about it.
    fn tie_if_unsaid(&mut self) -> Option<String> {
        let is_said = self.is_tied || self.class.head != Head::Scores || self.config.value("tie_word_embeddings").is_some();
        let unreadable = self.unreadable.iter().map(|(name, _)| name);
        let has_head = || {
            let of_head = |name: &String| self.family.output.source.iter().any(|source| name.starts_with(source));
            self.by_name.keys().chain(unreadable).any(of_head)
        };
        if is_said || self.family.output.source.is_empty() || has_head() {
            return None;
        }
        self.is_tied = true;
        let head = self.family.output.source[0];
        Some(format!(
            "there is no {head}.weight, and config.json does not say tie_word_embeddings: the token embedding is the output"
        ))
    }

    fn is_ignored(&self, name: &str) -> bool {
        self.family.ignored_ends.iter().any(|end| name.ends_with(end))
    }

    /// Says what is left out, and refuses what should not be there.
    fn left_out(&self, n_layer: usize) -> Result<Option<String>> {
        let is_used = |index: &usize| self.taken.contains(index);
        let readable = self.by_name.iter().filter(|(_, index)| !is_used(index));
        let readable = readable.map(|(name, index)| (name.as_str(), self.source[*index].name.as_str()));
        let unreadable = self.unreadable.iter().map(|(name, tensor)| (name.as_str(), tensor.name.as_str()));
        let mut beginnings: BTreeSet<&str> = BTreeSet::new();
        let (mut n_left_out, mut strangers) = (0, Vec::new());
        for (name, full) in readable.chain(unreadable).filter(|(name, _)| !self.is_ignored(name)) {
            let known =
                self.family.left_out.iter().chain([&VALUE_HEAD]).find(|left| name.starts_with(*left) || full.starts_with(*left));
            match known {
                Some(beginning) => {
                    n_left_out += 1;
                    beginnings.insert(beginning);
                }
                None => strangers.push(full),
            }
        }
        // The smallest, so that the message does not depend on a hash.
        if let Some(name) = strangers.iter().min() {
            let more = match strangers.len() - 1 {
                0 => String::new(),
                more => format!(" (nor are {more} more)"),
            };
            let detail = format!("not a tensor of a {} model with {n_layer} layers{more}", self.family.name);
            return Err(self.fault(name, Fault::UnmappedTensor, detail));
        }
        let beginnings: Vec<&str> = beginnings.into_iter().map(|beginning| beginning.trim_end_matches('.')).collect();
        let said = || format!("{n_left_out} tensors of {} are left out: the file is of the language model", beginnings.join(", "));
        Ok((n_left_out > 0).then(said))
    }

    fn wrong_type(&self, name: &str, dtype: &str) -> Error {
        let what = format!("{}: {name} is stored as {dtype}", folder(self.config).display());
        Error::unsupported(what, "F32, F16, BF16 and F64 are converted; use the original model")
    }

    fn fault(&self, name: &str, fault: Fault, detail: String) -> Error {
        Error::malformed(folder(self.config), Place::Tensor(name.to_owned()), fault, detail)
    }
}

impl Class {
    /// Whether a flag of config.json is taken for true where it is absent.
    fn assumes(&self, flag: &str) -> bool {
        self.defaults.iter().any(|(field, assumed)| *field == flag && matches!(assumed, Assumed::Is(x) if *x != 0.0))
    }
}

/// True where shapes are the same but for dimensions of 1 between others, as in the weights of convolutions: `[8192, 1, 4]`.
fn is_shape(found: &[u64], expected: &[u64]) -> bool {
    match found {
        [first, inner @ .., last] if found.len() > expected.len() && inner.iter().all(|dim| *dim == 1) => {
            [*first, *last] == *expected
        }
        _ => found == expected,
    }
}

fn folder(config: &Config) -> &Path {
    config.path().parent().unwrap_or(config.path())
}

/// An adapter that training left beside the weights has to be merged into them: what the model computes is both together.
fn refuse_adapter<'n>(config: &Config, mut names: impl Iterator<Item = &'n str>) -> Result<()> {
    let Some(name) = names.find(|name| OF_ADAPTERS.iter().any(|part| name.contains(part))) else { return Ok(()) };
    let what = format!("{}: holds an adapter that is not merged into its model ({name})", folder(config).display());
    Err(Error::unsupported(what, "merge it with PEFT's merge_and_unload and save the result"))
}

/// What config.json says of a quantization: the method.
fn quantization(config: &Config) -> Option<&str> {
    let said = config.root_value("quantization_config").or_else(|| config.value("quantization_config"))?;
    let method = said.get("quant_method").and_then(|method| method.as_str());
    match said.as_object() {
        Some(fields) if fields.is_empty() => None,
        _ => Some(method.unwrap_or("unknown method")),
    }
}

/// Weights that are quantized are refused as such, whatever it is that does not fit.
fn explain_quantized<'n>(config: &Config, mut names: impl Iterator<Item = &'n str>, error: Error) -> Error {
    let method = quantization(config);
    let is_marked = method.is_some_and(|method| names.any(|name| is_quantized(method, name)));
    match method {
        Some(method) if is_marked || matches!(error, Error::Unsupported { .. }) => quantized(config, method),
        _ => error,
    }
}

fn quantized(config: &Config, method: &str) -> Error {
    let what = format!("{}: the weights are already quantized ({method})", config.path().display());
    Error::unsupported(what, "use the original model in F32, F16 or BF16")
}

/// Refuses weights whose names say that they are quantized, where only the names are known.
///
/// # Errors
/// `Unsupported`.
pub(super) fn refuse_quantized<'n>(config: &Config, mut names: impl Iterator<Item = &'n str>) -> Result<()> {
    match quantization(config) {
        Some(method) if names.any(|name| is_quantized(method, name)) => Err(quantized(config, method)),
        _ => Ok(()),
    }
}

/// True for a name of what a method makes of weights, unless it is made of blocks that GGUF has too: those are read.
fn is_quantized(method: &str, name: &str) -> bool {
    let ends_so = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
    ends_so(OF_QUANTIZED) && !(method == mxfp4::METHOD && ends_so(&[mxfp4::BLOCKS, mxfp4::SCALES]))
}

/// Tools that merge adapters into weights of 16 bits leave config.json as it was when the model was loaded in fewer.
fn left_over_quantization(config: &Config, source: &[SourceTensor]) -> Option<String> {
    let method = quantization(config)?;
    if source.iter().any(|tensor| tensor.format.block_len() > 1) {
        return None;
    }
    Some(format!("config.json speaks of a quantization ({method}), but the weights are floats; they are taken as they are"))
}
