// y[i, row] = sum_k w[row, k] * x[i, k] for one to eight rows of x, straight from quantized blocks: text generation.
//
// Bound by reading the blocks once. A warp has two rows of w (one after the other where blocks are as long as F32) and goes through
// them in pieces of 1024 weights: raw bytes come to shared memory by 16 bytes (stage.cuh), as do the same columns of x for the whole
// block; each lane unpacks a sub-block of 32 and multiplies. While it does, the next pieces are on their way.
//
//     w   row 0  |piece|piece|...      lane l has weights 32 l .. 32 l + 31 of a piece
//         row 1  |piece|piece|...
//     x   [batch][32 sub-blocks][4 chunks + 1 of padding]    no two lanes meet in a bank
//
// Every lane adds its products one after the other (fmaf), then the lanes are added in a tree: one fixed order. Where weights are
// scale * q - min, a lane sums q * x and x, and scales once: three instructions for a weight instead of five.

#include "block/all.cuh"
#include "block/stage.cuh"

constexpr u32 GEMV_WARPS = 4, GEMV_THREADS = GEMV_WARPS * WARP, ROWS_PER_WARP = 2;

// A piece of each row of x, as it lies in shared memory.
constexpr u32 X_LANE_BYTES = 80, X_ROW_BYTES = WARP * X_LANE_BYTES;

// A lane's 32 weights of a row: levels with their factors, or, of other formats, the weights themselves with a factor of 1.
template <class Format, bool = __is_base_of(OfLevels, Format)>
struct LaneWeights {
    static constexpr u32 PARTS = 1;
    static constexpr bool HAS_MIN = false;
    float q[32];
    Factors<PARTS> factors;

    DEVICE void unpack(const u8* piece, u32 lane, u32 column, u32 row_len) {
        Stage<Format>::unpack(piece, lane, column, row_len, q);
        factors.scale[0] = 1.0f;
    }
};

template <class Format>
struct LaneWeights<Format, true> {
    static constexpr u32 PARTS = Format::PARTS;
    static constexpr bool HAS_MIN = Format::HAS_MIN;
    float q[32];
    Factors<PARTS> factors;

    DEVICE void unpack(const u8* piece, u32 lane, u32, u32) { Stage<Format>::levels(piece, lane, q, factors); }
};

template <class Format, u32 BATCH>
struct Gemv {
    typedef LaneWeights<Format> Weights;
    static constexpr u32 ROWS = Stage<Format>::BYTES > 3000 ? 1 : ROWS_PER_WARP;
    static constexpr u32 STAGES = BATCH > 1 ? 1 : Stage<Format>::BYTES > 2000 ? 2 : 3;

    struct Shared {
        alignas(16) u8 w[STAGES][GEMV_WARPS][ROWS][Stage<Format>::BYTES];
        alignas(16) u8 x[STAGES][BATCH][X_ROW_BYTES];
    };

    const u8* blocks;
    const half* x;
    u32 ldx, n_rows, row_len, batch;
    Shared& shared;
    u32 warp, lane;

    DEVICE u32 row_of(u32 first, u32 r) const {
        u32 row = first + r;
        return row < n_rows ? row : n_rows - 1; // computed, but not stored
    }

    // Starts copying piece `piece` of the warp's rows and of x.
    DEVICE void copy(u32 first_row, u32 piece) {
        u32 first = piece * PIECE_LEN, stage = piece % STAGES;
        if (first < row_len) {
            for (u32 r = 0; r < ROWS; r++) {
                const u8* row = blocks + row_of(first_row, r) * Stage<Format>::row_bytes(row_len);
                Stage<Format>::copy(row, first, row_len, shared.w[stage][warp][r], lane);
            }
#pragma unroll 1
            for (u32 c = threadIdx.x; c < batch * (PIECE_LEN / 8); c += GEMV_THREADS) {
                u32 i = c / (PIECE_LEN / 8), chunk = c % (PIECE_LEN / 8), column = first + 8 * chunk;
                u8* to = shared.x[stage][i] + chunk / 4 * X_LANE_BYTES + chunk % 4 * 16;
                copy_async(to, x + (u64)i * ldx + column, column < row_len);
            }
        }
        copy_commit();
    }

    // The lane's 32 weights of row r of a piece.
    DEVICE void unpack(u32 first_row, u32 r, u32 piece, Weights& w) {
        const u8* row = blocks + row_of(first_row, r) * Stage<Format>::row_bytes(row_len);
        u32 first = piece * PIECE_LEN, before = (u32)((u64)(row + Stage<Format>::row_bytes(first)) % 16);
        w.unpack(shared.w[piece % STAGES][warp][r] + before, lane, first + 32 * lane, row_len);
    }

    // The loop over x's rows is not unrolled, which would be most of this file's code; as registers have no index, the sums move on by
    // one place with each row, and after BATCH rows they are where they were.
    DEVICE void multiply(const Weights (&w)[ROWS], u32 piece, float (&sums)[BATCH][ROWS]) {
#pragma unroll 1
        for (u32 i = 0; i < BATCH; i++) {
            if (i < batch) multiply_row(w, (const Chunk*)(shared.x[piece % STAGES][i] + lane * X_LANE_BYTES), sums[0]);
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) {
                float first = sums[0][r];
#pragma unroll
                for (u32 j = 0; j + 1 < BATCH; j++) sums[j][r] = sums[j + 1][r];
                sums[BATCH - 1][r] = first;
            }
        }
    }

    DEVICE void multiply_row(const Weights (&w)[ROWS], const Chunk* chunks, float (&sums)[ROWS]) {
        constexpr u32 CHUNKS = 4 / Weights::PARTS;
#pragma unroll
        for (u32 part = 0; part < Weights::PARTS; part++) {
            float dots[ROWS] = {}, x_sum = 0.0f;
#pragma unroll
            for (u32 c = part * CHUNKS; c < (part + 1) * CHUNKS; c++) {
                Chunk chunk = chunks[c];
#pragma unroll
                for (u32 j = 0; j < 8; j++) {
                    float x = j % 2 ? high_f16(chunk.words[j / 2]) : low_f16(chunk.words[j / 2]);
                    if (Weights::HAS_MIN) x_sum += x;
#pragma unroll
                    for (u32 r = 0; r < ROWS; r++) dots[r] = fmaf(w[r].q[8 * c + j], x, dots[r]);
                }
            }
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) {
                sums[r] = fmaf(w[r].factors.scale[part], dots[r], sums[r]);
                if (Weights::HAS_MIN) sums[r] = fmaf(-w[r].factors.min[part], x_sum, sums[r]);
            }
        }
    }

    // The sums of the warp's rows from `first_row` on.
    DEVICE void run(u32 first_row, float (&sums)[BATCH][ROWS]) {
        u32 n_pieces = ceil_div(row_len, PIECE_LEN);
        for (u32 piece = 0; piece + 1 < STAGES; piece++) copy(first_row, piece);
#pragma unroll 1
        for (u32 piece = 0; piece < n_pieces; piece++) {
            copy(first_row, piece + STAGES - 1);
            copy_wait<STAGES - 1>();
            __syncthreads();
            if (piece * PIECE_LEN + 32 * lane < row_len) {
                Weights w[ROWS];
#pragma unroll
                for (u32 r = 0; r < ROWS; r++) unpack(first_row, r, piece, w[r]);
                multiply(w, piece, sums);
            }
            __syncthreads(); // the next copy goes over what was read here
        }
        copy_wait<0>();
    }
};

template <class Format, u32 BATCH>
DEVICE void gemv(const u8* blocks, const half* x, u32 ldx, const float* row_scale, const float* bias, float* y, u32 ldy, u32 n_rows,
                 u32 row_len, u32 batch, u32 add) {
    typedef Gemv<Format, BATCH> Work;
    __shared__ typename Work::Shared shared;
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    Work work{blocks, x, ldx, n_rows, row_len, batch, shared, warp, lane};
    u32 first = (blockIdx.x * GEMV_WARPS + warp) * ROWS_PER_WARP;
    for (u32 pass = 0; pass < ROWS_PER_WARP / Work::ROWS; pass++, first += Work::ROWS) {
        float sums[BATCH][Work::ROWS] = {};
        work.run(first, sums);
        // Lane BATCH * r + i stores the sum of row r and of row i of x.
        float own = 0.0f;
#pragma unroll
        for (u32 r = 0; r < Work::ROWS; r++) {
#pragma unroll
            for (u32 i = 0; i < BATCH; i++) {
                float sum = warp_sum(sums[i][r]);
                if (lane == BATCH * r + i) own = sum;
            }
        }
        u32 row = first + lane / BATCH, i = lane % BATCH;
        if (lane < BATCH * Work::ROWS && row < n_rows && i < batch) {
            float value = own * (row_scale ? row_scale[i] : 1.0f) + (bias ? bias[row] : 0.0f);
            float* to = y + (u64)i * ldy + row;
            *to = add ? *to + value : value;
        }
    }
}

// gemv_<FORMAT>_1 for one row of x, gemv_<FORMAT>_8 for up to eight
//   grid   ceil(n_rows / 8)    block 128
//   blocks readable between the 16-byte boundaries around them; x: [batch, ldx] halves, 16-byte aligned rows, zeros from row_len to
//   the next multiple of 8; y: [batch, ldy]; row_scale [batch] and bias [n_rows] may be null
#define INSTANCE_OF(FORMAT, BATCH)                                                                                             \
    extern "C" __global__ void __launch_bounds__(GEMV_THREADS)                                                                 \
        gemv_##FORMAT##_##BATCH(const u8* blocks, const half* x, u32 ldx, const float* row_scale, const float* bias, float* y, \
                                u32 ldy, u32 n_rows, u32 row_len, u32 batch, u32 add) {                                        \
        gemv<FORMAT, BATCH>(blocks, x, ldx, row_scale, bias, y, ldy, n_rows, row_len, batch, add);                             \
    }                                                                                                                          \
    KERNEL(gemv_##FORMAT##_##BATCH)
#define INSTANCE(FORMAT) INSTANCE_OF(FORMAT, 1) INSTANCE_OF(FORMAT, 8)

FOR_ALL_FORMATS(INSTANCE)
