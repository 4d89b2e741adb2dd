//! What a block format supplies, and the driver that runs it over many blocks.

use half::f16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::dot::{self, Factors, Products, SUMS};
use super::largest;
use super::sink::{self, Sink};
use super::{BlockFault, BlockFaultKind};
use crate::simd::{F32x16, Level, Simd, Sixteen, Task};

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

/// The functions and sizes of a format: what a line of `formats!` holds.
#[derive(Clone, Copy)]
pub(super) struct Traits {
    pub block_len: usize,
    pub block_bytes: usize,
    pub uses_importance: bool,
    pub needs_importance: bool,
    pub is_for_activations: bool,
    pub quantize: Option<QuantizeFn>,
    pub dequantize: Option<DequantizeFn>,
    pub largest: Option<LargestFn>,
    pub arrange: Option<ArrangeFn>,
    pub add_dots: Option<AddDotsFn>,
}

type QuantizeFn = fn(Level, &[f32], Option<&[f32]>, &mut [u8]) -> Result<(), BlockFault>;
type DequantizeFn = fn(Level, &[u8], &mut [f32]);
type LargestFn = fn(Level, &[u8]) -> f32;
type ArrangeFn = fn(&[f32]) -> Vec<Sixteen>;
type AddDotsFn = fn(Level, &Factors, &[u8], &mut [f32]);

impl Traits {
    /// A format that is read and written.
    pub const fn of<B: Quantize + Dequantize>() -> Traits {
        Traits {
            uses_importance: B::USES_IMPORTANCE,
            needs_importance: B::NEEDS_IMPORTANCE,
            quantize: Some(quantize::<B>),
            ..Traits::readable::<B>(B::LEN)
        }
    }

    /// A format of ggml's activations, which no file holds.
    pub const fn activations<B: Quantize + Dequantize>() -> Traits {
        Traits { is_for_activations: true, ..Traits::of::<B>() }
    }

    /// Floats, read sixteen at a time.
    pub const fn floats<F: Quantize>() -> Traits
    where
        [F; 16]: Dequantize,
    {
        Traits { quantize: Some(quantize::<F>), ..Traits::readable::<[F; 16]>(1) }
    }

    /// A format that is only read, as `U`: one or more of its blocks of `block_len` weights.
    pub const fn readable<U: Dequantize>(block_len: usize) -> Traits {
        Traits {
            block_bytes: size_of::<U>() / (U::LEN / block_len),
            dequantize: Some(sink::dequantize::<U>),
            largest: Some(largest::largest::<U>),
            arrange: Some(dot::arrange::<U>),
            add_dots: Some(dot::add_dots::<U>),
            ..Traits::stored::<U>(block_len)
        }
    }

    /// A format whose bytes are only carried: `block_len` weights in the bytes of a `B`.
    pub const fn stored<B: Unaligned>(block_len: usize) -> Traits {
        Traits {
            block_len,
            block_bytes: size_of::<B>(),
            uses_importance: false,
            needs_importance: false,
            is_for_activations: false,
            quantize: None,
            dequantize: None,
            largest: None,
            arrange: None,
            add_dots: None,
        }
    }
}

/// Weights that are checked and quantized at a time: 16 KiB, so that the second look at them finds them in the first-level cache.
const PIECE_LEN: usize = 4096;

fn quantize<B: Quantize>(level: Level, weights: &[f32], importance: Option<&[f32]>, blocks: &mut [u8]) -> Result<(), BlockFault> {
    let blocks = <[B]>::mut_from_bytes(blocks).expect("whole blocks");
    level.run(QuantizeTask { weights, importance, blocks })
}

struct QuantizeTask<'a, B> {
    weights: &'a [f32],
    importance: Option<&'a [f32]>,
    blocks: &'a mut [B],
}

impl<B: Quantize> Task for QuantizeTask<'_, B> {
    type Output = Result<(), BlockFault>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Result<(), BlockFault> {
        assert_eq!(self.weights.len(), self.blocks.len() * B::LEN, "as many blocks as weights");
        let piece_len = self.importance.map_or(PIECE_LEN, <[f32]>::len);
        let mut start = 0;
        for (weights, blocks) in self.weights.chunks(piece_len).zip(self.blocks.chunks_mut(piece_len / B::LEN)) {
            let finite = all_finite(simd, weights);
            // Blocks before the one with the weight that is not finite are looked at too: the fault reported is the first.
            let n_blocks = if finite { blocks.len() } else { first_non_finite(weights) / B::LEN };
            let blocks = &mut blocks[..n_blocks];
            B::quantize(simd, &weights[..n_blocks * B::LEN], self.importance, blocks);
            if !blocks.iter().fold(true, |sound, block| sound & block.is_sound()) {
                let block = blocks.iter().position(|block| !block.is_sound()).unwrap_or(0);
                return Err(out_of_range(weights, block * B::LEN..(block + 1) * B::LEN, start));
            }
            if !finite {
                let at = first_non_finite(weights);
                return Err(BlockFault { index: start + at, value: weights[at], kind: BlockFaultKind::NonFinite });
            }
            start += weights.len();
        }
        Ok(())
    }
}

#[inline(always)]
fn all_finite<S: Simd>(simd: S, weights: &[f32]) -> bool {
    let (chunks, rest) = weights.as_chunks::<16>();
    let max = F32x16::splat(simd, f32::MAX);
    let mut finite = max.le(max);
    for chunk in chunks {
        finite = finite & F32x16::load(simd, chunk).abs().le(max);
    }
    finite.bits() == u16::MAX && rest.iter().all(|w| w.is_finite())
}

#[cold]
fn first_non_finite(weights: &[f32]) -> usize {
    weights.iter().position(|w| !w.is_finite()).unwrap_or(weights.len())
}

/// The fault of a block that cannot be held: its largest weight is to blame.
#[cold]
fn out_of_range(weights: &[f32], block: std::ops::Range<usize>, start: usize) -> BlockFault {
    let mut at = block.start;
    for i in block {
        if weights[i].abs() > weights[at].abs() {
            at = i;
        }
    }
    BlockFault { index: start + at, value: weights[at], kind: BlockFaultKind::OutOfRange }
}
