// Q4_0: w = d*(q - 8). Twin of src/quant/simple/q4_0.rs.
#pragma once

#include "block.cuh"

struct Q4_0 : OfLevels {
    half d;
    u8 qs[16];

    static constexpr u32 LEN = 32, BYTES = 18, PARTS = 1;
    static constexpr bool HAS_MIN = false;

    DEVICE static void unpack(const u8* block, u32 sub, float (&w)[32]) { unpack_levels_of<Q4_0>(block, sub, w); }

    DEVICE static void levels(const u8* block, u32, float (&q)[32], Factors<1>& factors) {
        const Q4_0& b = *(const Q4_0*)block;
        factors.scale[0] = to_f32(b.d);
        for (u32 c = 0; c < 4; c++) {
            u32 qs = load_u32<2>(b.qs + 4 * c), low = qs & 0x0f0f0f0f, high = qs >> 4 & 0x0f0f0f0f;
            for (u32 i = 0; i < 4; i++) {
                q[4 * c + i] = float_of_byte(low, i, 8.0f);
                q[16 + 4 * c + i] = float_of_byte(high, i, 8.0f);
            }
        }
    }
};
static_assert(sizeof(Q4_0) == Q4_0::BYTES, "Q4_0");
