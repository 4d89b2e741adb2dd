// What happens between products, row by row in f32: norms, RoPE, SwiGLU, sums; and the step from f32 to the fp16 operand of a product.
//
// An fp16 row comes with a power of two, so that neither its largest value overflows nor its small ones vanish: `a * row_scale` is the
// value, exactly. The largest magnitude of a row becomes 2^10 .. 2^11, so what lies 2^24 below it is still a normal half.
//
// One block of 256 threads per row. Sums run in a fixed order: thread t adds elements t, t + 256, ..; then lanes, then warps.

#include "rows.cuh"

constexpr u32 THREADS = 256, WARPS = THREADS / WARP;

// What all threads of the block give, combined; every thread gets it.
template <class Operation>
DEVICE float of_block(float x) {
    return of_warps<Operation, WARPS>(x);
}

// Writes a row as halves: value(i) for i < row_len, then zeros up to ld. A thread writes two at a time.
template <class Value>
DEVICE void store_row(half* out, u32 row_len, u32 ld, float inverse, Value value) {
    for (u32 i = 2 * threadIdx.x; i < ld; i += 2 * THREADS) {
        float low = i < row_len ? value(i) * inverse : 0.0f, high = i + 1 < row_len ? value(i + 1) * inverse : 0.0f;
        *(u32*)(out + i) = pack_f16(low, high);
    }
}

// 1 / sqrt(mean of squares + eps)
DEVICE float inverse_rms(const float* x, u32 row_len, float eps) {
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < row_len; i += THREADS) sum = fmaf(x[i], x[i], sum);
    return 1.0f / sqrtf(of_block<Sum>(sum) / (float)row_len + eps);
}

// out[row, i] = x[row, i] * inverse_rms * weight[i], as fp16 with row_scale[row]
extern "C" __global__ void __launch_bounds__(THREADS)
    rmsnorm_f16(const float* x, u32 ld_x, const float* weight, float eps, u32 row_len, half* out, u32 ld_out, float* row_scale) {
    u32 row = blockIdx.x;
    x += (u64)row * ld_x;
    float norm = inverse_rms(x, row_len, eps), largest = 0.0f;
    for (u32 i = threadIdx.x; i < row_len; i += THREADS) largest = fmaxf(largest, fabsf(x[i] * norm * weight[i]));
    RowScale scale(of_block<Max>(largest));
    store_row(out + (u64)row * ld_out, row_len, ld_out, scale.inverse, [=](u32 i) { return x[i] * norm * weight[i]; });
    if (threadIdx.x == 0) row_scale[row] = scale.scale;
}

// The same in f32; `out` may be `x`.
extern "C" __global__ void __launch_bounds__(THREADS)
    rmsnorm_f32(const float* x, u32 ld_x, const float* weight, float eps, u32 row_len, float* out, u32 ld_out) {
    x += (u64)blockIdx.x * ld_x;
    out += (u64)blockIdx.x * ld_out;
    float norm = inverse_rms(x, row_len, eps);
    for (u32 i = threadIdx.x; i < row_len; i += THREADS) out[i] = x[i] * norm * weight[i];
}

// out[row, i] = (x[row, i] - mean) / sqrt(variance + eps) * weight[i] + bias[i], as fp16 with row_scale[row]
extern "C" __global__ void __launch_bounds__(THREADS)
    layernorm_f16(const float* x, u32 ld_x, const float* weight, const float* bias, float eps, u32 row_len, half* out, u32 ld_out,
                  float* row_scale) {
    u32 row = blockIdx.x;
    x += (u64)row * ld_x;
    float sum = 0.0f, squares = 0.0f, largest = 0.0f;
    for (u32 i = threadIdx.x; i < row_len; i += THREADS) sum += x[i];
    float mean = of_block<Sum>(sum) / (float)row_len;
    for (u32 i = threadIdx.x; i < row_len; i += THREADS) squares = fmaf(x[i] - mean, x[i] - mean, squares);
    float norm = 1.0f / sqrtf(of_block<Sum>(squares) / (float)row_len + eps);
    auto value = [=](u32 i) { return (x[i] - mean) * norm * weight[i] + bias[i]; };
    for (u32 i = threadIdx.x; i < row_len; i += THREADS) largest = fmaxf(largest, fabsf(value(i)));
    RowScale scale(of_block<Max>(largest));
    store_row(out + (u64)row * ld_out, row_len, ld_out, scale.inverse, value);
    if (threadIdx.x == 0) row_scale[row] = scale.scale;
}

// out[row, :] = x[row, :] as fp16 with row_scale[row]
extern "C" __global__ void __launch_bounds__(THREADS)
    rows_f16(const float* x, u32 ld_x, u32 row_len, half* out, u32 ld_out, float* row_scale) {
    u32 row = blockIdx.x;
    x += (u64)row * ld_x;
    float largest = 0.0f;
    for (u32 i = threadIdx.x; i < row_len; i += THREADS) largest = fmaxf(largest, fabsf(x[i]));
    RowScale scale(of_block<Max>(largest));
    store_row(out + (u64)row * ld_out, row_len, ld_out, scale.inverse, [=](u32 i) { return x[i]; });
    if (threadIdx.x == 0) row_scale[row] = scale.scale;
}

// out[row, i] = silu(gate[row, i]) * up[row, i] as fp16 with row_scale[row]
extern "C" __global__ void __launch_bounds__(THREADS)
    swiglu_f16(const float* gate, const float* up, u32 ld, u32 row_len, half* out, u32 ld_out, float* row_scale) {
    u32 row = blockIdx.x;
    gate += (u64)row * ld;
    up += (u64)row * ld;
    float largest = 0.0f;
    for (u32 i = threadIdx.x; i < row_len; i += THREADS) largest = fmaxf(largest, fabsf(silu(gate[i]) * up[i]));
    RowScale scale(of_block<Max>(largest));
    store_row(out + (u64)row * ld_out, row_len, ld_out, scale.inverse, [=](u32 i) { return silu(gate[i]) * up[i]; });
    if (threadIdx.x == 0) row_scale[row] = scale.scale;
}

// x * Phi(x), by the form with the hyperbolic tangent: (1 + tanh(y)) / 2 = 1 / (1 + exp(-2 y)).
DEVICE float gelu_tanh(float x) {
    float twice = x * fmaf(x * x, 0.07135482f, 1.5957692f); // 2 * sqrt(2 / pi) * (x + 0.044715 x^3)
    return x / (1.0f + exp2_fast(-twice * LOG2_E));
}

// x * Phi(x) = x * erfc(-x / sqrt 2) / 2, with the approximation of erfc by Press et al., Numerical Recipes, whose relative error is 1.2e-7.
DEVICE float gelu_erf(float x) {
    float z = fabsf(x) * 0.70710678f, t = 1.0f / fmaf(0.5f, z, 1.0f);
    float p = 0.17087277f;
    p = fmaf(p, t, -0.82215223f);
    p = fmaf(p, t, 1.48851587f);
    p = fmaf(p, t, -1.13520398f);
    p = fmaf(p, t, 0.27886807f);
    p = fmaf(p, t, -0.18628806f);
    p = fmaf(p, t, 0.09678418f);
    p = fmaf(p, t, 0.37409196f);
    p = fmaf(p, t, 1.00002368f);
    p = fmaf(p, t, -1.26551223f);
    float half_erfc = 0.5f * t * exp2_fast(fmaf(-z, z, p) * LOG2_E);
    return x * (x < 0.0f ? half_erfc : 1.0f - half_erfc);
}

// out[row, i] = gelu(gate[row, i]) * up[row, i] as fp16 with row_scale[row]; without `up` gelu(gate[row, i])
extern "C" __global__ void __launch_bounds__(THREADS)
    gelu_f16(const float* gate, const float* up, u32 by_erf, u32 ld, u32 row_len, half* out, u32 ld_out, float* row_scale) {
    u32 row = blockIdx.x;
    gate += (u64)row * ld;
    up += up ? (u64)row * ld : 0;
    auto value = [=](u32 i) {
        float gelu = by_erf ? gelu_erf(gate[i]) : gelu_tanh(gate[i]);
        return up ? gelu * up[i] : gelu;
    };
    float largest = 0.0f;
    for (u32 i = threadIdx.x; i < row_len; i += THREADS) largest = fmaxf(largest, fabsf(value(i)));
    RowScale scale(of_block<Max>(largest));
    store_row(out + (u64)row * ld_out, row_len, ld_out, scale.inverse, value);
    if (threadIdx.x == 0) row_scale[row] = scale.scale;
}

// Queries, keys or values of all tokens: products x, and what becomes of them.
struct HeadRows {
    const float *x, *bias, *gain; // bias and gain may be null
    half* out;
    float* row_scale;
    u32 ld_x, ld_out, n_heads, rot_len;
};

// Heads that are normalised in one row.
constexpr u32 NORMS_MAX = 1024;

// The row of heads of one token.
struct HeadRow {
    const float *x, *bias, *gain, *norms, *angles;
    u32 head_len, rot_len, neox;

    DEVICE float biased(u32 i) const { return bias ? x[i] + bias[i] : x[i]; }

    // 1 / sqrt(mean of squares + eps) of a head, in the order of sums of a row (inverse_rms): a warp takes the part of each in turn.
    DEVICE float inverse_rms(u32 head, float eps) const {
        float sum = 0.0f;
        for (u32 first = 0; first < THREADS && first < head_len; first += WARP) {
            float part = 0.0f;
            for (u32 i = first + threadIdx.x % WARP; i < head_len; i += THREADS) {
                float value = biased(head * head_len + i);
                part = fmaf(value, value, part);
            }
            sum += warp_sum(part);
        }
        return 1.0f / sqrtf(sum / (float)head_len + eps);
    }

    DEVICE float normalised(u32 i) const { return gain ? biased(i) * norms[i / head_len] * gain[i % head_len] : biased(i); }

    // An element after its pair is turned by the angles of the token's position: (a, b) -> (a cos - b sin, b cos + a sin).
    DEVICE float operator()(u32 i) const {
        u32 at = i % head_len, pairs = rot_len / 2;
        if (at >= rot_len) return normalised(i);
        u32 pair = neox ? at % pairs : at / 2, apart = neox ? pairs : 1;
        bool is_first = neox ? at < pairs : at % 2 == 0;
        float cosine = angles[2 * pair], sine = angles[2 * pair + 1];
        return is_first ? normalised(i) * cosine - normalised(i + apart) * sine : normalised(i) * cosine + normalised(i - apart) * sine;
    }
};

// out[token, :] = the heads of x[token, :], with a bias, normalised and turned, as fp16 with row_scale[token]: up to three kinds at once
//   x: [n_tokens, n_heads * head_len]; cos_sin: [n_positions, rot_len / 2, 2]; pairs are neighbours, or rot_len / 2 apart (neox)
extern "C" __global__ void __launch_bounds__(THREADS)
    heads_f16(const float* x_0, const float* bias_0, const float* gain_0, half* out_0, float* row_scale_0, u32 ld_x_0, u32 ld_out_0,
              u32 n_heads_0, u32 rot_len_0, const float* x_1, const float* bias_1, const float* gain_1, half* out_1, float* row_scale_1,
              u32 ld_x_1, u32 ld_out_1, u32 n_heads_1, u32 rot_len_1, const float* x_2, const float* bias_2, const float* gain_2,
              half* out_2, float* row_scale_2, u32 ld_x_2, u32 ld_out_2, u32 n_heads_2, u32 rot_len_2, u32 head_len, float eps,
              const float* cos_sin, const i32* positions, u32 neox) {
    __shared__ float norms[NORMS_MAX];
    HeadRows rows{x_0, bias_0, gain_0, out_0, row_scale_0, ld_x_0, ld_out_0, n_heads_0, rot_len_0};
    if (blockIdx.y == 1) rows = HeadRows{x_1, bias_1, gain_1, out_1, row_scale_1, ld_x_1, ld_out_1, n_heads_1, rot_len_1};
    if (blockIdx.y == 2) rows = HeadRows{x_2, bias_2, gain_2, out_2, row_scale_2, ld_x_2, ld_out_2, n_heads_2, rot_len_2};
    u32 token = blockIdx.x, row_len = rows.n_heads * head_len;
    const float* angles = rows.rot_len ? cos_sin + (u64)positions[token] * rows.rot_len : nullptr;
    HeadRow row{rows.x + (u64)token * rows.ld_x, rows.bias, rows.gain, norms, angles, head_len, rows.rot_len, neox};
    if (rows.gain) {
        for (u32 head = threadIdx.x / WARP; head < rows.n_heads; head += WARPS) {
            float norm = row.inverse_rms(head, eps);
            if (threadIdx.x % WARP == 0) norms[head] = norm;
        }
        __syncthreads();
    }
    float largest = 0.0f;
    for (u32 i = threadIdx.x; i < row_len; i += THREADS) largest = fmaxf(largest, fabsf(row(i)));
    RowScale scale(of_block<Max>(largest));
    store_row(rows.out + (u64)token * rows.ld_out, row_len, row_len, scale.inverse, row);
    if (threadIdx.x == 0) rows.row_scale[token] = scale.scale;
}

// to[rows[i], :] += factors[i] * x[i, :]; without rows to[i, :], without factors x as it is. No row is named twice.
extern "C" __global__ void __launch_bounds__(THREADS)
    add_rows_f32(const float* x, u32 ld_x, const i32* rows, const float* factors, u32 row_len, float* to, u32 ld_to) {
    u32 row = blockIdx.x;
    float factor = factors ? factors[row] : 1.0f;
    x += (u64)row * ld_x;
    to += (u64)(rows ? rows[row] : row) * ld_to;
    for (u32 i = threadIdx.x; i < row_len; i += THREADS) to[i] += factor * x[i];
}

// x[row, i] = cap * tanh(x[row, i] * scale / cap), or without a cap x[row, i] * scale
extern "C" __global__ void __launch_bounds__(THREADS) cap_rows_f32(float* x, u32 ld, u32 row_len, float scale, float cap) {
    x += (u64)blockIdx.x * ld;
    for (u32 i = threadIdx.x; i < row_len; i += THREADS) x[i] = cap == 0.0f ? x[i] * scale : capped(x[i] * scale, cap);
}

// partial[chunk, column] = sum over the chunk's rows of (a * row_scale)^2, in f64: what an importance matrix collects
extern "C" __global__ void __launch_bounds__(THREADS)
    sum_squares(const half* a, u32 lda, const float* row_scale, u32 n_rows, u32 n_cols, double* partial) {
    u32 column = blockIdx.x * THREADS + threadIdx.x, per_chunk = ceil_div(n_rows, gridDim.y);
    if (column >= n_cols) return;
    u32 first = blockIdx.y * per_chunk, end = first + per_chunk < n_rows ? first + per_chunk : n_rows;
    double sum = 0.0;
    for (u32 row = first; row < end; row++) {
        float x = to_f32(a[(u64)row * lda + column]) * (row_scale ? row_scale[row] : 1.0f);
        sum += (double)x * (double)x;
    }
    partial[(u64)blockIdx.y * n_cols + column] = sum;
}

// sums[column] += partial[0, column] + partial[1, column] + ..
extern "C" __global__ void __launch_bounds__(THREADS) fold_columns(const double* partial, u32 n_chunks, u32 n_cols, double* sums) {
    u32 column = blockIdx.x * THREADS + threadIdx.x;
    if (column >= n_cols) return;
    double sum = 0.0;
    for (u32 chunk = 0; chunk < n_chunks; chunk++) sum += partial[(u64)chunk * n_cols + column];
    sums[column] += sum;
}

KERNEL(rmsnorm_f16)
KERNEL(rmsnorm_f32)
KERNEL(layernorm_f16)
KERNEL(rows_f16)
KERNEL(swiglu_f16)
KERNEL(gelu_f16)
KERNEL(heads_f16)
KERNEL(add_rows_f32)
KERNEL(cap_rows_f32)
KERNEL(sum_squares)
KERNEL(fold_columns)
