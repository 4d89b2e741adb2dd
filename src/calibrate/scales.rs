//! The scales that a sub-block may have, in lanes.

use crate::quant::{Floats, SubScales};
use crate::simd::{F32x16, Simd};

/// The nearest that there is.
#[inline(always)]
pub(super) fn nearest<S: Simd>(simd: S, scales: SubScales, x: F32x16<S>) -> F32x16<S> {
    match scales {
        SubScales::One => F32x16::splat(simd, 1.0),
        SubScales::Integers(low, high) => whole(simd, x, low, high),
        SubScales::Odd(n) => {
            let two = F32x16::splat(simd, 2.0);
            let one = F32x16::splat(simd, 1.0);
            whole(simd, (x - one) / two, 0, n) * two + one
        }
        SubScales::Floats(floats) => {
            let x = x.max(F32x16::splat(simd, 0.0)).min(F32x16::splat(simd, floats.most));
            let spacing = spacing(simd, floats, x);
            (x / spacing).nearest_int_in(0, 2 << floats.mantissa_bits) * spacing
        }
    }
}

/// The next one up for 1, down for -1; where there is none, the same.
#[inline(always)]
pub(super) fn neighbour<S: Simd>(simd: S, scales: SubScales, sc: F32x16<S>, step: i32) -> F32x16<S> {
    match scales {
        SubScales::Floats(floats) => match step {
            0 => sc,
            1 => (sc + spacing(simd, floats, sc)).min(F32x16::splat(simd, floats.most)),
            _ => {
                // Below a power of two they are closer together.
                let below = (sc.to_bits() + -1).to_float_bits();
                (sc - spacing(simd, floats, below)).max(F32x16::splat(simd, 0.0))
            }
        },
        SubScales::Odd(_) => nearest(simd, scales, sc + F32x16::splat(simd, 2.0 * step as f32)),
        _ => nearest(simd, scales, sc + F32x16::splat(simd, step as f32)),
    }
}

/// Of the floats around `x`.
#[inline(always)]
fn spacing<S: Simd>(simd: S, floats: Floats, x: F32x16<S>) -> F32x16<S> {
    const EXPONENT: i32 = 0x7f80_0000;
    let octave = (x.to_bits() & EXPONENT).to_float_bits();
    (octave * F32x16::splat(simd, 1.0 / (1 << floats.mantissa_bits) as f32)).max(F32x16::splat(simd, floats.least))
}

/// The nearest whole number from `low` to `high`.
#[inline(always)]
pub(super) fn whole<S: Simd>(simd: S, x: F32x16<S>, low: i32, high: i32) -> F32x16<S> {
    x.max(F32x16::splat(simd, low as f32)).min(F32x16::splat(simd, high as f32)).nearest_int_in(low, high)
}
