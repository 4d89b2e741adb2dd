//! Choosing the next token.

use crate::error::{Error, Result};

/// How tokens are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 always takes the likeliest token.
    pub temperature: f32,
    /// Only this many of the likeliest tokens are considered; 0 for all.
    pub top_k: usize,
    /// Only the likeliest tokens that together have this probability are considered; 1 for all.
    pub top_p: f32,
    /// Where the random numbers start.
    pub seed: u64,
}

impl Default for Sampling {
    /// The likeliest token.
    fn default() -> Sampling {
        Sampling { temperature: 0.0, top_k: 40, top_p: 0.95, seed: 0 }
    }
}

/// Chooses tokens; the same seed chooses the same.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    state: u64,
}

impl Sampler {
    /// A sampler at the start of its random numbers.
    ///
    /// # Errors
    /// `Usage` for a temperature below 0, a probability outside 0 to 1, or either not a number.
    pub fn new(sampling: Sampling) -> Result<Sampler> {
        if !(sampling.temperature >= 0.0 && sampling.temperature.is_finite()) {
            return Err(Error::usage(format!("a temperature of {}; 0 or more is needed", sampling.temperature)));
        }
        if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
            return Err(Error::usage(format!("a top-p of {}; more than 0, and at most 1, is needed", sampling.top_p)));
        }
        Ok(Sampler { sampling, state: sampling.seed })
    }

    /// The next token; `None` where a logit is not a number, since the model holds weights that are not.
    pub fn choose(&mut self, logits: &[f32]) -> Option<u32> {
        if logits.iter().any(|x| x.is_nan()) {
            return None;
        }
        if self.sampling.temperature == 0.0 {
            return argmax(logits);
        }
        let candidates = self.candidates(logits);
        let total: f64 = candidates.iter().map(|(_, p)| p).sum();
        let mut left = self.uniform() * total;
        for (token, p) in &candidates {
            left -= p;
            if left < 0.0 {
                return Some(*token);
            }
        }
        candidates.last().map(|(token, _)| *token)
    }

    /// Tokens to choose from and their shares, likeliest first.
    fn candidates(&self, logits: &[f32]) -> Vec<(u32, f64)> {
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let likelier = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        let n = if self.sampling.top_k == 0 { order.len() } else { self.sampling.top_k.min(order.len()) };
        if n < order.len() {
            order.select_nth_unstable_by(n - 1, likelier);
            order.truncate(n);
        }
        order.sort_unstable_by(likelier);
        let max = f64::from(order.first().map_or(0.0, |&token| logits[token as usize]));
        let share = |token: u32| libm::exp((f64::from(logits[token as usize]) - max) / f64::from(self.sampling.temperature));
        let mut candidates: Vec<(u32, f64)> = order.into_iter().map(|token| (token, share(token))).collect();
        let wanted = candidates.iter().map(|(_, p)| p).sum::<f64>() * f64::from(self.sampling.top_p);
        let mut covered = 0.0;
        let kept = candidates.iter().position(|(_, p)| {
            covered += p;
            covered >= wanted
        });
        candidates.truncate(kept.map_or(candidates.len(), |last| last + 1));
        candidates
    }

    /// From 0 up to, but not, 1: SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The index of the largest; of equals, the first.
fn argmax(logits: &[f32]) -> Option<u32> {
    let mut best: Option<(u32, f32)> = None;
    for (token, &x) in (0..).zip(logits) {
        if best.is_none_or(|(_, max)| x > max) {
            best = Some((token, x));
        }
    }
    best.map(|(token, _)| token)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [0.0, 2.0, 1.0, 2.0, f32::NEG_INFINITY];

    fn counts(sampling: Sampling) -> [usize; 5] {
        let mut sampler = Sampler::new(sampling).unwrap();
        let mut counts = [0; 5];
        for _ in 0..20_000 {
            counts[sampler.choose(&LOGITS).unwrap() as usize] += 1;
        }
        counts
    }

    #[test]
    fn the_likeliest_token_is_the_first_of_equals() {
        assert_eq!(Sampler::new(Sampling::default()).unwrap().choose(&LOGITS), Some(1));
        assert_eq!(Sampler::new(Sampling::default()).unwrap().choose(&[1.0, f32::NAN]), None);
    }

    #[test]
    fn tokens_come_as_often_as_their_probability_says() {
        let found = counts(Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 7 });
        let total: f64 = LOGITS.iter().map(|x| f64::from(*x).exp()).sum();
        for (x, n) in LOGITS.iter().zip(found) {
            let p = f64::from(*x).exp() / total;
            assert!((n as f64 / 20_000.0 - p).abs() < 4.0 * (p * (1.0 - p) / 20_000.0).sqrt() + 1e-9, "{p}: {n}");
        }
    }

    #[test]
    fn top_k_and_top_p_leave_the_others_out() {
        let sampling = Sampling { temperature: 1.0, top_k: 2, top_p: 1.0, seed: 1 };
        let [_, first, _, second, _] = counts(sampling);
        assert_eq!(first + second, 20_000);
        // The two likeliest have 0.79 of the probability.
        let [zero, _, two, _, _] = counts(Sampling { top_k: 0, top_p: 0.7, ..sampling });
        assert_eq!((zero, two), (0, 0));
        assert_eq!(counts(Sampling { top_k: 0, top_p: 0.01, ..sampling })[1], 20_000);
    }

    #[test]
    fn impossible_settings_are_refused() {
        for (temperature, top_p) in [(-1.0, 1.0), (f32::NAN, 1.0), (1.0, 0.0), (1.0, 1.5), (1.0, f32::NAN)] {
            assert!(Sampler::new(Sampling { temperature, top_p, ..Sampling::default() }).is_err());
        }
    }
}
