//! `Q2_K`: `w = d*sc[j]*q - dmin*m[j]`, q in 0..=3, 16 sub-blocks `j` of 16; 2.625 bits per weight. Layout: ggml's `block_q2_K`.
//!
//! ```text
//! 0                       16                                  80       82          84
//! | 16 x (sc low, m high) | qs: 2 x 32 x (four runs of 32)    | d: f16 | dmin: f16 |
//! ```
//!
//! Each half of the super-block is four runs of 32 weights; run `r` is bits `2r` and `2r+1` of its 32 bytes.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::affine::largest;
use super::{LEN, TwoBits, pack_two_bits, unpack_two_bits};
use crate::quant::block::{Block, Dequantize, Half, Quantize};
use crate::quant::lattice::{Assemble, Lattice, Levels, Mins, Parts, SubScales};
use crate::quant::search::affine::{Error, Fit, Trials, search};
use crate::quant::search::{Lanes, lanes_of_sub_blocks, nearest_int, positive, sums_of_squares};
use crate::quant::sink::Sink;
use crate::simd::{F32x16, I32x16, Simd};

/// The bytes of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct Q2_K {
    scales: [u8; 16],
    qs: TwoBits,
    d: Half,
    dmin: Half,
}

const Q_MAX: i32 = 3;

/// The largest `sc` and `m`.
const SCALE_MAX: i32 = 15;

const TRIALS: Trials = Trials { q_max: Q_MAX, first: -0.5, step: 0.1, n: 15, error: Error::Magnitudes };

impl Block for Q2_K {
    const LEN: usize = LEN;
}

impl Dequantize for Q2_K {
    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, to: &mut impl Sink<S>) {
        let (scales, mins) = self.sub_block_scales(simd);
        let quants = unpack_two_bits(simd, &self.qs);
        for j in 0..16 {
            to.put(j, F32x16::splat(simd, scales[j]) * quants[j].to_float() - F32x16::splat(simd, mins[j]));
        }
    }

    #[inline(always)]
    fn bound<S: Simd>(&self, simd: S) -> f32 {
        let bytes = I32x16::load_u8(simd, &self.scales);
        let scales = self.d.splat(simd) * (bytes & 15).to_float();
        let mins = self.dmin.splat(simd) * bytes.shr::<4>().to_float();
        (scales * F32x16::splat(simd, Q_MAX as f32) - mins).abs().max(mins.abs()).reduce_max()
    }
}

impl Quantize for Q2_K {
    const USES_IMPORTANCE: bool = true;

    #[inline(always)]
    fn quantize<S: Simd>(simd: S, weights: &[f32], importance: Option<&[f32]>, blocks: &mut [Q2_K]) {
        let Some(importance) = importance else {
            for (blocks, weights) in blocks.chunks_mut(2).zip(weights.chunks(2 * LEN)) {
                quantize_pair(simd, weights, blocks);
            }
            return;
        };
        for (at, (blocks, weights)) in blocks.chunks_mut(8).zip(weights.chunks(8 * LEN)).enumerate() {
            quantize_weighted(simd, weights, &importance[8 * LEN * at..][..weights.len()], blocks);
        }
    }

    #[inline(always)]
    fn is_sound(&self) -> bool {
        self.d.is_finite() && self.dmin.is_finite()
    }
}

/// One or two super-blocks.
#[inline(always)]
fn quantize_pair<S: Simd>(simd: S, weights: &[f32], blocks: &mut [Q2_K]) {
    let (weights, _) = weights.as_chunks::<LEN>();
    let fits = match weights {
        [first, second] => search(simd, &[own_weighting(simd, first), own_weighting(simd, second)], &TRIALS),
        _ => [search(simd, &[own_weighting(simd, &weights[0])], &TRIALS)[0]; 2],
    };
    for ((block, weights), fit) in blocks.iter_mut().zip(weights).zip(&fits) {
        *block = Q2_K::fitting(simd, fit);
        block.quantize_with_scales(simd, weights, fit);
    }
}

/// A weight counts as much as its magnitude.
#[inline(always)]
fn own_weighting<S: Simd>(simd: S, weights: &[f32; LEN]) -> Lanes<S, 16> {
    let x: [F32x16<S>; 16] = lanes_of_sub_blocks(simd, weights);
    let mut w = x;
    for w in &mut w {
        *w = w.abs();
    }
    Lanes { x, w }
}

/// Up to eight super-blocks, so that the searches for their `d` and `dmin` fill sixteen lanes.
#[inline(always)]
fn quantize_weighted<S: Simd>(simd: S, weights: &[f32], importance: &[f32], blocks: &mut [Q2_K]) {
    let sums = sums_of_squares(simd, weights);
    let ((weights, _), (importance, _)) = (weights.as_chunks::<LEN>(), importance.as_chunks::<LEN>());
    let mut fits = [Fit::none(simd); 8];
    for at in (0..weights.len()).step_by(2) {
        let first = weighted(simd, &weights[at], &importance[at], sums[at]);
        if at + 1 < weights.len() {
            let second = weighted(simd, &weights[at + 1], &importance[at + 1], sums[at + 1]);
            fits[at..at + 2].copy_from_slice(&search(simd, &[first, second], &Trials::weighted(Q_MAX)));
        } else {
            fits[at] = search(simd, &[first], &Trials::weighted(Q_MAX))[0];
        }
    }
    let made = Q2_K::weighted(simd, &fits);
    for (at, (block, weights)) in blocks.iter_mut().zip(weights).enumerate() {
        *block = made[at];
        block.quantize_with_scales(simd, weights, &fits[at]);
    }
}

#[inline(always)]
fn weighted<S: Simd>(simd: S, weights: &[f32; LEN], importance: &[f32; LEN], sum_of_squares: f32) -> Lanes<S, 16> {
    Lanes::weighted(simd, weights, importance, F32x16::splat(simd, sum_of_squares / LEN as f32))
}

impl Q2_K {
    /// Scales and minimums in 15ths of their largest; without quants.
    #[inline(always)]
    fn fitting<S: Simd>(simd: S, fit: &Fit<S>) -> Q2_K {
        let (scale, min) = (fit.scale.to_array(), (-fit.min).to_array());
        let (max_scale, max_min) = (largest(&scale), largest(&min));
        let scale_max = SCALE_MAX as f32;
        let per_scale = if max_scale > 0.0 { scale_max / max_scale } else { 0.0 };
        let per_min = if max_min > 0.0 { scale_max / max_min } else { 0.0 };
        let mut scales = [0; 16];
        for j in 0..16 {
            // A negative scale wraps round and spills into the minimum, as in ggml.
            scales[j] = (nearest_int(per_scale * scale[j]) | nearest_int(per_min * min[j]) << 4) as u8;
        }
        let (d, dmin) = (Half::new(simd, max_scale / scale_max), Half::new(simd, max_min / scale_max));
        Q2_K { scales, qs: [[[0; 16]; 2]; 2], d, dmin }
    }

    /// The scales of eight super-blocks; without quants. A sub-block counts as much as its weights together.
    #[inline(always)]
    fn weighted<S: Simd>(simd: S, fits: &[Fit<S>; 8]) -> [Q2_K; 8] {
        // Once turned round, lane `at` belongs to the scales of super-block `at`, lane `8 + at` to its minimums.
        let (mut x, mut w) = ([fits[0].scale; 16], [fits[0].sum_w; 16]);
        for (at, fit) in fits.iter().enumerate() {
            (x[at], x[8 + at]) = (fit.scale, -fit.min);
            (w[at], w[8 + at]) = (fit.sum_w, fit.sum_w);
        }
        let found = positive::search(simd, &F32x16::transpose(x), &F32x16::transpose(w), SCALE_MAX);
        let (d, quants) = (found.scale.to_array(), F32x16::transpose(found.quants));
        let mut made = [Q2_K { scales: [0; 16], qs: [[[0; 16]; 2]; 2], d: Half::NAN, dmin: Half::NAN }; 8];
        for (at, block) in made.iter_mut().enumerate() {
            let (sc, m) = (quants[at].truncate(), quants[8 + at].truncate());
            block.scales = (sc | m.shl::<4>()).to_u8();
            (block.d, block.dmin) = (Half::new(simd, d[at]), Half::new(simd, d[8 + at]));
        }
        made
    }

    /// `d*sc[j]` and `dmin*m[j]`.
    #[inline(always)]
    fn sub_block_scales<S: Simd>(&self, simd: S) -> ([f32; 16], [f32; 16]) {
        let bytes = I32x16::load_u8(simd, &self.scales);
        let (d, dmin) = (self.d.splat(simd), self.dmin.splat(simd));
        ((d * (bytes & 15).to_float()).to_array(), (dmin * bytes.shr::<4>().to_float()).to_array())
    }

    #[inline(always)]
    fn quantize_with_scales<S: Simd>(&mut self, simd: S, weights: &[f32; LEN], fit: &Fit<S>) {
        let (scales, mins) = self.sub_block_scales(simd);
        let (inverse, origin) = (fit.inverse.to_array(), fit.origin.to_array());
        let mut quants = [I32x16::splat(simd, 0); 16];
        for (j, chunk) in weights.as_chunks::<16>().0.iter().enumerate() {
            let x = F32x16::load(simd, chunk);
            let q = if scales[j] != 0.0 {
                (x + F32x16::splat(simd, mins[j])) / F32x16::splat(simd, scales[j])
            } else {
                // ggml leaves the quants of the search where the scale rounds to zero.
                (x - F32x16::splat(simd, origin[j])) * F32x16::splat(simd, inverse[j])
            };
            quants[j] = q.nearest_int_in(0, Q_MAX).truncate();
        }
        self.qs = pack_two_bits(&quants);
    }
}

impl Assemble for Q2_K {
    const LATTICE: Lattice = Lattice {
        block_len: LEN,
        sub_block_len: 16,
        levels: Levels::Integers(0, Q_MAX),
        scales: SubScales::Integers(0, SCALE_MAX),
        mins: Mins::Multiples(SCALE_MAX),
    };

    #[inline(always)]
    fn assemble<S: Simd>(simd: S, parts: &Parts) -> Q2_K {
        let mut quants = [I32x16::splat(simd, 0); 16];
        let mut scales = [0; 16];
        for j in 0..16 {
            quants[j] = parts.sixteen(simd, j);
            scales[j] = (parts.scales[j] | parts.mins[j] << 4) as u8;
        }
        Q2_K { scales, qs: pack_two_bits(&quants), d: Half::new(simd, parts.d), dmin: Half::new(simd, parts.dmin) }
    }
}
