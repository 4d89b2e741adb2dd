// TQ1_0, TQ2_0, Q2_0: w = d*(q - 1), and Q1_0: w = d or -d. Twins of src/quant/ternary.
#pragma once

#include "block.cuh"

struct TQ1_0 {
    u8 qs[3][16], qh[4];
    half d;

    static constexpr u32 LEN = 256, BYTES = 54;

    // Digit n of the number whose 256ths of 3^5 a byte holds, the highest first; `power` is 3^n.
    DEVICE static u32 digit(u32 byte, u32 power) { return (byte * power & 0xff) * 3 >> 8; }

    DEVICE static void unpack(const u8* block, u32 sub, float (&w)[32]) {
        const TQ1_0& b = *(const TQ1_0*)block;
        float d = to_f32(b.d);
        const u32 powers = 0x51u << 24 | 27 << 16 | 9 << 8 | 3; // 3^4 .. 3^1
        for (u32 part = 0; part < 2; part++) {
            // Chunks of 16 weights: the first ten are digits of bytes 0-31, five more of bytes 32-47, and the last of `qh`.
            u32 chunk = 2 * sub + part;
            const u8* bytes = chunk < 10 ? b.qs[part] : b.qs[2];
            u32 n = chunk < 10 ? sub : chunk - 10;
            u32 power = n == 0 ? 1 : byte_of(powers, n - 1);
            for (u32 i = 0; i < 16; i++) {
                u32 last_power = i < 4 ? 1 : byte_of(powers, i / 4 - 1);
                u32 q = chunk == 15 ? digit(b.qh[i % 4], last_power) : digit(bytes[i], power);
                w[16 * part + i] = ((float)q - 1.0f) * d;
            }
        }
    }
};
static_assert(sizeof(TQ1_0) == TQ1_0::BYTES, "TQ1_0");

struct TQ2_0 : Levels<TQ2_0> {
    u8 qs[2][32];
    half d;

    static constexpr u32 LEN = 256, BYTES = 66, PARTS = 1, OFFSET = 1;
    static constexpr bool HAS_MIN = false;

    DEVICE static Factors<1> factors(const u8* block, u32) { return {{to_f32(((const TQ2_0*)block)->d)}, {}}; }

    DEVICE static u32 levels(const u8* block, u32 sub, u32 side, u32 c) {
        return load_u32<2>(((const TQ2_0*)block)->qs[sub / 4] + 16 * side + 4 * c) >> (2 * (sub % 4)) & 0x03030303;
    }
};
static_assert(sizeof(TQ2_0) == TQ2_0::BYTES, "TQ2_0");

struct Q2_0 {
    half d;
    u8 qs[2][8];

    static constexpr u32 LEN = 64, BYTES = 18;

    DEVICE static void unpack(const u8* block, u32 sub, float (&w)[32]) {
        const Q2_0& b = *(const Q2_0*)block;
        float d = to_f32(b.d);
        for (u32 i = 0; i < 32; i++) w[i] = ((float)(b.qs[sub][i / 4] >> (2 * (i % 4)) & 3) - 1.0f) * d;
    }
};
static_assert(sizeof(Q2_0) == Q2_0::BYTES, "Q2_0");

struct Q1_0 {
    half d;
    u8 signs[4][4];

    static constexpr u32 LEN = 128, BYTES = 18;

    DEVICE static void unpack(const u8* block, u32 sub, float (&w)[32]) {
        const Q1_0& b = *(const Q1_0*)block;
        float d = to_f32(b.d);
        u32 minus = ~load_u32<2>(b.signs[sub]);
        for (u32 i = 0; i < 32; i++) w[i] = with_sign(d, minus, i);
    }
};
static_assert(sizeof(Q1_0) == Q1_0::BYTES, "Q1_0");
