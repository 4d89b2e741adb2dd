//! What convert and quantize have in common: drafts of tensors and a preset become an output, or a refusal.

use std::path::Path;

use super::choose::{Candidate, Choice, Overrides, Source, choose};
use super::draft::{Draft, add_warning};
use super::facts::get;
use super::importance::{self, Importances};
use super::recipe::{Facts, Preset};
use super::{Calibration, OutputPlan, Plan, PlannedTensor};
use crate::error::{Error, Fault, Place, Result};
use crate::gguf::{Metadata, Value, keys};
use crate::imatrix::Imatrix;
use crate::names::file_order;
use crate::quant::{Format, SizeFault};
use crate::source::significant_dims;

/// ggml's tensors have four.
const DIMS_MAX: usize = 4;
/// Of the block formats that llama.cpp reads.
const QUANTIZATION_VERSION: u32 = 2;
/// llama.cpp's file type of experts in MXFP4.
const MXFP4_MOE: u32 = 38;

/// A model about to be written.
pub(super) struct Model<'a> {
    /// The input, for errors.
    pub path: &'a Path,
    /// Without `general.file_type` and `general.quantization_version`.
    pub metadata: Metadata,
    /// In file order: see [`Model::new`].
    drafts: Vec<Draft>,
    facts: Facts,
    imatrix: Option<&'a Imatrix>,
    /// There was an importance matrix, of which nothing is left.
    had_imatrix: bool,
    calibration: Option<&'a Calibration>,
}

impl<'a> Model<'a> {
    /// Puts the tensors in file order and refuses what no output can hold.
    pub fn new(path: &'a Path, metadata: Metadata, mut drafts: Vec<Draft>) -> Result<Model<'a>> {
        drafts.sort_by(|a, b| file_order(&a.name, &b.name));
        for draft in &drafts {
            check_shape(path, draft)?;
        }
        let shapes: Vec<(&str, &[u64])> = drafts.iter().map(|draft| (draft.name.as_str(), &draft.shape[..])).collect();
        let facts = super::facts::read_facts(path, &metadata, &shapes)?;
        Ok(Model { path, metadata, drafts, facts, imatrix: None, had_imatrix: false, calibration: None })
    }

    /// Takes an importance matrix into account. One of which filters have left nothing is the same as none.
    pub fn with_imatrix(self, imatrix: Option<&'a Imatrix>) -> Model<'a> {
        let had_imatrix = imatrix.is_some_and(|imatrix| imatrix.entries.is_empty());
        let imatrix = imatrix.filter(|_| !had_imatrix);
        Model { facts: Facts { has_imatrix: imatrix.is_some(), ..self.facts }, imatrix, had_imatrix, ..self }
    }

    /// Counts on a calibration, which gives every matrix an importance, too.
    pub fn with_calibration(self, calibration: Option<&'a Calibration>) -> Model<'a> {
        let has_imatrix = self.facts.has_imatrix || calibration.is_some();
        Model { facts: Facts { has_imatrix, ..self.facts }, calibration, ..self }
    }

    /// One output per preset. `refuse` may object to what a tensor would become.
    pub fn plan(&self, presets: &[&Preset], overrides: &Overrides, refuse: impl Fn(&Draft, &Choice) -> Result<()>) -> Result<Plan> {
        if presets.is_empty() {
            return Err(Error::usage("no type is given"));
        }
        let mut warnings = Vec::new();
        if self.had_imatrix {
            let what = "no entry of the importance matrix is left by --include-weights and --exclude-weights: it counts as none";
            add_warning(&mut warnings, what.to_owned());
        }
        let mut chosen = Vec::with_capacity(presets.len());
        for (index, preset) in presets.iter().enumerate() {
            if presets[..index].contains(preset) {
                return Err(Error::usage(format!("type {} is given twice", preset.name)));
            }
            chosen.push(self.choose(preset, overrides, &mut warnings, &refuse)?);
        }
        let importances = Importances::of(&self.drafts, &chosen, self.imatrix, &mut warnings)?;
        let outputs = presets.iter().zip(chosen).map(|(preset, choices)| self.output(preset, choices, &importances)).collect();
        Ok(Plan { outputs, warnings, coverage: importances.coverage })
    }

    /// What every tensor becomes under one preset.
    fn choose(
        &self,
        preset: &Preset,
        overrides: &Overrides,
        warnings: &mut Vec<String>,
        refuse: impl Fn(&Draft, &Choice) -> Result<()>,
    ) -> Result<Vec<Choice>> {
        let candidates = self.drafts.iter().map(|draft| {
            let Draft { name, shape, kept, source, .. } = draft;
            Candidate { name, shape, kept: *kept, source: *source }
        });
        let candidates: Vec<Candidate> = candidates.collect();
        let choices = choose(preset, overrides, &self.facts, &candidates)?;
        for (draft, choice) in self.drafts.iter().zip(&choices.tensors) {
            refuse(draft, choice)?;
            self.check(preset, draft, choice)?;
        }
        for index in choices.unused {
            add_warning(warnings, format!("tensor type {} changes no tensor", overrides.by_name[index].pattern()));
        }
        let n_fallback = choices.tensors.iter().filter(|choice| choice.is_fallback).count();
        if n_fallback > 0 {
            let n_tensors = choices.tensors.len();
            let what = "have rows that are not whole blocks of their type, so they get another";
            add_warning(warnings, format!("{}: {n_fallback} of {n_tensors} tensors {what}", preset.name));
        }
        self.warn_of_no_effect(preset, &choices.tensors).into_iter().for_each(|warning| add_warning(warnings, warning));
        Ok(choices.tensors)
    }

    /// What to say where the type asked for is not what comes out.
    fn warn_of_no_effect(&self, preset: &Preset, choices: &[Choice]) -> Option<String> {
        let name = preset.name;
        let is_meant = |choice: &Choice| match preset.is_quantized() {
            true => choice.format.block_len() > 1,
            false => choice.format == preset.base,
        };
        if preset.copies || preset.base == Format::F32 {
            return None;
        }
        if !choices.iter().any(is_meant) {
            let (file, kind) = (self.path.display(), self.kind());
            return Some(format!(
                "{name}: {file} is {kind}: none of its tensors is of a kind that types are for, so all stay as they are"
            ));
        }
        let is_for_experts = preset.base == Format::MXFP4 && !choices.iter().any(|choice| choice.format == Format::MXFP4);
        is_for_experts.then(|| {
            format!("{name} is for models with experts, and this is none: no tensor becomes MXFP4, the file is that of --type Q8_0")
        })
    }

    /// What a file is whose tensors are none that a type is for.
    fn kind(&self) -> &'static str {
        let text = |key| match get(&self.metadata, key) {
            Some(Value::String(bytes)) => std::str::from_utf8(bytes).unwrap_or_default(),
            _ => "",
        };
        let is_lora = || self.drafts.iter().any(|draft| draft.name.ends_with(".lora_a") || draft.name.ends_with(".lora_b"));
        match (text(keys::GENERAL_TYPE), text(keys::GENERAL_ARCHITECTURE)) {
            ("adapter", _) => "an adapter (LoRA)",
            _ if is_lora() => "an adapter (LoRA)",
            (_, "controlvector") => "a control vector",
            _ => "no model with matrices",
        }
    }

    fn output(&self, preset: &Preset, choices: Vec<Choice>, importances: &Importances) -> OutputPlan {
        // What llama-quantize writes has no dimensions of 1 at the end (GGUF's order), what the converter writes keeps them.
        let keeps_ones = preset.is_of_converter();
        let shape = |shape: &[u64]| if keeps_ones { shape.to_vec() } else { significant_dims(shape).to_vec() };
        let planned = |(index, (draft, choice)): (usize, (&Draft, Choice))| PlannedTensor {
            name: draft.name.clone(),
            shape: shape(&draft.shape),
            format: choice.format,
            origin: draft.origin.clone(),
            importance: importances.for_choice(index, draft, &choice),
            reason: choice.reason,
        };
        // As the converter has it: a file of a plain type with experts that were published in MXFP4.
        let published =
            self.drafts.iter().zip(&choices).any(|(draft, choice)| draft.source == Source::Blocks && choice.format == draft.stored);
        let file_type = if published && !preset.is_quantized() { MXFP4_MOE } else { preset.file_type };
        let tensors = self.drafts.iter().zip(choices).enumerate().map(planned).collect();
        let mut metadata = if preset.copies { self.metadata.clone() } else { with_file_type(&self.metadata, file_type) };
        self.imatrix.iter().for_each(|imatrix| importance::describe(imatrix, &mut metadata));
        self.calibration.iter().for_each(|calibration| importance::describe_calibration(calibration, &mut metadata));
        OutputPlan { file_type: preset.name.to_owned(), metadata, tensors }
    }

    /// Refuses what this version cannot write.
    fn check(&self, preset: &Preset, draft: &Draft, choice: &Choice) -> Result<()> {
        let Draft { name, stored, .. } = draft;
        let Choice { format, .. } = choice;
        if format == stored {
            return self.check_size(draft, *format);
        }
        let can_write = |format: &Format| format.can_quantize() && !format.is_for_activations();
        if !can_write(format) {
            let known: Vec<&str> = Format::ALL.iter().filter(|format| can_write(format)).map(|format| format.name()).collect();
            let what = format!("{name} would be {format} in a {} file, and {format} cannot be written", preset.name);
            return Err(Error::unsupported(what, format!("these can: {}", known.join(", "))));
        }
        if !stored.can_dequantize() {
            let what = format!("{name} is stored as {stored}, which cannot be turned into {format}");
            return Err(Error::unsupported(what, "convert from the original model"));
        }
        if choice.needs_imatrix && !self.facts.has_imatrix {
            let what = format!("{name}: {format} in a file of type {} is garbage without an importance matrix", preset.name);
            return Err(Error::unsupported(what, "give one with --imatrix, or choose a type of more bits"));
        }
        self.check_size(draft, *format)
    }

    fn check_size(&self, draft: &Draft, format: Format) -> Result<()> {
        let fault = match format.tensor_bytes(&draft.shape) {
            Ok(_) => return Ok(()),
            Err(SizeFault::ShapeOverflow) => Fault::ShapeOverflow,
            Err(SizeFault::SizeOverflow) => Fault::SizeOverflow,
            Err(SizeFault::RowNotBlockMultiple) => Fault::RowNotBlockMultiple,
        };
        let detail = format!("{:?} has no size in {format}", draft.shape);
        Err(Error::malformed(self.path, Place::Tensor(draft.name.clone()), fault, detail))
    }
}

fn check_shape(path: &Path, draft: &Draft) -> Result<()> {
    let Draft { name, shape, .. } = draft;
    let fault = match shape.len() {
        _ if shape.contains(&0) => Fault::ZeroDim,
        1..=DIMS_MAX => return Ok(()),
        _ => Fault::TooManyDims,
    };
    Err(Error::malformed(path, Place::Tensor(name.clone()), fault, format!("shape {shape:?}")))
}

/// Both keys go to the end, where llama-quantize puts them too.
fn with_file_type(metadata: &Metadata, file_type: u32) -> Metadata {
    let both = [keys::GENERAL_QUANTIZATION_VERSION, keys::GENERAL_FILE_TYPE];
    let mut metadata: Metadata = metadata.iter().filter(|(key, _)| !both.contains(&key.as_str())).cloned().collect();
    let values = [QUANTIZATION_VERSION, file_type];
    metadata.extend(both.iter().zip(values).map(|(key, value)| ((*key).to_owned(), Value::U32(value))));
    metadata
}
