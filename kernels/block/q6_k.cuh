// Q6_K: w = d*sc[j]*q, 16 sub-blocks j of 16. Twin of src/quant/k/q6_k.rs.
#pragma once

#include "block.cuh"

struct Q6_K : OfLevels {
    u8 ql[2][64], qh[2][32];
    i8 scales[16];
    half d;

    static constexpr u32 LEN = 256, BYTES = 210, PARTS = 2;
    static constexpr bool HAS_MIN = false;

    DEVICE static void unpack(const u8* block, u32 sub, float (&w)[32]) { unpack_levels_of<Q6_K>(block, sub, w); }

    DEVICE static void levels(const u8* block, u32 sub, float (&q)[32], Factors<2>& factors) {
        const Q6_K& b = *(const Q6_K*)block;
        float d = to_f32(b.d);
        u32 run = sub % 4;
        const u8 *ql = b.ql[sub / 4] + 32 * (run % 2), *qh = b.qh[sub / 4];
        for (u32 part = 0; part < 2; part++) {
            factors.scale[part] = d * (float)b.scales[2 * sub + part];
            for (u32 c = 4 * part; c < 4 * part + 4; c++) {
                u32 low = load_u32<2>(ql + 4 * c) >> (4 * (run / 2)) & 0x0f0f0f0f;
                u32 upper = load_u32<2>(qh + 4 * c) >> (2 * run) & 0x03030303;
                u32 four = low | upper << 4;
                for (u32 i = 0; i < 4; i++) q[4 * c + i] = float_of_byte(four, i, 32.0f);
            }
        }
    }
};
static_assert(sizeof(Q6_K) == Q6_K::BYTES, "Q6_K");
