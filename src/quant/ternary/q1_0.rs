//! `Q1_0`: `w = d` or `-d`; 1.125 bits per weight. Layout: ggml's `block_q1_0`.
//!
//! ```text
//! 0        2                       18
//! | d: f16 | 128 bits, 1: positive |
//! ```
//!
//! `d` is the mean magnitude.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::quant::block::{Block, Dequantize, Half, Quantize};
use crate::quant::lattice::{Assemble, Lattice, Levels, Mins, Parts, SubScales};
use crate::quant::sink::Sink;
use crate::simd::{F32x16, I32x16, Simd};

const LEN: usize = 128;

/// Parts of a block, 16 weights each.
const PARTS: usize = LEN / 16;

/// The bytes of a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::quant) struct Q1_0 {
    d: Half,
    signs: [[u8; 2]; PARTS],
}

impl Block for Q1_0 {
    const LEN: usize = LEN;
}

impl Dequantize for Q1_0 {
    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, to: &mut impl Sink<S>) {
        let d = self.d.to_f32(simd);
        let (plus, minus) = (d.to_bits() as i32, (-d).to_bits() as i32);
        for (j, signs) in self.signs.iter().enumerate() {
            let signs = u16::from_le_bytes(*signs);
            to.put(j, (I32x16::spread(simd, signs, plus) | I32x16::spread(simd, !signs, minus)).to_float_bits());
        }
    }

    #[inline(always)]
    fn bound<S: Simd>(&self, simd: S) -> f32 {
        self.d.magnitude(simd)
    }
}

impl Quantize for Q1_0 {
    #[inline(always)]
    fn quantize<S: Simd>(simd: S, weights: &[f32], _importance: Option<&[f32]>, blocks: &mut [Q1_0]) {
        let zero = F32x16::splat(simd, 0.0);
        for (blocks, weights) in blocks.chunks_mut(16).zip(weights.chunks(16 * LEN)) {
            let d = mean_magnitudes(simd, weights).to_array();
            for ((block, weights), d) in blocks.iter_mut().zip(weights.as_chunks::<LEN>().0).zip(d) {
                block.d = Half::new(simd, d);
                for (signs, chunk) in block.signs.iter_mut().zip(weights.as_chunks::<16>().0) {
                    *signs = zero.le(F32x16::load(simd, chunk)).bits().to_le_bytes();
                }
            }
        }
    }

    #[inline(always)]
    fn is_sound(&self) -> bool {
        self.d.is_finite()
    }
}

/// Lane `j` is the mean magnitude of block `j` of up to sixteen, summed from the first weight to the last.
#[inline(always)]
fn mean_magnitudes<S: Simd>(simd: S, weights: &[f32]) -> F32x16<S> {
    let (chunks, _) = weights.as_chunks::<16>();
    let zero = F32x16::splat(simd, 0.0);
    let mut sum = zero;
    for part in 0..PARTS {
        let mut rows = [zero; 16];
        for (row, chunk) in rows.iter_mut().zip(chunks.iter().skip(part).step_by(PARTS)) {
            *row = F32x16::load(simd, chunk);
        }
        let columns = F32x16::transpose(rows);
        for i in 0..16 {
            sum = sum + columns[i].abs();
        }
    }
    sum / F32x16::splat(simd, LEN as f32)
}

/// Both levels, as a list of sixteen.
const LEVELS: [f32; 16] = [-1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];

impl Assemble for Q1_0 {
    const LATTICE: Lattice =
        Lattice { block_len: LEN, sub_block_len: LEN, levels: Levels::Listed(&LEVELS), scales: SubScales::One, mins: Mins::None };

    #[inline(always)]
    fn assemble<S: Simd>(simd: S, parts: &Parts) -> Q1_0 {
        let mut block = Q1_0 { d: Half::new(simd, parts.d), signs: [[0; 2]; PARTS] };
        for j in 0..PARTS {
            block.signs[j] = parts.sixteen(simd, j).has(8).bits().to_le_bytes();
        }
        block
    }
}
