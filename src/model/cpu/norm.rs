//! Norms and sums of squares: sums in f64, in sixteen lanes and a fixed final order.

use rayon::prelude::*;

use super::Rows;
use crate::simd::{Level, Simd, Task};

/// `x / sqrt(mean(x^2) + eps) * gain`, in place; without a gain it is 1.
pub(super) fn rms_norm(level: Level, x: &mut [f32], gain: Option<&[f32]>, eps: f32) {
    assert!(gain.is_none_or(|gain| x.len() == gain.len()), "a gain for every column");
    level.run(RmsNorm { x, gain, eps });
}

struct RmsNorm<'a> {
    x: &'a mut [f32],
    gain: Option<&'a [f32]>,
    eps: f32,
}

impl Task for RmsNorm<'_> {
    type Output = ();

    // Plain loops: the compiler turns them into the level's instructions, and their order is in the code.
    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        let mean = sum_squares(self.x) / self.x.len() as f64;
        let scale = (1.0 / (mean + f64::from(self.eps)).sqrt()) as f32;
        match self.gain {
            Some(gain) => self.x.iter_mut().zip(gain).for_each(|(x, gain)| *x = *x * scale * gain),
            None => self.x.iter_mut().for_each(|x| *x *= scale),
        }
    }
}

/// `x / sqrt(sum(x^2) + eps) * scale`, in place.
pub(super) fn unit_length(level: Level, x: &mut [f32], eps: f64, scale: f64) {
    level.run(UnitLength { x, eps, scale });
}

struct UnitLength<'a> {
    x: &'a mut [f32],
    eps: f64,
    scale: f64,
}

impl Task for UnitLength<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        let scale = (self.scale / (sum_squares(self.x) + self.eps).sqrt()) as f32;
        for x in self.x.iter_mut() {
            *x *= scale;
        }
    }
}

/// `(x - mean(x)) / sqrt(variance(x) + eps) * gain + bias`, in place.
pub(super) fn layer_norm(level: Level, x: &mut [f32], [gain, bias]: [&[f32]; 2], eps: f32) {
    assert_eq!([x.len(); 2], [gain.len(), bias.len()], "a gain and a bias for every column");
    level.run(LayerNorm { x, gain, bias, eps });
}

struct LayerNorm<'a> {
    x: &'a mut [f32],
    gain: &'a [f32],
    bias: &'a [f32],
    eps: f32,
}

impl Task for LayerNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        let len = self.x.len() as f64;
        let mean = sum_of(self.x, |x| x) / len;
        for x in self.x.iter_mut() {
            *x = (f64::from(*x) - mean) as f32;
        }
        let scale = (1.0 / (sum_squares(self.x) / len + f64::from(self.eps)).sqrt()) as f32;
        for ((x, gain), bias) in self.x.iter_mut().zip(self.gain).zip(self.bias) {
            *x = *x * scale * gain + bias;
        }
    }
}

#[inline(always)]
fn sum_squares(x: &[f32]) -> f64 {
    sum_of(x, |x| x * x)
}

#[inline(always)]
fn sum_of(x: &[f32], term: impl Fn(f64) -> f64) -> f64 {
    let mut sums = [0.0f64; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        for lane in 0..16 {
            sums[lane] += term(f64::from(chunk[lane]));
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest) {
        *sum += term(f64::from(*x));
    }
    fold(sums)
}

/// The sum of sixteen lanes: halves added, until one is left.
#[inline(always)]
pub(super) fn fold(mut lanes: [f64; 16]) -> f64 {
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

/// Columns that one worker sums up: a few cache lines of every row.
const COLUMNS: usize = 128;

/// For each column the sum of its squares, from the first row to the last.
pub(super) fn column_sums_of_squares(rows: &Rows) -> Vec<f64> {
    let mut sums = vec![0.0; rows.n_cols];
    sums.par_chunks_mut(COLUMNS).enumerate().for_each(|(index, sums)| {
        for row in rows.values.chunks_exact(rows.n_cols) {
            let columns = &row[index * COLUMNS..][..sums.len()];
            sums.iter_mut().zip(columns).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
        }
    });
    sums
}
