//! What `ggforge bench cuda` times: the shapes of a model of 7 billion parameters, or, where memory is small, small ones that say less.

use ggforge::cuda::{AttentionSizes, Work};
use ggforge::quant::Format;
use ggforge::report::decimal_bytes;

/// Work with its name in the table.
pub struct Named {
    pub name: String,
    pub shape: String,
    pub work: Work,
}

fn named(name: impl Into<String>, shape: impl Into<String>, work: Work) -> Named {
    Named { name: name.into(), shape: shape.into(), work }
}

/// Memory in which everything fits at its real size.
const MEMORY_BYTES: u64 = 6 << 30;

/// Everything, a copy and products first: others are compared with them.
pub fn works(memory_bytes: u64) -> Vec<Named> {
    let len_bytes = (memory_bytes / 8).min(2 << 30) as usize;
    let mut works = vec![named("copy", decimal_bytes(len_bytes as u64), Work::Copy { len_bytes })];
    works.extend(products(memory_bytes));
    works.extend(row_products(memory_bytes));
    works.extend(dequantizations(memory_bytes));
    works.extend(operations(memory_bytes));
    works
}

/// Products of halves.
pub fn products(memory_bytes: u64) -> Vec<Named> {
    let shapes = [
        (8192, 8192, 8192),
        (16_384, 4096, 4096),
        (16_384, 14_336, 4096),
        (16_384, 4096, 14_336),
        (2600, 2600, 264),
        (512, 4096, 4096),
        (128, 4096, 4096),
        (16, 4096, 4096),
        (100, 300, 128),
    ];
    let fits = |&(m, n, k): &(usize, usize, usize)| ((2 * (m * k + n * k) + 4 * m * n) as u64) < memory_bytes / 5 * 4;
    let product = |(m, n, k)| named("product", format!("{m} x {n} x {k}"), Work::Product { m, n, k });
    shapes.into_iter().filter(fits).map(product).collect()
}

/// Formats that a model's weights can have, those of most models first.
fn formats() -> impl Iterator<Item = Format> {
    const FIRST: &[Format] = &[Format::Q4_0, Format::Q4_K, Format::Q8_0, Format::F16];
    let can_be = |format: &Format| format.can_dequantize() && !format.is_for_activations() && *format != Format::F64;
    let others = Format::ALL.iter().copied().filter(move |format| can_be(format) && !FIRST.contains(format));
    FIRST.iter().copied().chain(others)
}

/// What makes text: one row of activations, and eight.
fn row_products(memory_bytes: u64) -> Vec<Named> {
    let is_small = memory_bytes < MEMORY_BYTES;
    let (n_rows, n_cols) = if is_small { (64, 256) } else { (14_336, 4096) };
    let row_product = |format: Format, batch: usize, n_rows: usize, n_cols: usize| {
        let shape = format!("{batch} x {n_rows} x {n_cols}");
        named(format!("gemv {format}"), shape, Work::RowProduct { format, batch, n_rows, n_cols })
    };
    let mut works: Vec<Named> = formats().map(|format| row_product(format, 1, n_rows, n_cols)).collect();
    if !is_small {
        let shapes = [(1, 4096, 4096), (1, 28_672, 8192), (8, 14_336, 4096)];
        let first = formats().take(4).chain([Format::IQ4_XS]);
        works.extend(first.flat_map(|format| shapes.map(|(batch, n_rows, n_cols)| row_product(format, batch, n_rows, n_cols))));
    }
    works
}

fn dequantizations(memory_bytes: u64) -> Vec<Named> {
    let n_rows = (memory_bytes / 65_536).clamp(16, 131_072) as usize;
    let n_cols = if memory_bytes < MEMORY_BYTES { 256 } else { 4096 };
    let dequantize = |format: Format| {
        named(format!("dequantize {format}"), format!("{n_rows} x {n_cols}"), Work::Dequantize { format, n_rows, n_cols })
    };
    formats().map(dequantize).collect()
}

/// What else a pass does: 16 sequences of 512 tokens, and one token behind many.
fn operations(memory_bytes: u64) -> Vec<Named> {
    let is_small = memory_bytes < MEMORY_BYTES;
    let attention = |n_sequences: usize, n_queries: usize, n_keys: usize, [n_head, n_head_kv, head_dim]: [usize; 3]| {
        let shape = format!("{n_sequences} x {n_queries} of {n_keys}, {n_head}/{n_head_kv} x {head_dim}");
        named("attention", shape, Work::Attention(AttentionSizes { n_sequences, n_queries, n_keys, n_head, n_head_kv, head_dim }))
    };
    let mut works = if is_small {
        vec![attention(2, 20, 24, [2, 1, 64]), attention(1, 1, 70, [2, 1, 64])]
    } else {
        vec![
            attention(16, 512, 512, [32, 32, 128]),
            attention(16, 512, 512, [32, 8, 128]),
            attention(1, 4096, 4096, [32, 8, 128]),
            attention(1, 1, 512, [32, 32, 128]),
            attention(1, 1, 4096, [32, 32, 128]),
            attention(1, 1, 4096, [32, 8, 128]),
        ]
    };
    let [n_rows, n_embd, n_ff, n_vocab] = if is_small { [8, 256, 512, 500] } else { [8192, 4096, 11_008, 32_000] };
    works.extend([
        named("rope", format!("{n_rows} x {} x 128", n_embd / 128), Work::Rope { n_rows, n_heads: n_embd / 128, head_dim: 128 }),
        named("swiglu", format!("{n_rows} x {n_ff}"), Work::Swiglu { n_rows, n_cols: n_ff }),
        named("rms norm", format!("{n_rows} x {n_embd}"), Work::Norm { n_rows, n_cols: n_embd }),
        named("nll", format!("{n_rows} x {n_vocab}"), Work::Scores { n_rows, n_vocab }),
    ]);
    works
}
