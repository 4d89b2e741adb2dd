// F32, F16, BF16: twins of src/quant/plain.rs. Thirty-two weights count as a block.
#pragma once

#include "block.cuh"

struct F32 : PlainFloats {
    static constexpr u32 LEN = 32, BYTES = 128;

    DEVICE static void unpack(const u8* block, u32, float (&w)[32]) {
        for (u32 i = 0; i < 32; i++) w[i] = ((const float*)block)[i];
    }
};

struct F16 : PlainFloats {
    static constexpr u32 LEN = 32, BYTES = 64;

    DEVICE static void unpack(const u8* block, u32, float (&w)[32]) {
        for (u32 i = 0; i < 32; i++) w[i] = to_f32(((const half*)block)[i]);
    }
};

// The upper half of an F32.
struct BF16 : PlainFloats {
    static constexpr u32 LEN = 32, BYTES = 64;

    DEVICE static void unpack(const u8* block, u32, float (&w)[32]) {
        for (u32 i = 0; i < 32; i++) w[i] = as_float((u32)((const u16*)block)[i] << 16);
    }
};
