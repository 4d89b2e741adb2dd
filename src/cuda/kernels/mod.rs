//! Every launch, as data: the kernel's name, its grid and its arguments, computed from shapes that are checked here. Kernels trust
//! them. `kernels/LAUNCH.md` has the contract of each entry.
//!
//! Nothing here calls the driver. A shape that contradicts a buffer is a mistake of this crate, an `Internal` error rather than a panic,
//! because what a kernel would do with it is worse; a shape that no kernel is made for is `Unsupported`.

mod attention;
mod products;
mod rows;

pub(super) use attention::{
    Attended, AttentionForm, HeadForm, HeadRows, Parts, SPLIT_LEN, Sequences, Turn, attention, attention_of_splits, has_heads,
    has_heads_in_a_row, heads, merge_f16, merge_f32,
};
pub(super) use products::{
    GEMV_MATRICES_MAX, Maps, Matrix16, Scaled, gemm, gemm_sm90, gemv, gemv_rows_max, gemvs, has_row_of_blocks, sm90_tile,
};
pub(super) use rows::{
    DIVERGENCE_BYTES, SCORE_BYTES, Selection, add, add_bias, add_rows, dequant_f16, dequant_f32, divergences, fold_columns, gelu,
    has_float_rows, layer_norm_f16, rms_norm_f16, rms_norm_f32, rows_f16, scale_and_cap, scores, sum_squares, swiglu,
};

use crate::error::{Error, Result};

/// Bytes of device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Memory {
    /// Device address.
    pub at: u64,
    /// Length.
    pub len_bytes: u64,
}

/// A matrix in device memory, row-major: `[n_rows, n_cols]`, a row every `ld` elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct View {
    pub memory: Memory,
    pub n_rows: usize,
    pub n_cols: usize,
    pub ld: usize,
}

/// One launch.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Launch {
    pub kernel: String,
    pub grid: [u32; 3],
    pub block: u32,
    pub shared_bytes: u32,
    pub arguments: Vec<Argument>,
}

/// One argument, by value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Argument {
    Pointer(u64),
    U32(u32),
    F32(f32),
    Map(TensorMap),
}

/// A `CUtensorMap`: what the driver knows of a matrix that TMA reads.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub(super) struct TensorMap(pub [u64; 16]);

// SAFETY: 128 bytes without padding, which the driver fills and kernels take by value.
unsafe impl cudarc::driver::DeviceRepr for TensorMap {}

/// Limits of CUDA on a grid, from compute capability 3.0.
const GRID_MAX: [u64; 3] = [(1 << 31) - 1, 65_535, 65_535];

impl Memory {
    /// The bytes from `offset_bytes` on.
    pub fn from(self, offset_bytes: u64) -> Result<Memory> {
        match self.len_bytes.checked_sub(offset_bytes) {
            Some(len_bytes) => Ok(Memory { at: self.at + offset_bytes, len_bytes }),
            None => Err(internal("a part beyond the buffer's end")),
        }
    }

    /// Checks that it holds `n` elements and is aligned for reading sixteen bytes at a time.
    fn holds(self, n: usize, element_bytes: usize, what: &str) -> Result<Argument> {
        self.holds_aligned(n, element_bytes, 16, what)
    }

    fn holds_aligned(self, n: usize, element_bytes: usize, alignment: u64, what: &str) -> Result<Argument> {
        let need = (n as u64).checked_mul(element_bytes as u64);
        if need.is_none_or(|need| need > self.len_bytes) {
            return Err(internal(format!("{what}: {n} elements of {element_bytes} bytes in a buffer of {} bytes", self.len_bytes)));
        }
        if !self.at.is_multiple_of(alignment) || self.at == 0 {
            return Err(internal(format!("{what}: address {:#x} is not aligned", self.at)));
        }
        Ok(Argument::Pointer(self.at))
    }
}

impl View {
    /// Rows without gaps.
    pub fn dense(memory: Memory, n_rows: usize, n_cols: usize) -> View {
        View { memory, n_rows, n_cols, ld: n_cols }
    }

    /// Some of the rows.
    pub fn rows(self, first: usize, n_rows: usize, element_bytes: u64) -> Result<View> {
        Ok(View { memory: self.memory.from(first as u64 * self.ld as u64 * element_bytes)?, n_rows, ..self })
    }

    /// Checks that all rows lie in the buffer; returns pointer and stride.
    fn check(self, element_bytes: usize, what: &str) -> Result<[Argument; 2]> {
        let View { memory, n_rows, n_cols, ld } = self;
        let elements = (n_rows.max(1) - 1).checked_mul(ld).and_then(|before| before.checked_add(n_cols));
        let elements = elements.filter(|_| n_cols <= ld && n_rows > 0 && n_cols > 0);
        let elements =
            elements.ok_or_else(|| internal(format!("{what}: a matrix of {n_rows} rows, {n_cols} columns, stride {ld}")))?;
        Ok([memory.holds(elements, element_bytes, what)?, number(ld)?])
    }

    /// As f32.
    fn floats(self, what: &str) -> Result<[Argument; 2]> {
        self.check(4, what)
    }

    /// As halves, whose rows are read sixteen bytes at a time.
    fn halves(self, what: &str) -> Result<[Argument; 2]> {
        if !self.ld.is_multiple_of(8) {
            return Err(internal(format!("{what}: a stride of {} halves", self.ld)));
        }
        self.check(2, what)
    }

    fn same_shape(self, other: View, what: &str) -> Result<()> {
        if (self.n_rows, self.n_cols) == (other.n_rows, other.n_cols) {
            return Ok(());
        }
        Err(internal(format!("{what}: [{}, {}] where [{}, {}] was expected", other.n_rows, other.n_cols, self.n_rows, self.n_cols)))
    }
}

impl Launch {
    /// A launch with blocks of 256 threads in a row, and no dynamic shared memory.
    fn new(kernel: impl Into<String>, grid: u64, arguments: Vec<Argument>) -> Result<Launch> {
        Launch::shaped(kernel, [grid, 1, 1], 256, 0, arguments)
    }

    fn shaped(
        kernel: impl Into<String>,
        grid: [u64; 3],
        block: u32,
        shared_bytes: u32,
        arguments: Vec<Argument>,
    ) -> Result<Launch> {
        let kernel = kernel.into();
        if grid.iter().zip(GRID_MAX).any(|(&n, max)| n == 0 || n > max) {
            return Err(Error::unsupported(
                format!("{kernel} with a grid of {grid:?} blocks"),
                "choose smaller batches, or --device cpu",
            ));
        }
        Ok(Launch { kernel, grid: grid.map(|n| n as u32), block, shared_bytes, arguments })
    }
}

/// A count as kernels take it.
fn number(n: usize) -> Result<Argument> {
    u32::try_from(n).map(Argument::U32).map_err(|_| {
        Error::unsupported(
            format!("a matrix of {n} rows or columns on a GPU"),
            "fewer than 4294967296 are possible; choose smaller batches",
        )
    })
}

fn internal(what: impl Into<String>) -> Error {
    Error::Internal(format!("GPU launch: {}", what.into()))
}

#[cfg(test)]
mod tests;
