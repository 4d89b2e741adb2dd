//! Every format at every CPU level of this machine, with and without importance: golden bytes, round trips, and the inputs that break quantizers.
//!
//! A format is covered the moment it is in the table. Each check gets one format and one way to use it and panics with both.

mod common;

use common::Paint;
use ggforge::quant::{BlockFault, BlockFaultKind, Factors, Format};
use ggforge::simd::Level;

/// A whole number of blocks in every format, and an odd number of super-blocks, so that the last group of lanes is not full.
const ROW_LEN: usize = 768;

/// At which level, and whether with importance.
#[derive(Clone, Copy)]
struct Way {
    level: Level,
    weighted: bool,
}

impl Way {
    /// At every level without importance, where that can be, then with importance, where that makes a difference.
    fn all(format: Format) -> impl Iterator<Item = Way> {
        let kinds = [(false, !format.needs_importance()), (true, format.uses_importance())];
        let kinds = kinds.into_iter().filter_map(|(weighted, applies)| applies.then_some(weighted));
        kinds.flat_map(|weighted| Level::available().into_iter().map(move |level| Way { level, weighted }))
    }

    fn scalar(self) -> Way {
        Way { level: Level::available()[0], ..self }
    }

    fn name(self) -> String {
        format!("{}{}", self.level.name(), if self.weighted { " with importance" } else { "" })
    }
}

/// Calls `check` for every format and way.
fn for_each(formats: impl Fn(Format) -> bool, check: impl Fn(Format, Way)) {
    for &format in Format::ALL.iter().filter(|&&format| formats(format)) {
        for way in Way::all(format) {
            check(format, way);
        }
    }
}

fn quantize(format: Format, way: Way, weights: &[f32]) -> Result<Vec<u8>, BlockFault> {
    let mut blocks = vec![0xaa; weights.len() / format.block_len() * format.block_bytes()];
    let importance = way.weighted.then(painted_importance);
    format.quantize_rows(way.level, weights, ROW_LEN, importance.as_deref(), &mut blocks).map(|()| blocks)
}

fn dequantize(format: Format, way: Way, blocks: &[u8]) -> Vec<f32> {
    let mut weights = vec![f32::NAN; blocks.len() / format.block_bytes() * format.block_len()];
    format.dequantize(way.level, blocks, &mut weights);
    weights
}

#[track_caller]
fn round_trip(format: Format, way: Way, weights: &[f32]) -> Vec<f32> {
    let blocks = quantize(format, way, weights).unwrap_or_else(|fault| panic!("{format} {}: {fault:?}", way.name()));
    dequantize(format, way, &blocks)
}

/// The row that `tools/dev/golden.py` gave to ggml.
fn painted_row() -> Vec<f32> {
    let mut paint = Paint::new(2026);
    let weight = |i: usize| if i / 32 % 8 == 7 { 0.0 } else { paint.bell() / (16 << (i / 32 % 4)) as f32 };
    (0..ROW_LEN).map(weight).collect()
}

/// The importance that `tools/dev/golden.py` gave to ggml.
fn painted_importance() -> Vec<f32> {
    Paint::new(2027).weights(ROW_LEN, |p| ((p.next() & 0xffff) + 1) as f32 / 65536.0)
}

fn golden(format: Format, kind: &str) -> Vec<u8> {
    let path = common::fixture(&format!("golden/{format}.{kind}"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e} (tools/dev/golden.py makes it)", path.display()))
}

#[test]
fn quantizing_gives_the_golden_bytes() {
    for_each(Format::can_quantize, |format, way| {
        let expected = golden(format, if way.weighted { "weighted" } else { "blocks" });
        let got = quantize(format, way, &painted_row()).expect("finite weights");
        for (i, (expected, got)) in expected.chunks(format.block_bytes()).zip(got.chunks(format.block_bytes())).enumerate() {
            assert_eq!(got, expected, "{format} {}: block {i}", way.name());
        }
        assert_eq!(got.len(), expected.len(), "{format}");
    });
}

#[test]
fn dequantizing_golden_bytes_gives_the_golden_weights() {
    let read = |format: Format| format.can_dequantize() && format != Format::F64; // which ggml does not read
    for_each(read, |format, way| {
        let expected = golden(format, "weights");
        let got = dequantize(format, way, &golden(format, "blocks"));
        for (i, (expected, got)) in expected.chunks(4).zip(&got).enumerate() {
            let expected = f32::from_le_bytes(expected.try_into().expect("4 bytes"));
            assert_eq!(got.to_bits(), expected.to_bits(), "{format} {}: weight {i}: {got:e} for {expected:e}", way.name());
        }
        assert_eq!(4 * got.len(), expected.len(), "{format}");
    });
}

#[test]
fn a_round_trip_loses_no_more_than_the_bits_explain() {
    let weights = Paint::new(1).weights(4 * ROW_LEN, |p| 0.02 * p.bell());
    for_each(Format::can_quantize, |format, way| {
        let back = round_trip(format, way, &weights);
        let rms = |of: &dyn Fn(usize) -> f32| (0..weights.len()).map(|i| f64::from(of(i)).powi(2)).sum::<f64>().sqrt();
        let loss = rms(&|i| weights[i] - back[i]) / rms(&|i| weights[i]);
        // 6 dB a bit, less 1.75 bits for scales and the clipping range. Floats of 16 bits spend some on the exponent, and sums of
        // quants, which the formats of activations have, tell nothing new.
        let sums_bytes = match format {
            Format::Q8_1 => 2,
            Format::Q8_K => 32,
            _ => 0,
        };
        let bits = 8.0 * (format.block_bytes() - sums_bytes) as f64 / format.block_len() as f64;
        let bound = 2f64.powf(1.75 - bits.min(10.5));
        assert!(loss <= bound, "{format} {}: loses {loss:.4} of the root mean square, more than {bound:.4}", way.name());
    });
}

/// What [`Format::largest_power_of_two`] is of these weights.
fn power_of_two_below_largest(weights: &[f32]) -> f32 {
    let largest = weights.iter().filter(|w| w.is_finite()).fold(0.0f32, |max, w| max.max(w.abs()));
    let below = |exponent: i32| f64::from(largest) >= 2f64.powi(exponent);
    (-149..128).rev().find(|exponent| below(*exponent)).map_or(0.0, |exponent| 2f64.powi(exponent) as f32)
}

#[test]
fn the_largest_weight_is_found_whatever_scales_say() {
    let mut paint = Paint::new(13);
    for format in Format::ALL.iter().copied().filter(|format| format.can_dequantize()) {
        let row_bytes = format.row_bytes(ROW_LEN as u64).expect("whole blocks") as usize;
        // Random bytes have scales of every size, NaN and infinity among them; of others all quants are zeros, or all scales are.
        let random = |paint: &mut Paint, n: usize| -> Vec<u8> { (0..n).map(|_| paint.next() as u8).collect() };
        let mut cases: Vec<Vec<u8>> = (0..40).map(|_| random(&mut paint, row_bytes)).collect();
        cases.extend((0..20).map(|_| {
            let mut bytes = random(&mut paint, row_bytes);
            bytes.chunks_mut(format.block_bytes()).for_each(|block| {
                let (at, len) = (paint.next() as usize % block.len(), paint.next() as usize % block.len());
                block[at..(at + len).min(format.block_bytes())].fill(0);
            });
            bytes
        }));
        cases.push(vec![0; row_bytes]);
        if format.can_quantize() && !format.needs_importance() {
            let weights = Paint::new(14).weights(ROW_LEN, |p| 0.02 * p.bell());
            let way = Way { level: Level::detect(), weighted: false };
            cases.push(quantize(format, way, &weights).expect("finite weights"));
        }
        for bytes in &cases {
            for level in Level::available() {
                let weights = dequantize(format, Way { level, weighted: false }, bytes);
                let expected = power_of_two_below_largest(&weights);
                let found = format.largest_power_of_two(level, bytes);
                assert_eq!(found.to_bits(), expected.to_bits(), "{format} {}: {found:e} for {expected:e}", level.name());
                // Part by part, in any order.
                let parts = bytes.rchunks(format.block_bytes()).map(|block| format.largest_power_of_two(level, block));
                assert_eq!(parts.fold(0.0, f32::max).to_bits(), expected.to_bits(), "{format} {}: in blocks", level.name());
            }
        }
    }
}

#[test]
fn zeros_stay_zeros() {
    for_each(Format::can_quantize, |format, way| {
        for zero in [0.0, -0.0] {
            let back = round_trip(format, way, &[zero; ROW_LEN]);
            assert!(back.iter().all(|&w| w == 0.0), "{format} {}: {back:?}", way.name());
        }
    });
}

#[test]
fn every_level_gives_the_same_bytes_in_any_batch() {
    let mut weights = Paint::new(2).weights(3 * ROW_LEN, |p| p.student_t4());
    weights.extend(Paint::new(3).weights(ROW_LEN, |p| (p.next() % 5) as f32 - 2.0)); // ties
    weights.extend(Paint::new(4).weights(ROW_LEN, |p| f32::from_bits((p.next() & 0x807f_ffff) as u32))); // subnormal
    weights.extend(Paint::new(5).weights(ROW_LEN, |p| if p.next() % 50 == 0 { 60.0 } else { p.bell() })); // outliers
    weights.extend([-0.25; ROW_LEN]);
    for_each(Format::can_quantize, |format, way| {
        let expected = quantize(format, way.scalar(), &weights).expect("finite weights");
        let batch = quantize(format, way, &weights).expect("finite weights");
        assert!(batch == expected, "{format}: {} differs from scalar", way.name());
        let rows: Vec<u8> = weights.chunks(ROW_LEN).flat_map(|row| quantize(format, way, row).expect("finite weights")).collect();
        assert!(rows == expected, "{format} {}: row by row differs from the batch", way.name());
        let back: Vec<u32> = dequantize(format, way, &batch).iter().map(|w| w.to_bits()).collect();
        let scalar: Vec<u32> = dequantize(format, way.scalar(), &batch).iter().map(|w| w.to_bits()).collect();
        assert!(back == scalar, "{format}: {} reads other weights than scalar", way.name());
    });
}

#[test]
fn subnormal_weights_stay_small() {
    let weights = Paint::new(6).weights(ROW_LEN, |p| f32::from_bits((p.next() & 0x807f_ffff) as u32));
    for_each(Format::can_quantize, |format, way| {
        let back = round_trip(format, way, &weights);
        assert!(back.iter().all(|w| w.abs() < 1e-3), "{format} {}: {back:?}", way.name());
    });
}

#[test]
fn nan_and_infinity_are_refused_where_they_stand() {
    for_each(Format::can_quantize, |format, way| {
        for value in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().step_by(thinning()) {
            for index in [0, 1, 255, 256, 300, ROW_LEN - 1, 9 * ROW_LEN + 17] {
                let mut weights = Paint::new(7).weights(12 * ROW_LEN, |p| p.bell());
                weights[index] = value;
                weights[index + 1..].iter_mut().skip(7).step_by(5).for_each(|w| *w = f32::NAN);
                let fault = quantize(format, way, &weights).expect_err("a weight is not finite");
                let place = (fault.index, fault.value.to_bits(), fault.kind);
                assert_eq!(place, (index, value.to_bits(), BlockFaultKind::NonFinite), "{format} {}", way.name());
            }
        }
    });
}

/// The largest weight comes back with its sign and about its size, or it is refused by its index: never a zero or infinity instead.
#[test]
fn huge_weights_are_held_or_refused() {
    for_each(Format::can_quantize, |format, way| {
        for exponent in (3..=38).step_by(thinning()) {
            for (kind, small) in [("alone", 0.0), ("among ones", 1.0), ("among its like", f32::NAN)] {
                for huge in [3.4 * 10f32.powi(exponent), -3.4 * 10f32.powi(exponent)] {
                    let index = (ROW_LEN / 2 + 31 * exponent as usize) % ROW_LEN;
                    let mut weights =
                        Paint::new(8).weights(ROW_LEN, |p| if small.is_nan() { huge * 0.4 * p.bell() } else { small * p.bell() });
                    weights[index] = huge;
                    let place = format!("{format} {}: {huge:e} {kind}", way.name());
                    match quantize(format, way, &weights) {
                        Ok(blocks) => {
                            let back = dequantize(format, way, &blocks);
                            assert!(back.iter().all(|w| w.is_finite()), "{place}: not finite");
                            let share = match format {
                                Format::Q1_0 => 0.0, // every weight is the mean of its block
                                // ggml misplaces what follows 32 zeros in a super-block, and so do we.
                                Format::IQ3_S if kind == "alone" => f32::NEG_INFINITY,
                                _ => 0.3,
                            };
                            assert!(back[index] / huge > share, "{place}: came back as {:e}", back[index]);
                        }
                        Err(fault) => {
                            assert_eq!(fault.kind, BlockFaultKind::OutOfRange, "{place}");
                            assert!(fault.value == weights[fault.index] && fault.value.abs() > 1e3, "{place}: {fault:?}");
                            assert!(kind == "among its like" || fault.index == index, "{place}: {fault:?}");
                        }
                    }
                }
            }
        }
    });
}

type Draw = fn(&mut Paint) -> f32;

/// Importance that makes no sense gives finite weights or a refusal, the same at every level.
#[test]
fn any_importance_is_survived() {
    let odd: [(&str, Draw); 8] = [
        ("all zero", |_| 0.0),
        ("one in a hundred", |p| if p.next() % 100 == 0 { 1.0 } else { 0.0 }),
        ("subnormal", |p| f32::from_bits((p.next() & 0x7f_ffff) as u32)),
        ("huge", |p| 3e38 * p.uniform() as f32),
        ("huge or nothing", |p| [0.0, f32::MAX][(p.next() & 1) as usize]),
        ("negative", |p| p.bell()),
        ("infinite", |p| [0.0, 1.0, f32::INFINITY][(p.next() % 3) as usize]),
        ("any bits", |p| f32::from_bits(p.next() as u32)),
    ];
    let finite = |p: &mut Paint| f32::from_bits(p.next() as u32 & 0xbfff_ffff);
    for (n, (kind, draw)) in odd.into_iter().enumerate() {
        let importance = Paint::new(40 + n as u64).weights(ROW_LEN, draw);
        let mut weights = Paint::new(10).weights(2 * ROW_LEN, |p| 0.02 * p.gaussian());
        weights.extend(Paint::new(11).weights(2 * ROW_LEN, finite));
        for_each(Format::uses_importance, |format, way| {
            if !way.weighted {
                return;
            }
            for (row, weights) in weights.chunks(ROW_LEN).enumerate() {
                let quantize = |level: Level| {
                    let mut blocks = vec![0; weights.len() / format.block_len() * format.block_bytes()];
                    format.quantize_rows(level, weights, ROW_LEN, Some(&importance), &mut blocks).map(|()| blocks)
                };
                let (made, scalar) = (quantize(way.level), quantize(way.scalar().level));
                let place = format!("{format} {}: importance {kind}, row {row}", way.level.name());
                assert_eq!(made.as_ref().map_err(|fault| fault.index), scalar.as_ref().map_err(|fault| fault.index), "{place}");
                if let Ok(blocks) = made {
                    assert!(dequantize(format, way, &blocks).iter().all(|w| w.is_finite()), "{place}: not finite");
                }
            }
        });
    }
}

/// The fault reported is the first, whichever kind comes first.
#[test]
fn the_first_fault_is_reported() {
    let mut weights = vec![0.5; 2 * ROW_LEN];
    weights[300] = 3.4e38;
    weights[1100] = f32::NAN;
    for_each(Format::can_quantize, |format, way| {
        let fault = quantize(format, way, &weights).expect_err("two faults");
        let holds_all = matches!(format, Format::F32 | Format::MXFP4 | Format::Q8_K);
        let expected = if holds_all { (1100, BlockFaultKind::NonFinite) } else { (300, BlockFaultKind::OutOfRange) };
        assert_eq!((fault.index, fault.kind), expected, "{format} {}", way.name());
    });
}

/// Of the cases of long tests, one in so many: an emulator takes thirty times as long.
fn thinning() -> usize {
    if common::emulator().is_some() { 5 } else { 1 }
}

/// How often the tests of arbitrary input draw anew.
fn n_draws() -> usize {
    48 / thinning()
}

/// Blocks of any bytes have the same weights at every level, if not numbers.
#[test]
fn any_bytes_can_be_read() {
    for_each(Format::can_dequantize, |format, way| {
        let read = |way: Way, blocks: &[u8]| -> Vec<u32> {
            dequantize(format, way, blocks).iter().map(|w| if w.is_nan() { f32::NAN } else { *w }.to_bits()).collect()
        };
        let n_bytes = 33 * format.block_bytes();
        for seed in 0..n_draws() {
            let mut paint = Paint::new(100 + seed as u64);
            // All bits equal, one bit set in each block, few bits set, any bits.
            let blocks: Vec<u8> = match seed % 8 {
                0 => vec![0x00; n_bytes],
                1 => vec![0xff; n_bytes],
                2 => {
                    let mut blocks = vec![0; n_bytes];
                    for block in blocks.chunks_mut(format.block_bytes()) {
                        let bit = paint.next() as usize % (8 * block.len());
                        block[bit / 8] = 1 << (bit % 8);
                    }
                    blocks
                }
                3 => (0..n_bytes).map(|_| (paint.next() & paint.next() & paint.next()) as u8).collect(),
                _ => (0..n_bytes).map(|_| paint.next() as u8).collect(),
            };
            assert!(read(way, &blocks) == read(way.scalar(), &blocks), "{format} {}: seed {seed}", way.name());
        }
    });
}

/// [`Factors::add_dots`] in plain Rust: 64 sums along the row, and the order in which they are added up.
fn dot(format: Format, x: &[f32], blocks: &[u8], weights: &[f32]) -> f32 {
    let mut sums = [0.0f32; 64];
    match format {
        Format::Q4_K => {
            for (x, block) in x.chunks_exact(256).zip(blocks.chunks_exact(144)) {
                let (d, dmin, packed) = (half(&block[..2]), half(&block[2..4]), &block[4..16]);
                for j in 0..8 {
                    let m = if j < 4 { packed[j + 4] & 63 } else { packed[j + 4] >> 4 | packed[j] >> 6 << 4 };
                    sums[48 + 8 + j] = (f32::from(m) * dmin).mul_add(-sum(&x[32 * j..][..32]), sums[48 + 8 + j]);
                }
                for j in 0..8 {
                    let sc = if j < 4 { packed[j] & 63 } else { packed[j + 4] & 15 | packed[j - 4] >> 6 << 4 };
                    for lane in 0..8 {
                        let quant = |at: usize| f32::from(block[16 + j / 2 * 32 + 4 * lane + at] >> (4 * (j % 2)) & 15);
                        let products = (0..4).fold(0.0, |sum, at| quant(at).mul_add(x[32 * j + 4 * lane + at], sum));
                        let to = &mut sums[16 * (j / 4 * 2 + j % 2) + j / 2 % 2 * 8 + lane];
                        *to = (f32::from(sc) * d).mul_add(products, *to);
                    }
                }
            }
        }
        Format::Q6_K => {
            for (x, block) in x.chunks_exact(256).zip(blocks.chunks_exact(210)) {
                let scale = |j: usize| half(&block[208..]) * f32::from(block[192 + j] as i8);
                for j in 0..16 {
                    sums[48 + j] = scale(j).mul_add(-32.0 * sum(&x[16 * j..][..16]), sums[48 + j]);
                }
                for k in (0..256).step_by(4) {
                    let (h, run, i) = (k / 128, k / 32 % 4, k % 32);
                    let quant = |at: usize| {
                        let low = block[64 * h + run % 2 * 32 + i + at] >> (run / 2 * 4) & 15;
                        f32::from(low | (block[128 + 32 * h + i + at] >> (2 * run) & 3) << 4)
                    };
                    let products = (0..4).fold(0.0, |sum, at| quant(at).mul_add(x[k + at], sum));
                    let to = &mut sums[16 * run + 8 * h + i / 4];
                    *to = scale(k / 16).mul_add(products, *to);
                }
            }
        }
        _ => {
            for (k, (&x, &w)) in x.iter().zip(weights).enumerate() {
                sums[k % 64] = x.mul_add(w, sums[k % 64]);
            }
        }
    }
    let lanes: Vec<f32> = (0..16).map(|j| (sums[j] + sums[j + 16]) + (sums[j + 32] + sums[j + 48])).collect();
    halved(lanes)
}

/// The sum of a sub-block's part of the vector.
fn sum(x: &[f32]) -> f32 {
    halved((0..8).map(|i| x.iter().skip(i).step_by(8).fold(0.0, |sum, x| sum + x)).collect())
}

/// Halves added to each other until one is left.
fn halved(mut sums: Vec<f32>) -> f32 {
    while sums.len() > 1 {
        let (low, high) = sums.split_at(sums.len() / 2);
        sums = low.iter().zip(high).map(|(a, b)| a + b).collect();
    }
    sums[0]
}

fn half(bytes: &[u8]) -> f32 {
    half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

#[test]
fn dot_products_have_the_stated_order_at_every_level() {
    for &format in Format::ALL.iter().filter(|format| format.can_dequantize()) {
        // Whole steps, then rows that end within one, and rows shorter than one.
        for n_blocks in [ROW_LEN / format.block_len(), 3, 1] {
            let row_len = n_blocks * format.block_len();
            let mut paint = Paint::new(2028);
            let x: Vec<f32> = (0..row_len).map(|_| paint.bell()).collect();
            let row = match format {
                Format::F64 => x.iter().flat_map(|&x| f64::from(x).to_le_bytes()).collect(),
                _ => golden(format, "blocks")[..n_blocks * format.block_bytes()].to_vec(),
            };
            let rows = row.repeat(3);
            let mut weights = vec![0.0; row_len];
            format.dequantize(Level::available()[0], &row, &mut weights);
            let expected = 1.5 + dot(format, &x, &row, &weights);
            let exact: f64 = 1.5 + x.iter().zip(&weights).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>();
            let magnitude: f64 = x.iter().zip(&weights).map(|(&x, &w)| f64::from(x * w).abs()).sum();
            assert!((f64::from(expected) - exact).abs() <= 1e-6 * magnitude + 1e-6, "{format}: {expected} is not {exact}");
            let factors = Factors::new(format, &x);
            for level in Level::available() {
                let mut out = [1.5; 3];
                factors.add_dots(level, &rows, &mut out);
                assert_eq!(out.map(f32::to_bits), [expected.to_bits(); 3], "{format} {} rows of {row_len}", level.name());
            }
        }
    }
}

/// A weight of a kind that is drawn anew for every few weights, so that blocks mix kinds.
fn arbitrary_weights(seed: usize, n: usize) -> Vec<f32> {
    let mut paint = Paint::new(200 + seed as u64);
    let mut weights = Vec::with_capacity(n);
    while weights.len() < n {
        let run = 1 + paint.next() as usize % if seed.is_multiple_of(2) { 48 } else { 700 };
        let kind = paint.next() % 12;
        let same = f32::from_bits(paint.next() as u32 & 0xbfff_ffff);
        for _ in 0..run.min(n - weights.len()) {
            let bits = paint.next() as u32;
            weights.push(match kind {
                0 => f32::from_bits(bits),                             // anything, now and then NaN or infinity
                1 => f32::from_bits(bits & 0x807f_ffff),               // subnormal
                2 => f32::from_bits(bits & 0x80ff_ffff),               // around the smallest normal number
                3 => f32::from_bits(bits & 0x80ff_ffff | 0x7e80_0000), // the hugest
                4 => 65504.0 * paint.bell(),                           // what halves just hold
                5 => same,                                             // ties
                6 => {
                    if bits & 1 == 0 {
                        same
                    } else {
                        -same
                    }
                } // ties of both signs
                7 => {
                    if bits.is_multiple_of(61) {
                        same
                    } else {
                        0.0
                    }
                }
                8 => {
                    if bits & 1 == 0 {
                        0.0
                    } else {
                        -0.0
                    }
                }
                9 => f32::from_bits(bits & 0xbfff_ffff), // any finite number below 2
                _ => 0.02 * paint.bell(),
            });
        }
    }
    weights
}

/// Whatever the weights are, there is no panic: either every scale is finite, or the first weight to blame is named. And every level
/// says the same.
#[test]
fn any_weights_are_held_or_refused() {
    let (mut n_held, mut n_refused) = (0, 0);
    for seed in 0..n_draws() {
        let weights = arbitrary_weights(seed, 2 * ROW_LEN);
        for_each(Format::can_quantize, |format, way| {
            let place = format!("{format} {}: seed {seed}", way.name());
            let made = quantize(format, way, &weights);
            let scalar = quantize(format, way.scalar(), &weights);
            let fault = |fault: &BlockFault| (fault.index, fault.value.to_bits(), fault.kind);
            assert_eq!(made.as_ref().map_err(fault), scalar.as_ref().map_err(fault), "{place}: differs from scalar");
            match made {
                Ok(blocks) => {
                    assert!(weights.iter().all(|w| w.is_finite()), "{place}: holds what is not finite");
                    if format.can_dequantize() {
                        assert!(dequantize(format, way, &blocks).iter().all(|w| w.is_finite()), "{place}: scales are not finite");
                    }
                }
                Err(fault) => {
                    assert_eq!(fault.value.to_bits(), weights[fault.index].to_bits(), "{place}");
                    let first = weights.iter().position(|w| !w.is_finite());
                    let block = fault.index / format.block_len() * format.block_len();
                    match fault.kind {
                        BlockFaultKind::NonFinite => assert_eq!(Some(fault.index), first, "{place}"),
                        BlockFaultKind::OutOfRange => {
                            let block = &weights[block..][..format.block_len()];
                            assert!(block.iter().all(|w| w.abs() <= fault.value.abs()), "{place}: not the largest of its block");
                            assert!(first.is_none_or(|first| fault.index < first), "{place}: not the first fault");
                        }
                    }
                }
            }
        });
        match quantize(Format::Q4_0, Way { level: Level::available()[0], weighted: false }, &weights) {
            Ok(_) => n_held += 1,
            Err(_) => n_refused += 1,
        }
    }
    assert!(common::emulator().is_some() || n_held > 3 && n_refused > 3, "{n_held} held, {n_refused} refused: too much alike");
}

#[test]
fn doubles_are_rounded_to_the_nearest_float() {
    let doubles = [0.0, -0.0, 0.1, 1.0 / 3.0, 1e-40, 1e300, -1e300, f64::MIN_POSITIVE];
    let blocks: Vec<u8> = doubles.iter().flat_map(|d| d.to_le_bytes()).collect();
    for level in Level::available() {
        let floats: Vec<u32> =
            dequantize(Format::F64, Way { level, weighted: false }, &blocks).iter().map(|w| w.to_bits()).collect();
        assert_eq!(floats, doubles.map(|d| (d as f32).to_bits()), "{}", level.name());
    }
}

/// What the next test reads from a copy of this program; by itself it only says what is there.
#[test]
fn the_detected_level_is_one_of_this_machine() {
    println!("detected: {}", Level::detect().name());
    assert!(Level::available().contains(&Level::detect()));
}

#[test]
fn the_environment_caps_detection() {
    let available: Vec<&str> = Level::available().iter().map(|level| level.name()).collect();
    let best = *available.last().expect("scalar at least");
    let detected = |cap: &str| {
        let mut test = common::program(std::env::current_exe().expect("this program"));
        let output =
            test.env("GGFORGE_SIMD", cap).args(["--exact", "the_detected_level_is_one_of_this_machine", "--nocapture"]).output();
        String::from_utf8(output.expect("it runs").stdout).expect("UTF-8")
    };
    for cap in &available {
        assert!(detected(cap).contains(&format!("detected: {cap}\n")), "capped to {cap}");
    }
    assert!(detected("SCALAR").contains("detected: scalar\n"));
    assert!(detected("no level").contains(&format!("detected: {best}\n")));
}
