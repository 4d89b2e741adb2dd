// IQ1_S and IQ1_M: w = d*(2*sc[j] + 1) * (g +- 1/8), g in {-1, 0, 1}. Twins of src/quant/iq/iq1_*.rs.
#pragma once

#include "block.cuh"
#include "grids.cuh"

// Eight weights of a point; `w` are all 32, `k` says which eight.
DEVICE void unpack_iq1_point(u32 point, bool down, float scale, u32 k, float (&w)[32]) {
    float shift = down ? -0.125f : 0.125f;
    for (u32 c = 0; c < 2; c++) {
        u32 levels = spread_two_bits(point >> (8 * c) & 0xff);
        for (u32 i = 0; i < 4; i++) w[8 * k + 4 * c + i] = scale * (((float)(levels >> (4 * i) & 3) - 1.0f) + shift);
    }
}

struct IQ1_S {
    half d;
    u8 points[8][4];
    u16 qh[8];

    static constexpr u32 LEN = 256, BYTES = 50;

    DEVICE static void unpack(const u8* block, u32 sub, float (&w)[32]) {
        const IQ1_S& b = *(const IQ1_S*)block;
        u32 bits = b.qh[sub];
        float scale = to_f32(b.d) * (float)(2 * (bits >> 12 & 7) + 1);
        for (u32 k = 0; k < 4; k++) {
            u32 point = b.points[sub][k] | (bits >> (3 * k) & 7) << 8;
            unpack_iq1_point(GRID_IQ1_S[point], bits >> 15, scale, k, w);
        }
    }
};
static_assert(sizeof(IQ1_S) == IQ1_S::BYTES, "IQ1_S");

struct IQ1_M {
    u8 points[8][4], qh[16];
    u16 scales_and_d[4];

    static constexpr u32 LEN = 256, BYTES = 56;

    DEVICE static void unpack(const u8* block, u32 sub, float (&w)[32]) {
        const IQ1_M& b = *(const IQ1_M*)block;
        const u16* s = b.scales_and_d;
        float d = to_f32(half{(u16)(s[0] >> 12 | s[1] >> 12 << 4 | s[2] >> 12 << 8 | s[3] >> 12 << 12)});
        for (u32 k = 0; k < 4; k++) {
            u32 j = 2 * sub + k / 2;
            float scale = d * (float)(2 * (s[j / 4] >> (3 * (j % 4)) & 7) + 1);
            u32 upper = b.qh[j] >> (4 * (k % 2));
            unpack_iq1_point(GRID_IQ1_S[b.points[sub][k] | (upper & 7) << 8], upper & 8, scale, k, w);
        }
    }
};
static_assert(sizeof(IQ1_M) == IQ1_M::BYTES, "IQ1_M");
