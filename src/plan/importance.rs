//! What an importance matrix says about the tensors of a plan: fetched once per tensor, before any work, so that a matrix of another
//! model is refused here.

use std::sync::Arc;

use super::choose::Choice;
use super::draft::{Draft, add_warning};
use super::{Calibration, CalibrationText};
use crate::error::{Error, Result};
use crate::gguf::{Array, Metadata, Value, keys};
use crate::imatrix::{Coverage, Imatrix, Importance, Wanted};
use crate::quant::Format;

/// The importances that the outputs of one plan share.
pub(super) struct Importances {
    /// Per draft.
    known: Vec<Option<Arc<Importance>>>,
    pub coverage: Option<Coverage>,
}

impl Importances {
    /// `chosen`: per output, per draft.
    ///
    /// # Errors
    /// `Malformed` for an entry that does not fit its tensor, or whose values no quantizer can weigh with; `Unsupported` where a quantizer could not make use of it.
    pub fn of(
        drafts: &[Draft],
        chosen: &[Vec<Choice>],
        imatrix: Option<&Imatrix>,
        warnings: &mut Vec<String>,
    ) -> Result<Importances> {
        let mut known = vec![None; drafts.len()];
        let Some(imatrix) = imatrix else { return Ok(Importances { known, coverage: None }) };
        let (mut all_wanted, mut missing) = (Vec::new(), Vec::new());
        for (index, draft) in drafts.iter().enumerate() {
            let quantized = |choice: &&Choice| is_quantized(draft, choice);
            let choices: Vec<&Choice> = chosen.iter().map(|choices| &choices[index]).filter(quantized).collect();
            if choices.is_empty() {
                continue;
            }
            let wanted = wanted(draft);
            all_wanted.push(wanted);
            let importance = imatrix.importance(wanted)?;
            if choices.iter().any(|choice| choice.format.uses_importance()) {
                importance.iter().try_for_each(|importance| importance.check_bound(&draft.name))?;
            }
            for choice in choices {
                match &importance {
                    Some(_) => check_weighted(draft, choice)?,
                    None if choice.needs_imatrix => missing.push(without_entry(draft, choice)),
                    None => {}
                }
            }
            known[index] = importance.map(Arc::new);
        }
        let coverage = imatrix.coverage(&all_wanted)?;
        // Where there is an entry for none, one sentence says all of it.
        missing.retain(|_| !coverage.matches_nothing());
        missing.into_iter().for_each(|warning| add_warning(warnings, warning));
        coverage.warnings().into_iter().for_each(|warning| add_warning(warnings, warning));
        Ok(Importances { known, coverage: Some(coverage) })
    }

    /// What the quantizer of a tensor gets.
    pub fn for_choice(&self, index: usize, draft: &Draft, choice: &Choice) -> Option<Arc<Importance>> {
        if !is_quantized(draft, choice) || !choice.format.uses_importance() {
            return None;
        }
        let Wanted { n_experts, n_columns, .. } = wanted(draft);
        self.known[index].clone().or_else(|| choice.needs_imatrix.then(|| Arc::new(Importance::flat(n_experts, n_columns))))
    }
}

fn is_quantized(draft: &Draft, choice: &Choice) -> bool {
    choice.format != draft.stored && choice.format.block_len() > 1
}

/// Every leading dimension but the rows' stacks matrices.
fn wanted(draft: &Draft) -> Wanted<'_> {
    let len = |dim: u64| usize::try_from(dim).unwrap_or(usize::MAX);
    let n_columns = draft.shape.last().copied().map_or(1, len);
    let n_experts = draft.shape.iter().rev().skip(2).fold(1, |n: usize, &dim| n.saturating_mul(len(dim)));
    Wanted { name: &draft.name, n_experts, n_columns }
}

fn without_entry(draft: &Draft, choice: &Choice) -> String {
    format!(
        "{}: the importance matrix has no entry for it, which {} needs; all its columns count the same",
        draft.name, choice.format
    )
}

/// Refuses a format that ggml would weight and we cannot weight yet: the file would silently be worse than expected.
fn check_weighted(draft: &Draft, choice: &Choice) -> Result<()> {
    use Format::*;
    let format = choice.format;
    if format.uses_importance() || matches!(format, Q8_0 | Q1_0 | Q2_0 | TQ1_0 | TQ2_0 | MXFP4 | NVFP4) {
        return Ok(());
    }
    let what = format!("{}: {format} cannot make use of an importance matrix yet", draft.name);
    Err(Error::unsupported(what, "leave --imatrix away, or choose another type"))
}

/// Bytes of a string that llama.cpp can read back: its buffer of 128 holds a NUL too.
const STRING_BYTES_MAX: usize = 127;

/// What `calibrate` does.
const CALIBRATION_METHOD: &str = "error feedback and descent by second moments, chosen by held-out text";

/// Adds the keys by which a file says how it was calibrated.
pub(super) fn describe_calibration(calibration: &Calibration, metadata: &mut Metadata) {
    metadata.retain(|(key, _)| !key.starts_with("ggforge.calibration."));
    let Calibration { texts, chunk_count, chunk_size, predicted_kld } = calibration;
    let strings = |of: fn(&CalibrationText) -> &str| {
        Value::Array(Array::String(texts.iter().map(|text| of(text).as_bytes().to_vec()).collect()))
    };
    let n_tokens = Value::Array(Array::U32(texts.iter().map(|text| text.n_tokens).collect()));
    metadata.extend([
        (keys::CALIBRATION_METHOD.to_owned(), Value::from(CALIBRATION_METHOD)),
        (keys::CALIBRATION_TEXTS.to_owned(), strings(|text| &text.name)),
        (keys::CALIBRATION_SHA256.to_owned(), strings(|text| &text.sha256)),
        (keys::CALIBRATION_N_TOKENS.to_owned(), n_tokens),
        (keys::CALIBRATION_CHUNK_COUNT.to_owned(), Value::U32(*chunk_count)),
        (keys::CALIBRATION_CHUNK_SIZE.to_owned(), Value::U32(*chunk_size)),
    ]);
    metadata.extend(predicted_kld.map(|kld| (keys::CALIBRATION_PREDICTED_KLD.to_owned(), Value::F32(kld))));
}

/// Adds the keys by which llama-quantize records the matrix. File names stand without their folders: those are private.
pub(super) fn describe(imatrix: &Imatrix, metadata: &mut Metadata) {
    let file_name = |path: &str| {
        let name = path.rsplit(['/', '\\']).next().unwrap_or_default();
        Value::from(&name[..name.floor_char_boundary(STRING_BYTES_MAX)])
    };
    let count = |n: usize| Value::U32(u32::try_from(n).unwrap_or(u32::MAX));
    let mut entries = vec![(keys::QUANTIZE_IMATRIX_FILE, file_name(&imatrix.path.to_string_lossy()))];
    if let Some(dataset) = imatrix.datasets.first() {
        entries.push((keys::QUANTIZE_IMATRIX_DATASET, file_name(dataset)));
    }
    entries.push((keys::QUANTIZE_IMATRIX_ENTRIES_COUNT, count(imatrix.entries.len())));
    if imatrix.chunk_count > 0 {
        entries.push((keys::QUANTIZE_IMATRIX_CHUNKS_COUNT, Value::U32(imatrix.chunk_count)));
    }
    // Of an earlier quantization.
    metadata.retain(|(key, _)| !key.starts_with("quantize.imatrix."));
    metadata.extend(entries.into_iter().map(|(key, value)| (key.to_owned(), value)));
}
