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

// ---- shim_sm90.cpp

void sm90_begin_block();
// Called when every thread waits: returns false when nothing is left that could wake one.
bool sm90_make_progress();
void sm90_end_thread();
void sm90_end_block();

} // namespace shim
