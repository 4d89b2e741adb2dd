//! The best grid point for four weights, as IQ3_XXS and IQ3_S have them: every weight on one of eight levels.
//!
//! Of the 4096 lists of candidates 97 % have up to 16 candidates; a place on the grid has itself.

use super::candidates::{Candidates, first_cheapest};
use crate::quant::lattice::Parts;
use crate::simd::{F32x16, I32x16, Simd};

/// Places: three bits for each of four levels, the first weight's lowest, as in `grids.rs`.
const N_PLACES: usize = 1 << 12;

/// A grid of points of four weights with eight levels each.
pub(super) struct Fours {
    candidates: Candidates,
}

/// The levels of a grid point in four bits each, the first weight's lowest, of which the last bit is set for the second and fourth:
/// the entries of [`Four`]'s tables.
pub(super) type Point = u16;

/// The point of place 0.
pub(super) const POINT_0: Point = 0x8080;

const fn point(place: u16) -> Point {
    POINT_0 | (place & 7) | (place & 7 << 3) << 1 | (place & 7 << 6) << 2 | (place & 7 << 9) << 3
}

/// Undoes [`point`].
#[inline(always)]
fn place(point: Point) -> usize {
    usize::from((point & 7) | (point >> 1 & 7 << 3) | (point >> 2 & 7 << 6) | (point >> 3 & 7 << 9))
}

impl Fours {
    /// `places`: a table of `grids.rs`; the candidates are those at the `n_distances` smallest distances.
    pub fn new(places: &[u16], n_distances: usize) -> Fours {
        let points: Vec<Point> = places.iter().map(|&place| point(place)).collect();
        let mut candidates = Candidates::new();
        for place in 0..N_PLACES as u16 {
            let level = |place: u16, i: u32| place >> (3 * i) & 7;
            let distance = |&other: &u16| (0..4).map(|i| level(place, i).abs_diff(level(other, i)).pow(2)).sum::<u16>() as u8;
            candidates.add_place(&points, &places.iter().map(distance).collect::<Vec<u8>>(), n_distances);
        }
        Fours { candidates }
    }

    #[inline(always)]
    pub fn is_on_grid(&self, place: u16) -> bool {
        self.candidates.index(usize::from(place)).is_some()
    }

    /// Index in a file of a point.
    #[inline(always)]
    pub fn index(&self, point: Point) -> u16 {
        self.candidates.index(place(point)).expect("every candidate is on the grid")
    }

    /// Of each sub-block of 32: the indices in a file of its points, and the bits of its minus signs.
    #[inline(always)]
    pub fn of_parts(&self, parts: &Parts) -> [([u16; 8], [u8; 4]); 8] {
        parts.quants.as_chunks::<32>().0.first_chunk::<8>().expect("256 quants").map(|quants| {
            let points = quants.as_chunks::<4>().0.first_chunk::<8>().expect("32 quants").map(|four| {
                let place = four.iter().rev().fold(0, |place, quant| place << 3 | (usize::from(quant.unsigned_abs()) - 1));
                self.candidates.index(place).expect("parts are of points")
            });
            let eights = quants.as_chunks::<8>().0.first_chunk::<4>().expect("32 quants");
            (points, eights.map(|eight| super::minus_signs(&eight)))
        })
    }

    /// The candidate at the least weighted distance.
    #[inline(always)]
    pub fn nearest<S: Simd>(&self, simd: S, place: u16, four: &Four<S>, scale: f32) -> Point {
        let costs = four.costs(simd, scale);
        let chunks = self.candidates.of(usize::from(place));
        let mut nearest = I32x16::load_u16(simd, &chunks[0]);
        let mut least = cost(costs, nearest);
        for chunk in &chunks[1..] {
            let others = I32x16::load_u16(simd, chunk);
            let of_others = cost(costs, others);
            let less = of_others.lt(least);
            least = of_others.min(least);
            nearest = less.select(others.to_float_bits(), nearest.to_float_bits()).to_bits();
        }
        first_cheapest(simd, nearest, least)
    }
}

/// What sixteen candidates cost, added from the first weight to the last.
#[inline(always)]
fn cost<S: Simd>(costs: [F32x16<S>; 2], points: I32x16<S>) -> F32x16<S> {
    costs[0].lookup_lower(points)
        + costs[0].lookup_upper(points.shr::<4>())
        + costs[1].lookup_lower(points.shr::<8>())
        + costs[1].lookup_upper(points.shr::<12>())
}

/// Four weights of one sub-block: the first and third in the lower eight lanes, the second and fourth in the upper.
#[derive(Clone, Copy)]
pub(super) struct Four<S: Simd> {
    x: [F32x16<S>; 2],
    w: [F32x16<S>; 2],
}

/// What the levels stand for, twice.
pub(super) const VALUES: [f32; 16] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0, 1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];

impl<S: Simd> Four<S> {
    /// `w`: how much the distance of each weight counts.
    #[inline(always)]
    pub fn new(simd: S, x: &[f32; 4], w: &[f32; 4]) -> Self {
        Four { x: [halves(simd, x[0], x[1]), halves(simd, x[2], x[3])], w: [halves(simd, w[0], w[1]), halves(simd, w[2], w[3])] }
    }

    /// What every level of every weight costs.
    #[inline(always)]
    fn costs(&self, simd: S, scale: f32) -> [F32x16<S>; 2] {
        let values = F32x16::splat(simd, scale) * F32x16::load(simd, &VALUES);
        let miss = [values - self.x[0], values - self.x[1]];
        [self.w[0] * miss[0] * miss[0], self.w[1] * miss[1] * miss[1]]
    }
}

#[inline(always)]
fn halves<S: Simd>(simd: S, lower: f32, upper: f32) -> F32x16<S> {
    let mut lanes = [lower; 16];
    lanes[8..].fill(upper);
    F32x16::load(simd, &lanes)
}
