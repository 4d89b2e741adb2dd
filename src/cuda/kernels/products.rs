//! Matrix products: `a * b^T`, activations times weights.

use super::{Argument, Launch, Memory, TensorMap, View, internal, number};
use crate::error::{Error, Result};
use crate::quant::Format;

/// Activations as halves, of which row `i` is to be multiplied with `row_scale[i]`.
#[derive(Debug, Clone, Copy)]
pub(in crate::cuda) struct Scaled {
    pub values: View,
    /// f32, one for each row; `None` for 1.
    pub row_scale: Option<Memory>,
}

/// Weights as halves, `[n_out, n_in]`, all to be multiplied with `alpha`.
#[derive(Debug, Clone, Copy)]
pub(in crate::cuda) struct Matrix16 {
    pub values: View,
    pub alpha: f32,
}

/// The maps of both factors, for TMA.
#[derive(Debug, Clone, Copy)]
pub(in crate::cuda) struct Maps {
    pub a: TensorMap,
    pub b: TensorMap,
}

/// A tile of `gemm_sm80.cu`: columns, threads, dynamic shared bytes. All have 128 rows.
const LARGE: (u64, u32, u32) = (256, 256, 98_304);
const SMALL: (u64, u32, u32) = (128, 128, 65_536);

/// Shared bytes and threads of `gemm_sm90.cu`.
const SM90_SHARED_BYTES: u32 = 197_632;
const SM90_THREADS: u32 = 384;

impl Scaled {
    /// Some of the rows.
    pub fn rows(self, first: usize, n_rows: usize) -> Result<Scaled> {
        let row_scale = self.row_scale.map(|scales| scales.from(first as u64 * 4)).transpose()?;
        Ok(Scaled { values: self.values.rows(first, n_rows, 2)?, row_scale })
    }

    /// The factors of all rows, or null.
    fn scales(self) -> Result<Argument> {
        self.row_scale.map_or(Ok(Argument::Pointer(0)), |scales| scales.holds(self.values.n_rows, 4, "scales of rows"))
    }
}

/// The product of a GPU from compute capability 8.0: `out = alpha * row_scale * a b^T`, or that added to `out`.
///
/// Both tiles give the same bits: an element's sum runs over `k` in steps of 16 in either.
pub(in crate::cuda) fn gemm(a: Scaled, b: Matrix16, adds: bool, out: View, n_multiprocessors: u32) -> Result<Launch> {
    let tiles = |(columns, _, _): (u64, u32, u32)| (out.n_rows as u64).div_ceil(128) * (out.n_cols as u64).div_ceil(columns);
    let (name, tile) = if tiles(LARGE) >= n_multiprocessors.into() { ("128x256", LARGE) } else { ("128x128", SMALL) };
    let [a_at, lda] = a.values.halves("activations")?;
    let [b_at, ldb] = b.values.halves("weights")?;
    let arguments = product(vec![a_at, b_at, lda, ldb], a, b, out)?;
    Launch::shaped(format!("gemm_{name}_{}", if adds { "add" } else { "store" }), [tiles(tile), 1, 1], tile.1, tile.2, arguments)
}

/// The same product with `wgmma` and TMA, on compute capability 9.0.
pub(in crate::cuda) fn gemm_sm90(
    a: Scaled,
    b: Matrix16,
    maps: Maps,
    adds: bool,
    out: View,
    n_multiprocessors: u32,
) -> Result<Launch> {
    let tiles = (out.n_rows as u64).div_ceil(128) * (out.n_cols as u64).div_ceil(256);
    let grid = tiles.min(n_multiprocessors.into());
    let arguments = product(vec![Argument::Map(maps.a), Argument::Map(maps.b)], a, b, out)?;
    Launch::shaped(if adds { "gemm_sm90_add" } else { "gemm_sm90_store" }, [grid, 1, 1], SM90_THREADS, SM90_SHARED_BYTES, arguments)
}

/// The arguments of a product, whose first are its factors.
fn product(factors: Vec<Argument>, a: Scaled, b: Matrix16, out: View) -> Result<Vec<Argument>> {
    let [m, n, k] = [a.values.n_rows, b.values.n_rows, a.values.n_cols];
    if b.values.n_cols != k || (out.n_rows, out.n_cols) != (m, n) {
        return Err(internal(format!("a product [{m}, {k}] * [{n}, {}]^T into [{}, {}]", b.values.n_cols, out.n_rows, out.n_cols)));
    }
    if !k.is_multiple_of(8) {
        return Err(internal(format!("a product over {k} columns")));
    }
    if !out.ld.is_multiple_of(2) {
        return Err(Error::unsupported(format!("a matrix with {n} rows on a GPU"), "even numbers are possible; use --device cpu"));
    }
    let [c_at, ldc] = out.floats("product")?;
    let rest = [c_at, a.scales()?, number(m)?, number(n)?, number(k)?, ldc, Argument::F32(b.alpha)];
    Ok(factors.into_iter().chain(rest).collect())
}

/// Most rows that a `gemv` takes.
pub(in crate::cuda) const fn gemv_rows_max() -> usize {
    8
}

/// Rows of a matrix that a block of `gemv` has.
const GEMV_BLOCK_ROWS: u64 = 16;

/// True where rows of so many weights are short enough for `gemv`.
pub(in crate::cuda) fn has_row_of_blocks(format: Format, row_len: usize) -> bool {
    format.row_bytes(row_len as u64).is_some_and(|row_bytes| row_bytes <= u64::from(u32::MAX) / GEMV_BLOCK_ROWS)
}

/// The product of up to eight rows with weights in blocks, which are unpacked on the way and not rounded.
pub(in crate::cuda) fn gemv(format: Format, blocks: Memory, x: Scaled, adds: bool, out: View) -> Result<Launch> {
    let [batch, row_len, n_rows] = [x.values.n_rows, x.values.n_cols, out.n_cols];
    if out.n_rows != batch {
        return Err(internal(format!("{batch} rows times a matrix into {} rows", out.n_rows)));
    }
    let at_most = [1, 8].into_iter().find(|&n| batch <= n).ok_or_else(|| internal(format!("gemv of {batch} rows")))?;
    let row_bytes = format.row_bytes(row_len as u64).ok_or_else(|| internal("a row of broken blocks"))?;
    if !has_row_of_blocks(format, row_len) {
        return Err(Error::unsupported(format!("a row of {row_len} weights on a GPU"), "use --device cpu"));
    }
    let [x_at, ldx] = x.values.halves("activations")?;
    let [y_at, ldy] = out.floats("product")?;
    let arguments = vec![
        blocks.holds(n_rows, row_bytes as usize, "weights")?,
        x_at,
        ldx,
        x.scales()?,
        y_at,
        ldy,
        number(n_rows)?,
        number(row_len)?,
        number(batch)?,
        Argument::U32(adds.into()),
    ];
    let grid = [(n_rows as u64).div_ceil(GEMV_BLOCK_ROWS), 1, 1];
    Launch::shaped(format!("gemv_{}_{at_most}", format.name()), grid, 128, 0, arguments)
}
