// IQ4_NL: w = d*level[q], and IQ4_XS: w = d*(sc[j] - 32)*level[q], 8 sub-blocks j of 32. Twins of src/quant/iq4.
#pragma once

#include "block.cuh"

// Four of 32 levels, plus 128, from halves of sixteen bytes: -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113.
DEVICE u32 iq4_levels(const u8* qs, u32 side, u32 c) {
    return lookup_nibbles<0x3f2d1801, 0x766a5d4f, 0xa6998d81, 0xf1d9c5b5>(low_nibbles(load_u32<2>(qs + 4 * c) >> (4 * side)));
}

struct IQ4_NL : Levels<IQ4_NL> {
    half d;
    u8 qs[16];

    static constexpr u32 LEN = 32, BYTES = 18, PARTS = 1, OFFSET = 128;
    static constexpr bool HAS_MIN = false;

    DEVICE static Factors<1> factors(const u8* block, u32) { return {{to_f32(((const IQ4_NL*)block)->d)}, {}}; }
    DEVICE static u32 levels(const u8* block, u32, u32 side, u32 c) { return iq4_levels(((const IQ4_NL*)block)->qs, side, c); }
};
static_assert(sizeof(IQ4_NL) == IQ4_NL::BYTES, "IQ4_NL");

struct IQ4_XS : Levels<IQ4_XS> {
    half d;
    u8 scales_h[2], scales_l[4], qs[8][16];

    static constexpr u32 LEN = 256, BYTES = 136, PARTS = 1, OFFSET = 128;
    static constexpr bool HAS_MIN = false;

    DEVICE static Factors<1> factors(const u8* block, u32 sub) {
        const IQ4_XS& b = *(const IQ4_XS*)block;
        u32 low = b.scales_l[sub / 2] >> (4 * (sub % 2)) & 15;
        u32 high = b.scales_h[sub / 4] >> (2 * (sub % 4)) & 3;
        return {{to_f32(b.d) * ((float)(low | high << 4) - 32.0f)}, {}};
    }

    DEVICE static u32 levels(const u8* block, u32 sub, u32 side, u32 c) { return iq4_levels(((const IQ4_XS*)block)->qs[sub], side, c); }
};
static_assert(sizeof(IQ4_XS) == IQ4_XS::BYTES, "IQ4_XS");
