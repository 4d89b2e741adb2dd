// Moves up to 1024 neighbouring weights of a row into shared memory, for one warp, and from there into each lane's registers.
#pragma once

#include "plain.cuh"

// Weights that a warp unpacks at a time, 32 for each lane.
constexpr u32 PIECE_LEN = 1024;

// Blocks: a lane has a sub-block of 32 weights.
//
// Most are only 2-byte aligned, so threads cannot load them wide. A file's bytes stay as they are: the warp copies 16 bytes per
// lane from the last 16-byte boundary before the first block to the next one after the last, and unpacks from shared memory.
// Therefore a buffer of weights must be readable up to the next multiple of 16 bytes.
template <class Format, bool IS_PLAIN = __is_base_of(PlainFloats, Format)>
struct Stage {
    // A piece with what lies before and after it in its first and last 16 bytes.
    static constexpr u32 BYTES = PIECE_LEN / Format::LEN * Format::BYTES / 16 * 16 + 32;

    // `row_len` weights.
    DEVICE static u64 row_bytes(u32 row_len) { return (u64)row_len * Format::BYTES / Format::LEN; }

    // Where in a stage the first block will be of the piece of `row` that begins at weight `first`.
    DEVICE static u32 before(const u8* row, u32 first) { return (u32)((u64)(row + row_bytes(first)) % 16); }

    // Starts copying that piece. Bytes past the row's end are not looked at, but for those that share 16 bytes with its last.
    DEVICE static void copy(const u8* row, u32 first, u32 row_len, u8* to, u32 lane) {
        u32 n_before = before(row, first);
        const u8* from = row + row_bytes(first) - n_before;
        u32 n_bytes = (u32)row_bytes(row_len - first < PIECE_LEN ? row_len - first : PIECE_LEN);
        u32 n_chunks = (n_before + n_bytes + 15) / 16;
#pragma unroll 1
        for (u32 c = lane; c < n_chunks; c += WARP) copy_async(to + 16 * c, from + 16 * c);
    }

    // The 32 weights of the lane's sub-block; zeros past the row's end. `stage` is as `copy` filled it.
    DEVICE static void unpack(const u8* stage, const u8* row, u32 first, u32 row_len, u32 lane, float (&w)[32]) {
        constexpr u32 SUBS = Format::LEN / 32;
        if (first + 32 * lane < row_len) {
            Format::unpack(stage + before(row, first) + lane / SUBS * Format::BYTES, lane % SUBS, w);
        } else {
            for (u32 i = 0; i < 32; i++) w[i] = 0.0f;
        }
    }
};

// Plain floats: a lane has eight neighbours of each 256 weights, w[8 g + j] = row[first + 256 g + 8 lane + j]. Then lanes next to each other
// read 16 bytes next to each other; with 32 neighbours each, 16 of them would meet in a bank (32 for F32).
template <class Format>
struct Stage<Format, true> {
    static constexpr u32 BYTES = PIECE_LEN * Format::N_BYTES, CHUNKS = Format::N_BYTES / 2; // of eight weights

    DEVICE static u64 row_bytes(u32 row_len) { return (u64)row_len * Format::N_BYTES; }

    // Where chunk `c` of a piece lies. A lane has chunks 2 l and 2 l + 1 of F32: of eight lanes, the last four find them the other way round.
    DEVICE static u32 place(u32 c) { return CHUNKS == 2 ? c ^ c / 8 % 2 : c; }

    // Starts copying the piece that begins at weight `first`, and zeros from the row's end to the next multiple of eight.
    DEVICE static void copy(const u8* row, u32 first, u32 row_len, u8* to, u32 lane) {
        constexpr u32 IN_CHUNK = 16 / Format::N_BYTES;
        u32 n = row_len - first < PIECE_LEN ? row_len - first : PIECE_LEN;
        const u8* from = row + row_bytes(first);
        if (is_read_by_chunks(row, row_len)) {
#pragma unroll 1
            for (u32 c = lane; c < n / IN_CHUNK; c += WARP) copy_async(to + 16 * place(c), from + 16 * c);
        } else {
#pragma unroll 1
            for (u32 i = lane; i < ceil_div(n, 8) * 8; i += WARP) {
                u32 bits = i < n ? plain_bits<Format>(from, i) : 0;
                u8* at = to + 16 * place(i / IN_CHUNK) + i % IN_CHUNK * Format::N_BYTES;
                if (Format::N_BYTES == 4) {
                    *(u32*)at = bits;
                } else {
                    *(u16*)at = (u16)bits;
                }
            }
        }
    }

    DEVICE static void unpack(const u8* stage, const u8*, u32 first, u32 row_len, u32 lane, float (&w)[32]) {
#pragma unroll
        for (u32 g = 0; g < 4; g++) {
            u32 words[4 * CHUNKS] = {};
            if (first + 256 * g + 8 * lane < row_len) {
#pragma unroll
                for (u32 c = 0; c < CHUNKS; c++) {
                    Chunk chunk = ((const Chunk*)stage)[place((WARP * g + lane) * CHUNKS + c)];
#pragma unroll
                    for (u32 i = 0; i < 4; i++) words[4 * c + i] = chunk.words[i];
                }
            }
#pragma unroll
            for (u32 j = 0; j < 8; j++) w[8 * g + j] = Format::weight(words, j);
        }
    }
};
