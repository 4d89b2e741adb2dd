//! Rotary positions: the angles by which pairs of a head are turned.
//!
//! Pair `i` of the token at position `p` turns by `p * base^(-2i / n_rot)`, divided by the pair's own factor where the file has such
//! factors, and stretched as [`RopeScaling`] says. Angles are computed in f64 and only their cosines and sines rounded to f32: at
//! position 100 000, an angle rounded to f32 is off by 0.004. The functions are those of `libm`, the same on every machine.

use super::families::RopeLayout;

/// How positions are turned into angles.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Leading dimensions of each head that are rotated: even.
    pub n_rot: usize,
    /// Base of the frequencies.
    pub freq_base: f64,
    /// Which dimensions are a pair.
    pub layout: RopeLayout,
    /// How the context was stretched.
    pub scaling: RopeScaling,
}

/// How a context longer than the first training's is fitted in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all, or by factors that the file holds for each pair (Llama 3.1).
    None,
    /// Positions are divided by the factor.
    Linear {
        /// By how much the context was stretched.
        factor: f64,
    },
    /// Fast pairs are kept, slow ones divided, those between blended (<https://arxiv.org/abs/2309.00071>).
    Yarn {
        /// By how much the context was stretched.
        factor: f64,
        /// Context of the first training.
        n_ctx_orig: usize,
        /// Turns within that context from which on a pair is kept.
        beta_fast: f64,
        /// Turns up to which it is divided.
        beta_slow: f64,
        /// Factor on the length of rotated heads, beside YaRN's own.
        attn_factor: f64,
    },
    /// Two sets of factors, for contexts up to the first training's and for longer ones (Phi-3).
    Long {
        /// Context of the first training.
        n_ctx_orig: usize,
        /// Factor on the length of rotated heads.
        attn_factor: f64,
    },
}

impl Rope {
    /// The table for positions below `n_positions`: `[n_positions, n_rot]`, cosines of all pairs first, then their sines. `factors`
    /// are the file's divisors for each pair.
    ///
    /// # Panics
    /// When there are factors, but not one for each pair.
    pub fn table(&self, n_positions: usize, factors: Option<&[f32]>) -> Vec<f32> {
        let frequencies = self.frequencies(factors);
        let length = self.length();
        let mut table = vec![0.0; n_positions * self.n_rot];
        for (position, row) in table.chunks_exact_mut(self.n_rot).enumerate() {
            let (cosines, sines) = row.split_at_mut(self.n_rot / 2);
            for ((cos, sin), frequency) in cosines.iter_mut().zip(sines).zip(&frequencies) {
                let angle = position as f64 * frequency;
                *cos = (libm::cos(angle) * length) as f32;
                *sin = (libm::sin(angle) * length) as f32;
            }
        }
        table
    }

    /// Radians per position, for each pair.
    fn frequencies(&self, factors: Option<&[f32]>) -> Vec<f64> {
        let n_pairs = self.n_rot / 2;
        assert!(factors.is_none_or(|factors| factors.len() == n_pairs), "one factor for each of {n_pairs} pairs");
        let natural = |pair: usize| {
            let frequency = libm::pow(self.freq_base, -2.0 * pair as f64 / self.n_rot as f64);
            frequency / factors.map_or(1.0, |factors| f64::from(factors[pair]))
        };
        (0..n_pairs).map(|pair| natural(pair) * self.stretch(pair)).collect()
    }

    /// What the frequency of a pair is multiplied with.
    fn stretch(&self, pair: usize) -> f64 {
        match self.scaling {
            RopeScaling::None | RopeScaling::Long { .. } => 1.0,
            RopeScaling::Linear { factor } => 1.0 / factor,
            RopeScaling::Yarn { factor, n_ctx_orig, beta_fast, beta_slow, .. } => {
                // The pair that turns `turns` times within the original context.
                let pair_of = |turns: f64| {
                    let wave = n_ctx_orig as f64 / (turns * std::f64::consts::TAU);
                    self.n_rot as f64 * libm::log(wave) / (2.0 * libm::log(self.freq_base))
                };
                let first = libm::floor(pair_of(beta_fast)).max(0.0);
                let last = libm::ceil(pair_of(beta_slow)).min(self.n_rot as f64 - 1.0);
                let kept = 1.0 - ((pair as f64 - first) / (last - first).max(0.001)).clamp(0.0, 1.0);
                kept + (1.0 - kept) / factor
            }
        }
    }

    /// Factor on the length of rotated heads.
    fn length(&self) -> f64 {
        match self.scaling {
            RopeScaling::None | RopeScaling::Linear { .. } => 1.0,
            RopeScaling::Yarn { factor, attn_factor, .. } => attn_factor * (1.0 + 0.1 * libm::log(factor.max(1.0))),
            RopeScaling::Long { attn_factor, .. } => attn_factor,
        }
    }
}
