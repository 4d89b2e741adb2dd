// Q5_0: w = d*(q - 16), and Q5_1: w = d*q + m. Twins of src/quant/simple/q5_0.rs and q5_1.rs.
#pragma once

#include "block.cuh"

// Four levels: halves of `qs`, and bit i of `qh` as fifth bit of weight i.
template <u32 ALIGN>
DEVICE u32 five_bit_levels(const u8* qh, const u8* qs, u32 side, u32 c) {
    u32 four = load_u32<ALIGN>(qs + 4 * c) >> (4 * side) & 0x0f0f0f0f, fifth = load_u32<ALIGN>(qh) >> (16 * side + 4 * c) & 15;
    // Four bits become bit 4 of four bytes: a multiplication puts a copy seven bits further on for each.
    return four | (fifth * 0x00204081 << 4 & 0x10101010);
}

struct Q5_0 : Levels<Q5_0> {
    half d;
    u8 qh[4], qs[16];

    static constexpr u32 LEN = 32, BYTES = 22, PARTS = 1, OFFSET = 16;
    static constexpr bool HAS_MIN = false;

    DEVICE static Factors<1> factors(const u8* block, u32) { return {{to_f32(((const Q5_0*)block)->d)}, {}}; }

    DEVICE static u32 levels(const u8* block, u32, u32 side, u32 c) {
        const Q5_0& b = *(const Q5_0*)block;
        return five_bit_levels<2>(b.qh, b.qs, side, c);
    }
};
static_assert(sizeof(Q5_0) == Q5_0::BYTES, "Q5_0");

struct Q5_1 : Levels<Q5_1> {
    half d, m;
    u8 qh[4], qs[16];

    static constexpr u32 LEN = 32, BYTES = 24, PARTS = 1, OFFSET = 0;
    static constexpr bool HAS_MIN = true;

    DEVICE static Factors<1> factors(const u8* block, u32) {
        const Q5_1& b = *(const Q5_1*)block;
        return {{to_f32(b.d)}, {-to_f32(b.m)}};
    }

    DEVICE static u32 levels(const u8* block, u32, u32 side, u32 c) {
        const Q5_1& b = *(const Q5_1*)block;
        return five_bit_levels<4>(b.qh, b.qs, side, c);
    }
};
static_assert(sizeof(Q5_1) == Q5_1::BYTES, "Q5_1");
