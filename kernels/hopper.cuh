// The instructions of compute capability 9.0: barriers that count bytes, the copy engine (TMA), products of a warpgroup (wgmma), and
// registers that change hands. Each has a twin in the host shim (shim_sm90.cpp), which follows the PTX manual and not this file's users:
// it decodes descriptors and maps, permutes addresses as the hardware does, and is as early or as late as it may be.
#pragma once

#include "common.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(HOST_SHIM)

// The driver's description of a matrix; a kernel only hands its address on.
struct alignas(64) TensorMap {
    u64 opaque[16];
};
static_assert(sizeof(TensorMap) == 128, "CUtensorMap");

// ---- Barriers in shared memory

DEVICE void barrier_init(u64* barrier, u32 n_arrivals) {
#ifdef HOST_SHIM
    shim::barrier_init(barrier, n_arrivals);
#else
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(n_arrivals) : "memory");
#endif
}

// After the barriers are made: TMA, which is not this thread, sees them.
DEVICE void barriers_are_ready() {
#ifdef HOST_SHIM
    shim::barriers_are_ready();
#else
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Arrives, and has the phase wait for `n_bytes` of copies.
DEVICE void barrier_expect(u64* barrier, u32 n_bytes) {
#ifdef HOST_SHIM
    shim::barrier_expect(barrier, n_bytes);
#else
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(n_bytes) : "memory");
#endif
}

DEVICE void barrier_arrive(u64* barrier) {
#ifdef HOST_SHIM
    shim::barrier_arrive(barrier);
#else
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
#endif
}

// Waits until the phase of this parity is over.
DEVICE void barrier_wait(u64* barrier, u32 parity) {
#ifdef HOST_SHIM
    shim::barrier_wait(barrier, parity);
#else
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra over;\n"
                 "bra again;\n"
                 "over:\n"
                 "}" ::"r"(shared_address(barrier)),
                 "r"(parity)
                 : "memory");
#endif
}

// Copies the map's box at (column, row) to shared memory; its bytes count on `barrier`. What lies outside the matrix is zero.
DEVICE void copy_box(void* to, const TensorMap* map, u32 column, u32 row, u64* barrier) {
#ifdef HOST_SHIM
    shim::copy_box(to, map, column, row, barrier);
#else
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
                     shared_address(to)),
                 "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier))
                 : "memory");
#endif
}

// ---- Products of a warpgroup

// What wgmma is told of an operand whose rows are 128 bytes long: its address, 1024 bytes from eight rows to the next eight, 128-byte
// swizzle; all in 16ths. The distance in bits 16 to 29 means nothing here.
DEVICE u64 operand(const void* in_shared) {
#ifdef HOST_SHIM
    u64 address = shim::shared_address(in_shared);
#else
    u64 address = shared_address(in_shared);
#endif
    return (address & 0x3ffff) >> 4 | 1ull << 16 | (u64)(1024 >> 4) << 32 | 1ull << 62;
}

// Sums may be read or written by other instructions before this, and not after it until `products_wait`.
DEVICE void products_begin() {
#ifdef HOST_SHIM
    shim::products_fence();
#else
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

DEVICE void products_commit() {
#ifdef HOST_SHIM
    shim::products_commit();
#else
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Waits until at most N groups of products are under way.
template <u32 N>
DEVICE void products_wait() {
#ifdef HOST_SHIM
    shim::products_wait(N);
#else
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
#endif
}

// After waiting for all products: the compiler, which does not know that they are written later than they are started, reads no sum
// before this.
template <u32 LEN>
DEVICE void products_are_done(float (&c)[LEN]) {
#ifndef HOST_SHIM
#pragma unroll
    for (u32 i = 0; i < LEN; i++) asm volatile("" : "+f"(c[i])::"memory");
#endif
}

#define SUMS_4(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define SUMS_16(i) SUMS_4(i), SUMS_4(i + 4), SUMS_4(i + 8), SUMS_4(i + 12)
#define SUMS_32(i) SUMS_16(i), SUMS_16(i + 16)
#define NAMES_32 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_64 NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
                          "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_128 NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "       \
                           "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "         \
                           "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
                           "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
// Added to c, neither operand negated, both with k as their inner dimension.
#define WGMMA(COLUMNS, NAMES, A, B) \
    "wgmma.mma_async.sync.aligned.m64n" #COLUMNS "k16.f32.f16.f16 {" NAMES "}, " A ", " B ", 1, 1, 1, 0, 0;"

// c[64, 2 * LEN] += a[64, 16] * b[2 * LEN, 16]^T, by the 128 threads of a warpgroup; 64, 128 or 256 columns. Warp w has rows
// 16 w .. 16 w + 15: with g = lane / 4 and t = 2 * (lane % 4), c[4 j], c[4 j + 1] are columns 8 j + t and the next of row g, c[4 j + 2],
// c[4 j + 3] those of row g + 8.
template <u32 LEN>
DEVICE void wgmma(float (&c)[LEN], u64 a, u64 b) {
    static_assert(LEN == 32 || LEN == 64 || LEN == 128, "a shape that is written below");
#ifdef HOST_SHIM
    shim::wgmma(c, LEN, a, b);
#else
    if constexpr (LEN == 32) asm volatile(WGMMA(64, NAMES_32, "%32", "%33") : SUMS_32(0) : "l"(a), "l"(b));
    if constexpr (LEN == 64) asm volatile(WGMMA(128, NAMES_64, "%64", "%65") : SUMS_32(0), SUMS_32(32) : "l"(a), "l"(b));
    if constexpr (LEN == 128) {
        asm volatile(WGMMA(256, NAMES_128, "%128", "%129") : SUMS_32(0), SUMS_32(32), SUMS_32(64), SUMS_32(96) : "l"(a), "l"(b));
    }
#endif
}

// ---- Registers of a warpgroup: what one gives up, another takes.

template <u32 N>
DEVICE void give_registers() {
#ifdef HOST_SHIM
    shim::set_registers(N);
#else
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
#endif
}

template <u32 N>
DEVICE void take_registers() {
#ifdef HOST_SHIM
    shim::set_registers(N);
#else
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
#endif
}

#endif
