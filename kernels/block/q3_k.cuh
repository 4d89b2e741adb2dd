// Q3_K: w = d*sc[j]*q, 16 sub-blocks j of 16. Twin of src/quant/k/q3_k.rs.
#pragma once

#include "block.cuh"

struct Q3_K : Levels<Q3_K> {
    u8 hmask[32], qs[2][32], scales[12];
    half d;

    static constexpr u32 LEN = 256, BYTES = 110, PARTS = 2, OFFSET = 4;
    static constexpr bool HAS_MIN = false;

    DEVICE float scale(u32 j) const {
        u32 low = j < 8 ? scales[j] & 15 : scales[j - 8] >> 4;
        return to_f32(d) * ((float)(low | (scales[8 + j % 4] >> (2 * (j / 4)) & 3) << 4) - 32.0f);
    }

    DEVICE static Factors<2> factors(const u8* block, u32 sub) {
        const Q3_K& b = *(const Q3_K*)block;
        return {{b.scale(2 * sub), b.scale(2 * sub + 1)}, {}};
    }

    DEVICE static u32 levels(const u8* block, u32 sub, u32 side, u32 c) {
        const Q3_K& b = *(const Q3_K*)block;
        u32 low = load_u32<2>(b.qs[sub / 4] + 16 * side + 4 * c) >> (2 * (sub % 4)) & 0x03030303;
        u32 high = load_u32<2>(b.hmask + 16 * side + 4 * c) >> sub & 0x01010101;
        return low | high << 2;
    }
};
static_assert(sizeof(Q3_K) == Q3_K::BYTES, "Q3_K");
