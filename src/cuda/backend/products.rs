//! Weights and products.

use std::sync::atomic::{AtomicU32, Ordering};

use super::{Cuda, Operand, Products, Weight, bytes_of};
use crate::cuda::kernels::{self, Maps, Matrix16, Scaled, Selection, View};
use crate::cuda::sizes::{HALVES_BYTES_MAX, operand_ld, run_rows};
use crate::error::{Error, Result};
use crate::model::Matrix;
use crate::quant::Format;
use crate::simd::Level;

/// Blocks that are read and looked at by one thread: multiples of this many, so that parts begin at a multiple of 64 bytes.
const BLOCKS_READ: usize = 64;

/// The power of two that brings weights of up to less than twice `largest`, itself one, to 2^14 .. 2^15, the upper end of halves; 1 where
/// there are none but zeros.
fn scale_for(largest: f32) -> f32 {
    if largest == 0.0 {
        return 1.0;
    }
    let exponent = (largest.to_bits() >> 23) as i32 - 127;
    f32::from_bits(((14 - exponent).clamp(-126, 126) + 127) as u32 * (1 << 23))
}

impl Cuda {
    /// Brings a matrix into device memory. The threads that read it look for its largest weight, so that nothing has to be asked of a GPU
    /// that is busy.
    pub(super) fn store(&self, matrix: &Matrix<'_>) -> Result<Weight> {
        let Matrix { format, n_rows, n_cols, .. } = *matrix;
        let what = format!("a matrix [{n_rows}, {n_cols}] in {format}");
        let level = Level::detect();
        // Bits of floats that are not negative are in the order of the floats.
        let largest = AtomicU32::new(0);
        let block = self.device.store(matrix.size_bytes(), BLOCKS_READ * format.block_bytes(), &what, |bytes, at| {
            matrix.read_at(bytes, at)?;
            // Halves stay what they are.
            if format != Format::F16 {
                largest.fetch_max(format.largest_power_of_two(level, bytes).to_bits(), Ordering::Relaxed);
            }
            Ok(())
        })?;
        let scale = if format == Format::F16 { 1.0 } else { scale_for(f32::from_bits(largest.into_inner())) };
        Ok(Weight { block, format, n_rows, n_cols, scale })
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

    /// Several products of the same rows; of few rows, those of one format together.
    pub(super) fn multiply_all(&self, x: &Operand, products: &[(&Weight, View)]) -> Result<()> {
        let mut others = products.to_vec();
        while let Some((first, _)) = others.first() {
            let format = first.format;
            let alike: Vec<_> = others.extract_if(.., |(weight, _)| weight.format == format).collect();
            if x.n_rows > kernels::gemv_rows_max(format, self.device.gpu().capability) {
                alike.iter().try_for_each(|(weight, out)| self.multiply(x, weight, false, *out))?;
                continue;
            }
            for (weight, out) in &alike {
                assert_eq!((x.n_cols, out.n_rows, out.n_cols), (weight.n_cols, x.n_rows, weight.n_rows), "shapes of a product");
            }
            let alike: Vec<_> = alike.iter().map(|(weight, out)| (weight.block.memory(), *out)).collect();
            for products in alike.chunks(kernels::GEMV_MATRICES_MAX) {
                self.device.launch(kernels::gemvs(format, x.scaled()?, false, products))?;
            }
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_brought_to_the_upper_end_of_halves() {
        for exponent in -126..=127 {
            let largest = 2f32.powi(exponent);
            let scale = scale_for(largest);
            assert_eq!(scale.to_bits() << 9, 0, "{scale} is no power of two");
            assert!(scale.is_normal() && scale * (1.0 / scale) == 1.0, "2^{exponent}: {scale}");
            // Not all the way up where the factor itself would be too large.
            assert!(largest * scale == 16_384.0 || exponent < -112 && largest * scale < 16_384.0, "2^{exponent}: {scale}");
        }
        assert_eq!(scale_for(0.0), 1.0);
        assert_eq!(scale_for(f32::from_bits(1)), 2f32.powi(126));
    }
}
