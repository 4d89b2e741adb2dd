// Q4_1: w = d*q + m. Twin of src/quant/simple/q4_1.rs.
#pragma once

#include "block.cuh"

struct Q4_1 : Levels<Q4_1> {
    half d, m;
    u8 qs[16];

    static constexpr u32 LEN = 32, BYTES = 20, PARTS = 1, OFFSET = 0;
    static constexpr bool HAS_MIN = true;

    DEVICE static Factors<1> factors(const u8* block, u32) {
        const Q4_1& b = *(const Q4_1*)block;
        return {{to_f32(b.d)}, {-to_f32(b.m)}};
    }

    DEVICE static u32 levels(const u8* block, u32, u32 side, u32 c) {
        return load_u32<4>(((const Q4_1*)block)->qs + 4 * c) >> (4 * side) & 0x0f0f0f0f;
    }
};
static_assert(sizeof(Q4_1) == Q4_1::BYTES, "Q4_1");
