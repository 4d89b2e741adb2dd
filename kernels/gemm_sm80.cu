// c[m, n] = a[m, k] * b[n, k]^T: halves in, sums in f32, for every GPU from compute capability 8.0.
//
// A block makes TM x TN of c, a warp 64 x 64 of it as 4 x 8 fragments of mma_16x8x16 (128 sums per lane), or 32 x 32 as 2 x 4. It goes
// through k in steps of 32, some of which are in shared memory at a time:
//
//         k ->  32 halves = 4 chunks of 16 bytes
//        +----+----+----+----+   a:  TM rows       copies of the last of these steps are under way
//        |    |    |    |    |   b:  TN rows       fragments of the next 16 columns are loaded
//        +----+----+----+----+                     while the tensor cores work on these
//
// Chunk q of row r lies at place q ^ (r/2 % 4) of its row: eight rows of a matrix, 64 bytes apart, meet in no bank. Rows past m or n
// and columns past k are zeros that nobody reads from memory.
//
// Small tiles read more for a product, but there are more of them: for few rows of a. An element's sum goes through k in the same order
// in each.

#include "tile.cuh"

constexpr u32 TK = 32, CHUNK = 8, CHUNKS = TK / CHUNK, ROW_BYTES = TK * 2;

// What a block and its warps have of c.
template <u32 ROWS, u32 COLUMNS, u32 OF_WARP, u32 N_STAGES>
struct Tile {
    static constexpr u32 TM = ROWS, TN = COLUMNS, W = OF_WARP, STAGES = N_STAGES;
    static constexpr u32 THREADS = TM / W * (TN / W) * WARP, STAGE_BYTES = (TM + TN) * ROW_BYTES;
    typedef float Sums[W / 16][W / 8][4];
};

typedef Tile<128, 128, 64, 4> Tile128x128;
typedef Tile<128, 256, 64, 4> Tile128x256;
typedef Tile<64, 64, 32, 6> Tile64x64;

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

// What a warp multiplies: 16 columns of its W rows of a and of b.
template <u32 W>
struct Fragments {
    u32 a[W / 16][4]; // [16 rows each]
    u32 b[W / 16][4]; // [two times 8 rows each]: words 0, 1 and 2, 3

    // `a_rows`, `b_rows`: the warp's first row of each tile; `step`: which 16 columns.
    DEVICE void load(const u8* a_rows, const u8* b_rows, u32 step, u32 lane) {
        u32 matrix = lane / 8, r = lane % 8;
        u32 a_at = place(matrix % 2 * 8 + r, 2 * step + matrix / 2), b_at = place(matrix / 2 * 8 + r, 2 * step + matrix % 2);
#pragma unroll
        for (u32 i = 0; i < W / 16; i++) load_matrices(a[i], a_rows + i * 16 * ROW_BYTES + a_at);
#pragma unroll
        for (u32 j = 0; j < W / 16; j++) load_matrices(b[j], b_rows + j * 16 * ROW_BYTES + b_at);
    }

    DEVICE void multiply(float (&sums)[W / 16][W / 8][4]) const {
#pragma unroll
        for (u32 i = 0; i < W / 16; i++) {
#pragma unroll
            for (u32 j = 0; j < W / 8; j++) mma_16x8x16(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
    }
};

// The sums of a warp's part of the tile whose first rows `a` and `b` copy.
template <class Tile, class CopierA, class CopierB>
DEVICE void multiply_tile(const CopierA& a, const CopierB& b, u32 k, u32 warp_row, u32 warp_column, typename Tile::Sums& sums) {
    constexpr u32 A_BYTES = Tile::TM * ROW_BYTES, STAGES = Tile::STAGES;
    u8* stages = dynamic_shared();
    u32 lane = threadIdx.x % WARP, n_steps = ceil_div(k, TK);
    auto copy = [&](u32 step) {
        u8* stage = stages + step % STAGES * Tile::STAGE_BYTES;
        if (step < n_steps) {
            a.copy(stage, step * TK, k);
            b.copy(stage + A_BYTES, step * TK, k);
        }
        copy_commit(); // also where there is nothing to copy: groups are counted
    };
    auto load = [&](Fragments<Tile::W>& fragments, u32 step, u32 half_step) {
        const u8* stage = stages + step % STAGES * Tile::STAGE_BYTES;
        fragments.load(stage + warp_row * ROW_BYTES, stage + A_BYTES + warp_column * ROW_BYTES, half_step, lane);
    };

#pragma unroll
    for (u32 step = 0; step < STAGES - 1; step++) copy(step);
    copy_wait<STAGES - 2>();
    __syncthreads();
    Fragments<Tile::W> fragments[2];
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

template <class Tile, class Epilogue>
DEVICE void gemm(const half* a, const half* b, const Output& out, u32 k, u32 lda, u32 ldb) {
    constexpr u32 W = Tile::W;
    TilePlace tile(blockIdx.x, ceil_div(out.m, Tile::TM), ceil_div(out.n, Tile::TN));
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    u32 warp_row = warp % 2 * W, warp_column = warp / 2 * W;
    static_assert(Tile::TM == 2 * W, "two warps, one above the other");
    Copier<Tile::TM, Tile::THREADS> copy_a(a, tile.row * Tile::TM, out.m, lda);
    Copier<Tile::TN, Tile::THREADS> copy_b(b, tile.column * Tile::TN, out.n, ldb);
    typename Tile::Sums sums = {};
    multiply_tile<Tile>(copy_a, copy_b, k, warp_row, warp_column, sums);

    u32 row = tile.row * Tile::TM + warp_row + lane / 4, column = tile.column * Tile::TN + warp_column + lane % 4 * 2;
    float scales[W / 8];
#pragma unroll
    for (u32 i = 0; i < W / 8; i++) scales[i] = out.scale_of(row + i * 8);
#pragma unroll
    for (u32 j = 0; j < W / 8; j++) {
        Columns columns(out, column + j * 8);
#pragma unroll
        for (u32 i = 0; i < W / 8; i++) {
            const float* two = sums[i / 2][j] + i % 2 * 2;
            Epilogue::put(out, row + i * 8, columns, scales[i], two[0], two[1]);
        }
    }
}

// gemm_<TILE>_store, _add
//   grid   ceil(m / TM) * ceil(n / TN)    block  TN / 128 * 128 threads, 64x64: 128
//   dynamic shared memory  (TM + TN) * 256 bytes, 64x64: 49152
//   a: [m, lda], b: [n, ldb], c: [m, ldc]; rows of a and b 16-byte aligned, k a multiple of 8, ldc even
#define INSTANCE(TILE)                                                                                                          \
    extern "C" __global__ void __launch_bounds__(Tile##TILE::THREADS, 1)                                                        \
        gemm_##TILE##_store(const half* a, const half* b, u32 lda, u32 ldb, float* c, const float* row_scale, u32 m, u32 n,     \
                            u32 k, u32 ldc, float alpha) {                                                                      \
        gemm<Tile##TILE, Store>(a, b, Output{c, row_scale, m, n, ldc, alpha}, k, lda, ldb);                                     \
    }                                                                                                                           \
    extern "C" __global__ void __launch_bounds__(Tile##TILE::THREADS, 1)                                                        \
        gemm_##TILE##_add(const half* a, const half* b, u32 lda, u32 ldb, float* c, const float* row_scale, u32 m, u32 n,       \
                          u32 k, u32 ldc, float alpha) {                                                                        \
        gemm<Tile##TILE, Add>(a, b, Output{c, row_scale, m, n, ldc, alpha}, k, lda, ldb);                                       \
    }                                                                                                                           \
    KERNEL(gemm_##TILE##_store)                                                                                                 \
    KERNEL(gemm_##TILE##_add)

INSTANCE(128x128)
INSTANCE(128x256)
INSTANCE(64x64)
