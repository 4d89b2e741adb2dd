// Q8_0: w = d*q. Twin of src/quant/simple/q8_0.rs.
#pragma once

#include "block.cuh"

struct Q8_0 : OfLevels {
    half d;
    i8 qs[32];

    static constexpr u32 LEN = 32, BYTES = 34, PARTS = 1;
    static constexpr bool HAS_MIN = false;

    DEVICE static void unpack(const u8* block, u32 sub, float (&w)[32]) { unpack_levels_of<Q8_0>(block, sub, w); }

    DEVICE static void levels(const u8* block, u32, float (&q)[32], Factors<1>& factors) {
        const Q8_0& b = *(const Q8_0*)block;
        factors.scale[0] = to_f32(b.d);
        for (u32 c = 0; c < 8; c++) {
            u32 qs = load_u32<2>((const u8*)b.qs + 4 * c) ^ 0x80808080; // 128 more, and not negative
            for (u32 i = 0; i < 4; i++) q[4 * c + i] = float_of_byte(qs, i, 128.0f);
        }
    }
};
static_assert(sizeof(Q8_0) == Q8_0::BYTES, "Q8_0");
