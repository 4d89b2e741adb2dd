//! The level every machine has: lanes are arrays. This is what the other levels are compared with.

use std::array::from_fn;

use half::f16;

use super::lanes::Simd;

/// The token of the level without vector instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scalar;

impl Simd for Scalar {
    type F32 = [f32; 16];
    type I32 = [i32; 16];
    type Mask = [bool; 16];

    const REGISTERS: usize = 4;

    #[inline(always)]
    fn splat(self, value: f32) -> [f32; 16] {
        [value; 16]
    }
    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> [f32; 16] {
        *from
    }
    #[inline(always)]
    fn store(self, a: [f32; 16], to: &mut [f32; 16]) {
        *to = a;
    }
    #[inline(always)]
    fn add(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn fma(self, a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn sqrt(self, a: [f32; 16]) -> [f32; 16] {
        from_fn(|i| a[i].sqrt())
    }
    #[inline(always)]
    fn min(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn max(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn lt(self, a: [f32; 16], b: [f32; 16]) -> [bool; 16] {
        from_fn(|i| a[i] < b[i])
    }
    #[inline(always)]
    fn le(self, a: [f32; 16], b: [f32; 16]) -> [bool; 16] {
        from_fn(|i| a[i] <= b[i])
    }
    #[inline(always)]
    fn eq(self, a: [f32; 16], b: [f32; 16]) -> [bool; 16] {
        from_fn(|i| a[i] == b[i])
    }
    #[inline(always)]
    fn select(self, mask: [bool; 16], yes: [f32; 16], no: [f32; 16]) -> [f32; 16] {
        from_fn(|i| if mask[i] { yes[i] } else { no[i] })
    }
    #[inline(always)]
    fn reduce_add(self, a: [f32; 16]) -> f32 {
        let eight: [f32; 8] = from_fn(|i| a[i] + a[i + 8]);
        let four: [f32; 4] = from_fn(|i| eight[i] + eight[i + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }
    #[inline(always)]
    fn reduce_min(self, a: [f32; 16]) -> f32 {
        a.into_iter().fold(a[0], |min, v| if v < min { v } else { min })
    }
    #[inline(always)]
    fn reduce_max(self, a: [f32; 16]) -> f32 {
        a.into_iter().fold(a[0], |max, v| if v > max { v } else { max })
    }
    #[inline(always)]
    fn load_quarters(self, from: &[f32; 4]) -> [f32; 16] {
        from_fn(|i| from[i % 4])
    }
    #[inline(always)]
    fn pick(self, a: [f32; 16], index: [i32; 16]) -> [f32; 16] {
        from_fn(|i| a[(i & !3) | (index[i] & 3) as usize])
    }
    #[inline(always)]
    fn transpose(self, rows: [[f32; 16]; 16]) -> [[f32; 16]; 16] {
        from_fn(|i| from_fn(|j| rows[j][i]))
    }

    #[inline(always)]
    fn to_bits(self, a: [f32; 16]) -> [i32; 16] {
        a.map(|v| v.to_bits() as i32)
    }
    #[inline(always)]
    fn with_bits(self, a: [i32; 16]) -> [f32; 16] {
        a.map(|v| f32::from_bits(v as u32))
    }
    #[inline(always)]
    fn truncate(self, a: [f32; 16]) -> [i32; 16] {
        a.map(|v| if v.abs() < 2_147_483_648.0 { v as i32 } else { i32::MIN })
    }
    #[inline(always)]
    fn convert(self, a: [i32; 16]) -> [f32; 16] {
        a.map(|v| v as f32)
    }

    #[inline(always)]
    fn isplat(self, value: i32) -> [i32; 16] {
        [value; 16]
    }
    #[inline(always)]
    fn iadd(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn isub(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        from_fn(|i| a[i].wrapping_sub(b[i]))
    }
    #[inline(always)]
    fn imin(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        from_fn(|i| a[i].min(b[i]))
    }
    #[inline(always)]
    fn imax(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        from_fn(|i| a[i].max(b[i]))
    }
    #[inline(always)]
    fn iand(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        from_fn(|i| a[i] & b[i])
    }
    #[inline(always)]
    fn ior(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    fn ixor(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        from_fn(|i| a[i] ^ b[i])
    }
    #[inline(always)]
    fn ishl<const BITS: u32>(self, a: [i32; 16]) -> [i32; 16] {
        a.map(|v| v << BITS)
    }
    #[inline(always)]
    fn ishr<const BITS: u32>(self, a: [i32; 16]) -> [i32; 16] {
        a.map(|v| (v as u32 >> BITS) as i32)
    }
    #[inline(always)]
    fn itest(self, a: [i32; 16], b: [i32; 16]) -> [bool; 16] {
        from_fn(|i| a[i] & b[i] != 0)
    }

    #[inline(always)]
    fn widen_u8(self, from: &[u8; 16]) -> [i32; 16] {
        from.map(i32::from)
    }
    #[inline(always)]
    fn widen_i8(self, from: &[u8; 16]) -> [i32; 16] {
        from.map(|v| i32::from(v as i8))
    }
    #[inline(always)]
    fn widen_u16(self, from: &[u8; 32]) -> [i32; 16] {
        from_fn(|i| i32::from(u16::from_le_bytes([from[2 * i], from[2 * i + 1]])))
    }
    #[inline(always)]
    fn load_bytes(self, low: &[u8; 32], high: &[u8; 32]) -> [i32; 16] {
        from_fn(|i| {
            let bytes = if i < 8 { &low[4 * i..] } else { &high[4 * (i - 8)..] };
            i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
        })
    }
    #[inline(always)]
    fn narrow_u8(self, a: [i32; 16]) -> [u8; 16] {
        a.map(|v| v as u8)
    }
    #[inline(always)]
    fn narrow_u16(self, a: [i32; 16]) -> [u8; 32] {
        from_fn(|i| (a[i / 2] as u16).to_le_bytes()[i % 2])
    }
    #[inline(always)]
    fn widen_f16(self, from: &[u8; 32]) -> [f32; 16] {
        from_fn(|i| f16::from_le_bytes([from[2 * i], from[2 * i + 1]]).to_f32())
    }
    #[inline(always)]
    fn narrow_f16(self, a: [f32; 16]) -> [u8; 32] {
        from_fn(|i| f16::from_f32(a[i / 2]).to_le_bytes()[i % 2])
    }
    #[inline(always)]
    fn lookup16(self, table: [f32; 16], index: [i32; 16]) -> [f32; 16] {
        index.map(|i| table[(i & 15) as usize])
    }
    #[inline(always)]
    fn lookup_lower(self, table: [f32; 16], index: [i32; 16]) -> [f32; 16] {
        index.map(|i| table[(i & 7) as usize])
    }
    #[inline(always)]
    fn lookup_upper(self, table: [f32; 16], index: [i32; 16]) -> [f32; 16] {
        index.map(|i| table[((i & 7) | 8) as usize])
    }
    #[inline(always)]
    fn lookup32(self, table: [[f32; 16]; 2], index: [i32; 16]) -> [f32; 16] {
        index.map(|i| table[(i >> 4 & 1) as usize][(i & 15) as usize])
    }
    #[inline(always)]
    fn spread(self, bits: u16, value: i32) -> [i32; 16] {
        from_fn(|i| if bits >> i & 1 == 1 { value } else { 0 })
    }
    #[inline(always)]
    fn half(self, value: f32) -> [u8; 2] {
        f16::from_f32(value).to_le_bytes()
    }
    #[inline(always)]
    fn unhalf(self, half: [u8; 2]) -> f32 {
        f16::from_le_bytes(half).to_f32()
    }

    #[inline(always)]
    fn mask_and(self, a: [bool; 16], b: [bool; 16]) -> [bool; 16] {
        from_fn(|i| a[i] & b[i])
    }
    #[inline(always)]
    fn mask_or(self, a: [bool; 16], b: [bool; 16]) -> [bool; 16] {
        from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    fn mask_not(self, a: [bool; 16]) -> [bool; 16] {
        a.map(|v| !v)
    }
    #[inline(always)]
    fn mask_bits(self, a: [bool; 16]) -> u16 {
        (0..16).fold(0, |bits, i| bits | u16::from(a[i]) << i)
    }
}
