// Q5_K: w = d*sc[j]*q - dmin*m[j], 8 sub-blocks j of 32. Twin of src/quant/k/q5_k.rs.
#pragma once

#include "block.cuh"

struct Q5_K : Levels<Q5_K> {
    half d, dmin;
    u8 scales[12], qh[32], qs[4][32];

    static constexpr u32 LEN = 256, BYTES = 176, PARTS = 1, OFFSET = 0;
    static constexpr bool HAS_MIN = true;

    DEVICE static Factors<1> factors(const u8* block, u32 sub) {
        const Q5_K& b = *(const Q5_K*)block;
        return six_bit_factors(b.d, b.dmin, b.scales, sub);
    }

    DEVICE static u32 levels(const u8* block, u32 sub, u32 side, u32 c) {
        const Q5_K& b = *(const Q5_K*)block;
        u32 low = load_u32<4>(b.qs[sub / 2] + 16 * side + 4 * c) >> (4 * (sub % 2)) & 0x0f0f0f0f;
        u32 fifth = load_u32<4>(b.qh + 16 * side + 4 * c) >> sub & 0x01010101;
        return low | fifth << 4;
    }
};
static_assert(sizeof(Q5_K) == Q5_K::BYTES, "Q5_K");
