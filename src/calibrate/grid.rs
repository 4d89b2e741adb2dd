//! The levels of a format, and those that are nearest.

use super::metric::{Metric, Run};
use crate::simd::{F32x16, Simd};

/// Levels in units of a scale.
pub(super) trait Grid: Copy + Send + Sync {
    /// Columns whose levels are chosen together: a run. A divisor of a sub-block's.
    fn run_len(self) -> usize;
    /// The levels nearest to `t`, where the square of each column's distance has its own `cost`.
    fn nearest<S: Simd>(self, simd: S, t: &Run<S>, cost: &[f32]) -> Run<S>;
    /// The levels of the least loss: what columns are to be is `x`, what their errors are counted from `t`. Where `now` is no worse, that.
    fn best<S: Simd>(self, simd: S, x: &Run<S>, t: &Run<S>, metric: &Metric, now: Option<&Run<S>>) -> Run<S>;
    /// The lowest and the highest level.
    fn ends(self) -> (f32, f32);
    /// Parts of the range of a sub-block that are tried as the range of its levels: the first, the last, how many.
    fn trials(self) -> (f32, f32, usize);
    /// What a block holds for a level.
    fn quant(self, level: f32) -> i8;
}

/// Whole numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Integers {
    pub low: i32,
    pub high: i32,
}

impl Grid for Integers {
    #[inline(always)]
    fn run_len(self) -> usize {
        1
    }

    #[inline(always)]
    fn nearest<S: Simd>(self, simd: S, t: &Run<S>, _cost: &[f32]) -> Run<S> {
        // Within the range in which the rounding of the lanes is to the nearest.
        let within = t[0].max(F32x16::splat(simd, self.low as f32)).min(F32x16::splat(simd, self.high as f32));
        let mut levels = *t;
        levels[0] = within.nearest_int_in(self.low, self.high);
        levels
    }

    #[inline(always)]
    fn best<S: Simd>(self, simd: S, x: &Run<S>, _t: &Run<S>, metric: &Metric, _now: Option<&Run<S>>) -> Run<S> {
        self.nearest(simd, x, &metric.cost)
    }

    fn ends(self) -> (f32, f32) {
        (self.low as f32, self.high as f32)
    }

    fn trials(self) -> (f32, f32, usize) {
        // Coarse levels gain from cutting the range off, fine ones do not: what won on trained models.
        match self.high - self.low {
            0..=4 => (0.5, 1.15, 14),
            5..=8 => (0.65, 1.2, 13),
            9..=16 => (0.7, 1.12, 13),
            17..=32 => (0.82, 1.05, 12),
            33..=64 => (0.9, 1.04, 11),
            _ => (0.975, 1.01, 8),
        }
    }

    fn quant(self, level: f32) -> i8 {
        level as i8
    }
}

/// A list.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listed {
    pub levels: &'static [f32; 16],
}

impl Grid for Listed {
    #[inline(always)]
    fn run_len(self) -> usize {
        1
    }

    #[inline(always)]
    fn nearest<S: Simd>(self, simd: S, t: &Run<S>, _cost: &[f32]) -> Run<S> {
        let mut level = F32x16::splat(simd, self.levels[0]);
        for pair in self.levels.windows(2) {
            let middle = F32x16::splat(simd, 0.5 * (pair[0] + pair[1]));
            level = t[0].lt(middle).select(level, F32x16::splat(simd, pair[1]));
        }
        let mut levels = *t;
        levels[0] = level;
        levels
    }

    #[inline(always)]
    fn best<S: Simd>(self, simd: S, x: &Run<S>, _t: &Run<S>, metric: &Metric, _now: Option<&Run<S>>) -> Run<S> {
        self.nearest(simd, x, &metric.cost)
    }

    fn ends(self) -> (f32, f32) {
        (self.levels[0], self.levels[15])
    }

    fn trials(self) -> (f32, f32, usize) {
        (0.7, 1.12, 13)
    }

    fn quant(self, level: f32) -> i8 {
        self.levels.iter().position(|&known| known == level).unwrap_or(0) as i8
    }
}
