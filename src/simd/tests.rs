//! Every lane operation gives the bits of the scalar level, on the values where machines differ.

use super::{F32x16, Level, Simd, Task};

/// Zeros, ties, the ends of what integers and halves hold, subnormals of both widths, infinities, NaNs with a payload.
const FLOATS: [u32; 48] = [
    0x0000_0000,
    0x8000_0000,
    0x0000_0001,
    0x8000_0001,
    0x007f_ffff,
    0x0080_0000,
    0x3f80_0000,
    0xbf80_0000, // 0, subnormal, 1
    0x3f00_0000,
    0xbf00_0000,
    0x3eff_ffff,
    0x3fc0_0000,
    0x4020_0000,
    0xc020_0000,
    0x4b00_0000,
    0x4b80_0001, // halves, 2^23
    0x4eff_ffff,
    0xceff_ffff,
    0x4f00_0000,
    0xcf00_0000,
    0xcf00_0001,
    0x4f80_0000,
    0x5f00_0000,
    0xff7f_ffff, // i32's ends, huge
    0x477f_e000,
    0x477f_efff,
    0x477f_f000,
    0xc77f_f000,
    0x3880_0000,
    0x387f_c000,
    0x3380_0000,
    0x3300_0000, // f16's ends
    0x3300_0001,
    0xb2ff_ffff,
    0x3f80_1000,
    0x3f80_3000,
    0x3f80_1001,
    0x3f7f_f000,
    0x3d00_8000,
    0xbd01_8000, // f16's ties
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0xffc0_0000,
    0x7fc1_2345,
    0xffff_ffff,
    0x4049_0fdb,
    0xc2f6_e979, // inf, NaN, any
];

const INTEGERS: [i32; 16] =
    [0, 1, -1, 127, 128, 255, 256, -128, -129, 32767, 32768, 65535, 65536, i32::MAX, i32::MIN, 0x5a5a_a5a5_u32 as i32];

/// Results under the name of their operation.
type Results = Vec<(&'static str, Vec<u32>)>;

struct EveryOperation;

impl Task for EveryOperation {
    type Output = Results;

    fn run<S: Simd>(self, simd: S) -> Results {
        let mut results = Results::new();
        let floats = FLOATS.map(f32::from_bits);
        for a in floats.as_chunks::<16>().0 {
            unary(simd, a, &mut results);
            for turn in 0..floats.len() {
                let mut b = [0.0; 16];
                (0..16).for_each(|i| b[i] = floats[(turn + i) % floats.len()]);
                binary(simd, a, &b, &mut results);
            }
        }
        for turn in 0..16 {
            let mut b = INTEGERS;
            b.rotate_left(turn);
            integers(simd, &INTEGERS, &b, &mut results);
        }
        bytes(simd, &mut results);
        results
    }
}

fn unary<S: Simd>(simd: S, a: &[f32; 16], results: &mut Results) {
    let x = simd.load(a);
    let mut float = |name, lanes| results.push((name, bits(simd, lanes)));
    float("load", x);
    float("sqrt", any_nan(simd, simd.sqrt(x)));
    float("with_bits", simd.with_bits(simd.to_bits(x)));
    float("splat", simd.splat(a[0]));
    float("convert", simd.convert(simd.to_bits(x)));
    results.push(("truncate", integer_bits(simd, simd.truncate(x))));
    results.push(("narrow_f16", simd.narrow_f16(x).map(u32::from).to_vec()));
    results.push(("half", a.iter().flat_map(|&a| simd.half(a)).map(u32::from).collect()));
    let numbers = a.map(|a| if a.is_nan() { 0.25 } else { a });
    let sum = simd.reduce_add(simd.load(&numbers));
    results.push(("reduce_add", vec![if sum.is_nan() { f32::NAN.to_bits() } else { sum.to_bits() }]));
    // Either zero may come out.
    results.push(("reduce_min", vec![(simd.reduce_min(simd.load(&numbers)) + 0.0).to_bits()]));
    results.push(("reduce_max", vec![(simd.reduce_max(simd.load(&numbers)) + 0.0).to_bits()]));
    let lanes = F32x16::load(simd, a);
    for (low, high) in [(0, 15), (-16, 15), (-128, 127), (-4_194_304, 4_194_303)] {
        results.push(("nearest_int_in", lanes.nearest_int_in(low, high).to_array().map(f32::to_bits).to_vec()));
    }
    results.push(("round_half_away", lanes.round_half_away().to_float_bits().to_array().map(f32::to_bits).to_vec()));
}

fn binary<S: Simd>(simd: S, a: &[f32; 16], b: &[f32; 16], results: &mut Results) {
    let (x, y) = (simd.load(a), simd.load(b));
    let mut float = |name, lanes| results.push((name, bits(simd, lanes)));
    float("add", any_nan(simd, simd.add(x, y)));
    float("sub", any_nan(simd, simd.sub(x, y)));
    float("mul", any_nan(simd, simd.mul(x, y)));
    float("div", any_nan(simd, simd.div(x, y)));
    // A fused multiply-add would keep what the product rounds away.
    float("mul, add", any_nan(simd, simd.add(simd.mul(x, x), y)));
    float("fma", any_nan(simd, simd.fma(x, y, x)));
    float("fma of a product that cancels", any_nan(simd, simd.fma(x, y, simd.sub(simd.splat(0.0), simd.mul(x, y)))));
    float("min", simd.min(x, y));
    float("max", simd.max(x, y));
    let masks = [("lt", simd.lt(x, y)), ("le", simd.le(x, y)), ("eq", simd.eq(x, y))];
    masks.iter().for_each(|&(_, mask)| float("select", simd.select(mask, x, y)));
    let [lt, le, eq] = masks.map(|(_, mask)| mask);
    let combined = [("mask_and", simd.mask_and(lt, le)), ("mask_or", simd.mask_or(lt, eq)), ("mask_not", simd.mask_not(le))];
    results.extend(masks.iter().chain(&combined).map(|&(name, mask)| (name, vec![u32::from(simd.mask_bits(mask))])));
}

fn integers<S: Simd>(simd: S, a: &[i32; 16], b: &[i32; 16], results: &mut Results) {
    let load = |of: &[i32; 16]| simd.to_bits(simd.load(&of.map(|bits| f32::from_bits(bits as u32))));
    let (x, y) = (load(a), load(b));
    let mut integer = |name, lanes| results.push((name, integer_bits(simd, lanes)));
    integer("isplat", simd.isplat(b[0]));
    integer("iadd", simd.iadd(x, y));
    integer("isub", simd.isub(x, y));
    integer("imin", simd.imin(x, y));
    integer("imax", simd.imax(x, y));
    integer("iand", simd.iand(x, y));
    integer("ior", simd.ior(x, y));
    integer("ixor", simd.ixor(x, y));
    integer("ishl", simd.ishl::<5>(x));
    integer("ishr", simd.ishr::<5>(x));
    integer("ishl by 31", simd.ishl::<31>(x));
    integer("ishr by 31", simd.ishr::<31>(x));
    integer("spread", simd.spread(b[0] as u16, b[1]));
    let tables = [simd.load(&std::array::from_fn(|i| i as f32)), simd.load(&std::array::from_fn(|i| -(i as f32)))];
    results.push(("lookup16", bits(simd, simd.lookup16(tables[0], x))));
    results.push(("lookup_lower", bits(simd, simd.lookup_lower(tables[0], simd.iand(x, simd.isplat(7))))));
    results.push(("lookup_upper", bits(simd, simd.lookup_upper(tables[0], simd.ior(x, simd.isplat(8))))));
    results.push(("lookup32", bits(simd, simd.lookup32(tables, x))));
    results.push(("pick", bits(simd, simd.pick(tables[0], x))));
    results.push(("load_quarters", bits(simd, simd.load_quarters(&[1.0, 2.0, 3.0, b[0] as f32]))));
    results.push(("itest", vec![u32::from(simd.mask_bits(simd.itest(x, y)))]));
    results.push(("convert", bits(simd, simd.convert(x))));
    results.push(("narrow_u8", simd.narrow_u8(x).map(u32::from).to_vec()));
    results.push(("narrow_u16", simd.narrow_u16(x).map(u32::from).to_vec()));
}

fn bytes<S: Simd>(simd: S, results: &mut Results) {
    for first in (0..=u8::MAX).step_by(16) {
        let sixteen = std::array::from_fn(|i| first + i as u8);
        results.push(("widen_u8", integer_bits(simd, simd.widen_u8(&sixteen))));
        results.push(("widen_i8", integer_bits(simd, simd.widen_i8(&sixteen))));
        let (low, high) =
            (std::array::from_fn(|i| first ^ (7 * i as u8)), std::array::from_fn(|i| first.wrapping_sub(5 * i as u8)));
        results.push(("load_bytes", integer_bits(simd, simd.load_bytes(&low, &high))));
    }
    for first in (0..=u16::MAX).step_by(16) {
        let sixteen: [u16; 16] = std::array::from_fn(|i| first + i as u16);
        let bytes = std::array::from_fn(|i| sixteen[i / 2].to_le_bytes()[i % 2]);
        results.push(("widen_u16", integer_bits(simd, simd.widen_u16(&bytes))));
        results.push(("widen_f16", bits(simd, simd.widen_f16(&bytes))));
        results.push(("unhalf", sixteen.map(|half| simd.unhalf(half.to_le_bytes()).to_bits()).to_vec()));
        for half in sixteen {
            let lanes = F32x16::splat_half(simd, half.to_le_bytes()).to_array();
            results.push(("splat_half", lanes.map(f32::to_bits).to_vec()));
        }
    }
    let rows = std::array::from_fn(|row| simd.load(&std::array::from_fn(|column| (16 * row + column) as f32)));
    results.extend(simd.transpose(rows).map(|row| ("transpose", bits(simd, row))));
}

fn bits<S: Simd>(simd: S, lanes: S::F32) -> Vec<u32> {
    let mut array = [0.0; 16];
    simd.store(lanes, &mut array);
    array.map(f32::to_bits).to_vec()
}

fn integer_bits<S: Simd>(simd: S, lanes: S::I32) -> Vec<u32> {
    bits(simd, simd.with_bits(lanes))
}

/// IEEE 754 leaves open which NaN arithmetic gives: one for all.
fn any_nan<S: Simd>(simd: S, lanes: S::F32) -> S::F32 {
    simd.select(simd.eq(lanes, lanes), lanes, simd.splat(f32::NAN))
}

#[test]
fn every_operation_gives_the_bits_of_the_scalar_level() {
    let [scalar, others @ ..] = &Level::available()[..] else { panic!("scalar is always there") };
    let expected = scalar.run(EveryOperation);
    for level in others {
        let got = level.run(EveryOperation);
        assert_eq!(got.len(), expected.len());
        for (n, ((name, expected), (_, got))) in expected.iter().zip(&got).enumerate() {
            assert_eq!(got, expected, "{} {name} (result {n}), in hex\n got {got:x?}\nnot {expected:x?}", level.name());
        }
    }
}

/// The scalar level itself is right where x86 and Arm differ.
#[test]
fn scalar_is_what_x86_does() {
    struct Facts;
    impl Task for Facts {
        type Output = ([i32; 4], [u32; 2], [u32; 2]);
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let mut x = [0.0; 16];
            x[..4].copy_from_slice(&[f32::NAN, 3e9, -3e9, 2_147_483_520.0]);
            let whole = integer_bits(simd, simd.truncate(simd.load(&x)));
            let (nan, one) = (simd.splat(f32::NAN), simd.splat(1.0));
            let first = |lanes| bits(simd, lanes)[0];
            let (min, max) =
                ([first(simd.min(nan, one)), first(simd.min(one, nan))], [first(simd.max(nan, one)), first(simd.max(one, nan))]);
            ([0, 1, 2, 3].map(|i| whole[i] as i32), min, max)
        }
    }
    let (one, nan) = (1f32.to_bits(), f32::NAN.to_bits());
    for level in Level::available() {
        assert_eq!(level.run(Facts), ([i32::MIN, i32::MIN, i32::MIN, 2_147_483_520], [one, nan], [one, nan]), "{}", level.name());
    }
}
