//! Softmaxes over the vocabulary, a tile of it at a time, so that the logits of all tokens never exist at once.
//!
//! Per token a running maximum `m`, the sum of `exp(x - m)`, and for a comparison the sum of `exp(a - m_a) * ((a - m_a) - (b - m_b))`, all
//! in f64:
//!
//! ```text
//! nll = m + ln(sum) - x[target]        kld = sum(p_a * ((a - m_a) - (b - m_b))) - (ln(sum_a) - ln(sum_b))
//! ```
//!
//! In f64, since a divergence of 1e-6 is a difference of numbers near 1, and an f32 exponential errs by 6e-8. Each side less its own
//! maximum, so that logits of 1e37 do not swallow their differences. Equal logits give exactly 0.

use rayon::prelude::*;

use super::{Cpu, Operand, Rows, Weight, exp, norm};
use crate::error::Result;
use crate::matmul::Accumulate;
use crate::model::backend::{Divergence, Output, Score};
use crate::simd::{Level, Simd, Task};

/// Tokens of the vocabulary in a tile: 4096 rows of activations take 32 MiB of logits.
const TILE: usize = 2048;

/// A softmax over what was seen of the vocabulary so far.
#[derive(Clone, Copy)]
struct Softmax {
    max: f32,
    argmax: u32,
    /// Of `exp(x - max)`.
    sum: f64,
    /// The logit of the token that came.
    target: f32,
}

impl Softmax {
    const NONE: Softmax = Softmax { max: f32::NEG_INFINITY, argmax: 0, sum: 0.0, target: f32::NAN };

    /// Raises the maximum to that of the logits from token `first` on; returns the factor on sums so far.
    fn raise(&mut self, logits: &[f32], first: usize) -> f64 {
        let before = self.max;
        for (token, x) in (first..).zip(logits) {
            if *x > self.max {
                (self.max, self.argmax) = (*x, token as u32);
            }
        }
        if self.max == before { 1.0 } else { libm::exp(f64::from(before) - f64::from(self.max)) }
    }

    fn see_target(&mut self, target: u32, logits: &[f32], first: usize) {
        if let Some(x) = (target as usize).checked_sub(first).and_then(|at| logits.get(at)) {
            self.target = *x;
        }
    }

    fn log_sum(&self) -> f64 {
        f64::from(self.max) + libm::log(self.sum)
    }

    fn score(&self) -> Score {
        Score { nll: self.log_sum() - f64::from(self.target), argmax: self.argmax }
    }
}

/// Two softmaxes, and how they differ.
#[derive(Clone, Copy)]
struct Pair {
    a: Softmax,
    b: Softmax,
    /// The sum of `exp(a - max_a) * ((a - max_a) - (b - max_b))`.
    weighted: f64,
}

impl Pair {
    fn divergence(&self) -> Divergence {
        let kld = self.weighted / self.a.sum - (libm::log(self.a.sum) - libm::log(self.b.sum));
        Divergence { a: self.a.score(), b: self.b.score(), kld }
    }
}

impl Cpu {
    pub(super) fn scores(&self, x: &Operand, output: Output<'_, Weight>, targets: &[u32]) -> Result<Vec<Score>> {
        assert_eq!(x.rows.n_rows(), targets.len(), "a target for every row");
        let mut states = vec![Softmax::NONE; targets.len()];
        self.each_tile(&[(x, output)], |first, [logits]| {
            let rows = states.par_iter_mut().zip(targets).enumerate();
            rows.for_each(|(row, (state, target))| {
                let logits = logits.row(row);
                state.see_target(*target, logits, first);
                state.sum *= state.raise(logits, first);
                state.sum += self.level().run(SumExp { x: logits, max: state.max });
            });
        })?;
        Ok(states.iter().map(Softmax::score).collect())
    }

    pub(super) fn divergences(
        &self,
        a: (&Operand, Output<'_, Weight>),
        b: (&Operand, Output<'_, Weight>),
        targets: &[u32],
    ) -> Result<Vec<Divergence>> {
        assert_eq!((a.0.rows.n_rows(), b.0.rows.n_rows()), (targets.len(), targets.len()), "a target for every row");
        assert_eq!(a.1.weight.n_rows, b.1.weight.n_rows, "one vocabulary");
        let mut states = vec![Pair { a: Softmax::NONE, b: Softmax::NONE, weighted: 0.0 }; targets.len()];
        self.each_tile(&[a, b], |first, [a, b]| {
            let rows = states.par_iter_mut().zip(targets).enumerate();
            rows.for_each(|(row, (state, target))| state.add(self.level(), [a.row(row), b.row(row)], first, *target));
        })?;
        Ok(states.iter().map(Pair::divergence).collect())
    }

    /// What an output does to products.
    pub(super) fn scale_and_cap(&self, logits: &mut Rows, output: Output<'_, Weight>) {
        if !output.is_plain() {
            self.each_row(logits, |_, row| exp::scale_and_cap(self.level(), row, output.scale, output.softcap));
        }
    }

    /// Calls `see` with the logits of every tile of the vocabulary, for all products at once.
    fn each_tile<const N: usize>(
        &self,
        products: &[(&Operand, Output<'_, Weight>); N],
        mut see: impl FnMut(usize, [&Rows; N]) + Send,
    ) -> Result<()> {
        let n_vocab = products[0].1.weight.n_rows;
        let mut rounded = Vec::with_capacity(N);
        for (x, output) in products {
            rounded.push(self.rounded(x, output.weight)?);
        }
        for first in (0..n_vocab).step_by(TILE) {
            let columns = first..n_vocab.min(first + TILE);
            let mut logits = Vec::with_capacity(N);
            for ((x, output), rounded) in products.iter().zip(&rounded) {
                let mut tile = self.new_rows(x.rows.n_rows(), columns.len())?;
                self.multiply(rounded.as_ref().unwrap_or(x), output.weight, columns.clone(), Accumulate::Store, &mut tile)?;
                self.scale_and_cap(&mut tile, *output);
                logits.push(tile);
            }
            let tiles = std::array::from_fn(|i| &logits[i]);
            self.pool.install(|| see(first, tiles));
        }
        Ok(())
    }
}

impl Pair {
    fn add(&mut self, level: Level, [a, b]: [&[f32]; 2], first: usize, target: u32) {
        self.a.see_target(target, a, first);
        self.b.see_target(target, b, first);
        let (max_a, max_b) = (self.a.max, self.b.max);
        let shrink = self.a.raise(a, first);
        self.b.sum *= self.b.raise(b, first);
        if self.a.sum > 0.0 {
            let raised = |before: f32, now: f32| f64::from(before) - f64::from(now);
            self.weighted += self.a.sum * (raised(max_a, self.a.max) - raised(max_b, self.b.max));
        }
        self.a.sum *= shrink;
        self.weighted *= shrink;
        let [sum_a, sum_b, weighted] = level.run(SumPair { a, b, max_a: self.a.max, max_b: self.b.max });
        self.a.sum += sum_a;
        self.b.sum += sum_b;
        self.weighted += weighted;
    }
}

/// The sum of `exp(x - max)`.
struct SumExp<'a> {
    x: &'a [f32],
    max: f32,
}

impl Task for SumExp<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) -> f64 {
        let mut sums = [0.0; 16];
        let (chunks, rest) = self.x.as_chunks::<16>();
        for chunk in chunks {
            for lane in 0..16 {
                sums[lane] += exp_below_0(f64::from(chunk[lane]) - f64::from(self.max));
            }
        }
        for (sum, x) in sums.iter_mut().zip(rest) {
            *sum += exp_below_0(f64::from(*x) - f64::from(self.max));
        }
        norm::fold(sums)
    }
}

/// The sums of `exp(a - max_a)`, of `exp(b - max_b)`, and of `exp(a - max_a) * ((a - max_a) - (b - max_b))`.
struct SumPair<'a> {
    a: &'a [f32],
    b: &'a [f32],
    max_a: f32,
    max_b: f32,
}

impl Task for SumPair<'_> {
    type Output = [f64; 3];

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) -> [f64; 3] {
        let (mut sums_a, mut sums_b, mut weighted) = ([0.0; 16], [0.0; 16], [0.0; 16]);
        let (max_a, max_b) = (f64::from(self.max_a), f64::from(self.max_b));
        let (chunks_a, rest_a) = self.a.as_chunks::<16>();
        let (chunks_b, rest_b) = self.b.as_chunks::<16>();
        for (a, b) in chunks_a.iter().zip(chunks_b) {
            for lane in 0..16 {
                let (a, b) = (f64::from(a[lane]), f64::from(b[lane]));
                let p = exp_below_0(a - max_a);
                sums_a[lane] += p;
                sums_b[lane] += exp_below_0(b - max_b);
                weighted[lane] += p * ((a - max_a) - (b - max_b));
            }
        }
        for (lane, (a, b)) in rest_a.iter().zip(rest_b).enumerate() {
            let (a, b) = (f64::from(*a), f64::from(*b));
            let p = exp_below_0(a - max_a);
            sums_a[lane] += p;
            sums_b[lane] += exp_below_0(b - max_b);
            weighted[lane] += p * ((a - max_a) - (b - max_b));
        }
        [norm::fold(sums_a), norm::fold(sums_b), norm::fold(weighted)]
    }
}

/// `exp(x)` for `x <= 0`, without a branch so that loops over it vectorise: within two units in the last place down to -708, and
/// 3e-308 below. The scheme is that of `exp.rs`, with the polynomial's coefficients 1 / n!.
#[inline(always)]
fn exp_below_0(x: f64) -> f64 {
    /// `1.5 * 2^52`.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    /// The upper 32 bits of `ln 2`, and the rest.
    const LN_2_HIGH: f64 = 0.693_147_180_369_123_8;
    const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    const COEFFICIENTS: [f64; 13] = [
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    // NaN passes.
    let x = if x < -708.0 { -708.0 } else { x };
    let rounded = x * std::f64::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let mut p = 0.0;
    for c in COEFFICIENTS {
        p = p * r + c;
    }
    // The low bits of `rounded` are n; those of `ROUND` above them are shifted out.
    p * f64::from_bits(rounded.to_bits().wrapping_add(1023) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::Engine;
    use crate::model::Activations;
    use crate::model::backend::Backend;
    use crate::quant::Format;

    const N_EMBD: usize = 8;

    /// By its definition, in f64.
    fn log_softmax(logits: &[f32]) -> Vec<f64> {
        let max = logits.iter().copied().map(f64::from).fold(f64::NEG_INFINITY, f64::max);
        let log_sum = max + libm::log(logits.iter().map(|x| libm::exp(f64::from(*x) - max)).sum());
        logits.iter().map(|x| f64::from(*x) - log_sum).collect()
    }

    /// Vocabularies that end in the middle of a vector or of a tile, their likeliest tokens and the largest differences last.
    #[test]
    fn scores_and_divergences_see_the_whole_vocabulary() {
        for n_vocab in [9, 16, 50, TILE, TILE + 1, TILE + 16 + 15, 2 * TILE - 7] {
            let wave = |i: usize, step: f64| libm::sin(i as f64 * step) as f32;
            let grow = |i: usize| if i / N_EMBD + 8 >= n_vocab { 6.0 } else { 1.0 };
            let weights: Vec<f32> = (0..n_vocab * N_EMBD).map(|i| wave(i, 0.37) * grow(i)).collect();
            let bytes = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
            let weight = Weight { format: Format::F32, n_rows: n_vocab, n_cols: N_EMBD, bytes };
            let output = Output { weight: &weight, scale: 1.0, softcap: None };
            let targets = [0, (n_vocab - 1) as u32, (n_vocab / 2) as u32];
            let x = |step| (0..targets.len() * N_EMBD).map(|i| wave(i + 1, step)).collect::<Vec<f32>>();
            let cpu = Cpu::new(Engine::detect(), 2, Activations::F32).unwrap();
            let [a, b] = [0.71, 1.13].map(|step| Operand::from(cpu.upload(&x(step), N_EMBD).unwrap()));
            let logits = [&a, &b].map(|x| cpu.logits(x, output).unwrap());
            let scores = cpu.score(&a, output, &targets).unwrap();
            let divergences = cpu.compare((&a, output), (&b, output), &targets).unwrap();
            for (row, target) in targets.iter().enumerate() {
                let [p, q] = [0, 1].map(|of| log_softmax(&logits[of][row * n_vocab..][..n_vocab]));
                let kld: f64 = p.iter().zip(&q).map(|(p, q)| libm::exp(*p) * (p - q)).sum();
                let found = &divergences[row];
                for (found, truth) in [
                    (scores[row].nll, -p[*target as usize]),
                    (found.a.nll, -p[*target as usize]),
                    (found.b.nll, -q[*target as usize]),
                    (found.kld, kld),
                ] {
                    assert!((found - truth).abs() < 1e-9, "{n_vocab} tokens, row {row}: {found}, {truth}");
                }
                assert!(kld > 0.1, "a divergence that can be missed: {kld}");
            }
        }
    }

    /// Logits of 1e37, of which f64 keeps 16 digits, and their differences far below.
    #[test]
    fn huge_logits_do_not_hide_a_divergence() {
        let n_vocab = TILE + 5;
        let cpu = Cpu::new(Engine::detect(), 1, Activations::F32).unwrap();
        // One column: the logits are its weights times x.
        let weights = |likeliest: usize| {
            (0..n_vocab).flat_map(|token| if token == likeliest { 1e37f32 } else { -1e37 }.to_le_bytes()).collect()
        };
        let weight = |likeliest| Weight { format: Format::F32, n_rows: n_vocab, n_cols: 1, bytes: weights(likeliest) };
        let (a, b) = (weight(3), weight(n_vocab - 1));
        let output = |weight| Output { weight, scale: 1.0, softcap: None };
        let x = Operand::from(cpu.upload(&[1.0], 1).unwrap());
        let compare = |a, b| cpu.compare((&x, output(a)), (&x, output(b)), &[0]).unwrap()[0];
        let found = compare(&a, &b);
        assert!((found.kld / 2e37 - 1.0).abs() < 1e-6 && found.a.argmax == 3, "{found:?}");
        assert_eq!(compare(&a, &a).kld, 0.0);
    }

    #[test]
    fn exp_below_0_is_exact_to_two_units() {
        let mut worst = 0.0f64;
        for i in 0..1_000_000 {
            let x = -708.0 * (f64::from(i) / 1e6).powi(3);
            worst = worst.max((exp_below_0(x) / libm::exp(x) - 1.0).abs());
        }
        assert!(worst < 2.0 * f64::EPSILON, "{worst:e}");
        assert_eq!(exp_below_0(0.0), 1.0);
        assert!(exp_below_0(f64::NEG_INFINITY) < 1e-307);
        assert!(exp_below_0(f64::NAN).is_nan());
    }
}
