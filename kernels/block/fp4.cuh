// MXFP4 and NVFP4: w = scale*v, v a float of 4 bits. Twins of src/quant/fp4: values are doubled, scales halved.
#pragma once

#include "block.cuh"

// Twice the values of four codes, plus 12: 0 1 2 3 4 6 8 12, and their negatives; the negative zero reads as zero.
DEVICE u32 fp4_levels(u32 nibbles) { return lookup_nibbles<0x0f0e0d0c, 0x18141210, 0x090a0b0c, 0x00040608>(nibbles); }

struct MXFP4 : Levels<MXFP4> {
    u8 e, qs[16];

    static constexpr u32 LEN = 32, BYTES = 17, PARTS = 1, OFFSET = 12;
    static constexpr bool HAS_MIN = false;

    DEVICE static Factors<1> factors(const u8* block, u32) {
        u32 e = ((const MXFP4*)block)->e;
        // 2^(e - 128); the first two are subnormal
        return {{as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23)}, {}};
    }

    DEVICE static u32 levels(const u8* block, u32, u32 side, u32 c) {
        return fp4_levels(low_nibbles(load_u32<1>(((const MXFP4*)block)->qs + 4 * c) >> (4 * side)));
    }
};
static_assert(sizeof(MXFP4) == MXFP4::BYTES, "MXFP4");

struct NVFP4 : Levels<NVFP4> {
    u8 d[4], qs[4][8];

    static constexpr u32 LEN = 64, BYTES = 36, PARTS = 2, OFFSET = 12;
    static constexpr bool HAS_MIN = false;

    // Half of what a UE4M3 means; its highest bit does not count but in 0x7f, the NaN, which reads as 0.
    DEVICE static float half_scale(u32 byte) {
        u32 exponent = byte >> 3 & 15, mantissa = byte & 7;
        if (byte == 0x7f) return 0.0f;
        if (exponent == 0) return (float)mantissa * 0x1p-10f;
        return (float)(8 + mantissa) * as_float((exponent - 11 + 127) << 23);
    }

    DEVICE static Factors<2> factors(const u8* block, u32 sub) {
        const NVFP4& b = *(const NVFP4*)block;
        return {{half_scale(b.d[2 * sub]), half_scale(b.d[2 * sub + 1])}, {}};
    }

    DEVICE static u32 levels(const u8* block, u32 sub, u32 side, u32 c) {
        const u8* qs = ((const NVFP4*)block)->qs[2 * sub + side];
        return fp4_levels(low_nibbles(load_u32<4>(qs + 4 * (c % 2)) >> (4 * (c / 2))));
    }
};
static_assert(sizeof(NVFP4) == NVFP4::BYTES, "NVFP4");
