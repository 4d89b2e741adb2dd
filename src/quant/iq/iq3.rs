//! The search of scale and grid points that IQ3_XXS and IQ3_S share.
//!
//! For each trial scale every four weights are rounded to a place, the best grid point near it is taken, and the scale that fits the
//! points best (weighted least squares) is found; it is best where `(sum w*x*q)^2 / (sum w*q*q)` is largest. With the best scale the
//! points are chosen once more. Sixteen sub-blocks advance together, each in its lane; only the choice of a point runs across its
//! candidates.

use super::candidates::{set_u16_at, u16_at};
use super::fours::{Four, Fours, POINT_0, VALUES};
use super::{LEN, batches};
use crate::quant::search::{lanes_of_sub_blocks, sums_of_squares};
use crate::simd::{F32x16, I32x16, Simd};

/// A format that is searched for in this way.
pub(super) trait Searched: Sized {
    /// How it is searched for.
    fn search() -> &'static Search;

    /// The super-block whose sub-blocks begin with `first`.
    fn pack<S: Simd>(simd: S, found: &Found, first: usize) -> Self;
}

/// `Quantize::quantize` of the formats.
#[inline(always)]
pub(super) fn quantize<S: Simd, B: Searched>(simd: S, weights: &[f32], importance: Option<&[f32]>, blocks: &mut [B]) {
    let search = B::search();
    for ((weights, columns), blocks) in batches(weights, importance).zip(blocks.chunks_mut(16)) {
        let sums = if columns.is_some() { sums_of_squares(simd, weights) } else { [0.0; 16] };
        for (at, (blocks, weights)) in blocks.chunks_mut(2).zip(weights.chunks(PAIR)).enumerate() {
            let columns = columns.map(|columns| &columns[PAIR * at..][..weights.len()]);
            let mut sub_blocks = SubBlocks::new(simd, weights, columns, [sums[2 * at], sums[2 * at + 1]]);
            if search.even_signs {
                sub_blocks.make_signs_even();
            }
            let found = search.run(simd, &sub_blocks);
            for (i, block) in blocks.iter_mut().enumerate() {
                *block = B::pack(simd, &found, 8 * i);
            }
        }
    }
}

/// Twice as many weights as a super-block has: sixteen sub-blocks of 32.
const PAIR: usize = 2 * LEN;

/// Sixteen sub-blocks, those of two super-blocks.
struct SubBlocks {
    /// Magnitudes; one of eight can be negative where the number of minus signs is kept even.
    x: [f32; PAIR],
    /// How much each weight counts.
    w: [f32; PAIR],
    /// How much its distance from a grid point counts.
    root: [f32; PAIR],
    /// Bit `i` of `signs[j][k]` is set where weight `8*k + i` of sub-block `j` is negative.
    signs: [[u8; 4]; 16],
}

impl SubBlocks {
    /// Of one or two super-blocks; `sums`: of the squares of their weights. Without importance a weight counts as much as its square.
    #[inline(always)]
    fn new<S: Simd>(simd: S, weights: &[f32], importance: Option<&[f32]>, sums: [f32; 2]) -> SubBlocks {
        let zeros = [0.0; PAIR];
        let mut blocks = SubBlocks { x: zeros, w: zeros, root: zeros, signs: [[0; 4]; 16] };
        let zero = F32x16::splat(simd, 0.0);
        for (i, weights) in weights.as_chunks::<16>().0.iter().enumerate() {
            let x = F32x16::load(simd, weights);
            let w = match importance {
                Some(columns) => {
                    let sigma2 = F32x16::splat(simd, 2.0 * sums[i / 16] / LEN as f32);
                    F32x16::load(simd, &columns.as_chunks().0[i]) * (sigma2 + x * x).sqrt()
                }
                None => x * x,
            };
            x.abs().store(&mut blocks.x.as_chunks_mut().0[i]);
            w.store(&mut blocks.w.as_chunks_mut().0[i]);
            w.sqrt().store(&mut blocks.root.as_chunks_mut().0[i]);
            blocks.signs[i / 2][2 * (i % 2)..][..2].copy_from_slice(&x.lt(zero).bits().to_le_bytes());
        }
        blocks
    }

    /// Where the number of minus signs among eight is odd, the weight that counts least takes the other sign.
    #[inline(always)]
    fn make_signs_even(&mut self) {
        let eights = self.x.as_chunks_mut::<8>().0.iter_mut().zip(self.w.as_chunks::<8>().0);
        for ((x, w), signs) in eights.zip(self.signs.as_flattened_mut()) {
            if signs.count_ones() % 2 == 1 {
                let cost = |i: usize| w[i] * x[i] * x[i];
                let mut least = 0;
                for i in 1..8 {
                    if cost(i) < cost(least) {
                        least = i;
                    }
                }
                if !cost(least).is_finite() {
                    // ggml would take the first, were it the only one that is not zero.
                    least = (0..8).fold(0, |least, i| if x[i] < x[least] { i } else { least });
                }
                x[least] = -x[least];
                *signs ^= 1 << least;
            }
        }
    }

    /// Weights `4*k` and following of a sub-block.
    #[inline(always)]
    fn four<S: Simd>(&self, simd: S, sub_block: usize, k: usize) -> Four<S> {
        let at = 8 * sub_block + k;
        Four::new(simd, &self.x.as_chunks().0[at], &self.root.as_chunks().0[at])
    }
}

/// How a format searches.
pub(super) struct Search {
    pub grid: Fours,
    /// Trial scales map the largest weight to `15 + 0.2 * i`, `i` from `-n` to `n`.
    pub n: i32,
    /// Sub-blocks whose weights are all below this count as zero.
    pub all_zero: f32,
    /// The number of minus signs among eight weights is even.
    pub even_signs: bool,
    /// With the best scale all points are chosen once more, where any of them was off the grid or no trial was any good. Otherwise only
    /// those off the grid are.
    pub settle_all: bool,
}

/// What was found for sixteen sub-blocks.
pub(super) struct Found {
    pub scales: [f32; 16],
    /// Bit `j` is set where sub-block `j` counts as zero; its scale is 0 then, and its points mean nothing.
    pub zeros: u16,
    /// Indices in a file.
    pub points: [[u16; 8]; 16],
    pub signs: [[u8; 4]; 16],
}

/// The most trials of a format.
const N_TRIALS_MAX: usize = 31;

/// A number for each of the eight fours of each of sixteen sub-blocks.
type Numbers = [[u8; 32]; 8];

/// A trial scale, the places that weights are rounded to, and the points near them.
#[derive(Clone, Copy)]
struct Trial {
    scales: [f32; 16],
    places: Numbers,
    points: Numbers,
}

/// Sixteen sub-blocks side by side.
struct Lanes<S: Simd> {
    x: [F32x16<S>; 32],
    w: [F32x16<S>; 32],
    max: F32x16<S>,
}

impl Search {
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, blocks: &SubBlocks) -> Found {
        let lanes = Lanes::new(simd, blocks);
        let none = Trial { scales: [0.0; 16], places: [[0; 32]; 8], points: [[0; 32]; 8] };
        let mut trials = [none; N_TRIALS_MAX];
        let trials = &mut trials[..2 * self.n as usize + 1];
        for (i, trial) in (-self.n..).zip(&mut *trials) {
            let inverse = F32x16::splat(simd, 15.0 + i as f32 * 0.2) / lanes.max;
            trial.places = places_of(simd, &lanes.x, inverse);
            (F32x16::splat(simd, 1.0) / inverse).store(&mut trial.scales);
        }
        for lane in 0..16 {
            for k in 0..8 {
                let four = blocks.four(simd, lane, k);
                for trial in &mut *trials {
                    let point = self.grid.nearest(simd, u16_at(&trial.places[k], lane), &four, trial.scales[lane]);
                    set_u16_at(&mut trial.points[k], lane, point);
                }
            }
        }
        let (scale, winner) = lanes.best(simd, trials);
        self.settle(simd, blocks, &lanes, trials, scale, &winner)
    }

    /// Chooses the points once more with the winning scale, and fits the scale to them.
    #[inline(always)]
    fn settle<S: Simd>(
        &self,
        simd: S,
        blocks: &SubBlocks,
        lanes: &Lanes<S>,
        trials: &[Trial],
        scale: F32x16<S>,
        winner: &[i32; 16],
    ) -> Found {
        let zero = F32x16::splat(simd, 0.0);
        let places = places_of(simd, &lanes.x, F32x16::splat(simd, 1.0) / scale);
        let scales = scale.to_array();
        let mut points = [[0; 32]; 8];
        let mut settled = 0;
        for lane in 0..16 {
            let trial = trials.get(winner[lane] as usize);
            let is_off = |k: usize| trial.map_or(self.settle_all, |trial| !self.grid.is_on_grid(u16_at(&trial.places[k], lane)));
            let again = scales[lane] > 0.0 && (0..8).any(is_off);
            settled |= u16::from(again) << lane;
            for k in 0..8 {
                let point = if again && (self.settle_all || is_off(k)) {
                    self.grid.nearest(simd, u16_at(&places[k], lane), &blocks.four(simd, lane, k), scales[lane])
                } else {
                    trial.map_or(POINT_0, |trial| u16_at(&trial.points[k], lane))
                };
                set_u16_at(&mut points[k], lane, point);
            }
        }
        let (sum_xq, sum_qq) = lanes.sums(simd, &points);
        let fitted = I32x16::spread(simd, settled, 1).has(1) & sum_qq.gt(zero);
        let scale = fitted.select(sum_xq / sum_qq, scale);
        let zeros = lanes.max.lt(F32x16::splat(simd, self.all_zero)) | lanes.max.eq(zero);
        self.found(zeros.select(zero, scale), zeros.bits(), &points, &blocks.signs)
    }

    /// Scales without sign, and points by index.
    #[inline(always)]
    fn found<S: Simd>(&self, scale: F32x16<S>, zeros: u16, points: &Numbers, signs: &[[u8; 4]; 16]) -> Found {
        let mut found = Found { scales: scale.to_array(), zeros, points: [[0; 8]; 16], signs: *signs };
        for lane in 0..16 {
            if found.scales[lane] < 0.0 {
                found.scales[lane] = -found.scales[lane];
                found.signs[lane] = found.signs[lane].map(|signs| !signs);
            }
            for k in 0..8 {
                found.points[lane][k] = self.grid.index(u16_at(&points[k], lane));
            }
        }
        found
    }
}

impl<S: Simd> Lanes<S> {
    #[inline(always)]
    fn new(simd: S, blocks: &SubBlocks) -> Self {
        let x: [F32x16<S>; 32] = lanes_of_sub_blocks(simd, &blocks.x);
        let mut max = x[0];
        for i in 1..32 {
            max = max.max(x[i]);
        }
        Lanes { x, w: lanes_of_sub_blocks(simd, &blocks.w), max }
    }

    /// The scale that fits best, and the trial it is from, or -1 where no trial was any good.
    #[inline(always)]
    fn best(&self, simd: S, trials: &[Trial]) -> (F32x16<S>, [i32; 16]) {
        let zero = F32x16::splat(simd, 0.0);
        let (mut best, mut scale) = (zero, self.max / F32x16::splat(simd, 15.0));
        let mut winner = F32x16::splat(simd, -1.0);
        for (i, trial) in trials.iter().enumerate() {
            let (sum_xq, sum_qq) = self.sums(simd, &trial.points);
            let better = sum_qq.gt(zero) & (sum_xq * sum_xq).gt(best * sum_qq);
            let fit = sum_xq / sum_qq;
            scale = better.select(fit, scale);
            best = better.select(fit * sum_xq, best);
            winner = better.select(F32x16::splat(simd, i as f32), winner);
        }
        (scale, winner.to_array().map(|i| i as i32))
    }

    /// `(sum w*x*q, sum w*q*q)` for the values `q` of the points.
    #[inline(always)]
    fn sums(&self, simd: S, points: &Numbers) -> (F32x16<S>, F32x16<S>) {
        let values = F32x16::load(simd, &VALUES);
        let (mut sum_xq, mut sum_qq) = (F32x16::splat(simd, 0.0), F32x16::splat(simd, 0.0));
        for k in 0..8 {
            let mut levels = I32x16::load_u16(simd, &points[k]);
            for i in 4 * k..4 * k + 4 {
                let q = values.lookup(levels);
                levels = levels.shr::<4>();
                sum_xq = sum_xq + self.w[i] * self.x[i] * q;
                sum_qq = sum_qq + self.w[i] * q * q;
            }
        }
        (sum_xq, sum_qq)
    }
}

/// The places that weights times `inverse` are rounded to.
#[inline(always)]
fn places_of<S: Simd>(simd: S, x: &[F32x16<S>; 32], inverse: F32x16<S>) -> Numbers {
    let (half, one) = (F32x16::splat(simd, 0.5), F32x16::splat(simd, 1.0));
    let mut places = [[0; 32]; 8];
    for k in 0..8 {
        let mut levels = [I32x16::splat(simd, 0); 4];
        for i in 0..4 {
            levels[i] = (half * (inverse * x[4 * k + i] - one)).nearest_int_in(0, 7).truncate();
        }
        places[k] = (levels[0] | levels[1].shl::<3>() | levels[2].shl::<6>() | levels[3].shl::<9>()).to_u16();
    }
    places
}

/// Sixteen weights of four points, as `signed` takes them.
#[inline(always)]
pub(super) fn pairs(points: [[u8; 4]; 4]) -> [[u8; 8]; 2] {
    *points.as_flattened().as_chunks().0.first_chunk().expect("sixteen bytes")
}
