//! Products of every kind against f64, element by element.

use ggforge::cuda::{Cuda, Products};
use ggforge::model::{Accumulate, Backend, Matrix};
use ggforge::quant::Format;
use ggforge::simd::Level;
use rayon::prelude::*;

use crate::checked::Checked;
use crate::common::Paint;
use crate::disguise::{is_small, is_tiny};
use crate::{gpu, memory_bytes};

/// A product `[m, k] * [n, k]^T`.
#[derive(Clone, Copy)]
struct Product {
    format: Format,
    m: usize,
    n: usize,
    k: usize,
}

const FORMATS: &[Format] = &[Format::F16, Format::BF16, Format::Q8_0, Format::Q4_K, Format::Q6_K, Format::IQ4_XS];
/// In tiny: halves as they are, levels on tensor cores, and weights that each lane unpacks for itself.
const FORMATS_TINY: &[Format] = &[Format::F16, Format::Q8_0, Format::IQ4_XS];

fn products() -> Vec<Product> {
    let shapes: &[(usize, usize, usize)] = if is_tiny() {
        &[(3, 130, 256), (33, 130, 256)]
    } else if is_small() {
        &[(3, 130, 256), (33, 262, 512)]
    } else {
        &[(1, 512, 256), (5, 130, 2048), (9, 1000, 1024), (700, 1030, 2304)]
    };
    let formats = if is_tiny() { FORMATS_TINY } else { FORMATS };
    let product = |format: Format, &(m, n, k): &(usize, usize, usize)| Product { format, m, n, k };
    let mut products: Vec<Product> =
        formats.iter().flat_map(|format| shapes.iter().map(move |shape| product(*format, shape))).collect();
    if !is_small() {
        // 231 tiles of 128 x 256: an H200 has 132 multiprocessors, so blocks that stay for several tiles get a second one. The last
        // step along k is a part of one.
        products.extend([Format::F16, Format::BF16].map(|format| product(format, &(2600, 2600, 264))));
    }
    products
}

#[test]
fn products_agree_with_f64() {
    all_agree(Products::Best);
}

/// A test of its own, as nothing runs after a fault in a process.
#[test]
fn portable_products_agree_with_f64() {
    all_agree(Products::Portable);
}

fn all_agree(kind: Products) {
    let Some(cuda) = gpu(kind, memory_bytes()) else { return };
    let mut checked = Checked::new();
    for product in products() {
        let Product { format, m, n, k } = product;
        checked.run(&format!("{format} [{m}, {k}] * [{n}, {k}]^T"), || agrees(&cuda, product));
    }
    checked.end();
}

fn agrees(cuda: &Cuda, Product { format, m, n, k }: Product) -> String {
    let paint = &mut Paint::new(12);
    let matrix = crate::matrix(format, n, k, paint);
    let mut weights = vec![0.0; n * k];
    let mut blocks = vec![0; matrix.size_bytes()];
    matrix.read_at(&mut blocks, 0).expect("blocks that are here");
    format.dequantize(Level::detect(), &blocks, &mut weights);
    // A row that is a million times the others.
    let mut x = crate::random_floats(m * k, paint);
    x[..k].iter_mut().for_each(|x| *x *= 1e6);
    let before = crate::random_floats(m * n, paint);
    let [stored, added] = multiplied(cuda, matrix, &x, &before);

    // Both factors are rounded to halves, 2^-12 each at most; sums in f32.
    let bound = |magnitude: f64| magnitude * 2.2 / 4096.0 + 1e-6;
    let wrong = |row: usize| {
        let x = normalised(&x[row * k..][..k]);
        let mut largest = 0.0f64;
        let mut wrong = Vec::new();
        for column in 0..n {
            let at = row * n + column;
            let (sum, magnitude) = dot(&x, &weights[column * k..][..k]);
            for (how, found, expected) in [("stored", stored[at], sum), ("added", added[at], sum + f64::from(before[at]))] {
                let error = (f64::from(found) - expected).abs() / bound(magnitude);
                largest = largest.max(error);
                if error.is_nan() || error > 1.0 {
                    wrong.push(format!("{how} at {row}, {column}: {found} where {expected} is expected"));
                }
            }
        }
        (largest, wrong)
    };
    let rows: Vec<(f64, Vec<String>)> = (0..m).into_par_iter().map(wrong).collect();
    let n_wrong: usize = rows.iter().map(|(_, wrong)| wrong.len()).sum();
    if let Some(first) = rows.iter().find_map(|(_, wrong)| wrong.first()) {
        panic!("{n_wrong} of {} wrong, first {first}", 2 * m * n);
    }
    format!("errors up to {:.3} of the bound", rows.iter().map(|(largest, _)| *largest).fold(0.0, f64::max))
}

/// The product stored, and added to `before`.
fn multiplied(cuda: &Cuda, matrix: Matrix<'_>, x: &[f32], before: &[f32]) -> [Vec<f32>; 2] {
    let (n, k) = (matrix.n_rows, matrix.n_cols);
    let weight = cuda.weight(matrix).expect("room");
    let gain = cuda.upload(&vec![1.0; k], k).expect("room");
    let operand = cuda.rms_norm(&cuda.upload(x, k).expect("room"), &gain, 0.0).expect("a norm");
    let mut stored = cuda.rows(x.len() / k, n).expect("room");
    cuda.matmul(&operand, &weight, Accumulate::Store, &mut stored).expect("a product");
    let mut added = cuda.upload(before, n).expect("room");
    cuda.matmul(&operand, &weight, Accumulate::Add, &mut added).expect("a product");
    [stored, added].map(|rows| cuda.download(&rows).expect("rows"))
}

fn normalised(x: &[f32]) -> Vec<f64> {
    let rms = (x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / x.len() as f64).sqrt();
    x.iter().map(|x| f64::from(*x) / rms).collect()
}

/// The sum of products, and that of their magnitudes: in eight lanes, as a GPU's time is spent meanwhile.
fn dot(x: &[f64], w: &[f32]) -> (f64, f64) {
    let (mut sums, mut magnitudes) = ([0.0; 8], [0.0; 8]);
    for (x, w) in x.chunks(8).zip(w.chunks(8)) {
        for (lane, (x, w)) in x.iter().zip(w).enumerate() {
            let term = x * f64::from(*w);
            sums[lane] += term;
            magnitudes[lane] += term.abs();
        }
    }
    (sums.iter().sum(), magnitudes.iter().sum())
}
