// IQ4_NL: w = d*level[q], and IQ4_XS: w = d*(sc[j] - 32)*level[q], 8 sub-blocks j of 32. Twins of src/quant/iq4.
#pragma once

#include "block.cuh"

// Thirty-two weights from the halves of sixteen bytes. The levels: -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113.
DEVICE void unpack_levels(const u8* qs, float scale, float (&w)[32]) {
    for (u32 c = 0; c < 4; c++) {
        u32 bytes = load_u32<2>(qs + 4 * c);
        u32 low = lookup_nibbles<0xbfad9881, 0xf6eaddcf, 0x26190d01, 0x71594535>(low_nibbles(bytes));
        u32 high = lookup_nibbles<0xbfad9881, 0xf6eaddcf, 0x26190d01, 0x71594535>(high_nibbles(bytes));
        for (u32 i = 0; i < 4; i++) {
            w[4 * c + i] = (float)signed_byte_of(low, i) * scale;
            w[16 + 4 * c + i] = (float)signed_byte_of(high, i) * scale;
        }
    }
}

struct IQ4_NL {
    half d;
    u8 qs[16];

    static constexpr u32 LEN = 32, BYTES = 18;

    DEVICE static void unpack(const u8* block, u32, float (&w)[32]) {
        const IQ4_NL& b = *(const IQ4_NL*)block;
        unpack_levels(b.qs, to_f32(b.d), w);
    }
};
static_assert(sizeof(IQ4_NL) == IQ4_NL::BYTES, "IQ4_NL");

struct IQ4_XS {
    half d;
    u8 scales_h[2], scales_l[4], qs[8][16];

    static constexpr u32 LEN = 256, BYTES = 136;

    DEVICE static void unpack(const u8* block, u32 sub, float (&w)[32]) {
        const IQ4_XS& b = *(const IQ4_XS*)block;
        u32 low = b.scales_l[sub / 2] >> (4 * (sub % 2)) & 15;
        u32 high = b.scales_h[sub / 4] >> (2 * (sub % 4)) & 3;
        unpack_levels(b.qs[sub], to_f32(b.d) * ((float)(low | high << 4) - 32.0f), w);
    }
};
static_assert(sizeof(IQ4_XS) == IQ4_XS::BYTES, "IQ4_XS");
