// The products of gemm_sm80.cu for compute capability 9.0, whose tensor cores read both operands from shared memory (wgmma) and whose
// copy engine fills it (TMA). Only in the sm_90a module.
//
// A block makes 128 x 256 of c after another, as long as there are tiles; one block per multiprocessor. Three warpgroups of 128 threads:
//
//     producer     one thread asks TMA for the tiles of the next step of k: a[128, 64] and b[256, 64]   (gives up registers)
//     consumer 0   rows 0 .. 63 of the tile: 4 x wgmma 64x256x16 per step, 128 sums per thread
//     consumer 1   rows 64 .. 127
//
// Four steps are in shared memory. Step s of them has two barriers: `full[s]`, on which TMA counts the bytes that arrived, and
// `empty[s]`, on which every warp of the consumers says that it has read it. The n-th use of a stage waits for the barrier's n-th
// phase, of which only the parity is told.
//
//     stage s   a: 128 rows x 128 bytes, b: 256 rows x 128 bytes, each row's 16-byte chunks permuted by TMA (128-byte swizzle:
//               chunk q of row r lies at q ^ r % 8), as wgmma's descriptor says

#include "hopper.cuh"
#include "tile.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(HOST_SHIM)

constexpr u32 TM = 128, TN = 256, TK = 64, STAGES = 4;
constexpr u32 WARPGROUP = 128, CONSUMERS = 2, THREADS = (1 + CONSUMERS) * WARPGROUP;
constexpr u32 ROW_BYTES = TK * 2, A_BYTES = TM * ROW_BYTES, B_BYTES = TN * ROW_BYTES, STAGE_BYTES = A_BYTES + B_BYTES;

// ---- The block's parts

struct Stages {
    u8* bytes; // [STAGES][a, then b]
    u64 *full, *empty;

    DEVICE static Stages in_shared() {
        u8* bytes = dynamic_shared();
        u64* barriers = (u64*)(bytes + STAGES * STAGE_BYTES);
        return Stages{bytes, barriers, barriers + STAGES};
    }

    DEVICE void init() const {
        if (threadIdx.x == 0) {
            for (u32 s = 0; s < STAGES; s++) {
                barrier_init(full + s, 1);
                barrier_init(empty + s, CONSUMERS * WARPGROUP / WARP);
            }
            barriers_are_ready();
        }
        __syncthreads();
    }

    DEVICE u8* a(u32 s) const { return bytes + s * STAGE_BYTES; }
    DEVICE u8* b(u32 s) const { return bytes + s * STAGE_BYTES + A_BYTES; }
};

// The block's tiles, in order: every gridDim.x-th.
template <class Body>
DEVICE void for_each_tile(u32 n_tile_rows, u32 n_tile_columns, Body body) {
    for (u32 number = blockIdx.x; number < n_tile_rows * n_tile_columns; number += gridDim.x) {
        body(TilePlace(number, n_tile_rows, n_tile_columns));
    }
}

DEVICE void produce(const TensorMap* a, const TensorMap* b, u32 n_tile_rows, u32 n_tile_columns, u32 k) {
    Stages stages = Stages::in_shared();
    u32 use = 0; // of stages, over all tiles
    for_each_tile(n_tile_rows, n_tile_columns, [&](TilePlace tile) {
        for (u32 column = 0; column < k; column += TK, use++) {
            u32 s = use % STAGES, phase = use / STAGES;
            barrier_wait(stages.empty + s, (phase + 1) % 2); // the first use finds it empty
            barrier_expect(stages.full + s, STAGE_BYTES);
            copy_box(stages.a(s), a, column, tile.row * TM, stages.full + s);
            copy_box(stages.b(s), b, column, tile.column * TN, stages.full + s);
        }
    });
}

// The sums of a consumer's 64 rows of a tile. `use` counts stages over all tiles, as the producer's does.
DEVICE void consume(const Stages& stages, u32 consumer, u32 k, u32& use, float (&sums)[128]) {
#pragma unroll
    for (u32 i = 0; i < 128; i++) sums[i] = 0.0f;
    u32 first = use;
    for (u32 column = 0; column < k; column += TK, use++) {
        u32 s = use % STAGES;
        barrier_wait(stages.full + s, use / STAGES % 2);
        const u8 *a = stages.a(s) + consumer * 64 * ROW_BYTES, *b = stages.b(s);
        products_begin();
#pragma unroll
        for (u32 step = 0; step < TK / 16; step++) wgmma_64x256x16(sums, operand(a + step * 32), operand(b + step * 32));
        products_commit();
        // These products go on while the stage of the ones before, now over, is given back.
        products_wait<1>();
        if (use != first && threadIdx.x % WARP == 0) barrier_arrive(stages.empty + (use - 1) % STAGES);
    }
    products_wait<0>();
    products_are_done(sums);
    if (threadIdx.x % WARP == 0) barrier_arrive(stages.empty + (use - 1) % STAGES);
}

// Stores a consumer thread's sums, whose first are of that row and column of c.
template <class Epilogue>
DEVICE void put(const Output& out, u32 row, u32 column, const float (&sums)[128]) {
    float scales[2] = {out.scale_of(row), out.scale_of(row + 8)};
#pragma unroll
    for (u32 j = 0; j < 32; j++) {
        Columns columns(out, column + 8 * j);
        Epilogue::put(out, row, columns, scales[0], sums[4 * j], sums[4 * j + 1]);
        Epilogue::put(out, row + 8, columns, scales[1], sums[4 * j + 2], sums[4 * j + 3]);
    }
}

template <class Epilogue>
DEVICE void gemm(const TensorMap* a, const TensorMap* b, const Output& out, u32 k) {
    u32 n_tile_rows = ceil_div(out.m, TM), n_tile_columns = ceil_div(out.n, TN);
    Stages stages = Stages::in_shared();
    stages.init();
    u32 warpgroup = threadIdx.x / WARPGROUP;
    if (warpgroup == 0) {
        give_registers<40>();
        if (threadIdx.x == 0) produce(a, b, n_tile_rows, n_tile_columns, k);
    } else {
        take_registers<232>();
        u32 consumer = warpgroup - 1, warp = threadIdx.x / WARP % 4, lane = threadIdx.x % WARP, use = 0;
        for_each_tile(n_tile_rows, n_tile_columns, [&](TilePlace tile) {
            float sums[128];
            consume(stages, consumer, k, use, sums);
            put<Epilogue>(out, tile.row * TM + consumer * 64 + warp * 16 + lane / 4, tile.column * TN + lane % 4 * 2, sums);
        });
    }
}

#define WHERE_IT_RUNS extern "C" __global__ void __launch_bounds__(THREADS, 1)

// gemm_sm90_store, _add
//   grid   at most the number of multiprocessors, at most the number of tiles    block 384
//   dynamic shared memory  197632 bytes
//   maps   fp16, 128-byte swizzle, boxes of 64 columns and 128 rows (a) or 256 rows (b)
//   k >= 1; ldc even
WHERE_IT_RUNS gemm_sm90_store(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float* c, const float* row_scale,
                              u32 m, u32 n, u32 k, u32 ldc, float alpha) {
    gemm<Store>(&a, &b, Output{c, row_scale, m, n, ldc, alpha}, k);
}

WHERE_IT_RUNS gemm_sm90_add(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float* c, const float* row_scale,
                            u32 m, u32 n, u32 k, u32 ldc, float alpha) {
    gemm<Add>(&a, &b, Output{c, row_scale, m, n, ldc, alpha}, k);
}

KERNEL(gemm_sm90_store)
KERNEL(gemm_sm90_add)

#endif
