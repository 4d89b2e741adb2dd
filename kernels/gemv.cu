// y[i, row] = sum_k w[row, k] * x[i, k] for few rows of x, straight from quantized blocks: text generation.
//
// Bound by reading the blocks once, so what counts is instructions for a weight, and bytes on their way. Raw bytes come to shared memory
// by 16 bytes, several stages ahead. Formats of levels and factors are multiplied by tensor cores (gemv_levels.cuh), others by
// each lane for itself (gemv_weights.cuh). A block of either has 16 rows of w. Every sum has one order.

#include "gemv_levels.cuh"
#include "gemv_weights.cuh"

template <class Format, u32 BATCH>
DEVICE void gemv(const GemvWork& launch) {
    GemvWork work = launch.of_block();
    if constexpr (HAS_LEVELS<Format>) {
        gemv_levels<Format, BATCH>(work);
    } else {
        gemv_weights<Format, BATCH>(work);
    }
}

// gemv_<FORMAT>_1 for one row of x, gemv_<FORMAT>_8 for any number
//   grid   ceil(n_rows / 16) * ceil(batch / 8)    block 128
//   blocks readable between the 16-byte boundaries around them; x: [batch, ldx] halves, 16-byte aligned rows, zeros from row_len to
//   the next multiple of 8; y: [batch, ldy]; row_scale [batch] may be null
#define INSTANCE_OF(FORMAT, BATCH)                                                                                          \
    extern "C" __global__ void __launch_bounds__(GEMV_THREADS)                                                              \
        gemv_##FORMAT##_##BATCH(const u8* blocks, const half* x, u32 ldx, const float* row_scale, float* y, u32 ldy,         \
                                u32 n_rows, u32 row_len, u32 batch, u32 add) {                                              \
        gemv<FORMAT, BATCH>(GemvWork{blocks, x, row_scale, y, ldx, ldy, n_rows, row_len, batch, add});                      \
    }                                                                                                                       \
    KERNEL(gemv_##FORMAT##_##BATCH)
#define INSTANCE(FORMAT) INSTANCE_OF(FORMAT, 1) INSTANCE_OF(FORMAT, 8)

FOR_ALL_FORMATS(INSTANCE)
