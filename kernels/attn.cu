// Causal attention with grouped keys: out = softmax(scale * q k^T) v for every head, never holding a whole row of scores.
//
// A block takes 64 queries of one head and sequence, a warp 16 of them; keys and values come in tiles of 64 (32 for heads of 256), the
// next tile being copied while the tensor cores work on this one:
//
//     scores[16, keys] = q[16, head] k[keys, head]^T        fragments of mma_16x8x16
//     mask what lies after the query; m' = max(m, row maxima); p = exp(scores - m')
//     l = l * exp(m - m') + row sums of p / s;  out = out * exp(m - m') + p v    m, l, out in f32, p rounded to fp16
//     at the end out / l
//
// Rows of q, k and v come with powers of two. Those of q and k are factors of the scores. That of a value, s, is part of its score, to
// which log(s) is added: so p, at most 1, is as large as what it contributes, and neither overflows. The row sums take it out again.
//
// A row of a tile is 16 bytes longer than a head, so that eight rows of a matrix meet in no bank. A head shorter than HEAD is filled
// up with zeros in shared memory.

#include "attn.cuh"

constexpr u32 QUERIES = 64, THREADS = 128;

template <u32 HEAD>
struct Attention {
    static constexpr u32 KEYS = HEAD <= 128 ? 64 : 32;
    static constexpr u32 ROW_BYTES = 2 * HEAD + 16, K_STEPS = HEAD / 16, KEY_TILES = KEYS / 8, OUT_TILES = HEAD / 8;
    static constexpr u32 Q_BYTES = QUERIES * ROW_BYTES, KV_BYTES = KEYS * ROW_BYTES;
    // Longer heads leave no registers to keep q in.
    static constexpr bool KEEPS_Q = HEAD <= 128;

    // Starts copying `n_rows` rows of a head; those from `end` on become zeros.
    DEVICE static void copy(u8* tile, const half* from, u32 n_rows, u32 end, u32 head_len, u32 ld) {
        constexpr u32 CHUNKS = HEAD / 8;
        for (u32 c = threadIdx.x; c < n_rows * CHUNKS; c += THREADS) {
            u32 row = c / CHUNKS, chunk = c % CHUNKS;
            bool valid = row < end && chunk * 8 < head_len;
            copy_async(tile + row * ROW_BYTES + chunk * 16, from + (u64)row * ld + chunk * 8, valid);
        }
    }

    // One warp's share: rows g and g + 8 of 16 queries, g = lane / 4.
    float out[OUT_TILES][4], largest[2], sum[2];
    u32 q[KEEPS_Q ? K_STEPS : 1][4];

    DEVICE static const u8* q_row(const u8* q_tile, u32 warp, u32 lane, u32 step) {
        return q_tile + (16 * warp + lane % 16) * ROW_BYTES + step * 32 + lane / 16 * 16;
    }

    DEVICE void start(const u8* q_tile, u32 warp, u32 lane) {
#pragma unroll
        for (u32 i = 0; i < OUT_TILES; i++) {
#pragma unroll
            for (u32 j = 0; j < 4; j++) out[i][j] = 0.0f;
        }
        for (u32 i = 0; i < 2; i++) largest[i] = UNSEEN, sum[i] = 0.0f;
        if (KEEPS_Q) {
#pragma unroll
            for (u32 step = 0; step < K_STEPS; step++) load_matrices(q[KEEPS_Q ? step : 0], q_row(q_tile, warp, lane, step));
        }
    }

    // scores = q k^T for a tile of keys
    DEVICE void score(float (&scores)[KEY_TILES][4], const u8* q_tile, const u8* k_tile, u32 warp, u32 lane) {
        u32 matrix = lane / 8, r = lane % 8;
#pragma unroll
        for (u32 step = 0; step < K_STEPS; step++) {
            u32(&a)[4] = q[KEEPS_Q ? step : 0];
            if (!KEEPS_Q) load_matrices(a, q_row(q_tile, warp, lane, step));
#pragma unroll
            for (u32 i = 0; i < KEY_TILES / 2; i++) {
                u32 b[4];
                load_matrices(b, k_tile + (16 * i + matrix / 2 * 8 + r) * ROW_BYTES + step * 32 + matrix % 2 * 16);
                mma_16x8x16(scores[2 * i], a, b[0], b[1]);
                mma_16x8x16(scores[2 * i + 1], a, b[2], b[3]);
            }
        }
    }

    // Scores become probabilities relative to the largest so far, times the power of two of the value. `last`: the last key that row g
    // sees, in this tile's numbers; `end`: the first that there is not.
    DEVICE void soften(const Heads& heads, float (&scores)[KEY_TILES][4], i32 last, u32 end, const float (&factors)[2],
                       const float* k_scale, const float* v_scale, u32 lane) {
        float now[2] = {largest[0], largest[1]};
#pragma unroll
        for (u32 i = 0; i < KEY_TILES; i++) {
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                u32 key = 8 * i + lane % 4 * 2 + j % 2, at = key < end ? key : 0;
                float power = log2_of_power(v_scale[at]);
                if (heads.cap == 0.0f) {
                    scores[i][j] = fmaf(scores[i][j] * k_scale[at], factors[j / 2], power);
                } else {
                    scores[i][j] = fmaf(capped(scores[i][j] * k_scale[at] * factors[j / 2], heads.cap), LOG2_E, power);
                }
                i32 past = last + (j >= 2 ? 8 : 0) - (i32)key; // keys between it and the last that the row sees
                if (past < 0 || (heads.window != 0 && (u32)past >= heads.window)) scores[i][j] = UNSEEN;
                now[j / 2] = fmaxf(now[j / 2], scores[i][j]);
            }
        }
        float shrink[2];
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            now[i] = fmaxf(now[i], __shfl_xor_sync(ALL_LANES, now[i], 1));
            now[i] = fmaxf(now[i], __shfl_xor_sync(ALL_LANES, now[i], 2));
            shrink[i] = exp2_fast(largest[i] - now[i]);
            largest[i] = now[i];
            sum[i] *= shrink[i];
        }
#pragma unroll
        for (u32 i = 0; i < KEY_TILES; i++) {
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                u32 key = 8 * i + lane % 4 * 2 + j % 2, at = key < end ? key : 0;
                scores[i][j] = exp2_fast(scores[i][j] - now[j / 2]);
                sum[j / 2] = fmaf(scores[i][j], inverse_of_power(v_scale[at]), sum[j / 2]);
            }
        }
#pragma unroll
        for (u32 i = 0; i < OUT_TILES; i++) {
#pragma unroll
            for (u32 j = 0; j < 4; j++) out[i][j] *= shrink[j / 2];
        }
    }

    // out += p v
    DEVICE void mix(const float (&p)[KEY_TILES][4], const u8* v_tile, u32 lane) {
        u32 matrix = lane / 8, r = lane % 8;
#pragma unroll
        for (u32 step = 0; step < KEYS / 16; step++) {
            const float *left = p[2 * step], *right = p[2 * step + 1];
            u32 a[4] = {pack_f16(left[0], left[1]), pack_f16(left[2], left[3]), pack_f16(right[0], right[1]),
                        pack_f16(right[2], right[3])};
#pragma unroll
            for (u32 i = 0; i < OUT_TILES / 2; i++) {
                u32 b[4];
                load_matrices_transposed(b, v_tile + (16 * step + matrix % 2 * 8 + r) * ROW_BYTES + (2 * i + matrix / 2) * 16);
                mma_16x8x16(out[2 * i], a, b[0], b[1]);
                mma_16x8x16(out[2 * i + 1], a, b[2], b[3]);
            }
        }
    }

    // Rows g and g + 8, of which `n_rows` exist.
    DEVICE void finish(float* to, u32 ld, u32 n_rows, u32 head_len, u32 lane) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            sum[i] += __shfl_xor_sync(ALL_LANES, sum[i], 1);
            sum[i] += __shfl_xor_sync(ALL_LANES, sum[i], 2);
            u32 row = lane / 4 + 8 * i;
            if (row >= n_rows) continue;
            float inverse = 1.0f / sum[i];
#pragma unroll
            for (u32 j = 0; j < OUT_TILES; j++) {
                if (8 * j >= head_len) break;
                float* at = to + (u64)row * ld + 8 * j + lane % 4 * 2;
                at[0] = out[j][2 * i] * inverse;
                at[1] = out[j][2 * i + 1] * inverse;
            }
        }
    }
};

template <u32 HEAD>
DEVICE void attend(const Heads& heads, const Span* spans) {
    typedef Attention<HEAD> Tile;
    Span span = spans[blockIdx.z];
    u32 head = blockIdx.y, kv_head = head / (heads.n_heads / heads.n_kv_heads), first = blockIdx.x * QUERIES;
    if (first >= span.q_len) return;
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, n_queries = span.q_len - first;
    u32 earlier = span.kv_len - span.q_len; // keys that every query sees
    u32 n_keys = earlier + (n_queries < QUERIES ? span.q_len : first + QUERIES);

    const half* q = heads.q + (u64)(span.q_first + first) * heads.ld_q + head * heads.head_len;
    const half* k = heads.k + (u64)span.kv_first * heads.ld_kv + kv_head * heads.head_len;
    const half* v = heads.v + (u64)span.kv_first * heads.ld_kv + kv_head * heads.head_len;
    u8* q_tile = dynamic_shared();
    u8* kv_tiles = q_tile + Tile::Q_BYTES;
    const float *k_scale = heads.k_scale + span.kv_first, *v_scale = heads.v_scale + span.kv_first;
    float factors[2];
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        u32 row = 16 * warp + lane / 4 + 8 * i;
        factors[i] = heads.scale * (heads.cap == 0.0f ? LOG2_E : 1.0f) * heads.q_scale[span.q_first + first + (row < n_queries ? row : 0)];
    }
    // The first tile that some query sees.
    u32 first_seen = heads.window != 0 && earlier + first >= heads.window ? (earlier + first + 1 - heads.window) / Tile::KEYS : 0;
    auto copy = [&](u32 first_key) {
        u8* k_tile = kv_tiles + first_key / Tile::KEYS % 2 * 2 * Tile::KV_BYTES;
        if (first_key < n_keys) {
            u64 at = (u64)first_key * heads.ld_kv;
            u32 end = n_keys - first_key;
            Tile::copy(k_tile, k + at, Tile::KEYS, end, heads.head_len, heads.ld_kv);
            Tile::copy(k_tile + Tile::KV_BYTES, v + at, Tile::KEYS, end, heads.head_len, heads.ld_kv);
        }
        copy_commit();
    };

    Tile::copy(q_tile, q, QUERIES, n_queries, heads.head_len, heads.ld_q);
    copy(first_seen * Tile::KEYS);
    Tile tile;
    for (u32 first_key = first_seen * Tile::KEYS; first_key < n_keys; first_key += Tile::KEYS) {
        copy(first_key + Tile::KEYS);
        copy_wait<1>();
        __syncthreads();
        if (first_key == first_seen * Tile::KEYS) tile.start(q_tile, warp, lane);
        const u8* k_tile = kv_tiles + first_key / Tile::KEYS % 2 * 2 * Tile::KV_BYTES;
        float scores[Tile::KEY_TILES][4] = {};
        tile.score(scores, q_tile, k_tile, warp, lane);
        i32 last = (i32)(earlier + first + 16 * warp + lane / 4) - (i32)first_key;
        tile.soften(heads, scores, last, n_keys - first_key, factors, k_scale + first_key, v_scale + first_key, lane);
        tile.mix(scores, k_tile + Tile::KV_BYTES, lane);
        __syncthreads(); // the next copy goes over this tile
    }
    copy_wait<0>();
    float* out = heads.out + (u64)(span.q_first + first + 16 * warp) * heads.ld_out + head * heads.head_len;
    tile.finish(out, heads.ld_out, n_queries > 16 * warp ? n_queries - 16 * warp : 0, heads.head_len, lane);
}

// attn_<HEAD>
//   grid   (ceil(longest q_len / 64), n_heads, n_sequences)    block 128
//   dynamic shared memory  (64 + 4 * KEYS) * (2 * HEAD + 16) bytes, KEYS being 32 for 256 and 64 for the others
//   head_len a multiple of 8, at most HEAD; rows of q, k and v 16-byte aligned
#define INSTANCE(HEAD)                                                                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                                            \
        attn_##HEAD(const half* q, const half* k, const half* v, const float* q_scale, const float* k_scale, const float* v_scale,   \
                    float* out, const Span* spans, u32 n_heads, u32 n_kv_heads, u32 head_len, u32 ld_q, u32 ld_kv, u32 ld_out,       \
                    float scale, u32 window, float cap) {                                                                            \
        attend<HEAD>(Heads{q, k, v, q_scale, k_scale, v_scale, out, n_heads, n_kv_heads, head_len, ld_q, ld_kv, ld_out, scale,        \
                           window, cap},                                                                                             \
                     spans);                                                                                                         \
    }                                                                                                                                \
    KERNEL(attn_##HEAD)

INSTANCE(64)
INSTANCE(80)
INSTANCE(96)
INSTANCE(128)
INSTANCE(256)
