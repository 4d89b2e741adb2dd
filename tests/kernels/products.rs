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
    rows: usize,
    columns: usize,
    block: u32,
    shared_bytes: usize,
    /// Blocks, where they take one tile after another: as many as a GPU has multiprocessors.
    blocks: Option<u32>,
}

#[rustfmt::skip]
const GEMMS: [Gemm; 7] = [
    Gemm { tile: "128x256", rows: 128, columns: 256, block: 256, shared_bytes: 98_304, blocks: None },
    Gemm { tile: "128x128", rows: 128, columns: 128, block: 128, shared_bytes: 65_536, blocks: None },
    Gemm { tile: "64x64", rows: 64, columns: 64, block: 128, shared_bytes: 49_152, blocks: None },
    Gemm { tile: "sm90_128x256", rows: 128, columns: 256, block: 384, shared_bytes: 197_632, blocks: Some(1) },
    Gemm { tile: "sm90_128x256", rows: 128, columns: 256, block: 384, shared_bytes: 197_632, blocks: Some(132) },
    Gemm { tile: "sm90_128x128", rows: 128, columns: 128, block: 384, shared_bytes: 197_632, blocks: Some(2) },
    Gemm { tile: "sm90_64x64", rows: 64, columns: 64, block: 256, shared_bytes: 132_096, blocks: Some(5) },
];

impl Gemm {
    fn grid(&self, m: usize, n: usize) -> u32 {
        let tiles = (m.div_ceil(self.rows) * n.div_ceil(self.columns)) as u32;
        self.blocks.map_or(tiles, |blocks| blocks.min(tiles))
    }

    /// Both factors, as the kernel wants them: maps, or addresses and strides.
    fn takes_maps(&self) -> bool {
        self.tile.starts_with("sm90")
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
    for (case, (m, n, k)) in SHAPES.into_iter().enumerate() {
        for adds in [false, true] {
            let product = Product::new(m, n, k, case % 2 == 0, adds);
            for takes_maps in [false, true] {
                let mut first = None;
                for gemm in GEMMS.iter().filter(|gemm| gemm.takes_maps() == takes_maps) {
                    product.has_the_bits_of(&mut first, product.run(shim, gemm), gemm);
                }
            }
        }
    }
}

struct Product {
    m: usize,
    n: usize,
    k: usize,
    a: Halves,
    b: Halves,
    row_scale: Option<Vec<f32>>,
    adds: bool,
    ldc: usize,
    before: Vec<f32>,
    expected: Vec<f64>,
    bounds: Vec<f64>,
}

impl Product {
    const ALPHA: f32 = 0.25;

    fn new(m: usize, n: usize, k: usize, scaled: bool, adds: bool) -> Product {
        let mut paint = Paint::new((m * 1000 + n * 10 + k) as u64);
        let (a, b) = (Halves::random(m, k, padded(k), &mut paint), Halves::random(n, k, padded(k), &mut paint));
        let (row_scale, ldc) = (scaled.then(|| powers_of_two(m)), n.next_multiple_of(2));
        let before = paint.weights(m * ldc, Paint::gaussian);
        let (mut expected, mut bounds) = (Vec::new(), Vec::new());
        for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
            let (sum, magnitudes) = dot(&a, i, &b, j, k);
            let scale = f64::from(Product::ALPHA) * row_scale.as_ref().map_or(1.0, |scales| f64::from(scales[i]));
            let old = if adds { f64::from(before[i * ldc + j]) } else { 0.0 };
            expected.push(sum * scale + old);
            bounds.push(SUM_ERROR * (magnitudes * scale + old.abs()));
        }
        Product { m, n, k, a, b, row_scale, adds, ldc, before, expected, bounds }
    }

    fn run(&self, shim: &Shim, gemm: &Gemm) -> Vec<f32> {
        let Product { m, n, k, a, b, ldc, .. } = self;
        let c = Buffer::new(&self.before);
        let (a_on, b_on) = (Buffer::new(&a.values), Buffer::new(&b.values));
        let scales = self.row_scale.as_ref().map(|scales| Buffer::new(scales));
        let maps = [(&a_on, *m, a.ld, gemm.rows), (&b_on, *n, b.ld, gemm.columns)]
            .map(|(halves, n_rows, ld, box_rows)| shim.tensor_map(halves, n_rows, *k, ld, box_rows as u32));
        let mut arguments = match gemm.takes_maps() {
            true => Vec::from(arguments![&maps[0], &maps[1]]),
            false => Vec::from(arguments![&a_on, &b_on, a.ld, b.ld]),
        };
        let scales = scales.as_ref().map_or(NULL, |scales| Argument::Buffer(scales));
        arguments.extend(arguments![&c, scales, *m, *n, *k, *ldc, Product::ALPHA]);
        shim.launch(&self.kernel(gemm), &[gemm.grid(*m, *n)], gemm.block, gemm.shared_bytes, &arguments);
        c.to_vec()
    }

    fn kernel(&self, gemm: &Gemm) -> String {
        format!("gemm_{}_{}", gemm.tile, if self.adds { "add" } else { "store" })
    }

    /// The first of the kernels is near f64, the others have its bits: an element's sum goes through k in the same order in every tile.
    fn has_the_bits_of(&self, first: &mut Option<Vec<f32>>, c: Vec<f32>, gemm: &Gemm) {
        let Product { m, n, k, ldc, .. } = *self;
        let what = format!("{} {m}x{n}x{k}", self.kernel(gemm));
        if let Some(first) = first {
            let same = c.iter().zip(&*first).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{what}: other bits than those of another tile");
            return;
        }
        for (i, row) in c.chunks(ldc).enumerate() {
            for (j, &got) in row[..n].iter().enumerate() {
                let (expected, bound) = (self.expected[i * n + j], self.bounds[i * n + j]);
                assert!((f64::from(got) - expected).abs() <= bound, "{what}: c[{i}, {j}] is {got}, expected {expected}");
            }
            assert!(row[n..] == self.before[i * ldc + n..(i + 1) * ldc], "{what}: writes past column {n} of row {i}");
        }
        *first = Some(c);
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
            for (n_rows, batch) in [(1, 1), (33, 1), (7, 8), (9, 3), (17, 19)] {
                check_gemv(shim, format, n_rows, row_len, batch, case % 2 == 0);
            }
        }
    }
}

/// Several matrices at once have the bits of each alone.
#[test]
fn gemv_of_several_matrices_is_that_of_each() {
    let Some(shim) = shim() else { return };
    for (format, batch) in [(Format::Q4_K, 1), (Format::Q4_0, 19), (Format::F16, 1), (Format::IQ3_S, 2)] {
        let (row_len, mut paint) = (512, Paint::new(21));
        let x = Halves::random(batch, row_len, row_len, &mut paint);
        let x_on = Buffer::new(&x.values);
        let kernel = format!("gemv_{format}_{}", if batch == 1 { 1 } else { 8 });
        let matrices = [40usize, 16, 3].map(|n_rows| (n_rows, Buffer::new(&quantized(format, n_rows, row_len, &mut paint))));
        let new_outs = || matrices.each_ref().map(|(n_rows, _)| Buffer::<f32>::unwritten(batch * n_rows));
        let alone = new_outs();
        for ((n_rows, blocks), y) in matrices.iter().zip(&alone) {
            let arguments = arguments![
                blocks, &x_on, row_len, NULL, y, *n_rows, *n_rows, row_len, batch, 0u32, NULL, NULL, 0u32, 0u32, NULL, NULL, 0u32,
                0u32
            ];
            shim.launch(&kernel, &[(n_rows.div_ceil(16) * batch.div_ceil(8)) as u32], 128, 0, &arguments);
        }
        for n_matrices in [2, 3] {
            let together = new_outs();
            let (n_rows, blocks) = &matrices[0];
            let mut arguments =
                Vec::from(arguments![blocks, &x_on, row_len, NULL, &together[0], *n_rows, *n_rows, row_len, batch, 0u32]);
            for ((n_rows, blocks), y) in matrices.iter().zip(&together).skip(1).take(n_matrices - 1) {
                arguments.extend(arguments![blocks, y, *n_rows, *n_rows]);
            }
            for _ in n_matrices..3 {
                arguments.extend(arguments![NULL, NULL, 0u32, 0u32]);
            }
            let n_row_blocks: usize = matrices[..n_matrices].iter().map(|(n_rows, _)| n_rows.div_ceil(16)).sum();
            let n_blocks = (n_row_blocks * batch.div_ceil(8)) as u32;
            shim.launch(&kernel, &[n_blocks], 128, 0, &arguments);
            for (together, alone) in together.iter().zip(&alone).take(n_matrices) {
                assert!(together.to_vec() == alone.to_vec(), "{kernel}: other bits of {n_matrices} matrices at once");
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
    let mut arguments = Vec::from(arguments![&blocks_on, &x_on, x.ld, scales, &y, ldy, n_rows, row_len, batch, u32::from(scaled)]);
    arguments.extend(arguments![NULL, NULL, 0u32, 0u32, NULL, NULL, 0u32, 0u32]);
    let kernel = format!("gemv_{format}_{}", if batch == 1 { 1 } else { 8 });
    let grid = n_rows.div_ceil(16) * batch.div_ceil(8);
    shim.launch(&kernel, &[grid as u32], 128, 0, &arguments);
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

/// A row of x gives the same bits alone as among others.
#[test]
fn gemv_sums_do_not_depend_on_the_batch() {
    let Some(shim) = shim() else { return };
    let (n_rows, row_len, batch) = (5, 1792, 19);
    for format in formats() {
        let mut paint = Paint::new(u64::from(format.id()));
        let blocks = Buffer::new(&quantized(format, n_rows, row_len, &mut paint));
        let x = Halves::random(batch, row_len, row_len, &mut paint);
        let run = |x: &[f16]| {
            let batch = x.len() / row_len;
            let (x, y) = (Buffer::new(x), Buffer::<f32>::unwritten(batch * n_rows));
            let arguments = arguments![
                &blocks, &x, row_len, NULL, &y, n_rows, n_rows, row_len, batch, 0u32, NULL, NULL, 0u32, 0u32, NULL, NULL, 0u32,
                0u32
            ];
            let kernel = format!("gemv_{format}_{}", if batch == 1 { 1 } else { 8 });
            shim.launch(&kernel, &[batch.div_ceil(8) as u32], 128, 0, &arguments);
            y.to_vec()
        };
        let together = run(&x.values);
        for i in [0, 7, 8, 18] {
            let alone = run(&x.values[i * row_len..][..row_len]);
            let same = alone.iter().zip(&together[i * n_rows..]).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{format}: row {i} alone {alone:?}, among {batch} others {:?}", &together[i * n_rows..][..n_rows]);
        }
    }
}
