// What the block formats share. A format is a struct with the fields of its twin in src/quant, and
//
//   LEN    weights per block
//   BYTES  bytes per block
//   unpack(block, sub, w)   the 32 weights w of sub-block `sub`, 0 <= sub < LEN/32
//
// `block` points into shared or global memory, aligned as the block's place in a file allows. The weights are bit for bit those of
// `Format::dequantize`: the same multiplications and additions in the same order, none fused.
//
// Plain floats are no blocks (plain.cuh). Integers become floats four at a time, byte by byte of a word.
#pragma once

#include "../common.cuh"

// A format whose weights lie in memory one by one.
struct PlainFloats {};

// Byte i of a word.
DEVICE u32 byte_of(u32 word, u32 i) { return word >> (8 * i) & 0xff; }

// Byte i of a word, less `offset`, exactly: as the last bits of 2^23 + byte. Two instructions that all lanes have, where the conversion
// of a byte has a quarter of them.
DEVICE float float_of_byte(u32 word, u32 i, u32 offset) {
    return as_float(__byte_perm(word, 0x4b000000, 0x7440 | i)) - (8388608.0f + (float)offset);
}

template <u32 PARTS>
struct alignas(8 * PARTS) Factors {
    float scale[PARTS], min[PARTS];
};

// A format whose weights are w = scale * q - min, with levels q that fit a byte once OFFSET is added, and a scale and a min for each of
// PARTS equal parts of a sub-block; no min where not HAS_MIN. It has
//
//   levels(block, sub, side, c)  q + OFFSET of weights 16 * side + 4 * c .. 16 * side + 4 * c + 3 of the sub-block, a byte each
//   factors(block, sub)
//
// and takes `unpack` from here; gemv_levels.cuh multiplies the levels, and sums by the factors.
template <class Format>
struct Levels {
    DEVICE static void unpack(const u8* block, u32 sub, float (&w)[32]) {
        auto factors = Format::factors(block, sub);
        for (u32 i = 0; i < 32; i++) {
            u32 part = i / (32 / Format::PARTS), four = Format::levels(block, sub, i / 16, i / 4 % 4);
            w[i] = float_of_byte(four, i % 4, Format::OFFSET) * factors.scale[part];
            if (Format::HAS_MIN) w[i] -= factors.min[part];
        }
    }
};

template <class Format>
constexpr bool HAS_LEVELS = __is_base_of(Levels<Format>, Format);

// The factors of Q4_K and Q5_K: eight sub-blocks of 6 bits sc and 6 bits m, packed into 12 bytes as src/quant/k/affine.rs draws them.
DEVICE Factors<1> six_bit_factors(half d, half dmin, const u8* packed, u32 sub) {
    u32 at = 8 * (sub % 4), sc = load_u32<4>(packed) >> at, m = load_u32<4>(packed + 4) >> at;
    if (sub < 4) {
        sc &= 63;
        m &= 63;
    } else {
        u32 low = load_u32<4>(packed + 8) >> at;
        sc = (low & 15) | (sc >> 2 & 48);
        m = (low >> 4 & 15) | (m >> 2 & 48);
    }
    return {{to_f32(d) * (float)sc}, {to_f32(dmin) * (float)m}};
}

// Sixteen bytes as four words, looked up by four nibbles at once: byte i of the result is entry (nibble i).
template <u32 T0, u32 T1, u32 T2, u32 T3>
DEVICE u32 lookup_nibbles(u32 nibbles) {
    u32 low = __byte_perm(T0, T1, nibbles & 0x7777);
    u32 high = __byte_perm(T2, T3, nibbles & 0x7777);
    return __byte_perm(low, high, 0x3210 | (nibbles & 0x8888) >> 1); // a set fourth bit takes the byte from `high`
}

// The low halves of four bytes as neighbouring nibbles.
DEVICE u32 low_nibbles(u32 bytes) {
    u32 pairs = (bytes & 0x0f0f0f0f) | (bytes >> 4 & 0x00f000f0);
    return (pairs & 0xff) | (pairs >> 8 & 0xff00);
}

// The two bits of each of four weights as nibbles.
DEVICE u32 spread_two_bits(u32 code) {
    u32 pairs = (code | code << 4) & 0x0f0f;
    return (pairs | pairs << 2) & 0x3333;
}

// The three bits of each of four weights as nibbles.
DEVICE u32 spread_three_bits(u32 code) {
    return (code & 7) | (code & 0x38) << 1 | (code & 0x1c0) << 2 | (code & 0xe00) << 3;
}

// Eight signs in seven bits: the number of minus signs is even.
DEVICE u32 even_signs(u32 seven) { return seven | (__popc(seven) & 1) << 7; }

// x, or -x where bit i of `signs` is set.
DEVICE float with_sign(float x, u32 signs, u32 i) { return as_float(as_bits(x) ^ (signs >> i & 1) << 31); }
