// Attention of few queries, and of heads that are too wide for attn.cu. Keys are cut into splits of one length, whose blocks work side by
// side; the heads that share a key head read it together.
//
// A block has 16 rows, a row being a query and one of the heads that share a key head, and the keys of one split, in tiles of KEYS:
//
//               KEYS                             HEAD
//     16 rows [ s0 | s1 | s2 | s3 ]  ->  p    [ o0 | o1 | o2 | o3 ]     warp w has a quarter of the scores, then a quarter of the columns
//
//     m' = max(m, row maxima of all warps); p = exp(s - m') as fp16 through shared memory; l = l * exp(m - m') + sums of p / power of v
//     o = o * exp(m - m') + p v
//
// One split writes out = o / l. Of several each writes o, m and l, and attn_merge adds them in the order of keys: with M the largest m,
// sum o exp(m - M) / sum l exp(m - M). So every sum has one order, which depends on where keys are and on nothing else.
//
// Keys and values of the next tiles are copied while one is computed; those of heads of 512, for which there is no room, take turns.

#include "attn.cuh"
#include "rows.cuh"

constexpr u32 ROWS = 16, WARPS = 4, THREADS = WARPS * WARP;

// What a launch adds to the heads.
struct Splits {
    float* state; // [n_splits, n_rows, n_heads, 2]: m and l; null where there is one split
    u32 n_splits, split_len, n_rows;
};

template <u32 HEAD>
struct SplitTile {
    static constexpr u32 KEYS = HEAD <= 128 ? 64 : 32, STAGES = HEAD <= 256 ? 2 : 1;
    static constexpr u32 ROW_BYTES = 2 * HEAD + 16, P_ROW_BYTES = 2 * KEYS + 16;
    static constexpr u32 Q_BYTES = ROWS * ROW_BYTES, KV_BYTES = KEYS * ROW_BYTES, P_BYTES = ROWS * P_ROW_BYTES;
    static constexpr u32 K_STEPS = HEAD / 16, KEY_TILES = KEYS / 8 / WARPS, OUT_TILES = HEAD / 8 / WARPS;
    const Heads& heads;
    u8 *q_tile, *k_tiles, *v_tiles, *p_tile;
    float (*of_warp)[ROWS]; // maxima or sums
    u32 warp, lane;

    // Rows g = lane / 4 and g + 8.
    float out[OUT_TILES][4], largest[2], sum[2], factors[2];
    i32 last[2]; // key that the row sees

    // Starts copying `n` rows of a head, which are where `from` says; those from `end` on become zeros.
    template <class From>
    DEVICE void copy(u8* tile, u32 n, u32 end, From from) const {
        constexpr u32 CHUNKS = HEAD / 8;
        for (u32 c = threadIdx.x; c < n * CHUNKS; c += THREADS) {
            u32 row = c / CHUNKS, chunk = c % CHUNKS;
            bool valid = row < end && chunk * 8 < heads.head_len;
            copy_async(tile + row * ROW_BYTES + chunk * 16, from(valid ? row : 0) + (valid ? chunk * 8 : 0), valid);
        }
    }

    DEVICE const u8* q_row(u32 step) const { return q_tile + lane % 16 * ROW_BYTES + step * 32 + lane / 16 * 16; }

    DEVICE void start() {
#pragma unroll
        for (u32 i = 0; i < OUT_TILES; i++) {
#pragma unroll
            for (u32 j = 0; j < 4; j++) out[i][j] = 0.0f;
        }
        for (u32 i = 0; i < 2; i++) largest[i] = UNSEEN, sum[i] = 0.0f;
    }

    // The warp's quarter of q k^T.
    DEVICE void score(float (&scores)[KEY_TILES][4], const u8* k_tile) const {
        u32 matrix = lane / 8, r = lane % 8;
#pragma unroll
        for (u32 step = 0; step < K_STEPS; step += 2) {
            u32 q[2][4];
            load_matrices(q[0], q_row(step));
            load_matrices(q[1], q_row(step + 1));
#pragma unroll
            for (u32 i = 0; i < KEY_TILES; i++) {
                u32 b[4];
                load_matrices(b, k_tile + ((warp * KEY_TILES + i) * 8 + r) * ROW_BYTES + step * 32 + matrix * 16);
                mma_16x8x16(scores[i], q[0], b[0], b[1]);
                mma_16x8x16(scores[i], q[1], b[2], b[3]);
            }
        }
    }

    // The warp's key of an element of its scores, in the tile's numbers.
    DEVICE u32 key_of(u32 i, u32 j) const { return (warp * KEY_TILES + i) * 8 + lane % 4 * 2 + j % 2; }

    // Scaled and bounded scores with the power of two of the value, in powers of 2; their maxima go to the other warps.
    DEVICE void scale_scores(float (&scores)[KEY_TILES][4], u32 first_key, u32 end, const float* k_scale, const float* v_scale) {
        float most[2] = {UNSEEN, UNSEEN};
#pragma unroll
        for (u32 i = 0; i < KEY_TILES; i++) {
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                u32 key = key_of(i, j), at = key < end ? key : 0;
                float score = scores[i][j] * k_scale[at] * factors[j / 2];
                if (heads.cap != 0.0f) score = capped(score, heads.cap);
                score = fmaf(score, LOG2_E, log2_of_power(v_scale[at]));
                i32 past = last[j / 2] - (i32)(first_key + key); // keys between it and the last that the row sees
                bool is_seen = past >= 0 && (heads.window == 0 || (u32)past < heads.window);
                scores[i][j] = is_seen ? score : UNSEEN;
                most[j / 2] = fmaxf(most[j / 2], scores[i][j]);
            }
        }
        share(most);
    }

    // The largest of a row's four lanes, to the place of the warp.
    DEVICE void share(float (&of_row)[2]) const {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            of_row[i] = fmaxf(of_row[i], __shfl_xor_sync(ALL_LANES, of_row[i], 1));
            of_row[i] = fmaxf(of_row[i], __shfl_xor_sync(ALL_LANES, of_row[i], 2));
            if (lane % 4 == 0) of_warp[warp][lane / 4 + 8 * i] = of_row[i];
        }
    }

    // Scores become probabilities relative to the largest so far, in shared memory.
    DEVICE void soften(const float (&scores)[KEY_TILES][4], u32 end, const float* v_scale) {
        float shrink[2];
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            float now = largest[i];
            for (u32 w = 0; w < WARPS; w++) now = fmaxf(now, of_warp[w][lane / 4 + 8 * i]);
            shrink[i] = exp2_fast(largest[i] - now);
            largest[i] = now;
            sum[i] *= shrink[i];
        }
#pragma unroll
        for (u32 i = 0; i < KEY_TILES; i++) {
            float p[4];
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                u32 key = key_of(i, j), at = key < end ? key : 0;
                p[j] = exp2_fast(scores[i][j] - largest[j / 2]);
                sum[j / 2] = fmaf(p[j], inverse_of_power(v_scale[at]), sum[j / 2]);
            }
            u8* to = p_tile + lane / 4 * P_ROW_BYTES + 2 * key_of(i, 0);
            *(u32*)to = pack_f16(p[0], p[1]);
            *(u32*)(to + 8 * P_ROW_BYTES) = pack_f16(p[2], p[3]);
        }
#pragma unroll
        for (u32 i = 0; i < OUT_TILES; i++) {
#pragma unroll
            for (u32 j = 0; j < 4; j++) out[i][j] *= shrink[j / 2];
        }
    }

    // The warp's quarter of out += p v.
    DEVICE void mix(const u8* v_tile) {
        u32 matrix = lane / 8, r = lane % 8;
#pragma unroll
        for (u32 step = 0; step < KEYS / 16; step += 2) {
            u32 p[2][4];
#pragma unroll
            for (u32 s = 0; s < 2; s++) {
                load_matrices(p[s], p_tile + lane % 16 * P_ROW_BYTES + (step + s) * 32 + lane / 16 * 16);
            }
#pragma unroll
            for (u32 i = 0; i < OUT_TILES; i++) {
                u32 b[4];
                load_matrices_transposed(b, v_tile + (16 * step + 8 * matrix + r) * ROW_BYTES + (warp * OUT_TILES + i) * 16);
                mma_16x8x16(out[i], p[0], b[0], b[1]);
                mma_16x8x16(out[i], p[1], b[2], b[3]);
            }
        }
    }
};

template <u32 HEAD>
DEVICE void attend_split(const Heads& heads, const Span* spans, const Splits& splits) {
    typedef SplitTile<HEAD> Tile;
    constexpr u32 KEYS = Tile::KEYS, STAGES = Tile::STAGES;
    __shared__ float of_warp[WARPS][ROWS];
    Span span = spans[blockIdx.z];
    u32 group = heads.n_heads / heads.n_kv_heads, kv_head = blockIdx.y;
    u32 split = blockIdx.x % splits.n_splits, first_row = blockIdx.x / splits.n_splits * ROWS;
    u32 n_rows = span.q_len * group;
    if (first_row >= n_rows) return;
    u32 last_row = first_row + ROWS < n_rows ? first_row + ROWS - 1 : n_rows - 1;
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    u32 earlier = span.kv_len - span.q_len; // keys that every query sees

    // Keys that some row sees, from a whole tile on.
    u32 begin = split * splits.split_len, end = earlier + last_row / group + 1;
    if (heads.window != 0 && earlier + first_row / group >= heads.window) {
        u32 seen = (earlier + first_row / group + 1 - heads.window) / KEYS * KEYS;
        begin = begin < seen ? seen : begin;
    }
    if (splits.n_splits > 1 && end > (split + 1) * splits.split_len) end = (split + 1) * splits.split_len;
    u32 n_keys = begin < end ? end - begin : 0;

    u8* q_tile = dynamic_shared();
    u8* k_tiles = q_tile + Tile::Q_BYTES;
    u8* v_tiles = k_tiles + STAGES * Tile::KV_BYTES;
    Tile tile{heads, q_tile, k_tiles, v_tiles, v_tiles + STAGES * Tile::KV_BYTES, of_warp, warp, lane};
    tile.start();
    auto query_of = [&](u32 row) { return span.q_first + (first_row + row) / group; };
    auto head_of = [&](u32 row) { return kv_head * group + (first_row + row) % group; };
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        u32 row = lane / 4 + 8 * i, at = first_row + row <= last_row ? row : 0;
        tile.factors[i] = heads.scale * heads.q_scale[query_of(at)];
        tile.last[i] = (i32)(earlier + (first_row + at) / group);
    }
    u64 at = (u64)(span.kv_first + begin) * heads.ld_kv + kv_head * heads.head_len;
    const float *k_scale = heads.k_scale + span.kv_first + begin, *v_scale = heads.v_scale + span.kv_first + begin;
    auto copy_keys = [&](const half* from, u8* tiles, u32 first) {
        if (first < n_keys) {
            tile.copy(tiles + first / KEYS % STAGES * Tile::KV_BYTES, KEYS, n_keys - first,
                      [=](u32 row) { return from + at + (u64)(first + row) * heads.ld_kv; });
        }
        copy_commit();
    };

    tile.copy(q_tile, ROWS, last_row + 1 - first_row,
              [&](u32 row) { return heads.q + (u64)query_of(row) * heads.ld_q + head_of(row) * heads.head_len; });
    for (u32 s = 0; s < STAGES; s++) {
        copy_keys(heads.k, k_tiles, s * KEYS);
        if (s + 1 < STAGES) copy_keys(heads.v, v_tiles, s * KEYS);
    }
#pragma unroll 1
    for (u32 first = 0; first < n_keys; first += KEYS) {
        u32 stage = first / KEYS % STAGES;
        copy_wait<2 * STAGES - 2>();
        __syncthreads(); // these keys are there, and the last values and probabilities are done with
        copy_keys(heads.v, v_tiles, first + (STAGES - 1) * KEYS);
        float scores[Tile::KEY_TILES][4] = {};
        tile.score(scores, k_tiles + stage * Tile::KV_BYTES);
        tile.scale_scores(scores, begin + first, n_keys - first, k_scale + first, v_scale + first);
        __syncthreads(); // all maxima are there, and these keys are done with
        copy_keys(heads.k, k_tiles, first + STAGES * KEYS);
        tile.soften(scores, n_keys - first, v_scale + first);
        copy_wait<2 * STAGES - 1>();
        __syncthreads(); // all probabilities and these values are there
        tile.mix(v_tiles + stage * Tile::KV_BYTES);
    }
    copy_wait<0>();

    // Sums of the warps, in their order.
    __syncthreads();
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        tile.sum[i] += __shfl_xor_sync(ALL_LANES, tile.sum[i], 1);
        tile.sum[i] += __shfl_xor_sync(ALL_LANES, tile.sum[i], 2);
        if (lane % 4 == 0) of_warp[warp][lane / 4 + 8 * i] = tile.sum[i];
    }
    __syncthreads();
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        u32 row = lane / 4 + 8 * i;
        if (first_row + row > last_row) continue;
        float sum = of_warp[0][row];
        for (u32 w = 1; w < WARPS; w++) sum += of_warp[w][row];
        u64 place = (u64)split * splits.n_rows + query_of(row);
        if (splits.state && warp == 0 && lane % 4 == 0) {
            float* state = splits.state + 2 * (place * heads.n_heads + head_of(row));
            state[0] = tile.largest[i];
            state[1] = sum;
        }
        float factor = splits.state ? 1.0f : 1.0f / sum;
        float* to = heads.out + place * heads.ld_out + head_of(row) * heads.head_len;
#pragma unroll
        for (u32 j = 0; j < Tile::OUT_TILES; j++) {
            u32 column = (warp * Tile::OUT_TILES + j) * 8 + lane % 4 * 2;
            if (column >= heads.head_len) break;
            to[column] = tile.out[j][2 * i] * factor;
            to[column + 1] = tile.out[j][2 * i + 1] * factor;
        }
    }
}

// attn_split_<HEAD>
//   grid   (ceil(longest q_len * heads of a key head / 16) * n_splits, n_kv_heads, n_sequences)    block 128
//   dynamic shared memory  (16 + 2 * STAGES * KEYS) * (2 * HEAD + 16) + 16 * (2 * KEYS + 16) bytes
//   head_len a multiple of 8, at most HEAD; rows of q, k and v 16-byte aligned; split_len a multiple of 64
// Shared memory leaves room for two blocks, or few more: without that bound the compiler saves registers for more, and spills.
#define INSTANCE(HEAD)                                                                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                                         \
        attn_split_##HEAD(const half* q, const half* k, const half* v, const float* q_scale, const float* k_scale,                    \
                          const float* v_scale, float* out, const Span* spans, u32 n_heads, u32 n_kv_heads, u32 head_len, u32 ld_q,   \
                          u32 ld_kv, u32 ld_out, float scale, u32 window, float cap, float* state, u32 n_splits, u32 split_len,       \
                          u32 n_rows) {                                                                                              \
        attend_split<HEAD>(Heads{q, k, v, q_scale, k_scale, v_scale, out, n_heads, n_kv_heads, head_len, ld_q, ld_kv, ld_out, scale,  \
                                 window, cap},                                                                                       \
                           spans, Splits{state, n_splits, split_len, n_rows});                                                       \
    }                                                                                                                                \
    KERNEL(attn_split_##HEAD)

INSTANCE(64)
INSTANCE(96)
INSTANCE(128)
INSTANCE(256)
INSTANCE(512)

// What splits have of one row.
struct Parts {
    const float *out, *state; // [n_splits, n_rows, n_heads * head_len], [n_splits, n_rows, n_heads, 2]
    u32 n_splits, n_rows, n_heads, head_len, row;

    DEVICE float largest(u32 split, u32 head) const { return state_of(split, head)[0]; }
    DEVICE const float* state_of(u32 split, u32 head) const { return state + 2 * (((u64)split * n_rows + row) * n_heads + head); }

    // The largest score of a head, and 1 / sum.
    DEVICE void of_head(u32 head, float& most, float& inverse) const {
        most = UNSEEN;
        for (u32 split = 0; split < n_splits; split++) most = fmaxf(most, largest(split, head));
        float sum = 0.0f;
        for (u32 split = 0; split < n_splits; split++) {
            sum = fmaf(state_of(split, head)[1], exp2_fast(largest(split, head) - most), sum);
        }
        inverse = 1.0f / sum;
    }

    // Columns i and i + 1 of the row.
    DEVICE void merge(u32 i, float most, float inverse, float (&both)[2]) const {
        u32 head = i / head_len;
        both[0] = both[1] = 0.0f;
#pragma unroll 4
        for (u32 split = 0; split < n_splits; split++) {
            float weight = exp2_fast(largest(split, head) - most);
            // What has no weight may never have been written.
            const float* from = out + ((u64)split * n_rows + row) * n_heads * head_len + i;
            bool counts = !(weight == 0.0f);
            both[0] = fmaf(weight, counts ? from[0] : 0.0f, both[0]);
            both[1] = fmaf(weight, counts ? from[1] : 0.0f, both[1]);
        }
        both[0] *= inverse;
        both[1] *= inverse;
    }
};

constexpr u32 MERGE_THREADS = 512, MERGE_HEADS_MAX = 1024;

// out[row, :] = the merged row as fp16 with row_scale[row]. Merged values are kept in `parts`, in the place of the first split.
extern "C" __global__ void __launch_bounds__(MERGE_THREADS)
    attn_merge_f16(float* parts, const float* state, u32 n_splits, u32 n_rows, u32 n_heads, u32 head_len, half* out, u32 ld_out,
                   float* row_scale) {
    __shared__ float most[MERGE_HEADS_MAX], inverse[MERGE_HEADS_MAX];
    u32 row = blockIdx.x, row_len = n_heads * head_len;
    Parts splits{parts, state, n_splits, n_rows, n_heads, head_len, row};
    for (u32 head = threadIdx.x; head < n_heads; head += MERGE_THREADS) splits.of_head(head, most[head], inverse[head]);
    __syncthreads();
    float* merged = parts + (u64)row * row_len;
    float largest = 0.0f;
    for (u32 i = 2 * threadIdx.x; i < row_len; i += 2 * MERGE_THREADS) {
        u32 head = i / head_len;
        float both[2];
        splits.merge(i, most[head], inverse[head], both);
        merged[i] = both[0];
        merged[i + 1] = both[1];
        largest = fmaxf(largest, fmaxf(fabsf(both[0]), fabsf(both[1])));
    }
    RowScale scale(of_warps<Max, MERGE_THREADS / WARP>(largest));
    for (u32 i = 2 * threadIdx.x; i < ld_out; i += 2 * MERGE_THREADS) {
        *(u32*)(out + (u64)row * ld_out + i) = i < row_len ? pack_f16(merged[i] * scale.inverse, merged[i + 1] * scale.inverse) : 0;
    }
    if (threadIdx.x == 0) row_scale[row] = scale.scale;
}

// The same in f32, with a block for each head: where so many splits are merged that one block for a row would take long.
extern "C" __global__ void __launch_bounds__(THREADS)
    attn_merge_f32(const float* parts, const float* state, u32 n_splits, u32 n_rows, u32 n_heads, u32 head_len, float* out) {
    u32 row = blockIdx.x, head = blockIdx.y;
    Parts splits{parts, state, n_splits, n_rows, n_heads, head_len, row};
    float most, inverse;
    splits.of_head(head, most, inverse);
    for (u32 i = 2 * threadIdx.x; i < head_len; i += 2 * THREADS) {
        float both[2];
        splits.merge(head * head_len + i, most, inverse, both);
        float* to = out + ((u64)row * n_heads + head) * head_len + i;
        to[0] = both[0];
        to[1] = both[1];
    }
}

KERNEL(attn_merge_f16)
KERNEL(attn_merge_f32)
