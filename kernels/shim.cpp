// The host shim's machinery: see shim.h. Built with every .cu file into one library, of which tests use what is extern "C".

#include "shim_inside.h"

#include <map>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string>
#include <ucontext.h>
#include <vector>

thread_local uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace shim {

[[noreturn]] void fail(const char* kernel_did) {
    fprintf(stderr, "kernel shim: block %u,%u,%u thread %u,%u,%u %s\n", blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y,
            threadIdx.z, kernel_did);
    abort();
}

// ---- Halves

float f32_of_f16(u16 bits) {
    static const std::vector<float> all = [] {
        std::vector<float> all(1 << 16);
        for (u32 bits = 0; bits < all.size(); bits++) {
            u32 exponent = bits >> 10 & 31, mantissa = bits & 1023;
            float magnitude = exponent == 31 ? (mantissa ? NAN : INFINITY)
                              : exponent     ? ldexpf(1024 + mantissa, (int)exponent - 25)
                                             : ldexpf(mantissa, -24);
            all[bits] = bits >> 15 ? -magnitude : magnitude;
        }
        return all;
    }();
    return all[bits];
}

u16 f16_of_f32(float x) {
    u16 sign = signbit(x) ? 0x8000 : 0;
    float magnitude = fabsf(x);
    if (isnan(x)) return sign | 0x7e00;
    if (magnitude >= 65520.0f) return sign | 0x7c00;
    if (magnitude < 0x1p-14f) return sign | (u16)nearbyintf(magnitude * 0x1p24f); // 1024 here is the smallest normal number
    int exponent;
    float fraction = frexpf(magnitude, &exponent); // in [1/2, 1)
    return sign | (u16)(((exponent + 13) << 10) + (u32)nearbyintf(fraction * 2048.0f));
}

// ---- Fibers

struct Copy {
    void* to;
    const void* from;
    bool valid;
};

struct Fiber {
    ucontext_t start;
    jmp_buf at;
    std::vector<u8> stack;
    uint3 thread;
    u32 number;
    bool is_started = false, is_done = false;
    // It waits while *turn == waits_for.
    const u32* turn = nullptr;
    u32 waits_for = 0;
    // Copies of the groups under way; the last group is not yet committed.
    std::vector<std::vector<Copy>> copies;
};

// Where fibers meet: those from `first` on.
struct Meeting {
    u32 first, expected, arrived = 0, turn = 0;
};

struct Warp {
    Meeting meeting;
    // What lanes gave, by parity of the turn: a lane can be one collective ahead of another, not two.
    u64 words[2][32][6];
};

constexpr size_t STACK_BYTES = 256 << 10;
constexpr size_t SHARED_BYTES_MAX = 228 << 10;

static thread_local std::vector<Fiber*> fibers;
static thread_local u32 n_fibers;
static thread_local Fiber* current;
static thread_local jmp_buf scheduler;
static thread_local Meeting block_meeting;
static thread_local std::vector<Warp> warps;
static thread_local Thunk running_thunk;
static thread_local void* running_kernel;
static thread_local void** running_arguments;
alignas(1024) static thread_local u8 shared_bytes[SHARED_BYTES_MAX];
static thread_local size_t shared_size;
static thread_local bool runs_backwards;

u32 thread_number() { return current->number; }
u32 thread_count() { return n_fibers; }
bool is_backwards() { return runs_backwards; }

u8* shared_at(u32 address) { return shared_bytes + address; }

u64 shared_address(const void* in_shared) {
    if (!is_shared(in_shared, 1)) fail("takes the shared address of what is elsewhere");
    return (const u8*)in_shared - shared_bytes;
}

u8* dynamic_shared() { return shared_bytes; }

static void to_scheduler() {
    if (!_setjmp(current->at)) _longjmp(scheduler, 1);
    threadIdx = current->thread;
}

void sleep_while(const u32* word, u32 value) {
    current->turn = word;
    current->waits_for = value;
    to_scheduler();
}

static void wait(Meeting& meeting) {
    u32 turn = meeting.turn;
    if (++meeting.arrived == meeting.expected) {
        meeting.arrived = 0;
        meeting.turn++;
        banks_meet(meeting.first, meeting.first + meeting.expected);
        return;
    }
    sleep_while(&meeting.turn, turn);
}

// A fiber lives for many blocks.
static void fiber_main() {
    for (;;) {
        running_thunk(running_kernel, running_arguments);
        for (auto& group : current->copies)
            if (!group.empty()) fail("ended with copies under way");
        sm90_end_thread();
        current->is_done = true;
        to_scheduler();
    }
}

static void resume(Fiber* fiber) {
    current = fiber;
    threadIdx = fiber->thread;
    if (_setjmp(scheduler)) return;
    if (fiber->is_started) _longjmp(fiber->at, 1);
    fiber->is_started = true;
    getcontext(&fiber->start);
    fiber->start.uc_stack.ss_sp = fiber->stack.data();
    fiber->start.uc_stack.ss_size = fiber->stack.size();
    fiber->start.uc_link = nullptr;
    makecontext(&fiber->start, fiber_main, 0);
    setcontext(&fiber->start);
}

// Lets every lane of a warp run to where it next waits. Returns false when all of them still wait, or ended.
static bool run_warp(u32 warp, bool backwards) {
    bool ran = false;
    u32 n_lanes = n_fibers - 32 * warp < 32 ? n_fibers - 32 * warp : 32;
    for (u32 i = 0; i < n_lanes; i++) {
        Fiber* fiber = fibers[32 * warp + (backwards ? n_lanes - 1 - i : i)];
        if (fiber->is_done || (fiber->turn && *fiber->turn == fiber->waits_for)) continue;
        fiber->turn = nullptr;
        ran = true;
        resume(fiber);
    }
    return ran;
}

static void run_block(bool backwards) {
    runs_backwards = backwards;
    sm90_begin_block();
    // A NaN as half and as float.
    memset(shared_bytes, 0xff, shared_size);
    block_meeting = Meeting{0, n_fibers};
    warps.clear();
    for (u32 i = 0; i < n_fibers; i++) {
        if (i % 32 == 0) warps.push_back(Warp{Meeting{i, 0}, {}});
        warps.back().meeting.expected++;
        Fiber* fiber = fibers[i];
        fiber->is_done = false;
        fiber->turn = nullptr;
        fiber->copies.assign(1, {});
    }
    for (bool live = true; live;) {
        live = false;
        bool ran = false;
        for (u32 i = 0; i < warps.size(); i++) {
            u32 warp = backwards ? warps.size() - 1 - i : i;
            // As far as it gets before the next warp runs: that is how far apart warps can be.
            while (run_warp(warp, backwards)) ran = true;
        }
        for (u32 i = 0; i < n_fibers; i++) live |= !fibers[i]->is_done;
        if (live && !ran && !sm90_make_progress()) fail("waits for threads that ended or wait elsewhere");
    }
    banks_meet(0, n_fibers);
    sm90_end_block();
}

struct Entry {
    void* kernel;
    Thunk thunk;
    int argument_count;
    const unsigned* argument_bytes;
};

static std::map<std::string, Entry>& kernels() {
    static std::map<std::string, Entry> kernels;
    return kernels;
}

void add_kernel(const char* name, void* kernel, Thunk thunk, int argument_count, const unsigned* argument_bytes) {
    kernels()[name] = {kernel, thunk, argument_count, argument_bytes};
}

u32 lane() { return current->number % 32; }

static Warp& warp() { return warps[current->number / 32]; }

// Gives words and returns what all lanes gave.
static u64 (&meet(const u64* words, u32 n))[32][6] {
    Warp& own = warp();
    auto& gave = own.words[own.meeting.turn % 2];
    memcpy(gave[lane()], words, 8 * n);
    wait(own.meeting);
    return gave;
}

u64 exchange(u64 word, u32 from) { return meet(&word, 1)[from][0]; }

// ---- Copies

bool is_shared(const void* at, size_t n_bytes) {
    const u8* byte = (const u8*)at;
    return byte >= shared_bytes && byte + n_bytes <= shared_bytes + shared_size;
}

void copy_async(void* to, const void* from, bool valid) {
    if ((u64)to % 16 || (valid && (u64)from % 16)) fail("copies 16 bytes from or to where they are not aligned");
    note_access(__builtin_return_address(0), to, 16, true);
    current->copies.back().push_back({to, from, valid});
    if (valid) memset(to, 0xff, 16); // until it is waited for
}

void copy_commit() { current->copies.push_back({}); }

void copy_wait(u32 groups_left) {
    auto& groups = current->copies;
    while (groups.size() > groups_left + 1) {
        for (Copy& copy : groups[0]) copy.valid ? memcpy(copy.to, copy.from, 16) : memset(copy.to, 0, 16);
        groups.erase(groups.begin());
    }
}

// ---- Matrices

u16 half_of(u64 word, u32 at) { return (u16)(word >> (16 * at)); }

void load_matrices(u32 (&words)[4], const void* row, bool transposed) {
    if ((u64)row % 16 || !is_shared(row, 16)) fail("loads a matrix from outside shared memory or where it is not aligned");
    note_access(__builtin_return_address(0), row, 16, false);
    u64 given = (u64)row;
    auto& rows = meet(&given, 1);
    for (u32 i = 0; i < 4; i++) {
        u32 places = 0;
        for (u32 r = 0; r < 8; r++) places |= 1u << (rows[8 * i + r][0] / 16 % 8);
        // Two rows of one address are one access; the kernels here never do that.
        if (places != 0xff) fail("loads a matrix whose rows meet in one bank");
        u32 line = lane() / 4, at = lane() % 4 * 2;
        u16 pair[2];
        for (u32 k = 0; k < 2; k++) {
            u32 r = transposed ? at + k : line, column = transposed ? line : at + k;
            pair[k] = ((const u16*)rows[8 * i + r][0])[column];
        }
        words[i] = pair[0] | (u32)pair[1] << 16;
    }
}

// Products are exact, sums are rounded once: more exact than the hardware, in whose place no order could be claimed. Lanes give floats,
// so that each half is converted once.
void mma_16x8x16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    const u32 words[6] = {a[0], a[1], a[2], a[3], b0, b1};
    float own[12];
    for (u32 i = 0; i < 12; i++) own[i] = f32_of_f16(half_of(words[i / 2], i % 2));
    u64 given[6];
    memcpy(given, own, sizeof own);
    auto& all = meet(given, 6);
    float of_lanes[32][12];
    static_assert(sizeof of_lanes == sizeof all, "what all lanes gave");
    memcpy(of_lanes, all, sizeof all);
    u32 g = lane() / 4, t = lane() % 4 * 2;
    for (u32 i = 0; i < 4; i++) {
        u32 column = t + i % 2;
        double sum = c[i];
        for (u32 k = 0; k < 16; k++) {
            u32 partner = k % 8 / 2;
            // Rows g and g + 8 are in the first and second word, and those of the columns from 8 on in the third and fourth.
            float of_row = of_lanes[4 * g + partner][2 * (k / 8 * 2 + i / 2) + k % 2];
            float of_column = of_lanes[4 * column + partner][8 + 2 * (k / 8) + k % 2];
            sum += (double)of_row * of_column;
        }
        c[i] = (float)sum;
    }
}

} // namespace shim

void __syncthreads() { shim::wait(shim::block_meeting); }

void __syncwarp() { shim::wait(shim::warp().meeting); }

// The name of kernel `i`, null past the last.
extern "C" const char* shim_kernel(size_t i) {
    auto& kernels = shim::kernels();
    return i < kernels.size() ? std::next(kernels.begin(), i)->first.c_str() : nullptr;
}

// Arguments that a kernel takes; -1 when there is no such kernel.
extern "C" int shim_argument_count(const char* name) {
    auto found = shim::kernels().find(name);
    return found == shim::kernels().end() ? -1 : found->second.argument_count;
}

// Bytes of an argument, which exists.
extern "C" unsigned shim_argument_bytes(const char* name, int argument) {
    return shim::kernels().at(name).argument_bytes[argument];
}

// Runs a kernel to its end. `order` is 0 for fibers from first to last, 1 for last to first. Returns false when there is no such kernel.
extern "C" bool shim_launch(const char* name, const unsigned* grid, const unsigned* block, size_t shared_bytes, void** arguments,
                            int order) {
    using namespace shim;
    auto found = kernels().find(name);
    if (found == kernels().end()) return false;
    if (shared_bytes > SHARED_BYTES_MAX) fail("asks for more shared memory than there is");
    running_kernel = found->second.kernel;
    running_thunk = found->second.thunk;
    running_arguments = arguments;
    shared_size = shared_bytes;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    n_fibers = block[0] * block[1] * block[2];
    while (fibers.size() < n_fibers) {
        fibers.push_back(new Fiber);
        fibers.back()->stack.resize(STACK_BYTES);
    }
    for (u32 i = 0; i < n_fibers; i++) {
        fibers[i]->number = i;
        fibers[i]->thread = {i % block[0], i / block[0] % block[1], i / block[0] / block[1]};
    }
    banks_begin_launch(n_fibers);
    for (u32 z = 0; z < grid[2]; z++)
        for (u32 y = 0; y < grid[1]; y++)
            for (u32 x = 0; x < grid[0]; x++) {
                blockIdx = {x, y, z};
                run_block(order == 1);
            }
    return true;
}
