//! The search of scale and grid points that the IQ1 formats share.
//!
//! With only three levels the best rounding can be found by trying all: the weights of a sub-block are sorted, and for every pair of
//! boundaries, and every direction of the shift, the scale that fits (weighted least squares) follows from sums over the three parts.
//! It is best where `(sum w*x*q)^2 / (sum w*q*q)` is largest. Then every eight levels become the best grid point near them. Sixteen
//! sub-blocks advance together, each in its lane; only the choice of a point runs across its candidates.

use super::candidates::{set_u16_at, u16_at};
use super::eights::{Eight, Eights, LEVELS, place};
use super::{IQ1_SHIFT, grids};
use crate::quant::search::lanes_of_sub_blocks;
use crate::simd::{F32x16, I32x16, Mask, Simd};
use std::sync::LazyLock;

static GRID: LazyLock<Eights> = LazyLock::new(|| Eights::new(&grids::IQ1_S, 3));

/// What the levels stand for, where they are shifted up and where down.
pub(super) const UP: [f32; 4] = [IQ1_SHIFT - 1.0, IQ1_SHIFT, IQ1_SHIFT + 1.0, 0.0];
pub(super) const DOWN: [f32; 4] = [-IQ1_SHIFT - 1.0, -IQ1_SHIFT, -IQ1_SHIFT + 1.0, 0.0];

/// Sixteen sub-blocks of `N` weights side by side.
pub(super) struct SubBlocks<S: Simd, const N: usize> {
    pub x: [F32x16<S>; N],
    /// How much each weight counts.
    pub w: [F32x16<S>; N],
}

/// The weights of each sub-block in ascending order, equal ones in theirs.
pub(super) struct Sorted<S: Simd, const N: usize> {
    pub x: [F32x16<S>; N],
    pub w: [F32x16<S>; N],
    /// The place of each before it was sorted.
    pub index: [F32x16<S>; N],
}

/// The best rounding of sixteen sub-blocks.
#[derive(Clone, Copy)]
pub(super) struct Split<S: Simd> {
    scale: F32x16<S>,
    quality: F32x16<S>,
    /// The sorted weights before `first` have the lowest level, those from `second` on the highest. -1 where no scale fits.
    first: F32x16<S>,
    second: F32x16<S>,
    /// Bit `k` is set where weights `8*k` and following are shifted down.
    down: I32x16<S>,
}

impl<S: Simd, const N: usize> SubBlocks<S, N> {
    /// `weights`: `[16 * N]`; `w` as above.
    #[inline(always)]
    pub fn new(simd: S, weights: &[f32], w: [F32x16<S>; N]) -> Self {
        SubBlocks { x: lanes_of_sub_blocks(simd, weights), w }
    }

    /// True where no magnitude reaches `limit`.
    #[inline(always)]
    pub fn all_below(&self, simd: S, limit: f32) -> Mask<S> {
        let mut max = self.x[0].abs();
        for i in 1..N {
            max = max.max(self.x[i].abs());
        }
        max.lt(F32x16::splat(simd, limit))
    }

    /// Batcher's odd-even merge sort: which weights are compared does not depend on them.
    #[inline(always)]
    pub fn sorted(&self, simd: S) -> Sorted<S, N> {
        let mut sorted = Sorted { x: self.x, w: self.w, index: [F32x16::splat(simd, 0.0); N] };
        for i in 0..N {
            sorted.index[i] = F32x16::splat(simd, i as f32);
        }
        let mut run = 1;
        while run < N {
            let mut step = run;
            while step > 0 {
                for first in (step % run..N - step).step_by(2 * step) {
                    for i in first..(first + step).min(N - step) {
                        if i / (2 * run) == (i + step) / (2 * run) {
                            sorted.order(i, i + step);
                        }
                    }
                }
                step /= 2;
            }
            run *= 2;
        }
        sorted
    }
}

impl<S: Simd, const N: usize> Sorted<S, N> {
    /// Exchanges two weights where they stand in the wrong order.
    #[inline(always)]
    fn order(&mut self, a: usize, b: usize) {
        let (x, index) = ([self.x[a], self.x[b]], [self.index[a], self.index[b]]);
        let exchange = x[0].gt(x[1]) | (x[0].eq(x[1]) & index[0].gt(index[1]));
        let w = [self.w[a], self.w[b]];
        (self.x[a], self.x[b]) = (exchange.select(x[1], x[0]), exchange.select(x[0], x[1]));
        (self.w[a], self.w[b]) = (exchange.select(w[1], w[0]), exchange.select(w[0], w[1]));
        (self.index[a], self.index[b]) = (exchange.select(index[1], index[0]), exchange.select(index[0], index[1]));
    }

    /// What stands at the boundary `at` of each lane, and its index: nothing is larger than what stands behind the last.
    #[inline(always)]
    fn boundary(&self, simd: S, at: F32x16<S>) -> [F32x16<S>; 2] {
        let at = at.to_array();
        let (mut x, mut index) = ([f32::INFINITY; 16], [0.0; 16]);
        for lane in 0..16 {
            if let Some(behind) = self.x.get(at[lane] as usize) {
                x[lane] = behind.to_array()[lane];
                index[lane] = self.index[at[lane] as usize].to_array()[lane];
            }
        }
        [F32x16::load(simd, &x), F32x16::load(simd, &index)]
    }
}

impl<S: Simd> Split<S> {
    /// Starts with the scale 0, or NaN where `sum` over the weights has overflowed.
    #[inline(always)]
    pub fn new(simd: S, sum: F32x16<S>) -> Self {
        let none = F32x16::splat(simd, -1.0);
        let quality = F32x16::splat(simd, -f32::MAX);
        let scale = sum * F32x16::splat(simd, 0.0);
        Split { scale, quality, first: none, second: none, down: I32x16::splat(simd, 0) }
    }

    /// True in the lanes where these sums mean a better fit.
    #[inline(always)]
    pub fn is_worse_than(&self, simd: S, sum_xq: F32x16<S>, sum_qq: F32x16<S>) -> Mask<S> {
        sum_qq.gt(F32x16::splat(simd, 0.0)) & (sum_xq * sum_xq).gt(self.quality * sum_qq)
    }

    /// Takes the fit of these sums where it is better.
    #[inline(always)]
    pub fn keep_if_better(&mut self, simd: S, sum_xq: F32x16<S>, sum_qq: F32x16<S>, [first, second]: [usize; 2], down: i32) {
        let better = self.is_worse_than(simd, sum_xq, sum_qq);
        let scale = sum_xq / sum_qq;
        self.scale = better.select(scale, self.scale);
        self.quality = better.select(scale * sum_xq, self.quality);
        self.first = better.select(F32x16::splat(simd, first as f32), self.first);
        self.second = better.select(F32x16::splat(simd, second as f32), self.second);
        self.down = better.choose(I32x16::splat(simd, down), self.down);
    }
}

/// What the eight levels of sixteen points stand for, one after the other.
pub(super) struct Values<S: Simd> {
    up: F32x16<S>,
    down: F32x16<S>,
    is_down: Mask<S>,
    levels: I32x16<S>,
}

impl<S: Simd> Values<S> {
    #[inline(always)]
    pub fn new(simd: S, points: I32x16<S>, is_down: Mask<S>) -> Self {
        Values { up: F32x16::load_quarters(simd, &UP), down: F32x16::load_quarters(simd, &DOWN), is_down, levels: points }
    }

    #[inline(always)]
    pub fn next(&mut self) -> F32x16<S> {
        let value = self.is_down.select(self.down.pick(self.levels), self.up.pick(self.levels));
        self.levels = self.levels.shr::<2>();
        value
    }
}

/// What the search found for sixteen sub-blocks.
pub(super) struct Found {
    /// Not negative.
    pub scales: [f32; 16],
    /// Indices in the file of the points of each sub-block.
    pub points: [[u16; 4]; 16],
    /// Bit `k` is set where point `k` is shifted down.
    pub down: [u8; 16],
}

/// Turns the best roundings into grid points; nothing in the lanes that `skip` names.
#[inline(always)]
pub(super) fn settle<S: Simd, const N: usize>(
    simd: S,
    blocks: &SubBlocks<S, N>,
    sorted: &Sorted<S, N>,
    split: Split<S>,
    skip: Mask<S>,
) -> Found {
    let zero = F32x16::splat(simd, 0.0);
    let negative = split.scale.lt(zero);
    let down = negative.choose(split.down ^ I32x16::splat(simd, (1 << (N / 8)) - 1), split.down);
    let mut scale = negative.select(-split.scale, split.scale);
    let places = places(simd, blocks, sorted, &split, negative);
    let (points, off_grid) = points(simd, blocks, &places, scale, down);

    let (mut sum_xq, mut sum_qq) = (zero, zero);
    for k in 0..N / 8 {
        let mut values = Values::new(simd, I32x16::load_u16(simd, &points[k]), down.has(1 << k));
        for i in 8 * k..8 * k + 8 {
            let q = values.next();
            sum_xq = sum_xq + blocks.w[i] * q * blocks.x[i];
            sum_qq = sum_qq + blocks.w[i] * q * q;
        }
    }
    let found_none = split.first.lt(zero);
    let fits = off_grid & !found_none & sum_xq.gt(zero) & sum_qq.gt(zero);
    scale = fits.select(sum_xq / sum_qq, scale);

    let scales = skip.select(zero, scale).to_array();
    let (skip, none) = (skip | found_none, I32x16::splat(simd, 0));
    let mut found = Found { scales, points: [[0; 4]; 16], down: skip.choose(none, down).to_u8() };
    for k in 0..N / 8 {
        let points = skip.choose(none, I32x16::load_u16(simd, &points[k])).to_u16();
        for lane in 0..16 {
            let point = u16_at(&points, lane);
            found.points[lane][k] = GRID.index(place(point)).unwrap_or(0);
        }
    }
    found
}

/// The levels of the best roundings, turned round where the scale is negative, as places.
#[inline(always)]
fn places<S: Simd, const N: usize>(
    simd: S,
    blocks: &SubBlocks<S, N>,
    sorted: &Sorted<S, N>,
    split: &Split<S>,
    negative: Mask<S>,
) -> [[u8; 32]; 4] {
    let (zero, one, two) = (F32x16::splat(simd, 0.0), F32x16::splat(simd, 1.0), F32x16::splat(simd, 2.0));
    let boundaries = [sorted.boundary(simd, split.first), sorted.boundary(simd, split.second)];
    let mut places = [[0; 32]; 4];
    for k in 0..N / 8 {
        let mut place = zero;
        for i in 8 * k..8 * k + 8 {
            let (x, index) = (blocks.x[i], F32x16::splat(simd, i as f32));
            let mut level = two;
            for b in 0..2 {
                let [boundary, at] = boundaries[b];
                let before = x.lt(boundary) | (x.eq(boundary) & index.lt(at));
                level = level - before.select(one, zero);
            }
            level = negative.select(two - level, level);
            place = place * F32x16::splat(simd, LEVELS as f32) + level;
        }
        places[k] = place.truncate().to_u16();
    }
    places
}

/// The best grid points near the places, bits as in `grids.rs`, and in which lanes a place is none.
#[inline(always)]
fn points<S: Simd, const N: usize>(
    simd: S,
    blocks: &SubBlocks<S, N>,
    places: &[[u8; 32]; 4],
    scale: F32x16<S>,
    down: I32x16<S>,
) -> ([[u8; 32]; 4], Mask<S>) {
    let eights = Eight::of_sub_blocks(&blocks.x, &blocks.w);
    let (scales, down) = (scale.to_array(), down.to_u8());
    let mut points = [[0; 32]; 4];
    let mut off_grid = 0;
    for lane in 0..16 {
        for k in 0..N / 8 {
            let place = usize::from(u16_at(&places[k], lane));
            off_grid |= u16::from(GRID.index(place).is_none()) << lane;
            let values = if down[lane] >> k & 1 == 1 { &DOWN } else { &UP };
            let point = GRID.nearest(simd, place, &eights[lane][k], scales[lane], values);
            set_u16_at(&mut points[k], lane, point);
        }
    }
    (points, I32x16::spread(simd, off_grid, 1).has(1))
}
