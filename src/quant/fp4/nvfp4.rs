//! `NVFP4`: `w = d[j]*v`, v a 4-bit float, 4 sub-blocks `j` of 16; 4.5 bits per weight. Layout: ggml's `block_nvfp4`.
//!
//! ```text
//! 0               4                                      36
//! | d: 4 x UE4M3  | qs: 4 x 8 x (low, high half)         |
//! ```
//!
//! Of each sub-block, weight `i` is the low half of byte `i`, weight `8 + i` the high half. UE4M3 is a float of 4 exponent and 3
//! mantissa bits, of at most 448; 127 stands for NaN, and ggml reads it as 0. A scale is a sixth of the largest magnitude, and 448
//! from 256 on, as in ggml; weights that need a larger one are refused.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Bounds, LEVELS, VALUES, codes_of_parts, weights};
use crate::quant::block::{Block, Dequantize, Quantize, magnitude};
use crate::quant::lattice::{Assemble, Floats, Lattice, Levels, Mins, Parts, SubScales};
use crate::quant::sink::Sink;
use crate::simd::{F32x16, I32x16, Simd};

/// The bytes of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct NVFP4 {
    d: [u8; 4],
    qs: [[u8; 8]; 4],
}

impl Block for NVFP4 {
    const LEN: usize = 64;
}

impl Dequantize for NVFP4 {
    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, to: &mut impl Sink<S>) {
        let values = F32x16::load(simd, &VALUES);
        for j in 0..4 {
            let d = F32x16::splat(simd, HALF_SCALES[usize::from(self.d[j])]);
            let qs = u128::from(u64::from_le_bytes(self.qs[j]));
            let codes = (qs | qs << 60) & 0x0f0f_0f0f_0f0f_0f0f_0f0f_0f0f_0f0f_0f0f;
            to.put(j, weights(values, I32x16::load_u8(simd, &codes.to_le_bytes()), d));
        }
    }

    #[inline(always)]
    fn bound<S: Simd>(&self, _simd: S) -> f32 {
        self.d.iter().fold(0.0, |max: f32, &d| max.max(HALF_SCALES[usize::from(d)])) * VALUES[7]
    }
}

impl Quantize for NVFP4 {
    #[inline(always)]
    fn quantize<S: Simd>(simd: S, weights: &[f32], _importance: Option<&[f32]>, blocks: &mut [NVFP4]) {
        for (block, weights) in blocks.iter_mut().zip(weights.as_chunks::<64>().0) {
            for (j, chunk) in weights.as_chunks::<16>().0.iter().enumerate() {
                block.d[j] = scale(magnitude(simd, chunk) / 6.0);
                let bounds = Bounds::new(simd, HALF_SCALES[usize::from(block.d[j])]);
                let codes = u128::from_le_bytes(bounds.codes(simd, F32x16::load(simd, chunk)).to_u8());
                block.qs[j] = ((codes | codes >> 60) as u64).to_le_bytes();
            }
        }
    }

    #[inline(always)]
    fn is_sound(&self) -> bool {
        !self.d.contains(&NAN)
    }
}

/// The UE4M3 that is not a number.
const NAN: u8 = 0x7f;

/// Half of what every byte means as a scale; the highest bit does not count.
const HALF_SCALES: [f32; 256] = {
    let mut scales = [0.0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (exponent, mantissa) = ((byte >> 3 & 15) as i32, (byte & 7) as f32);
        if byte != NAN as usize {
            scales[byte] =
                if exponent == 0 { mantissa * power_of_two(-10) } else { (8.0 + mantissa) * power_of_two(exponent - 11) };
        }
        byte += 1;
    }
    scales
};

const fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// The UE4M3 nearest to `x`, ties up; NaN where there is none. Like ggml it has no place between 240 and 448, and rounds nothing up
/// to the smallest normal number.
#[inline(always)]
fn scale(x: f32) -> u8 {
    const SMALLEST_NORMAL: f32 = power_of_two(-6);
    if x > 448.0 {
        NAN
    } else if x < SMALLEST_NORMAL {
        ((x * 512.0 + 0.5) as u8).min(7)
    } else {
        // Exponent and mantissa are neighbours in both floats, and a carry of the rounding is right in both.
        let rounded = (x.to_bits() + (1 << 19)) >> 20;
        let biased = (rounded - ((127 - 7) << 3)) as u8;
        if biased < 15 << 3 { biased } else { 0x7e }
    }
}

impl Assemble for NVFP4 {
    /// Scales between 240 and 448, which ggml does not make, are read like the others.
    const LATTICE: Lattice = Lattice {
        block_len: 64,
        sub_block_len: 16,
        levels: Levels::Listed(&LEVELS),
        scales: SubScales::Floats(Floats { mantissa_bits: 3, least: HALF_SCALES[1], most: HALF_SCALES[NAN as usize - 1] }),
        mins: Mins::None,
    };

    #[inline(always)]
    fn assemble<S: Simd>(_simd: S, parts: &Parts) -> NVFP4 {
        let mut block = NVFP4 { d: [0; 4], qs: [[0; 8]; 4] };
        for j in 0..4 {
            block.d[j] = parts.scales[j] as u8;
            let codes = u128::from_le_bytes(codes_of_parts(parts, j));
            block.qs[j] = ((codes | codes >> 60) as u64).to_le_bytes();
        }
        block
    }
}
