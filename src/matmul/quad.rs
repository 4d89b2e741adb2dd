//! How operands lie for AMX: tiles of bf16, both halves of each number. The picture is in [`super::amx`].

use zerocopy::IntoBytes;

use super::{CHUNK, LANES, Rows};
use crate::simd::{F32x16, I32x16, Simd, Task};

/// Rows of `x` and columns of `w` that are multiplied at a time: two tiles of each.
pub(super) const SIDE: usize = 32;

/// Terms that a tile has.
pub(super) const STEP: usize = 32;

/// Sixteen rows of 64 bytes; the floats are only bits here.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub(super) struct Tile(pub [[f32; LANES]; LANES]);

/// Both halves of two tiles side by side: `hi`, `hi`, `lo`, `lo`.
pub(super) type Quad = [Tile; 4];

pub(super) const EMPTY: Quad = [Tile([[0.0; LANES]; LANES]); 4];

/// Quads that the activations `[n_rows, n_cols]` become.
pub(super) fn n_quads(n_rows: usize, n_cols: usize) -> usize {
    n_rows.div_ceil(SIDE) * n_cols.div_ceil(STEP)
}

/// Quads of one chunk of activations: its groups of rows one after the other, each step by step.
pub(super) struct PackRows<'a> {
    pub x: Rows<'a>,
    pub chunk: usize,
    pub quads: &'a mut [Quad],
}

impl Task for PackRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let PackRows { x, chunk, quads } = self;
        let n_steps = quads.len() / x.n_rows.div_ceil(SIDE);
        for (group, quads) in quads.chunks_mut(n_steps).enumerate() {
            for row in group * SIDE..x.n_rows.min((group + 1) * SIDE) {
                let from = &x.row(row)[chunk * CHUNK..];
                for (step, quad) in quads.iter_mut().enumerate() {
                    let (tile, line) = (row % SIDE / LANES, row % LANES);
                    for half in 0..2 {
                        let [hi, lo] = split(load(simd, from, step * STEP + half * LANES));
                        quad[tile].0[line].as_mut_bytes()[32 * half..][..32].copy_from_slice(&hi.shr::<16>().to_u16());
                        quad[2 + tile].0[line].as_mut_bytes()[32 * half..][..32].copy_from_slice(&lo.shr::<16>().to_u16());
                    }
                }
            }
        }
    }
}

/// Sixteen floats from `at`, zeros behind the last.
#[inline(always)]
fn load<S: Simd>(simd: S, from: &[f32], at: usize) -> F32x16<S> {
    let from = from.get(at..).unwrap_or(&[]);
    if let Some(sixteen) = from.first_chunk() {
        return F32x16::load(simd, sixteen);
    }
    let mut padded = [0.0; LANES];
    padded[..from.len()].copy_from_slice(from);
    F32x16::load(simd, &padded)
}

/// `hi` and `lo` in the upper halves of the lanes.
#[inline(always)]
pub(super) fn split<S: Simd>(x: F32x16<S>) -> [I32x16<S>; 2] {
    let hi = round(x);
    [hi, round(x - hi.to_float_bits())]
}

/// To bf16, ties to even; the bits below are zero.
#[inline(always)]
fn round<S: Simd>(x: F32x16<S>) -> I32x16<S> {
    let bits = x.to_bits();
    (bits + (bits.shr::<16>() & 1) + 0x7fff) & (0xffff_0000_u32 as i32)
}
