//! Levels of several weights together: the points of a grid, with signs.
//!
//! There are a few hundred points, so all of them are tried, the same in every lane. Points that begin alike share the work of their
//! first half, and what begins worse than the best so far in every lane is passed over. Errors are fed forward within a point as
//! they are between columns, and a sign is that of what its column is to be then. Where the number of minus signs must be even, a point
//! that comes out odd costs more by what the cheapest other sign costs; of the best point's signs the one that is changed is found
//! exactly.

use std::ops::Range;

use super::grid::Grid;
use super::metric::{Metric, RUN_MAX, Run};
use crate::quant;
use crate::simd::{F32x16, I32x16, Level, Mask, Simd, Sixteen, Task};

/// The points of a format, in order of their first halves.
pub(super) struct Table {
    magnitudes: &'static [f32],
    even_signs: bool,
    firsts: Vec<First>,
    points: Vec<Point>,
}

/// What begins alike.
struct First {
    /// The first half of them.
    magnitudes: [f32; RUN_MAX / 2],
    /// Its place among the sums of costs.
    sum: usize,
    points: Range<usize>,
}

struct Point {
    /// Of each weight.
    magnitudes: [f32; RUN_MAX],
    /// The place of the second half among the sums of costs.
    sum: usize,
}

/// Halves of points at most: three levels of four weights, or eight of two.
const SUMS_MAX: usize = 81;

impl Table {
    pub fn new(points: &quant::Points) -> Table {
        let (half, n_levels) = (points.len / 2, points.magnitudes.len());
        let numbers = |point: u16| -> Vec<usize> { (0..points.len).map(|i| points.number(point, i)).collect() };
        let mut all: Vec<Vec<usize>> = points.points.iter().map(|&point| numbers(point)).collect();
        all.sort();
        let sum = |half: &[usize]| half.iter().rev().fold(0, |sum, number| n_levels * sum + number);
        let mut table = Table { magnitudes: points.magnitudes, even_signs: points.even_signs, firsts: vec![], points: vec![] };
        for of_first in all.chunk_by(|a, b| a[..half] == b[..half]) {
            let start = table.points.len();
            for numbers in of_first {
                let mut magnitudes = [0.0; RUN_MAX];
                magnitudes.iter_mut().zip(numbers).for_each(|(to, number)| *to = points.magnitudes[*number]);
                table.points.push(Point { magnitudes, sum: sum(&numbers[half..]) });
            }
            let mut magnitudes = [0.0; RUN_MAX / 2];
            magnitudes.iter_mut().zip(&of_first[0][..half]).for_each(|(to, number)| *to = points.magnitudes[*number]);
            table.firsts.push(First { magnitudes, sum: sum(&of_first[0][..half]), points: start..table.points.len() });
        }
        table
    }
}

/// Points of `N` weights: four or eight.
#[derive(Clone, Copy)]
pub(super) struct Points<'t, const N: usize> {
    pub table: &'t Table,
    pub level: Level,
}

/// A run in memory, as a task takes and gives it: the searches are long, so that they are compiled once and called.
type Stored = [Sixteen; RUN_MAX];

#[inline(always)]
fn stored<S: Simd>(run: &Run<S>) -> Stored {
    let mut stored = [Sixteen::ZERO; RUN_MAX];
    for k in 0..RUN_MAX {
        run[k].store(&mut stored[k].0);
    }
    stored
}

#[inline(always)]
fn loaded<S: Simd>(simd: S, stored: &Stored) -> Run<S> {
    let mut run = [F32x16::splat(simd, 0.0); RUN_MAX];
    for k in 0..RUN_MAX {
        run[k] = stored[k].load(simd);
    }
    run
}

/// [`Grid::nearest`].
struct Nearest<'a, const N: usize> {
    points: Points<'a, N>,
    t: Stored,
    cost: &'a [f32],
}

impl<const N: usize> Task for Nearest<'_, N> {
    type Output = Stored;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Stored {
        stored(&self.points.nearest_levels(simd, &loaded(simd, &self.t), self.cost))
    }
}

/// [`Grid::best`].
struct Best<'a, const N: usize> {
    points: Points<'a, N>,
    x: Stored,
    t: Stored,
    metric: &'a Metric,
    now: Option<Stored>,
}

impl<const N: usize> Task for Best<'_, N> {
    type Output = Stored;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Stored {
        let mut now = None;
        if let Some(levels) = &self.now {
            now = Some(loaded(simd, levels));
        }
        stored(&self.points.best_levels(simd, &loaded(simd, &self.x), &loaded(simd, &self.t), self.metric, now.as_ref()))
    }
}

const SIGN: i32 = i32::MIN;

impl<const N: usize> Grid for Points<'_, N> {
    /// Signs go by eights where their number is even.
    #[inline(always)]
    fn run_len(self) -> usize {
        if self.table.even_signs { RUN_MAX } else { N }
    }

    #[inline(always)]
    fn nearest<S: Simd>(self, simd: S, t: &Run<S>, cost: &[f32]) -> Run<S> {
        loaded(simd, &self.level.run(Nearest { points: self, t: stored(t), cost }))
    }

    #[inline(always)]
    fn best<S: Simd>(self, simd: S, x: &Run<S>, t: &Run<S>, metric: &Metric, now: Option<&Run<S>>) -> Run<S> {
        let mut of_now = None;
        if let Some(now) = now {
            of_now = Some(stored(now));
        }
        loaded(simd, &self.level.run(Best { points: self, x: stored(x), t: stored(t), metric, now: of_now }))
    }

    fn ends(self) -> (f32, f32) {
        let largest = self.table.magnitudes[self.table.magnitudes.len() - 1];
        (-largest, largest)
    }

    fn trials(self) -> (f32, f32, usize) {
        if N == 8 { (0.7, 1.3, 10) } else { (0.75, 1.2, 10) }
    }

    fn quant(self, level: f32) -> i8 {
        let number = self.table.magnitudes.iter().position(|&known| known == level.abs()).unwrap_or(0) as i8 + 1;
        if level < 0.0 { -number } else { number }
    }
}

/// Where the number of minus signs is odd, the one that costs least is changed, and the magnitude becomes negative instead.
#[inline(always)]
fn make_even<S: Simd>(simd: S, magnitudes: &mut Run<S>, signs: &mut [I32x16<S>; RUN_MAX], cost: &[f32]) {
    let mut parity = signs[0];
    let mut least = magnitudes[0] * magnitudes[0] * F32x16::splat(simd, cost[0]);
    let mut changed = I32x16::splat(simd, 1);
    for k in 1..RUN_MAX {
        parity = parity ^ signs[k];
        let of_change = magnitudes[k] * magnitudes[k] * F32x16::splat(simd, cost[k]);
        let less = of_change.lt(least);
        least = less.select(of_change, least);
        changed = less.choose(I32x16::splat(simd, 1 << k), changed);
    }
    let zero = I32x16::splat(simd, 0);
    changed = parity.has(SIGN).choose(changed, zero);
    for k in 0..RUN_MAX {
        let is_changed = changed.has(1 << k);
        magnitudes[k] = is_changed.select(-magnitudes[k], magnitudes[k]);
        signs[k] = signs[k] ^ is_changed.choose(I32x16::splat(simd, SIGN), zero);
    }
}

impl<const N: usize> Points<'_, N> {
    const HALF: usize = N / 2;
    const N_LEVELS: usize = if N == 8 { 3 } else { 8 };

    #[inline(always)]
    fn nearest_levels<S: Simd>(self, simd: S, t: &Run<S>, cost: &[f32]) -> Run<S> {
        let (mut magnitudes, mut signs) = (*t, [I32x16::splat(simd, 0); RUN_MAX]);
        for k in 0..self.run_len() {
            magnitudes[k] = t[k].abs();
            signs[k] = t[k].to_bits() & SIGN;
        }
        if self.table.even_signs {
            make_even(simd, &mut magnitudes, &mut signs, cost);
        }
        let mut levels = magnitudes;
        for at in (0..self.run_len()).step_by(N) {
            let nearest = self.nearest_magnitudes(simd, &magnitudes[at..at + N], &cost[at..at + N]);
            for k in 0..N {
                levels[at + k] = (nearest[k].to_bits() | signs[at + k]).to_float_bits();
            }
        }
        levels
    }

    #[inline(always)]
    fn best_levels<S: Simd>(self, simd: S, x: &Run<S>, t: &Run<S>, metric: &Metric, now: Option<&Run<S>>) -> Run<S> {
        let (mut levels, mut least) = match now {
            Some(now) => (*now, metric.loss(simd, (0, self.run_len()), &mut x.clone(), t, now)),
            None => (self.any(simd), F32x16::splat(simd, f32::INFINITY)),
        };
        // Two points whose minus signs are even together are both even, or both odd.
        let parities: &[i32] = if self.run_len() > N { &[0, SIGN] } else { &[0] };
        for &parity in parities {
            let (mut x, mut tried, mut loss) = (*x, levels, F32x16::splat(simd, 0.0));
            for at in (0..self.run_len()).step_by(N) {
                let part = Part::<S, N>::of(&x, t, metric, at);
                let point = match self.table.even_signs {
                    true => self.point::<S, true>(simd, &part, parity, least - loss),
                    false => self.point::<S, false>(simd, &part, parity, least - loss),
                };
                tried[at..at + N].copy_from_slice(&point);
                loss = loss + metric.loss(simd, (at, at + N), &mut x, t, &tried);
            }
            let better = loss.lt(least);
            least = better.select(loss, least);
            for k in 0..self.run_len() {
                levels[k] = better.select(tried[k], levels[k]);
            }
        }
        levels
    }

    /// Levels that can be, for where nothing is found because nothing is finite.
    #[inline(always)]
    fn any<S: Simd>(self, simd: S) -> Run<S> {
        let mut levels = self.magnitudes(simd, I32x16::splat(simd, 0));
        levels.copy_within(0..RUN_MAX - N, N);
        levels
    }

    /// The magnitudes of a point for each lane.
    #[inline(always)]
    fn magnitudes<S: Simd>(self, simd: S, at: I32x16<S>) -> Run<S> {
        let at = at.to_u16();
        let mut lanes = [Sixteen::ZERO; RUN_MAX];
        for lane in 0..16 {
            let point = &self.table.points[usize::from(u16::from_le_bytes([at[2 * lane], at[2 * lane + 1]]))];
            for k in 0..N {
                lanes[k].0[lane] = point.magnitudes[k];
            }
        }
        let mut magnitudes = [F32x16::splat(simd, 0.0); RUN_MAX];
        for k in 0..N {
            magnitudes[k] = lanes[k].load(simd);
        }
        magnitudes
    }

    /// The point nearest to `y`, where each weight's distance has its own cost.
    #[inline(always)]
    fn nearest_magnitudes<S: Simd>(self, simd: S, y: &[F32x16<S>], cost: &[f32]) -> Run<S> {
        let zero = F32x16::splat(simd, 0.0);
        // What every combination of levels of a half costs.
        let mut sums = [[zero; SUMS_MAX]; 2];
        for (half, sums) in sums.iter_mut().enumerate() {
            let mut n = 1;
            for k in half * Self::HALF..(half + 1) * Self::HALF {
                for number in (0..Self::N_LEVELS).rev() {
                    let miss = y[k] - F32x16::splat(simd, self.table.magnitudes[number]);
                    let of_level = miss * miss * F32x16::splat(simd, cost[k]);
                    for i in 0..n {
                        sums[number * n + i] = sums[i] + of_level;
                    }
                }
                n *= Self::N_LEVELS;
            }
        }
        let (mut least, mut nearest) = (F32x16::splat(simd, f32::INFINITY), I32x16::splat(simd, 0));
        for first in &self.table.firsts {
            let of_first = sums[0][first.sum];
            for (at, point) in first.points.clone().zip(&self.table.points[first.points.clone()]) {
                let of_point = of_first + sums[1][point.sum];
                let better = of_point.lt(least);
                least = of_point.min(least);
                nearest = better.choose(I32x16::splat(simd, at as i32), nearest);
            }
        }
        self.magnitudes(simd, nearest)
    }

    /// The point of the least loss, if it is below `bound`. `parity`: of its minus signs, where that is `EVEN`.
    #[inline(always)]
    fn point<S: Simd, const EVEN: bool>(self, simd: S, part: &Part<S, N>, parity: i32, bound: F32x16<S>) -> [F32x16<S>; N] {
        let start = Began {
            x: part.x,
            loss: F32x16::splat(simd, 0.0),
            odd: I32x16::splat(simd, parity),
            change: F32x16::splat(simd, f32::INFINITY),
        };
        let (mut least, mut best) = (bound, I32x16::splat(simd, 0));
        for first in &self.table.firsts {
            let mut began = start;
            for k in 0..Self::HALF {
                began.add::<EVEN>(simd, part, k, F32x16::splat(simd, first.magnitudes[k]));
            }
            if began.loss.lt(least).bits() == 0 {
                continue;
            }
            for (number, point) in first.points.clone().zip(&self.table.points[first.points.clone()]) {
                let mut ended = began;
                for k in Self::HALF..N {
                    ended.add::<EVEN>(simd, part, k, F32x16::splat(simd, point.magnitudes[k]));
                }
                let mut loss = ended.loss;
                if EVEN {
                    loss = ended.odd.has(SIGN).select(loss + ended.change, loss);
                }
                let better = loss.lt(least);
                least = better.select(loss, least);
                best = better.choose(I32x16::splat(simd, number as i32), best);
            }
        }
        let magnitudes = self.magnitudes(simd, best);
        let mut levels = part.x;
        let mut signed = start;
        for k in 0..N {
            levels[k] = signed.add::<EVEN>(simd, part, k, magnitudes[k]);
        }
        if EVEN {
            part.with_other_sign(simd, &mut levels, signed.odd.has(SIGN));
        }
        levels
    }
}

/// The columns of a point.
struct Part<S: Simd, const N: usize> {
    x: [F32x16<S>; N],
    t: [F32x16<S>; N],
    feedback: [[f32; N]; N],
    cost: [f32; N],
}

impl<S: Simd, const N: usize> Part<S, N> {
    #[inline(always)]
    fn of(x: &Run<S>, t: &Run<S>, metric: &Metric, at: usize) -> Self {
        let mut part = Part { x: [x[0]; N], t: [t[0]; N], feedback: [[0.0; N]; N], cost: [0.0; N] };
        part.x.copy_from_slice(&x[at..at + N]);
        part.t.copy_from_slice(&t[at..at + N]);
        for k in 0..N {
            part.cost[k] = metric.cost[at + k];
            part.feedback[k].copy_from_slice(&metric.feedback[at + k][at..at + N]);
        }
        part
    }

    /// Changes the sign that makes the loss least, in the lanes of `odd`.
    #[inline(always)]
    fn with_other_sign(&self, simd: S, levels: &mut [F32x16<S>; N], odd: Mask<S>) {
        if odd.bits() == 0 {
            return;
        }
        let (mut least, mut best) = (F32x16::splat(simd, f32::INFINITY), *levels);
        for changed in 0..N {
            let mut tried = *levels;
            tried[changed] = -tried[changed];
            let (mut x, mut loss) = (self.x, F32x16::splat(simd, 0.0));
            for k in 0..N {
                let rest = x[k] - tried[k];
                loss = (rest * F32x16::splat(simd, self.cost[k])).fma(rest, loss);
                let error = self.t[k] - tried[k];
                for j in k + 1..N {
                    x[j] = error.fma(F32x16::splat(simd, self.feedback[j][k]), x[j]);
                }
            }
            let better = loss.lt(least);
            least = better.select(loss, least);
            for k in 0..N {
                best[k] = better.select(tried[k], best[k]);
            }
        }
        for k in 0..N {
            levels[k] = odd.select(best[k], levels[k]);
        }
    }
}

/// The first columns of a point.
#[derive(Clone, Copy)]
struct Began<S: Simd, const N: usize> {
    /// What the columns are to be, as the errors so far leave them.
    x: [F32x16<S>; N],
    loss: F32x16<S>,
    /// The sign is that of the product of all signs.
    odd: I32x16<S>,
    /// About what the cheapest other sign costs.
    change: F32x16<S>,
}

impl<S: Simd, const N: usize> Began<S, N> {
    /// Column `k` gets this magnitude, and the sign that suits it.
    #[inline(always)]
    fn add<const EVEN: bool>(&mut self, simd: S, part: &Part<S, N>, k: usize, magnitude: F32x16<S>) -> F32x16<S> {
        let level = (magnitude.to_bits() | (self.x[k].to_bits() & SIGN)).to_float_bits();
        let cost = F32x16::splat(simd, part.cost[k]);
        let rest = self.x[k] - level;
        self.loss = (rest * cost).fma(rest, self.loss);
        if EVEN {
            self.odd = self.odd ^ self.x[k].to_bits();
            // (|x| + magnitude)^2 - (|x| - magnitude)^2
            let of_change = self.x[k] * level * cost * F32x16::splat(simd, 4.0);
            self.change = self.change.min(of_change);
        }
        let error = part.t[k] - level;
        for j in k + 1..N {
            self.x[j] = error.fma(F32x16::splat(simd, part.feedback[j][k]), self.x[j]);
        }
        level
    }
}
