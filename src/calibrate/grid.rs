//! The levels of a format, and the one that is nearest.

use crate::quant::{Lattice, Levels};
use crate::simd::{F32x16, Simd};

/// Levels in units of a scale.
pub(super) trait Grid: Copy + Send + Sync {
    /// The level nearest to each lane.
    fn nearest<S: Simd>(self, simd: S, t: F32x16<S>) -> F32x16<S>;
    /// The lowest and the highest level.
    fn ends(self) -> (f32, f32);
    /// What a block holds for a level.
    fn quant(self, level: f32) -> i8;
}

/// Whole numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Integers {
    low: i32,
    high: i32,
}

impl Grid for Integers {
    #[inline(always)]
    fn nearest<S: Simd>(self, simd: S, t: F32x16<S>) -> F32x16<S> {
        // Within the range in which the rounding of the lanes is to the nearest.
        let within = t.max(F32x16::splat(simd, self.low as f32)).min(F32x16::splat(simd, self.high as f32));
        within.nearest_int_in(self.low, self.high)
    }

    fn ends(self) -> (f32, f32) {
        (self.low as f32, self.high as f32)
    }

    fn quant(self, level: f32) -> i8 {
        level as i8
    }
}

/// A list.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listed {
    levels: &'static [f32; 16],
}

impl Grid for Listed {
    #[inline(always)]
    fn nearest<S: Simd>(self, simd: S, t: F32x16<S>) -> F32x16<S> {
        let mut level = F32x16::splat(simd, self.levels[0]);
        for pair in self.levels.windows(2) {
            let middle = F32x16::splat(simd, 0.5 * (pair[0] + pair[1]));
            level = t.lt(middle).select(level, F32x16::splat(simd, pair[1]));
        }
        level
    }

    fn ends(self) -> (f32, f32) {
        (self.levels[0], self.levels[15])
    }

    fn quant(self, level: f32) -> i8 {
        self.levels.iter().position(|&known| known == level).unwrap_or(0) as i8
    }
}

/// What is done with whichever levels a lattice has.
pub(super) trait WithGrid {
    type Output;
    fn run<G: Grid>(self, grid: G) -> Self::Output;
}

/// Chooses the levels once, for a whole tensor.
pub(super) fn with_grid<W: WithGrid>(lattice: &Lattice, work: W) -> W::Output {
    match lattice.levels {
        Levels::Integers(low, high) => work.run(Integers { low, high }),
        Levels::Listed(levels) => work.run(Listed { levels }),
    }
}
