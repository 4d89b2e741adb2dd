use super::*;
use crate::quant::Format;

/// A buffer that holds everything these tests ask for.
fn memory(at: u64) -> Memory {
    Memory { at, len_bytes: 1 << 50 }
}

fn view(at: u64, n_rows: usize, n_cols: usize) -> View {
    View::dense(memory(at), n_rows, n_cols)
}

/// Halves with scales, which need no more alignment than a float.
fn scaled(at: u64, n_rows: usize, n_cols: usize) -> Scaled {
    Scaled { values: view(at, n_rows, n_cols), row_scale: Some(memory(65_540)) }
}

fn is_internal<T>(result: Result<T>) -> bool {
    matches!(result, Err(Error::Internal(_)))
}

fn is_unsupported<T>(result: Result<T>) -> bool {
    matches!(result, Err(Error::Unsupported { .. }))
}

#[test]
fn dequantization_has_a_warp_for_each_piece_of_a_row() {
    let from = Selection { blocks: memory(4096), format: Format::Q4_K, rows: None, scale: 2.0 };
    let launch = dequant_f16(from, view(8192, 3, 2048 + 256)).expect("a launch");
    assert_eq!(launch.kernel, "dequant_f16_Q4_K");
    assert_eq!((launch.grid, launch.block, launch.shared_bytes), ([(3 * 3u32).div_ceil(8), 1, 1], 256, 0));
    let expected = [
        Argument::Pointer(4096),
        Argument::Pointer(0),
        Argument::U32(3),
        Argument::U32(2304),
        Argument::F32(2.0),
        Argument::Pointer(8192),
        Argument::U32(2304),
    ];
    assert_eq!(launch.arguments, expected);

    // A vocabulary of 2^20 with rows of 2^14: more than 2^32 weights.
    let launch = dequant_f16(from, view(8192, 1 << 20, 1 << 14)).expect("a launch");
    assert_eq!(launch.grid[0], 1 << 21);
    assert!(is_internal(dequant_f16(from, view(8192, 3, 100))), "a row of broken blocks");
}

#[test]
fn what_does_not_fit_its_buffer_is_refused() {
    let small = |len_bytes| Memory { at: 4096, len_bytes };
    let x = View::dense(small(4 * 10 * 64), 10, 64);
    let out = View::dense(memory(8192), 10, 64);
    let scales = memory(1 << 20);
    assert!(rows_f16(x, out, scales).is_ok());
    assert!(is_internal(rows_f16(View { memory: small(4 * 10 * 64 - 1), ..x }, out, scales)));
    assert!(is_internal(rows_f16(View { memory: small(4 * 10 * 64).from(4).expect("inside"), ..x }, out, scales)), "misaligned");
    assert!(is_internal(rows_f16(View { ld: 63, ..x }, out, scales)), "rows that overlap");
    assert!(is_internal(rows_f16(x, View { ld: 68, ..out }, scales)), "rows that start between 16 bytes");
    assert!(is_internal(rows_f16(x, View { n_rows: 9, ..out }, scales)), "another shape");
    assert!(is_internal(rows_f16(View { n_rows: usize::MAX, ld: usize::MAX, ..x }, View { n_rows: usize::MAX, ..out }, scales)));
    assert!(is_internal(rows_f16(x, out, small(39))), "too few scales");
    assert!(is_internal(rows_f16(View { n_rows: 0, ..x }, View { n_rows: 0, ..out }, scales)), "no rows");
    assert!(is_internal(small(8).from(9)));
    assert!(is_unsupported(rms_norm_f32(view(4096, 1 << 31, 8), memory(4096), 1e-5)), "a grid beyond CUDA's limit");
    assert!(is_unsupported(rms_norm_f32(view(4096, 1, 1 << 32), memory(4096), 1e-5)), "a count beyond 32 bits");
}

/// By multiprocessors: an H100 has 132, an RTX 4090 has 128, an RTX 4070 Ti has 60.
#[test]
fn products_take_the_tile_that_keeps_multiprocessors_busy() {
    let product = |m, n, k, n_multiprocessors| {
        let a = Scaled { values: view(4096, m, k), row_scale: Some(memory(256)) };
        gemm(a, Matrix16 { values: view(8192, n, k), alpha: 0.5 }, false, view(16384, m, n), n_multiprocessors)
    };
    for (m, n, n_multiprocessors, name, grid, block, shared_bytes) in [
        (8192, 8192, 132, "gemm_128x256_store", 64 * 32, 256, 98_304),
        (512, 4096, 128, "gemm_128x128_store", 4 * 32, 128, 65_536),
        (129, 1000, 132, "gemm_64x64_store", 3 * 16, 128, 49_152),
        (64, 4096, 128, "gemm_64x64_store", 64, 128, 49_152),
        (512, 4096, 60, "gemm_64x64_store", 8 * 64, 128, 49_152), // 128 tiles would take three rounds
    ] {
        let launch = product(m, n, 4096, n_multiprocessors).expect("a launch");
        assert_eq!((launch.kernel.as_str(), launch.grid, launch.block), (name, [grid, 1, 1], block), "[{m}, {n}]");
        assert_eq!(launch.shared_bytes, shared_bytes);
        assert_eq!(launch.arguments[2..4].to_vec(), [4096; 2].map(Argument::U32));
        assert_eq!(launch.arguments[6..10].to_vec(), [m as u32, n as u32, 4096, n as u32].map(Argument::U32));
    }
    assert!(is_internal(product(1, 10, 12, 132)), "twelve columns, which should have been padded");
    assert!(is_unsupported(product(1, 9, 16, 132)), "an odd stride of the product");
}

#[test]
fn hopper_takes_small_tiles_for_few_rows() {
    for (m, n, rows, columns) in [
        (64, 4096, 64, 64),
        (128, 4096, 64, 64),
        (64, 14336, 128, 128),
        (128, 14336, 128, 128),
        (256, 4096, 128, 128),
        (512, 4096, 128, 128),
        (1024, 4096, 128, 256),
        (8192, 1024, 128, 256),
        (8192, 14336, 128, 256),
    ] {
        let tile = sm90_tile(m, n, 132);
        assert_eq!((tile.rows, tile.columns), (rows, columns), "[{m}, {n}]");
        let a = Scaled { values: view(4096, m, 512), row_scale: None };
        let maps = Maps { a: TensorMap([1; 16]), b: TensorMap([2; 16]) };
        let b = Matrix16 { values: view(8192, n, 512), alpha: 1.0 };
        let launch = gemm_sm90(tile, a, b, maps, true, view(16384, m, n), 132).expect("a launch");
        assert_eq!(launch.kernel, format!("gemm_sm90_{rows}x{columns}_add"));
        assert_eq!(launch.grid[0] as usize, (m.div_ceil(rows as usize) * n.div_ceil(columns as usize)).min(132));
    }
}

#[test]
fn a_product_of_few_rows_reads_blocks() {
    let of = |batch| {
        let x = Scaled { values: view(4096, batch, 4096), row_scale: None };
        gemv(Format::Q6_K, memory(8192), x, true, view(16384, batch, 14336))
    };
    // Eight rows for each block.
    for (batch, name, grid) in [
        (1, "gemv_Q6_K_1", 896),
        (2, "gemv_Q6_K_8", 896),
        (8, "gemv_Q6_K_8", 896),
        (9, "gemv_Q6_K_8", 1792),
        (32, "gemv_Q6_K_8", 3584),
    ] {
        let launch = of(batch).expect("a launch");
        assert_eq!((launch.kernel.as_str(), launch.grid, launch.block), (name, [grid, 1, 1], 128));
        assert_eq!(launch.arguments[6..10], [14336, 4096, batch as u32, 1].map(Argument::U32));
    }
    let several = |n_rows: &[usize]| {
        let products: Vec<_> = n_rows.iter().map(|&n_rows| (memory(8192), view(16384, 2, n_rows))).collect();
        gemvs(Format::Q6_K, Scaled { values: view(4096, 2, 4096), row_scale: None }, false, &products)
    };
    let launch = several(&[4096, 1000, 17]).expect("a launch");
    assert_eq!((launch.grid, launch.arguments.len()), ([256 + 63 + 2, 1, 1], 18));
    assert_eq!((launch.arguments[13], launch.arguments[17]), (Argument::U32(1000), Argument::U32(17)));
    assert_eq!(several(&[4096]).expect("a launch").arguments[13], Argument::U32(0));
    assert!(is_internal(several(&[])) && is_internal(several(&[16; 4])));
    let x = Scaled { values: view(4096, 1, 1 << 27), row_scale: None };
    assert!(
        is_unsupported(gemv(Format::F16, memory(8192), x, false, view(16384, 1, 1))),
        "a row that offsets of 32 bits do not reach"
    );
}

fn attended(head_dim: usize, n_sequences: usize, longest: usize) -> Attended {
    let form = AttentionForm { n_head: 8, n_head_kv: 2, head_dim, scale: 0.125, window: None, cap: None };
    let sequences = Sequences { spans: memory(512), n: n_sequences, longest };
    let [q, k, v] = [8, 2, 2].map(|n_heads| scaled(4096, 1000, n_heads * head_dim));
    Attended { q, k, v, sequences, form }
}

#[test]
fn few_rows_read_blocks_where_that_is_faster() {
    let [hopper, ada] = [(9, 0), (8, 9)];
    for (format, on_hopper, on_ada) in
        [(Format::Q4_K, 32, 32), (Format::IQ2_XXS, 8, 32), (Format::BF16, 8, 32), (Format::F16, 8, 8)]
    {
        assert_eq!((gemv_rows_max(format, hopper), gemv_rows_max(format, ada)), (on_hopper, on_ada), "{format}");
    }
}

#[test]
fn attention_takes_the_narrowest_entry_that_holds_a_head() {
    let with =
        |head_dim: usize, n_sequences, longest| attention(attended(head_dim, n_sequences, longest), view(8192, 1000, 8 * head_dim));
    for (head_dim, name, shared_bytes) in [
        (8, "attn_64", 46_080),
        (64, "attn_64", 46_080),
        (72, "attn_80", 56_320),
        (96, "attn_96", 66_560),
        (128, "attn_128", 87_040),
    ] {
        let launch = with(head_dim, 3, 65).expect("a launch");
        assert_eq!((launch.kernel.as_str(), launch.grid, launch.shared_bytes), (name, [2, 8, 3], shared_bytes));
    }
    assert_eq!(with(256, 1, 1).expect("a launch").kernel, "attn_256");
    let wide = with(264, 3, 65).expect("a launch");
    assert_eq!((wide.kernel.as_str(), wide.grid, wide.shared_bytes), ("attn_split_512", [(65 * 4u32).div_ceil(16), 2, 3], 84_480));
    assert!(is_unsupported(with(520, 1, 1)));
    assert!(is_unsupported(with(12, 1, 1)));
    assert!(is_unsupported(with(64, 65_536, 1)), "more sequences than a grid has layers");
}

#[test]
fn splits_have_blocks_of_their_own() {
    let parts = |n_splits, head_dim: usize| Parts { out: view(8192, 3 * n_splits, 8 * head_dim), state: memory(4096), n_splits };
    let of = |n_splits, head_dim| {
        let [q, k, v] = [(8, 3), (2, 1000), (2, 1000)].map(|(n_heads, n_rows)| scaled(4096, n_rows, n_heads * head_dim));
        attention_of_splits(Attended { q, k, v, ..attended(head_dim, 1, 3) }, parts(n_splits, head_dim))
    };
    for (head_dim, name, shared_bytes) in
        [(80, "attn_split_96", 58_880), (128, "attn_split_128", 76_288), (192, "attn_split_256", 77_312)]
    {
        let launch = of(5, head_dim).expect("a launch");
        // Twelve rows of each key head are less than a block's.
        assert_eq!((launch.kernel.as_str(), launch.grid, launch.shared_bytes), (name, [5, 2, 1], shared_bytes));
        assert_eq!(launch.arguments[18..], [5, SPLIT_LEN as u32, 3].map(Argument::U32));
    }
    let form = attended(128, 1, 3).form;
    let merged = merge_f16(parts(5, 128), form, scaled(8192, 3, 1024)).expect("a launch");
    assert_eq!((merged.kernel.as_str(), merged.grid, merged.block), ("attn_merge_f16", [3, 1, 1], 512));
    let merged = merge_f32(parts(5, 128), form, view(8192, 3, 1024)).expect("a launch");
    assert_eq!((merged.kernel.as_str(), merged.grid), ("attn_merge_f32", [3, 8, 1]));
    assert!(is_internal(merge_f16(parts(5, 128), form, scaled(8192, 4, 1024))), "rows that splits have not");
    assert!(is_unsupported(merge_f16(
        Parts { out: view(8192, 1, 1025 * 8), state: memory(4096), n_splits: 1 },
        AttentionForm { n_head: 1025, n_head_kv: 1025, head_dim: 8, ..form },
        scaled(8192, 1, 1025 * 8),
    )));
}

#[test]
fn heads_are_turned_within_their_width() {
    let turn = Turn { angles: memory(256), n_positions: 512, positions: memory(512), n_rot: 64, is_neox: true };
    let kind =
        |n_cols| HeadRows { x: view(4096, 10, n_cols), bias: None, gain: None, rotates: true, out: scaled(8192, 10, n_cols) };
    let form = HeadForm { head_dim: 128, eps: 1e-5, turn: Some(turn) };
    let values = HeadRows { rotates: false, gain: Some(memory(4096)), ..kind(256) };
    let launch = heads(&[kind(512), values], form).expect("a launch");
    assert_eq!((launch.kernel.as_str(), launch.grid), ("heads_f16", [10, 2, 1]));
    // Strides, heads and what is turned of them; there is no third kind.
    assert_eq!(launch.arguments[5..9], [512, 512, 4, 64].map(Argument::U32));
    assert_eq!(launch.arguments[14..18], [256, 256, 2, 0].map(Argument::U32));
    assert_eq!((launch.arguments.len(), launch.arguments[18]), (32, Argument::Pointer(0)));
    let turning = |n_rot| HeadForm { turn: Some(Turn { n_rot, ..turn }), ..form };
    assert!(is_internal(heads(&[kind(512)], turning(130))));
    assert!(is_internal(heads(&[kind(512)], turning(63))));
    assert!(is_internal(heads(&[kind(504)], form)), "half a head");
    assert!(is_internal(heads(&[kind(512); 4], form)), "more kinds than there are");
    let unscaled = Scaled { row_scale: None, ..scaled(8192, 10, 512) };
    assert!(is_internal(heads(&[HeadRows { out: unscaled, ..kind(512) }], form)));
    assert!(is_unsupported(heads(&[kind(480)], HeadForm { head_dim: 12, ..turning(12) })));
    let many = HeadRows { gain: Some(memory(4096)), ..kind(8 * 1025) };
    assert!(is_unsupported(heads(&[many], HeadForm { head_dim: 8, ..turning(8) })), "more norms than fit");
}
