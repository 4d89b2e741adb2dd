// Q4_1: w = d*q + m. Twin of src/quant/simple/q4_1.rs.
#pragma once

#include "block.cuh"

struct Q4_1 {
    half d, m;
    u8 qs[16];

    static constexpr u32 LEN = 32, BYTES = 20;

    DEVICE static void unpack(const u8* block, u32, float (&w)[32]) {
        const Q4_1& b = *(const Q4_1*)block;
        float d = to_f32(b.d), m = to_f32(b.m);
        for (u32 c = 0; c < 4; c++) {
            u32 qs = load_u32<4>(b.qs + 4 * c), low = qs & 0x0f0f0f0f, high = qs >> 4 & 0x0f0f0f0f;
            for (u32 i = 0; i < 4; i++) {
                w[4 * c + i] = (float)byte_of(low, i) * d + m;
                w[16 + 4 * c + i] = (float)byte_of(high, i) * d + m;
            }
        }
    }
};
static_assert(sizeof(Q4_1) == Q4_1::BYTES, "Q4_1");
