// y[i, row] = sum_k w[row, k] * x[i, k] for few rows of x, straight from quantized blocks: text generation.
//
// Bound by reading the blocks once, so what counts is instructions for a weight, and bytes on their way. Raw bytes come to shared memory
// by 16 bytes, several stages ahead. Formats of levels and factors are multiplied by tensor cores (gemv_levels.cuh), others by
// each lane for itself (gemv_weights.cuh). A block of either has 16 rows of w. Every sum has one order.

#include "gemv_levels.cuh"
#include "gemv_weights.cuh"

template <class Format, u32 BATCH>
DEVICE void gemv(GemvWork work) {
    work.take_block();
    if constexpr (HAS_LEVELS<Format>) {
        gemv_levels<Format, BATCH>(work);
    } else {
        gemv_weights<Format, BATCH>(work);
    }
}

// gemv_<FORMAT>_1 for one row of x, gemv_<FORMAT>_8 for any number; up to three matrices with rows of one length at once
//   grid   the sum of ceil(n_rows / 16) * ceil(batch / 8)    block 128
//   blocks readable between the 16-byte boundaries around them; x: [batch, ldx] halves, 16-byte aligned rows, zeros from row_len to
//   the next multiple of 8; y: [batch, ldy]; row_scale [batch] may be null; n_rows_2 and n_rows_3 may be 0
#define INSTANCE_OF(FORMAT, BATCH)                                                                                          \
    extern "C" __global__ void __launch_bounds__(GEMV_THREADS)                                                              \
        gemv_##FORMAT##_##BATCH(const u8* blocks, const half* x, u32 ldx, const float* row_scale, float* y, u32 ldy,         \
                                u32 n_rows, u32 row_len, u32 batch, u32 add, const u8* blocks_2, float* y_2, u32 ldy_2,      \
                                u32 n_rows_2, const u8* blocks_3, float* y_3, u32 ldy_3, u32 n_rows_3) {                     \
        gemv<FORMAT, BATCH>(GemvWork{nullptr, x, row_scale,                                                                  \
                                     {{blocks, y, ldy, n_rows}, {blocks_2, y_2, ldy_2, n_rows_2}, {blocks_3, y_3, ldy_3, n_rows_3}}, \
                                     ldx, row_len, batch, add});                                                             \
    }                                                                                                                       \
    KERNEL(gemv_##FORMAT##_##BATCH)
#define INSTANCE(FORMAT) INSTANCE_OF(FORMAT, 1) INSTANCE_OF(FORMAT, 8)

FOR_ALL_FORMATS(INSTANCE)
