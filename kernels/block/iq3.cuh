// IQ3_XXS: w = d*(sc[j] + 1/2)/2 * +-g, and IQ3_S: w = d*(2*sc[j] + 1) * +-g. Twins of src/quant/iq/iq3_*.rs.
#pragma once

#include "block.cuh"
#include "grids.cuh"

struct IQ3_XXS {
    half d;
    u8 points[8][8], signs_and_scales[8][4];

    static constexpr u32 LEN = 256, BYTES = 98;

    DEVICE static void unpack(const u8* block, u32 sub, float (&w)[32]) {
        const IQ3_XXS& b = *(const IQ3_XXS*)block;
        u32 bits = load_u32<2>(b.signs_and_scales[sub]);
        float scale = to_f32(b.d) * (0.5f + (float)(bits >> 28)) * 0.5f;
        for (u32 k = 0; k < 8; k++) {
            // g: 4 12 20 28 36 44 52 62
            u32 magnitudes = __byte_perm(0x1c140c04, 0x3e342c24, spread_three_bits(GRID_IQ3_XXS[b.points[sub][k]]));
            u32 signs = even_signs(bits >> (7 * (k / 2)) & 127);
            for (u32 i = 0; i < 4; i++) w[4 * k + i] = scale * with_sign((float)byte_of(magnitudes, i), signs, 4 * (k % 2) + i);
        }
    }
};
static_assert(sizeof(IQ3_XXS) == IQ3_XXS::BYTES, "IQ3_XXS");

struct IQ3_S {
    half d;
    u8 points[8][8], qh[8], signs[8][4], scales[4];

    static constexpr u32 LEN = 256, BYTES = 110;

    DEVICE static void unpack(const u8* block, u32 sub, float (&w)[32]) {
        const IQ3_S& b = *(const IQ3_S*)block;
        u32 sc = b.scales[sub / 2] >> (4 * (sub % 2)) & 15;
        float scale = to_f32(b.d) * (float)(2 * sc + 1);
        for (u32 k = 0; k < 8; k++) {
            u32 point = b.points[sub][k] | (b.qh[sub] >> k & 1) << 8;
            // g: 1 3 5 7 9 11 13 15
            u32 magnitudes = __byte_perm(0x07050301, 0x0f0d0b09, spread_three_bits(GRID_IQ3_S[point]));
            u32 signs = b.signs[sub][k / 2];
            for (u32 i = 0; i < 4; i++) w[4 * k + i] = scale * with_sign((float)byte_of(magnitudes, i), signs, 4 * (k % 2) + i);
        }
    }
};
static_assert(sizeof(IQ3_S) == IQ3_S::BYTES, "IQ3_S");
