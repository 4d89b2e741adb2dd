// The products of gemm_sm80.cu for compute capability 9.0, whose tensor cores read both operands from shared memory (wgmma) and whose
// copy engine fills it (TMA). Only in the sm_90a module.
//
// A block makes one tile of c after another, as long as there are some; one block per multiprocessor. Warpgroups of 128 threads:
//
//     producer     one thread asks TMA for the tiles of the next step of k: a[TM, 64] and b[TN, 64]     (may give up registers)
//     consumer 0   rows 0 .. 63 of the tile: 4 x wgmma 64xTNx16 per step, TN / 2 sums per thread
//     consumer 1   rows 64 .. 127, where the tile has them
//
// Several steps are in shared memory. Step s of them has two barriers: `full[s]`, on which TMA counts the bytes that arrived, and
// `empty[s]`, on which every warp of the consumers says that it has read it. The n-th use of a stage waits for the barrier's n-th
// phase, of which only the parity is told.
//
//     stage s   a: TM rows x 128 bytes, b: TN rows x 128 bytes, each row's 16-byte chunks permuted by TMA (128-byte swizzle:
//               chunk q of row r lies at q ^ r % 8), as wgmma's descriptor says
//
// Tiles differ in what they read for a product, and how many of them there are: 128 x 256 for large products, the others where it would
// leave multiprocessors idle. An element's sum goes through k in the same order in each.

#include "hopper.cuh"
#include "tile.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(HOST_SHIM)

constexpr u32 TK = 64, WARPGROUP = 128, ROW_BYTES = TK * 2;

// What a block has for a tile of c.
template <u32 ROWS, u32 COLUMNS, u32 N_STAGES>
struct Tile {
    static constexpr u32 TM = ROWS, TN = COLUMNS, STAGES = N_STAGES;
    static constexpr u32 CONSUMERS = TM / 64, THREADS = (1 + CONSUMERS) * WARPGROUP, SUMS = TN / 2;
    static constexpr u32 A_BYTES = TM * ROW_BYTES, B_BYTES = TN * ROW_BYTES, STAGE_BYTES = A_BYTES + B_BYTES;
    // Sums that 168 registers a thread, what 384 threads have, do not hold: the producer's are needed, too.
    static constexpr bool MOVES_REGISTERS = SUMS == 128;
    static_assert(STAGE_BYTES % 1024 == 0 && STAGES * STAGE_BYTES + 1024 <= 227 << 10, "patterns of 1024 bytes, and barriers behind");
};

typedef Tile<128, 256, 4> Tile128x256;
typedef Tile<128, 128, 6> Tile128x128;
typedef Tile<64, 64, 8> Tile64x64;

// ---- The block's parts

template <class Tile>
struct Stages {
    u8* bytes; // [STAGES][a, then b]
    u64 *full, *empty;

    DEVICE static Stages in_shared() {
        u8* bytes = dynamic_shared();
        u64* barriers = (u64*)(bytes + Tile::STAGES * Tile::STAGE_BYTES);
        return Stages{bytes, barriers, barriers + Tile::STAGES};
    }

    DEVICE void init() const {
        if (threadIdx.x == 0) {
            for (u32 s = 0; s < Tile::STAGES; s++) {
                barrier_init(full + s, 1);
                barrier_init(empty + s, Tile::CONSUMERS * WARPGROUP / WARP);
            }
            barriers_are_ready();
        }
        __syncthreads();
    }

    DEVICE u8* a(u32 s) const { return bytes + s * Tile::STAGE_BYTES; }
    DEVICE u8* b(u32 s) const { return bytes + s * Tile::STAGE_BYTES + Tile::A_BYTES; }
};

// The block's tiles, in order: every gridDim.x-th.
template <class Body>
DEVICE void for_each_tile(u32 n_tile_rows, u32 n_tile_columns, Body body) {
    for (u32 number = blockIdx.x; number < n_tile_rows * n_tile_columns; number += gridDim.x) {
        body(TilePlace(number, n_tile_rows, n_tile_columns));
    }
}

template <class Tile>
DEVICE void produce(const Stages<Tile>& stages, const TensorMap* a, const TensorMap* b, u32 n_tile_rows, u32 n_tile_columns, u32 k) {
    u32 use = 0; // of stages, over all tiles
    for_each_tile(n_tile_rows, n_tile_columns, [&](TilePlace tile) {
        for (u32 column = 0; column < k; column += TK, use++) {
            u32 s = use % Tile::STAGES, phase = use / Tile::STAGES;
            barrier_wait(stages.empty + s, (phase + 1) % 2); // the first use finds it empty
            barrier_expect(stages.full + s, Tile::STAGE_BYTES);
            copy_box(stages.a(s), a, column, tile.row * Tile::TM, stages.full + s);
            copy_box(stages.b(s), b, column, tile.column * Tile::TN, stages.full + s);
        }
    });
}

// The sums of a consumer's 64 rows of a tile. `use` counts stages over all tiles, as the producer's does.
template <class Tile>
DEVICE void consume(const Stages<Tile>& stages, u32 consumer, u32 k, u32& use, float (&sums)[Tile::SUMS]) {
#pragma unroll
    for (u32 i = 0; i < Tile::SUMS; i++) sums[i] = 0.0f;
    u32 first = use;
    for (u32 column = 0; column < k; column += TK, use++) {
        u32 s = use % Tile::STAGES;
        barrier_wait(stages.full + s, use / Tile::STAGES % 2);
        const u8 *a = stages.a(s) + consumer * 64 * ROW_BYTES, *b = stages.b(s);
        products_begin();
#pragma unroll
        for (u32 step = 0; step < TK / 16; step++) wgmma(sums, operand(a + step * 32), operand(b + step * 32));
        products_commit();
        // These products go on while the stage of the ones before, now over, is given back.
        products_wait<1>();
        if (use != first && threadIdx.x % WARP == 0) barrier_arrive(stages.empty + (use - 1) % Tile::STAGES);
    }
    products_wait<0>();
    products_are_done(sums);
    if (threadIdx.x % WARP == 0) barrier_arrive(stages.empty + (use - 1) % Tile::STAGES);
}

// Stores a consumer thread's sums, whose first are of that row and column of c.
template <class Epilogue, u32 LEN>
DEVICE void put(const Output& out, u32 row, u32 column, const float (&sums)[LEN]) {
    float scales[2] = {out.scale_of(row), out.scale_of(row + 8)};
#pragma unroll
    for (u32 j = 0; j < LEN / 4; j++) {
        Columns columns(out, column + 8 * j);
        Epilogue::put(out, row, columns, scales[0], sums[4 * j], sums[4 * j + 1]);
        Epilogue::put(out, row + 8, columns, scales[1], sums[4 * j + 2], sums[4 * j + 3]);
    }
}

template <class Tile, class Epilogue>
DEVICE void gemm(const TensorMap* a, const TensorMap* b, const Output& out, u32 k) {
    u32 n_tile_rows = ceil_div(out.m, Tile::TM), n_tile_columns = ceil_div(out.n, Tile::TN);
    auto stages = Stages<Tile>::in_shared();
    stages.init();
    u32 warpgroup = threadIdx.x / WARPGROUP;
    if (warpgroup == 0) {
        if (Tile::MOVES_REGISTERS) give_registers<40>();
        if (threadIdx.x == 0) produce(stages, a, b, n_tile_rows, n_tile_columns, k);
    } else {
        if (Tile::MOVES_REGISTERS) take_registers<232>();
        u32 consumer = warpgroup - 1, warp = threadIdx.x / WARP % 4, lane = threadIdx.x % WARP, use = 0;
        for_each_tile(n_tile_rows, n_tile_columns, [&](TilePlace place) {
            float sums[Tile::SUMS];
            consume(stages, consumer, k, use, sums);
            u32 row = place.row * Tile::TM + consumer * 64 + warp * 16 + lane / 4, column = place.column * Tile::TN + lane % 4 * 2;
            put<Epilogue>(out, row, column, sums);
        });
    }
}

// gemm_sm90_<TILE>_store, _add
//   grid   at most the number of multiprocessors, at most the number of tiles    block 384 (64x64: 256)
//   dynamic shared memory  197632 bytes (64x64: 132096)
//   maps   fp16, 128-byte swizzle, boxes of 64 columns and as many rows as the tile has (a) or columns (b)
//   k >= 1; ldc even
#define INSTANCE(TILE)                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(Tile##TILE::THREADS, 1)                                                                \
        gemm_sm90_##TILE##_store(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float* c,                    \
                                 const float* row_scale, u32 m, u32 n, u32 k, u32 ldc, float alpha) {                                   \
        gemm<Tile##TILE, Store>(&a, &b, Output{c, row_scale, m, n, ldc, alpha}, k);                                                     \
    }                                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(Tile##TILE::THREADS, 1)                                                                \
        gemm_sm90_##TILE##_add(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float* c,                      \
                               const float* row_scale, u32 m, u32 n, u32 k, u32 ldc, float alpha) {                                     \
        gemm<Tile##TILE, Add>(&a, &b, Output{c, row_scale, m, n, ldc, alpha}, k);                                                       \
    }                                                                                                                                   \
    KERNEL(gemm_sm90_##TILE##_store)                                                                                                    \
    KERNEL(gemm_sm90_##TILE##_add)

INSTANCE(128x256)
INSTANCE(128x128)
INSTANCE(64x64)

#endif
