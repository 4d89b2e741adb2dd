//! The lane types that kernels are written with, and the operations that a level supplies.

use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Neg, Not, Sub};

/// The operations of one level. Kernels use them through [`F32x16`], [`I32x16`] and [`Mask`], which read as arithmetic.
///
/// Float operations are IEEE 754 in round-to-nearest-even, and only `fma` is fused. `min(a, b)` is `if a < b { a } else { b }` and `max(a, b)` is
/// `if a > b { a } else { b }`, so a NaN gives `b`. Integer operations wrap. Bytes are little-endian.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// How many values of sixteen lanes the registers hold.
    const REGISTERS: usize;
    /// Sixteen floats.
    type F32: Copy;
    /// Sixteen integers.
    type I32: Copy;
    /// Sixteen truth values.
    type Mask: Copy;

    fn splat(self, value: f32) -> Self::F32;
    fn load(self, from: &[f32; 16]) -> Self::F32;
    fn store(self, a: Self::F32, to: &mut [f32; 16]);
    /// A hint: the bytes will be read soon, so a line for every 64 of them should come nearer. Nothing where a level has no such instruction.
    #[inline(always)]
    fn prefetch(self, bytes: &[u8]) {
        let _ = bytes;
    }
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    fn sqrt(self, a: Self::F32) -> Self::F32;
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn lt(self, a: Self::F32, b: Self::F32) -> Self::Mask;
    fn le(self, a: Self::F32, b: Self::F32) -> Self::Mask;
    fn eq(self, a: Self::F32, b: Self::F32) -> Self::Mask;
    fn select(self, mask: Self::Mask, yes: Self::F32, no: Self::F32) -> Self::F32;
    /// The sum of all lanes: lane `i` and `i + 8`, of those eight `i` and `i + 4`, then `i + 2`, then the last two.
    fn reduce_add(self, a: Self::F32) -> f32;
    /// The smallest of sixteen floats that are not NaN; either zero where both are there.
    fn reduce_min(self, a: Self::F32) -> f32;
    /// The largest, likewise.
    fn reduce_max(self, a: Self::F32) -> f32;
    /// The four floats in every quarter of the lanes.
    fn load_quarters(self, from: &[f32; 4]) -> Self::F32;
    /// Lane `i` is that lane of its own quarter of `a` which the low two bits of `index` name.
    fn pick(self, a: Self::F32, index: Self::I32) -> Self::F32;
    /// Row `i` of the result holds lane `i` of every row.
    fn transpose(self, rows: [Self::F32; 16]) -> [Self::F32; 16];

    fn to_bits(self, a: Self::F32) -> Self::I32;
    fn with_bits(self, a: Self::I32) -> Self::F32;
    /// Towards zero; what an i32 cannot hold, NaN included, gives `i32::MIN`, as on x86.
    fn truncate(self, a: Self::F32) -> Self::I32;
    fn convert(self, a: Self::I32) -> Self::F32;

    fn isplat(self, value: i32) -> Self::I32;
    fn iadd(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn isub(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn imin(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn imax(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn iand(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn ior(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn ixor(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn ishl<const BITS: u32>(self, a: Self::I32) -> Self::I32;
    /// Zeros come in from above.
    fn ishr<const BITS: u32>(self, a: Self::I32) -> Self::I32;
    /// True where `a & b` is not zero.
    fn itest(self, a: Self::I32, b: Self::I32) -> Self::Mask;

    fn widen_u8(self, from: &[u8; 16]) -> Self::I32;
    fn widen_i8(self, from: &[u8; 16]) -> Self::I32;
    fn widen_u16(self, from: &[u8; 32]) -> Self::I32;
    /// Four bytes a lane, lowest first: the first eight lanes from `low`, the others from `high`.
    fn load_bytes(self, low: &[u8; 32], high: &[u8; 32]) -> Self::I32;
    /// The low byte of every lane.
    fn narrow_u8(self, a: Self::I32) -> [u8; 16];
    /// The low two bytes of every lane.
    fn narrow_u16(self, a: Self::I32) -> [u8; 32];
    fn widen_f16(self, from: &[u8; 32]) -> Self::F32;
    /// Round to nearest even; overflow gives infinity.
    fn narrow_f16(self, a: Self::F32) -> [u8; 32];

    /// Lane `i` is `table[index[i] % 16]`.
    fn lookup16(self, table: Self::F32, index: Self::I32) -> Self::F32;
    /// [`lookup16`](Simd::lookup16) where `index[i] % 16` is below 8.
    fn lookup_lower(self, table: Self::F32, index: Self::I32) -> Self::F32;
    /// [`lookup16`](Simd::lookup16) where `index[i] % 16` is 8 or more.
    fn lookup_upper(self, table: Self::F32, index: Self::I32) -> Self::F32;
    /// Lane `i` is entry `index[i] % 32` of the two tables one after the other.
    fn lookup32(self, table: [Self::F32; 2], index: Self::I32) -> Self::F32;
    /// `value` in the lanes whose bit is set, 0 in the others.
    fn spread(self, bits: u16, value: i32) -> Self::I32;
    /// One float as a half, rounded to nearest even; overflow gives infinity.
    fn half(self, value: f32) -> [u8; 2];
    /// One half as a float.
    fn unhalf(self, half: [u8; 2]) -> f32;
    /// One half as a float in every lane.
    #[inline(always)]
    fn splat_half(self, half: [u8; 2]) -> Self::F32 {
        self.splat(self.unhalf(half))
    }

    fn mask_and(self, a: Self::Mask, b: Self::Mask) -> Self::Mask;
    fn mask_or(self, a: Self::Mask, b: Self::Mask) -> Self::Mask;
    fn mask_not(self, a: Self::Mask) -> Self::Mask;
    /// Bit `i` is lane `i`.
    fn mask_bits(self, a: Self::Mask) -> u16;
}

/// Writes a level's operations: each line is compiled with the level's instructions, which the token proves to be there.
macro_rules! lane_ops {
    ($features:literal; $(fn $name:ident($($arg:ident: $ty:ty),*) -> $out:ty $body:block)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: $ty),*) -> $out {
            #[inline]
            #[target_feature(enable = $features)]
            fn lanes($($arg: $ty),*) -> $out $body
            // SAFETY: `self` exists only where detection found these instructions.
            unsafe { lanes($($arg),*) }
        }
    )*};
}
pub(super) use lane_ops;

/// Sixteen `f32` that advance together.
#[derive(Clone, Copy)]
pub(crate) struct F32x16<S: Simd> {
    lanes: S::F32,
    simd: S,
}

/// Sixteen `i32` that advance together.
#[derive(Clone, Copy)]
pub(crate) struct I32x16<S: Simd> {
    lanes: S::I32,
    simd: S,
}

/// Sixteen floats in one cache line, so that no load of them crosses into another.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Sixteen(pub [f32; 16]);

impl Sixteen {
    pub const ZERO: Sixteen = Sixteen([0.0; 16]);

    /// As lanes.
    #[inline(always)]
    pub fn load<S: Simd>(&self, simd: S) -> F32x16<S> {
        F32x16::load(simd, &self.0)
    }
}

/// Sixteen answers of a comparison.
#[derive(Clone, Copy)]
pub(crate) struct Mask<S: Simd> {
    lanes: S::Mask,
    simd: S,
}

/// `1.5 * 2^23`: adding it to a float of magnitude below 2^22 leaves the nearest integer in the low bits of the mantissa.
const ROUND: f32 = 12_582_912.0;

impl<S: Simd> F32x16<S> {
    /// The same value in every lane.
    #[inline(always)]
    pub fn splat(simd: S, value: f32) -> Self {
        F32x16 { lanes: simd.splat(value), simd }
    }

    /// The same half in every lane.
    #[inline(always)]
    pub fn splat_half(simd: S, half: [u8; 2]) -> Self {
        F32x16 { lanes: simd.splat_half(half), simd }
    }

    /// Lane `i` is `from[i]`.
    #[inline(always)]
    pub fn load(simd: S, from: &[f32; 16]) -> Self {
        F32x16 { lanes: simd.load(from), simd }
    }

    /// The four floats in every quarter of the lanes.
    #[inline(always)]
    pub fn load_quarters(simd: S, from: &[f32; 4]) -> Self {
        F32x16 { lanes: simd.load_quarters(from), simd }
    }

    /// From 16 halves.
    #[inline(always)]
    pub fn load_f16(simd: S, from: &[u8; 32]) -> Self {
        F32x16 { lanes: simd.widen_f16(from), simd }
    }

    /// `to[i]` is lane `i`.
    #[inline(always)]
    pub fn store(self, to: &mut [f32; 16]) {
        self.simd.store(self.lanes, to);
    }

    /// The lanes as an array.
    #[inline(always)]
    pub fn to_array(self) -> [f32; 16] {
        let mut array = [0.0; 16];
        self.store(&mut array);
        array
    }

    /// Sixteen halves, rounded to nearest even; overflow gives infinity.
    #[inline(always)]
    pub fn to_f16(self) -> [u8; 32] {
        self.simd.narrow_f16(self.lanes)
    }

    /// Lane `i` of result `j` is lane `j` of row `i`.
    #[inline(always)]
    pub fn transpose(rows: [Self; 16]) -> [Self; 16] {
        let simd = rows[0].simd;
        let mut lanes = [rows[0].lanes; 16];
        for i in 0..16 {
            lanes[i] = rows[i].lanes;
        }
        let lanes = simd.transpose(lanes);
        let mut out = rows;
        for i in 0..16 {
            out[i].lanes = lanes[i];
        }
        out
    }

    /// Lane `i` is that lane of its own quarter which the low two bits of `index` name.
    #[inline(always)]
    pub fn pick(self, index: I32x16<S>) -> Self {
        F32x16 { lanes: self.simd.pick(self.lanes, index.lanes), simd: self.simd }
    }

    /// `self * factor + sum`, rounded once. For sums of products only: what makes or reads blocks must not be fused.
    #[inline(always)]
    pub fn fma(self, factor: Self, sum: Self) -> Self {
        F32x16 { lanes: self.simd.fma(self.lanes, factor.lanes, sum.lanes), simd: self.simd }
    }

    /// Magnitude: the sign bit cleared.
    #[inline(always)]
    pub fn abs(self) -> Self {
        (self.to_bits() & 0x7fff_ffff).to_float_bits()
    }

    /// Square root.
    #[inline(always)]
    pub fn sqrt(self) -> Self {
        F32x16 { lanes: self.simd.sqrt(self.lanes), simd: self.simd }
    }

    /// `if self < other { self } else { other }`.
    #[inline(always)]
    pub fn min(self, other: Self) -> Self {
        F32x16 { lanes: self.simd.min(self.lanes, other.lanes), simd: self.simd }
    }

    /// `if self > other { self } else { other }`.
    #[inline(always)]
    pub fn max(self, other: Self) -> Self {
        F32x16 { lanes: self.simd.max(self.lanes, other.lanes), simd: self.simd }
    }

    /// `self < other`; false with NaN.
    #[inline(always)]
    pub fn lt(self, other: Self) -> Mask<S> {
        Mask { lanes: self.simd.lt(self.lanes, other.lanes), simd: self.simd }
    }

    /// `self > other`; false with NaN.
    #[inline(always)]
    pub fn gt(self, other: Self) -> Mask<S> {
        other.lt(self)
    }

    /// `self <= other`; false with NaN.
    #[inline(always)]
    pub fn le(self, other: Self) -> Mask<S> {
        Mask { lanes: self.simd.le(self.lanes, other.lanes), simd: self.simd }
    }

    /// `self == other`; false with NaN.
    #[inline(always)]
    pub fn eq(self, other: Self) -> Mask<S> {
        Mask { lanes: self.simd.eq(self.lanes, other.lanes), simd: self.simd }
    }

    /// The nearest integer, ties to even, as ggml's `nearest_int` finds it, then clamped: 1.5 * 2^23 is added and the low 23 bits are
    /// read. Beyond +-2^22 that is not the nearest integer (infinity gives -2^22, NaN gives 0), and the bytes ggml writes depend on it.
    #[inline(always)]
    pub fn nearest_int_in(self, low: i32, high: i32) -> Self {
        let (round, zero) = (Self::splat(self.simd, ROUND), ROUND.to_bits() as i32);
        // The low 23 bits below the exponent of 2^23 are the integer's place between floats that are 1 apart, so that the order of the
        // bits is the order of the integers. Integer clamps leave the adders of the CPU to the sums.
        let place = ((self + round).to_bits() & 0x007f_ffff) | 0x4b00_0000;
        place.max(zero + low).min(zero + high).to_float_bits() - round
    }

    /// The nearest integer, ties to even, in the low 22 bits of the result; of a magnitude below 2^21, in two's complement.
    #[inline(always)]
    pub fn nearest_low_bits(self) -> I32x16<S> {
        (self + Self::splat(self.simd, ROUND)).to_bits()
    }

    /// Lane `i` is `self[index[i] % 16]`.
    #[inline(always)]
    pub fn lookup(self, index: I32x16<S>) -> Self {
        F32x16 { lanes: self.simd.lookup16(self.lanes, index.lanes), simd: self.simd }
    }

    /// [`lookup`](F32x16::lookup) where every `index[i] % 16` is below 8.
    #[inline(always)]
    pub fn lookup_lower(self, index: I32x16<S>) -> Self {
        F32x16 { lanes: self.simd.lookup_lower(self.lanes, index.lanes), simd: self.simd }
    }

    /// [`lookup`](F32x16::lookup) where every `index[i] % 16` is 8 or more.
    #[inline(always)]
    pub fn lookup_upper(self, index: I32x16<S>) -> Self {
        F32x16 { lanes: self.simd.lookup_upper(self.lanes, index.lanes), simd: self.simd }
    }

    /// Lane `i` is entry `index[i] % 32` of the two halves of a table.
    #[inline(always)]
    pub fn lookup_in(table: [Self; 2], index: I32x16<S>) -> Self {
        let simd = index.simd;
        F32x16 { lanes: simd.lookup32([table[0].lanes, table[1].lanes], index.lanes), simd }
    }

    /// Towards zero; what an i32 cannot hold, NaN included, gives `i32::MIN`, as on x86.
    #[inline(always)]
    pub fn truncate(self) -> I32x16<S> {
        I32x16 { lanes: self.simd.truncate(self.lanes), simd: self.simd }
    }

    /// To the nearest integer, ties away from zero (C's `roundf`); `i32::MIN` where that does not fit.
    #[inline(always)]
    pub fn round_half_away(self) -> I32x16<S> {
        // The float below 0.5: with 0.5 itself, 0.49999997 would round up to 1.
        let half = (self.to_bits() & i32::MIN) | 0.499_999_97_f32.to_bits() as i32;
        (self + half.to_float_bits()).truncate()
    }

    /// The bit pattern of every lane.
    #[inline(always)]
    pub fn to_bits(self) -> I32x16<S> {
        I32x16 { lanes: self.simd.to_bits(self.lanes), simd: self.simd }
    }

    /// The sum of all lanes, halves first: lane `i` and `i + 8`, of those eight `i` and `i + 4`, then `i + 2`, then the last two.
    #[inline(always)]
    pub fn reduce_add(self) -> f32 {
        self.simd.reduce_add(self.lanes)
    }

    /// The smallest lane, where none is NaN; either zero where both are there.
    #[inline(always)]
    pub fn reduce_min(self) -> f32 {
        self.simd.reduce_min(self.lanes)
    }

    /// The largest lane, likewise.
    #[inline(always)]
    pub fn reduce_max(self) -> f32 {
        self.simd.reduce_max(self.lanes)
    }
}

impl<S: Simd> I32x16<S> {
    /// The same value in every lane.
    #[inline(always)]
    pub fn splat(simd: S, value: i32) -> Self {
        I32x16 { lanes: simd.isplat(value), simd }
    }

    /// `value` in the lanes whose bit is set, 0 in the others.
    #[inline(always)]
    pub fn spread(simd: S, bits: u16, value: i32) -> Self {
        I32x16 { lanes: simd.spread(bits, value), simd }
    }

    /// From 16 unsigned bytes.
    #[inline(always)]
    pub fn load_u8(simd: S, from: &[u8; 16]) -> Self {
        I32x16 { lanes: simd.widen_u8(from), simd }
    }

    /// From 16 bytes that are `i8`.
    #[inline(always)]
    pub fn load_i8(simd: S, from: &[u8; 16]) -> Self {
        I32x16 { lanes: simd.widen_i8(from), simd }
    }

    /// From 16 unsigned 16-bit integers.
    #[inline(always)]
    pub fn load_u16(simd: S, from: &[u8; 32]) -> Self {
        I32x16 { lanes: simd.widen_u16(from), simd }
    }

    /// Four bytes a lane, lowest first: the first eight lanes from `low`, the others from `high`.
    #[inline(always)]
    pub fn load_bytes(simd: S, low: &[u8; 32], high: &[u8; 32]) -> Self {
        I32x16 { lanes: simd.load_bytes(low, high), simd }
    }

    /// The low byte of every lane.
    #[inline(always)]
    pub fn to_u8(self) -> [u8; 16] {
        self.simd.narrow_u8(self.lanes)
    }

    /// The low two bytes of every lane.
    #[inline(always)]
    pub fn to_u16(self) -> [u8; 32] {
        self.simd.narrow_u16(self.lanes)
    }

    /// The float of the same value.
    #[inline(always)]
    pub fn to_float(self) -> F32x16<S> {
        F32x16 { lanes: self.simd.convert(self.lanes), simd: self.simd }
    }

    /// The float of the same bits.
    #[inline(always)]
    pub fn to_float_bits(self) -> F32x16<S> {
        F32x16 { lanes: self.simd.with_bits(self.lanes), simd: self.simd }
    }

    /// Every lane shifted up by `BITS`.
    #[inline(always)]
    pub fn shl<const BITS: u32>(self) -> Self {
        I32x16 { lanes: self.simd.ishl::<BITS>(self.lanes), simd: self.simd }
    }

    /// Every lane shifted down by `BITS`; zeros come in.
    #[inline(always)]
    pub fn shr<const BITS: u32>(self) -> Self {
        I32x16 { lanes: self.simd.ishr::<BITS>(self.lanes), simd: self.simd }
    }

    /// The smaller.
    #[inline(always)]
    pub fn min(self, other: i32) -> Self {
        I32x16 { lanes: self.simd.imin(self.lanes, self.simd.isplat(other)), simd: self.simd }
    }

    /// The larger.
    #[inline(always)]
    pub fn max(self, other: i32) -> Self {
        I32x16 { lanes: self.simd.imax(self.lanes, self.simd.isplat(other)), simd: self.simd }
    }

    /// True in the lanes that have any of `bits` set.
    #[inline(always)]
    pub fn has(self, bits: i32) -> Mask<S> {
        Mask { lanes: self.simd.itest(self.lanes, self.simd.isplat(bits)), simd: self.simd }
    }
}

impl<S: Simd> Mask<S> {
    /// `yes` in the true lanes, `no` in the others.
    #[inline(always)]
    pub fn select(self, yes: F32x16<S>, no: F32x16<S>) -> F32x16<S> {
        F32x16 { lanes: self.simd.select(self.lanes, yes.lanes, no.lanes), simd: self.simd }
    }

    /// [`select`](Mask::select) among integers.
    #[inline(always)]
    pub fn choose(self, yes: I32x16<S>, no: I32x16<S>) -> I32x16<S> {
        self.select(yes.to_float_bits(), no.to_float_bits()).to_bits()
    }

    /// Bit `i` is lane `i`.
    #[inline(always)]
    pub fn bits(self) -> u16 {
        self.simd.mask_bits(self.lanes)
    }
}

/// `impl Op for Type` by one operation of the level.
macro_rules! operators {
    ($($op:ident $method:ident $type:ident $lanes:ident;)*) => {$(
        impl<S: Simd> $op for $type<S> {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                $type { lanes: self.simd.$lanes(self.lanes, other.lanes), simd: self.simd }
            }
        }
    )*};
}

operators! {
    Add add F32x16 add;
    Sub sub F32x16 sub;
    Mul mul F32x16 mul;
    Div div F32x16 div;
    Add add I32x16 iadd;
    Sub sub I32x16 isub;
    BitOr bitor I32x16 ior;
    BitXor bitxor I32x16 ixor;
    BitAnd bitand Mask mask_and;
    BitOr bitor Mask mask_or;
}

impl<S: Simd> Neg for F32x16<S> {
    type Output = Self;
    /// The sign bit flipped, zero's too.
    #[inline(always)]
    fn neg(self) -> Self {
        Self::splat(self.simd, -0.0) - self
    }
}

impl<S: Simd> Not for Mask<S> {
    type Output = Self;
    #[inline(always)]
    fn not(self) -> Self {
        Mask { lanes: self.simd.mask_not(self.lanes), simd: self.simd }
    }
}

impl<S: Simd> BitAnd<i32> for I32x16<S> {
    type Output = Self;
    #[inline(always)]
    fn bitand(self, bits: i32) -> Self {
        I32x16 { lanes: self.simd.iand(self.lanes, self.simd.isplat(bits)), simd: self.simd }
    }
}

impl<S: Simd> BitOr<i32> for I32x16<S> {
    type Output = Self;
    #[inline(always)]
    fn bitor(self, bits: i32) -> Self {
        I32x16 { lanes: self.simd.ior(self.lanes, self.simd.isplat(bits)), simd: self.simd }
    }
}

impl<S: Simd> Add<i32> for I32x16<S> {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: i32) -> Self {
        self + Self::splat(self.simd, other)
    }
}
