//! AVX2 with FMA and F16C (Haswell, Zen and later): sixteen lanes are two registers, lanes 0-7 in the first.

use std::arch::x86_64::*;

use super::Task;
use super::lanes::{Simd, lane_ops};

/// The token of the AVX2 level: it exists only where detection found the instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Avx2> {
        let found = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt")
            && is_x86_feature_detected!("popcnt");
        found.then_some(Avx2(()))
    }
}

/// Runs the task compiled for this level.
pub(super) fn run<T: Task>(simd: Avx2, task: T) -> T::Output {
    #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
    fn inside<T: Task>(simd: Avx2, task: T) -> T::Output {
        task.run(simd)
    }
    // SAFETY: an `Avx2` exists only where `detect` found these instructions.
    unsafe { inside(simd, task) }
}

type F = [__m256; 2];
type I = [__m256i; 2];

impl Simd for Avx2 {
    type F32 = F;
    type I32 = I;
    /// All ones where true.
    type Mask = F;

    const REGISTERS: usize = 8;

    lane_ops! { "avx2,fma,f16c";
        fn splat(value: f32) -> F { [_mm256_set1_ps(value); 2] }
        fn load(from: &[f32; 16]) -> F {
            // SAFETY: the reference is valid for 64 bytes, and these loads need no alignment.
            unsafe { [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))] }
        }
        fn store(a: F, to: &mut [f32; 16]) -> () {
            // SAFETY: the reference is valid for 64 bytes, and these stores need no alignment.
            unsafe {
                _mm256_storeu_ps(to.as_mut_ptr(), a[0]);
                _mm256_storeu_ps(to.as_mut_ptr().add(8), a[1]);
            }
        }
        fn prefetch(bytes: &[u8]) -> () {
            for line in bytes.chunks(64) {
                _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast());
            }
        }
        fn add(a: F, b: F) -> F { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
        fn sub(a: F, b: F) -> F { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
        fn mul(a: F, b: F) -> F { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
        fn div(a: F, b: F) -> F { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
        fn fma(a: F, b: F, c: F) -> F { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
        fn sqrt(a: F) -> F { [_mm256_sqrt_ps(a[0]), _mm256_sqrt_ps(a[1])] }
        fn min(a: F, b: F) -> F { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
        fn max(a: F, b: F) -> F { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
        fn lt(a: F, b: F) -> F { [_mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0]), _mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1])] }
        fn le(a: F, b: F) -> F { [_mm256_cmp_ps::<_CMP_LE_OQ>(a[0], b[0]), _mm256_cmp_ps::<_CMP_LE_OQ>(a[1], b[1])] }
        fn eq(a: F, b: F) -> F { [_mm256_cmp_ps::<_CMP_EQ_OQ>(a[0], b[0]), _mm256_cmp_ps::<_CMP_EQ_OQ>(a[1], b[1])] }
        fn select(mask: F, yes: F, no: F) -> F {
            [_mm256_blendv_ps(no[0], yes[0], mask[0]), _mm256_blendv_ps(no[1], yes[1], mask[1])]
        }
        fn reduce_add(a: F) -> f32 { add_eight(_mm256_add_ps(a[0], a[1])) }
        fn reduce_min(a: F) -> f32 {
            let eight = _mm256_min_ps(a[0], a[1]);
            let four = _mm_min_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_min_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_min_ss(two, _mm_movehdup_ps(two)))
        }
        fn reduce_max(a: F) -> f32 {
            let eight = _mm256_max_ps(a[0], a[1]);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
        fn load_quarters(from: &[f32; 4]) -> F {
            // SAFETY: the reference is valid for 16 bytes, and this load needs no alignment.
            let four = unsafe { _mm_loadu_ps(from.as_ptr()) };
            [_mm256_set_m128(four, four); 2]
        }
        fn pick(a: F, index: I) -> F { [_mm256_permutevar_ps(a[0], index[0]), _mm256_permutevar_ps(a[1], index[1])] }
        fn transpose(rows: [F; 16]) -> [F; 16] { transpose(rows) }

        fn to_bits(a: F) -> I { [_mm256_castps_si256(a[0]), _mm256_castps_si256(a[1])] }
        fn with_bits(a: I) -> F { [_mm256_castsi256_ps(a[0]), _mm256_castsi256_ps(a[1])] }
        fn truncate(a: F) -> I { [_mm256_cvttps_epi32(a[0]), _mm256_cvttps_epi32(a[1])] }
        fn convert(a: I) -> F { [_mm256_cvtepi32_ps(a[0]), _mm256_cvtepi32_ps(a[1])] }

        fn isplat(value: i32) -> I { [_mm256_set1_epi32(value); 2] }
        fn iadd(a: I, b: I) -> I { [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])] }
        fn isub(a: I, b: I) -> I { [_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])] }
        fn imin(a: I, b: I) -> I { [_mm256_min_epi32(a[0], b[0]), _mm256_min_epi32(a[1], b[1])] }
        fn imax(a: I, b: I) -> I { [_mm256_max_epi32(a[0], b[0]), _mm256_max_epi32(a[1], b[1])] }
        fn iand(a: I, b: I) -> I { [_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])] }
        fn ior(a: I, b: I) -> I { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
        fn ixor(a: I, b: I) -> I { [_mm256_xor_si256(a[0], b[0]), _mm256_xor_si256(a[1], b[1])] }
        fn itest(a: I, b: I) -> F {
            let zero = _mm256_setzero_si256();
            let clear = [_mm256_cmpeq_epi32(_mm256_and_si256(a[0], b[0]), zero), _mm256_cmpeq_epi32(_mm256_and_si256(a[1], b[1]), zero)];
            not([_mm256_castsi256_ps(clear[0]), _mm256_castsi256_ps(clear[1])])
        }

        fn widen_u8(from: &[u8; 16]) -> I {
            let bytes = load_128(from);
            [_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes))]
        }
        fn widen_i8(from: &[u8; 16]) -> I {
            let bytes = load_128(from);
            [_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes))]
        }
        fn widen_u16(from: &[u8; 32]) -> I {
            let [low, high] = halves(from);
            [_mm256_cvtepu16_epi32(load_128(low)), _mm256_cvtepu16_epi32(load_128(high))]
        }
        fn load_bytes(low: &[u8; 32], high: &[u8; 32]) -> I { [load_256(low), load_256(high)] }
        fn narrow_u8(a: I) -> [u8; 16] {
            let low_byte = _mm256_set1_epi32(0xff);
            let words = pack_u16([_mm256_and_si256(a[0], low_byte), _mm256_and_si256(a[1], low_byte)]);
            let bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            let mut to = [0; 16];
            // SAFETY: `to` is 16 bytes, and this store needs no alignment.
            unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), bytes) };
            to
        }
        fn narrow_u16(a: I) -> [u8; 32] {
            let low_bytes = _mm256_set1_epi32(0xffff);
            let words = pack_u16([_mm256_and_si256(a[0], low_bytes), _mm256_and_si256(a[1], low_bytes)]);
            let mut to = [0; 32];
            // SAFETY: `to` is 32 bytes, and this store needs no alignment.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), words) };
            to
        }
        fn widen_f16(from: &[u8; 32]) -> F {
            let [low, high] = halves(from);
            [_mm256_cvtph_ps(load_128(low)), _mm256_cvtph_ps(load_128(high))]
        }
        fn narrow_f16(a: F) -> [u8; 32] {
            let mut to = [0; 32];
            // SAFETY: `to` is 32 bytes, and these stores need no alignment.
            unsafe {
                _mm_storeu_si128(to.as_mut_ptr().cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a[0]));
                _mm_storeu_si128(to.as_mut_ptr().add(16).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a[1]));
            }
            to
        }
        fn lookup16(table: F, index: I) -> F { lookup16(table, index) }
        fn lookup_lower(table: F, index: I) -> F { lookup8(table[0], index) }
        fn lookup_upper(table: F, index: I) -> F { lookup8(table[1], index) }
        fn lookup32(table: [F; 2], index: I) -> F {
            let (low, high) = (lookup16(table[0], index), lookup16(table[1], index));
            let upper = [_mm256_slli_epi32::<27>(index[0]), _mm256_slli_epi32::<27>(index[1])];
            blend_by_sign(low, high, upper)
        }
        fn spread(bits: u16, value: i32) -> I {
            let (bits, value) = (_mm256_set1_epi32(i32::from(bits)), _mm256_set1_epi32(value));
            let own = [_mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), _mm256_setr_epi32(256, 512, 1024, 2048, 4096, 8192, 16384, 32768)];
            let set = [_mm256_cmpeq_epi32(_mm256_and_si256(bits, own[0]), own[0]), _mm256_cmpeq_epi32(_mm256_and_si256(bits, own[1]), own[1])];
            [_mm256_and_si256(set[0], value), _mm256_and_si256(set[1], value)]
        }
        fn half(value: f32) -> [u8; 2] {
            let half = _mm_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm_set_ss(value));
            (_mm_cvtsi128_si32(half) as u16).to_le_bytes()
        }
        // Widened after it is spread: a half that is loaded alone is merged into a register, whose last use it then waits for.
        fn unhalf(half: [u8; 2]) -> f32 { _mm_cvtss_f32(_mm_cvtph_ps(_mm_set1_epi16(i16::from_le_bytes(half)))) }
        fn splat_half(half: [u8; 2]) -> F { [_mm256_cvtph_ps(_mm_set1_epi16(i16::from_le_bytes(half))); 2] }

        fn mask_and(a: F, b: F) -> F { [_mm256_and_ps(a[0], b[0]), _mm256_and_ps(a[1], b[1])] }
        fn mask_or(a: F, b: F) -> F { [_mm256_or_ps(a[0], b[0]), _mm256_or_ps(a[1], b[1])] }
        fn mask_not(a: F) -> F { not(a) }
        fn mask_bits(a: F) -> u16 { (_mm256_movemask_ps(a[0]) | _mm256_movemask_ps(a[1]) << 8) as u16 }
    }

    #[inline(always)]
    fn ishl<const BITS: u32>(self, a: I) -> I {
        // SAFETY: `self` exists only where detection found AVX2.
        unsafe { [_mm256_sll_epi32(a[0], _mm_cvtsi32_si128(BITS as i32)), _mm256_sll_epi32(a[1], _mm_cvtsi32_si128(BITS as i32))] }
    }
    #[inline(always)]
    fn ishr<const BITS: u32>(self, a: I) -> I {
        // SAFETY: `self` exists only where detection found AVX2.
        unsafe { [_mm256_srl_epi32(a[0], _mm_cvtsi32_si128(BITS as i32)), _mm256_srl_epi32(a[1], _mm_cvtsi32_si128(BITS as i32))] }
    }
}

/// The sum of eight lanes, halves first.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn add_eight(eight: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn not(mask: F) -> F {
    let ones = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
    [_mm256_xor_ps(mask[0], ones), _mm256_xor_ps(mask[1], ones)]
}

/// `yes` where the sign bit of `mask` is set, `no` elsewhere.
#[inline]
#[target_feature(enable = "avx2")]
fn blend_by_sign(no: F, yes: F, mask: I) -> F {
    let mask = [_mm256_castsi256_ps(mask[0]), _mm256_castsi256_ps(mask[1])];
    [_mm256_blendv_ps(no[0], yes[0], mask[0]), _mm256_blendv_ps(no[1], yes[1], mask[1])]
}

/// Lane `i` is `table[index[i] % 8]`.
#[inline]
#[target_feature(enable = "avx2")]
fn lookup8(table: __m256, index: I) -> F {
    [_mm256_permutevar8x32_ps(table, index[0]), _mm256_permutevar8x32_ps(table, index[1])]
}

/// Three bits of an index are looked up; the fourth picks the half of the table.
#[inline]
#[target_feature(enable = "avx2")]
fn lookup16(table: F, index: I) -> F {
    let (low, high) = (lookup8(table[0], index), lookup8(table[1], index));
    blend_by_sign(low, high, [_mm256_slli_epi32::<28>(index[0]), _mm256_slli_epi32::<28>(index[1])])
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_128(from: &[u8; 16]) -> __m128i {
    // SAFETY: the reference is valid for 16 bytes, and this load needs no alignment.
    unsafe { _mm_loadu_si128(from.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_256(from: &[u8; 32]) -> __m256i {
    // SAFETY: the reference is valid for 32 bytes, and this load needs no alignment.
    unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
}

#[inline(always)]
fn halves(from: &[u8; 32]) -> [&[u8; 16]; 2] {
    let (halves, _) = from.as_chunks::<16>();
    [&halves[0], &halves[1]]
}

/// Lanes that fit 16 bits, packed in order.
#[inline]
#[target_feature(enable = "avx2")]
fn pack_u16(a: I) -> __m256i {
    // The pack works within 128-bit halves, so the middle quarters change places.
    _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(a[0], a[1]))
}

/// Row `i` of the result holds lane `i` of every row: four 8x8 transpositions.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose(rows: [F; 16]) -> [F; 16] {
    let mut out = rows;
    for down in 0..2 {
        for right in 0..2 {
            let mut tile = [_mm256_setzero_ps(); 8];
            for i in 0..8 {
                tile[i] = rows[8 * down + i][right];
            }
            let tile = transpose_8x8(tile);
            for i in 0..8 {
                out[8 * right + i][down] = tile[i];
            }
        }
    }
    out
}

#[inline]
#[target_feature(enable = "avx2")]
fn transpose_8x8(rows: [__m256; 8]) -> [__m256; 8] {
    // half h of columns[group][c] holds column 4h + c of rows 4*group .. 4*group + 4
    let mut columns = [[_mm256_setzero_ps(); 4]; 2];
    for group in 0..2 {
        let [r0, r1, r2, r3] = [rows[4 * group], rows[4 * group + 1], rows[4 * group + 2], rows[4 * group + 3]];
        let (low01, high01) = (_mm256_castps_pd(_mm256_unpacklo_ps(r0, r1)), _mm256_castps_pd(_mm256_unpackhi_ps(r0, r1)));
        let (low23, high23) = (_mm256_castps_pd(_mm256_unpacklo_ps(r2, r3)), _mm256_castps_pd(_mm256_unpackhi_ps(r2, r3)));
        columns[group] = [
            _mm256_castpd_ps(_mm256_unpacklo_pd(low01, low23)),
            _mm256_castpd_ps(_mm256_unpackhi_pd(low01, low23)),
            _mm256_castpd_ps(_mm256_unpacklo_pd(high01, high23)),
            _mm256_castpd_ps(_mm256_unpackhi_pd(high01, high23)),
        ];
    }
    let mut out = rows;
    for c in 0..4 {
        out[c] = _mm256_permute2f128_ps::<0x20>(columns[0][c], columns[1][c]);
        out[4 + c] = _mm256_permute2f128_ps::<0x31>(columns[0][c], columns[1][c]);
    }
    out
}
