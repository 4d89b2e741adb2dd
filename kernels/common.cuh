// What all kernels share: integer names, the half type, and the instructions that CUDA C++ has no operator for.
//
// A kernel file is compiled twice: by NVRTC for the GPU, without any header of the toolkit, and by g++ with -DHOST_SHIM, where shim.h
// runs a block's threads as fibers. So every instruction here has a twin in plain C++, and the twin is stricter: it copies as late
// as cp.async may and refuses what is misaligned or meets in one bank.
//
// Both compilers are told not to fuse a*b + c (--fmad=false, -ffp-contract=off): what is meant to be fused says fmaf. So weights have
// the bits that src/quant gives them.
#pragma once

#ifdef HOST_SHIM
#include "shim.h"
#define DEVICE inline __attribute__((always_inline))
#else
#define DEVICE __device__ __forceinline__
#endif

typedef signed char i8;
typedef unsigned char u8;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef unsigned long long u64;

constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffff;

// An IEEE half as it lies in memory.
struct half {
    u16 bits;
};

// Sixteen bytes: the largest piece that one thread moves at once.
struct alignas(16) Chunk {
    u32 words[4];
};

static_assert(sizeof(u16) == 2 && sizeof(u32) == 4 && sizeof(u64) == 8 && sizeof(half) == 2 && sizeof(Chunk) == 16, "sizes");

DEVICE u32 ceil_div(u32 a, u32 b) { return a / b + (a % b != 0); }

// ---- Floats and their bits

DEVICE float as_float(u32 bits) {
#ifdef HOST_SHIM
    float x;
    memcpy(&x, &bits, 4);
    return x;
#else
    return __uint_as_float(bits);
#endif
}

DEVICE u32 as_bits(float x) {
#ifdef HOST_SHIM
    u32 bits;
    memcpy(&bits, &x, 4);
    return bits;
#else
    return __float_as_uint(x);
#endif
}

// The same number, which the compiler keeps in its register instead of making it again where it is used.
DEVICE float kept(float x) {
#ifndef HOST_SHIM
    asm volatile("" : "+f"(x));
#endif
    return x;
}

DEVICE float infinity() { return as_float(0x7f800000); }

DEVICE float to_f32(half x) {
#ifdef HOST_SHIM
    return shim::f32_of_f16(x.bits);
#else
    float y; // without cuda_fp16.h there is no name for the conversion
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
#endif
}

// Two halves in a word, `low` first in memory; rounded to nearest even.
DEVICE u32 pack_f16(float low, float high) {
#ifdef HOST_SHIM
    return shim::f16_of_f32(low) | (u32)shim::f16_of_f32(high) << 16;
#else
    u32 both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
#endif
}

DEVICE half to_f16(float x) { return half{(u16)pack_f16(x, 0.0f)}; }

// The two halves of a word.
DEVICE float low_f16(u32 both) { return to_f32(half{(u16)both}); }
DEVICE float high_f16(u32 both) { return to_f32(half{(u16)(both >> 16)}); }

// 2^x within 2 ulp; 0 for what is below 2^-126.
DEVICE float exp2_fast(float x) {
#ifdef HOST_SHIM
    return x < -126.0f ? 0.0f : exp2f(x);
#else
    float y; // exp2f would also treat subnormal results
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

constexpr float LOG2_E = 1.44269504088896340736f;

// x * sigmoid(x)
DEVICE float silu(float x) { return x / (1.0f + exp2_fast(-x * LOG2_E)); }

// cap * tanh(x / cap)
DEVICE float capped(float x, float cap) {
    float e = exp2_fast(x / cap * (2.0f * LOG2_E)); // tanh(y) = 1 - 2 / (1 + exp(2 y))
    return cap - cap * (2.0f / (1.0f + e));
}

// ---- Sums and maxima over a warp and a block, in a fixed order

DEVICE float warp_sum(float x) {
    for (u32 apart = 16; apart; apart /= 2) x += __shfl_xor_sync(ALL_LANES, x, apart);
    return x;
}

DEVICE float warp_max(float x) {
    for (u32 apart = 16; apart; apart /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, apart));
    return x;
}

// ---- Memory

// A little-endian word from an address that is a multiple of ALIGN.
template <u32 ALIGN>
DEVICE u32 load_u32(const u8* from) {
    if (ALIGN >= 4) return *(const u32*)from;
    if (ALIGN == 2) return *(const u16*)from | (u32) * (const u16*)(from + 2) << 16;
    return from[0] | from[1] << 8 | from[2] << 16 | (u32)from[3] << 24;
}

// The shared memory that the launch asked for; 1024-byte aligned, as TMA's swizzle wants it.
DEVICE u8* dynamic_shared() {
#ifdef HOST_SHIM
    return shim::dynamic_shared();
#else
    extern __shared__ __align__(1024) u8 bytes[];
    return bytes;
#endif
}

#ifndef HOST_SHIM
DEVICE u32 shared_address(const void* in_shared) { return (u32)__cvta_generic_to_shared(in_shared); }
#endif

// Starts copying 16 bytes from global to shared memory without a register between; zeros instead where not `valid`.
DEVICE void copy_async(void* to_shared, const void* from, bool valid = true) {
#ifdef HOST_SHIM
    shim::copy_async(to_shared, from, valid);
#else
    u32 n_bytes = valid ? 16 : 0; // of 16, the others become zero
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to_shared)), "l"(from), "r"(n_bytes) : "memory");
#endif
}

// What this thread started since the last call is one group.
DEVICE void copy_commit() {
#ifdef HOST_SHIM
    shim::copy_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most N of this thread's groups are under way. Other threads see the bytes only after a barrier.
template <u32 N>
DEVICE void copy_wait() {
#ifdef HOST_SHIM
    shim::copy_wait(N);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// ---- Tensor cores

// Four 8x8 matrices of halves from shared memory: lane 8*i + r gives the address of row r of matrix i. Afterwards word i of lane l holds
// columns 2*(l%4) and 2*(l%4) + 1 of row l/4 of matrix i: what mma_16x8x16 wants.
DEVICE void load_matrices(u32 (&words)[4], const void* row) {
#ifdef HOST_SHIM
    shim::load_matrices(words, row, false);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(row))
                 : "memory");
#endif
}

// The same with every matrix turned round: word i of lane l holds rows 2*(l%4) and 2*(l%4) + 1 of column l/4.
DEVICE void load_matrices_transposed(u32 (&words)[4], const void* row) {
#ifdef HOST_SHIM
    shim::load_matrices(words, row, true);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(shared_address(row))
                 : "memory");
#endif
}

// c[16, 8] += a[16, 16] * b[16, 8], a and b halves, sums in f32. With g = lane/4 and t = 2*(lane%4) a lane holds
//   a: words of (row, column) (g, t), (g + 8, t), (g, t + 8), (g + 8, t + 8), each with the next column
//   b: words of (row, column) (t, g), (t + 8, g), each with the next row
//   c: (g, t), (g, t + 1), (g + 8, t), (g + 8, t + 1)
DEVICE void mma_16x8x16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#ifdef HOST_SHIM
    shim::mma_16x8x16(c, a, b0, b1);
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// Names the kernels of a file to the host shim, so that tests start them as a driver does: by name, with pointers to arguments.
#ifdef HOST_SHIM
#define KERNEL(name) static const shim::Registered registered_##name(#name, name);
#else
#define KERNEL(name)
#endif
