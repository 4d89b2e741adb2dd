// Moves the raw blocks of up to 1024 neighbouring weights of a row into shared memory, for one warp.
//
// Most blocks are only 2-byte aligned, so threads cannot load them wide. A file's bytes stay as they are: the warp copies 16 bytes per
// lane from the last 16-byte boundary before the first block to the next one after the last, and unpacks from shared memory.
// Therefore a buffer of weights must be readable up to the next multiple of 16 bytes.
#pragma once

#include "block.cuh"

// Weights that a warp unpacks at a time: a sub-block of 32 for each lane.
constexpr u32 PIECE_LEN = 1024;

template <class Format>
struct Stage {
    // A piece with what lies before and after it in its first and last 16 bytes.
    static constexpr u32 BYTES = PIECE_LEN / Format::LEN * Format::BYTES / 16 * 16 + 32;

    // `row_len` weights.
    DEVICE static u64 row_bytes(u32 row_len) { return (u64)row_len * Format::BYTES / Format::LEN; }

    // Starts copying the piece of `row` that begins at weight `first`; returns where in `to` its first block will be. Bytes past the
    // row's end are not looked at, but for those that share 16 bytes with its last.
    DEVICE static const u8* copy(const u8* row, u32 first, u32 row_len, u8* to, u32 lane) {
        const u8* from = row + row_bytes(first);
        u32 n_bytes = (u32)row_bytes(row_len - first < PIECE_LEN ? row_len - first : PIECE_LEN);
        u32 before = (u32)((u64)from % 16);
        u32 n_chunks = (before + n_bytes + 15) / 16;
#pragma unroll 1
        for (u32 c = lane; c < n_chunks; c += WARP) copy_async(to + 16 * c, from - before + 16 * c);
        return to + before;
    }

    // The 32 weights of the lane's sub-block, which begins at `column` of the row; zeros past the row's end.
    DEVICE static void unpack(const u8* piece, u32 lane, u32 column, u32 row_len, float (&w)[32]) {
        constexpr u32 SUBS = Format::LEN / 32;
        if (column < row_len) Format::unpack(piece + lane / SUBS * Format::BYTES, lane % SUBS, w);
        if (__is_base_of(PlainFloats, Format) ? column + 32 > row_len : column >= row_len) {
            for (u32 i = 0; i < 32; i++) w[i] = column + i < row_len ? w[i] : 0.0f;
        }
    }
};
