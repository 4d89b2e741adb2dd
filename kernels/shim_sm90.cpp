// The host shim's twins of compute capability 9.0: barriers that count bytes (mbarrier), the copy engine (cp.async.bulk.tensor) and
// products of a warpgroup (wgmma), as NVIDIA's PTX manual and driver manual tell of them, "Asynchronous Warpgroup Level Matrix
// Instructions", "mbarrier" and cuTensorMapEncodeTiled. A descriptor or map that says what is not emulated ends the process.
//
// What is asynchronous happens as early or as late as it may. Threads from first to last: products at once, copies when every thread
// waits, so that a product which does not wait for its operands sees NaN. From last to first: copies at once, products when they are
// waited for, so that a copy over operands that are still read shows.

#include "shim_inside.h"

#include <deque>
#include <map>
#include <vector>

namespace shim {

// ---- Barriers

// A phase is over when nobody is expected to arrive any more and as many bytes came as were announced; the next begins at once.
struct Barrier {
    u32 expected, pending, phase = 0;
    long long bytes = 0;
    bool is_ready = false; // for the copy engine
};

// What lies in shared memory in a barrier's place; its state is nobody's business.
constexpr u64 TOKEN = 0x6d62617272696572;
constexpr long long BYTES_MAX = (1 << 20) - 1;

static thread_local std::map<u64, Barrier> barriers; // by address

static Barrier& barrier_at(void* at) {
    auto found = barriers.find(shared_address(at));
    if (found == barriers.end()) fail("uses a barrier that was not made");
    if (*(u64*)at != TOKEN) fail("wrote over a barrier");
    return found->second;
}

static void settle(Barrier& barrier) {
    if (barrier.bytes > BYTES_MAX || barrier.bytes < -BYTES_MAX) fail("has a barrier count too many bytes");
    if (barrier.pending || barrier.bytes) return;
    barrier.phase++;
    barrier.pending = barrier.expected;
}

static void arrive(Barrier& barrier) {
    if (!barrier.pending) fail("arrives at a barrier that expects nobody more in this phase");
    barrier.pending--;
    settle(barrier);
}

void barrier_init(void* at, u32 n_arrivals) {
    if ((u64)at % 8 || !is_shared(at, 8)) fail("makes a barrier outside shared memory or where it is not aligned");
    if (!n_arrivals || n_arrivals > BYTES_MAX) fail("makes a barrier for no arrivals or too many");
    if (!barriers.insert({shared_address(at), Barrier{n_arrivals, n_arrivals}}).second) fail("makes a barrier where there is one");
    *(u64*)at = TOKEN;
}

void barriers_are_ready() {
    for (auto& entry : barriers) entry.second.is_ready = true;
}

void barrier_expect(void* at, u32 n_bytes) {
    Barrier& barrier = barrier_at(at);
    barrier.bytes += n_bytes;
    if (barrier.bytes > BYTES_MAX) fail("has a barrier count too many bytes");
    arrive(barrier);
}

void barrier_arrive(void* at) { arrive(barrier_at(at)); }

// A parity names the phase that runs or the one before it, which are of different parity: the latter is over.
void barrier_wait(void* at, u32 parity) {
    if (parity > 1) fail("waits for a phase of no parity");
    Barrier& barrier = barrier_at(at);
    while (barrier.phase % 2 == parity) sleep_while(&barrier.phase, barrier.phase);
}

// ---- Maps

// What cuTensorMapEncodeTiled was told. The driver's own form of it is its secret.
struct Map {
    u64 magic, address, dims[2], stride;
    u32 box[2], swizzle, fills_with_nan;
};
constexpr u64 MAP = 0x54454e534f524d50;
static_assert(sizeof(Map) <= 128, "fits a CUtensorMap");

// Chunks of 16 bytes change places within 32, 64 or 128 bytes by the address bits three above them: 1, 2 or 3 bits from bit 4 on.
static u64 swizzled(u64 address, u32 n_bits) { return address ^ ((address >> 7 & ((1u << n_bits) - 1)) << 4); }

// ---- The copy engine

struct BoxCopy {
    u64 to; // shared address
    Map map;
    long long first[2];
    Barrier* barrier;
};

static thread_local std::deque<BoxCopy> copies;
// Counts what changes shared memory behind the threads' backs.
static thread_local u64 generation;

static void perform(const BoxCopy& copy) {
    const Map& map = copy.map;
    for (u64 row = 0; row < map.box[1]; row++) {
        for (u64 column = 0; column < map.box[0]; column++) {
            u64 at[2] = {copy.first[0] + column, copy.first[1] + row}; // a negative one is a large one
            bool is_inside = at[0] < map.dims[0] && at[1] < map.dims[1];
            u16 half = is_inside ? *(const u16*)(map.address + at[1] * map.stride + at[0] * 2) : map.fills_with_nan ? 0x7e00 : 0;
            *(u16*)shared_at((u32)swizzled(copy.to + (row * map.box[0] + column) * 2, map.swizzle)) = half;
        }
    }
    generation++;
    copy.barrier->bytes -= (long long)map.box[0] * map.box[1] * 2; // also those that lie outside
    settle(*copy.barrier);
}

void copy_box(void* to, const void* at, u32 column, u32 row, void* barrier) {
    if ((u64)at % 64 || ((const Map*)at)->magic != MAP) fail("copies by what is no map, or is not aligned to 64 bytes");
    BoxCopy copy{shared_address(to), *(const Map*)at, {(int)column, (int)row}, &barrier_at(barrier)};
    size_t n_bytes = (size_t)copy.map.box[0] * copy.map.box[1] * 2;
    if (copy.to % 128 || !is_shared(to, n_bytes)) fail("copies a box to outside shared memory or where it is not aligned");
    // Then the box's bytes stay among themselves.
    if (copy.map.swizzle && (copy.to % (128u << copy.map.swizzle) || n_bytes % (128u << copy.map.swizzle)))
        fail("copies a box to or of a part of a swizzle's pattern");
    if (!copy.barrier->is_ready) fail("copies with a barrier that the copy engine may not see yet");
    memset(to, 0xff, n_bytes); // until it has arrived
    generation++;
    if (is_backwards()) return perform(copy);
    copies.push_back(copy);
}

// ---- Products

// The first rows of an operand, 16 columns each.
struct Operand {
    u64 descriptor;
    std::vector<float> values;
};

// What was decoded from shared memory as it is.
static thread_local std::vector<Operand> decoded;
static thread_local u64 decoded_generation;

// `descriptor`: start address, leading and stride byte offset in 16ths in bits 0, 16 and 32 ff. (14 each), base offset in bits 49 to 51,
// swizzle (none, 128, 64, 32 bytes) in 62 and 63. Core matrices are 8 rows of 16 bytes. With k inside, rows of a core matrix are as far
// apart as the swizzle is wide, and core matrices follow each other along k by 16 bytes, or without swizzle by the leading byte offset;
// the next eight rows are a stride byte offset on.
static std::vector<float> decode(u64 descriptor, u32 n_rows) {
    if (descriptor & ~(0x3fffull | 0x3fffull << 16 | 0x3fffull << 32 | 7ull << 49 | 3ull << 62)) fail("sets a reserved bit of an operand");
    if (descriptor >> 49 & 7) fail("gives an operand a base offset, which is not emulated");
    u64 start = (descriptor & 0x3fff) << 4, leading = (descriptor >> 16 & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
    u32 mode = (u32)(descriptor >> 62), n_bits = mode ? 4 - mode : 0, row_bytes = 16u << n_bits;
    u64 along_k = mode ? 16 : leading;
    std::vector<float> values(16 * n_rows);
    for (u32 row = 0; row < n_rows; row++) {
        for (u32 k = 0; k < 16; k++) {
            u64 address = swizzled(start + row / 8 * stride + row % 8 * row_bytes + k / 8 * along_k + k % 8 * 2, n_bits);
            if (!is_shared(shared_at((u32)address), 2)) fail("multiplies what lies outside shared memory");
            values[16 * row + k] = f32_of_f16(*(const u16*)shared_at((u32)address));
        }
    }
    return values;
}

static const float* operand(u64 descriptor, u32 n_rows) {
    if (decoded_generation != generation) decoded.clear();
    decoded_generation = generation;
    for (auto& known : decoded)
        if (known.descriptor == descriptor && known.values.size() == 16 * n_rows) return known.values.data();
    decoded.push_back({descriptor, decode(descriptor, n_rows)});
    return decoded.back().values.data();
}

struct Product {
    float* c;
    u32 n_sums; // of a thread: half the number of columns
    u64 a, b;
};

// One thread's share.
struct Sums {
    std::deque<std::vector<Product>> groups; // the last is not committed
    u32 n_products = 0;                      // so far
    bool is_fenced = false;
    // What the sums were when a product was last given or done.
    float* c = nullptr;
    u32 n_sums = 0;
    float values[128];
    u32 registers = 0;
};

static thread_local std::vector<Sums> all_sums;
// The descriptors of each warpgroup's products, by their number.
static thread_local std::vector<std::vector<Product>> products;

// Only blocks that use any of this pay for it.
static Sums& own_sums() {
    if (all_sums.empty()) {
        all_sums.resize(thread_count());
        for (auto& sums : all_sums) sums.groups.resize(1);
        products.resize((thread_count() + 127) / 128);
    }
    return all_sums[thread_number()];
}

static void remember(Sums& sums, const Product& product) {
    sums.c = product.c;
    sums.n_sums = product.n_sums;
    memcpy(sums.values, sums.c, 4 * sums.n_sums);
}

static bool is_remembered(const Sums& sums) { return !memcmp(sums.values, sums.c, 4 * sums.n_sums); }

// Thread l of warp w has rows 16 w + l/4 and the eighth after it, of columns 8 j + l%4*2 and the next. Products are exact, the sum of 17
// numbers is rounded once.
static void perform(const Product& product) {
    u32 warp = thread_number() / 32 % 4, g = lane() / 4, t = lane() % 4 * 2;
    const float *a = operand(product.a, 64) + 16 * (16 * warp + g), *b = operand(product.b, 2 * product.n_sums) + 16 * t;
    for (u32 j = 0; j < product.n_sums / 4; j++) {
        for (u32 i = 0; i < 4; i++) {
            const float *row = a + i / 2 * 8 * 16, *column = b + (8 * j + i % 2) * 16;
            double sum = product.c[4 * j + i];
            for (u32 k = 0; k < 16; k++) sum += (double)row[k] * column[k];
            product.c[4 * j + i] = (float)sum;
        }
    }
}

void products_fence() { own_sums().is_fenced = true; }

void wgmma(float* c, u32 n_sums, u64 a, u64 b) {
    Sums& sums = own_sums();
    const Product product{c, n_sums, a, b};
    if (thread_count() % 128) fail("multiplies in a block that is no whole number of warpgroups");
    if (sums.c && !sums.groups.back().empty() && !is_remembered(sums)) fail("wrote to sums under way");
    if ((sums.c != c || !is_remembered(sums)) && !sums.is_fenced) fail("multiplies into registers without a fence after their last use");
    auto& given = products[thread_number() / 128];
    if (sums.n_products == given.size()) given.push_back(product);
    const Product& of_others = given[sums.n_products];
    if (of_others.a != a || of_others.b != b || of_others.n_sums != n_sums) fail("multiplies other operands than its warpgroup");
    sums.n_products++;
    sums.is_fenced = false;
    if (is_backwards()) {
        sums.groups.back().push_back(product);
    } else {
        perform(product);
    }
    remember(sums, product);
}

void products_commit() { own_sums().groups.push_back({}); }

void products_wait(u32 groups_left) {
    Sums& sums = own_sums();
    while (sums.groups.size() > groups_left + 1) {
        if (!sums.groups[0].empty() && !is_remembered(sums)) fail("wrote to sums under way");
        for (auto& product : sums.groups[0]) {
            perform(product);
            remember(sums, product);
        }
        sums.groups.pop_front();
    }
}

// ---- Registers

void set_registers(u32 n) {
    if (n % 8 || n < 24 || n > 256) fail("asks for a number of registers that there is not");
    own_sums().registers = n;
}

// ---- Blocks

void sm90_begin_block() {
    barriers.clear();
    copies.clear();
    decoded.clear();
    generation++;
    all_sums.clear();
    products.clear();
}

bool sm90_make_progress() {
    if (copies.empty()) return false;
    BoxCopy copy = copies.front();
    copies.pop_front();
    perform(copy);
    return true;
}

void sm90_end_thread() {
    if (all_sums.empty()) return;
    if (own_sums().groups.size() > 1 || !own_sums().groups.back().empty()) fail("ended with products under way");
}

void sm90_end_block() {
    if (!copies.empty()) fail("ended with boxes under way");
    if (all_sums.empty()) return;
    u32 registers = 0, at_entry = 65536 / thread_count() / 8 * 8;
    for (auto& sums : all_sums) registers += sums.registers ? sums.registers : at_entry;
    if (registers > 65536) fail("took more registers than were given up");
}

} // namespace shim

// cuTensorMapEncodeTiled, with the driver's rules; 1 is CUDA_ERROR_INVALID_VALUE. Of what they allow, matrices of halves are emulated.
extern "C" int shim_encode_tensor_map(void* to, int data_type, unsigned rank, void* address, const unsigned long long* dims,
                                      const unsigned long long* strides, const unsigned* box, const unsigned* element_strides,
                                      int interleave, int swizzle, int l2_promotion, int oob_fill) {
    using namespace shim;
    enum { FLOAT16 = 6, INVALID_VALUE = 1 };
    if ((u64)to % 64 || (u64)address % 16 || !address) return INVALID_VALUE;
    if (data_type != FLOAT16 || rank != 2 || interleave || swizzle < 0 || swizzle > 3 || l2_promotion < 0 || l2_promotion > 3)
        return INVALID_VALUE;
    for (u32 i = 0; i < rank; i++) {
        if (!dims[i] || dims[i] > 1ull << 32 || !box[i] || box[i] > 256 || !element_strides[i] || element_strides[i] > 8)
            return INVALID_VALUE;
        if (element_strides[i] != 1) return INVALID_VALUE; // allowed, but not emulated
    }
    if (strides[0] % 16 || strides[0] >= 1ull << 40 || strides[0] < dims[0] * 2) return INVALID_VALUE;
    u32 row_bytes = box[0] * 2;
    if (row_bytes % 16 || (swizzle && row_bytes > 16u << swizzle)) return INVALID_VALUE;
    if (swizzle && row_bytes != 16u << swizzle) return INVALID_VALUE; // allowed, but not emulated
    if (oob_fill < 0 || oob_fill > 1) return INVALID_VALUE;
    Map map{MAP, (u64)address, {dims[0], dims[1]}, strides[0], {box[0], box[1]}, (u32)swizzle, (u32)oob_fill};
    memset(to, 0, 128);
    memcpy(to, &map, sizeof map);
    return 0;
}
