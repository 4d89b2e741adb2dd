//! A Hugging Face model folder into GGUF models.
//!
//! F32, F16, BF16 and Q8_0 come out as llama.cpp's converter writes them, every other type as llama-quantize makes it of that: for
//! the tensors of the families we know, the two choose alike. What neither quantizes is F32, as the converter has it. The former keep
//! dimensions of 1 (the gate of a shared expert is `[1, n_embd]`), the latter drop them, as the two programs do.

use std::path::Path;

use super::assemble::Model;
use super::choose::{Overrides, Source};
use super::draft::Draft;
use super::kept::never_quantized;
use super::recipe::{Preset, preset};
use super::{Origin, Plan};
use crate::arch::describe::{Spaces, Vocab};
use crate::arch::{self, MappedTensor, Size};
use crate::error::{Error, Result};
use crate::gguf::Metadata;
use crate::hf::Folder;
use crate::imatrix::Imatrix;
use crate::quant::Format;
use crate::source::{SourceTensor, TensorSource};
use crate::tokenizer;

/// What to make of a model folder.
#[derive(Debug, Clone, Default)]
pub struct ConvertOptions<'a> {
    /// One output each; where none is given, the type that most of the weights have already.
    pub presets: Vec<&'static Preset>,
    /// Exceptions to the presets.
    pub overrides: Overrides,
    /// How much each column of each tensor matters.
    pub imatrix: Option<&'a Imatrix>,
    /// `general.name`, instead of the one found.
    pub name: Option<String>,
    /// llama.cpp's name for the pre-tokenizer, instead of the one found.
    pub pre: Option<String>,
    /// What stands for the scores of a vocabulary that has none.
    pub scores: tokenizer::Scores,
}

/// Opens a model folder that is to be converted. A class that is not supported, and weights that are quantized already, are refused before
/// any weight file is looked for.
///
/// # Errors
/// Those of [`Folder::open`] and [`arch::check`].
pub fn open_folder(path: &Path) -> Result<Folder> {
    Folder::open_if(path, arch::check)
}

/// Plans the conversion of a model folder.
///
/// # Errors
/// Whatever [`arch::find`], the mapping of its tensors and [`tokenizer::read`] refuse; `Usage` for options that fit no tensor,
/// `Unsupported` for formats that cannot be written yet.
pub fn convert(folder: &Folder, options: &ConvertOptions<'_>) -> Result<Plan> {
    if options.presets.iter().any(|preset| preset.copies) {
        return Err(Error::usage("COPY is for GGUF files; without a type, a model folder is converted to its own"));
    }
    convert_as(arch::find(folder.config())?, folder, options)
}

/// The same of a model whose family is known.
///
/// # Errors
/// As [`convert`].
pub fn convert_as(found: arch::Found, folder: &Folder, options: &ConvertOptions<'_>) -> Result<Plan> {
    let names = folder.tensors().iter().map(|tensor| tensor.name.as_str());
    let names = names.chain(folder.unreadable().iter().map(|tensor| tensor.name.as_str()));
    let described = found.read_with(folder.config(), names)?;
    let mut notes = described.notes()?;
    let n_vocab = u32::try_from(described.hparams().n_vocab).unwrap_or(u32::MAX);
    let merged = match found.family.spaces {
        Spaces::Merged(kind) => Some(kind),
        Spaces::Stated | Spaces::None => None,
    };
    let tokenizer_options = tokenizer::Options { pre: options.pre.as_deref(), scores: options.scores, merged };
    let n_tokens = match found.family.vocab {
        Vocab::Stated => None,
        Vocab::OfTokenizer => tokenizer::count(folder)?.filter(|n_tokens| *n_tokens < n_vocab),
    };
    let mapped = described.map_tensors(folder.tensors(), folder.unreadable(), n_tokens.map(u64::from))?;
    let mut vocabulary = tokenizer::read(folder, n_tokens.unwrap_or(n_vocab), tokenizer_options)?;
    if found.family.spaces == Spaces::None && vocabulary.model == tokenizer::Model::Llama {
        vocabulary.add_space_prefix = Some(false);
    }
    notes.extend(mapped.notes);

    let mut metadata = general(folder, found.family.name, &mapped.tensors, options);
    metadata.extend(described.metadata()?);
    metadata.extend(vocabulary.metadata());
    let drafts: Vec<Draft> = mapped.tensors.into_iter().map(|mapped| draft(mapped, folder, found.family.name)).collect();
    let presets = match options.presets.is_empty() {
        true => vec![preset_of_most(&drafts)?],
        false => options.presets.clone(),
    };
    let model = Model::new(folder.path(), metadata, drafts)?.with_imatrix(options.imatrix);
    let mut plan = model.plan(&presets, &options.overrides, |_, _| Ok(()))?;
    plan.warnings.splice(0..0, folder.notes().iter().cloned().chain(notes).chain(vocabulary.warnings));
    Ok(plan)
}

fn general(folder: &Folder, arch: &str, mapped: &[MappedTensor], options: &ConvertOptions<'_>) -> Metadata {
    arch::general(&arch::Facts {
        arch,
        model_id: &folder.model_id(),
        config: folder.config(),
        card: folder.card(),
        generation: folder.generation_config(),
        size: Size::of(mapped.iter().map(|tensor| (tensor.name.as_str(), &tensor.shape[..]))),
        name: options.name.as_deref(),
    })
}

fn draft(mapped: MappedTensor, folder: &Folder, arch: &str) -> Draft {
    let MappedTensor { name, shape, origin } = mapped;
    let stored = stored_format(&origin, folder.tensors());
    let source = if stored.block_len() > 1 { Source::Blocks } else { Source::Weights };
    // llama.cpp has no kernels for F64.
    let is_plain = matches!(stored, Format::F32 | Format::F16 | Format::BF16);
    let kept = match source {
        Source::Weights if is_plain && never_quantized(&name, &shape, arch).is_none() => stored,
        Source::Weights => Format::F32,
        Source::Blocks => stored,
    };
    Draft { name, shape, stored, kept, origin, source }
}

/// The format of all parts; F32 for what is computed, and where parts differ, which then takes all.
fn stored_format(origin: &Origin, tensors: &[SourceTensor]) -> Format {
    let mut formats = origin.tensors().map(|tensor| tensors[tensor].format);
    let first = formats.next().unwrap_or(Format::F32);
    if formats.all(|format| format == first) { first } else { Format::F32 }
}

/// The plain type that holds most of the weights without loss.
fn preset_of_most(drafts: &[Draft]) -> Result<&'static Preset> {
    let n_weights = |format: Format| {
        let in_format = drafts.iter().filter(|draft| draft.kept == format);
        in_format.flat_map(|draft| draft.shape.iter().copied().reduce(u64::saturating_mul)).fold(0, u64::saturating_add)
    };
    let most = [Format::BF16, Format::F16, Format::F32].into_iter().max_by_key(|format| n_weights(*format));
    preset(most.unwrap_or(Format::F32).name())
}
