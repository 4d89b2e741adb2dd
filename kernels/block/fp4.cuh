// MXFP4 and NVFP4: w = scale*v, v a float of 4 bits. Twins of src/quant/fp4: values are doubled, scales halved.
#pragma once

#include "block.cuh"

// Twice the values of four codes: 0 1 2 3 4 6 8 12, and their negatives; the negative zero reads as zero.
DEVICE u32 fp4_values(u32 nibbles) { return lookup_nibbles<0x03020100, 0x0c080604, 0xfdfeff00, 0xf4f8fafc>(nibbles); }

struct MXFP4 {
    u8 e, qs[16];

    static constexpr u32 LEN = 32, BYTES = 17;

    DEVICE static void unpack(const u8* block, u32, float (&w)[32]) {
        const MXFP4& b = *(const MXFP4*)block;
        // 2^(e - 128); the first two are subnormal
        float d = as_float(b.e < 2 ? 0x00200000u << b.e : (u32)(b.e - 1) << 23);
        for (u32 c = 0; c < 4; c++) {
            u32 bytes = load_u32<1>(b.qs + 4 * c);
            u32 low = fp4_values(low_nibbles(bytes)), high = fp4_values(high_nibbles(bytes));
            for (u32 i = 0; i < 4; i++) {
                w[4 * c + i] = (float)signed_byte_of(low, i) * d;
                w[16 + 4 * c + i] = (float)signed_byte_of(high, i) * d;
            }
        }
    }
};
static_assert(sizeof(MXFP4) == MXFP4::BYTES, "MXFP4");

struct NVFP4 {
    u8 d[4], qs[4][8];

    static constexpr u32 LEN = 64, BYTES = 36;

    // Half of what a UE4M3 means; its highest bit does not count but in 0x7f, the NaN, which reads as 0.
    DEVICE static float half_scale(u32 byte) {
        u32 exponent = byte >> 3 & 15, mantissa = byte & 7;
        if (byte == 0x7f) return 0.0f;
        if (exponent == 0) return (float)mantissa * 0x1p-10f;
        return (float)(8 + mantissa) * as_float((exponent - 11 + 127) << 23);
    }

    DEVICE static void unpack(const u8* block, u32 sub, float (&w)[32]) {
        const NVFP4& b = *(const NVFP4*)block;
        for (u32 part = 0; part < 2; part++) {
            u32 j = 2 * sub + part;
            float d = half_scale(b.d[j]);
            for (u32 c = 0; c < 2; c++) {
                u32 bytes = load_u32<4>(b.qs[j] + 4 * c);
                u32 low = fp4_values(low_nibbles(bytes)), high = fp4_values(high_nibbles(bytes));
                for (u32 i = 0; i < 4; i++) {
                    w[16 * part + 4 * c + i] = (float)signed_byte_of(low, i) * d;
                    w[16 * part + 8 + 4 * c + i] = (float)signed_byte_of(high, i) * d;
                }
            }
        }
    }
};
static_assert(sizeof(NVFP4) == NVFP4::BYTES, "NVFP4");
