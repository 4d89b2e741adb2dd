//! The search of scale and minimum for `w = scale*q - min`, and the super-blocks of Q4_K and Q5_K that are made with it.
//!
//! For each trial scale the quants are found first, then the scale and minimum that fit those quants best (weighted least squares),
//! then the error of that fit: ggml's `make_qkx2_quants`, and `make_qkx3_quants`, which differs only in the weighting it is given.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{lanes_of_sub_blocks, nearest_int};
use crate::quant::block::Half;
use crate::simd::{F32x16, I32x16, Simd};

/// What is tried: `(first + i * step + q_max) / range` for `i` from 0 to `n`, `q_max` being the largest quant.
pub(super) struct Trials {
    pub q_max: f32,
    pub first: f32,
    pub step: f32,
    pub n: u32,
}

/// What the search found for sixteen sub-blocks.
struct Fit<S: Simd> {
    scale: F32x16<S>,
    /// Not positive; the format stores its negative.
    min: F32x16<S>,
    /// The quants that won are `(x - origin) * inverse`, rounded and clamped.
    inverse: F32x16<S>,
    origin: F32x16<S>,
}

/// `w`: how much each weight counts.
#[inline(always)]
fn search<S: Simd, const N: usize>(simd: S, x: &[F32x16<S>; N], w: &[F32x16<S>; N], trials: &Trials) -> Fit<S> {
    let (zero, one) = (F32x16::splat(simd, 0.0), F32x16::splat(simd, 1.0));
    let (mut min, mut max) = (x[0], x[0]);
    let (mut sum_w, mut sum_x) = (w[0], w[0] * x[0]);
    for i in 1..N {
        min = x[i].min(min);
        max = x[i].max(max);
        sum_w = sum_w + w[i];
        sum_x = sum_x + w[i] * x[i];
    }
    min = zero.min(min);
    let inverse = F32x16::splat(simd, trials.q_max) / (max - min);
    let mut fit = Fit { scale: one / inverse, min, inverse, origin: min };
    let mut best_error = zero;
    for i in 0..N {
        let q = ((x[i] - min) * inverse).nearest_int().clamp(0.0, trials.q_max);
        let error = fit.scale * q + min - x[i];
        best_error = best_error + w[i] * (error * error);
    }

    for trial in 0..=trials.n {
        let inverse = F32x16::splat(simd, trials.first + trials.step * trial as f32 + trials.q_max) / (max - fit.min);
        let mut quants = [zero; N];
        let (mut sum_q, mut sum_qq, mut sum_xq) = (zero, zero, zero);
        for i in 0..N {
            let q = ((x[i] - fit.min) * inverse).nearest_int().clamp(0.0, trials.q_max);
            let wq = w[i] * q;
            sum_q = sum_q + wq;
            sum_qq = sum_qq + wq * q;
            sum_xq = sum_xq + wq * x[i];
            quants[i] = q;
        }
        let determinant = sum_w * sum_qq - sum_q * sum_q;
        let mut scale = (sum_w * sum_xq - sum_x * sum_q) / determinant;
        let mut min = (sum_qq * sum_x - sum_q * sum_xq) / determinant;
        let positive = min.gt(zero);
        if positive.bits() != 0 {
            min = positive.select(zero, min);
            scale = positive.select(sum_xq / sum_qq, scale);
        }
        let mut sum_error = zero;
        for i in 0..N {
            let error = scale * quants[i] + min - x[i];
            sum_error = sum_error + w[i] * (error * error);
        }
        let better = determinant.gt(zero) & sum_error.lt(best_error);
        best_error = better.select(sum_error, best_error);
        fit.inverse = better.select(inverse, fit.inverse);
        fit.origin = better.select(fit.min, fit.origin);
        fit.scale = better.select(scale, fit.scale);
        fit.min = better.select(min, fit.min);
    }
    // Without a range there is nothing to scale, every quant is 0, and no trial was better.
    let flat = max.eq(min);
    Fit { scale: flat.select(zero, fit.scale), inverse: flat.select(zero, fit.inverse), ..fit }
}

/// The scales of a super-block of eight sub-blocks: `d * sc[j]` and `dmin * m[j]`, 6 bits each.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Scales {
    pub d: Half,
    pub dmin: Half,
    pub packed: [u8; 12],
}

/// A super-block of eight sub-blocks of 32: its scales, and the quants of each sub-block as two vectors of 16.
#[derive(Clone, Copy)]
pub(super) struct SuperBlock<S: Simd> {
    pub scales: Scales,
    pub quants: [[I32x16<S>; 2]; 8],
}

/// Quantizes one or two super-blocks: `[256]` or `[512]` weights. Of one, only the first result means anything.
#[inline(always)]
pub(super) fn quantize_pair<S: Simd>(simd: S, weights: &[f32], trials: &Trials) -> [SuperBlock<S>; 2] {
    let mut padded = [0.0; 512];
    padded[..weights.len()].copy_from_slice(weights);
    let x: [F32x16<S>; 32] = lanes_of_sub_blocks(simd, &padded);
    let fit = search(simd, &x, &own_weighting(simd, &x), trials);
    let none =
        SuperBlock { scales: Scales { d: Half::NAN, dmin: Half::NAN, packed: [0; 12] }, quants: [[I32x16::splat(simd, 0); 2]; 8] };
    let mut pair = [none, none];
    for (at, super_block) in pair.iter_mut().enumerate() {
        *super_block = quantize_super_block(simd, padded[256 * at..].first_chunk().expect("256 of 512"), &fit, at, trials.q_max);
    }
    pair
}

/// A weight counts as much as its magnitude plus the root mean square of its sub-block.
#[inline(always)]
fn own_weighting<S: Simd, const N: usize>(simd: S, x: &[F32x16<S>; N]) -> [F32x16<S>; N] {
    let mut sum = F32x16::splat(simd, 0.0);
    for &x in x {
        sum = sum + x * x;
    }
    let rms = (sum / F32x16::splat(simd, N as f32)).sqrt();
    let mut w = *x;
    for w in &mut w {
        *w = rms + w.abs();
    }
    w
}

/// Super-block `at` of the two that `fit` is about.
#[inline(always)]
fn quantize_super_block<S: Simd>(simd: S, weights: &[f32; 256], fit: &Fit<S>, at: usize, q_max: f32) -> SuperBlock<S> {
    let own = |lanes: [f32; 16]| -> [f32; 8] { *lanes[8 * at..].first_chunk().expect("8 of 16 lanes") };
    let scales = Scales::new(simd, &own(fit.scale.to_array()), &own((-fit.min).to_array()));
    let (inverse, origin) = (own(fit.inverse.to_array()), own(fit.origin.to_array()));
    let (chunks, _) = weights.as_chunks::<16>();
    let mut quants = [[I32x16::splat(simd, 0); 2]; 8];
    for j in 0..8 {
        let (scale, min) = scales.get(simd, j);
        for half in 0..2 {
            let x = F32x16::load(simd, &chunks[2 * j + half]);
            let q = if scale != 0.0 {
                (x + F32x16::splat(simd, min)) / F32x16::splat(simd, scale)
            } else {
                // ggml leaves the quants of the search where the scale rounds to zero.
                (x - F32x16::splat(simd, origin[j])) * F32x16::splat(simd, inverse[j])
            };
            quants[j][half] = q.nearest_int().clamp(0.0, q_max).truncate();
        }
    }
    SuperBlock { scales, quants }
}

impl Scales {
    /// Scales and minimums in 63rds of their largest.
    #[inline(always)]
    fn new<S: Simd>(simd: S, scale: &[f32; 8], min: &[f32; 8]) -> Scales {
        let (max_scale, max_min) = (largest(scale), largest(min));
        let per_scale = if max_scale > 0.0 { 63.0 / max_scale } else { 0.0 };
        let per_min = if max_min > 0.0 { 63.0 / max_min } else { 0.0 };
        let mut packed = [0; 12];
        for j in 0..8 {
            // A negative scale wraps round to a large one, as in ggml.
            let sc = (nearest_int(per_scale * scale[j]) as u8).min(63);
            let m = (nearest_int(per_min * min[j]) as u8).min(63);
            if j < 4 {
                packed[j] = sc;
                packed[j + 4] = m;
            } else {
                packed[j + 4] = (sc & 15) | ((m & 15) << 4);
                packed[j - 4] |= sc >> 4 << 6;
                packed[j] |= m >> 4 << 6;
            }
        }
        Scales { d: Half::new(simd, max_scale / 63.0), dmin: Half::new(simd, max_min / 63.0), packed }
    }

    /// `(d * sc[j], dmin * m[j])`. The first four `sc` and `m` are the low 6 bits of bytes 0-3 and 4-7; of the others, bytes 8-11 hold
    /// the low 4 bits, and the 2 bits above the first four are the high ones.
    #[inline(always)]
    pub(super) fn get<S: Simd>(&self, simd: S, j: usize) -> (f32, f32) {
        let p = &self.packed;
        let (sc, m) = if j < 4 {
            (p[j] & 63, p[j + 4] & 63)
        } else {
            ((p[j + 4] & 15) | (p[j - 4] >> 6 << 4), (p[j + 4] >> 4) | (p[j] >> 6 << 4))
        };
        (self.d.to_f32(simd) * f32::from(sc), self.dmin.to_f32(simd) * f32::from(m))
    }

    /// [`get`](Scales::get) in every lane.
    #[inline(always)]
    pub(super) fn lanes<S: Simd>(&self, simd: S, j: usize) -> (F32x16<S>, F32x16<S>) {
        let (scale, min) = self.get(simd, j);
        (F32x16::splat(simd, scale), F32x16::splat(simd, min))
    }

    #[inline(always)]
    pub(super) fn are_finite(&self) -> bool {
        self.d.is_finite() && self.dmin.is_finite()
    }
}

/// The largest positive number, or 0.
#[inline(always)]
fn largest(of: &[f32; 8]) -> f32 {
    of.iter().fold(0.0, |max, &v| if v > max { v } else { max })
}
