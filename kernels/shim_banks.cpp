// What the host shim knows of single accesses to memory: bank conflicts of shared memory, and addresses that a GPU refuses.
//
// Kernels are compiled with -fsanitize=thread, which puts a call before every access: __tsan_read4(address) before one that reads four
// bytes, and so on. That sanitizer's library is not linked: the calls end here. An instruction of a warp is what its lanes do at the same
// place of the code, for the same time since they last met (__syncwarp, __syncthreads, a shuffle, a product), when all of them were
// together. So a loop that runs longer in one lane than in another is matched turn by turn.
//
// Shared memory has 32 banks of 4 bytes. A pass serves one word of each; lanes that ask for the same word share it. Accesses of 8 bytes
// are served for half a warp at a time, those of 16 (also copies, and rows of matrices) for a quarter. A conflict of n ways takes n
// passes for such a part.

#include "shim_inside.h"

#include <algorithm>
#include <atomic>
#include <link.h>
#include <unordered_map>
#include <vector>

namespace shim {

// ---- Which memory is shared: all that kernels have in thread-local storage, but for the numbers of threads and blocks.

struct Range {
    u64 first, n_bytes;

    bool has(const void* at) const { return (u64)at - first < n_bytes; }
};

// This library in memory.
struct Library {
    u64 base;
    Range thread_storage;
};

static int find_library(dl_phdr_info* info, size_t, void* found) {
    bool is_own = false;
    Library library{info->dlpi_addr, {}};
    for (u32 i = 0; i < info->dlpi_phnum; i++) {
        const auto& part = info->dlpi_phdr[i];
        is_own |= part.p_type == PT_LOAD && Range{info->dlpi_addr + part.p_vaddr, part.p_memsz}.has((const void*)find_library);
        if (part.p_type == PT_TLS) library.thread_storage = Range{(u64)info->dlpi_tls_data, part.p_memsz};
    }
    if (is_own) *(Library*)found = library;
    return is_own;
}

static const Library& own_library() {
    static thread_local const Library library = [] {
        Library library{};
        dl_iterate_phdr(find_library, &library);
        return library;
    }();
    return library;
}

static bool is_in_shared(const void* at) {
    if (!own_library().thread_storage.has(at)) return false;
    for (const uint3* numbers : {&threadIdx, &blockIdx, &blockDim, &gridDim})
        if (Range{(u64)numbers, sizeof *numbers}.has(at)) return false;
    return true;
}

// ---- Accesses

struct Access {
    u64 site, address;
    u32 n_bytes;
    bool is_store;
};

// Launches under way that are counted: where there is none, an access costs little.
static std::atomic<u32> n_counting;
static thread_local bool is_counting;
// Of each thread, since it last met others.
static thread_local std::vector<std::vector<Access>> accesses;
static thread_local Conflicts of_loads, of_stores;

void note_access(const void* site, const void* at, u32 n_bytes, bool is_store) {
    if ((u64)at % n_bytes) fail("reads or writes bytes at an address that is no multiple of their number");
    if (!n_counting.load(std::memory_order_relaxed) || !is_counting || !is_in_shared(at)) return;
    accesses[thread_number()].push_back({(u64)site, (u64)at, n_bytes, is_store});
}

// Of several bytes that are one thing to the compiler: in the largest pieces that their place allows.
static void note_range(const void* site, const void* at, u64 n_bytes, bool is_store) {
    while (n_bytes) {
        u32 piece = 16;
        while ((u64)at % piece || piece > n_bytes) piece /= 2;
        note_access(site, at, piece, is_store);
        at = (const u8*)at + piece;
        n_bytes -= piece;
    }
}

// ---- Instructions of a warp

// The same access of several lanes.
struct Instruction {
    const Access* lanes[32] = {};
};

// Passes for the lanes `first` .. `end`; 0 where none of them takes part.
static u32 passes(const Instruction& instruction, u32 first, u32 end) {
    std::vector<u64> words;
    for (u32 lane = first; lane < end; lane++) {
        const Access* access = instruction.lanes[lane];
        for (u32 at = 0; access && at < access->n_bytes; at += 4) words.push_back((access->address + at) / 4);
    }
    std::sort(words.begin(), words.end());
    words.erase(std::unique(words.begin(), words.end()), words.end());
    u32 of_banks[32] = {}, most = 0;
    for (u64 word : words) most = std::max(most, ++of_banks[word % 32]);
    return most;
}

static void count(const Instruction& instruction) {
    const Access& any = **std::find_if(instruction.lanes, instruction.lanes + 32, [](const Access* access) { return access; });
    Conflicts& conflicts = any.is_store ? of_stores : of_loads;
    u32 n_lanes = any.n_bytes <= 4 ? 32 : 128 / any.n_bytes;
    conflicts.n_instructions++;
    for (u32 first = 0; first < 32; first += n_lanes) {
        u32 n = passes(instruction, first, first + n_lanes);
        conflicts.n_passes += n;
        conflicts.n_passes_least += n != 0;
        if (n <= conflicts.ways_max) continue;
        conflicts.ways_max = n;
        conflicts.worst_bytes = any.n_bytes;
        conflicts.worst_site = any.site - own_library().base;
    }
}

void banks_meet(u32 first, u32 end) {
    if (!is_counting) return;
    for (u32 warp = first; warp < end; warp += 32) {
        u32 n_lanes = std::min(end - warp, 32u);
        std::unordered_map<u64, std::vector<Instruction>> instructions; // by place and turn
        for (u32 lane = 0; lane < n_lanes; lane++) {
            std::unordered_map<u64, size_t> turns;
            for (const Access& access : accesses[warp + lane]) {
                auto& all = instructions[access.site];
                size_t turn = turns[access.site]++;
                if (turn == all.size()) all.emplace_back();
                all[turn].lanes[lane] = &access;
            }
        }
        for (auto& place : instructions)
            for (auto& instruction : place.second) count(instruction);
        for (u32 lane = 0; lane < n_lanes; lane++) accesses[warp + lane].clear();
    }
}

void banks_begin_launch(u32 n_threads) {
    if (!is_counting) return;
    accesses.resize(std::max<size_t>(accesses.size(), n_threads));
    threadIdx = {}; // thread-local storage exists from its first use on
    own_library();
}

} // namespace shim

// Counts the launches of this thread from now on, or no longer.
extern "C" void shim_count_conflicts(bool on) {
    using namespace shim;
    if (on != is_counting) on ? n_counting++ : n_counting--;
    is_counting = on;
    of_loads = of_stores = Conflicts{};
}

// What was counted since: `to[0]` of loads, `to[1]` of stores.
extern "C" void shim_conflicts(shim::Conflicts* to) {
    to[0] = shim::of_loads;
    to[1] = shim::of_stores;
}

// ---- What the compiler calls

#define SITE __builtin_return_address(0)
#define ACCESS(N_BYTES)                                                                              \
    extern "C" void __tsan_read##N_BYTES(void* at) { shim::note_access(SITE, at, N_BYTES, false); }  \
    extern "C" void __tsan_write##N_BYTES(void* at) { shim::note_access(SITE, at, N_BYTES, true); }

ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)

extern "C" void __tsan_read_range(void* at, unsigned long n_bytes) { shim::note_range(SITE, at, n_bytes, false); }
extern "C" void __tsan_write_range(void* at, unsigned long n_bytes) { shim::note_range(SITE, at, n_bytes, true); }
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
