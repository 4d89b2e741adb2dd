//! Weights unpacked by kernels equal those of `Format::dequantize`, bit for bit.

use ggforge::quant::Format;
use ggforge::simd::Level;
use half::f16;

use crate::common::Paint;
use crate::shim::{Buffer, NULL, Shim, arguments, shim};

/// Formats that files hold weights in and that become floats. F64 is only a source of conversion.
pub fn formats() -> impl Iterator<Item = Format> {
    Format::ALL.iter().copied().filter(|f| f.can_dequantize() && !f.is_for_activations() && *f != Format::F64)
}

/// Random bytes: every block is valid. Every 16th block is all ones, every 16th zero.
pub fn random_blocks(format: Format, n_blocks: usize, paint: &mut Paint) -> Vec<u8> {
    let mut bytes = Vec::new();
    for at in 0..n_blocks {
        let block = (0..format.block_bytes()).map(|_| paint.next() as u8);
        match (at % 16, n_blocks > 16) {
            (5, true) => bytes.extend(block.map(|_| 0xff)),
            (9, true) => bytes.extend(block.map(|_| 0)),
            _ => bytes.extend(block),
        }
    }
    bytes
}

pub fn dequantized(format: Format, blocks: &[u8]) -> Vec<f32> {
    let mut weights = vec![0.0; blocks.len() / format.block_bytes() * format.block_len()];
    format.dequantize(Level::detect(), blocks, &mut weights);
    weights
}

fn is_same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

/// Row lengths that whole blocks can have, or for plain floats any.
fn row_lens(format: Format) -> Vec<usize> {
    let len = format.block_len();
    if len == 1 { vec![1, 7, 33, 129, 172, 1024, 1500] } else { vec![len, 3 * len, 1024, 1024 + len, 11 * len.max(128)] }
}

fn grid(n_rows: usize, row_len: usize) -> u32 {
    (n_rows * row_len.div_ceil(1024)).div_ceil(8) as u32
}

fn unpacks_like_the_cpu(shim: &Shim, format: Format, n_rows: usize, row_len: usize, paint: &mut Paint) {
    let blocks = random_blocks(format, n_rows * row_len / format.block_len(), paint);
    let expected = dequantized(format, &blocks);
    let blocks = Buffer::new(&blocks);
    let (ld, ld_half) = (row_len.next_multiple_of(4), row_len.next_multiple_of(8));
    let weights = Buffer::<f32>::unwritten(n_rows * ld);
    let arguments = arguments![&blocks, NULL, n_rows, row_len, 1f32, &weights, ld];
    shim.launch(&format!("dequant_f32_{format}"), &[grid(n_rows, row_len)], 256, 0, &arguments);

    // A power of two for the whole tensor, exact but where fp16 ends.
    let scale = 0.0625f32;
    let halves = Buffer::<f16>::unwritten(n_rows * ld_half);
    let arguments = arguments![&blocks, NULL, n_rows, row_len, scale, &halves, ld_half];
    shim.launch(&format!("dequant_f16_{format}"), &[grid(n_rows, row_len)], 256, 0, &arguments);

    let (weights, halves) = (weights.to_vec(), halves.to_vec());
    for row in 0..n_rows {
        for column in 0..ld_half {
            let expected = if column < row_len { expected[row * row_len + column] } else { 0.0 };
            let half = halves[row * ld_half + column];
            assert!(
                is_same(half.to_f32(), f16::from_f32(expected * scale).to_f32()),
                "{format} fp16 {n_rows}x{row_len}: row {row} column {column}: expected {expected} * {scale}, got {half}"
            );
            if column < ld {
                let got = weights[row * ld + column];
                assert!(
                    is_same(got, expected),
                    "{format} {n_rows}x{row_len}: row {row} column {column}: expected {expected:e}, got {got:e}"
                );
            }
        }
    }
}

#[test]
fn every_format_unpacks_bit_for_bit() {
    let Some(shim) = shim() else { return };
    let mut n_weights = 0;
    for format in formats() {
        let mut paint = Paint::new(u64::from(format.id()));
        for row_len in row_lens(format) {
            for n_rows in [1, 7, 33] {
                unpacks_like_the_cpu(shim, format, n_rows, row_len, &mut paint);
                n_weights += n_rows * row_len;
            }
        }
    }
    println!("{} formats, {n_weights} weights", formats().count());
}

/// The embedding lookup: rows by number, in any order, some twice.
#[test]
fn chosen_rows_are_unpacked() {
    let Some(shim) = shim() else { return };
    for format in formats() {
        let (n_rows, row_len) = (37, 512);
        let blocks = random_blocks(format, n_rows * row_len / format.block_len(), &mut Paint::new(5));
        let expected = dequantized(format, &blocks);
        let rows = [36, 0, 17, 17, 35];
        let weights = Buffer::<f32>::unwritten(rows.len() * row_len);
        let (blocks, numbers) = (Buffer::new(&blocks), Buffer::new(&rows));
        let arguments = arguments![&blocks, &numbers, rows.len(), row_len, 1f32, &weights, row_len];
        shim.launch(&format!("dequant_f32_{format}"), &[grid(rows.len(), row_len)], 256, 0, &arguments);
        let weights = weights.to_vec();
        for (i, row) in rows.into_iter().enumerate() {
            let (got, expected) = (&weights[i * row_len..][..row_len], &expected[row as usize * row_len..][..row_len]);
            assert!(got.iter().zip(expected).all(|(a, b)| is_same(*a, *b)), "{format}: row {row}");
        }
    }
}

/// The kernels' grid points are those of `src/quant/iq/grids.rs`.
#[test]
fn grids_are_the_same() {
    let read = |path: &str| std::fs::read_to_string(crate::common::root().join(path)).expect("a readable source");
    let numbers = |text: &str| -> Vec<String> {
        text.split("0x").skip(1).map(|rest| rest.chars().take_while(char::is_ascii_hexdigit).collect()).collect()
    };
    let (rust, cuda) = (numbers(&read("src/quant/iq/grids.rs")), numbers(&read("kernels/block/grids.cuh")));
    assert!(rust.len() == 2048 + 256 + 512 + 1024 + 256 + 512, "{} grid points", rust.len());
    assert!(rust == cuda, "kernels/block/grids.cuh is stale: run tools/dev/kernels grids");
}

/// Every kernel has its line in LAUNCH.md, and every format its kernels.
#[test]
fn launches_are_documented() {
    let Some(shim) = shim() else { return };
    let text = std::fs::read_to_string(crate::common::root().join("kernels/LAUNCH.md")).expect("a readable LAUNCH.md");
    let words: Vec<&str> = text.split(|c: char| !c.is_alphanumeric() && !"_<>".contains(c)).collect();
    let kernels = shim.kernels();
    for kernel in &kernels {
        let format = formats().filter(|format| kernel.contains(&format!("_{format}"))).max_by_key(|format| format.name().len());
        if kernel == "probe" {
            continue; // of these tests only
        }
        let mut entry = ["128x128", "128x256", "64x64"].iter().fold(kernel.clone(), |entry, tile| entry.replace(tile, "<TILE>"));
        if let Some(format) = format {
            entry = entry.replace(&format!("_{format}"), "_<FORMAT>");
        }
        assert!(words.contains(&entry.as_str()), "{kernel}: LAUNCH.md does not tell of {entry}");
    }
    for format in formats() {
        for kernel in
            ["dequant_f32_<F>", "dequant_f16_<F>", "gemv_<F>_1", "gemv_<F>_8"].map(|name| name.replace("<F>", format.name()))
        {
            assert!(kernels.contains(&kernel), "there is no {kernel}: INSTANCE({format}) in kernels/block/all.cuh?");
        }
    }
}
