// F32, F16, BF16: twins of src/quant/plain.rs. Thirty-two weights count as a block, of which a row's last may be a part. They have
//
//   N_BYTES  of a weight
//   weight(words, i)   weight i of those in some words
#pragma once

#include "block.cuh"

struct F32 : PlainFloats {
    static constexpr u32 LEN = 32, N_BYTES = 4, BYTES = LEN * N_BYTES;
    DEVICE static float weight(const u32* words, u32 i) { return as_float(words[i]); }
};

struct F16 : PlainFloats {
    static constexpr u32 LEN = 32, N_BYTES = 2, BYTES = LEN * N_BYTES;
    DEVICE static float weight(const u32* words, u32 i) { return i % 2 ? high_f16(words[i / 2]) : low_f16(words[i / 2]); }
};

// The upper half of an F32.
struct BF16 : PlainFloats {
    static constexpr u32 LEN = 32, N_BYTES = 2, BYTES = LEN * N_BYTES;
    DEVICE static float weight(const u32* words, u32 i) { return as_float(i % 2 ? words[i / 2] & 0xffff0000 : words[i / 2] << 16); }
};

// The bits of weight `i` of a row, wherever it begins.
template <class Format>
DEVICE u32 plain_bits(const u8* row, u32 i) {
    return Format::N_BYTES == 4 ? ((const u32*)row)[i] : ((const u16*)row)[i];
}

// Whether a row can be read by 16 bytes, eight weights at a time: so are all rows of models. Others, with an odd number of columns, are
// read weight by weight.
DEVICE bool is_read_by_chunks(const u8* row, u32 row_len) { return (u64)row % 16 == 0 && row_len % 8 == 0; }
