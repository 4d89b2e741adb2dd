//! What a block can hold, for whoever chooses its scales and quants by another rule than ggml's searches.
//!
//! `w = d*sc[j]*level(q) - dmin*m[j]`, where `j` is the sub-block of a weight. A [`Lattice`] says which `sc`, `m` and `q` there are, [`Parts`]
//! are those of one block, and [`Format::assemble`](super::Format::assemble) makes the block of them.

use zerocopy::IntoBytes;

use super::block::{LEN_MAX, Quantize};
use crate::simd::{I32x16, Simd};

/// Which values the weights of a block can have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lattice {
    /// Weights of a block.
    pub block_len: usize,
    /// Weights that share `sc` and `m`: a divisor of the block's, 16 at least.
    pub sub_block_len: usize,
    /// Values of `level(q)`.
    pub levels: Levels,
    /// Values of `sc`.
    pub scales: SubScales,
    /// Values of `m`.
    pub mins: Mins,
}

/// What a quant stands for, in units of its scale.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Levels {
    /// Itself: a whole number from the first to the second.
    Integers(i32, i32),
    /// An entry of this list, in ascending order.
    Listed(&'static [f32; 16]),
    /// A magnitude with a sign, such that those of several weights are a point of a grid.
    Points(Points),
}

/// A grid: which magnitudes go together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Points {
    /// Weights of a point: four or eight.
    pub len: usize,
    /// What each weight can be: eight magnitudes where a point has four weights, three where it has eight.
    pub magnitudes: &'static [f32],
    /// The magnitudes of each point by number, in three bits or two, the first weight's lowest.
    pub points: &'static [u16],
    /// The number of minus signs of eight weights must be even.
    pub even_signs: bool,
}

impl Points {
    /// The number of the magnitude of a point's weight `i`.
    pub fn number(&self, point: u16, i: usize) -> usize {
        let bits = if self.len == 4 { 3 } else { 2 };
        usize::from(point >> (bits * i) & ((1 << bits) - 1))
    }
}

/// What the scale of a sub-block can be, in units of `d`. [`Parts`] hold its number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SubScales {
    /// 1, since `d` is the only scale.
    One,
    /// A whole number from the first to the second, which is its own number.
    Integers(i32, i32),
    /// An odd number from 1 on, which is twice its number and 1; this is the largest number.
    Odd(i32),
    /// A float of few bits. There is no other scale: `d` is 1.
    Floats(Floats),
}

/// Floats of few bits, of which none is negative. Numbers count them from 0 upwards.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Floats {
    /// Bits behind the point.
    pub mantissa_bits: u32,
    /// The least above zero, which subnormal ones are multiples of.
    pub least: f32,
    /// The largest.
    pub most: f32,
}

impl SubScales {
    /// What a number stands for.
    pub fn value(self, number: i32) -> f32 {
        match self {
            SubScales::One => 1.0,
            SubScales::Integers(..) => number as f32,
            SubScales::Odd(_) => (2 * number + 1) as f32,
            SubScales::Floats(Floats { mantissa_bits, least, .. }) => {
                let (octave, mantissa) = (number >> mantissa_bits, number & ((1 << mantissa_bits) - 1));
                let multiple = if octave == 0 { mantissa } else { mantissa + (1 << mantissa_bits) };
                (f64::from(multiple) * f64::from(least) * 2.0f64.powi((octave - 1).max(0))) as f32
            }
        }
    }

    /// Undoes [`SubScales::value`].
    pub fn number(self, value: f32) -> i32 {
        match self {
            SubScales::One => 1,
            SubScales::Integers(..) => value as i32,
            SubScales::Odd(_) => value as i32 / 2,
            SubScales::Floats(Floats { mantissa_bits, least, .. }) => {
                let first_normal = least * (1 << mantissa_bits) as f32;
                if value < first_normal {
                    return (value / least) as i32;
                }
                // Exponent and mantissa are neighbours in a float, so that its upper bits count, too.
                let upper = |value: f32| (value.to_bits() >> (f32::MANTISSA_DIGITS - 1 - mantissa_bits)) as i32;
                upper(value) - upper(first_normal) + (1 << mantissa_bits)
            }
        }
    }

    /// The least number.
    pub fn number_min(self) -> i32 {
        match self {
            SubScales::One => 1,
            SubScales::Integers(low, _) => low,
            SubScales::Odd(_) | SubScales::Floats(_) => 0,
        }
    }

    /// The largest number.
    pub fn number_max(self) -> i32 {
        match self {
            SubScales::One => 1,
            SubScales::Integers(_, high) | SubScales::Odd(high) => high,
            SubScales::Floats(Floats { most, .. }) => self.number(most),
        }
    }
}

/// What is taken off the weights of a sub-block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mins {
    /// Nothing: `m` is 0.
    None,
    /// `dmin*m`, with `m` from 0 to this.
    Multiples(i32),
    /// `dmin` of either sign: `m` is 1.
    Free,
}

/// What a block is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Parts {
    /// The scale of all, rounded to half precision when the block is made; 1 where sub-blocks have floats for scales.
    pub d: f32,
    /// The scale of the minimums, likewise.
    pub dmin: f32,
    /// Of each sub-block, by number.
    pub scales: [i32; LEN_MAX / 16],
    /// Of each sub-block.
    pub mins: [i32; LEN_MAX / 16],
    /// Of each weight: the level itself, its place in the list, or the number of its magnitude counted from 1, negative with a minus sign.
    pub quants: [i8; LEN_MAX],
}

impl Parts {
    /// All zero.
    pub const ZERO: Parts = Parts { d: 0.0, dmin: 0.0, scales: [0; LEN_MAX / 16], mins: [0; LEN_MAX / 16], quants: [0; LEN_MAX] };

    /// Quants `16 * at` and the fifteen after it.
    #[inline(always)]
    pub(super) fn sixteen<S: Simd>(&self, simd: S, at: usize) -> I32x16<S> {
        I32x16::load_i8(simd, self.quants[16 * at..].as_bytes().first_chunk().expect("sixteen quants"))
    }
}

/// A format whose blocks can be made of [`Parts`].
pub(super) trait Assemble: Quantize {
    const LATTICE: Lattice;
    /// `parts` are of [`Self::LATTICE`].
    fn assemble<S: Simd>(simd: S, parts: &Parts) -> Self;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Format;
    use crate::simd::Level;

    /// Every format with a lattice: a block of any parts holds just the values that these parts mean.
    #[test]
    fn a_block_holds_what_its_parts_say() {
        let mut state = 1u32;
        let mut below = |n: i32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as i32 % n
        };
        for format in Format::ALL.iter().filter(|format| format.lattice().is_some()) {
            let lattice = format.lattice().expect("one that has it");
            let within = |(low, high): (i32, i32), below: &mut dyn FnMut(i32) -> i32| low + below(high - low + 1);
            for _ in 0..50 {
                let d = if matches!(lattice.scales, SubScales::Floats(_)) { 1.0 } else { 0.25 + below(64) as f32 / 256.0 };
                let mut parts = Parts { d, dmin: 0.125 + below(64) as f32 / 512.0, ..Parts::ZERO };
                for j in 0..lattice.block_len / lattice.sub_block_len {
                    let (low, high) = (lattice.scales.number_min(), lattice.scales.number_max());
                    parts.scales[j] = within((low, high), &mut below);
                    assert_eq!(lattice.scales.number(lattice.scales.value(parts.scales[j])), parts.scales[j], "{format}");
                    parts.mins[j] = match lattice.mins {
                        Mins::None => 0,
                        Mins::Multiples(max) => within((0, max), &mut below),
                        Mins::Free => 1,
                    };
                }
                let mut quants = Vec::new();
                while quants.len() < lattice.block_len {
                    match lattice.levels {
                        Levels::Integers(low, high) => quants.push(within((low, high), &mut below) as i8),
                        Levels::Listed(_) => quants.push(below(16) as i8),
                        Levels::Points(points) => {
                            for _ in 0..8 / points.len {
                                let point = points.points[below(points.points.len() as i32) as usize];
                                let number = |i| points.number(point, i) as i8 + 1;
                                quants.extend((0..points.len).map(|i| if below(2) == 0 { number(i) } else { -number(i) }));
                            }
                            let eight = quants.last_chunk_mut::<8>().expect("eight");
                            if points.even_signs && eight.iter().filter(|&&quant| quant < 0).count() % 2 == 1 {
                                eight[3] = -eight[3];
                            }
                        }
                    }
                }
                parts.quants[..lattice.block_len].copy_from_slice(&quants);
                for level in Level::available() {
                    let mut block = vec![0; format.block_bytes()];
                    format.assemble(level, &parts, &mut block);
                    let mut weights = vec![0.0; lattice.block_len];
                    format.dequantize(level, &block, &mut weights);
                    for (i, w) in weights.iter().enumerate() {
                        let j = i / lattice.sub_block_len;
                        let quant = parts.quants[i];
                        let value = match lattice.levels {
                            Levels::Integers(..) => f32::from(quant),
                            Levels::Listed(levels) => levels[quant as usize],
                            Levels::Points(points) => {
                                points.magnitudes[usize::from(quant.unsigned_abs()) - 1] * f32::from(quant.signum())
                            }
                        };
                        let min = if lattice.mins == Mins::None { 0.0 } else { parts.dmin * parts.mins[j] as f32 };
                        let expected = parts.d * lattice.scales.value(parts.scales[j]) * value - min;
                        assert!((w - expected).abs() <= 1e-5 * (1.0 + expected.abs()), "{format}, weight {i}: {w} for {expected}");
                    }
                }
            }
        }
    }
}
