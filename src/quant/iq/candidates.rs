//! For every combination of levels, the grid points that come into question for it, laid out for a search in lanes.
//!
//! Rounding the weights of a point gives a combination of levels, a *place*. Where it is no grid point, ggml looks for the best point
//! among those of the few smallest distances to it (two distances for IQ2_XXS, say), in order of distance, then index, and the first
//! of equals wins. The lists follow from the grid alone and are made once, in some milliseconds.

use crate::simd::{F32x16, I32x16, Simd};

/// The candidates of every place.
pub(super) struct Candidates {
    /// Index in a file of the point at a place.
    index: Vec<Option<u16>>,
    /// The candidates of place `p` are `chunks[starts[p]..starts[p + 1]]`.
    starts: Vec<u32>,
    /// Sixteen candidates each. Lane `j` of `n` chunks holds candidates `j * n` and following, so that the first of equals is in the
    /// lowest lane, and there in the first chunk; the last candidate fills up.
    chunks: Vec<[u8; 32]>,
}

impl Candidates {
    /// No place yet.
    pub fn new() -> Candidates {
        Candidates { index: Vec::new(), starts: vec![0], chunks: Vec::new() }
    }

    /// Adds the next place: `distances` are those to every point, and the candidates are the points at the `n_distances` smallest, or at
    /// 0 where the place is a point. `points`: what stands for each in the lists.
    pub fn add_place(&mut self, points: &[u16], distances: &[u8], n_distances: usize) {
        let next = |above: Option<u8>| distances.iter().map(|&d| if above.is_none_or(|a| d > a) { d } else { u8::MAX }).min();
        let mut farthest = next(None).expect("a grid has points");
        let on_grid = farthest == 0;
        if !on_grid {
            for _ in 1..n_distances {
                farthest = next(Some(farthest)).expect("a grid has points");
            }
        }
        let mut order: Vec<usize> = (0..points.len()).filter(|&p| distances[p] <= farthest).collect();
        order.sort_by_key(|&p| distances[p]);
        let n_chunks = order.len().div_ceil(16);
        for chunk in 0..n_chunks {
            let mut lanes = [0; 32];
            for lane in 0..16 {
                let candidate = order[(lane * n_chunks + chunk).min(order.len() - 1)];
                lanes[2 * lane..][..2].copy_from_slice(&points[candidate].to_le_bytes());
            }
            self.chunks.push(lanes);
        }
        self.starts.push(self.chunks.len() as u32);
        self.index.push(on_grid.then(|| order[0] as u16));
    }

    /// Index in a file of the point at a place, where there is one.
    #[inline(always)]
    pub fn index(&self, place: usize) -> Option<u16> {
        self.index[place]
    }

    /// The candidates of a place, sixteen at a time; never none.
    #[inline(always)]
    pub fn of(&self, place: usize) -> &[[u8; 32]] {
        &self.chunks[self.starts[place] as usize..self.starts[place + 1] as usize]
    }
}

/// Of sixteen candidates and their costs, the first of the cheapest.
#[inline(always)]
pub(super) fn first_cheapest<S: Simd>(simd: S, candidates: I32x16<S>, costs: F32x16<S>) -> u16 {
    let first = costs.eq(F32x16::splat(simd, costs.reduce_min())).bits().trailing_zeros() as usize;
    // There is always a cheapest lane; the mask says so to the compiler.
    u16_at(&candidates.to_u16(), first & 15)
}

/// Number `i` of sixteen.
#[inline(always)]
pub(super) fn u16_at(of: &[u8; 32], i: usize) -> u16 {
    u16::from_le_bytes([of[2 * i], of[2 * i + 1]])
}

/// Sets number `i` of sixteen.
#[inline(always)]
pub(super) fn set_u16_at(of: &mut [u8; 32], i: usize, value: u16) {
    of[2 * i..][..2].copy_from_slice(&value.to_le_bytes());
}
