// Q2_K: w = d*sc[j]*q - dmin*m[j], 16 sub-blocks j of 16. Twin of src/quant/k/q2_k.rs.
#pragma once

#include "block.cuh"

struct Q2_K {
    u8 scales[16], qs[2][32];
    half d, dmin;

    static constexpr u32 LEN = 256, BYTES = 84;

    DEVICE static void unpack(const u8* block, u32 sub, float (&w)[32]) {
        const Q2_K& b = *(const Q2_K*)block;
        float d = to_f32(b.d), dmin = to_f32(b.dmin);
        const u8* qs = b.qs[sub / 4];
        for (u32 part = 0; part < 2; part++) {
            u32 sc_and_m = b.scales[2 * sub + part];
            float scale = d * (float)(sc_and_m & 15), min = dmin * (float)(sc_and_m >> 4);
            for (u32 c = 4 * part; c < 4 * part + 4; c++) {
                u32 four = load_u32<4>(qs + 4 * c) >> (2 * (sub % 4)) & 0x03030303;
                for (u32 i = 0; i < 4; i++) w[4 * c + i] = scale * (float)byte_of(four, i) - min;
            }
        }
    }
};
static_assert(sizeof(Q2_K) == Q2_K::BYTES, "Q2_K");
