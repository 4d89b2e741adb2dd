// What both ways of attention share: a launch's arguments, powers of two, and what becomes of a score.
#pragma once

#include "common.cuh"

// Rows of one sequence.
struct Span {
    u32 q_first, q_len, kv_first, kv_len;
};

struct Heads {
    const half *q, *k, *v;
    const float *q_scale, *k_scale, *v_scale; // a power of two for each row
    float* out;
    u32 n_heads, n_kv_heads, head_len, ld_q, ld_kv, ld_out;
    float scale;
    u32 window; // keys that a query sees, itself included; 0: all
    float cap;  // bound of scores: cap * tanh(score / cap); 0: none
};

// Of a power of two that is a normal float.
DEVICE float log2_of_power(float power) { return (float)((i32)(as_bits(power) >> 23) - 127); }
DEVICE float inverse_of_power(float power) { return as_float((254u << 23) - as_bits(power)); }

// The score of a key that a query does not see. Finite, so that a query that has seen none has a largest score; what those keys add is
// multiplied with 2^-huge = 0 as soon as it sees one.
constexpr float UNSEEN = -1e30f;
