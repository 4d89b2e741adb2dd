//! Block formats: bytes <-> f32. Knows no files and no tensor names.
//!
//! One line of [`formats!`] per type gives the enum variant, id, name, sizes and functions.

use crate::simd::Level;

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

macro_rules! formats {
    ($($id:literal $name:ident $block_len:literal $block_bytes:literal;)*) => {
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

            /// Weights per block.
            pub fn block_len(self) -> usize {
                match self { $(Format::$name => $block_len),* }
            }

            /// Bytes per block.
            pub fn block_bytes(self) -> usize {
                match self { $(Format::$name => $block_bytes),* }
            }
        }
    };
}

formats! {
    0 F32 1 4;
    1 F16 1 2;
    2 Q4_0 32 18;
    3 Q4_1 32 20;
    6 Q5_0 32 22;
    7 Q5_1 32 24;
    8 Q8_0 32 34;
    9 Q8_1 32 36;
    10 Q2_K 256 84;
    11 Q3_K 256 110;
    12 Q4_K 256 144;
    13 Q5_K 256 176;
    14 Q6_K 256 210;
    15 Q8_K 256 292;
    16 IQ2_XXS 256 66;
    17 IQ2_XS 256 74;
    18 IQ3_XXS 256 98;
    19 IQ1_S 256 50;
    20 IQ4_NL 32 18;
    21 IQ3_S 256 110;
    22 IQ2_S 256 82;
    23 IQ4_XS 256 136;
    24 I8 1 1;
    25 I16 1 2;
    26 I32 1 4;
    27 I64 1 8;
    28 F64 1 8;
    29 IQ1_M 256 56;
    30 BF16 1 2;
    34 TQ1_0 256 54;
    35 TQ2_0 256 66;
    39 MXFP4 32 17;
    40 NVFP4 64 36;
    41 Q1_0 128 18;
    42 Q2_0 64 18;
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

    /// True when [`Format::quantize_rows`] can produce this format.
    pub fn can_quantize(self) -> bool {
        false
    }

    /// True when [`Format::dequantize`] can read this format.
    pub fn can_dequantize(self) -> bool {
        false
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
    /// When lengths disagree or the format cannot be quantized to.
    pub fn quantize_rows(
        self,
        _level: Level,
        _weights: &[f32],
        _row_len: usize,
        _importance: Option<&[f32]>,
        _blocks: &mut [u8],
    ) -> Result<(), BlockFault> {
        todo!()
    }

    /// Dequantizes whole blocks: `blocks` holds `weights.len() / block_len` of them.
    ///
    /// # Panics
    /// When lengths disagree or the format cannot be dequantized.
    pub fn dequantize(self, _level: Level, _blocks: &[u8], _weights: &mut [f32]) {
        todo!()
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
