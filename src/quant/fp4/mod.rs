//! The formats of 4-bit floats (E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives) with a scale that is a small float itself.
//!
//! As in ggml everything is doubled, so that values are integers, and scales are halved. A code is the nearest value, of equally near
//! ones the smaller; a weight too large for its scale becomes 6, and a minus sign is kept only with a value that is not 0.

mod mxfp4;
mod nvfp4;

pub(super) use mxfp4::MXFP4;
pub(super) use nvfp4::NVFP4;

use super::lattice::Parts;
use crate::simd::{F32x16, I32x16, Simd};

/// Twice the value of each code. The negative zero reads as zero.
const VALUES: [f32; 16] = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

/// The values in ascending order, zero twice.
const LEVELS: [f32; 16] = [-12.0, -8.0, -6.0, -4.0, -3.0, -2.0, -1.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0];

/// The code of each of these; the negative zero is not written.
const CODES: [u8; 16] = [15, 14, 13, 12, 11, 10, 9, 0, 0, 1, 2, 3, 4, 5, 6, 7];

/// The codes of weights `16 * at` and the fifteen after it.
#[inline(always)]
fn codes_of_parts(parts: &Parts, at: usize) -> [u8; 16] {
    let mut codes = [0; 16];
    for (code, place) in codes.iter_mut().zip(&parts.quants[16 * at..]) {
        *code = CODES[usize::from(*place as u8 & 15)];
    }
    codes
}

/// What lies between the values: a magnitude has the code of the number of bounds that it exceeds.
struct Bounds<S: Simd>([F32x16<S>; 7]);

impl<S: Simd> Bounds<S> {
    /// Half-way between the values times `d`. No magnitude reaches a value that overflows, and without a scale every code is 0.
    #[inline(always)]
    fn new(simd: S, d: f32) -> Self {
        let mut bounds = [F32x16::splat(simd, f32::INFINITY); 7];
        if d > 0.0 {
            for i in 0..7 {
                bounds[i] = F32x16::splat(simd, 0.5 * (VALUES[i] * d) + 0.5 * (VALUES[i + 1] * d));
            }
        }
        Bounds(bounds)
    }

    #[inline(always)]
    fn codes(&self, simd: S, x: F32x16<S>) -> I32x16<S> {
        let magnitude = x.abs();
        let mut code = I32x16::splat(simd, 0).to_float_bits();
        for i in 0..7 {
            code = magnitude.gt(self.0[i]).select(I32x16::splat(simd, i as i32 + 1).to_float_bits(), code);
        }
        let sign = x.to_bits().shr::<28>() & 8;
        let signed = (code.to_bits() | sign).to_float_bits();
        code.to_bits().has(7).select(signed, code).to_bits()
    }
}

/// Sixteen weights from their codes. `values` are [`VALUES`].
#[inline(always)]
fn weights<S: Simd>(values: F32x16<S>, codes: I32x16<S>, d: F32x16<S>) -> F32x16<S> {
    values.lookup(codes) * d
}
