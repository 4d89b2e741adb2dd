//! NEON (every 64-bit Arm CPU): sixteen lanes are four registers, lanes 0-3 in the first.
//!
//! Two things differ from x86 and are made alike here: a float that no i32 can hold saturates, and minimum and maximum return NaN
//! where either is NaN.

use std::arch::aarch64::*;
use std::array::from_fn;

use super::Task;
use super::lanes::{Simd, lane_ops};

/// The token of the NEON level: it exists only where detection found the instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Neon(());

impl Neon {
    pub(super) fn detect() -> Option<Neon> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Neon(()))
    }
}

/// Runs the task compiled for this level.
pub(super) fn run<T: Task>(simd: Neon, task: T) -> T::Output {
    #[target_feature(enable = "neon")]
    fn inside<T: Task>(simd: Neon, task: T) -> T::Output {
        task.run(simd)
    }
    // SAFETY: a `Neon` exists only where `detect` found these instructions.
    unsafe { inside(simd, task) }
}

type F = float32x4x4_t;
type I = int32x4x4_t;
type M = uint32x4x4_t;

/// One instruction for each of the four registers.
macro_rules! quarters {
    ($kind:ident: $op:ident($($arg:expr),*)) => { $kind($op($($arg.0),*), $op($($arg.1),*), $op($($arg.2),*), $op($($arg.3),*)) };
}

impl Simd for Neon {
    type F32 = F;
    type I32 = I;
    /// All ones where true.
    type Mask = M;

    const REGISTERS: usize = 8;

    lane_ops! { "neon";
        fn splat(value: f32) -> F { let four = vdupq_n_f32(value); float32x4x4_t(four, four, four, four) }
        fn load(from: &[f32; 16]) -> F {
            // SAFETY: the reference is valid for 64 bytes, and this load needs no more than the alignment of a float.
            unsafe { vld1q_f32_x4(from.as_ptr()) }
        }
        fn store(a: F, to: &mut [f32; 16]) -> () {
            // SAFETY: the reference is valid for 64 bytes, and this store needs no more than the alignment of a float.
            unsafe { vst1q_f32_x4(to.as_mut_ptr(), a) }
        }
        fn add(a: F, b: F) -> F { quarters!(float32x4x4_t: vaddq_f32(a, b)) }
        fn sub(a: F, b: F) -> F { quarters!(float32x4x4_t: vsubq_f32(a, b)) }
        fn mul(a: F, b: F) -> F { quarters!(float32x4x4_t: vmulq_f32(a, b)) }
        fn div(a: F, b: F) -> F { quarters!(float32x4x4_t: vdivq_f32(a, b)) }
        fn fma(a: F, b: F, c: F) -> F { quarters!(float32x4x4_t: vfmaq_f32(c, a, b)) }
        fn sqrt(a: F) -> F { quarters!(float32x4x4_t: vsqrtq_f32(a)) }
        fn min(a: F, b: F) -> F { let less = quarters!(uint32x4x4_t: vcltq_f32(a, b)); quarters!(float32x4x4_t: vbslq_f32(less, a, b)) }
        fn max(a: F, b: F) -> F { let more = quarters!(uint32x4x4_t: vcgtq_f32(a, b)); quarters!(float32x4x4_t: vbslq_f32(more, a, b)) }
        fn lt(a: F, b: F) -> M { quarters!(uint32x4x4_t: vcltq_f32(a, b)) }
        fn le(a: F, b: F) -> M { quarters!(uint32x4x4_t: vcleq_f32(a, b)) }
        fn eq(a: F, b: F) -> M { quarters!(uint32x4x4_t: vceqq_f32(a, b)) }
        fn select(mask: M, yes: F, no: F) -> F { quarters!(float32x4x4_t: vbslq_f32(mask, yes, no)) }
        fn reduce_add(a: F) -> f32 {
            let four = vaddq_f32(vaddq_f32(a.0, a.2), vaddq_f32(a.1, a.3));
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
        fn reduce_min(a: F) -> f32 { vminvq_f32(vminq_f32(vminq_f32(a.0, a.1), vminq_f32(a.2, a.3))) }
        fn reduce_max(a: F) -> f32 { vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.0, a.1), vmaxq_f32(a.2, a.3))) }
        fn load_quarters(from: &[f32; 4]) -> F {
            // SAFETY: the reference is valid for 16 bytes, and this load needs no more than the alignment of a float.
            let four = unsafe { vld1q_f32(from.as_ptr()) };
            float32x4x4_t(four, four, four, four)
        }
        fn pick(a: F, index: I) -> F { quarters!(float32x4x4_t: pick(a, index)) }
        fn transpose(rows: [F; 16]) -> [F; 16] { transpose(rows) }

        fn to_bits(a: F) -> I { quarters!(int32x4x4_t: vreinterpretq_s32_f32(a)) }
        fn with_bits(a: I) -> F { quarters!(float32x4x4_t: vreinterpretq_f32_s32(a)) }
        fn truncate(a: F) -> I { quarters!(int32x4x4_t: truncate(a)) }
        fn convert(a: I) -> F { quarters!(float32x4x4_t: vcvtq_f32_s32(a)) }

        fn isplat(value: i32) -> I { let four = vdupq_n_s32(value); int32x4x4_t(four, four, four, four) }
        fn iadd(a: I, b: I) -> I { quarters!(int32x4x4_t: vaddq_s32(a, b)) }
        fn isub(a: I, b: I) -> I { quarters!(int32x4x4_t: vsubq_s32(a, b)) }
        fn imin(a: I, b: I) -> I { quarters!(int32x4x4_t: vminq_s32(a, b)) }
        fn imax(a: I, b: I) -> I { quarters!(int32x4x4_t: vmaxq_s32(a, b)) }
        fn iand(a: I, b: I) -> I { quarters!(int32x4x4_t: vandq_s32(a, b)) }
        fn ior(a: I, b: I) -> I { quarters!(int32x4x4_t: vorrq_s32(a, b)) }
        fn ixor(a: I, b: I) -> I { quarters!(int32x4x4_t: veorq_s32(a, b)) }
        fn itest(a: I, b: I) -> M { quarters!(uint32x4x4_t: vtstq_s32(a, b)) }

        fn widen_u8(from: &[u8; 16]) -> I {
            let bytes = load_128(from);
            let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
            widen([low, high])
        }
        fn widen_i8(from: &[u8; 16]) -> I {
            let bytes = vreinterpretq_s8_u8(load_128(from));
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            int32x4x4_t(vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high))
        }
        fn widen_u16(from: &[u8; 32]) -> I { widen(load_256(from)) }
        fn load_bytes(low: &[u8; 32], high: &[u8; 32]) -> I {
            let ([a, b], [c, d]) = (load_256(low), load_256(high));
            int32x4x4_t(vreinterpretq_s32_u16(a), vreinterpretq_s32_u16(b), vreinterpretq_s32_u16(c), vreinterpretq_s32_u16(d))
        }
        fn narrow_u8(a: I) -> [u8; 16] {
            let [low, high] = narrow(a);
            let mut to = [0; 16];
            // SAFETY: `to` is 16 bytes, and bytes need no alignment.
            unsafe { vst1q_u8(to.as_mut_ptr(), vmovn_high_u16(vmovn_u16(low), high)) };
            to
        }
        fn narrow_u16(a: I) -> [u8; 32] { store_256(narrow(a)) }
        fn widen_f16(from: &[u8; 32]) -> F {
            let [low, high] = load_256(from);
            let [low, high] = [vreinterpretq_f16_u16(low), vreinterpretq_f16_u16(high)];
            float32x4x4_t(
                vcvt_f32_f16(vget_low_f16(low)),
                vcvt_high_f32_f16(low),
                vcvt_f32_f16(vget_low_f16(high)),
                vcvt_high_f32_f16(high),
            )
        }
        fn narrow_f16(a: F) -> [u8; 32] {
            let (low, high) = (vcvt_high_f16_f32(vcvt_f16_f32(a.0), a.1), vcvt_high_f16_f32(vcvt_f16_f32(a.2), a.3));
            store_256([vreinterpretq_u16_f16(low), vreinterpretq_u16_f16(high)])
        }
        fn lookup16(table: F, index: I) -> F { lookup16(table, index) }
        fn lookup_lower(table: F, index: I) -> F { lookup8([table.0, table.1], index) }
        fn lookup_upper(table: F, index: I) -> F { lookup8([table.2, table.3], index) }
        fn lookup32(table: [F; 2], index: I) -> F {
            let (low, high) = (lookup16(table[0], index), lookup16(table[1], index));
            let sixteen = vdupq_n_s32(16);
            let sixteen = int32x4x4_t(sixteen, sixteen, sixteen, sixteen);
            let upper = quarters!(uint32x4x4_t: vtstq_s32(index, sixteen));
            quarters!(float32x4x4_t: vbslq_f32(upper, high, low))
        }
        fn spread(bits: u16, value: i32) -> I {
            let (bits, value) = (vdupq_n_s32(i32::from(bits)), vdupq_n_s32(value));
            let own = own_bits();
            let set = int32x4x4_t(bits, bits, bits, bits);
            let set = quarters!(uint32x4x4_t: vtstq_s32(set, own));
            let set = quarters!(int32x4x4_t: vreinterpretq_s32_u32(set));
            int32x4x4_t(vandq_s32(set.0, value), vandq_s32(set.1, value), vandq_s32(set.2, value), vandq_s32(set.3, value))
        }
        fn half(value: f32) -> [u8; 2] {
            vget_lane_u16::<0>(vreinterpret_u16_f16(vcvt_f16_f32(vdupq_n_f32(value)))).to_le_bytes()
        }
        fn unhalf(half: [u8; 2]) -> f32 {
            vgetq_lane_f32::<0>(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(u16::from_le_bytes(half)))))
        }

        fn mask_and(a: M, b: M) -> M { quarters!(uint32x4x4_t: vandq_u32(a, b)) }
        fn mask_or(a: M, b: M) -> M { quarters!(uint32x4x4_t: vorrq_u32(a, b)) }
        fn mask_not(a: M) -> M { quarters!(uint32x4x4_t: vmvnq_u32(a)) }
        fn mask_bits(a: M) -> u16 {
            let own = own_bits();
            let own = quarters!(uint32x4x4_t: vreinterpretq_u32_s32(own));
            let set = quarters!(uint32x4x4_t: vandq_u32(a, own));
            vaddvq_u32(vorrq_u32(vorrq_u32(set.0, set.1), vorrq_u32(set.2, set.3))) as u16
        }
    }

    #[inline(always)]
    fn ishl<const BITS: u32>(self, a: I) -> I {
        // SAFETY: `self` exists only where detection found NEON.
        unsafe {
            let by = vdupq_n_s32(BITS as i32);
            int32x4x4_t(vshlq_s32(a.0, by), vshlq_s32(a.1, by), vshlq_s32(a.2, by), vshlq_s32(a.3, by))
        }
    }
    #[inline(always)]
    fn ishr<const BITS: u32>(self, a: I) -> I {
        // A shift by a negative number goes down; that of unsigned lanes brings zeros in.
        // SAFETY: `self` exists only where detection found NEON.
        unsafe {
            let by = vdupq_n_s32(-(BITS as i32));
            let a = quarters!(uint32x4x4_t: vreinterpretq_u32_s32(a));
            let a = uint32x4x4_t(vshlq_u32(a.0, by), vshlq_u32(a.1, by), vshlq_u32(a.2, by), vshlq_u32(a.3, by));
            quarters!(int32x4x4_t: vreinterpretq_s32_u32(a))
        }
    }
}

/// The instruction saturates, and gives 0 for NaN.
#[inline]
#[target_feature(enable = "neon")]
fn truncate(a: float32x4_t) -> int32x4_t {
    let fits = vcaltq_f32(a, vdupq_n_f32(2_147_483_648.0));
    vbslq_s32(fits, vcvtq_s32_f32(a), vdupq_n_s32(i32::MIN))
}

/// Tables are looked up by the byte: the four bytes of entry `i` are those from `4 * i`.
#[inline]
#[target_feature(enable = "neon")]
fn bytes_of_entries(index: int32x4_t) -> uint8x16_t {
    vreinterpretq_u8_s32(vaddq_s32(vmulq_n_s32(index, 0x0404_0404), vdupq_n_s32(0x0302_0100)))
}

#[inline]
#[target_feature(enable = "neon")]
fn lookup16(table: F, index: I) -> F {
    let table = quarters!(uint8x16x4_t: vreinterpretq_u8_f32(table));
    let lookup = |index| vreinterpretq_f32_u8(vqtbl4q_u8(table, bytes_of_entries(vandq_s32(index, vdupq_n_s32(15)))));
    float32x4x4_t(lookup(index.0), lookup(index.1), lookup(index.2), lookup(index.3))
}

/// Lane `i` is `table[index[i] % 8]`.
#[inline]
#[target_feature(enable = "neon")]
fn lookup8(table: [float32x4_t; 2], index: I) -> F {
    let table = uint8x16x2_t(vreinterpretq_u8_f32(table[0]), vreinterpretq_u8_f32(table[1]));
    let lookup = |index| vreinterpretq_f32_u8(vqtbl2q_u8(table, bytes_of_entries(vandq_s32(index, vdupq_n_s32(7)))));
    float32x4x4_t(lookup(index.0), lookup(index.1), lookup(index.2), lookup(index.3))
}

#[inline]
#[target_feature(enable = "neon")]
fn pick(four: float32x4_t, index: int32x4_t) -> float32x4_t {
    let bytes = bytes_of_entries(vandq_s32(index, vdupq_n_s32(3)));
    vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(four), bytes))
}

/// Bit `i` in lane `i`.
#[inline]
#[target_feature(enable = "neon")]
fn own_bits() -> I {
    const OWN: [i32; 16] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768];
    // SAFETY: sixteen integers are read where sixteen are.
    unsafe { vld1q_s32_x4(OWN.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn load_128(from: &[u8; 16]) -> uint8x16_t {
    // SAFETY: the reference is valid for 16 bytes, and bytes need no alignment.
    unsafe { vld1q_u8(from.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn load_256(from: &[u8; 32]) -> [uint16x8_t; 2] {
    // SAFETY: the reference is valid for 32 bytes, and bytes need no alignment.
    let bytes = unsafe { vld1q_u8_x2(from.as_ptr()) };
    [vreinterpretq_u16_u8(bytes.0), vreinterpretq_u16_u8(bytes.1)]
}

#[inline]
#[target_feature(enable = "neon")]
fn store_256(a: [uint16x8_t; 2]) -> [u8; 32] {
    let mut to = [0; 32];
    // SAFETY: `to` is 32 bytes, and bytes need no alignment.
    unsafe { vst1q_u8_x2(to.as_mut_ptr(), uint8x16x2_t(vreinterpretq_u8_u16(a[0]), vreinterpretq_u8_u16(a[1]))) };
    to
}

#[inline]
#[target_feature(enable = "neon")]
fn widen([low, high]: [uint16x8_t; 2]) -> I {
    let wide = uint32x4x4_t(vmovl_u16(vget_low_u16(low)), vmovl_high_u16(low), vmovl_u16(vget_low_u16(high)), vmovl_high_u16(high));
    quarters!(int32x4x4_t: vreinterpretq_s32_u32(wide))
}

/// The low two bytes of every lane.
#[inline]
#[target_feature(enable = "neon")]
fn narrow(a: I) -> [uint16x8_t; 2] {
    let a = quarters!(uint32x4x4_t: vreinterpretq_u32_s32(a));
    [vmovn_high_u32(vmovn_u32(a.0), a.1), vmovn_high_u32(vmovn_u32(a.2), a.3)]
}

/// Row `i` of the result holds lane `i` of every row: sixteen 4x4 transpositions.
#[inline]
#[target_feature(enable = "neon")]
fn transpose(rows: [F; 16]) -> [F; 16] {
    let quarters = |r: usize| -> [float32x4_t; 4] {
        let row = rows[r];
        [row.0, row.1, row.2, row.3]
    };
    let rows: [[float32x4_t; 4]; 16] = from_fn(quarters);
    let mut out = rows;
    for down in 0..4 {
        for right in 0..4 {
            let tile = transpose_4x4([0, 1, 2, 3].map(|i| rows[4 * down + i][right]));
            for i in 0..4 {
                out[4 * right + i][down] = tile[i];
            }
        }
    }
    out.map(|[a, b, c, d]| float32x4x4_t(a, b, c, d))
}

#[inline]
#[target_feature(enable = "neon")]
fn transpose_4x4([r0, r1, r2, r3]: [float32x4_t; 4]) -> [float32x4_t; 4] {
    // Columns 0 and 2, and 1 and 3, of two rows each; then the halves of these.
    let (even01, odd01) = (vreinterpretq_f64_f32(vtrn1q_f32(r0, r1)), vreinterpretq_f64_f32(vtrn2q_f32(r0, r1)));
    let (even23, odd23) = (vreinterpretq_f64_f32(vtrn1q_f32(r2, r3)), vreinterpretq_f64_f32(vtrn2q_f32(r2, r3)));
    [vtrn1q_f64(even01, even23), vtrn1q_f64(odd01, odd23), vtrn2q_f64(even01, even23), vtrn2q_f64(odd01, odd23)]
        .map(|column| vreinterpretq_f32_f64(column))
}
