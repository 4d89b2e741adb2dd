//! Rotary positions: the angles by which pairs of a head are turned.
//!
//! Pair `i` of the token at position `p` turns by `p * base^(-2i / n_rot)`, divided by the pair's own factor where the file has such
//! factors, and stretched as [`RopeScaling`] says. Angles are computed in f64 and only their cosines and sines rounded to f32: at
//! position 100 000, an angle rounded to f32 is off by 0.004. The functions are those of `libm`, the same on every machine.

use crate::arch::{Rope, RopeScaling};
use crate::error::Result;
use crate::hf::Rounding;
use crate::memory::zero_rows;

/// The table for positions below `n_positions`: `[n_positions, n_rot]`, cosines of all pairs first, then their sines. `factors`
/// are the file's divisors for each pair.
///
/// # Errors
/// `Io` where there is no memory for it.
///
/// # Panics
/// When there are factors, but not one for each pair.
pub(super) fn table(rope: &Rope, n_positions: usize, factors: Option<&[f32]>) -> Result<Vec<f32>> {
    let frequencies = frequencies(rope, factors);
    let length = length(rope);
    let mut table = zero_rows(n_positions, rope.n_rot)?;
    for (position, row) in table.chunks_exact_mut(rope.n_rot).enumerate() {
        let (cosines, sines) = row.split_at_mut(rope.n_rot / 2);
        for ((cos, sin), frequency) in cosines.iter_mut().zip(sines).zip(&frequencies) {
            let angle = position as f64 * frequency;
            *cos = (libm::cos(angle) * length) as f32;
            *sin = (libm::sin(angle) * length) as f32;
        }
    }
    Ok(table)
}

/// Radians per position, for each pair.
fn frequencies(rope: &Rope, factors: Option<&[f32]>) -> Vec<f64> {
    let n_pairs = rope.n_rot / 2;
    assert!(factors.is_none_or(|factors| factors.len() == n_pairs), "one factor for each of {n_pairs} pairs");
    let natural = |pair: usize| {
        let frequency = libm::pow(rope.freq_base, -2.0 * pair as f64 / rope.n_rot as f64);
        frequency / factors.map_or(1.0, |factors| f64::from(factors[pair]))
    };
    (0..n_pairs).map(|pair| natural(pair) * stretch(rope, pair)).collect()
}

/// What the frequency of a pair is multiplied with.
fn stretch(rope: &Rope, pair: usize) -> f64 {
    match rope.scaling {
        RopeScaling::None | RopeScaling::Long { .. } => 1.0,
        RopeScaling::Linear { factor } => 1.0 / factor,
        RopeScaling::Yarn { factor, n_ctx_orig, beta_fast, beta_slow, rounding, .. } => {
            // The pair that turns `turns` times within the original context.
            let pair_of = |turns: f64| {
                let wave = n_ctx_orig as f64 / (turns * std::f64::consts::TAU);
                rope.n_rot as f64 * libm::log(wave) / (2.0 * libm::log(rope.freq_base))
            };
            let (first, last) = match rounding {
                Rounding::Outwards => (libm::floor(pair_of(beta_fast)), libm::ceil(pair_of(beta_slow))),
                Rounding::None => (pair_of(beta_fast), pair_of(beta_slow)),
            };
            let (first, last) = (first.max(0.0), last.min(rope.n_rot as f64 - 1.0));
            let kept = 1.0 - ((pair as f64 - first) / (last - first).max(0.001)).clamp(0.0, 1.0);
            kept + (1.0 - kept) / factor
        }
    }
}

/// Factor on the length of rotated heads.
fn length(rope: &Rope) -> f64 {
    match rope.scaling {
        RopeScaling::None | RopeScaling::Linear { .. } => 1.0,
        RopeScaling::Yarn { factor, attn_factor, .. } => attn_factor * (1.0 + 0.1 * libm::log(factor.max(1.0))),
        RopeScaling::Long { attn_factor, .. } => attn_factor,
    }
}
