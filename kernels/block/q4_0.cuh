// Q4_0: w = d*(q - 8). Twin of src/quant/simple/q4_0.rs.
#pragma once

#include "block.cuh"

struct Q4_0 : Levels<Q4_0> {
    half d;
    u8 qs[16];

    static constexpr u32 LEN = 32, BYTES = 18, PARTS = 1, OFFSET = 8;
    static constexpr bool HAS_MIN = false;

    DEVICE static Factors<1> factors(const u8* block, u32) { return {{to_f32(((const Q4_0*)block)->d)}, {}}; }

    DEVICE static u32 levels(const u8* block, u32, u32 side, u32 c) {
        return load_u32<2>(((const Q4_0*)block)->qs + 4 * c) >> (4 * side) & 0x0f0f0f0f;
    }
};
static_assert(sizeof(Q4_0) == Q4_0::BYTES, "Q4_0");
