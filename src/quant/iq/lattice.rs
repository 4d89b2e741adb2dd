//! For every combination of levels, the grid points that come into question for it, laid out for a search in lanes.
//!
//! Rounding eight weights gives a combination of levels, a *place*. Where it is no grid point, ggml looks for the best point among
//! those of the smallest distances to it (two distances for IQ2_XXS, say), in order of distance, then index, and the first of equals
//! wins. The lists follow from the grid alone and are computed once.

use crate::simd::{F32x16, I32x16, Simd};

/// Levels of a weight.
pub(super) const LEVELS: usize = 3;

/// A grid and the candidates of every place. A place is a number whose ternary digits are the levels, the first weight's first.
pub(super) struct Lattice {
    /// Index in a file of the point at a place.
    index: Vec<Option<u16>>,
    /// The candidates of place `p` are `chunks[starts[p]..starts[p + 1]]`.
    starts: Vec<u32>,
    /// Sixteen candidates each, bits as in `grids.rs`. Lane `j` of `n` chunks holds candidates `j * n` and following, so that the first of
    /// equals is in the lowest lane, and there in the first chunk; the last candidate fills up.
    chunks: Vec<[u8; 32]>,
}

impl Lattice {
    /// `points`: a table of `grids.rs`; the candidates are those of the `n_distances` smallest distances.
    pub fn new(points: &[u16], n_distances: usize) -> Lattice {
        // distances[half][h][p]: squared distance of the four levels of place `h` to that half of point `p`
        let distances = [0, 8].map(|shift| -> Vec<Vec<u8>> {
            let of_point = |h: usize, point: u16| {
                let level = |i: u32| h / LEVELS.pow(3 - i) % LEVELS;
                (0..4).map(|i| usize::from(point >> (shift + 2 * i) & 3).abs_diff(level(i)).pow(2)).sum::<usize>() as u8
            };
            (0..LEVELS.pow(4)).map(|h| points.iter().map(|&point| of_point(h, point)).collect()).collect()
        });
        let mut lattice = Lattice { index: Vec::new(), starts: vec![0], chunks: Vec::new() };
        let mut near = vec![0; points.len()];
        for first in &distances[0] {
            for second in &distances[1] {
                for ((near, &first), &second) in near.iter_mut().zip(first).zip(second) {
                    *near = first + second;
                }
                lattice.add_place(points, &near, n_distances);
            }
        }
        lattice
    }

    /// The next place, whose distance to every point is given.
    fn add_place(&mut self, points: &[u16], distances: &[u8], n_distances: usize) {
        let next = |above: Option<u8>| distances.iter().map(|&d| if above.is_none_or(|a| d > a) { d } else { u8::MAX }).min();
        let mut cutoff = next(None).expect("a grid has points");
        let on_grid = cutoff == 0;
        if !on_grid {
            for _ in 1..n_distances {
                cutoff = next(Some(cutoff)).expect("a grid has points");
            }
        }
        let mut candidates: Vec<usize> = (0..points.len()).filter(|&p| distances[p] <= cutoff).collect();
        candidates.sort_by_key(|&p| distances[p]);
        let n_chunks = candidates.len().div_ceil(16);
        for chunk in 0..n_chunks {
            let mut lanes = [0; 32];
            for lane in 0..16 {
                let candidate = candidates[(lane * n_chunks + chunk).min(candidates.len() - 1)];
                lanes[2 * lane..][..2].copy_from_slice(&points[candidate].to_le_bytes());
            }
            self.chunks.push(lanes);
        }
        self.starts.push(self.chunks.len() as u32);
        self.index.push(on_grid.then(|| candidates[0] as u16));
    }

    /// Index in a file of the point at a place.
    pub fn index(&self, place: usize) -> Option<u16> {
        self.index[place]
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
        let chunks = &self.chunks[self.starts[place] as usize..self.starts[place + 1] as usize];
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
        let first = least.eq(F32x16::splat(simd, least.reduce_min())).bits().trailing_zeros() as usize;
        let cheapest = cheapest.to_u16();
        // There is always a cheapest lane; the masks say so to the compiler.
        u16::from_le_bytes([cheapest[2 * (first & 15)], cheapest[2 * (first & 15) + 1]])
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
