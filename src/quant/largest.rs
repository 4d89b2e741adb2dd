//! How large the weights of a tensor are, as a power of two.
//!
//! Only a block whose scales allow for a larger power of two than was found before is unpacked. So the result is exact, whatever scales
//! without quants a damaged file holds, and neither the order of blocks nor how they are cut into runs changes it.

use std::marker::PhantomData;

use super::block::{Dequantize, padded_units, units};
use super::sink::Sink;
use crate::simd::{F32x16, Level, Simd, Task};

/// See [`super::Format::largest_power_of_two`].
pub(super) fn largest<U: Dequantize>(level: Level, blocks: &[u8]) -> f32 {
    level.run(LargestTask::<U> { blocks, unit: PhantomData })
}

struct LargestTask<'a, U> {
    blocks: &'a [u8],
    unit: PhantomData<U>,
}

impl<U: Dequantize> Task for LargestTask<'_, U> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let (units, rest) = units::<U>(self.blocks);
        let mut found = 0.0;
        for unit in units {
            found = larger(simd, unit, found);
        }
        if !rest.is_empty() {
            found = larger(simd, &padded_units::<U, 1>(rest)[0], found);
        }
        found
    }
}

/// `found`, or the power of two of the block's largest weight where that is larger.
#[inline(always)]
fn larger<S: Simd, U: Dequantize>(simd: S, unit: &U, found: f32) -> f32 {
    // Below twice the power of two that was found there is no larger one.
    let bound = unit.bound(simd);
    if bound < 2.0 * found || bound == 0.0 {
        return found;
    }
    let mut largest = Largest { simd, magnitudes: F32x16::splat(simd, 0.0) };
    unit.dequantize(simd, &mut largest);
    if F32x16::splat(simd, 2.0 * found).le(largest.magnitudes).bits() == 0 {
        return found;
    }
    power_of_two_below(largest.magnitudes.reduce_max()).max(found)
}

struct Largest<S: Simd> {
    simd: S,
    magnitudes: F32x16<S>,
}

impl<S: Simd> Sink<S> for Largest<S> {
    #[inline(always)]
    fn put(&mut self, _at: usize, weights: F32x16<S>) {
        let magnitude = weights.abs();
        let finite = magnitude.le(F32x16::splat(self.simd, f32::MAX));
        self.magnitudes = finite.select(magnitude, F32x16::splat(self.simd, 0.0)).max(self.magnitudes);
    }
}

/// The largest power of two that is at most `x`, which is not negative; 0 for 0.
#[inline(always)]
fn power_of_two_below(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits(if bits >= 1 << 23 { bits & !((1 << 23) - 1) } else { bits.checked_ilog2().map_or(0, |log2| 1 << log2) })
}

#[cfg(test)]
mod tests {
    use super::power_of_two_below;

    #[test]
    fn powers_of_two_lie_below() {
        for (x, expected) in [(0.0, 0.0), (1.0, 1.0), (1.99, 1.0), (2.0, 2.0), (0.3, 0.25), (f32::MAX, 2f32.powi(127))] {
            assert_eq!(power_of_two_below(x), expected, "{x}");
        }
        for (bits, expected) in [(1, 1), (3, 2), ((1 << 23) - 1, 1 << 22), (1 << 23, 1 << 23)] {
            assert_eq!(power_of_two_below(f32::from_bits(bits)).to_bits(), expected, "{bits:#x}");
        }
    }
}
