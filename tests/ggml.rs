//! Bytes and weights equal ggml's, bit for bit, for every format and every CPU level of this machine.
//!
//! The oracle is `ggml_quantize_chunk` and `to_float` of the library that npm's `@node-llama-cpp/linux-x64` carries.
//!
//! Every batch of rows is compared with one kind of importance, the kinds taking turns; with `GGFORGE_TEST_FULL=1` with all of them,
//! and a table of how many weights were compared is printed. `GGFORGE_TEST_FORMATS=Q4_K,IQ4_XS` leaves the other formats out.

mod common;

use std::borrow::Cow;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use common::Paint;
use common::ggml::Ggml;
use ggforge::quant::Format;
use ggforge::report::{Cell, Table};
use ggforge::simd::Level;

const ROW_LEN: usize = 1024;

/// Weights of one kind, whole rows.
struct Case {
    name: &'static str,
    weights: Vec<f32>,
}

impl Case {
    /// The column of [`Counts`] that this case belongs to.
    fn source(&self) -> usize {
        match self.name {
            "Gaussian" => 0,
            "Student-t" => 1,
            "forge-23m (real)" => 2,
            "forge-3m (real)" => 3,
            _ => 4,
        }
    }
}

const SOURCES: usize = 5;

/// How many weights were found equal to ggml's, bytes and all, at every level: by format, importance and source.
struct Counts {
    formats: Vec<Format>,
    weights: Vec<[[AtomicU64; SOURCES]; Importance::ALL.len()]>,
}

impl Counts {
    fn new(formats: &[Format]) -> Counts {
        Counts { formats: formats.to_vec(), weights: formats.iter().map(|_| Default::default()).collect() }
    }

    fn add(&self, format: usize, importance: Importance, source: usize, n: usize) {
        self.weights[format][importance as usize][source].fetch_add(n as u64, Ordering::Relaxed);
    }

    /// One row for each format and kind of importance that ggml allows it.
    fn table(&self) -> Table {
        let mut table = Table::new(&["format", "importance", "Gaussian", "Student-t", "forge-23m", "forge-3m", "adversarial"]);
        for (format, counts) in self.formats.iter().zip(&self.weights) {
            for (importance, counts) in Importance::ALL.iter().zip(counts).filter(|(importance, _)| importance.suits(*format)) {
                let [a, b, c, d, e] = counts.each_ref().map(|n| Cell::Count(n.load(Ordering::Relaxed)));
                table.push([format.name().into(), format!("{importance:?}").into(), a, b, c, d, e]);
            }
        }
        table
    }

    /// The fewest weights of any format and importance: from Gaussian, Student-t, forge-23m and the adversarial cases.
    fn fewest(&self) -> [u64; 4] {
        [0, 1, 2, 4].map(|source| {
            let of_format = |(format, counts): (&Format, &[[AtomicU64; SOURCES]; 4])| {
                let kinds = Importance::ALL.iter().zip(counts).filter(|(importance, _)| importance.suits(*format));
                kinds.map(|(_, counts)| counts[source].load(Ordering::Relaxed)).min()
            };
            self.formats.iter().zip(&self.weights).filter_map(of_format).min().unwrap_or(0)
        })
    }
}

/// Sixteen million weights and more, of every kind that has its own path through the quantizers.
fn cases() -> Vec<Case> {
    const MILLION: usize = 1024 * ROW_LEN;
    let mut cases = Vec::new();
    let mut add = |name, weights: Vec<f32>| cases.push(Case { name, weights });
    for seed in 0..4 {
        add("Gaussian", Paint::new(seed).weights(MILLION, |p| 0.02 * p.gaussian()));
        add("Student-t", Paint::new(10 + seed).weights(MILLION, |p| 0.02 * p.student_t4()));
    }
    add("zeros", Paint::new(20).weights(MILLION / 16, |p| if p.next() & 1 == 0 { 0.0 } else { -0.0 }));
    add("sparse", Paint::new(21).weights(MILLION / 4, |p| if p.next() & 15 == 0 { p.gaussian() } else { 0.0 }));
    add("ties", Paint::new(22).weights(MILLION / 2, |p| (p.next() % 17) as f32 / 16.0 - 0.5));
    add("few levels", Paint::new(23).weights(MILLION / 4, |p| (p.next() % 3) as f32 - 1.0));
    add("sixteen levels", Paint::new(24).weights(MILLION / 4, |p| 0.125 * (p.next() % 16) as f32));
    add("subnormal", Paint::new(25).weights(MILLION / 4, |p| f32::from_bits((p.next() & 0x807f_ffff) as u32)));
    add("near subnormal", Paint::new(26).weights(MILLION / 4, |p| 1e-37 * p.gaussian()));
    add("small range", Paint::new(27).weights(MILLION / 4, |p| f32::from_bits(0xbf80_0000 + (p.next() & 0x1f) as u32)));
    add("6-sigma outliers", Paint::new(28).weights(MILLION / 2, |p| p.gaussian() * if p.next() & 127 == 0 { 6.0 } else { 0.3 }));
    add("sign alternating", Paint::new(29).weights(MILLION / 4, |p| [0.75, -0.75][(p.next() & 1) as usize]));
    add("all equal", all_equal(MILLION / 4));
    add("one sign", Paint::new(31).weights(MILLION / 4, |p| -0.1 - p.gaussian().abs()));
    add("every magnitude", Paint::new(32).weights(MILLION / 2, magnitude));
    add("a magnitude a block", blockwise_magnitude(MILLION / 2));
    cases.extend(real("forge-3m (real)", Path::new("fixtures/hf/forge-3m/model.safetensors"), usize::MAX));
    if let Some(model) = common::shared("models/forge-23m/model.safetensors") {
        cases.extend(real("forge-23m (real)", &model, 4 * MILLION));
    }
    cases
}

/// Runs of 32 equal weights: positive, negative, tiny.
fn all_equal(n: usize) -> Vec<f32> {
    let mut paint = Paint::new(30);
    (0..n / 32).flat_map(|_| [paint.gaussian() * [1.0, 1e-3, 1e-30, 1e-42][(paint.next() & 3) as usize]; 32]).collect()
}

/// Any exponent that every format can hold.
fn magnitude(paint: &mut Paint) -> f32 {
    let bits = paint.next() as u32;
    f32::from_bits((bits & 0x807f_ffff) | (((bits >> 23) % (127 + 15)) << 23))
}

/// Gaussian blocks of 32, each of its own magnitude from 2^-149 to 2^15.
fn blockwise_magnitude(n: usize) -> Vec<f32> {
    let mut paint = Paint::new(33);
    let mut weights = Vec::with_capacity(n);
    while weights.len() < n {
        let scale = f64::powi(2.0, (paint.next() % 160) as i32 - 148) as f32;
        weights.extend((0..32).map(|_| scale * paint.gaussian()));
    }
    weights
}

/// The BF16 weights of a safetensors file, as rows of the test's length.
fn real(name: &'static str, path: &Path, n_max: usize) -> Option<Case> {
    let bytes = std::fs::read(path).expect("readable model");
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&bytes[8..8 + header_len]).unwrap();
    assert!(header.contains("\"BF16\"") && !header.contains("\"F32\""), "{name}: a BF16 model");
    let weights =
        bytes[8 + header_len..].chunks_exact(2).map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16));
    let mut weights: Vec<f32> = weights.take(n_max).collect();
    weights.truncate(weights.len() / ROW_LEN * ROW_LEN);
    Some(Case { name, weights })
}

/// Calls `work` for every index, on all cores.
fn in_parallel(n: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    let n_threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..n_threads {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= n {
                        break;
                    }
                    work(i);
                }
            });
        }
    });
}

/// How much the columns of a row count.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Importance {
    None,
    Flat,
    LogNormal,
    /// Log-normal with zeros: columns, and runs of 32 and 256.
    Zeros,
}

impl Importance {
    const ALL: [Importance; 4] = [Importance::None, Importance::Flat, Importance::LogNormal, Importance::Zeros];

    fn suits(self, format: Format) -> bool {
        self != Importance::None || !format.needs_importance()
    }

    fn columns(self) -> Option<Vec<f32>> {
        let log_normal = Paint::new(40).weights(ROW_LEN, |p| (2.0 * p.gaussian()).exp());
        match self {
            Importance::None => None,
            Importance::Flat => Some(vec![1.0; ROW_LEN]),
            Importance::LogNormal => Some(log_normal),
            Importance::Zeros => {
                let is_zero = |i: usize| i % 3 == 1 || i / 32 % 7 == 2 || i / 256 == 2;
                Some(log_normal.iter().enumerate().map(|(i, &v)| if is_zero(i) { 0.0 } else { v }).collect())
            }
        }
    }
}

/// What the environment asks for.
fn chosen(format: &Format) -> bool {
    let Ok(list) = std::env::var("GGFORGE_TEST_FORMATS") else { return true };
    list.split(',').any(|name| name == format.name())
}

fn quantizable() -> impl Iterator<Item = Format> {
    Format::ALL.iter().copied().filter(|format| format.can_quantize() && chosen(format))
}

/// The weights, cut down to what the format can hold: the scales of NVFP4 end at 448, and a sum of 32 weights must fit Q8_1's half.
fn held(format: Format, weights: &[f32]) -> Cow<'_, [f32]> {
    match format {
        Format::NVFP4 => weights.iter().map(|w| w.clamp(-2688.0, 2688.0)).collect(),
        Format::Q8_1 => weights.iter().map(|w| w.clamp(-2040.0, 2040.0)).collect(),
        _ => weights.into(),
    }
}

/// The one place where the bytes are not ggml's: MXFP4 blocks whose largest magnitude is in 2^-126 .. 2^-125. ggml gives them the
/// scale that means NaN and then refuses to load them; all their quants are 0, and with the scale 0 they read the same.
fn make_loadable(format: Format, blocks: &mut [u8]) {
    if format == Format::MXFP4 {
        blocks.chunks_mut(format.block_bytes()).filter(|block| block[0] == 255).for_each(|block| block[0] = 0);
    }
}

/// Blocks, then weights, of one batch of rows at every level.
fn compare(ggml: &Ggml, format: Format, case: &str, weights: &[f32], importance: Importance) {
    let weights = &*held(format, weights);
    let columns = importance.columns();
    let columns = columns.as_deref();
    let case = &format!("{case}, importance {importance:?}");
    let n_blocks = weights.len() / format.block_len();
    let mut expected = vec![0; n_blocks * format.block_bytes()];
    let mut blocks = vec![0xaa; expected.len()];
    ggml.quantize(format, weights, ROW_LEN, columns, &mut expected);
    make_loadable(format, &mut expected);
    for level in Level::available() {
        let done = format.quantize_rows(level, weights, ROW_LEN, columns, &mut blocks);
        assert!(done.is_ok(), "{format} {} {case}: {done:?}", level.name());
        if blocks != expected {
            let at = blocks.iter().zip(&expected).position(|(a, b)| a != b).unwrap() / format.block_bytes();
            let range = at * format.block_bytes()..(at + 1) * format.block_bytes();
            panic!(
                "{format} {} {case}: block {at} differs\nweights {:?}\nexpected {:?}\ngot      {:?}",
                level.name(),
                &weights[at * format.block_len()..(at + 1) * format.block_len()],
                &expected[range.clone()],
                &blocks[range],
            );
        }
        blocks.fill(0x55);
    }
    compare_weights(ggml, format, case, &expected);
}

/// The weights that every level reads from `blocks`. NaNs are equal to each other.
fn compare_weights(ggml: &Ggml, format: Format, case: &str, blocks: &[u8]) {
    if !ggml.can_dequantize(format) {
        return;
    }
    let mut expected = vec![0.0; blocks.len() / format.block_bytes() * format.block_len()];
    ggml.dequantize(format, blocks, &mut expected);
    let mut weights = vec![f32::NAN; expected.len()];
    for level in Level::available() {
        format.dequantize(level, blocks, &mut weights);
        let differs = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan());
        if let Some(at) = weights.iter().zip(&expected).position(differs) {
            panic!("{format} {} {case}: weight {at}: expected {:e}, got {:e}", level.name(), expected[at], weights[at]);
        }
        weights.fill(1.5);
    }
}

#[test]
fn quantized_bytes_and_their_weights_equal_ggml() {
    let Some(ggml) = common::ggml::load() else { return };
    const ROWS: usize = 129; // odd, so that the last group of lanes is not full
    let cases = cases();
    let total: usize = cases.iter().map(|case| case.weights.len()).sum();
    assert!(total >= 12_000_000, "{total} weights");
    let full = std::env::var_os("GGFORGE_TEST_FULL").is_some();
    let kinds = if full { Importance::ALL.len() } else { 1 };
    let batches: Vec<(&Case, &[f32])> =
        cases.iter().flat_map(|case| case.weights.chunks(ROWS * ROW_LEN).map(move |rows| (case, rows))).collect();
    let formats: Vec<Format> = quantizable().collect();
    let counts = Counts::new(&formats);
    in_parallel(batches.len() * formats.len() * kinds, |i| {
        let (turn, format) = (i / formats.len(), i % formats.len());
        let (case, weights) = batches[turn / kinds];
        let importance = match Importance::ALL[turn % Importance::ALL.len()] {
            importance if importance.suits(formats[format]) => importance,
            _ if full => return, // flat has its own turn
            _ => Importance::Flat,
        };
        compare(&ggml, formats[format], case.name, weights, importance);
        counts.add(format, importance, case.source(), weights.len());
    });
    let levels: Vec<&str> = Level::available().iter().map(|level| level.name()).collect();
    for case in &cases {
        println!("{:>9} weights {}", case.weights.len(), case.name);
    }
    println!("{formats:?}, {total} weights each, {kinds} kinds of importance, levels {levels:?}: bytes and weights equal ggml's");
    if full {
        println!("weights compared at each of the levels {levels:?}:\n{}", counts.table().markdown());
        let fewest = counts.fewest();
        assert!(
            fewest.iter().all(|&n| n >= 4_000_000),
            "fewest weights of Gaussian, Student-t, forge-23m, adversarial: {fewest:?}"
        );
    }
}

/// The scale of a 4-bit float format is a function of one weight, with a jump at every power of two or eighth of it, and MXFP4's jumps
/// lie where a logarithm rounds.
#[test]
fn scales_of_4_bit_floats_equal_ggml_around_every_jump() {
    let Some(ggml) = common::ggml::load() else { return };
    let powers = (0..256u32).flat_map(|exponent| (0..=200).map(move |i| ((exponent << 23) + i).saturating_sub(100)));
    let eighths = (0..256 * 16u32).flat_map(|step| (0..3).map(move |i| ((step << 19) + i).saturating_sub(1)));
    let magnitudes: Vec<f32> =
        powers.chain(eighths).map(f32::from_bits).flat_map(|x| [x, 6.0 * x]).filter(|x| x.is_finite()).collect();
    let mut weights: Vec<f32> = magnitudes.iter().flat_map(|&x| [x, -0.3 * x, 0.7 * x, 0.1 * x].repeat(8)).collect();
    weights.resize(weights.len().next_multiple_of(ROW_LEN), 0.0);
    compare(&ggml, Format::MXFP4, "jumps", &weights, Importance::None);
    compare(&ggml, Format::NVFP4, "jumps", &weights, Importance::None);
}

/// Rows of one block and of many, of which the last group of lanes is full or not.
#[test]
fn rows_of_any_length_equal_ggml() {
    let Some(ggml) = common::ggml::load() else { return };
    for row_len in [32, 96, 256, 480, 544, 768, 2304, 4352] {
        let weights = Paint::new(50).weights(3 * row_len, |p| 0.02 * p.student_t4());
        let importance = Paint::new(51).weights(row_len, |p| p.gaussian().exp());
        for format in quantizable().filter(|format| row_len.is_multiple_of(format.block_len())) {
            for columns in [None, Some(&*importance)] {
                if columns.is_none() && format.needs_importance() {
                    continue;
                }
                let mut expected = vec![0; weights.len() / format.block_len() * format.block_bytes()];
                let mut blocks = expected.clone();
                ggml.quantize(format, &weights, row_len, columns, &mut expected);
                for level in Level::available() {
                    format.quantize_rows(level, &weights, row_len, columns, &mut blocks).expect("finite weights");
                    let place = format!("{format} {}, rows of {row_len}", level.name());
                    assert!(blocks == expected, "{place}, with importance: {}", columns.is_some());
                    blocks.fill(0xaa);
                }
            }
        }
    }
}

#[test]
fn weights_of_random_blocks_equal_ggml() {
    let Some(ggml) = common::ggml::load() else { return };
    let formats: Vec<Format> =
        Format::ALL.iter().copied().filter(|f| f.can_dequantize() && *f != Format::F64 && chosen(f)).collect();
    in_parallel(formats.len() * 4, |i| {
        let format = formats[i / 4];
        let mut paint = Paint::new(i as u64);
        let n_blocks = 300_000 / format.block_len() + 1;
        let blocks: Vec<u8> = (0..n_blocks * format.block_bytes()).map(|_| paint.next() as u8).collect();
        compare_weights(&ggml, format, "random blocks", &blocks);
    });
}

#[test]
fn every_half_widens_and_every_float_narrows_as_in_ggml() {
    let Some(ggml) = common::ggml::load() else { return };
    let halves: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for format in [Format::F16, Format::BF16] {
        compare_weights(&ggml, format, "every pattern", &halves);
    }
    // Every float whose low 9 bits are a rounding case of F16 or BF16, up to the largest that both hold.
    let largest = 65504.0f32.to_bits();
    in_parallel(64, |i| {
        let mut weights = Vec::new();
        for high in (0..=largest >> 9).skip(i).step_by(64) {
            for low in [0, 1, 0xff, 0x100, 0x1ff] {
                let bits = ((high << 9) | low).min(largest);
                weights.extend([f32::from_bits(bits), -f32::from_bits(bits)]);
            }
        }
        weights.truncate(weights.len() / ROW_LEN * ROW_LEN);
        for format in [Format::F16, Format::BF16] {
            compare(&ggml, format, "float", &weights, Importance::None);
        }
    });
}
