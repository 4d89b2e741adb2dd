//! Matrices that gpt-oss was published in: MXFP4, codes and scales in a tensor each. They are read as one tensor of GGUF's blocks.
//!
//! ```text
//! name_blocks: U8 [.., n, 16] or [.., 16 n]   byte i of a block: weight 2i in the low half, weight 2i + 1 in the high half
//! name_scales: U8 [.., n]       biased exponents
//!
//! GGUF: | e: u8 | qs: 16 x (weight i, weight 16 + i) |  per block: the same numbers in another place
//! ```
//!
//! No bit is computed, only moved, and only when it is read.

use super::safetensors::{Dtype, Entry};
use crate::error::Result;
use crate::source::{InputFile, MadeBytes};

/// `quant_method` of config.json.
pub const METHOD: &str = "mxfp4";
/// The end of the name of what holds codes.
pub const BLOCKS: &str = "_blocks";
/// The end of the name of what holds scales.
pub const SCALES: &str = "_scales";

/// Bytes of codes in a block.
const CODES: u64 = 16;
/// Bytes of GGUF's block.
const BLOCK_BYTES: u64 = 1 + CODES;
/// Blocks that are made at a time.
const BLOCKS_AT_ONCE: u64 = 1 << 12;

/// Matrices one after the other, as a file of GGUF's blocks would hold them.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    matrices: Vec<Matrix>,
}

/// Where a matrix lies.
#[derive(Debug)]
struct Matrix {
    /// Of the made file: where it begins.
    first_block: u64,
    codes: Bytes,
    scales: Bytes,
}

/// Bytes of a file.
#[derive(Debug, Clone)]
pub(super) struct Bytes {
    pub file: InputFile,
    pub offset_bytes: u64,
}

/// True where two tensors are the codes and the scales of one matrix.
pub(super) fn is_pair(codes: &Entry, scales: &Entry) -> bool {
    let stem = codes.name.strip_suffix(BLOCKS);
    let is_named_so = stem.is_some() && stem == scales.name.strip_suffix(SCALES);
    // The bytes of a block are a dimension of their own, or those of a row are one.
    let is_shaped_so = match (&codes.shape[..], &scales.shape[..]) {
        ([outer @ .., CODES], blocks) if outer == blocks => blocks.len() > 1,
        ([outer @ .., row], [same @ .., blocks]) => outer == same && !outer.is_empty() && blocks.checked_mul(CODES) == Some(*row),
        _ => false,
    };
    is_named_so && is_shaped_so && [codes, scales].iter().all(|entry| entry.dtype == Dtype::U8)
}

/// The shape in weights of what has scales of this shape; `None` where it has no end.
pub(super) fn shape(scales: &[u64]) -> Option<Vec<u64>> {
    let (n_blocks, outer) = scales.split_last()?;
    let shape: Vec<u64> = outer.iter().copied().chain([n_blocks.checked_mul(2 * CODES)?]).collect();
    shape.iter().try_fold(1, |n: u64, &dim| n.checked_mul(dim)).map(|_| shape)
}

impl Blocks {
    /// Adds a matrix of so many blocks; returns where its first byte lies, and how many it has.
    pub fn add(&mut self, n_blocks_before: u64, n_blocks: u64, codes: Bytes, scales: Bytes) -> (u64, u64) {
        self.matrices.push(Matrix { first_block: n_blocks_before, codes, scales });
        (n_blocks_before * BLOCK_BYTES, n_blocks * BLOCK_BYTES)
    }

    /// Bytes of so many blocks.
    pub fn size_bytes(n_blocks: u64) -> u64 {
        n_blocks * BLOCK_BYTES
    }

    /// Makes blocks of one matrix, at most so many.
    fn make(&self, first: u64, n_blocks: u64) -> Result<Vec<u8>> {
        let next = self.matrices.partition_point(|matrix| matrix.first_block <= first);
        let matrix = &self.matrices[next - 1];
        let end = self.matrices.get(next).map_or(u64::MAX, |next| next.first_block);
        let n = n_blocks.min(end - first).min(BLOCKS_AT_ONCE);
        let at = first - matrix.first_block;
        let (mut codes, mut scales) = (vec![0; (n * CODES) as usize], vec![0; n as usize]);
        matrix.codes.file.read_exact_at(&mut codes, matrix.codes.offset_bytes + at * CODES)?;
        matrix.scales.file.read_exact_at(&mut scales, matrix.scales.offset_bytes + at)?;
        let blocks = codes.as_chunks().0.iter().zip(scales);
        Ok(blocks.flat_map(|(codes, scale)| std::iter::once(scale).chain(halves_apart(codes))).collect())
    }
}

impl MadeBytes for Blocks {
    fn read_exact_at(&self, bytes: &mut [u8], offset_bytes: u64) -> Result<()> {
        let (mut rest, mut at) = (bytes, offset_bytes);
        while !rest.is_empty() {
            let first = at / BLOCK_BYTES;
            let skipped = (at % BLOCK_BYTES) as usize;
            let made = self.make(first, ((skipped + rest.len()) as u64).div_ceil(BLOCK_BYTES))?;
            let n = (made.len() - skipped).min(rest.len());
            let (now, later) = rest.split_at_mut(n);
            now.copy_from_slice(&made[skipped..][..n]);
            (rest, at) = (later, at + n as u64);
        }
        Ok(())
    }

    fn check_unchanged(&self) -> Result<()> {
        let files = self.matrices.iter().flat_map(|matrix| [&matrix.codes.file, &matrix.scales.file]);
        files.into_iter().try_for_each(InputFile::check_unchanged)
    }
}

/// Neighbours share a byte in one order, weights half a block apart in the other.
fn halves_apart(codes: &[u8; 16]) -> [u8; 16] {
    let weight = |i: usize| (codes[i / 2] >> (4 * (i % 2))) & 15;
    std::array::from_fn(|i| weight(i) | (weight(i + 16) << 4))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn weights_keep_their_codes() {
        // Weight i has code i mod 16.
        let codes = std::array::from_fn(|i| (2 * i % 16) as u8 | (((2 * i + 1) % 16) as u8 * 16));
        assert_eq!(halves_apart(&codes), std::array::from_fn(|i| i as u8 * 0x11));
    }

    /// Any bytes of two matrices in one made file, within blocks and across both.
    #[test]
    fn any_bytes_can_be_read() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let content: Vec<u8> = (0..17 * 8).map(|i| (i * 37 % 251) as u8).collect();
        file.write_all(&content).unwrap();
        let input = InputFile::open(file.path()).unwrap();
        let bytes = |offset_bytes| Bytes { file: input.clone(), offset_bytes };
        let mut blocks = Blocks::default();
        // 3 blocks: codes at 0, scales at 48; 5 blocks: scales at 51, codes at 56.
        assert_eq!(blocks.add(0, 3, bytes(0), bytes(48)), (0, 51));
        assert_eq!(blocks.add(3, 5, bytes(56), bytes(51)), (51, 85));
        let expected: Vec<u8> = (0..8)
            .flat_map(|block| {
                let (codes, scale) = if block < 3 { (block * 16, 48 + block) } else { (56 + (block - 3) * 16, 48 + block) };
                std::iter::once(content[scale]).chain(halves_apart(content[codes..][..16].try_into().unwrap()))
            })
            .collect();
        for start in 0..expected.len() {
            for end in start..=expected.len() {
                let mut found = vec![0; end - start];
                blocks.read_exact_at(&mut found, start as u64).unwrap();
                assert_eq!(found, expected[start..end], "{start} to {end}");
            }
        }
    }
}
