// Q2_K: w = d*sc[j]*q - dmin*m[j], 16 sub-blocks j of 16. Twin of src/quant/k/q2_k.rs.
#pragma once

#include "block.cuh"

struct Q2_K : Levels<Q2_K> {
    u8 scales[16], qs[2][32];
    half d, dmin;

    static constexpr u32 LEN = 256, BYTES = 84, PARTS = 2, OFFSET = 0;
    static constexpr bool HAS_MIN = true;

    DEVICE static Factors<2> factors(const u8* block, u32 sub) {
        const Q2_K& b = *(const Q2_K*)block;
        float d = to_f32(b.d), dmin = to_f32(b.dmin);
        u32 first = b.scales[2 * sub], second = b.scales[2 * sub + 1];
        return {{d * (float)(first & 15), d * (float)(second & 15)}, {dmin * (float)(first >> 4), dmin * (float)(second >> 4)}};
    }

    DEVICE static u32 levels(const u8* block, u32 sub, u32 side, u32 c) {
        return load_u32<4>(((const Q2_K*)block)->qs[sub / 4] + 16 * side + 4 * c) >> (2 * (sub % 4)) & 0x03030303;
    }
};
static_assert(sizeof(Q2_K) == Q2_K::BYTES, "Q2_K");
