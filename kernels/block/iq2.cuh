// IQ2_XXS, IQ2_XS, IQ2_S: w = d*(sc[j] + 1/2)/4 * +-g, g in {8, 25, 43}. Twins of src/quant/iq/iq2_*.rs.
#pragma once

#include "block.cuh"
#include "grids.cuh"

DEVICE float iq2_scale(float d, u32 sc) { return d * (0.5f + (float)sc) * 0.25f; }

// Eight weights of a point; `w` are all 32, `k` says which eight.
DEVICE void unpack_iq2_point(u32 point, u32 signs, float scale, u32 k, float (&w)[32]) {
    for (u32 c = 0; c < 2; c++) {
        u32 magnitudes = __byte_perm(0x002b1908, 0, spread_two_bits(point >> (8 * c) & 0xff));
        for (u32 i = 0; i < 4; i++) w[8 * k + 4 * c + i] = scale * with_sign((float)byte_of(magnitudes, i), signs, 4 * c + i);
    }
}

struct IQ2_XXS {
    half d;
    struct {
        u8 points[4], signs_and_scale[4];
    } sub_blocks[8];

    static constexpr u32 LEN = 256, BYTES = 66;

    DEVICE static void unpack(const u8* block, u32 sub, float (&w)[32]) {
        const IQ2_XXS& b = *(const IQ2_XXS*)block;
        u32 bits = load_u32<2>(b.sub_blocks[sub].signs_and_scale);
        float scale = iq2_scale(to_f32(b.d), bits >> 28);
        for (u32 k = 0; k < 4; k++)
            unpack_iq2_point(GRID_IQ2_XXS[b.sub_blocks[sub].points[k]], even_signs(bits >> (7 * k) & 127), scale, k, w);
    }
};
static_assert(sizeof(IQ2_XXS) == IQ2_XXS::BYTES, "IQ2_XXS");

struct IQ2_XS {
    half d;
    u16 points_and_signs[8][4];
    u8 scales[8];

    static constexpr u32 LEN = 256, BYTES = 74;

    DEVICE static void unpack(const u8* block, u32 sub, float (&w)[32]) {
        const IQ2_XS& b = *(const IQ2_XS*)block;
        float d = to_f32(b.d);
        for (u32 k = 0; k < 4; k++) {
            u32 bits = b.points_and_signs[sub][k];
            float scale = iq2_scale(d, b.scales[sub] >> (4 * (k / 2)) & 15);
            unpack_iq2_point(GRID_IQ2_XS[bits & 511], even_signs(bits >> 9), scale, k, w);
        }
    }
};
static_assert(sizeof(IQ2_XS) == IQ2_XS::BYTES, "IQ2_XS");

struct IQ2_S {
    half d;
    u8 points[8][4], signs[8][4], qh[8], scales[8];

    static constexpr u32 LEN = 256, BYTES = 82;

    DEVICE static void unpack(const u8* block, u32 sub, float (&w)[32]) {
        const IQ2_S& b = *(const IQ2_S*)block;
        float d = to_f32(b.d);
        for (u32 k = 0; k < 4; k++) {
            u32 point = b.points[sub][k] | (b.qh[sub] >> (2 * k) & 3) << 8;
            float scale = iq2_scale(d, b.scales[sub] >> (4 * (k / 2)) & 15);
            unpack_iq2_point(GRID_IQ2_S[point], b.signs[sub][k], scale, k, w);
        }
    }
};
static_assert(sizeof(IQ2_S) == IQ2_S::BYTES, "IQ2_S");
