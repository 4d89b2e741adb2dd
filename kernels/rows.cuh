// What kernels that end in rows of halves share: values of a block combined in a fixed order, and the power of two of a row.
#pragma once

#include "common.cuh"

struct Sum {
    DEVICE static float of_two(float a, float b) { return a + b; }
};

struct Max {
    DEVICE static float of_two(float a, float b) { return fmaxf(a, b); }
};

// What all WARPS warps of the block give, combined; every thread gets it.
template <class Operation, u32 WARPS>
DEVICE float of_warps(float x) {
    __shared__ float of_warp[WARPS];
    for (u32 apart = 16; apart; apart /= 2) x = Operation::of_two(x, __shfl_xor_sync(ALL_LANES, x, apart));
    __syncthreads(); // of_warp may still be read
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = x;
    __syncthreads();
    float all = of_warp[0];
    for (u32 i = 1; i < WARPS; i++) all = Operation::of_two(all, of_warp[i]);
    return all;
}

// A power of two and its inverse, for a row whose largest magnitude is `largest`.
struct RowScale {
    float scale, inverse;

    DEVICE RowScale(float largest) {
        // The biased exponent of 2^-10 times the largest; 0 has no exponent, and infinity and NaN keep what they are.
        i32 exponent = (i32)(as_bits(largest) >> 23 & 255) - 10;
        if (largest == 0.0f || exponent == 245) exponent = 127;
        exponent = exponent < 1 ? 1 : exponent > 253 ? 253 : exponent;
        scale = as_float((u32)exponent << 23);
        inverse = as_float((u32)(254 - exponent) << 23);
    }
};
