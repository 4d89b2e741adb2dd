//! `IQ4_NL`: `w = d*level[q]`, q in 0..=15; 4.5 bits per weight. Layout: ggml's `block_iq4_nl`.
//!
//! ```text
//! 0        2                                                  18
//! | d: f16 | qs: 16 x (weight i low, weight 16 + i high half) |
//! ```

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{LEVEL_MAX, LEVELS, Nearest, inverse, pack, padded, search, unpack, weighting};
use crate::quant::block::{Block, Dequantize, Half, Quantize};
use crate::quant::lattice::{Assemble, Lattice, Levels, Mins, Parts, SubScales};
use crate::quant::search::lanes_of_sub_blocks;
use crate::quant::sink::Sink;
use crate::simd::{F32x16, Simd};

/// The bytes of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct IQ4_NL {
    d: Half,
    qs: [u8; 16],
}

impl Block for IQ4_NL {
    const LEN: usize = 32;
}

impl Dequantize for IQ4_NL {
    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, to: &mut impl Sink<S>) {
        let [low, high] = unpack(simd, &self.qs, self.d.splat(simd));
        to.put(0, low);
        to.put(1, high);
    }

    #[inline(always)]
    fn bound<S: Simd>(&self, simd: S) -> f32 {
        self.d.magnitude(simd) * LEVEL_MAX
    }
}

impl Quantize for IQ4_NL {
    const USES_IMPORTANCE: bool = true;

    #[inline(always)]
    fn quantize<S: Simd>(simd: S, weights: &[f32], importance: Option<&[f32]>, blocks: &mut [IQ4_NL]) {
        let nearest = Nearest::place(simd);
        for (at, blocks) in blocks.chunks_mut(16).enumerate() {
            let range = 512 * at..(512 * (at + 1)).min(weights.len());
            let scales = scales(simd, &weights[range.clone()], importance.map(|columns| &columns[range.clone()]));
            let (pairs, _) = weights[range].as_chunks::<16>().0.as_chunks::<2>();
            for ((block, weights), scale) in blocks.iter_mut().zip(pairs).zip(scales) {
                *block = IQ4_NL { d: Half::new(simd, scale), qs: pack(simd, &nearest, weights, inverse(scale)) };
            }
        }
    }

    #[inline(always)]
    fn is_sound(&self) -> bool {
        self.d.is_finite()
    }
}

/// The scales of up to sixteen blocks.
#[inline(always)]
fn scales<S: Simd>(simd: S, weights: &[f32], importance: Option<&[f32]>) -> [f32; 16] {
    let x: [F32x16<S>; 32] = lanes_of_sub_blocks(simd, &padded(weights));
    let w = match importance {
        Some(columns) => {
            let mut sum = F32x16::splat(simd, 0.0);
            for x in x {
                sum = sum + x * x;
            }
            let sigma2 = sum * F32x16::splat(simd, 2.0 / 32.0);
            weighting(&x, Some(&lanes_of_sub_blocks(simd, &padded(columns))), sigma2)
        }
        None => weighting(&x, None, F32x16::splat(simd, 0.0)),
    };
    search(simd, &x, &w).to_array()
}

impl Assemble for IQ4_NL {
    const LATTICE: Lattice =
        Lattice { block_len: 32, sub_block_len: 32, levels: Levels::Listed(&LEVELS), scales: SubScales::One, mins: Mins::None };

    #[inline(always)]
    fn assemble<S: Simd>(simd: S, parts: &Parts) -> IQ4_NL {
        let places = parts.sixteen(simd, 0) | parts.sixteen(simd, 1).shl::<4>();
        IQ4_NL { d: Half::new(simd, parts.d), qs: places.to_u8() }
    }
}
