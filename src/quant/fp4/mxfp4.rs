//! `MXFP4`: `w = 2^(e-127)*v`, v a 4-bit float; 4.25 bits per weight. Layout: ggml's `block_mxfp4`; OCP's Microscaling formats.
//!
//! ```text
//! 0        1                                17
//! | e: u8  | qs: 16 x (low, high half)      |
//! ```
//!
//! Weight `i` is the low half of byte `i`, weight `16 + i` the high half. The scale is 2 octaves below the largest magnitude.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Bounds, LEVELS, VALUES, codes_of_parts, weights};
use crate::quant::block::{Block, Dequantize, Quantize, magnitude};
use crate::quant::lattice::{Assemble, Floats, Lattice, Levels, Mins, Parts, SubScales};
use crate::quant::simple::{from_nibbles, halves, nibbles};
use crate::quant::sink::Sink;
use crate::simd::{F32x16, I32x16, Simd};

/// The bytes of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct MXFP4 {
    e: u8,
    qs: [u8; 16],
}

impl Block for MXFP4 {
    const LEN: usize = 32;
}

impl Dequantize for MXFP4 {
    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, to: &mut impl Sink<S>) {
        let values = F32x16::load(simd, &VALUES);
        let d = F32x16::splat(simd, half_scale(self.e));
        let [q0, q1] = from_nibbles(simd, &self.qs);
        to.put(0, weights(values, q0, d));
        to.put(1, weights(values, q1, d));
    }

    #[inline(always)]
    fn bound<S: Simd>(&self, _simd: S) -> f32 {
        half_scale(self.e) * VALUES[7]
    }
}

impl Quantize for MXFP4 {
    #[inline(always)]
    fn quantize<S: Simd>(simd: S, weights: &[f32], _importance: Option<&[f32]>, blocks: &mut [MXFP4]) {
        for (block, weights) in blocks.iter_mut().zip(weights.as_chunks::<32>().0) {
            let e = exponent(magnitude(simd, weights));
            let bounds = Bounds::new(simd, half_scale(e));
            let [x0, x1] = halves(simd, weights);
            block.qs = nibbles(bounds.codes(simd, x0), bounds.codes(simd, x1));
            block.e = if e == NAN { 0 } else { e };
        }
    }

    /// Every finite weight has a scale.
    #[inline(always)]
    fn is_sound(&self) -> bool {
        true
    }
}

/// `2^(e-128)`, half the scale; the first two are subnormal.
#[inline(always)]
const fn half_scale(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e as u32 - 1) << 23 })
}

/// The scale that stands for NaN. ggml writes it with blocks of zeros, see [`exponent`], and then refuses to load them; 0 is written
/// instead, with which they read the same.
const NAN: u8 = 255;

/// The scale of a block: `floor(log2(magnitude)) - 2`, biased by 127, as a byte. Below 2^-125 that is negative and wraps round, as in
/// ggml, to a scale so large that every weight is 0.
#[inline(always)]
fn exponent(magnitude: f32) -> u8 {
    if magnitude == 0.0 { 0 } else { (floor_log2(magnitude) - 2 + 127) as u8 }
}

/// `floorf(log2f(x))`, log2f being rounded correctly: a number a few last places below a power of two counts as that power, because
/// its logarithm rounds to a whole number.
#[inline(always)]
fn floor_log2(x: f32) -> i32 {
    // Subnormal numbers are brought among the normal ones.
    let (x, octaves) = if x < f32::MIN_POSITIVE { (x * 16_777_216.0, 24) } else { (x, 0) };
    let floor = (x.to_bits() >> 23) as i32 - 127 - octaves;
    // In 2^-24 of the next power. The logarithm is less than that power's by the 2^-24 / ln 2 of each.
    let below = 0x0080_0000 - (x.to_bits() & 0x007f_ffff);
    if below > 88 { floor } else { floor_log2_near_next(floor, below) }
}

#[cold]
fn floor_log2_near_next(floor: i32, below: u32) -> i32 {
    let next = floor + 1;
    // Floats just nearer to 0 than `next` are 2^-23 apart times this; a whole number is even, so half of that still rounds to it.
    let octave = (if next > 0 { next - 1 } else { -next }).checked_ilog2().map_or(0.0, |log2| f64::from(1 << log2));
    if f64::from(below) <= octave * std::f64::consts::LN_2 { next } else { floor }
}

impl Assemble for MXFP4 {
    /// Powers of two from the first that is a normal float to the last with which all weights are finite.
    const LATTICE: Lattice = Lattice {
        block_len: 32,
        sub_block_len: 32,
        levels: Levels::Listed(&LEVELS),
        scales: SubScales::Floats(Floats { mantissa_bits: 0, least: f32::MIN_POSITIVE, most: half_scale(NAN - 3) }),
        mins: Mins::None,
    };

    #[inline(always)]
    fn assemble<S: Simd>(simd: S, parts: &Parts) -> MXFP4 {
        // Number 1 is `half_scale(2)`; where the scale is 0, 0 stands for all.
        let [low, high] = [codes_of_parts(parts, 0), codes_of_parts(parts, 1)];
        let [low, high] = if parts.scales[0] == 0 { [[0; 16]; 2] } else { [low, high] };
        MXFP4 { e: (parts.scales[0] + 1) as u8, qs: nibbles(I32x16::load_u8(simd, &low), I32x16::load_u8(simd, &high)) }
    }
}
