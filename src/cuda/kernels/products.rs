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

/// The part of a product that a block makes at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cuda) struct Tile {
    name: &'static str,
    /// Rows of the product, and of activations that a block reads for it.
    pub rows: u32,
    /// Columns of the product, and rows of weights that a block reads.
    pub columns: u32,
    threads: u32,
    shared_bytes: u32,
}

/// Those of `gemm_sm80.cu`, the largest first.
const SM80_TILES: [Tile; 3] = [
    Tile { name: "128x256", rows: 128, columns: 256, threads: 256, shared_bytes: 98_304 },
    Tile { name: "128x128", rows: 128, columns: 128, threads: 128, shared_bytes: 65_536 },
    Tile { name: "64x64", rows: 64, columns: 64, threads: 128, shared_bytes: 49_152 },
];

/// Those of `gemm_sm90.cu`.
const SM90_TILES: [Tile; 3] = [
    Tile { name: "sm90_128x256", rows: 128, columns: 256, threads: 384, shared_bytes: 197_632 },
    Tile { name: "sm90_128x128", rows: 128, columns: 128, threads: 384, shared_bytes: 197_632 },
    Tile { name: "sm90_64x64", rows: 64, columns: 64, threads: 256, shared_bytes: 132_096 },
];

/// Products of halves that a multiprocessor makes in a clock: `mma` on compute capability 8.0, `wgmma` on 9.0.
const SM80_PRODUCTS: u64 = 1024;
const SM90_PRODUCTS: u64 = 2048;

/// Bytes that a multiprocessor reads from the L2 cache in a clock, at most, and that all of them read together.
const L2_BYTES: u64 = 64;
const L2_BYTES_OF_ALL: u64 = 5120;

impl Tile {
    /// Tiles of a product `[m, n]`.
    fn count(self, m: usize, n: usize) -> u64 {
        (m as u64).div_ceil(self.rows.into()) * (n as u64).div_ceil(self.columns.into())
    }

    /// What a column of both factors takes, in 1024ths of a clock, by counting: the longer of multiplying and reading, for the busiest
    /// multiprocessor. The fewer of them have a tile, the more bytes each gets.
    fn clocks(self, m: usize, n: usize, n_multiprocessors: u32, products_per_clock: u64) -> u64 {
        let [rows, columns, all] = [self.rows, self.columns, n_multiprocessors.max(1)].map(u64::from);
        let bytes_per_clock = (L2_BYTES_OF_ALL / self.count(m, n).min(all).max(1)).clamp(1, L2_BYTES);
        let (multiplying, reading) = (1024 * rows * columns / products_per_clock, 1024 * 2 * (rows + columns) / bytes_per_clock);
        self.count(m, n).div_ceil(all) * multiplying.max(reading)
    }

    fn launch(self, adds: bool, grid: u64, arguments: Vec<Argument>) -> Result<Launch> {
        let kernel = format!("gemm_{}_{}", self.name, if adds { "add" } else { "store" });
        Launch::shaped(kernel, [grid, 1, 1], self.threads, self.shared_bytes, arguments)
    }
}

/// The tile that takes the least time, of several the largest: small ones read more, large ones leave multiprocessors idle.
fn fastest(tiles: [Tile; 3], m: usize, n: usize, n_multiprocessors: u32, products_per_clock: u64) -> Tile {
    let clocks = |tile: &Tile| tile.clocks(m, n, n_multiprocessors, products_per_clock);
    tiles.into_iter().min_by_key(clocks).expect("three tiles")
}

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
/// All tiles give the same bits: an element's sum runs over `k` in steps of 16 in each.
pub(in crate::cuda) fn gemm(a: Scaled, b: Matrix16, adds: bool, out: View, n_multiprocessors: u32) -> Result<Launch> {
    let tile = fastest(SM80_TILES, out.n_rows, out.n_cols, n_multiprocessors, SM80_PRODUCTS);
    let [a_at, lda] = a.values.halves("activations")?;
    let [b_at, ldb] = b.values.halves("weights")?;
    let arguments = product(vec![a_at, b_at, lda, ldb], a, b, out)?;
    tile.launch(adds, tile.count(out.n_rows, out.n_cols), arguments)
}

/// The tile that `gemm_sm90` is to take for a product `[m, n]`, and maps are to be made for.
pub(in crate::cuda) fn sm90_tile(m: usize, n: usize, n_multiprocessors: u32) -> Tile {
    fastest(SM90_TILES, m, n, n_multiprocessors, SM90_PRODUCTS)
}

/// The same product with `wgmma` and TMA, on compute capability 9.0.
pub(in crate::cuda) fn gemm_sm90(
    tile: Tile,
    a: Scaled,
    b: Matrix16,
    maps: Maps,
    adds: bool,
    out: View,
    n_multiprocessors: u32,
) -> Result<Launch> {
    let arguments = product(vec![Argument::Map(maps.a), Argument::Map(maps.b)], a, b, out)?;
    tile.launch(adds, tile.count(out.n_rows, out.n_cols).min(n_multiprocessors.into()), arguments)
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

/// Most rows of activations for which `gemv` is faster than unpacking the weights and a product of halves, by counting
/// (`kernels/NOTES.md`, "How many rows").
///
/// Formats of levels multiply eight rows on tensor cores for little more than one. With others every row costs instructions, which the
/// memory of small GPUs leaves time for, but that of 8.0, 9.0 and 10.x, three to six times as fast, does not.
pub(in crate::cuda) fn gemv_rows_max(format: Format, capability: (u32, u32)) -> usize {
    let is_fast_memory = matches!(capability, (8 | 9, 0) | (10, _));
    match format {
        // Needs no unpacking.
        Format::F16 => 8,
        Format::F32 | Format::BF16 if is_fast_memory => 8,
        Format::IQ1_S | Format::IQ1_M | Format::IQ2_XXS | Format::IQ2_XS | Format::IQ2_S if is_fast_memory => 8,
        Format::IQ3_XXS | Format::IQ3_S | Format::TQ1_0 | Format::Q1_0 | Format::Q2_0 if is_fast_memory => 8,
        _ => 32,
    }
}

/// Rows of a matrix that a block of `gemv` has, and rows of activations.
const GEMV_BLOCK_ROWS: u64 = 16;
const GEMV_BLOCK_BATCH: u64 = 8;

/// True where rows of so many weights are short enough for `gemv`.
pub(in crate::cuda) fn has_row_of_blocks(format: Format, row_len: usize) -> bool {
    format.row_bytes(row_len as u64).is_some_and(|row_bytes| row_bytes <= u64::from(u32::MAX) / GEMV_BLOCK_ROWS)
}

/// Matrices that one `gemv` takes.
pub(in crate::cuda) const GEMV_MATRICES_MAX: usize = 3;

/// The products of some rows with matrices of one format and width, in blocks which are unpacked on the way and not rounded.
///
/// No sum depends on the number of rows, or on what else is computed with it.
pub(in crate::cuda) fn gemvs(format: Format, x: Scaled, adds: bool, products: &[(Memory, View)]) -> Result<Launch> {
    let [batch, row_len] = [x.values.n_rows, x.values.n_cols];
    let row_bytes = format.row_bytes(row_len as u64).ok_or_else(|| internal("a row of broken blocks"))?;
    if !has_row_of_blocks(format, row_len) {
        return Err(Error::unsupported(format!("a row of {row_len} weights on a GPU"), "use --device cpu"));
    }
    let matrix = |&(blocks, out): &(Memory, View)| {
        if out.n_rows != batch {
            return Err(internal(format!("{batch} rows times a matrix into {} rows", out.n_rows)));
        }
        let [y_at, ldy] = out.floats("product")?;
        Ok([blocks.holds(out.n_cols, row_bytes as usize, "weights")?, y_at, ldy, number(out.n_cols)?])
    };
    let mut matrices: Vec<[Argument; 4]> = products.iter().map(matrix).collect::<Result<_>>()?;
    if matrices.is_empty() || matrices.len() > GEMV_MATRICES_MAX {
        return Err(internal(format!("gemv of {} matrices", matrices.len())));
    }
    let null = Argument::Pointer(0);
    matrices.resize(GEMV_MATRICES_MAX, [null, null, Argument::U32(0), Argument::U32(0)]);
    let ([blocks, y, ldy, n_rows], others) = (matrices[0], &matrices[1..]);
    let [x_at, ldx] = x.values.halves("activations")?;
    let mut arguments =
        vec![blocks, x_at, ldx, x.scales()?, y, ldy, n_rows, number(row_len)?, number(batch)?, Argument::U32(adds.into())];
    arguments.extend(others.iter().flatten());
    let n_blocks: u64 = products.iter().map(|(_, out)| (out.n_cols as u64).div_ceil(GEMV_BLOCK_ROWS)).sum();
    let grid = n_blocks * (batch as u64).div_ceil(GEMV_BLOCK_BATCH);
    let kernel = format!("gemv_{}_{}", format.name(), if batch == 1 { 1 } else { GEMV_BLOCK_BATCH });
    Launch::shaped(kernel, [grid, 1, 1], 128, 0, arguments)
}

/// The same with one matrix.
pub(in crate::cuda) fn gemv(format: Format, blocks: Memory, x: Scaled, adds: bool, out: View) -> Result<Launch> {
    gemvs(format, x, adds, &[(blocks, out)])
}
