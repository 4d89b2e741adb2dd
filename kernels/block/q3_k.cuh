// Q3_K: w = d*sc[j]*q, 16 sub-blocks j of 16. Twin of src/quant/k/q3_k.rs.
#pragma once

#include "block.cuh"

struct Q3_K {
    u8 hmask[32], qs[2][32], scales[12];
    half d;

    static constexpr u32 LEN = 256, BYTES = 110;

    // sc + 32
    DEVICE u32 scale(u32 j) const {
        u32 low = j < 8 ? scales[j] & 15 : scales[j - 8] >> 4;
        return low | (scales[8 + j % 4] >> (2 * (j / 4)) & 3) << 4;
    }

    DEVICE static void unpack(const u8* block, u32 sub, float (&w)[32]) {
        const Q3_K& b = *(const Q3_K*)block;
        float d = to_f32(b.d);
        const u8* qs = b.qs[sub / 4];
        for (u32 part = 0; part < 2; part++) {
            float scale = d * ((float)b.scale(2 * sub + part) - 32.0f);
            for (u32 c = 4 * part; c < 4 * part + 4; c++) {
                u32 low = load_u32<2>(qs + 4 * c) >> (2 * (sub % 4)) & 0x03030303;
                u32 high = load_u32<2>(b.hmask + 4 * c) >> sub & 0x01010101;
                u32 four = low | high << 2;
                for (u32 i = 0; i < 4; i++) w[4 * c + i] = scale * ((float)byte_of(four, i) - 4.0f);
            }
        }
    }
};
static_assert(sizeof(Q3_K) == Q3_K::BYTES, "Q3_K");
