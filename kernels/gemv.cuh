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

// A matrix, and where its products go.
struct GemvMatrix {
    const u8* blocks;
    float* y;
    u32 ldy, n_rows;
};

struct GemvWork {
    const u8* blocks;
    const half* x;
    const float* row_scale; // nullable
    GemvMatrix matrices[3]; // those that are not there have no rows
    u32 ldx, row_len, n_x, add; // n_x: rows of x of the whole launch
    // What this block has of them.
    u32 n_rows = 0, first_row = 0, batch = 0;

    // Its rows of x come first: blocks that follow each other have the same rows of w.
    DEVICE u32 n_groups() const { return ceil_div(n_x, GEMV_BATCH); }
    DEVICE u32 first_x() const { return blockIdx.x % n_groups() * GEMV_BATCH; }

    // Chooses the rows of one of the matrices, and of x.
    DEVICE void take_block() {
        u32 block = blockIdx.x / n_groups(), first = first_x(), which = 0;
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            if (which == i && block >= ceil_div(matrices[i].n_rows, GEMV_ROWS)) {
                block -= ceil_div(matrices[i].n_rows, GEMV_ROWS);
                which = i + 1;
            }
        }
        blocks = which == 0 ? matrices[0].blocks : which == 1 ? matrices[1].blocks : matrices[2].blocks;
        n_rows = which == 0 ? matrices[0].n_rows : which == 1 ? matrices[1].n_rows : matrices[2].n_rows;
        first_row = block * GEMV_ROWS;
        batch = n_x - first < GEMV_BATCH ? n_x - first : GEMV_BATCH;
        x += (u64)first * ldx;
        if (row_scale) row_scale += first;
    }

    // Where the products of this block's matrix go. Found out in the end, when there are registers for it.
    DEVICE float* place(u32 row, u32 i) const {
        u32 block = blockIdx.x / n_groups(), first = ceil_div(matrices[0].n_rows, GEMV_ROWS);
        bool is_first = block < first, is_second = block < first + ceil_div(matrices[1].n_rows, GEMV_ROWS);
        float* y = is_first ? matrices[0].y : is_second ? matrices[1].y : matrices[2].y;
        u32 ldy = is_first ? matrices[0].ldy : is_second ? matrices[1].ldy : matrices[2].ldy;
        return y + (u64)(first_x() + i) * ldy + row;
    }

    // The row itself, or the last one where there is none: it is computed, but not stored.
    DEVICE u32 row_or_last(u32 row) const { return row < n_rows ? row : n_rows - 1; }

    // Stores the sum of row `row` of w and row `i` of x, if both exist.
    DEVICE void store(u32 row, u32 i, float sum) const {
        if (row >= n_rows || i >= batch) return;
        float value = row_scale ? sum * row_scale[i] : sum;
        float* to = place(row, i);
        *to = add ? *to + value : value;
    }
};
