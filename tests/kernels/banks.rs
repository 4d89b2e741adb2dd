//! Bank conflicts of shared memory, as a mean: what products with blocks and what unpacks them would take in time.
//!
//! How bad a single access may be is bounded for every launch of these tests (`shim.rs`).

use ggforge::quant::Format;
use half::f16;

use crate::common::Paint;
use crate::formats::{formats, random_blocks};
use crate::shim::{Buffer, Conflicts, NULL, Shim, arguments, shim};

/// Rows and weights of a row: what a block of `gemv` has, and several of its steps along k.
const SHAPE: (usize, usize) = (16, 4096);

/// Passes through the banks for a hundred that there would be without conflicts: `dequant_f32`, `dequant_f16`, `gemv_1`, `gemv_8`. None
/// gets worse; kernels/NOTES.md has the table in words.
#[rustfmt::skip]
const PERCENT_MAX: [(Format, [u64; 4]); 28] = [
    (Format::F32, [0, 0, 100, 100]),
    (Format::F16, [0, 0, 100, 100]),
    (Format::Q4_0, [149, 164, 110, 112]),
    (Format::Q4_1, [100, 100, 108, 111]),
    (Format::Q5_0, [149, 164, 103, 104]),
    (Format::Q5_1, [134, 148, 106, 108]),
    (Format::Q8_0, [148, 162, 109, 111]),
    (Format::Q2_K, [102, 103, 112, 114]),
    (Format::Q3_K, [100, 100, 110, 111]),
    (Format::Q4_K, [131, 144, 117, 120]),
    (Format::Q5_K, [124, 130, 113, 115]),
    (Format::Q6_K, [101, 102, 105, 106]),
    (Format::IQ2_XXS, [105, 108, 125, 122]),
    (Format::IQ2_XS, [106, 110, 132, 123]),
    (Format::IQ3_XXS, [113, 122, 148, 128]),
    (Format::IQ1_S, [106, 110, 134, 123]),
    (Format::IQ4_NL, [149, 164, 110, 112]),
    (Format::IQ3_S, [119, 130, 155, 132]),
    (Format::IQ2_S, [111, 118, 142, 126]),
    (Format::IQ4_XS, [148, 162, 109, 111]),
    (Format::IQ1_M, [105, 108, 122, 121]),
    (Format::BF16, [0, 0, 100, 100]),
    (Format::TQ1_0, [107, 110, 130, 125]),
    (Format::TQ2_0, [100, 100, 104, 106]),
    (Format::MXFP4, [214, 236, 107, 108]),
    (Format::NVFP4, [132, 146, 106, 108]),
    (Format::Q1_0, [103, 106, 127, 122]),
    (Format::Q2_0, [133, 149, 177, 143]),
];

/// What another compiler may make of it, which loads a word more or less often.
const COMPILER_PERCENT: u64 = 3;

fn dequantize(shim: &Shim, kernel: &str, format: Format) -> [Conflicts; 2] {
    let (n_rows, row_len) = SHAPE;
    let blocks = Buffer::new(&random_blocks(format, n_rows * row_len / format.block_len(), &mut Paint::new(1)));
    let grid = (n_rows * row_len.div_ceil(1024)).div_ceil(8) as u32;
    let out = Buffer::<f32>::unwritten(n_rows * row_len);
    let arguments = arguments![&blocks, NULL, n_rows, row_len, 1f32, &out, row_len];
    shim.launch(&format!("{kernel}_{format}"), &[grid], 256, 0, &arguments)
}

fn gemv(shim: &Shim, format: Format, batch: usize) -> [Conflicts; 2] {
    let (n_rows, row_len) = SHAPE;
    let blocks = Buffer::new(&random_blocks(format, n_rows * row_len / format.block_len(), &mut Paint::new(1)));
    let (x, y) = (Buffer::new(&vec![f16::ONE; batch * row_len]), Buffer::<f32>::unwritten(batch * n_rows));
    let arguments = arguments![
        &blocks, &x, row_len, NULL, &y, n_rows, n_rows, row_len, batch, 0u32, NULL, NULL, 0u32, 0u32, NULL, NULL, 0u32, 0u32
    ];
    shim.launch(&format!("gemv_{format}_{batch}"), &[n_rows.div_ceil(16) as u32], 128, 0, &arguments)
}

#[test]
fn banks_are_met_no_more_often_than_recorded() {
    let Some(shim) = shim() else { return };
    let percent = |[loads, stores]: [Conflicts; 2]| {
        if loads.n_instructions + stores.n_instructions == 0 {
            return 0;
        }
        (100 * (loads.n_passes + stores.n_passes)).div_ceil(loads.n_passes_least + stores.n_passes_least)
    };
    let mut worse = Vec::new();
    for format in formats() {
        let found = [
            dequantize(shim, "dequant_f32", format),
            dequantize(shim, "dequant_f16", format),
            gemv(shim, format, 1),
            gemv(shim, format, 8),
        ]
        .map(percent);
        println!("(Format::{format}, {found:?}),");
        // Plain floats go straight from memory to memory.
        let n_counted = found.iter().filter(|percent| **percent > 0).count();
        assert_eq!(n_counted, if format.block_len() == 1 { 2 } else { 4 }, "{format}: accesses are counted");
        let (_, allowed) = PERCENT_MAX.iter().find(|(of, _)| *of == format).expect("a line in PERCENT_MAX");
        if found.iter().zip(allowed).any(|(found, allowed)| *found > allowed + COMPILER_PERCENT) {
            worse.push(format!("{format}: {found:?} instead of {allowed:?}"));
        }
    }
    assert!(worse.is_empty(), "passes for a hundred without conflicts:\n{}", worse.join("\n"));
}

/// The count itself, where the answer is known: bytes of a lane, elements from one lane to the next, turns of the longest loop.
#[test]
fn conflicts_are_counted() {
    let Some(shim) = shim() else { return };
    for ([n_bytes, stride, turns], [ways, n_instructions, n_passes, n_passes_least]) in [
        ([4u32, 1, 1], [1, 1, 1, 1]),
        ([4, 0, 1], [1, 1, 1, 1]), // the same word for all
        ([4, 2, 1], [2, 1, 2, 1]),
        ([4, 32, 1], [32, 1, 32, 1]),
        ([4, 33, 1], [1, 1, 1, 1]),
        ([1, 1, 1], [1, 1, 1, 1]), // four lanes share a word
        ([1, 64, 1], [16, 1, 16, 1]),
        ([2, 32, 1], [16, 1, 16, 1]), // weights of F16, when a lane has 32 neighbours
        ([8, 1, 1], [1, 1, 2, 2]),    // a half of the warp after the other
        ([8, 2, 1], [2, 1, 4, 2]),
        ([16, 1, 1], [1, 1, 4, 4]),
        ([16, 2, 1], [2, 1, 8, 4]),
        ([16, 5, 1], [1, 1, 4, 4]),
        ([4, 2, 2], [2, 2, 4, 2]), // every second lane reads twice: first 32 words in 16 banks, then 16 in eight
    ] {
        let sums = Buffer::<u32>::unwritten(32);
        let [loads, stores] = shim.launch("probe", &[1], 32, 16 << 10, &arguments![n_bytes, stride, turns, &sums]);
        let found = [loads.ways_max, loads.n_instructions, loads.n_passes, loads.n_passes_least];
        let expected = [ways, n_instructions, n_passes, n_passes_least];
        assert_eq!(found, expected, "{n_bytes} bytes, every {stride}., {turns} turns: ways, instructions, passes, least");
        assert_eq!(stores.n_instructions, 0);
    }
}
