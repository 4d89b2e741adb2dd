//! A GGUF model into others of fewer bits.

use std::path::Path;

use super::assemble::Model;
use super::choose::{Choice, Overrides, Source};
use super::draft::Draft;
use super::recipe::Preset;
use super::{Calibration, Origin, Plan};
use crate::arch;
use crate::error::{Error, Result};
use crate::gguf;
use crate::imatrix::Imatrix;
use crate::quant::Format;
use crate::source::{SourceTensor, TensorSource, significant_dims};

/// What to make of a GGUF model.
#[derive(Debug, Clone, Default)]
pub struct QuantizeOptions<'a> {
    /// One output each.
    pub presets: Vec<&'static Preset>,
    /// Exceptions to the presets.
    pub overrides: Overrides,
    /// How much each column of each tensor matters.
    pub imatrix: Option<&'a Imatrix>,
    /// Blocks will be made by calibration on this text.
    pub calibration: Option<Calibration>,
    /// Quantize what is quantized already. Errors add up, so this is never done unasked.
    pub allow_requantize: bool,
}

/// Plans the quantization of a GGUF model.
///
/// Metadata is carried over byte for byte, but for the file type, the quantization version and the keys of a split set. A tensor
/// that has its format already, or that is never quantized, is copied byte for byte.
///
/// # Errors
/// `Malformed` for a model without weights, with impossible hyperparameters or with tensors of other shapes than these give, and for an
/// importance matrix of another model, `Usage`
/// for tensors that are quantized already and for options that fit no tensor, `Unsupported` for formats that cannot be written yet.
pub fn quantize(model: &gguf::Model, options: &QuantizeOptions<'_>) -> Result<Plan> {
    model.check_has_weights()?;
    arch::check_shapes(model)?;
    let path = model.files().first().map_or(Path::new(""), |file| file.path());
    let drafts = model.tensors().iter().enumerate().map(|(tensor, source)| draft(tensor, source)).collect();
    let prepared = Model::new(path, model.to_metadata(), drafts)?.with_imatrix(options.imatrix);
    let prepared = prepared.with_calibration(options.calibration.as_ref());
    let mut plan = prepared.plan(&options.presets, &options.overrides, |draft, choice| match options.allow_requantize {
        true => Ok(()),
        false => refuse_requantization(draft, choice),
    })?;
    plan.warnings.splice(0..0, model.note().map(str::to_owned));
    let architecture = model.architecture()?;
    if !arch::is_known(architecture) {
        let shown: String = architecture.chars().take(64).collect();
        plan.warnings.insert(
            0,
            format!(
                "llama.cpp knows no architecture {shown:?}: types were chosen by the names of tensors alone; \
                 make sure that what is going to read the file can"
            ),
        );
    }
    for output in &plan.outputs {
        let n_requantized = output.tensors.iter().filter(|tensor| is_requantized(model, tensor)).count();
        if n_requantized > 0 {
            let name = &output.file_type;
            plan.warnings.push(format!("{name}: {n_requantized} tensors were quantized before and keep the errors of that"));
        }
    }
    Ok(plan)
}

fn draft(tensor: usize, source: &SourceTensor) -> Draft {
    Draft {
        name: source.name.clone(),
        // As llama-quantize writes it: ggml's tensors do not know of dimensions of 1 at the end.
        shape: significant_dims(&source.shape).to_vec(),
        stored: source.format,
        kept: source.format,
        origin: Origin::copy(tensor, &source.shape),
        source: Source::Weights,
    }
}

/// True for formats of several weights per block.
fn is_quantized(format: Format) -> bool {
    format.block_len() > 1
}

fn is_requantized(model: &gguf::Model, tensor: &super::PlannedTensor) -> bool {
    tensor.origin.tensors().any(|source| {
        let stored = model.tensors()[source].format;
        is_quantized(stored) && stored != tensor.format
    })
}

fn refuse_requantization(draft: &Draft, choice: &Choice) -> Result<()> {
    let Draft { name, stored, .. } = draft;
    if !is_quantized(*stored) || *stored == choice.format {
        return Ok(());
    }
    Err(Error::usage(format!(
        "{name} is quantized to {stored} already, and {} would keep the errors of that; \
         start from F32, F16 or BF16, or allow it with --allow-requantize",
        choice.format
    )))
}
