//! The super-blocks of Q4_K and Q5_K: eight sub-blocks of 32, each with a scale and a minimum of 6 bits.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::LEN;
use crate::quant::block::Half;
use crate::quant::lattice::Parts;
use crate::quant::search::affine::{Fit, Trials, search};
use crate::quant::search::{Lanes, lanes_of_sub_blocks, nearest_int, positive, sums_of_squares};
use crate::simd::{F32x16, I32x16, Simd};

/// The scales of a super-block of eight sub-blocks: `d * sc[j]` and `dmin * m[j]`, 6 bits each.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Scales {
    pub d: Half,
    pub dmin: Half,
    pub packed: [u8; 12],
}

/// A super-block of eight sub-blocks of 32: its scales, and the quants of each sub-block as two vectors of 16.
pub(super) struct SuperBlock<S: Simd> {
    pub scales: Scales,
    pub quants: [[I32x16<S>; 2]; 8],
}

/// A format of such super-blocks.
pub(super) trait Affine: Copy {
    /// Without importance.
    const TRIALS: Trials;
    /// Where ggml cuts off `sc` and `m` that it made with importance. A scale that rounding errors made negative has wrapped round to a
    /// large one, and where 6 bits are not enough for it, ggml lets it spill into its neighbours.
    const WEIGHTED_SCALE_MAX: u8;
    fn pack<S: Simd>(simd: S, made: &SuperBlock<S>) -> Self;
}

#[inline(always)]
pub(super) fn quantize<S: Simd, B: Affine>(simd: S, weights: &[f32], importance: Option<&[f32]>, blocks: &mut [B]) {
    if let Some(importance) = importance {
        for (at, (blocks, weights)) in blocks.chunks_mut(8).zip(weights.chunks(8 * LEN)).enumerate() {
            quantize_weighted(simd, weights, &importance[8 * LEN * at..][..weights.len()], blocks);
        }
        return;
    }
    for (blocks, weights) in blocks.chunks_mut(4).zip(weights.chunks(4 * LEN)) {
        if blocks.len() > 2 {
            quantize_groups::<S, B, 2>(simd, weights, blocks);
        } else {
            quantize_groups::<S, B, 1>(simd, weights, blocks);
        }
    }
}

/// Up to `2 * G` super-blocks; lanes without a sub-block work on zeros.
#[inline(always)]
fn quantize_groups<S: Simd, B: Affine, const G: usize>(simd: S, weights: &[f32], blocks: &mut [B]) {
    let padded: [[f32; 2 * LEN]; G] = padded(weights);
    let mut groups = [own_weighting::<S, 32>(simd, &padded[0]); G];
    for g in 1..G {
        groups[g] = own_weighting(simd, &padded[g]);
    }
    let fits = search(simd, &groups, &B::TRIALS);
    for (at, (block, weights)) in blocks.iter_mut().zip(weights.as_chunks().0).enumerate() {
        let fit = &fits[at / 2];
        let scales = Scales::fitting(simd, &half(fit.scale, at), &half(-fit.min, at));
        *block = B::pack(simd, &quantize_super_block(simd, weights, scales, fit, at, B::TRIALS.q_max));
    }
}

/// Up to eight super-blocks, so that the searches for their `d` and `dmin` fill sixteen lanes.
#[inline(always)]
fn quantize_weighted<S: Simd, B: Affine>(simd: S, weights: &[f32], importance: &[f32], blocks: &mut [B]) {
    let sums = sums_of_squares(simd, weights);
    let mut fits = [Fit::none(simd); 4];
    for (at, (weights, importance)) in weights.chunks(4 * LEN).zip(importance.chunks(4 * LEN)).enumerate() {
        let sums = [[sums[4 * at], sums[4 * at + 1]], [sums[4 * at + 2], sums[4 * at + 3]]];
        if weights.len() > 2 * LEN {
            fits[2 * at..][..2].copy_from_slice(&fit_weighted::<S, 2>(simd, weights, importance, &sums, B::TRIALS.q_max));
        } else {
            fits[2 * at] = fit_weighted::<S, 1>(simd, weights, importance, &[sums[0]], B::TRIALS.q_max)[0];
        }
    }
    let scales = Scales::weighted(simd, &fits, B::WEIGHTED_SCALE_MAX);
    for (at, (block, weights)) in blocks.iter_mut().zip(weights.as_chunks().0).enumerate() {
        *block = B::pack(simd, &quantize_super_block(simd, weights, scales[at], &fits[at / 2], at, B::TRIALS.q_max));
    }
}

/// The fits of up to `2 * G` super-blocks; `sums`: of the squares of their weights.
#[inline(always)]
fn fit_weighted<S: Simd, const G: usize>(
    simd: S,
    weights: &[f32],
    importance: &[f32],
    sums: &[[f32; 2]; G],
    q_max: i32,
) -> [Fit<S>; G] {
    let (weights, importance): ([[f32; 2 * LEN]; G], [[f32; 2 * LEN]; G]) = (padded(weights), padded(importance));
    let zero = F32x16::splat(simd, 0.0);
    let mut groups = [Lanes { x: [zero; 32], w: [zero; 32] }; G];
    for g in 0..G {
        let mut sigma2 = [2.0 * sums[g][0] / LEN as f32; 16];
        sigma2[8..].fill(2.0 * sums[g][1] / LEN as f32);
        groups[g] = Lanes::weighted(simd, &weights[g], &importance[g], F32x16::load(simd, &sigma2));
    }
    search(simd, &groups, &Trials::weighted(q_max))
}

/// Zeros behind what is there.
#[inline(always)]
fn padded<const G: usize>(weights: &[f32]) -> [[f32; 2 * LEN]; G] {
    let mut padded = [[0.0; 2 * LEN]; G];
    padded.as_flattened_mut()[..weights.len()].copy_from_slice(weights);
    padded
}

/// A weight counts as much as its magnitude plus the root mean square of its sub-block.
#[inline(always)]
fn own_weighting<S: Simd, const N: usize>(simd: S, weights: &[f32]) -> Lanes<S, N> {
    let x: [F32x16<S>; N] = lanes_of_sub_blocks(simd, weights);
    let mut sum = F32x16::splat(simd, 0.0);
    for i in 0..N {
        sum = sum + x[i] * x[i];
    }
    let rms = (sum / F32x16::splat(simd, N as f32)).sqrt();
    let mut w = x;
    for i in 0..N {
        w[i] = rms + x[i].abs();
    }
    Lanes { x, w }
}

/// Of the lanes of two super-blocks those that belong to super-block `at`.
#[inline(always)]
fn half<S: Simd>(lanes: F32x16<S>, at: usize) -> [f32; 8] {
    *lanes.to_array()[8 * (at % 2)..].first_chunk().expect("8 of 16 lanes")
}

/// The quants of super-block `at`, one of the two that `fit` is about.
#[inline(always)]
fn quantize_super_block<S: Simd>(
    simd: S,
    weights: &[f32; LEN],
    scales: Scales,
    fit: &Fit<S>,
    at: usize,
    q_max: i32,
) -> SuperBlock<S> {
    let (inverse, origin) = (half(fit.inverse, at), half(fit.origin, at));
    let (chunks, _) = weights.as_chunks::<16>();
    let [sub_block_scales, mins] = scales.products(simd).map(F32x16::to_array);
    let mut quants = [[I32x16::splat(simd, 0); 2]; 8];
    for j in 0..8 {
        let (scale, min) = (sub_block_scales[j], mins[8 + j]);
        for half in 0..2 {
            let x = F32x16::load(simd, &chunks[2 * j + half]);
            let q = if scale != 0.0 {
                (x + F32x16::splat(simd, min)) / F32x16::splat(simd, scale)
            } else {
                // ggml leaves the quants of the search where the scale rounds to zero.
                (x - F32x16::splat(simd, origin[j])) * F32x16::splat(simd, inverse[j])
            };
            quants[j][half] = q.nearest_int_in(0, q_max).truncate();
        }
    }
    SuperBlock { scales, quants }
}

impl<S: Simd> SuperBlock<S> {
    /// Of chosen scales and quants.
    #[inline(always)]
    pub fn of_parts(simd: S, parts: &Parts) -> SuperBlock<S> {
        let bytes = |of: &[i32; 16]| -> [u8; 8] { std::array::from_fn(|j| of[j] as u8) };
        let packed = pack(&bytes(&parts.scales), &bytes(&parts.mins));
        let mut quants = [[I32x16::splat(simd, 0); 2]; 8];
        for j in 0..8 {
            quants[j] = [parts.sixteen(simd, 2 * j), parts.sixteen(simd, 2 * j + 1)];
        }
        SuperBlock { scales: Scales { d: Half::new(simd, parts.d), dmin: Half::new(simd, parts.dmin), packed }, quants }
    }
}

impl Scales {
    /// Scales and minimums in 63rds of their largest.
    #[inline(always)]
    fn fitting<S: Simd>(simd: S, scale: &[f32; 8], min: &[f32; 8]) -> Scales {
        let (max_scale, max_min) = (largest(scale), largest(min));
        let per_scale = if max_scale > 0.0 { 63.0 / max_scale } else { 0.0 };
        let per_min = if max_min > 0.0 { 63.0 / max_min } else { 0.0 };
        let (mut sc, mut m) = ([0; 8], [0; 8]);
        for j in 0..8 {
            // A negative scale wraps round to a large one, as in ggml.
            sc[j] = (nearest_int(per_scale * scale[j]) as u8).min(63);
            m[j] = (nearest_int(per_min * min[j]) as u8).min(63);
        }
        Scales { d: Half::new(simd, max_scale / 63.0), dmin: Half::new(simd, max_min / 63.0), packed: pack(&sc, &m) }
    }

    /// The scales of eight super-blocks, two in each fit. A sub-block counts as much as its weights together.
    #[inline(always)]
    fn weighted<S: Simd>(simd: S, fits: &[Fit<S>; 4], max: u8) -> [Scales; 8] {
        // Lane `at` of vector `j` belongs to the scale of sub-block `j` of super-block `at`, lane `8 + at` to the minimum.
        let (mut x, mut w) = ([[0.0; 16]; 8], [[0.0; 16]; 8]);
        for (g, fit) in fits.iter().enumerate() {
            let (scale, min, sum_w) = (fit.scale.to_array(), (-fit.min).to_array(), fit.sum_w.to_array());
            for i in 0..16 {
                let (at, j) = (2 * g + i / 8, i % 8);
                (x[j][at], x[j][8 + at]) = (scale[i], min[i]);
                (w[j][at], w[j][8 + at]) = (sum_w[i], sum_w[i]);
            }
        }
        let zero = F32x16::splat(simd, 0.0);
        let mut lanes = Lanes { x: [zero; 8], w: [zero; 8] };
        for j in 0..8 {
            lanes.x[j] = F32x16::load(simd, &x[j]);
            lanes.w[j] = F32x16::load(simd, &w[j]);
        }
        let fit = positive::search(simd, &lanes.x, &lanes.w, 63);
        let d = fit.scale.to_array();
        let mut quants = [[0; 16]; 8];
        for j in 0..8 {
            quants[j] = fit.quants[j].truncate().to_u8();
        }
        let mut scales = [Scales { d: Half::new(simd, 0.0), dmin: Half::new(simd, 0.0), packed: [0; 12] }; 8];
        for (at, scales) in scales.iter_mut().enumerate() {
            let (sc, m) = (quants.map(|q| q[at].min(max)), quants.map(|q| q[8 + at].min(max)));
            *scales = Scales { d: Half::new(simd, d[at]), dmin: Half::new(simd, d[8 + at]), packed: pack(&sc, &m) };
        }
        scales
    }

    /// `d * sc[j]` in lane `j` of the first vector, `dmin * m[j]` in lane `8 + j` of the second, undoing [`pack`].
    #[inline(always)]
    pub(super) fn products<S: Simd>(&self, simd: S) -> [F32x16<S>; 2] {
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| self.packed[4 * at + i]));
        let (first_sc, first_m, others) = (word(0), word(1), word(2));
        // Four bytes at a time: the first four `sc`, the other four, and the same of `m`.
        let words = [
            first_sc & 0x3f3f_3f3f,
            (others & 0x0f0f_0f0f) | (first_sc >> 2 & 0x3030_3030),
            first_m & 0x3f3f_3f3f,
            (others >> 4 & 0x0f0f_0f0f) | (first_m >> 2 & 0x3030_3030),
        ];
        let factors = I32x16::load_u8(simd, &zerocopy::transmute!(words.map(u32::to_le_bytes))).to_float();
        [factors * self.d.splat(simd), factors * self.dmin.splat(simd)]
    }

    /// No weight with quants up to `q_max` is larger in magnitude: the ends of every sub-block's range.
    #[inline(always)]
    pub(super) fn bound<S: Simd>(&self, simd: S, q_max: f32) -> f32 {
        const FIRST: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7];
        const LAST: [u8; 16] = [8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15];
        let [scales, mins] = self.products(simd);
        let scales = scales.lookup(I32x16::load_u8(simd, &FIRST));
        let mins = mins.lookup(I32x16::load_u8(simd, &LAST));
        (scales * F32x16::splat(simd, q_max) - mins).abs().max(mins.abs()).reduce_max()
    }

    #[inline(always)]
    pub(super) fn are_finite(&self) -> bool {
        self.d.is_finite() && self.dmin.is_finite()
    }
}

/// The first four `sc` and `m` are the low 6 bits of bytes 0-3 and 4-7; of the others, bytes 8-11 hold the low 4 bits, and the 2 bits
/// above the first four are the high ones.
#[inline(always)]
fn pack(sc: &[u8; 8], m: &[u8; 8]) -> [u8; 12] {
    let mut packed = [0; 12];
    packed[..4].copy_from_slice(&sc[..4]);
    packed[4..8].copy_from_slice(&m[..4]);
    for j in 4..8 {
        packed[j + 4] = (sc[j] & 15) | (m[j] & 15) << 4;
        packed[j - 4] |= sc[j] >> 4 << 6;
        packed[j] |= m[j] >> 4 << 6;
    }
    packed
}

/// The largest positive number, or 0.
#[inline(always)]
pub(super) fn largest(of: &[f32]) -> f32 {
    of.iter().fold(0.0, |max, &v| if v > max { v } else { max })
}
