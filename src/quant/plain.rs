//! Formats without blocks: floats of four widths, read and (F64 apart) written; integers, only carried.
//!
//! Little-endian, one weight per "block". F16 and BF16 round to nearest even; a finite weight that would become infinite is refused.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::block::{Block, Dequantize, Half, Quantize};
use super::sink::Sink;
use crate::simd::{F32x16, I32x16, Simd};

/// 32 bits.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub(super) struct F32([u8; 4]);

impl Float for F32 {
    #[inline(always)]
    fn widen<S: Simd>(simd: S, floats: &[F32; 16]) -> F32x16<S> {
        F32x16::load(simd, &floats.map(|float| f32::from_le_bytes(float.0)))
    }
}

impl Quantize for F32 {
    #[inline(always)]
    fn quantize<S: Simd>(_simd: S, weights: &[f32], _importance: Option<&[f32]>, blocks: &mut [F32]) {
        for (block, w) in blocks.iter_mut().zip(weights) {
            block.0 = w.to_le_bytes();
        }
    }

    #[inline(always)]
    fn is_sound(&self) -> bool {
        true
    }
}

/// 16 bits: 1 sign, 5 exponent, 10 mantissa.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub(super) struct F16(Half);

impl Float for F16 {
    #[inline(always)]
    fn widen<S: Simd>(simd: S, floats: &[F16; 16]) -> F32x16<S> {
        F32x16::load_f16(simd, zerocopy::transmute_ref!(floats))
    }
}

impl TwoBytes for F16 {
    #[inline(always)]
    fn narrow<S: Simd>(weights: F32x16<S>) -> [u8; 32] {
        weights.to_f16()
    }

    #[inline(always)]
    fn is_finite(&self) -> bool {
        self.0.is_finite()
    }
}

/// 16 bits: the upper half of an F32.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub(super) struct BF16([u8; 2]);

impl Float for BF16 {
    #[inline(always)]
    fn widen<S: Simd>(simd: S, floats: &[BF16; 16]) -> F32x16<S> {
        I32x16::load_u16(simd, zerocopy::transmute_ref!(floats)).shl::<16>().to_float_bits()
    }
}

impl TwoBytes for BF16 {
    #[inline(always)]
    fn narrow<S: Simd>(weights: F32x16<S>) -> [u8; 32] {
        let bits = weights.to_bits();
        // Just under half of the last bit kept, or half where that bit is set: a tie goes to even.
        let last = bits.shr::<16>() & 1;
        (bits + last + 0x7fff).shr::<16>().to_u16()
    }

    #[inline(always)]
    fn is_finite(&self) -> bool {
        u16::from_le_bytes(self.0) & 0x7f80 != 0x7f80
    }
}

/// A float as it lies in a file, read sixteen at a time.
trait Float: Copy + FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned {
    fn widen<S: Simd>(simd: S, floats: &[Self; 16]) -> F32x16<S>;
}

impl<F: Float> Block for F {
    const LEN: usize = 1;
}

impl<F: Float> Block for [F; 16] {
    const LEN: usize = 16;
}

impl<F: Float> Dequantize for [F; 16] {
    #[inline(always)]
    fn dequantize<S: Simd>(&self, simd: S, to: &mut impl Sink<S>) {
        to.put(0, F::widen(simd, self));
    }
}

/// A float of two bytes, written sixteen at a time.
trait TwoBytes: Float {
    fn narrow<S: Simd>(weights: F32x16<S>) -> [u8; 32];
    fn is_finite(&self) -> bool;
}

impl<B: TwoBytes> Quantize for B {
    #[inline(always)]
    fn quantize<S: Simd>(simd: S, weights: &[f32], _importance: Option<&[f32]>, blocks: &mut [B]) {
        let (bytes, bytes_rest) = blocks.as_mut_bytes().as_chunks_mut::<32>();
        let (weights, weights_rest) = weights.as_chunks::<16>();
        for (bytes, weights) in bytes.iter_mut().zip(weights) {
            *bytes = B::narrow(F32x16::load(simd, weights));
        }
        let mut padded = [0.0; 16];
        padded[..weights_rest.len()].copy_from_slice(weights_rest);
        bytes_rest.copy_from_slice(&B::narrow(F32x16::load(simd, &padded))[..bytes_rest.len()]);
    }

    #[inline(always)]
    fn is_sound(&self) -> bool {
        self.is_finite()
    }
}

/// 64 bits: only a source. Rounds to the nearest f32.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub(super) struct F64([u8; 8]);

impl Float for F64 {
    #[inline(always)]
    fn widen<S: Simd>(simd: S, floats: &[F64; 16]) -> F32x16<S> {
        F32x16::load(simd, &floats.map(|float| f64::from_le_bytes(float.0) as f32))
    }
}
