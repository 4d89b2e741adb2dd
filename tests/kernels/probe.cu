// Accesses to shared memory whose conflicts are known, for banks.rs: lane l reads the element `stride` * l of those of `n_bytes` bytes, as
// many times as its lane modulo `turns` and once more.

#include "common.cuh"

struct alignas(8) Two {
    u32 words[2];
};

template <class T>
DEVICE u32 read(const u8* bytes, u32 stride, u32 turns) {
    u32 sum = 0;
    for (u32 turn = 0; turn <= threadIdx.x % turns; turn++) {
        T element = ((const T*)bytes)[stride * threadIdx.x];
        sum += *(const u8*)&element;
    }
    return sum;
}

extern "C" __global__ void probe(u32 n_bytes, u32 stride, u32 turns, u32* sums) {
    u8* bytes = dynamic_shared();
    u32 sum = n_bytes == 1    ? read<u8>(bytes, stride, turns)
              : n_bytes == 2  ? read<u16>(bytes, stride, turns)
              : n_bytes == 4  ? read<u32>(bytes, stride, turns)
              : n_bytes == 8  ? read<Two>(bytes, stride, turns)
                              : read<Chunk>(bytes, stride, turns);
    sums[threadIdx.x] = sum;
}

KERNEL(probe)
