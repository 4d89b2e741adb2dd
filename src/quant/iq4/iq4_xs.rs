//! `IQ4_XS`: `w = d*(sc[j] - 32)*level[q]`, q in 0..=15, 8 sub-blocks `j` of 32; 4.25 bits per weight. Layout: ggml's `block_iq4_xs`.
//!
//! ```text
//! 0        2                      4                                  8                                            136
//! | d: f16 | upper 2 bits of sc   | lower 4 bits: 4 x (2c, 2c+1)     | qs: 8 x 16 x (weight i low, 16 + i high half) |
//! ```

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{LEVEL_MAX, LEVELS, Nearest, inverse, pack, padded, search, unpack, weighting};
use crate::quant::block::{Block, Dequantize, Half, Quantize};
use crate::quant::lattice::{Assemble, Lattice, Levels, Mins, Parts, SubScales};
use crate::quant::search::{lanes_of_sub_blocks, nearest_int, sums_of_squares};
use crate::quant::sink::Sink;
use crate::simd::{F32x16, Simd};

/// Weights per super-block.
const LEN: usize = 256;

/// The bytes of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct IQ4_XS {
    d: Half,
    scales_h: [u8; 2],
    scales_l: [u8; 4],
    qs: [[u8; 16]; 8],
}

impl Block for IQ4_XS {
    const LEN: usize = LEN;
}

impl IQ4_XS {
    /// Of sub-block `j`, without its offset.
    #[inline(always)]
    fn scale(&self, j: usize) -> f32 {
        let low = self.scales_l[j / 2] >> (4 * (j % 2)) & 15;
        let high = self.scales_h[j / 4] >> (2 * (j % 4)) & 3;
        f32::from((low | high << 4) as i8 - 32)
    }

    /// Of sub-block `j`, which has none yet.
    #[inline(always)]
    fn set_scale(&mut self, j: usize, sc: i32) {
        let stored = (sc + 32) as u8;
        self.scales_l[j / 2] |= (stored & 15) << (4 * (j % 2));
        self.scales_h[j / 4] |= (stored >> 4) << (2 * (j % 4));
    }
}

impl Dequantize for IQ4_XS {
    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, to: &mut impl Sink<S>) {
        let d = self.d.splat(simd);
        for j in 0..8 {
            let [low, high] = unpack(simd, &self.qs[j], d * F32x16::splat(simd, self.scale(j)));
            to.put(2 * j, low);
            to.put(2 * j + 1, high);
        }
    }

    #[inline(always)]
    fn bound<S: Simd>(&self, simd: S) -> f32 {
        self.d.magnitude(simd) * (32.0 * LEVEL_MAX)
    }
}

impl Quantize for IQ4_XS {
    const USES_IMPORTANCE: bool = true;

    #[inline(always)]
    fn quantize<S: Simd>(simd: S, weights: &[f32], importance: Option<&[f32]>, blocks: &mut [IQ4_XS]) {
        for (at, blocks) in blocks.chunks_mut(16).enumerate() {
            let range = 16 * LEN * at..(16 * LEN * (at + 1)).min(weights.len());
            let (weights, columns) = (&weights[range.clone()], importance.map(|columns| &columns[range]));
            let sums = if columns.is_some() { sums_of_squares(simd, weights) } else { [0.0; 16] };
            for (pair, (blocks, weights)) in blocks.chunks_mut(2).zip(weights.chunks(2 * LEN)).enumerate() {
                let columns = columns.map(|columns| &columns[2 * LEN * pair..][..weights.len()]);
                let scales = scales(simd, weights, columns, [sums[2 * pair], sums[2 * pair + 1]]);
                let (super_blocks, _) = weights.as_chunks::<16>().0.as_chunks::<16>();
                for ((block, weights), scales) in blocks.iter_mut().zip(super_blocks).zip(scales.as_chunks::<8>().0) {
                    *block = quantize_super_block(simd, weights, scales);
                }
            }
        }
    }

    #[inline(always)]
    fn is_sound(&self) -> bool {
        self.d.is_finite()
    }
}

/// The scales of the sub-blocks of one or two super-blocks; `sums`: of the squares of their weights, used with importance.
#[inline(always)]
fn scales<S: Simd>(simd: S, weights: &[f32], importance: Option<&[f32]>, sums: [f32; 2]) -> [f32; 16] {
    let x: [F32x16<S>; 32] = lanes_of_sub_blocks(simd, &padded(weights));
    let mut sigma2 = [sums[0]; 16];
    sigma2[8..].fill(sums[1]);
    let sigma2 = F32x16::load(simd, &sigma2) * F32x16::splat(simd, 2.0 / LEN as f32);
    let w = match importance {
        Some(columns) => weighting(&x, Some(&lanes_of_sub_blocks(simd, &padded(columns))), sigma2),
        None => weighting(&x, None, sigma2),
    };
    search(simd, &x, &w).to_array()
}

#[inline(always)]
fn quantize_super_block<S: Simd>(simd: S, weights: &[[f32; 16]; 16], scales: &[f32; 8]) -> IQ4_XS {
    let mut max = 0.0f32;
    for &scale in scales {
        if scale.abs() > max.abs() {
            max = scale;
        }
    }
    let d = -max / 32.0;
    let mut block = IQ4_XS { d: Half::new(simd, d), scales_h: [0; 2], scales_l: [0; 4], qs: [[0; 16]; 8] };
    if scales.iter().any(|scale| scale.is_nan()) {
        // The sums of the search overflowed; ggml would write the sub-block without a scale.
        block.d = Half::NAN;
        return block;
    }
    let nearest = Nearest::place(simd);
    for (j, weights) in weights.as_chunks::<2>().0.iter().enumerate() {
        let sc = nearest_int(inverse(d) * scales[j]).clamp(-32, 31);
        block.qs[j] = pack(simd, &nearest, weights, inverse(d * sc as f32));
        block.set_scale(j, sc);
    }
    block
}

impl Assemble for IQ4_XS {
    const LATTICE: Lattice = Lattice {
        block_len: LEN,
        sub_block_len: 32,
        levels: Levels::Listed(&LEVELS),
        scales: SubScales::Integers(-32, 31),
        mins: Mins::None,
    };

    #[inline(always)]
    fn assemble<S: Simd>(simd: S, parts: &Parts) -> IQ4_XS {
        let mut block = IQ4_XS { d: Half::new(simd, parts.d), scales_h: [0; 2], scales_l: [0; 4], qs: [[0; 16]; 8] };
        for j in 0..8 {
            block.set_scale(j, parts.scales[j]);
            block.qs[j] = (parts.sixteen(simd, 2 * j) | parts.sixteen(simd, 2 * j + 1).shl::<4>()).to_u8();
        }
        block
    }
}
