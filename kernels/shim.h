// Runs kernels on the CPU, for tests: g++ -DHOST_SHIM.
//
// Every thread of a block is a fiber, which runs until it waits: at a barrier, or for its warp. A warp runs as far as it gets before the
// next one does, and blocks follow each other. Nothing is simultaneous, so what a wrong kernel does is repeatable, and the order of
// warps and lanes can be turned round: results that depend on it betray a race. Shared memory starts as NaN in every block.
#pragma once

#include <math.h>
#include <string.h>

#define __global__
#define __device__
#define __shared__ static thread_local
#define __constant__ static
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __grid_constant__

struct uint3 {
    unsigned x, y, z;
};

extern thread_local uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace shim {

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

float f32_of_f16(u16 bits);
u16 f16_of_f32(float x);

u8* dynamic_shared();

// Copies happen when they are waited for, not before.
void copy_async(void* to_shared, const void* from, bool valid);
void copy_commit();
void copy_wait(u32 groups_left);

void load_matrices(u32 (&words)[4], const void* row, bool transposed);
void mma_16x8x16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1);

// ---- Compute capability 9.0: hopper.cuh says what each is for. Addresses are those of shared memory, whose window begins at 0.

u64 shared_address(const void* in_shared);
void barrier_init(void* barrier, u32 n_arrivals);
void barriers_are_ready();
void barrier_expect(void* barrier, u32 n_bytes);
void barrier_arrive(void* barrier);
void barrier_wait(void* barrier, u32 parity);
void copy_box(void* to, const void* map, u32 column, u32 row, void* barrier);
void wgmma(float* c, u32 n_sums, u64 a, u64 b);
void products_fence();
void products_commit();
void products_wait(u32 groups_left);
void set_registers(u32 n);

// ---- Warps and launches

// The word that lane `from` of the same warp gave.
u64 exchange(u64 word, u32 from);
u32 lane();

// A kernel by name, and how to call it with a driver's array of pointers to arguments.
typedef void (*Thunk)(void* kernel, void** arguments);

// `argument_bytes` has an entry for each argument.
void add_kernel(const char* name, void* kernel, Thunk thunk, int argument_count, const unsigned* argument_bytes);

template <unsigned... AT>
struct Numbers {};
template <unsigned N, unsigned... AT>
struct UpTo : UpTo<N - 1, N - 1, AT...> {};
template <unsigned... AT>
struct UpTo<0, AT...> {
    typedef Numbers<AT...> Type;
};

template <class... Arguments, unsigned... AT>
void spread(void (*kernel)(Arguments...), void** arguments, Numbers<AT...>) {
    kernel(*(Arguments*)arguments[AT]...);
}

template <class... Arguments>
void thunk(void* kernel, void** arguments) {
    spread((void (*)(Arguments...))kernel, arguments, typename UpTo<sizeof...(Arguments)>::Type());
}

struct Registered {
    template <class... Arguments>
    Registered(const char* name, void (*kernel)(Arguments...)) {
        static const unsigned bytes[] = {(unsigned)sizeof(Arguments)...};
        add_kernel(name, (void*)kernel, thunk<Arguments...>, sizeof...(Arguments), bytes);
    }
};

} // namespace shim

void __syncthreads();
void __syncwarp();

template <class T>
T __shfl_sync(unsigned, T value, unsigned from) {
    unsigned long long word = 0;
    memcpy(&word, &value, sizeof value);
    word = shim::exchange(word, from % 32);
    memcpy(&value, &word, sizeof value);
    return value;
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, unsigned apart) {
    return __shfl_sync(mask, value, shim::lane() ^ apart);
}

inline unsigned __popc(unsigned bits) { return (unsigned)__builtin_popcount(bits); }

// Byte i of the result is the byte of b:a that nibble i of the selector names.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    unsigned long long bytes = (unsigned long long)b << 32 | a;
    unsigned result = 0;
    for (unsigned i = 0; i < 4; i++) result |= (unsigned)(bytes >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
    return result;
}
