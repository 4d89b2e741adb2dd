//! The best grid point for eight weights, as the IQ1 and IQ2 formats have them: every weight on one of three levels.

use super::candidates::{Candidates, first_cheapest};
use crate::quant::lattice::Parts;
use crate::simd::{F32x16, I32x16, Simd};

/// Levels of a weight.
pub(super) const LEVELS: usize = 3;

/// A grid of points of eight weights with three levels each. A place is a number whose ternary digits are the levels, the first
/// weight's first.
pub(super) struct Eights {
    /// Bits as in `grids.rs`.
    candidates: Candidates,
}

impl Eights {
    /// `points`: a table of `grids.rs`; the candidates are those of the `n_distances` smallest distances.
    pub fn new(points: &[u16], n_distances: usize) -> Eights {
        // distances[half][h][p]: squared distance of the four levels of place `h` to that half of point `p`
        let distances = [0, 8].map(|shift| -> Vec<Vec<u8>> {
            let of_point = |h: usize, point: u16| {
                let level = |i: u32| h / LEVELS.pow(3 - i) % LEVELS;
                (0..4).map(|i| usize::from(point >> (shift + 2 * i) & 3).abs_diff(level(i)).pow(2)).sum::<usize>() as u8
            };
            (0..LEVELS.pow(4)).map(|h| points.iter().map(|&point| of_point(h, point)).collect()).collect()
        });
        let mut candidates = Candidates::new();
        let mut near = vec![0; points.len()];
        for first in &distances[0] {
            for second in &distances[1] {
                for ((near, &first), &second) in near.iter_mut().zip(first).zip(second) {
                    *near = first + second;
                }
                candidates.add_place(points, &near, n_distances);
            }
        }
        Eights { candidates }
    }

    /// Index in a file of the point at a place, where there is one.
    #[inline(always)]
    pub fn index(&self, place: usize) -> Option<u16> {
        self.candidates.index(place)
    }

    /// Of each eight of a block: the index in a file of its point, and the bits of its minus signs.
    #[inline(always)]
    pub fn of_parts(&self, parts: &Parts) -> [(u16, u8); 32] {
        parts.quants.as_chunks::<8>().0.first_chunk::<32>().expect("256 quants").map(|eight| {
            let place = eight.iter().fold(0, |place, quant| place * LEVELS + usize::from(quant.unsigned_abs()) - 1);
            let point = self.index(place).expect("parts are of points");
            (point, super::minus_signs(&eight))
        })
    }

    /// The candidate with the least weighted distance to eight weights, bits as in `grids.rs`; `values` is what the levels stand for.
    #[inline(always)]
    pub fn nearest<S: Simd>(&self, simd: S, place: usize, eight: &Eight, scale: f32, values: &[f32; 4]) -> u16 {
        let scaled = F32x16::splat(simd, scale) * F32x16::load_quarters(simd, values);
        let mut costs = [[0.0; 16]; 2];
        for half in 0..2 {
            let miss = scaled - F32x16::load(simd, &eight.x[half]);
            (F32x16::load(simd, &eight.w[half]) * miss * miss).store(&mut costs[half]);
        }
        let mut by_weight = [scaled; 8];
        for i in 0..8 {
            by_weight[i] = F32x16::load_quarters(simd, costs[i / 4][4 * (i % 4)..].first_chunk().expect("four of sixteen"));
        }
        self.cheapest(simd, place, &by_weight)
    }

    /// The candidate of least cost. Each quarter of `costs[i]` holds what the levels of weight `i` cost.
    #[inline(always)]
    fn cheapest<S: Simd>(&self, simd: S, place: usize, costs: &[F32x16<S>; 8]) -> u16 {
        let chunks = self.candidates.of(place);
        let mut least = F32x16::splat(simd, f32::MAX);
        let mut cheapest = I32x16::load_u16(simd, &chunks[0]);
        for chunk in chunks {
            let candidates = I32x16::load_u16(simd, chunk);
            let mut levels = candidates;
            let mut cost = costs[0].pick(levels);
            for i in 1..8 {
                levels = levels.shr::<2>();
                cost = cost + costs[i].pick(levels);
            }
            let better = cost.lt(least);
            least = cost.min(least);
            cheapest = better.choose(candidates, cheapest);
        }
        first_cheapest(simd, cheapest, least)
    }
}

/// The place of a grid point.
#[inline(always)]
pub(super) fn place(point: u16) -> usize {
    (0..8).fold(0, |place, i| place * LEVELS + usize::from(point >> (2 * i) & 3))
}

/// What eight weights of one sub-block are compared with: each weight, and what its distance counts, four times over.
#[derive(Clone, Copy)]
pub(super) struct Eight {
    x: [[f32; 16]; 2],
    w: [[f32; 16]; 2],
}

impl Eight {
    /// All eights of sixteen sub-blocks, of which lane `j` of `x[i]` holds weight `i` of sub-block `j`.
    #[inline(always)]
    pub fn of_sub_blocks<S: Simd, const N: usize>(x: &[F32x16<S>; N], w: &[F32x16<S>; N]) -> [[Eight; 4]; 16] {
        let mut eights = [[Eight { x: [[0.0; 16]; 2], w: [[0.0; 16]; 2] }; 4]; 16];
        for i in 0..N {
            let (x, w) = (x[i].to_array(), w[i].to_array());
            for lane in 0..16 {
                let eight = &mut eights[lane][i / 8];
                let (half, at) = (i % 8 / 4, 4 * (i % 4));
                eight.x[half][at..at + 4].fill(x[lane]);
                eight.w[half][at..at + 4].fill(w[lane]);
            }
        }
        eights
    }
}
