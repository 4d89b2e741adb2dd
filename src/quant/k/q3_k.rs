//! `Q3_K`: `w = d*sc[j]*q`, q in -4..=3, sc in -32..=31, 16 sub-blocks `j` of 16; 3.4375 bits per weight. Layout: ggml's `block_q3_K`.
//!
//! ```text
//! 0                 32                                  96               108      110
//! | hmask: 8 x 32   | qs: 2 x 32 x (four runs of 32)    | sc: 16 x 6 bits | d: f16 |
//! ```
//!
//! `q + 4` is stored: its low two bits in `qs`, where each half of the super-block is four runs of 32 weights and run `r` is bits `2r`
//! and `2r+1` of the half's 32 bytes, and the third in `hmask`, of whose bytes bit `r` belongs to run `r` of all eight. `sc + 32` is
//! stored, too: the low four bits of the first eight are the low halves of bytes 0-7, those of the last eight the high halves, and the
//! high bits of sub-block `j` are bits `2(j/4)` and `2(j/4)+1` of byte `8 + j%4`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{LEN, TwoBits, pack_two_bits};
use crate::quant::block::{Block, Dequantize, Half, Quantize};
use crate::quant::lattice::{Assemble, Lattice, Levels, Mins, Parts, SubScales};
use crate::quant::search::symmetric::{self, refine};
use crate::quant::search::{Lanes, lanes_of_sub_blocks, nearest_int, sums_of_squares};
use crate::quant::sink::Sink;
use crate::simd::{F32x16, I32x16, Simd};

/// The bytes of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct Q3_K {
    hmask: [[u8; 16]; 2],
    qs: TwoBits,
    scales: [u8; 12],
    d: Half,
}

/// Half the number of quants, and of scales.
const N: i32 = 4;
const N_SCALES: i32 = 32;

impl Block for Q3_K {
    const LEN: usize = LEN;
}

impl Dequantize for Q3_K {
    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, to: &mut impl Sink<S>) {
        let scales = self.sub_block_scales(simd);
        for half in 0..2 {
            for part in 0..2 {
                let mut low = I32x16::load_u8(simd, &self.qs[half][part]);
                let hmask = I32x16::load_u8(simd, &self.hmask[part]);
                let mut high = if half == 0 { hmask.shl::<2>() } else { hmask.shr::<2>() };
                for run in 0..4 {
                    let (j, q) = (8 * half + 2 * run + part, ((low & 3) | (high & 4)) + -N);
                    to.put(j, F32x16::splat(simd, scales[j]) * q.to_float());
                    (low, high) = (low.shr::<2>(), high.shr::<1>());
                }
            }
        }
    }

    #[inline(always)]
    fn bound<S: Simd>(&self, simd: S) -> f32 {
        self.d.magnitude(simd) * (N_SCALES * N) as f32
    }
}

impl Quantize for Q3_K {
    const USES_IMPORTANCE: bool = true;

    #[inline(always)]
    fn quantize<S: Simd>(simd: S, weights: &[f32], importance: Option<&[f32]>, blocks: &mut [Q3_K]) {
        let Some(importance) = importance else {
            for (blocks, weights) in blocks.chunks_mut(2).zip(weights.chunks(2 * LEN)) {
                quantize_pair(simd, weights, blocks);
            }
            return;
        };
        for (at, (blocks, weights)) in blocks.chunks_mut(16).zip(weights.chunks(16 * LEN)).enumerate() {
            quantize_weighted(simd, weights, &importance[16 * LEN * at..][..weights.len()], blocks);
        }
    }

    #[inline(always)]
    fn is_sound(&self) -> bool {
        self.d.is_finite()
    }
}

/// One or two super-blocks.
#[inline(always)]
fn quantize_pair<S: Simd>(simd: S, weights: &[f32], blocks: &mut [Q3_K]) {
    let (weights, _) = weights.as_chunks::<LEN>();
    let fits = match weights {
        [first, second] => refine(simd, &[lanes_of_sub_blocks(simd, first), lanes_of_sub_blocks(simd, second)], N),
        _ => [refine::<S, 16, 1>(simd, &[lanes_of_sub_blocks(simd, &weights[0])], N)[0]; 2],
    };
    for ((block, weights), fit) in blocks.iter_mut().zip(weights).zip(&fits) {
        *block = Q3_K::fitting(simd, fit.scale);
        let scales = block.sub_block_scales(simd);
        let mut quants = [I32x16::splat(simd, 0); 16];
        if scales.contains(&0.0) {
            // ggml leaves the quants of the search where the scale rounds to zero.
            for (quants, found) in quants.iter_mut().zip(F32x16::transpose(fit.quants)) {
                *quants = found.truncate();
            }
        }
        block.quantize_with_scales(simd, weights, &scales, quants);
    }
}

/// Up to sixteen super-blocks, so that the searches for their `d` fill sixteen lanes.
#[inline(always)]
fn quantize_weighted<S: Simd>(simd: S, weights: &[f32], importance: &[f32], blocks: &mut [Q3_K]) {
    let sums = sums_of_squares(simd, weights);
    let ((weights, _), (importance, _)) = (weights.as_chunks::<LEN>(), importance.as_chunks::<LEN>());
    let zero = F32x16::splat(simd, 0.0);
    let (mut scale, mut sum_w, mut inverse) = ([zero; 16], [zero; 16], [[0.0; 16]; 16]);
    for (at, (weights, importance)) in weights.iter().zip(importance).enumerate() {
        let lanes: Lanes<S, 16> = Lanes::weighted(simd, weights, importance, F32x16::splat(simd, 2.0 * sums[at] / LEN as f32));
        let fit = symmetric::search(simd, &lanes.x, &lanes.w, N);
        (scale[at], inverse[at]) = (fit.scale, fit.inverse.to_array());
        for w in lanes.w {
            sum_w[at] = sum_w[at] + w;
        }
    }
    let made = Q3_K::weighted(simd, &scale, &sum_w);
    for (at, (block, weights)) in blocks.iter_mut().zip(weights).enumerate() {
        *block = made[at];
        let scales = block.sub_block_scales(simd);
        let mut quants = [I32x16::splat(simd, 0); 16];
        for (j, chunk) in weights.as_chunks::<16>().0.iter().enumerate() {
            // ggml leaves the quants of the search where the scale rounds to zero, and zeros where the search found nothing.
            if scales[j] == 0.0 && inverse[at][j] != 0.0 {
                quants[j] = stored(F32x16::load(simd, chunk) * F32x16::splat(simd, inverse[at][j]));
            }
        }
        block.quantize_with_scales(simd, weights, &scales, quants);
    }
}

impl Q3_K {
    /// `sc`: as stored; without quants.
    #[inline(always)]
    fn with_scales(sc: &[u8; 16], d: Half) -> Q3_K {
        let mut scales = [0; 12];
        for j in 0..8 {
            scales[j] = (sc[j] & 15) | (sc[8 + j] & 15) << 4;
        }
        for j in 0..4 {
            scales[8 + j] = sc[j] >> 4 | sc[4 + j] >> 4 << 2 | sc[8 + j] >> 4 << 4 | sc[12 + j] >> 4 << 6;
        }
        Q3_K { hmask: [[0; 16]; 2], qs: [[[0; 16]; 2]; 2], scales, d }
    }

    /// Scales in 32nds of the largest in magnitude, which becomes -32; without quants.
    #[inline(always)]
    fn fitting<S: Simd>(simd: S, scale: F32x16<S>) -> Q3_K {
        let magnitude = scale.abs();
        if !magnitude.le(F32x16::splat(simd, f32::MAX)).bits() != 0 {
            // The sums of the search overflowed; ggml would write zeros.
            return Q3_K::with_scales(&[0; 16], Half::NAN);
        }
        let first = magnitude.eq(F32x16::splat(simd, magnitude.reduce_max())).bits().trailing_zeros();
        let found = scale.to_array();
        let max = found[first as usize];
        if max == 0.0 {
            return Q3_K::with_scales(&[0; 16], Half::new(simd, 0.0));
        }
        let per_scale = -N_SCALES as f32 / max;
        let mut sc = [0; 16];
        for j in 0..16 {
            // ggml keeps a byte of what its rounding gives where a subnormal `max` makes `per_scale` infinite.
            let whole = i32::from(nearest_int(per_scale * found[j]) as i8);
            sc[j] = (whole.clamp(-N_SCALES, N_SCALES - 1) + N_SCALES) as u8;
        }
        Q3_K::with_scales(&sc, Half::new(simd, 1.0 / per_scale))
    }

    /// The scales of sixteen super-blocks, without quants. `scale` and `sum_w`: of sub-block `j` in lane `j`, and how much it counts.
    #[inline(always)]
    fn weighted<S: Simd>(simd: S, scale: &[F32x16<S>; 16], sum_w: &[F32x16<S>; 16]) -> [Q3_K; 16] {
        let x = F32x16::transpose(*scale);
        let fit = symmetric::search(simd, &x, &F32x16::transpose(*sum_w), N_SCALES);
        let (zero, max) = (F32x16::splat(simd, 0.0), F32x16::splat(simd, f32::MAX));
        let all_zero = fit.inverse.eq(zero);
        let mut finite = zero.eq(zero);
        let mut quants = x;
        for quant in &mut quants {
            finite = finite & quant.abs().le(max);
            let whole = (*quant * fit.inverse).nearest_int_in(-N_SCALES, N_SCALES - 1) + F32x16::splat(simd, N_SCALES as f32);
            *quant = all_zero.select(zero, whole);
        }
        // Where the sums of a search overflowed; ggml would write zeros.
        let d = finite.select(fit.scale, F32x16::splat(simd, f32::NAN)).to_array();
        let quants = F32x16::transpose(quants);
        let mut made = [Q3_K::with_scales(&[0; 16], Half::NAN); 16];
        for (at, block) in made.iter_mut().enumerate() {
            *block = Q3_K::with_scales(&quants[at].truncate().to_u8(), Half::new(simd, d[at]));
        }
        made
    }

    /// `d*sc[j]`.
    #[inline(always)]
    fn sub_block_scales<S: Simd>(&self, simd: S) -> [f32; 16] {
        let [first, second, high] = [0, 4, 8].map(|at| u32::from_le_bytes(std::array::from_fn(|i| self.scales[at + i])));
        // Four bytes at a time.
        let words = [
            first & 0x0f0f_0f0f | high << 4 & 0x3030_3030,
            second & 0x0f0f_0f0f | high << 2 & 0x3030_3030,
            first >> 4 & 0x0f0f_0f0f | high & 0x3030_3030,
            second >> 4 & 0x0f0f_0f0f | high >> 2 & 0x3030_3030,
        ];
        let sc = I32x16::load_u8(simd, &zerocopy::transmute!(words.map(u32::to_le_bytes))) + -N_SCALES;
        (self.d.splat(simd) * sc.to_float()).to_array()
    }

    /// `quants`: what sub-blocks get whose scale is zero.
    #[inline(always)]
    fn quantize_with_scales<S: Simd>(&mut self, simd: S, weights: &[f32; LEN], scales: &[f32; 16], mut quants: [I32x16<S>; 16]) {
        for (j, chunk) in weights.as_chunks::<16>().0.iter().enumerate() {
            if scales[j] != 0.0 {
                quants[j] = stored(F32x16::load(simd, chunk) / F32x16::splat(simd, scales[j]));
            }
        }
        self.set_quants(simd, quants);
    }

    /// `quants`: as stored.
    #[inline(always)]
    fn set_quants<S: Simd>(&mut self, simd: S, mut quants: [I32x16<S>; 16]) {
        let mut high = [I32x16::splat(simd, 0); 2];
        for j in (0..16).rev() {
            high[j % 2] = high[j % 2].shl::<1>() | quants[j].shr::<2>();
            quants[j] = quants[j] & 3;
        }
        self.hmask = high.map(|part| part.to_u8());
        self.qs = pack_two_bits(&quants);
    }
}

/// Rounded, clamped, and without sign as it is stored.
#[inline(always)]
fn stored<S: Simd>(q: F32x16<S>) -> I32x16<S> {
    q.nearest_int_in(-N, N - 1).truncate() + N
}

impl Assemble for Q3_K {
    const LATTICE: Lattice = Lattice {
        block_len: LEN,
        sub_block_len: 16,
        levels: Levels::Integers(-N, N - 1),
        scales: SubScales::Integers(-N_SCALES, N_SCALES - 1),
        mins: Mins::None,
    };

    #[inline(always)]
    fn assemble<S: Simd>(simd: S, parts: &Parts) -> Q3_K {
        let mut quants = [I32x16::splat(simd, 0); 16];
        for j in 0..16 {
            quants[j] = parts.sixteen(simd, j) + N;
        }
        let mut block = Q3_K::with_scales(&parts.scales.map(|sc| (sc + N_SCALES) as u8), Half::new(simd, parts.d));
        block.set_quants(simd, quants);
        block
    }
}
