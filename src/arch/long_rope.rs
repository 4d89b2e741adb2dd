//! Phi-3's two sets of rotary factors, which GGUF stores as tensors.

use super::config_numbers::InConfig;
use super::sizes::Hparams;
use crate::error::Result;
use crate::hf::Scaling;
use crate::names::{ROPE_FACTORS_LONG, ROPE_FACTORS_SHORT};

/// Both, by their names; none unless the model has them.
///
/// # Errors
/// `ConfigField` where they are not one for each pair of dimensions.
pub(super) fn long_factors(numbers: &InConfig<'_>, hparams: &Hparams) -> Result<Vec<(&'static str, Vec<f32>)>> {
    let Scaling::Long { long_factors, short_factors, .. } = &numbers.rope.scaling else { return Ok(Vec::new()) };
    let n_pairs = hparams.rope().map_or(0, |rope| rope.n_rot / 2);
    for (field, factors) in [("long_factor", long_factors), ("short_factor", short_factors)] {
        if factors.len() != n_pairs {
            let detail = format!("{} factors for {n_pairs} pairs of dimensions", factors.len());
            return Err(numbers.config.fault(&format!("rope_scaling.{field}"), detail));
        }
    }
    let floats = |factors: &[f64]| factors.iter().map(|factor| *factor as f32).collect();
    Ok(vec![(ROPE_FACTORS_LONG, floats(long_factors)), (ROPE_FACTORS_SHORT, floats(short_factors))])
}
