//! Products, against f64.

use ggforge::quant::Format;
use ggforge::simd::Level;
use half::f16;

use crate::common::Paint;
use crate::formats::{dequantized, formats};
use crate::shim::{Argument, Buffer, NULL, Shim, arguments, shim};

/// Sums in f32 of at most a few hundred products: an error of some 2^-24 of what was summed for each step of 16.
const SUM_ERROR: f64 = 1.0 / (1 << 20) as f64;

/// `[n_rows, ld]` halves; what lies past `len` in a row is NaN, and nobody may read it.
pub struct Halves {
    pub values: Vec<f16>,
    pub ld: usize,
}

impl Halves {
    pub fn random(n_rows: usize, len: usize, ld: usize, paint: &mut Paint) -> Halves {
        let mut values = vec![f16::NAN; n_rows * ld];
        for row in values.chunks_mut(ld) {
            row[..len].fill_with(|| f16::from_f32(paint.gaussian()));
        }
        Halves { values, ld }
    }

    pub fn get(&self, row: usize, column: usize) -> f64 {
        self.values[row * self.ld + column].to_f64()
    }
}

/// The product of a row of each, and of their magnitudes.
fn dot(a: &Halves, i: usize, b: &Halves, j: usize, k: usize) -> (f64, f64) {
    (0..k).fold((0.0, 0.0), |(sum, magnitudes), at| {
        let product = a.get(i, at) * b.get(j, at);
        (sum + product, magnitudes + product.abs())
    })
}

struct Gemm {
    tile: &'static str,
    tile_columns: usize,
    block: u32,
    shared_bytes: usize,
    /// Blocks, where they take one tile after another: as many as a GPU has multiprocessors.
    blocks: Option<u32>,
}

const GEMMS: [Gemm; 4] = [
    Gemm { tile: "128x128", tile_columns: 128, block: 128, shared_bytes: 65536, blocks: None },
    Gemm { tile: "128x256", tile_columns: 256, block: 256, shared_bytes: 98304, blocks: None },
    Gemm { tile: "sm90", tile_columns: 256, block: 384, shared_bytes: 197_632, blocks: Some(1) },
    Gemm { tile: "sm90", tile_columns: 256, block: 384, shared_bytes: 197_632, blocks: Some(132) },
];

impl Gemm {
    fn grid(&self, m: usize, n: usize) -> u32 {
        let tiles = (m.div_ceil(128) * n.div_ceil(self.tile_columns)) as u32;
        self.blocks.map_or(tiles, |blocks| blocks.min(tiles))
    }

    /// Both factors, as the kernel wants them: maps, or addresses and strides.
    fn takes_maps(&self) -> bool {
        self.tile == "sm90"
    }
}

/// Rows and columns that fill no tile, one tile, and more than one; `k` less than a step, no multiple of it, and more than are under way.
const SHAPES: [(usize, usize, usize); 8] =
    [(1, 1, 8), (7, 33, 40), (33, 7, 32), (129, 129, 72), (1, 257, 264), (33, 300, 136), (128, 256, 64), (130, 513, 392)];

/// An operand's rows begin at multiples of eight; some have room after them.
fn padded(len: usize) -> usize {
    len + 8 * (len % 3)
}

fn powers_of_two(n: usize) -> Vec<f32> {
    (0..n).map(|i| 2f32.powi(i as i32 % 7 - 3)).collect()
}

#[test]
fn gemm_equals_f64() {
    let Some(shim) = shim() else { return };
    for gemm in &GEMMS {
        for (case, (m, n, k)) in SHAPES.into_iter().enumerate() {
            check_gemm(shim, gemm, m, n, k, case % 2 == 0);
        }
    }
}

fn check_gemm(shim: &Shim, gemm: &Gemm, m: usize, n: usize, k: usize, scaled: bool) {
    let mut paint = Paint::new((m * 1000 + n * 10 + k) as u64);
    let (a, b) = (Halves::random(m, k, padded(k), &mut paint), Halves::random(n, k, padded(k), &mut paint));
    let row_scale = powers_of_two(m);
    let (alpha, ldc) = (0.25f32, n.next_multiple_of(2));
    let before = paint.weights(m * ldc, Paint::gaussian);
    let (a_on, b_on, scale_on) = (Buffer::new(&a.values), Buffer::new(&b.values), Buffer::new(&row_scale));
    let grid = gemm.grid(m, n);
    let maps = [shim.tensor_map(&a_on, m, k, a.ld, 128), shim.tensor_map(&b_on, n, k, b.ld, 256)];
    for add in [false, true] {
        let c = Buffer::new(&before);
        let scales = if scaled { Argument::Buffer(&scale_on) } else { NULL };
        let mut arguments = match gemm.takes_maps() {
            true => Vec::from(arguments![&maps[0], &maps[1]]),
            false => Vec::from(arguments![&a_on, &b_on, a.ld, b.ld]),
        };
        arguments.extend(arguments![&c, scales, m, n, k, ldc, alpha]);
        let kernel = format!("gemm_{}_{}", gemm.tile, if add { "add" } else { "store" });
        shim.launch(&kernel, &[grid], gemm.block, gemm.shared_bytes, &arguments);
        let c = c.to_vec();
        for (i, row) in c.chunks(ldc).enumerate() {
            for (j, &got) in row[..n].iter().enumerate() {
                let (sum, magnitudes) = dot(&a, i, &b, j, k);
                let scale = f64::from(alpha) * if scaled { f64::from(row_scale[i]) } else { 1.0 };
                let old = if add { f64::from(before[i * ldc + j]) } else { 0.0 };
                let bound = SUM_ERROR * (magnitudes * scale + old.abs());
                let expected = sum * scale + old;
                assert!(
                    (f64::from(got) - expected).abs() <= bound,
                    "{kernel} {m}x{n}x{k}: c[{i}, {j}] is {got}, expected {expected}"
                );
            }
            assert!(row[n..] == before[i * ldc + n..(i + 1) * ldc], "{kernel} {m}x{n}x{k}: writes past column {n} of row {i}");
        }
    }
}

/// Blocks of bell-shaped weights.
fn quantized(format: Format, n_rows: usize, row_len: usize, paint: &mut Paint) -> Vec<u8> {
    let weights = paint.weights(n_rows * row_len, Paint::bell);
    let importance = vec![1.0; row_len];
    let row_bytes = format.row_bytes(row_len as u64).expect("whole blocks") as usize;
    let mut blocks = vec![0; n_rows * row_bytes];
    for (weights, blocks) in weights.chunks(row_len).zip(blocks.chunks_mut(row_bytes)) {
        let importance = format.needs_importance().then_some(&importance[..]);
        format.quantize_rows(Level::detect(), weights, row_len, importance, blocks).expect("finite weights");
    }
    blocks
}

#[test]
fn gemv_equals_f64() {
    let Some(shim) = shim() else { return };
    for format in formats() {
        let len = format.block_len();
        // Some end within what a warp takes at once, and the last is more than is under way at once.
        let row_lens = if len == 1 { [7, 129, 2090] } else { [len, 1280 + len, 5120 - len] };
        for (case, row_len) in row_lens.into_iter().enumerate() {
            for (n_rows, batch) in [(1, 1), (33, 1), (7, 8), (9, 3)] {
                check_gemv(shim, format, n_rows, row_len, batch, case % 2 == 0);
            }
        }
    }
}

fn check_gemv(shim: &Shim, format: Format, n_rows: usize, row_len: usize, batch: usize, scaled: bool) {
    let mut paint = Paint::new((n_rows * 10_000 + row_len) as u64 + u64::from(format.id()));
    let blocks = quantized(format, n_rows, row_len, &mut paint);
    let weights = dequantized(format, &blocks);
    let filled = row_len.next_multiple_of(8);
    let mut x = Halves::random(batch, row_len, filled + 8, &mut paint);
    for row in x.values.chunks_mut(x.ld) {
        row[row_len..filled].fill(f16::ZERO);
    }
    let (row_scale, ldy) = (powers_of_two(batch), n_rows + 1);
    let before = paint.weights(batch * ldy, Paint::gaussian);
    let y = Buffer::new(&before);
    let (blocks_on, x_on, scale_on) = (Buffer::new(&blocks), Buffer::new(&x.values), Buffer::new(&row_scale));
    let scales = if scaled { Argument::Buffer(&scale_on) } else { NULL };
    let arguments = arguments![&blocks_on, &x_on, x.ld, scales, &y, ldy, n_rows, row_len, batch, u32::from(scaled)];
    let kernel = format!("gemv_{format}_{}", if batch == 1 { 1 } else { 8 });
    shim.launch(&kernel, &[n_rows.div_ceil(16) as u32], 128, 0, &arguments);
    let y = y.to_vec();
    for i in 0..batch {
        for row in 0..n_rows {
            let products = (0..row_len).map(|k| f64::from(weights[row * row_len + k]) * x.get(i, k));
            let (sum, magnitudes) = products.fold((0.0, 0.0), |(sum, all), product| (sum + product, all + product.abs()));
            let (scale, old) = match scaled {
                true => (f64::from(row_scale[i]), f64::from(before[i * ldy + row])),
                false => (1.0, 0.0),
            };
            let expected = sum * scale + old;
            let bound = SUM_ERROR * (magnitudes * scale + old.abs());
            let got = f64::from(y[i * ldy + row]);
            assert!(
                (got - expected).abs() <= bound,
                "{kernel} {n_rows} rows of {row_len}, batch {batch}: y[{i}, {row}] is {got}, expected {expected}"
            );
        }
        assert!(y[i * ldy + n_rows] == before[i * ldy + n_rows], "{kernel}: writes past row {n_rows}");
    }
}
