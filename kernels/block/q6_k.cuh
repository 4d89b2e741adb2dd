// Q6_K: w = d*sc[j]*q, 16 sub-blocks j of 16. Twin of src/quant/k/q6_k.rs.
#pragma once

#include "block.cuh"

struct Q6_K : Levels<Q6_K> {
    u8 ql[2][64], qh[2][32];
    i8 scales[16];
    half d;

    static constexpr u32 LEN = 256, BYTES = 210, PARTS = 2, OFFSET = 32;
    static constexpr bool HAS_MIN = false;

    DEVICE static Factors<2> factors(const u8* block, u32 sub) {
        const Q6_K& b = *(const Q6_K*)block;
        float d = to_f32(b.d);
        return {{d * (float)b.scales[2 * sub], d * (float)b.scales[2 * sub + 1]}, {}};
    }

    DEVICE static u32 levels(const u8* block, u32 sub, u32 side, u32 c) {
        const Q6_K& b = *(const Q6_K*)block;
        u32 run = sub % 4, at = 16 * side + 4 * c;
        u32 low = load_u32<2>(b.ql[sub / 4] + 32 * (run % 2) + at) >> (4 * (run / 2)) & 0x0f0f0f0f;
        u32 upper = load_u32<2>(b.qh[sub / 4] + at) >> (2 * run) & 0x03030303;
        return low | upper << 4;
    }
};
static_assert(sizeof(Q6_K) == Q6_K::BYTES, "Q6_K");
