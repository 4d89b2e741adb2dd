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
    /// Values of `sc`, in whole numbers from the first to the second; both 1 where `d` is the only scale.
    pub scales: (i32, i32),
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
    /// The scale of all, rounded to half precision when the block is made.
    pub d: f32,
    /// The scale of the minimums, likewise.
    pub dmin: f32,
    /// Of each sub-block.
    pub scales: [i32; LEN_MAX / 16],
    /// Of each sub-block.
    pub mins: [i32; LEN_MAX / 16],
    /// Of each weight: the level itself, or its place in the list.
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
                let mut parts = Parts { d: 0.25 + below(64) as f32 / 256.0, dmin: 0.125 + below(64) as f32 / 512.0, ..Parts::ZERO };
                for j in 0..lattice.block_len / lattice.sub_block_len {
                    parts.scales[j] = within(lattice.scales, &mut below);
                    parts.mins[j] = match lattice.mins {
                        Mins::None => 0,
                        Mins::Multiples(max) => within((0, max), &mut below),
                        Mins::Free => 1,
                    };
                }
                for quant in &mut parts.quants[..lattice.block_len] {
                    *quant = match lattice.levels {
                        Levels::Integers(low, high) => within((low, high), &mut below),
                        Levels::Listed(_) => below(16),
                    } as i8;
                }
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
                        };
                        let min = if lattice.mins == Mins::None { 0.0 } else { parts.dmin * parts.mins[j] as f32 };
                        let expected = parts.d * parts.scales[j] as f32 * value - min;
                        assert!((w - expected).abs() <= 1e-5 * (1.0 + expected.abs()), "{format}, weight {i}: {w} for {expected}");
                    }
                }
            }
        }
    }
}
