//! The sums behind every figure, and the loop that makes them.

use crate::simd::{Level, Simd, Task};

/// Sums over pairs of weights, `w` of the base and `q` of the other file.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sums {
    /// Sum of `w^2`.
    pub ww: f64,
    /// Sum of `q^2`.
    pub qq: f64,
    /// Sum of `w q`.
    pub wq: f64,
    /// Sum of `(w - q)^2`.
    pub ee: f64,
    /// The largest `|w - q|`, never weighted.
    pub max_error: f64,
}

impl Sums {
    /// Adds those of other weights.
    pub fn add(&mut self, other: &Sums) {
        self.ww += other.ww;
        self.qq += other.qq;
        self.wq += other.wq;
        self.ee += other.ee;
        self.max_error = self.max_error.max(other.max_error);
    }

    /// `|w - q|^2 / |w|^2`: 0 where nothing differs, infinite where only `w` is zero.
    pub fn relative_mse(&self) -> f64 {
        if self.ee == 0.0 { 0.0 } else { self.ee / self.ww }
    }

    /// Signal to quantization noise ratio in dB: infinite where nothing differs.
    pub fn sqnr_db(&self) -> f64 {
        -10.0 * self.relative_mse().log10()
    }

    /// Cosine of the angle between `w` and `q`: 1 where nothing differs, NaN where only one of them is zero.
    pub fn cosine(&self) -> f64 {
        if self.ee == 0.0 { 1.0 } else { (self.wq / (self.ww.sqrt() * self.qq.sqrt())).clamp(-1.0, 1.0) }
    }

    /// `<w, w> / <w, q>`: 1 where nothing differs, not finite where `w` and `q` have nothing in common.
    pub fn alpha(&self) -> f64 {
        if self.ee == 0.0 { 1.0 } else { self.ww / self.wq }
    }
}

/// The sums over two equally long runs of weights, each product multiplied by `importance` where there is some: `[len]`.
///
/// # Panics
/// When lengths differ.
pub(super) fn sums(level: Level, w: &[f32], q: &[f32], importance: Option<&[f32]>) -> Sums {
    assert_eq!(w.len(), q.len());
    match importance {
        None => level.run(Plain { w, q }),
        Some(importance) => {
            assert_eq!(w.len(), importance.len());
            level.run(Weighted { w, q, importance })
        }
    }
}

struct Plain<'a> {
    w: &'a [f32],
    q: &'a [f32],
}

struct Weighted<'a> {
    w: &'a [f32],
    q: &'a [f32],
    importance: &'a [f32],
}

/// Partial sums: element `i` of a run belongs to lane `i % LANES`, at every CPU level.
const LANES: usize = 8;

#[derive(Default)]
struct Partial {
    ww: [f64; LANES],
    qq: [f64; LANES],
    wq: [f64; LANES],
    ee: [f64; LANES],
    max: [f64; LANES],
}

impl Partial {
    #[inline(always)]
    fn add(&mut self, lane: usize, w: f32, q: f32, importance: f64) {
        let (w, q) = (f64::from(w), f64::from(q));
        let e = w - q;
        self.ww[lane] += w * w * importance;
        self.qq[lane] += q * q * importance;
        self.wq[lane] += w * q * importance;
        self.ee[lane] += e * e * importance;
        let size = e.abs();
        self.max[lane] = if size > self.max[lane] { size } else { self.max[lane] };
    }

    fn total(&self) -> Sums {
        let sum = |lanes: &[f64; LANES]| lanes.iter().fold(0.0, |sum, lane| sum + lane);
        let max_error = self.max.iter().copied().fold(0.0, f64::max);
        Sums { ww: sum(&self.ww), qq: sum(&self.qq), wq: sum(&self.wq), ee: sum(&self.ee), max_error }
    }
}

impl Task for Plain<'_> {
    type Output = Sums;

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) -> Sums {
        let mut partial = Partial::default();
        let ((w_chunks, w_rest), (q_chunks, q_rest)) = (self.w.as_chunks::<LANES>(), self.q.as_chunks::<LANES>());
        for (w, q) in w_chunks.iter().zip(q_chunks) {
            for lane in 0..LANES {
                partial.add(lane, w[lane], q[lane], 1.0);
            }
        }
        for (lane, (w, q)) in w_rest.iter().zip(q_rest).enumerate() {
            partial.add(lane, *w, *q, 1.0);
        }
        partial.total()
    }
}

impl Task for Weighted<'_> {
    type Output = Sums;

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) -> Sums {
        let mut partial = Partial::default();
        let ((w_chunks, w_rest), (q_chunks, q_rest)) = (self.w.as_chunks::<LANES>(), self.q.as_chunks::<LANES>());
        let (c_chunks, c_rest) = self.importance.as_chunks::<LANES>();
        for ((w, q), c) in w_chunks.iter().zip(q_chunks).zip(c_chunks) {
            for lane in 0..LANES {
                partial.add(lane, w[lane], q[lane], f64::from(c[lane]));
            }
        }
        for (lane, ((w, q), c)) in w_rest.iter().zip(q_rest).zip(c_rest).enumerate() {
            partial.add(lane, *w, *q, f64::from(*c));
        }
        partial.total()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of many magnitudes from a formula.
    fn run(len: usize, seed: u64) -> Vec<f32> {
        let number = |i: u64| {
            let bits = (i + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
            ((bits % 2003) as f32 - 1001.0) * 2f32.powi((bits % 7) as i32 - 3)
        };
        (0..len as u64).map(number).collect()
    }

    #[test]
    fn every_level_has_the_same_sums_and_they_are_right() {
        for len in [0, 1, 7, 8, 9, 255, 256, 1000] {
            let (w, q) = (run(len, 1), run(len, 2));
            let c: Vec<f32> = run(len, 3).iter().map(|c| c.abs()).collect();
            for importance in [None, Some(c.as_slice())] {
                let expected = sums(Level::available()[0], &w, &q, importance);
                for level in Level::available() {
                    assert_eq!(sums(level, &w, &q, importance), expected, "{level:?}");
                }
                let weight = |i: usize| importance.map_or(1.0, |c| f64::from(c[i]));
                let sum = |x: &[f32], y: &[f32]| (0..len).map(|i| f64::from(x[i]) * f64::from(y[i]) * weight(i)).sum::<f64>();
                // Multiples of 1/8 below 2^14: the products are exact in f64, and so is every sum of so few of them.
                assert_eq!((expected.ww, expected.qq, expected.wq), (sum(&w, &w), sum(&q, &q), sum(&w, &q)), "{len}");
                assert_eq!(expected.ee, expected.ww - 2.0 * expected.wq + expected.qq);
                let max = w.iter().zip(&q).map(|(w, q)| f64::from(*w) - f64::from(*q)).map(f64::abs).fold(0.0, f64::max);
                assert_eq!(expected.max_error, max);
            }
        }
    }

    #[test]
    fn equal_weights_have_no_error_and_zeros_no_angle() {
        let w = run(1001, 5);
        let same = sums(Level::detect(), &w, &w, None);
        assert_eq!((same.relative_mse(), same.sqnr_db(), same.cosine(), same.alpha()), (0.0, f64::INFINITY, 1.0, 1.0));
        let zeros = sums(Level::detect(), &[0.0; 9], &[0.0; 9], None);
        assert_eq!((zeros.relative_mse(), zeros.sqnr_db(), zeros.cosine(), zeros.alpha()), (0.0, f64::INFINITY, 1.0, 1.0));
        let lost = sums(Level::detect(), &[1.0; 9], &[0.0; 9], None);
        assert_eq!((lost.relative_mse(), lost.sqnr_db(), lost.alpha()), (1.0, 0.0, f64::INFINITY));
        assert!(lost.cosine().is_nan());
        let made_up = sums(Level::detect(), &[0.0; 9], &[1.0; 9], None);
        assert_eq!((made_up.relative_mse(), made_up.sqnr_db()), (f64::INFINITY, f64::NEG_INFINITY));
        let turned = sums(Level::detect(), &[1.0, 0.0], &[0.0, 1.0], None);
        assert_eq!((turned.relative_mse(), turned.cosine()), (2.0, 0.0));
    }

    #[test]
    fn a_factor_shows_in_alpha_alone() {
        let w = run(512, 9);
        let q: Vec<f32> = w.iter().map(|w| w * 0.5).collect();
        let half = sums(Level::detect(), &w, &q, None);
        assert_eq!((half.alpha(), half.relative_mse()), (2.0, 0.25));
        assert!((half.cosine() - 1.0).abs() < 1e-15);
    }
}
