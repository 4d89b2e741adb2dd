// What both ways of gemv.cu share: a block's shape, a launch's arguments, and what becomes of a sum.
#pragma once

#include "block/all.cuh"

constexpr u32 GEMV_WARPS = 4, GEMV_THREADS = GEMV_WARPS * WARP;
// Rows of w that a block multiplies.
constexpr u32 GEMV_ROWS = 16;
// What a block may have of shared memory without the launch asking for more.
constexpr u32 SHARED_BYTES_MAX = 48 << 10;

// Rows of x that a block multiplies them with, at most. More rows are further blocks: those that follow each other have the same rows of w,
// which all but the first find in the L2 cache.
constexpr u32 GEMV_BATCH = 8;

struct GemvWork {
    const u8* blocks;
    const half* x;
    const float* row_scale; // nullable
    float* y;
    u32 ldx, ldy, n_rows, row_len, batch, add;
    u32 first_row = 0; // the block's first of w

    // What this block has of the launch's work.
    DEVICE GemvWork of_block() const {
        u32 n_groups = ceil_div(batch, GEMV_BATCH), first = blockIdx.x % n_groups * GEMV_BATCH;
        GemvWork own = *this;
        own.first_row = blockIdx.x / n_groups * GEMV_ROWS;
        own.batch = batch - first < GEMV_BATCH ? batch - first : GEMV_BATCH;
        own.x += (u64)first * ldx;
        own.y += (u64)first * ldy;
        if (row_scale) own.row_scale += first;
        return own;
    }

    // The row itself, or the last one where there is none: it is computed, but not stored.
    DEVICE u32 row_or_last(u32 row) const { return row < n_rows ? row : n_rows - 1; }

    // Stores the sum of row `row` of w and row `i` of x, if both exist.
    DEVICE void store(u32 row, u32 i, float sum) const {
        if (row >= n_rows || i >= batch) return;
        float value = row_scale ? sum * row_scale[i] : sum;
        float* to = y + (u64)i * ldy + row;
        *to = add ? *to + value : value;
    }
};
