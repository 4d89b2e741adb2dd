// Blocks -> floats: w[row, :] of a quantized tensor as f32 or fp16.
//
// A warp takes a piece of up to 1024 weights of one row. Of blocks: raw bytes to shared memory (stage.cuh), a sub-block of 32 weights unpacked by
// each lane, the results turned round through the same shared memory, so that the warp stores 512 neighbouring bytes at a time.
//
//     raw row   |block|block|block|...            16-byte copies, asynchronous
//     lane l    32 weights of sub-block l         in registers
//     shared    [32 lanes][4 or 8 chunks]         chunk q of lane l lies at q ^ f(l): no two lanes of a store meet in a bank
//     out row   chunk 0, 1, 2, ...                16 bytes per lane
//
// Plain floats come and go straight: a lane reads the weights of which it stores 16 bytes.
//
// Bound by memory: Q4_K reads 0.56 and writes 2 bytes per weight.

#include "block/all.cuh"
#include "block/stage.cuh"

constexpr u32 DEQUANT_WARPS = 8;

// A piece of a row: which of them this warp has.
struct Piece {
    u32 row, first;
    bool exists;

    DEVICE Piece(u32 n_rows, u32 row_len, u32 warp) {
        u32 per_row = ceil_div(row_len, PIECE_LEN);
        u64 number = (u64)blockIdx.x * DEQUANT_WARPS + warp;
        row = (u32)(number / per_row);
        first = (u32)(number % per_row) * PIECE_LEN;
        exists = number < (u64)n_rows * per_row;
    }
};

// Weights, times `scale`, as 16-byte chunks, of which a lane has so many; and where they lie in shared memory.
template <class T>
struct Chunks;

template <>
struct Chunks<float> {
    static constexpr u32 PER_LANE = 8, LEN = 4;
    DEVICE static u32 place(u32 lane, u32 q) { return lane * PER_LANE + (q ^ lane % 8); }
    DEVICE static Chunk make(const float* w, u32 q, float scale) {
        Chunk chunk;
        for (u32 i = 0; i < 4; i++) chunk.words[i] = as_bits(w[4 * q + i] * scale);
        return chunk;
    }
};

template <>
struct Chunks<half> {
    static constexpr u32 PER_LANE = 4, LEN = 8;
    DEVICE static u32 place(u32 lane, u32 q) { return lane * PER_LANE + (q ^ lane / 2 % 4); }
    DEVICE static Chunk make(const float* w, u32 q, float scale) {
        Chunk chunk;
        for (u32 i = 0; i < 4; i++) chunk.words[i] = pack_f16(w[8 * q + 2 * i] * scale, w[8 * q + 2 * i + 1] * scale);
        return chunk;
    }
};

// A piece of a row of blocks to a row of the result, with zeros to `ld`.
template <class Format, class T>
DEVICE void unpack(const u8* row, u32 first, u32 row_len, float scale, T* to, u32 ld, u32 warp, u32 lane) {
    constexpr u32 OUT_BYTES = PIECE_LEN * sizeof(T);
    __shared__ __align__(16) u8 shared[DEQUANT_WARPS][Stage<Format>::BYTES > OUT_BYTES ? Stage<Format>::BYTES : OUT_BYTES];
    Stage<Format>::copy(row, first, row_len, shared[warp], lane);
    copy_commit();
    copy_wait<0>();
    __syncwarp();

    float w[32];
    Stage<Format>::unpack(shared[warp], row, first, row_len, lane, w);
    __syncwarp();
    Chunk* chunks = (Chunk*)shared[warp];
    for (u32 q = 0; q < Chunks<T>::PER_LANE; q++) chunks[Chunks<T>::place(lane, q)] = Chunks<T>::make(w, q, scale);
    __syncwarp();

    for (u32 i = 0; i < Chunks<T>::PER_LANE; i++) {
        u32 c = i * WARP + lane, column = first + c * Chunks<T>::LEN;
        if (column < ld) *(Chunk*)(to + column) = chunks[Chunks<T>::place(c / Chunks<T>::PER_LANE, c % Chunks<T>::PER_LANE)];
    }
}

// The same of plain floats.
template <class Format, class T>
DEVICE void convert(const u8* row, u32 first, u32 row_len, float scale, T* to, u32 ld, u32 lane) {
    constexpr u32 PER_LANE = Chunks<T>::PER_LANE, LEN = Chunks<T>::LEN, WORDS = LEN * Format::N_BYTES / 4;
    struct alignas(WORDS > 4 ? 16 : 4 * WORDS) Words {
        u32 words[WORDS];
    };
    // All are on their way before the first is used.
    Words all[PER_LANE] = {};
    bool by_chunks = is_read_by_chunks(row, row_len);
#pragma unroll
    for (u32 i = 0; i < PER_LANE; i++) {
        u32 column = first + (i * WARP + lane) * LEN;
        if (by_chunks && column < row_len) all[i] = *(const Words*)(row + (u64)column * Format::N_BYTES);
    }
#pragma unroll
    for (u32 i = 0; i < PER_LANE; i++) {
        u32 column = first + (i * WARP + lane) * LEN;
        if (!by_chunks) {
#pragma unroll
            for (u32 j = 0; j < LEN; j++) {
                u32 bits = column + j < row_len ? plain_bits<Format>(row, column + j) : 0;
                all[i].words[j * Format::N_BYTES / 4] |= bits << (j * Format::N_BYTES % 4 * 8);
            }
        }
        float w[LEN];
#pragma unroll
        for (u32 j = 0; j < LEN; j++) w[j] = Format::weight(all[i].words, j);
        if (column < ld) *(Chunk*)(to + column) = Chunks<T>::make(w, 0, scale);
    }
}

// blocks: [.., row_len] in Format; rows: [n_rows], or null for 0, 1, ..; out: [n_rows, ld], of which columns row_len .. ld become 0.
template <class Format, class T>
DEVICE void dequantize(const u8* blocks, const i32* rows, u32 n_rows, u32 row_len, float scale, T* out, u32 ld) {
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    Piece at(n_rows, row_len, warp);
    if (!at.exists) return;
    const u8* row = blocks + (rows ? (u64)rows[at.row] : at.row) * Stage<Format>::row_bytes(row_len);
    T* to = out + (u64)at.row * ld;
    if constexpr (__is_base_of(PlainFloats, Format)) {
        convert<Format>(row, at.first, row_len, scale, to, ld, lane);
    } else {
        unpack<Format>(row, at.first, row_len, scale, to, ld, warp, lane);
    }
}

// dequant_f32_<FORMAT>, dequant_f16_<FORMAT>
//   grid   ceil(n_rows * ceil(row_len / 1024) / 8)
//   block  256
//   blocks readable up to the next multiple of 16 bytes, and from the one before; row_len a multiple of the format's block
//   rows   which rows, each within the tensor (a token's embedding); null for the first n_rows
//   scale  what every weight is multiplied with; a power of two changes no digit
//   out    16-byte aligned; ld a multiple of 4 (f32) or 8 (f16), row_len <= ld <= row_len rounded up to 32
#define INSTANCE(FORMAT)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(256)                                                                       \
        dequant_f32_##FORMAT(const u8* blocks, const i32* rows, u32 n_rows, u32 row_len, float scale, float* out, u32 ld) { \
        dequantize<FORMAT>(blocks, rows, n_rows, row_len, scale, out, ld);                                                  \
    }                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(256)                                                                       \
        dequant_f16_##FORMAT(const u8* blocks, const i32* rows, u32 n_rows, u32 row_len, float scale, half* out, u32 ld) {  \
        dequantize<FORMAT>(blocks, rows, n_rows, row_len, scale, out, ld);                                                  \
    }                                                                                                                       \
    KERNEL(dequant_f32_##FORMAT)                                                                                            \
    KERNEL(dequant_f16_##FORMAT)

FOR_ALL_FORMATS(INSTANCE)
