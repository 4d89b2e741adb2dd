//! What a block format supplies.

use half::f16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::sink::{Products, SUMS, Sink};
use crate::simd::{F32x16, Simd, Sixteen};

/// A block as it lies in a file: alignment 1, every bit pattern allowed, so that bytes can be viewed as blocks.
pub(super) trait Block: Copy + FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned {
    /// Weights per block.
    const LEN: usize;
}

/// Blocks that can be read; their length is a multiple of sixteen.
pub(super) trait Dequantize: Block {
    /// Hands all weights of the block over, sixteen by sixteen. Of those four sixteens apart the earlier come first.
    fn dequantize<S: Simd>(&self, simd: S, to: &mut impl Sink<S>);

    /// No finite weight of the block is larger in magnitude. From the scales alone, so that a look at a tensor's largest weight can pass
    /// over most blocks; may be infinite or NaN, where it says nothing.
    #[inline(always)]
    fn bound<S: Simd>(&self, simd: S) -> f32 {
        let _ = simd;
        f32::INFINITY
    }

    /// Sixteens of floats that the block's part of a vector is arranged in.
    const FACTORS: usize = Self::LEN / 16;

    /// The block's part of a vector becomes `factors`, as [`add_products`](Dequantize::add_products) takes them.
    fn arrange(x: &[f32], factors: &mut [Sixteen]) {
        factors.iter_mut().zip(x.as_chunks().0).for_each(|(factors, x)| factors.0 = *x);
    }

    /// The products with `factors` added to `sums`; the block begins at sixteen `at` of a step. A format may multiply its quants first and
    /// its scales then, in an order of its own that is the same at every level.
    #[inline(always)]
    fn add_products<S: Simd>(&self, simd: S, factors: &[Sixteen], at: usize, sums: [F32x16<S>; SUMS]) -> [F32x16<S>; SUMS] {
        let mut products = Products { simd, factors, first: at, sums };
        self.dequantize(simd, &mut products);
        products.sums
    }
}

/// Weights of the longest block.
pub(super) const LEN_MAX: usize = 256;

/// The whole blocks in `bytes`, and what follows them.
#[inline(always)]
pub(super) fn units<U: Block>(bytes: &[u8]) -> (&[U], &[u8]) {
    <[U]>::ref_from_prefix(bytes).expect("bytes are aligned as blocks are")
}

/// Blocks whose last are zero where `bytes` end.
#[inline(always)]
pub(super) fn padded_units<U: Block, const N: usize>(bytes: &[u8]) -> [U; N] {
    let mut units = [U::new_zeroed(); N];
    units.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
    units
}

/// A format that can be written.
pub(super) trait Quantize: Block {
    /// True where `quantize` weights errors by the importance; elsewhere the bytes are the same with and without.
    const USES_IMPORTANCE: bool = false;

    /// True where ggml makes blocks only with importance; then `quantize` always gets it.
    const NEEDS_IMPORTANCE: bool = false;

    /// The `LEN` weights from `i * LEN` become `blocks[i]`; every weight is finite. With `importance`, one for each weight, they are
    /// exactly one row, because some formats then look at the row as a whole.
    ///
    /// A block that cannot be held must fail [`is_sound`](Quantize::is_sound) afterwards: its scale is left infinite or NaN.
    fn quantize<S: Simd>(simd: S, weights: &[f32], importance: Option<&[f32]>, blocks: &mut [Self]);

    /// False when a scale is infinite or NaN.
    fn is_sound(&self) -> bool;
}

/// A half as it lies in a block.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub(super) struct Half(pub [u8; 2]);

impl Half {
    pub const NAN: Half = Half(f16::NAN.to_le_bytes());

    /// Rounded to nearest even; overflow gives infinity.
    #[inline(always)]
    pub fn new<S: Simd>(simd: S, value: f32) -> Half {
        Half(simd.half(value))
    }

    #[inline(always)]
    pub fn to_f32<S: Simd>(self, simd: S) -> f32 {
        simd.unhalf(self.0)
    }

    /// Without the sign.
    #[inline(always)]
    pub fn magnitude<S: Simd>(self, simd: S) -> f32 {
        self.to_f32(simd).abs()
    }

    /// The same in every lane.
    #[inline(always)]
    pub fn splat<S: Simd>(self, simd: S) -> F32x16<S> {
        F32x16::splat_half(simd, self.0)
    }

    /// False for infinity and NaN.
    #[inline(always)]
    pub fn is_finite(self) -> bool {
        self.0[1] & 0x7c != 0x7c
    }
}

/// The largest magnitude of some multiple of sixteen weights.
#[inline(always)]
pub(super) fn magnitude<S: Simd>(simd: S, weights: &[f32]) -> f32 {
    let mut max = F32x16::splat(simd, 0.0);
    for chunk in weights.as_chunks::<16>().0 {
        max = F32x16::load(simd, chunk).abs().max(max);
    }
    max.reduce_max()
}

/// The reciprocal, or 0 for 0.
#[inline(always)]
pub(super) fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}
