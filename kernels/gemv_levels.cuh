// Products with formats of levels: w = scale * q - min. Tensor cores multiply the levels, which are exact as halves, with x; the sums of
// a sub-block of 32, or of each 16 of it, are multiplied with its factors in f32.
//
// A block has 16 rows of w, the rows of a fragment; x's rows, at most eight, are the fragment's columns. Its four warps take turns at
// pieces of 256 columns, and their sums are added in the end:
//
//     w   16 rows  |warp 0|warp 1|warp 2|warp 3|warp 0|...      STAGES pieces of each warp are in shared memory or on their way
//
// Lane l has, of each sub-block, weights 4 p .. 4 p + 3 and 16 + 4 p .. 16 + 4 p + 3 of rows g and g + 8, with g = l / 4 and p = l % 4,
// and the same columns of row g of x. In which order mma sees columns does not matter, as long as both factors have the same.
//
// A level is made half by putting its byte before a sign: a subnormal, -(q + OFFSET) * 2^-24, which tensor cores multiply like any other
// number (Fasi et al., Numerical behavior of NVIDIA tensor cores, 2021). A fragment of OFFSET * 2^-24 takes the offset off again, and one
// of 2^-24 gives the sum of x that goes with the minimum. So sums are those of -w * 2^-24, and exact are all of their factors.
//
// Factors are made once for the four lanes of a row: those of row r of a piece by lanes r and r + 16.
#pragma once

#include "gemv.cuh"

constexpr u32 GEMV_PIECE = 256, PIECE_SUBS = GEMV_PIECE / 32;

// Bytes `first` and `first + 1` of a word as halves, times -2^-24.
DEVICE u32 negative_halves(u32 four, u32 first) { return __byte_perm(four, 0x80808080, 0x4140 + first * 0x0101); }

template <class Format, u32 BATCH>
struct GemvLevels {
    typedef Factors<Format::PARTS> RowFactors;
    static constexpr u32 SUBS = Format::LEN / 32, PARTS = Format::PARTS;
    static constexpr bool WHOLE_PIECES = Format::LEN % GEMV_PIECE == 0;
    // Columns of a fragment of sums that a lane has: 2 p and 2 p + 1. One row of x is in column 0.
    static constexpr u32 COLUMNS = BATCH == 1 ? 1 : 2;

    // A row's bytes of a piece, and chunks of 16 bytes that they touch; an odd number of them, so that no two of eight rows begin in the
    // same four banks.
    static constexpr u32 BYTES = GEMV_PIECE / Format::LEN * Format::BYTES;
    static constexpr bool ALIGNED = Format::BYTES % 16 == 0;
    static constexpr u32 CHUNKS = (ALIGNED ? BYTES : BYTES + 30) / 16 | 1, ROW_BYTES = CHUNKS * 16, STAGE_BYTES = GEMV_ROWS * ROW_BYTES;
    static constexpr u32 COPIES = (GEMV_ROWS * CHUNKS + WARP - 1) / WARP;

    union Results {
        RowFactors factors[PIECE_SUBS][GEMV_ROWS];
        float sums[BATCH][GEMV_ROWS]; // in the end
    };
    static constexpr u32 STAGES_MAX = (SHARED_BYTES_MAX / GEMV_WARPS - sizeof(Results)) / STAGE_BYTES;
    static constexpr u32 STAGES = STAGES_MAX < 4 ? STAGES_MAX : 4;
    static_assert(STAGES >= 2, "a piece is on its way while another is multiplied");

    struct Shared {
        alignas(16) u8 stages[STAGES][STAGE_BYTES];
        alignas(16) Results results;
    };

    const GemvWork& work;
    Shared& shared; // the warp's
    u32 warp, lane, first_row;

    DEVICE u64 row_bytes() const { return (u64)work.row_len * Format::BYTES / Format::LEN; }
    DEVICE const u8* row(u32 r) const { return work.blocks + work.row_or_last(first_row + r) * row_bytes(); }

    // From one of the warp's pieces to the next. Most formats then find the same places within 16 bytes.
    static constexpr u32 STEP = GEMV_WARPS * BYTES;
    static constexpr bool SAME_PLACES = STEP % 16 == 0;

    // The warp's next piece that is to be copied. Lane l copies chunks c = l + 32 i: chunk c % CHUNKS of row c / CHUNKS.
    struct Next {
        const u8* from;
        u32 offsets[COPIES];
        i32 first_bytes[COPIES]; // of the row's piece
        u32 piece;
    };

    DEVICE Next first_piece() const {
        const u8* from = work.blocks + first_row * row_bytes() + warp * BYTES;
        u32 before = SAME_PLACES ? (u32)(u64)from % 16 : 0;
        Next next{from - before, {}, {}, warp};
#pragma unroll
        for (u32 i = 0; i < COPIES; i++) {
            u32 c = lane + WARP * i, first_byte = c % CHUNKS * 16;
            u32 offset = before + (work.row_or_last(first_row + c / CHUNKS) - first_row) * (u32)row_bytes() + first_byte;
            u32 misaligned = SAME_PLACES ? offset % 16 : 0;
            next.offsets[i] = offset - misaligned;
            next.first_bytes[i] = (i32)(first_byte - misaligned);
        }
        return next;
    }

    // Starts copying it.
    DEVICE void copy(Next& next, u8* stage) const {
        u32 first = next.piece * GEMV_PIECE;
        if (first < work.row_len) {
            i32 n_bytes = WHOLE_PIECES || first + GEMV_PIECE <= work.row_len ? BYTES : (work.row_len - first) / Format::LEN * Format::BYTES;
#pragma unroll
            for (u32 i = 0; i < COPIES; i++) {
                const u8* from = next.from + next.offsets[i];
                u32 misaligned = SAME_PLACES ? 0 : (u32)(u64)from % 16;
                bool is_needed = (ALIGNED && WHOLE_PIECES) || next.first_bytes[i] - (i32)misaligned < n_bytes;
                if (lane + WARP * i < GEMV_ROWS * CHUNKS && is_needed) copy_async(stage + 16 * (lane + WARP * i), from - misaligned);
            }
        }
        next.from += STEP;
        next.piece += GEMV_WARPS;
        copy_commit();
    }

    // Where row r of a piece begins in its stage.
    DEVICE u8* row_in(u8* stage, u32 r, u32 piece) const {
        u32 before = ALIGNED ? 0 : ((u32)(u64)row(r) + piece * BYTES) % 16;
        return stage + r * ROW_BYTES + before;
    }

    // Blocks past the row's end become zeros, which all of these formats read as zero weights.
    DEVICE void clear_end(u8* stage, u32 piece) const {
        u32 n_bytes = (work.row_len - piece * GEMV_PIECE) / Format::LEN * Format::BYTES;
#pragma unroll 1
        for (u32 r = 0; r < GEMV_ROWS; r++) {
#pragma unroll 1
            for (u32 at = n_bytes + lane; at < BYTES; at += WARP) row_in(stage, r, piece)[at] = 0;
        }
        __syncwarp();
    }

    // The lane's columns of the sub-blocks of a piece of x; zeros past the row's end. Lanes of rows that do not exist have the last one's.
    DEVICE void load_x(u32 piece, u32 (&x)[PIECE_SUBS][2][2]) const {
        u32 i = lane / 4 < work.batch ? lane / 4 : work.batch - 1, first = piece * GEMV_PIECE;
        const half* from = work.x + (u64)i * work.ldx + first + lane % 4 * 4;
        if (WHOLE_PIECES || first + GEMV_PIECE <= work.row_len) {
#pragma unroll
            for (u32 sub = 0; sub < PIECE_SUBS; sub++) load_sub_block(from + 32 * sub, x[sub]);
        } else {
#pragma unroll
            for (u32 sub = 0; sub < PIECE_SUBS; sub++) {
                if (first + 32 * sub < work.row_len) {
                    load_sub_block(from + 32 * sub, x[sub]);
                } else {
                    x[sub][0][0] = x[sub][0][1] = x[sub][1][0] = x[sub][1][1] = 0;
                }
            }
        }
    }

    DEVICE static void load_sub_block(const half* from, u32 (&x)[2][2]) {
        struct alignas(8) Four {
            u32 words[2];
        };
#pragma unroll
        for (u32 side = 0; side < 2; side++) {
            Four four = *(const Four*)(from + 16 * side);
            x[side][0] = four.words[0];
            x[side][1] = four.words[1];
        }
    }

    // All factors of a piece.
    DEVICE void make_factors(u8* stage, u32 piece) const {
        const u8* blocks = row_in(stage, lane % GEMV_ROWS, piece);
        RowFactors own[PIECE_SUBS / 2];
#pragma unroll
        for (u32 i = 0; i < PIECE_SUBS / 2; i++) {
            u32 sub = 2 * i + lane / GEMV_ROWS;
            own[i] = Format::factors(blocks + sub / SUBS * Format::BYTES, sub % SUBS);
        }
#pragma unroll
        for (u32 i = 0; i < PIECE_SUBS / 2; i++) shared.results.factors[2 * i + lane / GEMV_ROWS][lane % GEMV_ROWS] = own[i];
    }

    // Adds the products of sub-block `sub` of the blocks of two rows: [rows g, g + 8][columns].
    DEVICE void multiply(const u8* upper, const u8* lower, u32 sub, const RowFactors (&factors)[GEMV_ROWS], const u32 (&x)[2][2],
                         float (&sums)[2][COLUMNS]) const {
        constexpr u32 ONE = 0x00010001, OFFSET = ONE * Format::OFFSET;
        float dots[PARTS][4] = {}, x_sums[PARTS][4] = {};
#pragma unroll
        for (u32 side = 0; side < 2; side++) {
            u32 part = side % PARTS;
            u32 of_upper = Format::levels(upper, sub, side, lane % 4), of_lower = Format::levels(lower, sub, side, lane % 4);
            u32 q[4] = {negative_halves(of_upper, 0), negative_halves(of_lower, 0), negative_halves(of_upper, 2),
                        negative_halves(of_lower, 2)};
            if (Format::OFFSET) mma_16x8x16(dots[part], {OFFSET, OFFSET, OFFSET, OFFSET}, x[side][0], x[side][1]);
            if (Format::HAS_MIN) mma_16x8x16(x_sums[part], {ONE, ONE, ONE, ONE}, x[side][0], x[side][1]);
            mma_16x8x16(dots[part], q, x[side][0], x[side][1]);
        }
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            RowFactors of_row = factors[lane / 4 + 8 * r];
#pragma unroll
            for (u32 part = 0; part < PARTS; part++) {
#pragma unroll
                for (u32 c = 0; c < COLUMNS; c++) {
                    sums[r][c] = fmaf(of_row.scale[part], dots[part][2 * r + c], sums[r][c]);
                    if (Format::HAS_MIN) sums[r][c] = fmaf(of_row.min[part], x_sums[part][2 * r + c], sums[r][c]);
                }
            }
        }
    }

    // The sums of the warp's pieces.
    DEVICE void run(float (&sums)[2][COLUMNS]) const {
        Next next = first_piece();
        for (u32 s = 0; s + 1 < STAGES; s++) copy(next, shared.stages[s]);
        u8 *stage = shared.stages[0], *last_stage = shared.stages[STAGES - 1], *free_stage = last_stage;
#pragma unroll 1
        for (u32 piece = warp; piece * GEMV_PIECE < work.row_len; piece += GEMV_WARPS) {
            copy(next, free_stage);
            u32 x[PIECE_SUBS][2][2];
            load_x(piece, x);
            copy_wait<STAGES - 1>();
            __syncwarp();
            if (!WHOLE_PIECES && piece * GEMV_PIECE + GEMV_PIECE > work.row_len) clear_end(stage, piece);
            make_factors(stage, piece);
            __syncwarp();
            const u8 *upper = row_in(stage, lane / 4, piece), *lower = row_in(stage, lane / 4 + 8, piece);
#pragma unroll
            for (u32 sub = 0; sub < PIECE_SUBS; sub++) {
                u32 at = sub / SUBS * Format::BYTES;
                multiply(upper + at, lower + at, sub % SUBS, shared.results.factors[sub], x[sub], sums);
            }
            __syncwarp(); // the next copy and the next factors go over what was read here
            free_stage = stage;
            stage = stage == last_stage ? shared.stages[0] : stage + STAGE_BYTES;
        }
        copy_wait<0>();
    }
};

template <class Format, u32 BATCH>
DEVICE void gemv_levels(const GemvWork& work) {
    typedef GemvLevels<Format, BATCH> Levels;
    __shared__ typename Levels::Shared shared[GEMV_WARPS];
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, first_row = work.first_row;
    float sums[2][Levels::COLUMNS] = {};
    Levels{work, shared[warp], warp, lane, first_row}.run(sums);
#pragma unroll
    for (u32 c = 0; c < Levels::COLUMNS; c++) {
        u32 i = lane % 4 * 2 + c;
        if (i >= BATCH) continue;
        for (u32 r = 0; r < 2; r++) shared[warp].results.sums[i][lane / 4 + 8 * r] = sums[r][c];
    }
    __syncthreads();
    if (threadIdx.x >= BATCH * GEMV_ROWS) return;
    u32 i = threadIdx.x / GEMV_ROWS, r = threadIdx.x % GEMV_ROWS;
    float sum = shared[0].results.sums[i][r];
    for (u32 w = 1; w < GEMV_WARPS; w++) sum += shared[w].results.sums[i][r];
    work.store(first_row + r, i, sum * -0x1p24f);
}
