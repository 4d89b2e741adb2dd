// What both GEMMs share: which tile of c a block has, and what becomes of the sums.
#pragma once

#include "common.cuh"

// Tiles are taken in bands of eight rows of tiles, column by column within a band, so that blocks that run together read the same rows
// of a and b while those are in the L2 cache.
struct TilePlace {
    u32 row, column;

    DEVICE TilePlace(u32 number, u32 n_tile_rows, u32 n_tile_columns) {
        constexpr u32 BAND = 8;
        u32 band = number / (BAND * n_tile_columns), first = band * BAND;
        u32 height = n_tile_rows - first < BAND ? n_tile_rows - first : BAND;
        u32 within = number - first * n_tile_columns;
        row = first + within % height;
        column = within / height;
    }
};

// c[m, n] and what is done to a sum on its way there.
struct Output {
    float* c;
    const float* row_scale; // nullable
    u32 m, n, ldc;
    float alpha;

    DEVICE float scale_of(u32 row) const { return row_scale && row < m ? row_scale[row] : 1.0f; }
};

// Two neighbouring columns of c, of which the second, or both, need not exist.
struct Columns {
    u32 first;
    bool exist, both;

    DEVICE Columns(const Output& out, u32 first) : first(first), exist(first < out.n), both(first + 1 < out.n) {}

    DEVICE void write(float* c, float x, float y) const {
        struct alignas(8) Two {
            float x, y;
        };
        if (both) {
            *(Two*)c = Two{x, y};
        } else {
            *c = x;
        }
    }
};

// c = alpha * row_scale * sum
struct Store {
    DEVICE static void put(const Output& out, u32 row, const Columns& at, float scale, float x, float y) {
        if (row >= out.m || !at.exist) return;
        at.write(out.c + (u64)row * out.ldc + at.first, x * out.alpha * scale, y * out.alpha * scale);
    }
};

// c += the same
struct Add {
    DEVICE static void put(const Output& out, u32 row, const Columns& at, float scale, float x, float y) {
        if (row >= out.m || !at.exist) return;
        float* c = out.c + (u64)row * out.ldc + at.first;
        x = c[0] + x * out.alpha * scale;
        y = at.both ? c[1] + y * out.alpha * scale : 0.0f;
        at.write(c, x, y);
    }
};
