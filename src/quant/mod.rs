//! Block formats: bytes <-> f32. Knows no files and no tensor names.
//!
//! A [`Format`] is a tensor type of ggml. Its weights come in blocks of a fixed number of weights and bytes;
//! [`Format::quantize_rows`] makes blocks, [`Format::dequantize`] reads them. The bytes are those of ggml's own x86-64 build (no fused
//! multiply-add), and the same at every CPU level, in any batch, on any machine.
//!
//! ```
//! use ggforge::quant::Format;
//! use ggforge::simd::Level;
//!
//! let level = Level::detect();
//! let row: Vec<f32> = (0..256).map(|i| (i as f32 / 40.0).sin()).collect();
//! let mut blocks = vec![0; Format::Q4_K.row_bytes(256).expect("whole blocks") as usize];
//! Format::Q4_K.quantize_rows(level, &row, 256, None, &mut blocks).expect("finite weights");
//! let mut back = vec![0.0; 256];
//! Format::Q4_K.dequantize(level, &blocks, &mut back);
//! assert!(row.iter().zip(&back).all(|(w, b)| (w - b).abs() < 0.1));
//! ```
//!
//! # Adding a format
//!
//! One file in the folder of its family and one line in the table below:
//!
//! 1. The file opens with the formula, the bits per weight and the picture of the bytes, then the block as a `#[repr(C)]` struct of
//!    bytes, halves (`Half`) and arrays of them: alignment 1, so `size_of` is the size in the file. `q4_k.rs` is a good one to follow.
//! 2. `impl Block` (weights per block), `impl Dequantize`, `impl Quantize` (`block.rs`). Both functions get a `simd` token to make lanes
//!    with: `F32x16` and `I32x16` are sixteen lanes at every level, and read as arithmetic. `dequantize` hands one block over, sixteen
//!    weights at a time, to a `Sink` that stores them (`sink.rs`) or multiplies them (`dot.rs`); where that is too slow for generation,
//!    `add_products` and `arrange` multiply quants instead (`q4_k.rs`). `bound` says how large weights can be by the scales alone, so that
//!    the largest of a tensor is found without unpacking all. `quantize` gets many blocks at once. `is_sound` says whether the scales are
//!    finite; a block that cannot be held is left with a scale that is not, and the driver in `block.rs` turns that into a [`BlockFault`],
//!    as it does with weights that are not finite.
//! 3. The line: `Traits::of::<family::NAME>()`, `Traits::assembled` where calibrated rounding chooses the block's parts (`lattice.rs`), or
//!    `Traits::readable` without `Quantize`, or `Traits::activations`.
//!
//! Tests and benchmark find it by itself: golden blocks of all formats are in `fixtures/golden`; `tests/formats.rs` has the
//! round trips and the hard inputs, `tests/ggml.rs` compares ten million weights with ggml, `ggforge bench formats` times it.
//!
//! How to be exact and fast:
//! - A search runs across sub-blocks: turn sixteen of them round (`search::lanes_of_sub_blocks`), so that lane `j` is sub-block `j`, and
//!   write ggml's scalar algorithm once, in its order of operations, with `select` for its branches (`search/affine.rs`). A sum may be
//!   reordered only where it is exact. What has no search works along the block (`simple/`).
//! - Keep what makes the quants (the winning scale), not the quants: they are a function of it.
//! - `nearest_int` of the lanes is ggml's, odd values included; `truncate` is x86's conversion, which C's casts become.
//! - Ties: `gt` keeps the first of equals, as ggml does. The sign of zero can reach the file through a scale.
//! - Every function that holds lanes is `#[inline(always)]`, and no closure holds lanes; otherwise it is compiled without the level's
//!   instructions, and the benchmark shows a level slower than scalar.
//! - With `importance` the weights given are exactly one row, so that row-wide facts can be computed.

// The index is the formula of a layout, and often indexes several arrays.
#![allow(clippy::needless_range_loop)]

mod block;
mod dot;
mod fp4;
mod iq;
mod iq4;
mod k;
mod largest;
mod lattice;
mod plain;
mod search;
mod simple;
mod sink;
mod ternary;
mod traits;

use crate::simd::Level;
pub use dot::Factors;
pub use lattice::{Floats, Lattice, Levels, Mins, Parts, Points, SubScales};
use traits::Traits;

/// Why a block could not be quantized.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockFault {
    /// Index of the offending weight in the slice given.
    pub index: usize,
    /// The weight itself.
    pub value: f32,
    /// Which rule it breaks.
    pub kind: BlockFaultKind,
}

/// The two ways a weight can be impossible to quantize.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockFaultKind {
    /// NaN or infinity.
    NonFinite,
    /// Finite, but beyond what the format can hold.
    OutOfRange,
}

/// Why a shape has no size in a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SizeFault {
    /// The number of weights does not fit.
    ShapeOverflow,
    /// The number of bytes does not fit.
    SizeOverflow,
    /// The row length is not a whole number of blocks.
    RowNotBlockMultiple,
}

/// Bits that a weight takes on average, 0 where there are no weights.
pub fn bits_per_weight(size_bytes: u64, n_weights: u64) -> f64 {
    match n_weights {
        0 => 0.0,
        n_weights => size_bytes as f64 * 8.0 / n_weights as f64,
    }
}

macro_rules! formats {
    ($($id:literal $name:ident $traits:expr;)*) => {
        /// A tensor type of ggml, spelled as in GGUF.
        #[allow(non_camel_case_types)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Format { $(
            #[doc = concat!("`", stringify!($name), "`, type id ", stringify!($id), ".")]
            $name = $id
        ),* }

        impl Format {
            /// Every format, by id.
            pub const ALL: &'static [Format] = &[$(Format::$name),*];

            /// The format of a ggml type id.
            pub fn from_id(id: u32) -> Option<Format> {
                match id { $($id => Some(Format::$name),)* _ => None }
            }

            /// The name as llama.cpp prints it in upper case.
            pub fn name(self) -> &'static str {
                match self { $(Format::$name => stringify!($name)),* }
            }

            const fn traits(self) -> Traits {
                match self { $(Format::$name => const { $traits }),* }
            }
        }
    };
}

formats! {
    0 F32 Traits::floats::<plain::F32>();
    1 F16 Traits::floats::<plain::F16>();
    2 Q4_0 Traits::assembled::<simple::Q4_0>();
    3 Q4_1 Traits::assembled::<simple::Q4_1>();
    6 Q5_0 Traits::assembled::<simple::Q5_0>();
    7 Q5_1 Traits::assembled::<simple::Q5_1>();
    8 Q8_0 Traits::assembled::<simple::Q8_0>();
    9 Q8_1 Traits::activations::<simple::Q8_1>();
    10 Q2_K Traits::assembled::<k::Q2_K>();
    11 Q3_K Traits::assembled::<k::Q3_K>();
    12 Q4_K Traits::assembled::<k::Q4_K>();
    13 Q5_K Traits::assembled::<k::Q5_K>();
    14 Q6_K Traits::assembled::<k::Q6_K>();
    15 Q8_K Traits::activations::<k::Q8_K>();
    16 IQ2_XXS Traits::assembled::<iq::IQ2_XXS>();
    17 IQ2_XS Traits::assembled::<iq::IQ2_XS>();
    18 IQ3_XXS Traits::assembled::<iq::IQ3_XXS>();
    19 IQ1_S Traits::of::<iq::IQ1_S>();
    20 IQ4_NL Traits::assembled::<iq4::IQ4_NL>();
    21 IQ3_S Traits::assembled::<iq::IQ3_S>();
    22 IQ2_S Traits::assembled::<iq::IQ2_S>();
    23 IQ4_XS Traits::assembled::<iq4::IQ4_XS>();
    24 I8 Traits::stored::<[u8; 1]>(1);
    25 I16 Traits::stored::<[u8; 2]>(1);
    26 I32 Traits::stored::<[u8; 4]>(1);
    27 I64 Traits::stored::<[u8; 8]>(1);
    28 F64 Traits::readable::<[plain::F64; 16]>(1);
    29 IQ1_M Traits::of::<iq::IQ1_M>();
    30 BF16 Traits::floats::<plain::BF16>();
    34 TQ1_0 Traits::assembled::<ternary::TQ1_0>();
    35 TQ2_0 Traits::assembled::<ternary::TQ2_0>();
    39 MXFP4 Traits::assembled::<fp4::MXFP4>();
    40 NVFP4 Traits::assembled::<fp4::NVFP4>();
    41 Q1_0 Traits::assembled::<ternary::Q1_0>();
    42 Q2_0 Traits::assembled::<ternary::Q2_0>();
}

impl Format {
    /// The ggml type id.
    pub fn id(self) -> u32 {
        self as u32
    }

    /// Bytes of a row of `row_len` weights; `None` when it is not whole blocks or does not fit.
    pub fn row_bytes(self, row_len: u64) -> Option<u64> {
        let block_len = self.block_len() as u64;
        if !row_len.is_multiple_of(block_len) {
            return None;
        }
        (row_len / block_len).checked_mul(self.block_bytes() as u64)
    }

    /// Bytes of a tensor. The one size function: reader, writer, plan and kernels use it.
    ///
    /// # Errors
    /// Whatever makes the size unrepresentable. The product of `max(dim, 1)` must fit an i64, so that a zero cannot hide an overflow.
    pub fn tensor_bytes(self, shape: &[u64]) -> Result<u64, SizeFault> {
        shape
            .iter()
            .try_fold(1u64, |n, &dim| n.checked_mul(dim.max(1)))
            .filter(|&n| n <= i64::MAX as u64)
            .ok_or(SizeFault::ShapeOverflow)?;
        let (row_len, n_rows) = match shape.split_last() {
            Some((&row_len, leading)) => (row_len, leading.iter().product::<u64>()),
            None => (1, 1),
        };
        if !row_len.is_multiple_of(self.block_len() as u64) {
            return Err(SizeFault::RowNotBlockMultiple);
        }
        self.row_bytes(row_len)
            .and_then(|bytes| bytes.checked_mul(n_rows))
            .filter(|&bytes| bytes <= i64::MAX as u64)
            .ok_or(SizeFault::SizeOverflow)
    }

    /// Weights per block.
    pub fn block_len(self) -> usize {
        self.traits().block_len
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> usize {
        self.traits().block_bytes
    }

    /// True when [`Format::quantize_rows`] can produce this format.
    pub fn can_quantize(self) -> bool {
        self.traits().quantize.is_some()
    }

    /// True when [`Format::quantize_rows`] must be given importance: ggml defines the format's blocks no other way.
    pub fn needs_importance(self) -> bool {
        self.traits().needs_importance
    }

    /// True when [`Format::dequantize`] can read this format.
    pub fn can_dequantize(self) -> bool {
        self.traits().dequantize.is_some()
    }

    /// True when [`Format::quantize_rows`] weights errors by the importance it is given; the others write the same bytes without it.
    pub fn uses_importance(self) -> bool {
        self.traits().uses_importance
    }

    /// True for what ggml turns activations into before it multiplies them with weights. No file holds weights in such a format.
    pub fn is_for_activations(self) -> bool {
        self.traits().is_for_activations
    }

    /// Quantizes whole rows.
    ///
    /// `weights`: `[n_rows, row_len]`, row-major; `importance`: `[row_len]`, or `None` for the format's own weighting; `blocks`:
    /// exactly `n_rows * row_bytes(row_len)` bytes. The bytes do not depend on `level` or on how rows are batched.
    ///
    /// # Errors
    /// The first weight that is not finite or that the format cannot hold.
    ///
    /// # Panics
    /// When lengths disagree, the format cannot be quantized to, or it needs importance and gets none.
    pub fn quantize_rows(
        self,
        level: Level,
        weights: &[f32],
        row_len: usize,
        importance: Option<&[f32]>,
        blocks: &mut [u8],
    ) -> Result<(), BlockFault> {
        let traits = self.traits();
        let quantize = traits.quantize.unwrap_or_else(|| panic!("{self} cannot be quantized to"));
        assert!(row_len.is_multiple_of(traits.block_len), "{self}: rows of {row_len} are not whole blocks");
        assert!(row_len > 0 && weights.len().is_multiple_of(row_len) || weights.is_empty(), "{self}: not whole rows of {row_len}");
        assert!(importance.is_some() || !traits.needs_importance, "{self} needs importance");
        assert!(importance.is_none_or(|columns| columns.len() == row_len), "{self}: importance is not one row");
        quantize(level, weights, importance, blocks)
    }

    /// Dequantizes whole blocks: `blocks` holds `weights.len() / block_len` of them.
    ///
    /// The bytes may be any: every block has weights, though a damaged one may have infinite ones and NaN. The weights do not depend on
    /// `level` or the machine, but for which of the many NaNs one is.
    ///
    /// # Panics
    /// When lengths disagree or the format cannot be dequantized ([`Format::can_dequantize`]): never because of what `blocks` hold.
    pub fn dequantize(self, level: Level, blocks: &[u8], weights: &mut [f32]) {
        let dequantize = self.traits().dequantize.unwrap_or_else(|| panic!("{self} cannot be dequantized"));
        assert_eq!(self.row_bytes(weights.len() as u64), Some(blocks.len() as u64), "{self}: bytes of {} weights", weights.len());
        dequantize(level, blocks, weights);
    }

    /// Which values weights can have, where blocks can be made of chosen scales and quants.
    pub fn lattice(self) -> Option<Lattice> {
        self.traits().lattice
    }

    /// Makes the block of `parts`, which are of [`Format::lattice`].
    ///
    /// # Panics
    /// When the format has no lattice, or `block` is not one block long.
    pub fn assemble(self, level: Level, parts: &Parts, block: &mut [u8]) {
        let assemble = self.traits().assemble.unwrap_or_else(|| panic!("{self} has no lattice"));
        assert_eq!(block.len(), self.block_bytes(), "{self}: one block");
        assemble(level, parts, block);
    }

    /// The power of two that is not above the largest magnitude of `blocks`' finite weights, but above half of it: what tells how to bring
    /// them into the range of halves. 0 where there is none but zeros.
    ///
    /// Many times as fast as [`Format::dequantize`], since the scales of most blocks say that their weights are smaller than others before.
    ///
    /// # Panics
    /// When `blocks` are not whole blocks, or the format cannot be dequantized ([`Format::can_dequantize`]).
    pub fn largest_power_of_two(self, level: Level, blocks: &[u8]) -> f32 {
        let largest = self.traits().largest.unwrap_or_else(|| panic!("{self} cannot be dequantized"));
        assert!(blocks.len().is_multiple_of(self.block_bytes()), "{self}: {} bytes are not whole blocks", blocks.len());
        largest(level, blocks)
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for Format {
    type Err = ();

    /// Any case.
    fn from_str(text: &str) -> Result<Format, ()> {
        Format::ALL.iter().copied().find(|format| format.name().eq_ignore_ascii_case(text)).ok_or(())
    }
}
