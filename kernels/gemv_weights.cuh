// Products with formats that are not levels and factors. A warp has four rows of w, two at a time (one, where blocks are as long as F32),
// in pieces of 1024 weights: raw bytes come to shared memory by 16 bytes (stage.cuh), as do the same columns of x for the whole block;
// each lane unpacks 32 weights and multiplies. While it does, the next pieces are on their way.
//
//     w   row 0  |piece|piece|...      lane l has weights 32 l .. 32 l + 31 of a piece,
//         row 1  |piece|piece|...      of plain floats 256 g + 8 l .. 256 g + 8 l + 7 for g = 0 .. 3
//     x   [batch][32 sub-blocks][4 chunks + 1 of padding], beside plain floats [batch][128 chunks]: no two lanes meet in a bank
//
// Every lane adds its products one after the other (fmaf), in the order of the columns that it has, then the lanes are added in a tree.
#pragma once

#include "block/stage.cuh"
#include "gemv.cuh"

template <class Format, u32 BATCH>
struct GemvWeights {
    static constexpr u32 ROWS = Stage<Format>::BYTES > 3000 ? 1 : 2;
    static constexpr u32 STAGES = BATCH > 1 ? 1 : Stage<Format>::BYTES > 2000 ? 2 : 3;

    // A piece of a row of x, as it lies in shared memory: of a lane's four chunks, each that many bytes after the one before.
    static constexpr bool IS_PLAIN = __is_base_of(PlainFloats, Format);
    static constexpr u32 X_LANE_BYTES = IS_PLAIN ? 16 : 80, X_CHUNK_BYTES = IS_PLAIN ? WARP * 16 : 16;
    static constexpr u32 X_ROW_BYTES = IS_PLAIN ? PIECE_LEN * 2 : WARP * X_LANE_BYTES;

    struct Shared {
        alignas(16) u8 w[STAGES][GEMV_WARPS][ROWS][Stage<Format>::BYTES];
        alignas(16) u8 x[STAGES][BATCH][X_ROW_BYTES];
    };

    const GemvWork& work;
    Shared& shared;
    u32 warp, lane;

    DEVICE const u8* row(u32 number) const { return work.blocks + work.row_or_last(number) * Stage<Format>::row_bytes(work.row_len); }

    // Starts copying piece `piece` of the warp's rows and of x.
    DEVICE void copy(u32 first_row, u32 piece) const {
        u32 first = piece * PIECE_LEN, stage = piece % STAGES;
        if (first < work.row_len) {
            for (u32 r = 0; r < ROWS; r++) {
                Stage<Format>::copy(row(first_row + r), first, work.row_len, shared.w[stage][warp][r], lane);
            }
#pragma unroll 1
            for (u32 c = threadIdx.x; c < work.batch * (PIECE_LEN / 8); c += GEMV_THREADS) {
                u32 i = c / (PIECE_LEN / 8), chunk = c % (PIECE_LEN / 8), column = first + 8 * chunk;
                u8* to = shared.x[stage][i] + (IS_PLAIN ? chunk * 16 : chunk / 4 * X_LANE_BYTES + chunk % 4 * X_CHUNK_BYTES);
                copy_async(to, work.x + (u64)i * work.ldx + column, column < work.row_len);
            }
        }
        copy_commit();
    }

    // The lane's 32 weights of a row's piece.
    DEVICE void unpack(u32 row_number, u32 r, u32 piece, float (&w)[32]) const {
        Stage<Format>::unpack(shared.w[piece % STAGES][warp][r], row(row_number), piece * PIECE_LEN, work.row_len, lane, w);
        if constexpr (BATCH > 1 && IS_PLAIN) {
#pragma unroll
            for (u32 i = 0; i < 32; i++) w[i] = kept(w[i]); // for all rows of x
        }
    }

    // The loop over x's rows is not unrolled, which would be most of this file's code; as registers have no index, the sums move on by
    // one place with each row, and after BATCH rows they are where they were.
    DEVICE void multiply(const float (&w)[ROWS][32], u32 piece, float (&sums)[BATCH][ROWS]) const {
#pragma unroll 1
        for (u32 i = 0; i < BATCH; i++) {
            if (i < work.batch) multiply_row(w, shared.x[piece % STAGES][i] + lane * X_LANE_BYTES, sums[0]);
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) {
                float first = sums[0][r];
#pragma unroll
                for (u32 j = 0; j + 1 < BATCH; j++) sums[j][r] = sums[j + 1][r];
                sums[BATCH - 1][r] = first;
            }
        }
    }

    DEVICE void multiply_row(const float (&w)[ROWS][32], const u8* x_lane, float (&sums)[ROWS]) const {
#pragma unroll
        for (u32 c = 0; c < 4; c++) {
            Chunk chunk = *(const Chunk*)(x_lane + c * X_CHUNK_BYTES);
#pragma unroll
            for (u32 j = 0; j < 8; j++) {
                float x = j % 2 ? high_f16(chunk.words[j / 2]) : low_f16(chunk.words[j / 2]);
#pragma unroll
                for (u32 r = 0; r < ROWS; r++) sums[r] = fmaf(w[r][8 * c + j], x, sums[r]);
            }
        }
    }

    // The sums of the warp's rows from `first_row` on.
    DEVICE void run(u32 first_row, float (&sums)[BATCH][ROWS]) const {
        u32 n_pieces = ceil_div(work.row_len, PIECE_LEN);
        for (u32 piece = 0; piece + 1 < STAGES; piece++) copy(first_row, piece);
#pragma unroll 1
        for (u32 piece = 0; piece < n_pieces; piece++) {
            copy(first_row, piece + STAGES - 1);
            copy_wait<STAGES - 1>();
            __syncthreads();
            if (piece * PIECE_LEN + (IS_PLAIN ? 8 : 32) * lane < work.row_len) {
                float w[ROWS][32];
#pragma unroll
                for (u32 r = 0; r < ROWS; r++) unpack(first_row + r, r, piece, w[r]);
                multiply(w, piece, sums);
            }
            __syncthreads(); // the next copy goes over what was read here
        }
        copy_wait<0>();
    }
};

template <class Format, u32 BATCH>
DEVICE void gemv_weights(const GemvWork& work) {
    typedef GemvWeights<Format, BATCH> Weights;
    __shared__ typename Weights::Shared shared;
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    constexpr u32 ROWS = Weights::ROWS, PER_WARP = GEMV_ROWS / GEMV_WARPS;
    Weights weights{work, shared, warp, lane};
#pragma unroll 1
    for (u32 pass = 0; pass < PER_WARP / ROWS; pass++) {
        u32 first = work.first_row + warp * PER_WARP + pass * ROWS;
        float sums[BATCH][ROWS] = {};
        weights.run(first, sums);
        // Lane BATCH * r + i stores the sum of row r and of row i of x.
        float own = 0.0f;
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
#pragma unroll
            for (u32 i = 0; i < BATCH; i++) {
                float sum = warp_sum(sums[i][r]);
                if (lane == BATCH * r + i) own = sum;
            }
        }
        if (lane < BATCH * ROWS) work.store(first + lane / BATCH, lane % BATCH, own);
    }
}
