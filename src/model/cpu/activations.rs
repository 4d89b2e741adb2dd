//! Rounding activations as llama.cpp does, to explain its figures. Evaluation does not do this unless it is asked to.

use rayon::prelude::*;

use super::{Cpu, Operand, Rows, Weight};
use crate::error::Result;
use crate::quant::Format;

/// What activations are rounded to before they are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activations {
    /// Nothing: they stay f32.
    #[default]
    F32,
    /// To what llama.cpp's CPU backend rounds them, by the format of the weight: blocks of 8-bit integers for block formats, halves for
    /// F16, BF16 for BF16. Queries, keys and values are rounded to halves, as in its default cache.
    Q8,
}

/// What llama.cpp multiplies weights of a format with; `None` for f32.
fn partner(format: Format) -> Option<Format> {
    use Format::*;
    match format {
        F16 | BF16 => Some(format),
        Q4_0 | Q5_0 | Q8_0 | IQ4_NL | MXFP4 | NVFP4 | Q1_0 | Q2_0 => Some(Q8_0),
        Q4_1 | Q5_1 => Some(Q8_1),
        Q2_K | Q3_K | Q4_K | Q5_K | Q6_K | IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S | IQ4_XS | TQ1_0 | TQ2_0 => {
            Some(Q8_K)
        }
        _ => None,
    }
}

impl Cpu {
    /// `x` as it is multiplied with `weight`; `None` for as it is.
    pub(super) fn rounded(&self, x: &Operand, weight: &Weight) -> Result<Option<Operand>> {
        match (self.activations, partner(weight.format)) {
            (Activations::Q8, Some(format)) => self.rounded_to(format, &x.rows).map(|rows| Some(rows.into())),
            _ => Ok(None),
        }
    }

    /// Queries, keys and values as they are multiplied; `None` for as they are.
    pub(super) fn rounded_heads(&self, rows: [&Rows; 3]) -> Result<Option<[Rows; 3]>> {
        let [q, k, v] = rows;
        match self.activations {
            Activations::F32 => Ok(None),
            Activations::Q8 => {
                let half = |rows| self.rounded_to(Format::F16, rows);
                Ok(Some([half(q)?, half(k)?, half(v)?]))
            }
        }
    }

    /// Every row through `format` and back. A row that is not finite stays what it is: its products are not finite either way.
    fn rounded_to(&self, format: Format, x: &Rows) -> Result<Rows> {
        let mut out = self.new_rows(x.n_rows(), x.n_cols)?;
        let row_bytes = format.row_bytes(x.n_cols as u64).expect("weights of these rows have blocks as long") as usize;
        let rows = out.values.par_chunks_exact_mut(x.n_cols).enumerate();
        self.pool.install(|| {
            rows.for_each_init(
                || vec![0; row_bytes],
                |blocks, (index, row)| match format.quantize_rows(self.level(), x.row(index), x.n_cols, None, blocks) {
                    Ok(()) => format.dequantize(self.level(), blocks, row),
                    Err(_) => row.copy_from_slice(x.row(index)),
                },
            );
        });
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::{Accumulate, Engine};
    use crate::model::backend::Backend;
    use crate::simd::Level;

    const N_COLS: usize = 512;

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin() + 0.3 * (i as f32 * 7.1).cos()).collect()
    }

    fn product(activations: Activations, x: &[f32], matrix: &Weight) -> Vec<f32> {
        let cpu = Cpu::new(Engine::detect(), 1, activations).unwrap();
        let operand = Operand::from(cpu.upload(x, N_COLS).unwrap());
        let mut out = cpu.rows(operand.rows.n_rows(), matrix.n_rows).unwrap();
        cpu.matmul(&operand, matrix, Accumulate::Store, &mut out).unwrap();
        cpu.download(&out).unwrap()
    }

    /// Rounding changes products by what 8 bits, or a half, lose; and not at all where weights are f32.
    #[test]
    fn every_weight_format_has_its_partner() {
        let (x, w) = (wave(3 * N_COLS, 0.37), wave(8 * N_COLS, 0.0173));
        let importance = vec![1.0; N_COLS];
        for &format in Format::ALL {
            if !format.can_quantize() || format.is_for_activations() {
                continue;
            }
            let mut bytes = vec![0; 8 * format.row_bytes(N_COLS as u64).unwrap() as usize];
            for (w, blocks) in w.chunks(N_COLS).zip(bytes.chunks_mut(format.row_bytes(N_COLS as u64).unwrap() as usize)) {
                let importance = format.needs_importance().then_some(&importance[..]);
                format.quantize_rows(Level::detect(), w, N_COLS, importance, blocks).unwrap();
            }
            let matrix = Weight { format, n_rows: 8, n_cols: N_COLS, bytes };
            let exact = product(Activations::F32, &x, &matrix);
            let rounded = product(Activations::Q8, &x, &matrix);
            let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
            let error = norm(&mut exact.iter().zip(&rounded).map(|(a, b)| a - b)) / norm(&mut exact.iter().copied());
            match format {
                Format::F32 => assert_eq!(error, 0.0),
                _ => assert!(error > 0.0 && error < 0.02, "{format}: {error}"),
            }
        }
    }
}
