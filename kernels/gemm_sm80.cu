// c[m, n] = a[m, k] * b[n, k]^T: halves in, sums in f32, for every GPU from compute capability 8.0.
//
// A block makes 128 x TN of c, a warp 64 x 64 of it as 4 x 8 fragments of mma_16x8x16 (128 sums per lane). It goes through k in steps
// of 32, four of which are in shared memory at a time:
//
//         k ->  32 halves = 4 chunks of 16 bytes
//        +----+----+----+----+   a: 128 rows       copies of step s + 3 are under way
//        |    |    |    |    |   b:  TN rows       fragments of the next 16 columns are loaded
//        +----+----+----+----+                     while the tensor cores work on these
//
// Chunk q of row r lies at place q ^ (r/2 % 4) of its row: eight rows of a matrix, 64 bytes apart, meet in no bank. Rows past m or n
// and columns past k are zeros that nobody reads from memory.

#include "tile.cuh"

constexpr u32 TM = 128, TK = 32, STAGES = 4, WARP_TILE = 64;
constexpr u32 CHUNK = 8, CHUNKS = TK / CHUNK, ROW_BYTES = TK * 2;

template <u32 TN>
constexpr u32 THREADS = TM / WARP_TILE * (TN / WARP_TILE) * WARP;

// Where a chunk of a tile lies in shared memory.
DEVICE u32 place(u32 row, u32 chunk) { return row * ROW_BYTES + ((chunk ^ row / 2 % CHUNKS) * 16); }

// The part of a tile of ROWS rows that one thread copies: a chunk of every STEP-th row.
template <u32 ROWS, u32 N_THREADS>
struct Copier {
    static constexpr u32 PER_THREAD = ROWS * CHUNKS / N_THREADS, STEP = N_THREADS / CHUNKS;

    const half* from; // the thread's first chunk at k = 0
    u32 row, n_rows, ld, column;
    u32 to;

    // `first` is the tile's first row in the source.
    DEVICE Copier(const half* source, u32 first, u32 n_rows, u32 ld) : n_rows(n_rows), ld(ld) {
        u32 tile_row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
        row = first + tile_row;
        from = source + (u64)row * ld + chunk * CHUNK;
        column = chunk * CHUNK;
        to = place(tile_row, chunk);
    }

    // Copies columns `k_first` .. `k_first + 32` of the tile.
    DEVICE void copy(u8* tile, u32 k_first, u32 k) const {
#pragma unroll
        for (u32 i = 0; i < PER_THREAD; i++) {
            bool valid = row + i * STEP < n_rows && column + k_first < k;
            const half* source = from + (u64)(i * STEP) * ld + k_first;
            copy_async(tile + to + i * STEP * ROW_BYTES, source, valid);
        }
    }
};

// What a warp multiplies: 16 columns of its 64 rows of a and of b.
struct Fragments {
    u32 a[4][4]; // [16 rows each]
    u32 b[4][4]; // [two times 8 rows each]: words 0, 1 and 2, 3

    // `a_rows`, `b_rows`: the warp's first row of each tile; `step`: which 16 columns.
    DEVICE void load(const u8* a_rows, const u8* b_rows, u32 step, u32 lane) {
        u32 matrix = lane / 8, r = lane % 8;
        u32 a_at = place(matrix % 2 * 8 + r, 2 * step + matrix / 2), b_at = place(matrix / 2 * 8 + r, 2 * step + matrix % 2);
#pragma unroll
        for (u32 i = 0; i < 4; i++) load_matrices(a[i], a_rows + i * 16 * ROW_BYTES + a_at);
#pragma unroll
        for (u32 j = 0; j < 4; j++) load_matrices(b[j], b_rows + j * 16 * ROW_BYTES + b_at);
    }

    DEVICE void multiply(float (&sums)[4][8][4]) const {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
#pragma unroll
            for (u32 j = 0; j < 8; j++) mma_16x8x16(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
    }
};

// The sums of a warp's 64 x 64 part of the tile whose first rows `a` and `b` copy.
template <u32 TN, class CopierA, class CopierB>
DEVICE void multiply_tile(const CopierA& a, const CopierB& b, u32 k, u32 warp_row, u32 warp_column, float (&sums)[4][8][4]) {
    constexpr u32 A_BYTES = TM * ROW_BYTES, STAGE_BYTES = (TM + TN) * ROW_BYTES;
    u8* stages = dynamic_shared();
    u32 lane = threadIdx.x % WARP, n_steps = ceil_div(k, TK);
    auto copy = [&](u32 step) {
        u8* stage = stages + step % STAGES * STAGE_BYTES;
        if (step < n_steps) {
            a.copy(stage, step * TK, k);
            b.copy(stage + A_BYTES, step * TK, k);
        }
        copy_commit(); // also where there is nothing to copy: groups are counted
    };
    auto load = [&](Fragments& fragments, u32 step, u32 half_step) {
        const u8* stage = stages + step % STAGES * STAGE_BYTES;
        fragments.load(stage + warp_row * ROW_BYTES, stage + A_BYTES + warp_column * ROW_BYTES, half_step, lane);
    };

#pragma unroll
    for (u32 step = 0; step < STAGES - 1; step++) copy(step);
    copy_wait<STAGES - 2>();
    __syncthreads();
    Fragments fragments[2];
    load(fragments[0], 0, 0);
#pragma unroll 1
    for (u32 step = 0; step < n_steps; step++) {
        load(fragments[1], step, 1);
        copy(step + STAGES - 1); // over the step before, which every warp has left behind the last barrier
        fragments[0].multiply(sums);
        copy_wait<STAGES - 2>();
        __syncthreads();
        if (step + 1 < n_steps) load(fragments[0], step + 1, 0);
        fragments[1].multiply(sums);
    }
    copy_wait<0>();
}

template <u32 TN, class Epilogue>
DEVICE void gemm(const half* a, const half* b, const Output& out, u32 k, u32 lda, u32 ldb) {
    TilePlace tile(blockIdx.x, ceil_div(out.m, TM), ceil_div(out.n, TN));
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    u32 warp_row = warp % 2 * WARP_TILE, warp_column = warp / 2 * WARP_TILE;
    Copier<TM, THREADS<TN>> copy_a(a, tile.row * TM, out.m, lda);
    Copier<TN, THREADS<TN>> copy_b(b, tile.column * TN, out.n, ldb);
    float sums[4][8][4] = {};
    multiply_tile<TN>(copy_a, copy_b, k, warp_row, warp_column, sums);

    u32 row = tile.row * TM + warp_row + lane / 4, column = tile.column * TN + warp_column + lane % 4 * 2;
    float scales[8];
#pragma unroll
    for (u32 i = 0; i < 8; i++) scales[i] = out.scale_of(row + i * 8);
#pragma unroll
    for (u32 j = 0; j < 8; j++) {
        Columns columns(out, column + j * 8);
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            const float* two = sums[i / 2][j] + i % 2 * 2;
            Epilogue::put(out, row + i * 8, columns, scales[i], two[0], two[1]);
        }
    }
}

// gemm_128x<TN>_store, _add
//   block  2 * TN / 128 * 64 threads    dynamic shared memory  (128 + TN) * 256 bytes
//   grid   ceil(m / 128) * ceil(n / TN)
//   a: [m, lda], b: [n, ldb], c: [m, ldc]; rows of a and b 16-byte aligned, k a multiple of 8, ldc even
#define INSTANCE(TN)                                                                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS<TN>, 1)                                                                   \
        gemm_128x##TN##_store(const half* a, const half* b, u32 lda, u32 ldb, float* c, const float* row_scale, u32 m, u32 n, u32 k, \
                              u32 ldc, float alpha) {                                                                              \
        gemm<TN, Store>(a, b, Output{c, row_scale, m, n, ldc, alpha}, k, lda, ldb);                                                \
    }                                                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS<TN>, 1)                                                                   \
        gemm_128x##TN##_add(const half* a, const half* b, u32 lda, u32 ldb, float* c, const float* row_scale, u32 m, u32 n, u32 k,   \
                            u32 ldc, float alpha) {                                                                                \
        gemm<TN, Add>(a, b, Output{c, row_scale, m, n, ldc, alpha}, k, lda, ldb);                                                  \
    }                                                                                                                              \
    KERNEL(gemm_128x##TN##_store)                                                                                                  \
    KERNEL(gemm_128x##TN##_add)

INSTANCE(128)
INSTANCE(256)
