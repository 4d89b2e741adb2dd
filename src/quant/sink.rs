//! What becomes of weights as they are unpacked. Here they are stored as f32; in `dot.rs` they are multiplied before they leave the registers.

use std::marker::PhantomData;

use super::block::{Dequantize, LEN_MAX, padded_units, units};
use crate::simd::{F32x16, Level, Simd, Task};

/// Takes the weights of a block.
pub(super) trait Sink<S: Simd> {
    /// Weights `16 * at` to `16 * at + 15` of the block.
    fn put(&mut self, at: usize, weights: F32x16<S>);
}

/// `blocks` become as many `weights` as they hold.
pub(super) fn dequantize<U: Dequantize>(level: Level, blocks: &[u8], weights: &mut [f32]) {
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

struct Store<'a>(&'a mut [[f32; 16]]);

impl<S: Simd> Sink<S> for Store<'_> {
    #[inline(always)]
    fn put(&mut self, at: usize, weights: F32x16<S>) {
        weights.store(&mut self.0[at]);
    }
}
