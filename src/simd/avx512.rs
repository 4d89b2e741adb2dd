//! AVX-512 (F, BW, DQ, VL: Skylake-X, Zen 4 and later): sixteen lanes are one register.

use std::arch::x86_64::*;

use super::Task;
use super::avx2::add_eight;
use super::lanes::{Simd, lane_ops};

/// The token of the AVX-512 level: it exists only where detection found the instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Avx512(());

impl Avx512 {
    pub(super) fn detect() -> Option<Avx512> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && super::avx2::Avx2::detect().is_some();
        found.then_some(Avx512(()))
    }
}

/// Runs the task compiled for this level.
pub(super) fn run<T: Task>(simd: Avx512, task: T) -> T::Output {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
    fn inside<T: Task>(simd: Avx512, task: T) -> T::Output {
        task.run(simd)
    }
    // SAFETY: an `Avx512` exists only where `detect` found these instructions.
    unsafe { inside(simd, task) }
}

const _: () = assert!(size_of::<[f32; 16]>() == size_of::<__m512>() && size_of::<[u8; 32]>() == size_of::<__m256i>());

impl Simd for Avx512 {
    type F32 = __m512;
    type I32 = __m512i;
    type Mask = __mmask16;

    const REGISTERS: usize = 32;

    lane_ops! { "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c";
        fn splat(value: f32) -> __m512 { _mm512_set1_ps(value) }
        fn load(from: &[f32; 16]) -> __m512 {
            // SAFETY: the reference is valid for 64 bytes, and this load needs no alignment.
            unsafe { _mm512_loadu_ps(from.as_ptr()) }
        }
        fn store(a: __m512, to: &mut [f32; 16]) -> () {
            // SAFETY: the reference is valid for 64 bytes, and this store needs no alignment.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), a) }
        }
        fn prefetch(bytes: &[u8]) -> () {
            for line in bytes.chunks(64) {
                _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast());
            }
        }
        fn add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        fn sub(a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
        fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fn div(a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
        fn fma(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        fn sqrt(a: __m512) -> __m512 { _mm512_sqrt_ps(a) }
        fn min(a: __m512, b: __m512) -> __m512 { _mm512_min_ps(a, b) }
        fn max(a: __m512, b: __m512) -> __m512 { _mm512_max_ps(a, b) }
        fn lt(a: __m512, b: __m512) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) }
        fn le(a: __m512, b: __m512) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_LE_OQ>(a, b) }
        fn eq(a: __m512, b: __m512) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b) }
        fn select(mask: __mmask16, yes: __m512, no: __m512) -> __m512 { _mm512_mask_blend_ps(mask, no, yes) }
        fn reduce_add(a: __m512) -> f32 {
            add_eight(_mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a)))
        }
        fn reduce_min(a: __m512) -> f32 { _mm512_reduce_min_ps(a) }
        fn reduce_max(a: __m512) -> f32 { _mm512_reduce_max_ps(a) }
        fn load_quarters(from: &[f32; 4]) -> __m512 {
            // SAFETY: the reference is valid for 16 bytes, and this load needs no alignment.
            _mm512_broadcast_f32x4(unsafe { _mm_loadu_ps(from.as_ptr()) })
        }
        fn pick(a: __m512, index: __m512i) -> __m512 { _mm512_permutevar_ps(a, index) }
        fn transpose(rows: [__m512; 16]) -> [__m512; 16] { transpose(rows) }

        fn to_bits(a: __m512) -> __m512i { _mm512_castps_si512(a) }
        fn with_bits(a: __m512i) -> __m512 { _mm512_castsi512_ps(a) }
        fn truncate(a: __m512) -> __m512i { _mm512_cvttps_epi32(a) }
        fn convert(a: __m512i) -> __m512 { _mm512_cvtepi32_ps(a) }

        fn isplat(value: i32) -> __m512i { _mm512_set1_epi32(value) }
        fn iadd(a: __m512i, b: __m512i) -> __m512i { _mm512_add_epi32(a, b) }
        fn isub(a: __m512i, b: __m512i) -> __m512i { _mm512_sub_epi32(a, b) }
        fn imin(a: __m512i, b: __m512i) -> __m512i { _mm512_min_epi32(a, b) }
        fn imax(a: __m512i, b: __m512i) -> __m512i { _mm512_max_epi32(a, b) }
        fn iand(a: __m512i, b: __m512i) -> __m512i { _mm512_and_si512(a, b) }
        fn ior(a: __m512i, b: __m512i) -> __m512i { _mm512_or_si512(a, b) }
        fn ixor(a: __m512i, b: __m512i) -> __m512i { _mm512_xor_si512(a, b) }
        fn itest(a: __m512i, b: __m512i) -> __mmask16 { _mm512_test_epi32_mask(a, b) }

        fn widen_u8(from: &[u8; 16]) -> __m512i {
            // SAFETY: the reference is valid for 16 bytes, and this load needs no alignment.
            unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast())) }
        }
        fn widen_i8(from: &[u8; 16]) -> __m512i {
            // SAFETY: the reference is valid for 16 bytes, and this load needs no alignment.
            unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast())) }
        }
        fn widen_u16(from: &[u8; 32]) -> __m512i {
            // SAFETY: the reference is valid for 32 bytes, and this load needs no alignment.
            unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast())) }
        }
        fn load_bytes(low: &[u8; 32], high: &[u8; 32]) -> __m512i {
            // SAFETY: the references are valid for 32 bytes, and these loads need no alignment.
            let (low, high) = unsafe { (_mm256_loadu_si256(low.as_ptr().cast()), _mm256_loadu_si256(high.as_ptr().cast())) };
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        }
        fn narrow_u8(a: __m512i) -> [u8; 16] {
            let mut to = [0; 16];
            // SAFETY: `to` is 16 bytes, and this store needs no alignment.
            unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(a)) };
            to
        }
        fn narrow_u16(a: __m512i) -> [u8; 32] { store_256(_mm512_cvtepi32_epi16(a)) }
        fn widen_f16(from: &[u8; 32]) -> __m512 {
            // SAFETY: the reference is valid for 32 bytes, and this load needs no alignment.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
        }
        fn narrow_f16(a: __m512) -> [u8; 32] { store_256(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a)) }
        fn lookup16(table: __m512, index: __m512i) -> __m512 { _mm512_permutexvar_ps(index, table) }
        fn lookup_lower(table: __m512, index: __m512i) -> __m512 { _mm512_permutexvar_ps(index, table) }
        fn lookup_upper(table: __m512, index: __m512i) -> __m512 { _mm512_permutexvar_ps(index, table) }
        fn lookup32(table: [__m512; 2], index: __m512i) -> __m512 { _mm512_permutex2var_ps(table[0], index, table[1]) }
        fn spread(bits: u16, value: i32) -> __m512i { _mm512_maskz_set1_epi32(bits, value) }
        fn half(value: f32) -> [u8; 2] {
            let half = _mm_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm_set_ss(value));
            (_mm_cvtsi128_si32(half) as u16).to_le_bytes()
        }
        // Widened after it is spread: a half that is loaded alone is merged into a register, whose last use it then waits for.
        fn unhalf(half: [u8; 2]) -> f32 { _mm_cvtss_f32(_mm_cvtph_ps(_mm_set1_epi16(i16::from_le_bytes(half)))) }
        fn splat_half(half: [u8; 2]) -> __m512 { _mm512_cvtph_ps(_mm256_set1_epi16(i16::from_le_bytes(half))) }

        fn mask_and(a: __mmask16, b: __mmask16) -> __mmask16 { a & b }
        fn mask_or(a: __mmask16, b: __mmask16) -> __mmask16 { a | b }
        fn mask_not(a: __mmask16) -> __mmask16 { !a }
        fn mask_bits(a: __mmask16) -> u16 { a }
    }

    #[inline(always)]
    fn ishl<const BITS: u32>(self, a: __m512i) -> __m512i {
        // SAFETY: `self` exists only where detection found AVX-512.
        unsafe { _mm512_slli_epi32::<BITS>(a) }
    }
    #[inline(always)]
    fn ishr<const BITS: u32>(self, a: __m512i) -> __m512i {
        // SAFETY: `self` exists only where detection found AVX-512.
        unsafe { _mm512_srli_epi32::<BITS>(a) }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_256(a: __m256i) -> [u8; 32] {
    let mut to = [0; 32];
    // SAFETY: `to` is 32 bytes, and this store needs no alignment.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), a) };
    to
}

/// Row `i` of the result holds lane `i` of every row: 4x4 within 128-bit quarters, then the quarters themselves.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(rows: [__m512; 16]) -> [__m512; 16] {
    // quarter q of columns[group][c] holds column 4q + c of rows 4*group .. 4*group + 4
    let mut columns = [[_mm512_setzero_ps(); 4]; 4];
    for group in 0..4 {
        let [r0, r1, r2, r3] = [rows[4 * group], rows[4 * group + 1], rows[4 * group + 2], rows[4 * group + 3]];
        let (low01, high01) = (_mm512_castps_pd(_mm512_unpacklo_ps(r0, r1)), _mm512_castps_pd(_mm512_unpackhi_ps(r0, r1)));
        let (low23, high23) = (_mm512_castps_pd(_mm512_unpacklo_ps(r2, r3)), _mm512_castps_pd(_mm512_unpackhi_ps(r2, r3)));
        columns[group] = [
            _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23)),
            _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23)),
        ];
    }
    let mut out = rows;
    for c in 0..4 {
        let [g0, g1, g2, g3] = [columns[0][c], columns[1][c], columns[2][c], columns[3][c]];
        let (low01, high01) = (_mm512_shuffle_f32x4::<0x44>(g0, g1), _mm512_shuffle_f32x4::<0xee>(g0, g1));
        let (low23, high23) = (_mm512_shuffle_f32x4::<0x44>(g2, g3), _mm512_shuffle_f32x4::<0xee>(g2, g3));
        out[c] = _mm512_shuffle_f32x4::<0x88>(low01, low23);
        out[4 + c] = _mm512_shuffle_f32x4::<0xdd>(low01, low23);
        out[8 + c] = _mm512_shuffle_f32x4::<0x88>(high01, high23);
        out[12 + c] = _mm512_shuffle_f32x4::<0xdd>(high01, high23);
    }
    out
}
