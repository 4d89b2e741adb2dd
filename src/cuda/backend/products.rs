//! Weights and products.

use zerocopy::IntoBytes;

use super::{Cuda, Operand, Products, Weight, bytes_of, operand_ld};
use crate::cuda::device::Block;
use crate::cuda::kernels::{self, Maps, Matrix16, Memory, Scaled, Selection, View};
use crate::error::{Error, Result};
use crate::model::Matrix;
use crate::quant::Format;

/// Weights that are looked at together for the largest.
const MAGNITUDE_WEIGHTS: usize = 4 << 20;
/// Blocks that look, at most.
const MAGNITUDE_BLOCKS: u32 = 512;
/// Weights that a block looks at, at least.
const MAGNITUDE_BLOCK_WEIGHTS: usize = 1 << 14;

/// What a run of a matrix's rows takes as halves, at most.
const HALVES_BYTES_MAX: u64 = 256 << 20;

/// Runs are multiples of the largest tile.
const RUN_ROWS: usize = 256;

/// Bytes of a run of a matrix's rows as halves, where it is as short as can be.
pub(in crate::cuda) fn halves_bytes_min(n_rows: usize, n_cols: usize) -> u64 {
    halves_bytes(n_rows, n_cols, 0)
}

/// The same, where there is room for long ones.
pub(in crate::cuda) fn halves_bytes_max(n_rows: usize, n_cols: usize) -> u64 {
    halves_bytes(n_rows, n_cols, HALVES_BYTES_MAX)
}

fn halves_bytes(n_rows: usize, n_cols: usize, bytes_max: u64) -> u64 {
    let k = operand_ld(n_cols);
    (run_rows(k, bytes_max).min(n_rows) as u64).saturating_mul(k as u64 * 2)
}

/// Bytes to look for a matrix's largest weight.
pub(in crate::cuda) fn looking_bytes(n_rows: usize, n_cols: usize) -> u64 {
    let n_floats = (n_rows.min(magnitude_rows(n_cols)) as u64).saturating_mul(n_cols.next_multiple_of(4) as u64);
    n_floats.saturating_mul(4).saturating_add(u64::from(MAGNITUDE_BLOCKS) * 4)
}

/// The power of two that brings `largest` to 2^14 .. 2^15, the upper end of halves; 1 where that makes no sense.
fn scale_for(largest: f32) -> f32 {
    let exponent = (largest.to_bits() >> 23) as i32 - 127;
    if largest == 0.0 || exponent == 128 {
        return 1.0;
    }
    f32::from_bits(((14 - exponent).clamp(-126, 126) + 127) as u32 * (1 << 23))
}

impl Cuda {
    /// Brings a matrix into device memory.
    pub(super) fn store(&self, matrix: Matrix) -> Result<Weight> {
        let Matrix { format, n_rows, n_cols, bytes } = matrix;
        let row_bytes = format.row_bytes(n_cols as u64).ok_or_else(|| Error::Internal("a row of broken blocks".to_owned()))?;
        assert_eq!(bytes.len() as u64, row_bytes * n_rows as u64, "all blocks of the matrix");
        let what = format!("a matrix [{n_rows}, {n_cols}] in {format}");
        let mut scale = 1.0;
        // Halves stay what they are.
        let block = if format == Format::F16 {
            self.device.store(&bytes, &what, |_| Ok(()))?
        } else {
            let work = self.magnitude_room(n_rows, n_cols)?;
            self.device.store(&bytes, &what, |blocks| {
                scale = scale_for(self.magnitude(format, blocks, n_rows, n_cols, row_bytes, &work)?);
                Ok(())
            })?
        };
        Ok(Weight { block, format, n_rows, n_cols, scale })
    }

    /// Room to look for the largest weight: floats of a run of rows, and the largest of each block.
    fn magnitude_room(&self, n_rows: usize, n_cols: usize) -> Result<Block> {
        // Given out for the copy stream, so that it is not one that a computation still reads.
        self.device.room_for_copy(looking_bytes(n_rows, n_cols), "looking at a weight")
    }

    /// The largest magnitude among the weights, on the copy stream.
    fn magnitude(&self, format: Format, blocks: Memory, n_rows: usize, n_cols: usize, row_bytes: u64, work: &Block) -> Result<f32> {
        let run_rows = magnitude_rows(n_cols);
        let partial = work.memory();
        let floats = partial.from(u64::from(MAGNITUDE_BLOCKS) * 4)?;
        let mut largest = 0.0f32;
        for first in (0..n_rows).step_by(run_rows) {
            let n = run_rows.min(n_rows - first);
            let from = Selection { blocks: blocks.from(first as u64 * row_bytes)?, format, rows: None, scale: 1.0 };
            // Columns between the row's end and its stride are zeros.
            let ld = n_cols.next_multiple_of(4);
            self.device.launch_on_copy(kernels::dequant_f32(from, View { memory: floats, n_rows: n, n_cols, ld }))?;
            let n_blocks = MAGNITUDE_BLOCKS.min((n * ld).div_ceil(MAGNITUDE_BLOCK_WEIGHTS) as u32);
            self.device.launch_on_copy(kernels::magnitude(floats, n * ld, partial, n_blocks))?;
            let mut magnitudes = vec![0.0f32; n_blocks as usize];
            self.device.fetch_copied(partial, magnitudes.as_mut_bytes())?;
            largest = magnitudes.into_iter().fold(largest, f32::max);
        }
        Ok(largest)
    }

    /// `x * weight^T` into, or added to, `out`.
    pub(super) fn multiply(&self, x: &Operand, weight: &Weight, adds: bool, out: View) -> Result<()> {
        assert_eq!((x.n_cols, out.n_rows, out.n_cols), (weight.n_cols, x.n_rows, weight.n_rows), "shapes of a product");
        if x.n_rows <= kernels::gemv_rows_max(weight.format, self.device.gpu().capability) {
            return self.device.launch(kernels::gemv(weight.format, weight.block.memory(), x.scaled()?, adds, out));
        }
        if weight.n_rows == 1 {
            return self.multiply_with_row(x, weight, adds, out);
        }
        self.multiply_many(x.scaled()?, weight, adds, out)
    }

    /// The same for a matrix of one row, which is narrower than any tile writes.
    pub(super) fn multiply_with_row(&self, x: &Operand, weight: &Weight, adds: bool, out: View) -> Result<()> {
        self.device.launch(kernels::gemv(weight.format, weight.block.memory(), x.scaled()?, adds, out))
    }

    /// The same for any number of rows: the sums do not depend on it.
    pub(super) fn multiply_many(&self, x: Scaled, weight: &Weight, adds: bool, out: View) -> Result<()> {
        let Weight { format, n_rows, n_cols, scale, .. } = *weight;
        let row_bytes = format.row_bytes(n_cols as u64).ok_or_else(|| Error::Internal("a row of broken blocks".to_owned()))?;
        // Both factors are zero between a row's end and its stride, so a product goes that far.
        let k = operand_ld(n_cols);
        let x = Scaled { values: View { n_cols: k, ..x.values }, ..x };
        if format == Format::F16 && k == n_cols {
            let values = View::dense(weight.block.memory(), n_rows, n_cols);
            return self.product(x, Matrix16 { values, alpha: 1.0 / scale }, adds, out);
        }
        let halves_bytes = HALVES_BYTES_MAX.min(self.device.memory_bytes()[0] / 8).min(self.device.longest_free_bytes() / 2);
        let run_rows = run_rows(k, halves_bytes).min(n_rows);
        let halves = self.device.room(bytes_of(&[run_rows, k, 2])?, "weights as halves")?;
        for first in (0..n_rows).step_by(run_rows) {
            let n = run_rows.min(n_rows - first);
            let from = Selection { blocks: weight.block.memory().from(first as u64 * row_bytes)?, format, rows: None, scale };
            let values = View::dense(halves.memory(), n, k);
            self.device.launch(kernels::dequant_f16(from, View { n_cols, ..values }))?;
            let part = View { memory: out.memory.from(first as u64 * 4)?, n_cols: n, ..out };
            self.product(x, Matrix16 { values, alpha: 1.0 / scale }, adds, part)?;
        }
        Ok(())
    }

    /// One product of halves.
    pub(in crate::cuda) fn product(&self, a: Scaled, b: Matrix16, adds: bool, out: View) -> Result<()> {
        let n_multiprocessors = self.device.gpu().n_multiprocessors;
        self.device.launch(if self.products == Products::Best && self.device.has_sm90() {
            let tile = kernels::sm90_tile(out.n_rows, out.n_cols, n_multiprocessors);
            let maps = Maps { a: self.device.tensor_map(a.values, tile.rows)?, b: self.device.tensor_map(b.values, tile.columns)? };
            kernels::gemm_sm90(tile, a, b, maps, adds, out, n_multiprocessors)
        } else {
            kernels::gemm(a, b, adds, out, n_multiprocessors)
        })
    }
}

/// Rows whose weights are looked at together: by sixteen, so that blocks of whatever size begin at a multiple of 16 bytes.
fn magnitude_rows(n_cols: usize) -> usize {
    (MAGNITUDE_WEIGHTS / n_cols.max(1) / 16).max(1) * 16
}

/// Rows that become halves together: whole tiles, at least one.
fn run_rows(n_cols: usize, bytes_max: u64) -> usize {
    let rows = usize::try_from(bytes_max).unwrap_or(usize::MAX) / (2 * n_cols.max(1));
    (rows / RUN_ROWS).max(1) * RUN_ROWS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_brought_to_the_upper_end_of_halves() {
        for largest in [1.0f32, 0.99, 3e-5, 1e-30, 70_000.0, 1e30, 65_504.0] {
            let scale = scale_for(largest);
            let scaled = f64::from(largest) * f64::from(scale);
            assert!((16_384.0..32_768.0).contains(&scaled), "{largest}: {scaled}");
            assert_eq!(scale.to_bits() << 9, 0, "{scale} is no power of two");
            assert_eq!(scale * (1.0 / scale), 1.0);
        }
        for largest in [0.0, f32::INFINITY] {
            assert_eq!(scale_for(largest), 1.0);
        }
        for largest in [f32::MIN_POSITIVE, f32::from_bits(1), f32::MAX] {
            let scale = scale_for(largest);
            assert!(scale.is_normal() && (1.0 / scale).is_normal() && largest * scale < 65_504.0, "{largest}: {scale}");
        }
    }

    /// Rows of Q6_K with 11008 weights have 9030 bytes: 381 of them, which 4 Mi weights would hold, end between multiples of 16.
    #[test]
    fn weights_are_looked_at_from_where_kernels_can_read() {
        for (format, n_cols) in [(Format::Q6_K, 11_008), (Format::Q4_0, 2080), (Format::MXFP4, 1 << 20)] {
            let row_bytes = format.row_bytes(n_cols as u64).expect("whole blocks");
            assert!((magnitude_rows(n_cols) as u64 * row_bytes).is_multiple_of(16), "{format} {n_cols}");
        }
    }

    #[test]
    fn a_matrix_that_does_not_fit_as_halves_is_taken_in_whole_tiles() {
        assert_eq!(run_rows(4096, 256 << 20), 32_768);
        assert_eq!(run_rows(4096, 3 << 20), 256);
        assert_eq!(run_rows(1 << 20, 1), 256);
        assert_eq!(run_rows(5120, 100 << 20), 10_240);
    }
}
