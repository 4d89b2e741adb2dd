//! A format as a row of a table: its sizes, and its functions as drivers that run a block's over many blocks.

use std::marker::PhantomData;

use zerocopy::{FromBytes, Unaligned};

use super::block::{Dequantize, LEN_MAX, Quantize, padded_units, units};
use super::dot::{self, Factors};
use super::largest;
use super::lattice::{Assemble, Lattice, Parts};
use super::sink::Store;
use super::{BlockFault, BlockFaultKind};
use crate::simd::{F32x16, Level, Simd, Sixteen, Task};

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
    pub lattice: Option<Lattice>,
    pub assemble: Option<AssembleFn>,
}

type QuantizeFn = fn(Level, &[f32], Option<&[f32]>, &mut [u8]) -> Result<(), BlockFault>;
type DequantizeFn = fn(Level, &[u8], &mut [f32]);
type LargestFn = fn(Level, &[u8]) -> f32;
type ArrangeFn = fn(&[f32]) -> Vec<Sixteen>;
type AddDotsFn = fn(Level, &Factors, &[u8], &mut [f32]);
type AssembleFn = fn(Level, &Parts, &mut [u8]);

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

    /// A format that is read and written, whose blocks can be made of chosen parts too.
    pub const fn assembled<B: Assemble + Dequantize>() -> Traits {
        Traits { lattice: Some(B::LATTICE), assemble: Some(assemble::<B>), ..Traits::of::<B>() }
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
            dequantize: Some(dequantize::<U>),
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
            lattice: None,
            assemble: None,
        }
    }
}

/// `blocks` become as many `weights` as they hold.
fn dequantize<U: Dequantize>(level: Level, blocks: &[u8], weights: &mut [f32]) {
    level.run(DequantizeTask::<U> { blocks, weights, unit: PhantomData });
}

struct DequantizeTask<'a, U> {
    blocks: &'a [u8],
    weights: &'a mut [f32],
    unit: PhantomData<U>,
}

impl<U: Dequantize> Task for DequantizeTask<'_, U> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (units, rest) = units::<U>(self.blocks);
        let (weights, weights_rest) = self.weights.split_at_mut(units.len() * U::LEN);
        for (unit, weights) in units.iter().zip(weights.chunks_exact_mut(U::LEN)) {
            unit.dequantize(simd, &mut Store(weights.as_chunks_mut().0));
        }
        if !rest.is_empty() {
            let mut padded = [0.0; LEN_MAX];
            padded_units::<U, 1>(rest)[0].dequantize(simd, &mut Store(padded.as_chunks_mut().0));
            weights_rest.copy_from_slice(&padded[..weights_rest.len()]);
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

/// `block` becomes one of `parts`.
fn assemble<B: Assemble>(level: Level, parts: &Parts, block: &mut [u8]) {
    level.run(AssembleTask { parts, block: B::mut_from_bytes(block).expect("one block") });
}

struct AssembleTask<'a, B> {
    parts: &'a Parts,
    block: &'a mut B,
}

impl<B: Assemble> Task for AssembleTask<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        *self.block = B::assemble(simd, self.parts);
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
