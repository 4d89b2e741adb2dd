//! From a source's tensors to the model's: names by pattern, shapes checked against the hyperparameters, nothing left over.

use std::collections::HashMap;

use super::rope::rope_freqs;
use super::rule::{MappedTensor, Need, TensorRule};
use super::{Arch, ConfigHparams as Hparams};
use crate::error::{Error, Fault, Place, Result};
use crate::hf::{Config, UnreadableTensor};
use crate::names::{ROPE_FREQS, TOKEN_EMBD};
use crate::quant::Format;
use crate::rows::Origin;
use crate::source::SourceTensor;

impl Arch {
    /// Maps every tensor of the source: computed tensors first, then the source's in its own order.
    ///
    /// `unreadable` names tensors that are in the source in types that are not converted.
    ///
    /// # Errors
    /// `MissingTensor`, `UnmappedTensor`, `ShapeMismatch` by name; `Unsupported` when a tensor of the model is not of type F32, F16,
    /// BF16 or F64; those of [`Hparams::read`].
    pub fn map_tensors(
        &self,
        config: &Config,
        source: &[SourceTensor],
        unreadable: &[UnreadableTensor],
    ) -> Result<Vec<MappedTensor>> {
        let hparams = self.hparams(config)?;
        let mut mapping = Mapping {
            config,
            hparams: &hparams,
            by_name: source.iter().enumerate().map(|(i, tensor)| (tensor.name.as_str(), i)).collect(),
            source,
            unreadable,
            taken: Vec::new(),
        };
        for rule in self.tensors {
            if rule.source.contains("{bid}") {
                for bid in 0..hparams.n_layer {
                    mapping.apply(rule, &at_layer(rule.source, bid), at_layer(rule.name, bid))?;
                }
            } else {
                mapping.apply(rule, rule.source, rule.name.to_owned())?;
            }
        }
        mapping.check_all_taken(self)?;
        let freqs = rope_freqs(&hparams).map(|freqs| MappedTensor {
            name: ROPE_FREQS.to_owned(),
            shape: vec![freqs.len() as u64],
            origin: Origin::Computed(freqs),
        });
        mapping.taken.sort_unstable_by_key(|(tensor, _)| *tensor);
        Ok(freqs.into_iter().chain(mapping.taken.into_iter().map(|(_, mapped)| mapped)).collect())
    }
}

fn at_layer(pattern: &str, bid: u32) -> String {
    pattern.replace("{bid}", &bid.to_string())
}

struct Mapping<'a> {
    config: &'a Config,
    hparams: &'a Hparams,
    source: &'a [SourceTensor],
    unreadable: &'a [UnreadableTensor],
    by_name: HashMap<&'a str, usize>,
    /// Mapped so far, with the index of the source tensor.
    taken: Vec<(usize, MappedTensor)>,
}

impl Mapping<'_> {
    fn apply(&mut self, rule: &TensorRule, source_name: &str, name: String) -> Result<()> {
        let tensor = match self.by_name.remove(source_name) {
            Some(tensor) => tensor,
            None => match self.stand_in(rule)? {
                Some(tensor) => tensor,
                None => return self.check_dispensable(rule, source_name, &name),
            },
        };
        let found = &self.source[tensor];
        if !matches!(found.format, Format::F32 | Format::F16 | Format::BF16 | Format::F64) {
            return Err(self.wrong_type(&found.name, found.format.name()));
        }
        let shape: Vec<u64> = rule.shape.iter().map(|dim| dim.len(self.hparams)).collect();
        if found.shape != shape {
            let detail = format!("shape {:?}, config.json makes it {shape:?}", found.shape);
            return Err(self.fault(&found.name, Fault::ShapeMismatch, detail));
        }
        let origin = rule.rows.origin(tensor, &shape, self.hparams);
        self.taken.push((tensor, MappedTensor { name, shape, origin }));
        Ok(())
    }

    /// A tied model may have been saved with the head's copy of the shared matrix only: that one is the token embedding.
    fn stand_in(&mut self, rule: &TensorRule) -> Result<Option<usize>> {
        if rule.name != TOKEN_EMBD || !self.hparams.is_tied {
            return Ok(None);
        }
        Ok(self.by_name.remove("lm_head.weight"))
    }

    /// The tensor is not there, or not in a type that can be read.
    fn check_dispensable(&self, rule: &TensorRule, source_name: &str, name: &str) -> Result<()> {
        if let Some(tensor) = self.unreadable.iter().find(|tensor| tensor.name == source_name) {
            return Err(self.wrong_type(source_name, tensor.dtype));
        }
        let is_needed = match rule.need {
            Need::Required => true,
            Need::If(flag) => self.config.bool(flag)?.unwrap_or(false),
            Need::UnlessTied => !self.hparams.is_tied,
        };
        match is_needed {
            true => Err(self.fault(source_name, Fault::MissingTensor, format!("no such tensor; it becomes {name}"))),
            false => Ok(()),
        }
    }

    fn check_all_taken(&self, arch: &Arch) -> Result<()> {
        let is_ignored = |name: &str| arch.ignored_suffixes.iter().any(|suffix| name.ends_with(suffix));
        let left = self.by_name.keys().copied().chain(self.unreadable.iter().map(|tensor| tensor.name.as_str()));
        // The smallest, so that the message does not depend on a hash.
        let Some(name) = left.filter(|name| !is_ignored(name)).min() else { return Ok(()) };
        let detail = format!("not a tensor of a {} model with {} layers", arch.name, self.hparams.n_layer);
        Err(self.fault(name, Fault::UnmappedTensor, detail))
    }

    fn wrong_type(&self, name: &str, dtype: &str) -> Error {
        let what = format!("{}: {name} is stored as {dtype}", self.folder().display());
        Error::unsupported(what, "F32, F16, BF16 and F64 are converted; use the original model")
    }

    fn fault(&self, name: &str, fault: Fault, detail: String) -> Error {
        Error::malformed(self.folder(), Place::Tensor(name.to_owned()), fault, detail)
    }

    fn folder(&self) -> &std::path::Path {
        self.config.path().parent().unwrap_or(self.config.path())
    }
}
