// A libcuda.so.1 that runs kernels on this CPU, for tests: the program, cudarc and the backend call it as they call NVIDIA's.
//
// Kernels are those of kernels/, compiled by g++ with the host shim into the library that FAKE_CUDA_KERNELS names. Streams are queues
// of work, and FAKE_CUDA_ORDER says when it is done, within what CUDA allows:
//
//   eager          at once
//   lazy           not before somebody waits for it
//   copies-first   copies and their kernels at once, computations when waited for: a weight that overwrites another too early shows
//   copies-last    the other way round: a computation that does not wait for its weights shows
//
// Device memory starts as NaN, and every copy must lie in it. FAKE_CUDA_MEMORY is its size in MiB, FAKE_CUDA_USED what others have of it,
// FAKE_CUDA_CAPABILITY the compute capability (8.0; from 9.0 on products go the way of wgmma and TMA). With two numbers in FAKE_CUDA_USED
// there are two GPUs. A mistake ends the process. FAKE_CUDA_LOG is a file to which every allocation, launch, copy and fill is added as a
// line when it is asked for, and every wait of the host.
//
// FAKE_CUDA_FAULT breaks kernels: what their names begin with, separated by commas. They do nothing. With ":illegal" behind a name it is
// as if they touched memory that is not theirs: whatever waits for the device fails from then on, and with CUDA_LAUNCH_BLOCKING=1 the
// launch itself.

#include <algorithm>
#include <deque>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <mutex>
#include <sstream>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <string>
#include <sys/mman.h>
#include <vector>

typedef unsigned long long u64;

[[noreturn]] static void fail(const std::string& what) {
    fprintf(stderr, "fake driver: %s\n", what.c_str());
    abort();
}

static std::string setting(const char* name, const char* otherwise) {
    const char* value = getenv(name);
    return value ? value : otherwise;
}

// Notes what the program asks for.
static void note(const std::string& what) {
    static const std::string path = setting("FAKE_CUDA_LOG", "");
    if (path.empty()) return;
    static FILE* file = fopen(path.c_str(), "a");
    if (!file) fail("cannot write " + path);
    fprintf(file, "%s\n", what.c_str());
    fflush(file);
}

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500, NOT_READY = 600 };

// ---- Streams

struct Stream {
    bool copies = false;
    std::deque<std::function<void()>> waiting;
    u64 given = 0, done = 0;

    bool is_eager() const {
        static const std::string order = setting("FAKE_CUDA_ORDER", "eager");
        if (order == "eager" || order == "lazy") return order == "eager";
        if (order != "copies-first" && order != "copies-last") fail("FAKE_CUDA_ORDER=" + order);
        return copies == (order == "copies-first");
    }

    // Does all work up to the `until`-th piece.
    void drain(u64 until) {
        while (done < until) {
            auto work = std::move(waiting.front());
            waiting.pop_front();
            done++;
            work();
        }
    }

    void give(std::function<void()> work) {
        waiting.push_back(std::move(work));
        given++;
        if (is_eager()) drain(given);
    }
};

struct Event {
    Stream* stream = nullptr;
    u64 at = 0;

    void wait() {
        if (stream) stream->drain(at);
    }
};

static std::recursive_mutex lock;
#define LOCKED std::lock_guard<std::recursive_mutex> guard(lock)

static std::vector<Stream*> streams;

static Stream* new_stream(bool copies) {
    streams.push_back(new Stream);
    streams.back()->copies = copies;
    return streams.back();
}

static Stream* default_stream() {
    static Stream* stream = new_stream(false);
    return stream;
}

static Stream* of(void* stream) { return stream ? (Stream*)stream : default_stream(); }

static void drain_all() {
    for (Stream* stream : streams) stream->drain(stream->given);
}

// ---- Memory

static size_t memory_bytes() {
    static const size_t bytes = strtoull(setting("FAKE_CUDA_MEMORY", "256").c_str(), nullptr, 10) << 20;
    return bytes;
}

static thread_local void* current_context;

struct Gpu {
    size_t used = 0, allocated = 0;
    size_t free() const { return memory_bytes() - std::min(memory_bytes(), used + allocated); }
};

static std::vector<Gpu>& gpus() {
    static std::vector<Gpu> gpus = [] {
        std::vector<Gpu> gpus;
        std::stringstream used(setting("FAKE_CUDA_USED", "0"));
        for (std::string mib; std::getline(used, mib, ',');) {
            gpus.emplace_back();
            gpus.back().used = strtoull(mib.c_str(), nullptr, 10) << 20;
        }
        return gpus;
    }();
    return gpus;
}

static Gpu& current_gpu() {
    if (!current_context) fail("memory without a context");
    return *(Gpu*)current_context;
}

// What lies outside of every allocation cannot be touched: kernels that do end the process. An allocation ends where its last page does,
// within 16 bytes, and behind it is one that nobody may touch.
static std::map<u64, size_t> allocations;

static const size_t PAGE_BYTES = 4096;

static size_t mapped_bytes(size_t len) { return (len + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES + PAGE_BYTES; }

static void check_range(u64 at, size_t len, const char* what) {
    auto after = allocations.upper_bound(at);
    if (after == allocations.begin()) fail(std::string(what) + " outside device memory");
    auto in = std::prev(after);
    if (at + len > in->first + in->second) fail(std::string(what) + " beyond the end of an allocation");
}

// What needs a multiprocessor would stand behind products on all of them, and the copies of the next weights behind it.
static void check_copies(void* stream, const std::string& what) {
    if (of(stream)->copies) fail(what + " on the stream of copies");
}

// ---- Kernels

struct Kernels {
    bool (*launch)(const char*, const unsigned*, const unsigned*, size_t, void**, int);
    int (*argument_count)(const char*);
    unsigned (*argument_bytes)(const char*, int);
    int (*encode_tensor_map)(void*, int, unsigned, void*, const u64*, const u64*, const unsigned*, const unsigned*, int, int, int, int);

    Kernels() {
        std::string path = setting("FAKE_CUDA_KERNELS", "");
        void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (!library) fail(std::string("no kernels: ") + dlerror());
        launch = (decltype(launch))dlsym(library, "shim_launch");
        argument_count = (decltype(argument_count))dlsym(library, "shim_argument_count");
        argument_bytes = (decltype(argument_bytes))dlsym(library, "shim_argument_bytes");
        encode_tensor_map = (decltype(encode_tensor_map))dlsym(library, "shim_encode_tensor_map");
        if (!launch || !argument_count || !argument_bytes || !encode_tensor_map) fail("no shim_launch in " + path);
    }
};

static Kernels& kernels() {
    static Kernels kernels;
    return kernels;
}

// One argument of a launch, aligned for the largest: a tensor map.
struct alignas(64) Slot {
    unsigned char bytes[128];
};

struct Function {
    std::string name;
    size_t shared_bytes_max = 48 << 10;
};

// ---- Faults

enum { ILLEGAL_ADDRESS = 700 };

// What every call that waits returns from the first illegal access on.
static int lost = SUCCESS;

enum Fault { NONE, IDLE, ILLEGAL };

static Fault fault_of(const std::string& kernel) {
    static const std::string faults = setting("FAKE_CUDA_FAULT", "");
    for (size_t at = 0; at < faults.size();) {
        size_t end = std::min(faults.find(',', at), faults.size());
        std::string name = faults.substr(at, end - at);
        size_t colon = name.find(':');
        if (kernel.compare(0, std::min(colon, name.size()), name, 0, colon) == 0) {
            return colon == std::string::npos ? IDLE : ILLEGAL;
        }
        at = end + 1;
    }
    return NONE;
}

extern "C" {

int cuInit(unsigned) { return SUCCESS; }
int cuDriverGetVersion(int* version) { return *version = 12040, SUCCESS; }

int cuDeviceGetCount(int* n) { return *n = (int)gpus().size(), SUCCESS; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, ordinal < (int)gpus().size() ? SUCCESS : 101; }
int cuDeviceGetName(char* name, int len, int) { return snprintf(name, len, "CPU in disguise"), SUCCESS; }
int cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = memory_bytes(), SUCCESS; }

int cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
    case 75: *value = setting("FAKE_CUDA_CAPABILITY", "8.0")[0] - '0'; break; // major
    case 76: *value = setting("FAKE_CUDA_CAPABILITY", "8.0")[2] - '0'; break; // minor
    case 13: *value = 1000000; break; // kHz
    case 16: *value = 4; break; // multiprocessors: few, so that small products use the large tile too
    default: *value = 0;         // memory pools among them
    }
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void** context, int device) { return *context = &gpus()[device], SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
int cuCtxGetCurrent(void** context) { return *context = current_context, SUCCESS; }
int cuCtxSetCurrent(void* context) { return current_context = context, SUCCESS; }

int cuCtxSynchronize() {
    LOCKED;
    note("wait for the device");
    drain_all();
    return lost;
}

int cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
    LOCKED;
    *total = memory_bytes();
    *free_bytes = current_gpu().free();
    return SUCCESS;
}

int cuMemAlloc_v2(u64* at, size_t len) {
    LOCKED;
    if (len == 0 || len > current_gpu().free()) return len ? OUT_OF_MEMORY : INVALID_VALUE;
    void* memory = mmap(nullptr, mapped_bytes(len), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return OUT_OF_MEMORY;
    mprotect((char*)memory + mapped_bytes(len) - PAGE_BYTES, PAGE_BYTES, PROT_NONE);
    memset(memory, 0xff, mapped_bytes(len) - PAGE_BYTES);
    allocations[*at = (u64)memory + (mapped_bytes(len) - PAGE_BYTES - len) / 16 * 16] = len;
    current_gpu().allocated += len;
    note("alloc " + std::to_string(len));
    return SUCCESS;
}

int cuMemFree_v2(u64 at) {
    LOCKED;
    drain_all();
    auto found = allocations.find(at);
    if (found == allocations.end()) fail("frees what was not allocated");
    munmap((void*)(at / PAGE_BYTES * PAGE_BYTES), mapped_bytes(found->second));
    current_gpu().allocated -= found->second;
    allocations.erase(found);
    return SUCCESS;
}

int cuMemHostAlloc(void** at, size_t len, unsigned flags) {
    if (flags) fail("asks for host memory that it cannot read");
    return (*at = malloc(len)) ? SUCCESS : OUT_OF_MEMORY;
}

int cuMemFreeHost(void* at) { return free(at), SUCCESS; }

// As a page-locked copy does it, the host's bytes are read when the copy happens.
int cuMemcpyHtoDAsync_v2(u64 to, const void* from, size_t len, void* stream) {
    LOCKED;
    note("copy to the device");
    check_range(to, len, "a copy");
    of(stream)->give([=] { memcpy((void*)to, from, len); });
    return SUCCESS;
}

int cuMemcpyDtoHAsync_v2(void* to, u64 from, size_t len, void* stream) {
    LOCKED;
    note("copy to the host");
    check_range(from, len, "a copy");
    of(stream)->give([=] { memcpy(to, (void*)from, len); });
    return SUCCESS;
}

int cuMemcpyDtoDAsync_v2(u64 to, u64 from, size_t len, void* stream) {
    LOCKED;
    note("copy within the device");
    check_range(from, len, "a copy");
    check_range(to, len, "a copy");
    if (to < from + len && from < to + len) fail("copies a range onto itself");
    of(stream)->give([=] { memcpy((void*)to, (void*)from, len); });
    return SUCCESS;
}

int cuMemsetD8Async(u64 at, unsigned char value, size_t len, void* stream) {
    LOCKED;
    note("fill");
    check_range(at, len, "a fill");
    check_copies(stream, "a fill");
    of(stream)->give([=] { memset((void*)at, value, len); });
    return SUCCESS;
}

int cuModuleLoadData(void** module, const void*) { return *module = malloc(1), SUCCESS; }
int cuModuleLoadDataEx(void** module, const void*, unsigned, int*, void**) { return *module = malloc(1), SUCCESS; }
int cuModuleUnload(void* module) { return free(module), SUCCESS; }

int cuModuleGetFunction(void** function, void*, const char* name) {
    LOCKED;
    if (kernels().argument_count(name) < 0) return NOT_FOUND;
    Function* found = new Function;
    found->name = name;
    return *function = found, SUCCESS;
}

int cuFuncSetAttribute(void* function, int attribute, int value) {
    if (attribute != 8 || value > 227 << 10) return INVALID_VALUE; // the most dynamic shared memory of an H100
    ((Function*)function)->shared_bytes_max = value;
    return SUCCESS;
}

int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared_bytes,
                   void* stream, void** arguments, void**) {
    LOCKED;
    Function& kernel = *(Function*)function;
    if (!gx || !gy || !gz || gy > 65535 || gz > 65535 || !bx || bx * by * bz > 1024) return INVALID_VALUE;
    if (shared_bytes > kernel.shared_bytes_max) return INVALID_VALUE;
    std::vector<Slot> values(kernels().argument_count(kernel.name.c_str()));
    for (size_t i = 0; i < values.size(); i++) {
        unsigned n_bytes = kernels().argument_bytes(kernel.name.c_str(), (int)i);
        if (n_bytes > sizeof(Slot)) fail("an argument that is too large");
        memcpy(values[i].bytes, arguments[i], n_bytes);
    }
    note("launch " + kernel.name);
    check_copies(stream, kernel.name);
    Fault fault = fault_of(kernel.name);
    if (fault == ILLEGAL) {
        lost = ILLEGAL_ADDRESS;
        return setting("CUDA_LAUNCH_BLOCKING", "0") == "1" ? lost : SUCCESS;
    }
    if (fault == IDLE) return SUCCESS;
    of(stream)->give([=, &kernel]() mutable {
        std::vector<void*> pointers;
        for (Slot& value : values) pointers.push_back(value.bytes);
        unsigned grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
        if (!kernels().launch(kernel.name.c_str(), grid, block, shared_bytes, pointers.data(), 0)) fail("no kernel " + kernel.name);
    });
    return SUCCESS;
}

int cuStreamCreate(void** stream, unsigned) {
    LOCKED;
    return *stream = new_stream(false), SUCCESS;
}

int cuStreamCreateWithPriority(void** stream, unsigned, int) {
    LOCKED;
    return *stream = new_stream(true), SUCCESS;
}

int cuStreamDestroy_v2(void* stream) {
    LOCKED;
    of(stream)->drain(of(stream)->given);
    return SUCCESS;
}

int cuStreamSynchronize(void* stream) {
    LOCKED;
    note("wait for a stream");
    of(stream)->drain(of(stream)->given);
    return lost;
}

int cuStreamWaitEvent(void* stream, void* event, unsigned) {
    LOCKED;
    Event then = *(Event*)event; // as it is now, whatever is recorded later
    of(stream)->give([=]() mutable { then.wait(); });
    return SUCCESS;
}

int cuEventCreate(void** event, unsigned) { return *event = new Event, SUCCESS; }
int cuEventDestroy_v2(void* event) { return delete (Event*)event, SUCCESS; }

int cuEventRecord(void* event, void* stream) {
    LOCKED;
    *(Event*)event = Event{of(stream), of(stream)->given};
    return SUCCESS;
}

int cuEventQuery(void* event) {
    LOCKED;
    Event& then = *(Event*)event;
    return !then.stream || then.stream->done >= then.at ? SUCCESS : NOT_READY;
}

int cuEventSynchronize(void* event) {
    LOCKED;
    Event& then = *(Event*)event;
    if (then.stream && then.stream->done < then.at) note("wait for an event");
    then.wait();
    return lost;
}

int cuEventElapsedTime(float* ms, void*, void*) { return *ms = 1.0f, SUCCESS; }

int cuGetErrorName(int code, const char** name) {
    return *name = code == OUT_OF_MEMORY     ? "CUDA_ERROR_OUT_OF_MEMORY"
                  : code == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS"
                                            : "CUDA_ERROR",
           SUCCESS;
}
int cuGetErrorString(int, const char** text) { return *text = "an error", SUCCESS; }

int cuTensorMapEncodeTiled(void* map, int data_type, unsigned rank, void* address, const u64* dims, const u64* strides,
                           const unsigned* box, const unsigned* element_strides, int interleave, int swizzle, int l2_promotion,
                           int oob_fill) {
    LOCKED;
    if (!current_context) fail("a tensor map without a context");
    check_range((u64)address, 1, "a tensor map");
    return kernels().encode_tensor_map(map, data_type, rank, address, dims, strides, box, element_strides, interleave, swizzle,
                                       l2_promotion, oob_fill);
}

} // extern "C"
