// Q8_0: w = d*q. Twin of src/quant/simple/q8_0.rs.
#pragma once

#include "block.cuh"

struct Q8_0 {
    half d;
    i8 qs[32];

    static constexpr u32 LEN = 32, BYTES = 34;

    DEVICE static void unpack(const u8* block, u32, float (&w)[32]) {
        const Q8_0& b = *(const Q8_0*)block;
        float d = to_f32(b.d);
        for (u32 c = 0; c < 8; c++) {
            u32 qs = load_u32<2>((const u8*)b.qs + 4 * c);
            for (u32 i = 0; i < 4; i++) w[4 * c + i] = (float)signed_byte_of(qs, i) * d;
        }
    }
};
static_assert(sizeof(Q8_0) == Q8_0::BYTES, "Q8_0");
