// Q4_K: w = d*sc[j]*q - dmin*m[j], 8 sub-blocks j of 32. Twin of src/quant/k/q4_k.rs.
#pragma once

#include "block.cuh"

struct Q4_K : OfLevels {
    half d, dmin;
    u8 scales[12], qs[4][32];

    static constexpr u32 LEN = 256, BYTES = 144, PARTS = 1;
    static constexpr bool HAS_MIN = true;

    DEVICE static void unpack(const u8* block, u32 sub, float (&w)[32]) { unpack_levels_of<Q4_K>(block, sub, w); }

    DEVICE static void levels(const u8* block, u32 sub, float (&q)[32], Factors<1>& factors) {
        const Q4_K& b = *(const Q4_K*)block;
        SixBitScales s(to_f32(b.d), to_f32(b.dmin), b.scales, sub);
        factors = {{s.scale}, {s.min}};
        const u8* qs = b.qs[sub / 2];
        for (u32 c = 0; c < 8; c++) {
            u32 four = load_u32<4>(qs + 4 * c) >> (4 * (sub % 2)) & 0x0f0f0f0f;
            for (u32 i = 0; i < 4; i++) q[4 * c + i] = float_of_byte(four, i);
        }
    }
};
static_assert(sizeof(Q4_K) == Q4_K::BYTES, "Q4_K");
