// From a row of logits to what perplexity and the Kullback-Leibler divergence need, without a second look at the row.
//
// One block per row. Every thread goes through its columns once, keeping the largest logit so far and sums relative to it:
//
//     s = sum exp(x - max)         t = sum exp(a - max_a) * (a - b)
//
// and rescales them when the maximum grows. Then the threads' states are merged in a fixed tree. With p = exp(a - lse_a) and
// q = exp(b - lse_b) the divergence is sum p * (log p - log q) = t / s_a - (lse_a - lse_b): differences of the two logits are taken before
// anything is multiplied, and the two lse are subtracted in f64, so a small divergence is not what is left of two large numbers.

#include "common.cuh"

constexpr u32 THREADS = 256;

struct NllRow {
    double nll;
    float top_logit;
    i32 top;
};

struct KldRow {
    double nll_base, nll_test, kld;
    i32 top_base, top_test;
};

static_assert(sizeof(NllRow) == 16 && sizeof(KldRow) == 32, "rows as the host reads them");

// exp(x - max); 0 for -infinity, also where that is the largest so far
DEVICE float relative(float x, float max) { return x == -infinity() ? 0.0f : exp2_fast((x - max) * LOG2_E); }

// A softmax seen so far: its largest logit and where it first was, sum exp(x - max).
struct Softmax {
    float max, sum;
    i32 top;

    DEVICE static Softmax none() { return Softmax{-infinity(), 0.0f, 0x7fffffff}; }

    // Returns what sums relative to the old maximum are to be multiplied with.
    DEVICE float add(float x, i32 column) {
        float shrink = 1.0f;
        if (!(x <= max)) { // also when x is NaN, which then stays
            shrink = relative(max, x);
            max = x;
            top = column;
            sum = sum * shrink + 1.0f;
        } else {
            sum += relative(x, max);
        }
        return shrink;
    }

    // Returns what the other's sums are to be multiplied with; `own_shrink` is for one's own.
    DEVICE float merge(const Softmax& other, float& own_shrink) {
        bool other_first = other.max > max || (other.max == max && other.top < top) || other.max != other.max;
        float largest = other_first ? other.max : max;
        own_shrink = relative(max, largest);
        float shrink = relative(other.max, largest);
        sum = sum * own_shrink + other.sum * shrink;
        if (other_first) top = other.top;
        max = largest;
        return shrink;
    }

    DEVICE double log_sum() const { return (double)max + log((double)sum); }
};

// One softmax.
struct Single {
    Softmax x;

    DEVICE void merge(const Single& other) {
        float own;
        x.merge(other.x, own);
    }
};

// Two softmaxes and sum exp(a - max_a) * (a - b).
struct Pair {
    Softmax a, b;
    float t;

    DEVICE void add(float x, float y, i32 column) {
        t *= a.add(x, column);
        b.add(y, column);
        float weight = relative(x, a.max);
        if (weight > 0.0f) t = fmaf(weight, x - y, t);
    }

    DEVICE void merge(const Pair& other) {
        float own, shrink = a.merge(other.a, own), ignored;
        t = t * own + other.t * shrink;
        b.merge(other.b, ignored);
    }
};

// The states of all threads, merged in a tree; thread 0 gets the result.
template <class State>
DEVICE void merge_block(State& own) {
    __shared__ State states[THREADS];
    states[threadIdx.x] = own;
    for (u32 apart = THREADS / 2; apart; apart /= 2) {
        __syncthreads();
        if (threadIdx.x < apart) {
            own.merge(states[threadIdx.x + apart]);
            states[threadIdx.x] = own;
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    nll_rows(const float* logits, u32 ld, u32 n_cols, const i32* targets, NllRow* out) {
    logits += (u64)blockIdx.x * ld;
    Single state{Softmax::none()};
    for (u32 i = threadIdx.x; i < n_cols; i += THREADS) state.x.add(logits[i], i);
    merge_block(state);
    if (threadIdx.x == 0) {
        double nll = state.x.log_sum() - (double)logits[targets[blockIdx.x]];
        out[blockIdx.x] = NllRow{nll, state.x.max, state.x.top};
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    kld_rows(const float* base, u32 ld_base, const float* test, u32 ld_test, u32 n_cols, const i32* targets, KldRow* out) {
    base += (u64)blockIdx.x * ld_base;
    test += (u64)blockIdx.x * ld_test;
    Pair state{Softmax::none(), Softmax::none(), 0.0f};
    for (u32 i = threadIdx.x; i < n_cols; i += THREADS) state.add(base[i], test[i], i);
    merge_block(state);
    if (threadIdx.x == 0) {
        u32 target = targets[blockIdx.x];
        double lse_base = state.a.log_sum(), lse_test = state.b.log_sum();
        double kld = (double)state.t / (double)state.a.sum - (lse_base - lse_test);
        out[blockIdx.x] = KldRow{lse_base - (double)base[target], lse_test - (double)test[target], kld, state.a.top, state.b.top};
    }
}

KERNEL(nll_rows)
KERNEL(kld_rows)
