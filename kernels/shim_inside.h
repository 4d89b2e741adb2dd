// What the parts of the host shim know of each other; kernels see shim.h only.
#pragma once

#include "shim.h"

namespace shim {

// A mistake of the kernel or of its launch.
[[noreturn]] void fail(const char* kernel_did);

u16 half_of(u64 word, u32 at);

// The dynamic shared memory of the block that runs.
bool is_shared(const void* at, size_t n_bytes);
u8* shared_at(u32 address);

// The thread that runs, within its block, and whether threads run from last to first.
u32 thread_number();
u32 thread_count();
bool is_backwards();

// Lets others run as long as *word is `value`.
void sleep_while(const u32* word, u32 value);

// ---- shim_banks.cpp

// What happened at loads from shared memory, or at stores there. A pass serves 32 banks once.
struct Conflicts {
    u64 n_instructions, n_passes, n_passes_least; // least: without conflicts
    u64 ways_max, worst_bytes, worst_site;        // the worst of them: ways, bytes of a lane, and its place in this library
};

// Of a thread that runs; `site` is where in the code.
void note_access(const void* site, const void* at, u32 n_bytes, bool is_store);
void banks_begin_launch(u32 n_threads);
// The threads `first` .. `end` are together, whole warps of a block.
void banks_meet(u32 first, u32 end);

// ---- shim_sm90.cpp

void sm90_begin_block();
// Called when every thread waits: returns false when nothing is left that could wake one.
bool sm90_make_progress();
void sm90_end_thread();
void sm90_end_block();

} // namespace shim
