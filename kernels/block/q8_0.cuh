// Q8_0: w = d*q. Twin of src/quant/simple/q8_0.rs.
#pragma once

#include "block.cuh"

struct Q8_0 : Levels<Q8_0> {
    half d;
    i8 qs[32];

    static constexpr u32 LEN = 32, BYTES = 34, PARTS = 1, OFFSET = 128;
    static constexpr bool HAS_MIN = false;

    DEVICE static Factors<1> factors(const u8* block, u32) { return {{to_f32(((const Q8_0*)block)->d)}, {}}; }

    DEVICE static u32 levels(const u8* block, u32, u32 side, u32 c) {
        return load_u32<2>((const u8*)((const Q8_0*)block)->qs + 16 * side + 4 * c) ^ 0x80808080; // 128 more
    }
};
static_assert(sizeof(Q8_0) == Q8_0::BYTES, "Q8_0");
