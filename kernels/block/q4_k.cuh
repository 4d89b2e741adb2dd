// Q4_K: w = d*sc[j]*q - dmin*m[j], 8 sub-blocks j of 32. Twin of src/quant/k/q4_k.rs.
#pragma once

#include "block.cuh"

struct Q4_K : Levels<Q4_K> {
    half d, dmin;
    u8 scales[12], qs[4][32];

    static constexpr u32 LEN = 256, BYTES = 144, PARTS = 1, OFFSET = 0;
    static constexpr bool HAS_MIN = true;

    DEVICE static Factors<1> factors(const u8* block, u32 sub) {
        const Q4_K& b = *(const Q4_K*)block;
        return six_bit_factors(b.d, b.dmin, b.scales, sub);
    }

    DEVICE static u32 levels(const u8* block, u32 sub, u32 side, u32 c) {
        return load_u32<4>(((const Q4_K*)block)->qs[sub / 2] + 16 * side + 4 * c) >> (4 * (sub % 2)) & 0x0f0f0f0f;
    }
};
static_assert(sizeof(Q4_K) == Q4_K::BYTES, "Q4_K");
