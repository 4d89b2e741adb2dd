// Q5_0: w = d*(q - 16), and Q5_1: w = d*q + m. Twins of src/quant/simple/q5_0.rs and q5_1.rs.
#pragma once

#include "block.cuh"

// The quants of 32 weights, four to a word: halves of `qs`, and bit i of `qh` as fifth bit of weight i.
template <u32 ALIGN>
struct FiveBits {
    u32 words[8];

    DEVICE FiveBits(const u8* qh, const u8* qs) {
        u32 fifth = load_u32<ALIGN>(qh);
        for (u32 c = 0; c < 4; c++) {
            u32 four = load_u32<ALIGN>(qs + 4 * c);
            words[c] = (four & 0x0f0f0f0f) | fifth_bits(fifth >> (4 * c));
            words[4 + c] = (four >> 4 & 0x0f0f0f0f) | fifth_bits(fifth >> (16 + 4 * c));
        }
    }

    // The low four bits become bit 4 of four bytes: a multiplication puts a copy seven bits further on for each.
    DEVICE static u32 fifth_bits(u32 bits) { return (bits & 15) * 0x00204081 << 4 & 0x10101010; }
};

struct Q5_0 {
    half d;
    u8 qh[4], qs[16];

    static constexpr u32 LEN = 32, BYTES = 22;

    DEVICE static void unpack(const u8* block, u32, float (&w)[32]) {
        const Q5_0& b = *(const Q5_0*)block;
        float d = to_f32(b.d);
        FiveBits<2> q(b.qh, b.qs);
        for (u32 i = 0; i < 32; i++) w[i] = ((float)byte_of(q.words[i / 4], i % 4) - 16.0f) * d;
    }
};
static_assert(sizeof(Q5_0) == Q5_0::BYTES, "Q5_0");

struct Q5_1 {
    half d, m;
    u8 qh[4], qs[16];

    static constexpr u32 LEN = 32, BYTES = 24;

    DEVICE static void unpack(const u8* block, u32, float (&w)[32]) {
        const Q5_1& b = *(const Q5_1*)block;
        float d = to_f32(b.d), m = to_f32(b.m);
        FiveBits<4> q(b.qh, b.qs);
        for (u32 i = 0; i < 32; i++) w[i] = (float)byte_of(q.words[i / 4], i % 4) * d + m;
    }
};
static_assert(sizeof(Q5_1) == Q5_1::BYTES, "Q5_1");
