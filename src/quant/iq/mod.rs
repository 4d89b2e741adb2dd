//! The IQ formats: super-blocks of 256 weights whose magnitudes are points of a fixed grid, eight (or four) weights to a point.
//!
//! A file holds the index of the point, the signs, and a scale for every 16 or 32 weights. The grids are facts of the format and
//! stand in `grids.rs`; everything else that reading or quantizing needs is derived from them.

mod candidates;
mod eights;
mod fours;
mod grids;
mod iq1;
mod iq1_m;
mod iq1_s;
mod iq2;
mod iq2_s;
mod iq2_xs;
mod iq2_xxs;
mod iq3;
mod iq3_s;
mod iq3_xxs;
mod signs;

pub(super) use iq1_m::IQ1_M;
pub(super) use iq1_s::IQ1_S;
pub(super) use iq2_s::IQ2_S;
pub(super) use iq2_xs::IQ2_XS;
pub(super) use iq2_xxs::IQ2_XXS;
pub(super) use iq3_s::IQ3_S;
pub(super) use iq3_xxs::IQ3_XXS;

use super::lattice::{Lattice, Levels, Mins, Points, SubScales};
use super::search::{SUPER_BLOCK_LEN as LEN, nearest_int, sums_of_squares};
use crate::simd::{F32x16, I32x16, Simd};

/// The magnitudes of the three levels of the IQ2 grids.
const IQ2_VALUES: [u8; 3] = [8, 25, 43];

/// In units of which `w = d*(2*sc + 1) * +-magnitude`.
const IQ2_MAGNITUDES: [f32; 3] = [1.0, 3.125, 5.375];

/// The values (`i8`) of the three levels of the IQ1 grid.
const IQ1_VALUES: [u8; 3] = [-1i8 as u8, 0, 1];

/// What IQ1 adds to every value, or subtracts.
const IQ1_SHIFT: f32 = 0.125;

/// The points of a grid of `grids.rs` with every level replaced by its value.
const fn expand<const N: usize, const POINT_LEN: usize, const LEVELS: usize>(
    points: &[u16; N],
    values: [u8; LEVELS],
) -> [[u8; POINT_LEN]; N] {
    let bits = (LEVELS - 1).ilog2() as usize + 1;
    let mut expanded = [[0; POINT_LEN]; N];
    let mut at = 0;
    while at < N {
        let mut i = 0;
        while i < POINT_LEN {
            let level = points[at] as usize >> (bits * i) & ((1 << bits) - 1);
            expanded[at][i] = values[level];
            i += 1;
        }
        at += 1;
    }
    expanded
}

/// Sixteen weights of two points: `scale` times the magnitudes, negative where the bit of `signs` is set.
#[inline(always)]
fn signed<S: Simd>(simd: S, scale: F32x16<S>, points: [[u8; 8]; 2], signs: [u8; 2]) -> F32x16<S> {
    let magnitudes = I32x16::load_u8(simd, &joined(points)).to_float();
    let signs = I32x16::spread(simd, u16::from_le_bytes(signs), i32::MIN);
    scale * (magnitudes.to_bits() | signs).to_float_bits()
}

/// Sixteen weights of two IQ1 points: `scale` times (value + shift), each point shifted down where its bit of `shifts` is set.
#[inline(always)]
fn shifted<S: Simd>(simd: S, scale: F32x16<S>, points: [[u8; 8]; 2], shifts: [bool; 2]) -> F32x16<S> {
    let values = I32x16::load_i8(simd, &joined(points)).to_float();
    let down = u16::from_le_bytes(shifts.map(|down| if down { 0xff } else { 0 }));
    let shift = I32x16::spread(simd, down, i32::MIN) | IQ1_SHIFT.to_bits() as i32;
    scale * (values + shift.to_float_bits())
}

/// Bit `i` is set where quant `i` is negative.
#[inline(always)]
fn minus_signs(eight: &[i8; 8]) -> u8 {
    eight.iter().rev().fold(0, |signs, quant| signs << 1 | u8::from(*quant < 0))
}

/// Of formats whose points give eight weights.
const fn lattice_of_eights(sub_block_len: usize, points: &'static [u16], even_signs: bool) -> Lattice {
    Lattice {
        block_len: LEN,
        sub_block_len,
        levels: Levels::Points(Points { len: 8, magnitudes: &IQ2_MAGNITUDES, points, even_signs }),
        scales: SubScales::Odd(15),
        mins: Mins::None,
    }
}

/// Of formats whose points give four weights.
const fn lattice_of_fours(magnitudes: &'static [f32; 8], points: &'static [u16], even_signs: bool) -> Lattice {
    Lattice {
        block_len: LEN,
        sub_block_len: 32,
        levels: Levels::Points(Points { len: 4, magnitudes, points, even_signs }),
        scales: SubScales::Odd(15),
        mins: Mins::None,
    }
}

/// Sixteen super-blocks or fewer, with the importance of their weights.
fn batches<'a>(weights: &'a [f32], importance: Option<&'a [f32]>) -> impl Iterator<Item = (&'a [f32], Option<&'a [f32]>)> {
    let start = |i: usize| 16 * LEN * i;
    let of_batch = move |(i, batch): (usize, &'a [f32])| (batch, importance.map(|row| &row[start(i)..][..batch.len()]));
    weights.chunks(16 * LEN).enumerate().map(of_batch)
}

/// The sums of sixteen super-blocks, each added from its first number to its last. `of` is `[16 * 256]`.
#[inline(always)]
fn sums_of_super_blocks<S: Simd>(simd: S, of: &[f32]) -> [f32; 16] {
    let mut sum = F32x16::splat(simd, 0.0);
    for chunk in 0..16 {
        let mut rows = [F32x16::splat(simd, 0.0); 16];
        for (row, super_block) in rows.iter_mut().zip(of.as_chunks::<LEN>().0) {
            *row = F32x16::load(simd, &super_block.as_chunks().0[chunk]);
        }
        rows = F32x16::transpose(rows);
        for i in 0..16 {
            sum = sum + rows[i];
        }
    }
    sum.to_array()
}

/// The scale of a super-block, and `sc` up to `sc_max` where `2*sc + 1` times it is that of a sub-block; `None` where all are zero.
#[inline(always)]
fn scales_of_super_block<const N: usize>(scales: &[f32; N], sc_max: i32) -> Option<(f32, [u8; N])> {
    if scales.iter().any(|scale| scale.is_nan()) {
        // The sums of the search overflowed; ggml aborts.
        return Some((f32::NAN, [0; N]));
    }
    let max = scales.iter().fold(0.0f32, |max, &scale| if max > scale { max } else { scale });
    if max == 0.0 {
        return None;
    }
    let d = max / (2 * sc_max + 1) as f32;
    let per_scale = 1.0 / d;
    Some((d, scales.map(|scale| nearest_int(0.5 * (per_scale * scale - 1.0)).clamp(0, sc_max) as u8)))
}

#[inline(always)]
fn joined(points: [[u8; 8]; 2]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&points[0]);
    bytes[8..].copy_from_slice(&points[1]);
    bytes
}
