// libcudart.so.13: one GPU whose memory is host memory, and whose kernels do nothing.
//
// Only what libonnxruntime_providers_cuda.so imports, and what latentrt calls, is here: another function would be
// missing when the library is loaded, so nothing can pass by unseen. The headers of CUDA check every signature.
#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "device.h"

#undef cudaGetDeviceProperties  // a macro of the header, which would rename the function

#define API extern "C" __attribute__((visibility("default")))

namespace {

// ---------------------------------------------------------------------------------------------------------- the device

struct Shape {
    const char* capability;
    const char* name;
    int multiprocessors;
    size_t memory, l2_cache, shared_per_multiprocessor, shared_per_block;
    int threads_per_multiprocessor;
};

// shared_per_block is what a kernel gets that asks for more than 48 kB: attention kernels are chosen by it.
const Shape SHAPES[] = {
    {"8.9", "NVIDIA GeForce RTX 4090", 128, 24ull << 30, 72u << 20, 102400, 101376, 1536},
    {"9.0", "NVIDIA H100", 132, 80ull << 30, 50u << 20, 233472, 232448, 2048},
    {"12.0", "NVIDIA GeForce RTX 5090", 170, 32ull << 30, 96u << 20, 102400, 101376, 1536},
};

const Shape& shape() {
    static const Shape* found = [] {
        const char* asked = getenv("FAKE_CUDA_CAPABILITY");
        for (const Shape& one : SHAPES)
            if (!asked || !strcmp(one.capability, asked)) return &one;
        fprintf(stderr, "FAKE_CUDA_CAPABILITY=%s: the fake device knows 8.9, 9.0 and 12.0\n", asked);
        abort();
    }();
    return *found;
}

int major() { return atoi(shape().capability); }
int minor() { return atoi(strchr(shape().capability, '.') + 1); }

// --------------------------------------------------------------------------------------------------------------- state

struct Copy {
    cudaMemcpyKind kind = cudaMemcpyDefault;
    void *target = nullptr, *source = nullptr;
};

struct Node {
    cudaGraphNodeType type;
    Copy copy;
};

struct Capture {
    int number;
    cudaStreamCaptureMode mode;
    pthread_t thread;
    bool blocking_stream;
    bool invalid = false;
    std::vector<Node*> nodes = {};
};

// Libraries register their kernels before this file's own globals would be constructed, and free memory after these
// would be gone: so the state is made at the first use and never destroyed.
struct State {
    std::recursive_mutex mutex;
    FILE* log = nullptr;
    std::map<pthread_t, int> threads;
    std::map<const void*, std::string> kernels;
    std::map<char*, size_t> device, pinned;
    size_t device_bytes = 0;
    std::map<const void*, unsigned> stream_flags;
    std::map<const void*, Capture*> stream_captures, event_captures;
    std::map<cudaGraph_t, std::vector<Node*>> graphs;
    int captures = 0;
    State() {
        if (const char* path = getenv("FAKE_CUDA_LOG")) log = fopen(path, "a");
    }
};

State& state() {
    static State* one = new State;
    return *one;
}

using Lock = std::lock_guard<std::recursive_mutex>;
thread_local cudaError_t last_error = cudaSuccess;
thread_local Copy last_copy;  // that this thread enqueues

cudaError_t fail(cudaError_t error) { return last_error = error; }

// ----------------------------------------------------------------------------------------------------------------- log

void write_list(const std::string& condition, const void* stream, const char* call, const char* details,
                va_list values) {
    State& s = state();
    if (!s.log) return;
    int thread = s.threads.try_emplace(pthread_self(), s.threads.size()).first->second;
    fprintf(s.log, "%d\t%s\t%p\t%s\t", thread, condition.c_str(), stream, call);
    vfprintf(s.log, details, values);
    fputc('\n', s.log);
    fflush(s.log);  // the log must be whole when the process dies
}

void write(const std::string& condition, const void* stream, const char* call, const char* details, ...) {
    va_list values;
    va_start(values, details);
    write_list(condition, stream, call, details, values);
    va_end(values);
}

}  // namespace

namespace {

/// Add what a captured call becomes to the capture; marks of events are edges, not nodes.
void add_node(Capture* capture, const char* call) {
    auto begins = [call](const char* with) { return !strncmp(call, with, strlen(with)); };
    if (begins("cudaEvent") || begins("cudaStream")) return;
    cudaGraphNodeType type = begins("cudaMemcpy")           ? cudaGraphNodeTypeMemcpy
                             : begins("cudaMemset")         ? cudaGraphNodeTypeMemset
                             : begins("cudaLaunchHostFunc") ? cudaGraphNodeTypeHost
                             : begins("cudaGraphLaunch")    ? cudaGraphNodeTypeGraph
                             : begins("cudaMalloc")         ? cudaGraphNodeTypeMemAlloc
                             : begins("cudaFree")           ? cudaGraphNodeTypeMemFree
                                                            : cudaGraphNodeTypeKernel;
    capture->nodes.push_back(new Node{type, last_copy});
}

}  // namespace

API void fake_log(const char* call, const char* details, ...) {
    Lock lock(state().mutex);
    va_list values;
    va_start(values, details);
    write_list("-", nullptr, call, details, values);
    va_end(values);
}

API void fake_enqueue(const void* stream, const char* call, const char* details, ...) {
    State& s = state();
    Lock lock(s.mutex);
    auto found = s.stream_captures.find(stream);
    va_list values;
    va_start(values, details);
    bool captured = found != s.stream_captures.end();
    write_list(captured ? std::to_string(found->second->number) : "-", stream, call, details, values);
    va_end(values);
    if (captured) add_node(found->second, call);
}

/// Begin a new part of the log; trace.py counts between marks.
API void fake_mark(const char* name) { fake_log("mark", "%s", name); }

// ------------------------------------------------------------------------------------------- what a capture disallows

namespace {

cudaError_t refuse(Capture* capture, const char* call) {
    capture->invalid = true;
    write("illegal", nullptr, call, "capture=%d", capture->number);
    return fail(cudaErrorStreamCaptureUnsupported);
}

/// The capture that makes an "unsafe" call (the CUDA documentation's word: allocating, freeing, waiting) an error on
/// this thread: its own, unless relaxed, or another thread's global one.
Capture* forbids_unsafe_calls() {
    for (auto& [stream, capture] : state().stream_captures) {
        bool own = pthread_equal(capture->thread, pthread_self());
        if (capture->mode == cudaStreamCaptureModeGlobal) return capture;
        if (own && capture->mode == cudaStreamCaptureModeThreadLocal) return capture;
    }
    return nullptr;
}

/// The capture that makes work on the legacy default stream an error. Its stream waits for that one unless created
/// as non-blocking.
Capture* forbids_legacy_stream() {
    for (auto& [stream, capture] : state().stream_captures)
        if (capture->blocking_stream) return capture;
    return forbids_unsafe_calls();
}

Capture* any_capture() {
    auto& captures = state().stream_captures;
    return captures.empty() ? nullptr : captures.begin()->second;
}

}  // namespace

#define REFUSE_IF(capture_expression) \
    if (Capture* open = (capture_expression)) return refuse(open, __func__)

// -------------------------------------------------------------------------------------------------------------- memory

namespace {

bool lies_in(const std::map<char*, size_t>& blocks, const void* pointer) {
    auto after = blocks.upper_bound(const_cast<char*>(static_cast<const char*>(pointer)));
    if (after == blocks.begin()) return false;
    auto& [start, size] = *--after;
    return pointer < start + size;
}

const char* place(const void* pointer) {
    State& s = state();
    Lock lock(s.mutex);
    return lies_in(s.device, pointer) ? "device" : lies_in(s.pinned, pointer) ? "pinned" : "pageable";
}

/// Zeroed memory that takes no room before it is written: kernels that do nothing never write.
char* reserve(size_t bytes) {
    void* memory = mmap(nullptr, bytes ? bytes : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? nullptr : static_cast<char*>(memory);
}

cudaError_t allocate_device(void** pointer, size_t bytes) {
    State& s = state();
    char* memory = s.device_bytes + bytes > shape().memory ? nullptr : reserve(bytes);
    if (!memory) return fail(cudaErrorMemoryAllocation);
    s.device[memory] = bytes ? bytes : 1;
    s.device_bytes += bytes;
    *pointer = memory;
    return cudaSuccess;
}

/// Give a block back; its size, or 0 where there is none.
size_t release(std::map<char*, size_t>& blocks, void* pointer) {
    auto found = blocks.find(static_cast<char*>(pointer));
    if (found == blocks.end()) return 0;
    size_t bytes = found->second;
    blocks.erase(found);
    munmap(pointer, bytes);
    return bytes;
}

}  // namespace

API cudaError_t cudaMalloc(void** pointer, size_t bytes) {
    Lock lock(state().mutex);
    REFUSE_IF(forbids_unsafe_calls());
    cudaError_t error = allocate_device(pointer, bytes);
    if (!error) fake_log("cudaMalloc", "bytes=%zu", bytes);
    return error;
}

API cudaError_t cudaFree(void* pointer) {
    if (!pointer) return cudaSuccess;
    Lock lock(state().mutex);
    REFUSE_IF(forbids_unsafe_calls());
    size_t bytes = release(state().device, pointer);
    if (!bytes) return fail(cudaErrorInvalidValue);
    state().device_bytes -= bytes;
    fake_log("cudaFree", "bytes=%zu", bytes);
    return cudaSuccess;
}

API cudaError_t cudaMallocFromPoolAsync(void** pointer, size_t bytes, cudaMemPool_t, cudaStream_t stream) {
    Lock lock(state().mutex);
    cudaError_t error = allocate_device(pointer, bytes);
    if (!error) fake_enqueue(stream, "cudaMallocFromPoolAsync", "bytes=%zu", bytes);
    return error;
}

API cudaError_t cudaFreeAsync(void* pointer, cudaStream_t stream) {
    Lock lock(state().mutex);
    size_t bytes = release(state().device, pointer);
    state().device_bytes -= bytes;
    fake_enqueue(stream, "cudaFreeAsync", "bytes=%zu", bytes);
    return cudaSuccess;
}

API cudaError_t cudaMallocHost(void** pointer, size_t bytes) {
    Lock lock(state().mutex);
    REFUSE_IF(forbids_unsafe_calls());
    char* memory = reserve(bytes);
    if (!memory) return fail(cudaErrorMemoryAllocation);
    state().pinned[memory] = bytes ? bytes : 1;
    *pointer = memory;
    fake_log("cudaMallocHost", "bytes=%zu", bytes);
    return cudaSuccess;
}

API cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) { return cudaMallocHost(pointer, bytes); }

API cudaError_t cudaFreeHost(void* pointer) {
    if (!pointer) return cudaSuccess;
    Lock lock(state().mutex);
    REFUSE_IF(forbids_unsafe_calls());
    fake_log("cudaFreeHost", "bytes=%zu", release(state().pinned, pointer));
    return cudaSuccess;
}

API cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
    Lock lock(state().mutex);
    *total = shape().memory;
    *free = *total - state().device_bytes;
    return cudaSuccess;
}

API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
    std::string where = place(pointer);
    *attributes = {};
    attributes->type = where == "device"   ? cudaMemoryTypeDevice
                       : where == "pinned" ? cudaMemoryTypeHost
                                           : cudaMemoryTypeUnregistered;
    attributes->devicePointer = attributes->hostPointer = const_cast<void*>(pointer);
    return cudaSuccess;
}

// -------------------------------------------------------------------------------------------------------------- copies
// Copies are real, so that small integers which the host reads back (shapes, positions) are those that it wrote.

API cudaError_t cudaMemcpy(void* target, const void* source, size_t bytes, cudaMemcpyKind) {
    Lock lock(state().mutex);
    REFUSE_IF(forbids_legacy_stream());
    memcpy(target, source, bytes);
    fake_log("cudaMemcpy", "bytes=%zu from=%s to=%s", bytes, place(source), place(target));
    return cudaSuccess;
}

API cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind kind,
                                cudaStream_t stream) {
    memcpy(target, source, bytes);
    last_copy = {kind, target, const_cast<void*>(source)};
    fake_enqueue(stream, "cudaMemcpyAsync", "bytes=%zu from=%s to=%s", bytes, place(source), place(target));
    return cudaSuccess;
}

API cudaError_t cudaMemcpy2DAsync(void* target, size_t target_pitch, const void* source, size_t source_pitch,
                                  size_t width, size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
    for (size_t row = 0; row < height; ++row)
        memcpy(static_cast<char*>(target) + row * target_pitch, static_cast<const char*>(source) + row * source_pitch,
               width);
    last_copy = {kind, target, const_cast<void*>(source)};
    fake_enqueue(stream, "cudaMemcpy2DAsync", "bytes=%zu from=%s to=%s", width * height, place(source), place(target));
    return cudaSuccess;
}

API cudaError_t cudaMemcpyFromSymbol(void* target, const void*, size_t bytes, size_t, cudaMemcpyKind) {
    Lock lock(state().mutex);
    REFUSE_IF(forbids_legacy_stream());
    memset(target, 0, bytes);
    fake_log("cudaMemcpyFromSymbol", "bytes=%zu from=device to=%s", bytes, place(target));
    return cudaSuccess;
}

API cudaError_t cudaMemset(void* target, int value, size_t bytes) {
    Lock lock(state().mutex);
    REFUSE_IF(forbids_legacy_stream());
    memset(target, value, bytes);
    fake_log("cudaMemset", "bytes=%zu", bytes);
    return cudaSuccess;
}

API cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t stream) {
    memset(target, value, bytes);
    fake_enqueue(stream, "cudaMemsetAsync", "bytes=%zu", bytes);
    return cudaSuccess;
}

// -------------------------------------------------------------------------------------------------- streams and events

API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
    Lock lock(state().mutex);
    *stream = static_cast<cudaStream_t>(new_token());
    state().stream_flags[*stream] = flags;
    fake_log("cudaStreamCreate", "flags=%u", flags);
    return cudaSuccess;
}

API cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, cudaStreamDefault); }

API cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    Lock lock(state().mutex);
    state().stream_flags.erase(stream);
    state().stream_captures.erase(stream);
    return cudaSuccess;
}

API cudaError_t cudaDeviceSynchronize() {
    Lock lock(state().mutex);
    REFUSE_IF(any_capture());
    fake_log(__func__, " ");
    return cudaSuccess;
}

API cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    State& s = state();
    Lock lock(s.mutex);
    auto found = s.stream_captures.find(stream);
    REFUSE_IF(found == s.stream_captures.end() ? forbids_unsafe_calls() : found->second);
    fake_log(__func__, "of=%p", static_cast<void*>(stream));
    return cudaSuccess;
}

API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    *event = static_cast<cudaEvent_t>(new_token());
    return cudaSuccess;
}

API cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }

API cudaError_t cudaEventDestroy(cudaEvent_t event) {
    Lock lock(state().mutex);
    state().event_captures.erase(event);
    return cudaSuccess;
}

API cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
    State& s = state();
    Lock lock(s.mutex);
    auto found = s.stream_captures.find(stream);
    if (found == s.stream_captures.end())
        s.event_captures.erase(event);
    else
        s.event_captures[event] = found->second;
    fake_enqueue(stream, "cudaEventRecord", " ");
    return cudaSuccess;
}

API cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    return cudaEventRecordWithFlags(event, stream, cudaEventRecordDefault);
}

/// A stream that waits for captured work joins the capture.
API cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    State& s = state();
    Lock lock(s.mutex);
    auto found = s.event_captures.find(event);
    if (found != s.event_captures.end()) s.stream_captures.try_emplace(stream, found->second);
    fake_enqueue(stream, __func__, " ");
    return cudaSuccess;
}

API cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    State& s = state();
    Lock lock(s.mutex);
    auto found = s.event_captures.find(event);
    REFUSE_IF(found == s.event_captures.end() ? forbids_unsafe_calls() : found->second);
    fake_log(__func__, " ");
    return cudaSuccess;
}

API cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
    *milliseconds = 1;  // nothing here takes time, but programs divide by it
    return cudaSuccess;
}

// ---------------------------------------------------------------------------------------------------- captures, graphs

API cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    State& s = state();
    Lock lock(s.mutex);
    // The two default streams cannot be captured.
    if (!s.stream_flags.count(stream)) return fail(cudaErrorStreamCaptureUnsupported);
    if (s.stream_captures.count(stream)) return fail(cudaErrorIllegalState);
    bool blocking = !(s.stream_flags[stream] & cudaStreamNonBlocking);
    int number = ++s.captures;
    fake_log(__func__, "capture=%d mode=%d", number, static_cast<int>(mode));
    s.stream_captures[stream] = new Capture{number, mode, pthread_self(), blocking};  // events may outlive it: never freed
    return cudaSuccess;
}

API cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    State& s = state();
    Lock lock(s.mutex);
    *graph = nullptr;
    auto found = s.stream_captures.find(stream);
    if (found == s.stream_captures.end()) return fail(cudaErrorIllegalState);
    Capture* capture = found->second;
    std::erase_if(s.stream_captures, [&](auto& entry) { return entry.second == capture; });
    std::erase_if(s.event_captures, [&](auto& entry) { return entry.second == capture; });
    if (!capture->invalid) {
        *graph = static_cast<cudaGraph_t>(new_token());
        s.graphs[*graph] = capture->nodes;
    }
    fake_log(__func__, "capture=%d graph=%p", capture->number, static_cast<void*>(*graph));
    return capture->invalid ? fail(cudaErrorStreamCaptureInvalidated) : cudaSuccess;
}

API cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
    State& s = state();
    Lock lock(s.mutex);
    auto found = s.stream_captures.find(stream);
    *status = found == s.stream_captures.end() ? cudaStreamCaptureStatusNone
              : found->second->invalid         ? cudaStreamCaptureStatusInvalidated
                                               : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

API cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
    if (!graph) return fail(cudaErrorInvalidValue);
    *executable = static_cast<cudaGraphExec_t>(new_token());
    fake_log(__func__, "graph=%p executable=%p", static_cast<void*>(graph), static_cast<void*>(*executable));
    return cudaSuccess;
}

API cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    fake_enqueue(stream, __func__, "executable=%p", static_cast<void*>(executable));
    return cudaSuccess;
}

API cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
    Lock lock(state().mutex);
    auto& own = state().graphs[graph];
    if (nodes)
        for (size_t i = 0; i < *count && i < own.size(); ++i) nodes[i] = reinterpret_cast<cudaGraphNode_t>(own[i]);
    *count = own.size();
    return cudaSuccess;
}

API cudaError_t cudaGraphNodeGetType(cudaGraphNode_t node, cudaGraphNodeType* type) {
    *type = reinterpret_cast<Node*>(node)->type;
    return cudaSuccess;
}

API cudaError_t cudaGraphMemcpyNodeGetParams(cudaGraphNode_t node, cudaMemcpy3DParms* parameters) {
    *parameters = {};
    const Copy& copy = reinterpret_cast<Node*>(node)->copy;
    parameters->kind = copy.kind;
    parameters->srcPtr.ptr = copy.source;
    parameters->dstPtr.ptr = copy.target;
    return cudaSuccess;
}

API cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    Lock lock(state().mutex);
    for (Node* node : state().graphs[graph]) delete node;
    state().graphs.erase(graph);
    return cudaSuccess;
}
API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaSuccess; }

// ------------------------------------------------------------------------------------------------------------- kernels
// nvcc compiles kernel<<<grid, block>>>(…) to a push of the configuration, a stub function that pops it, and a launch of
// that stub's address. Static constructors register which kernel the address stands for.

namespace {

struct Configuration {
    dim3 grid, block;
    size_t shared;
    void* stream;
};
thread_local Configuration pushed;

void launch(const void* kernel, dim3 grid, dim3 block, cudaStream_t stream) {
    State& s = state();
    Lock lock(s.mutex);
    auto found = s.kernels.find(kernel);
    fake_enqueue(stream, "kernel", "grid=%u,%u,%u block=%u,%u,%u name=%s", grid.x, grid.y, grid.z, block.x, block.y,
                 block.z, found == s.kernels.end() ? "unknown" : found->second.c_str());
}

}  // namespace

API void** __cudaRegisterFatBinary(void*) {
    static void* module;
    return &module;
}
API void __cudaRegisterFatBinaryEnd(void**) {}
API void __cudaUnregisterFatBinary(void**) {}
API void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
API void __cudaRegisterFunction(void**, const char* stub, char*, const char* name, int, void*, void*, void*, void*,
                                int*) {
    Lock lock(state().mutex);
    state().kernels[stub] = name;
}

API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
    pushed = {grid, block, shared, stream};
    return 0;
}
API cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
    *grid = pushed.grid;
    *block = pushed.block;
    *shared = pushed.shared;
    *static_cast<void**>(stream) = pushed.stream;
    return cudaSuccess;
}
API cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* stub) {
    *kernel = static_cast<cudaKernel_t>(const_cast<void*>(stub));
    return cudaSuccess;
}
API cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void**, size_t, cudaStream_t stream) {
    launch(kernel, grid, block, stream);
    return cudaSuccess;
}

API cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void**, size_t, cudaStream_t stream) {
    launch(kernel, grid, block, stream);
    return cudaSuccess;
}
API cudaError_t cudaLaunchCooperativeKernel(const void* kernel, dim3 grid, dim3 block, void**, size_t,
                                            cudaStream_t stream) {
    launch(kernel, grid, block, stream);
    return cudaSuccess;
}
API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void**) {
    launch(kernel, config->gridDim, config->blockDim, config->stream);
    return cudaSuccess;
}

/// A callback in the stream's order: at once, as all work is done at once, unless a capture only records it.
API cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
    fake_enqueue(stream, __func__, " ");
    cudaStreamCaptureStatus status;
    cudaStreamIsCapturing(stream, &status);
    if (status == cudaStreamCaptureStatusNone) function(data);
    return cudaSuccess;
}

API cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
    *attributes = {};
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 64;
    attributes->binaryVersion = attributes->ptxVersion = major() * 10 + minor();
    attributes->maxDynamicSharedSizeBytes = static_cast<int>(shape().shared_per_block);
    return cudaSuccess;
}
API cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
API cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t, cudaFuncAttribute, int, int) { return cudaSuccess; }
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t,
                                                                       unsigned) {
    *blocks = 2;
    return cudaSuccess;
}

API cudaError_t cudaLibraryLoadData(cudaLibrary_t* library, const void*, cudaJitOption*, void**, unsigned,
                                    cudaLibraryOption*, void**, unsigned) {
    *library = static_cast<cudaLibrary_t>(new_token());
    return cudaSuccess;
}
API cudaError_t cudaLibraryUnload(cudaLibrary_t) { return cudaSuccess; }
API cudaError_t cudaLibraryGetKernel(cudaKernel_t* kernel, cudaLibrary_t, const char* name) {
    Lock lock(state().mutex);
    *kernel = static_cast<cudaKernel_t>(new_token());
    state().kernels[*kernel] = name;
    return cudaSuccess;
}

// ---------------------------------------------------------------------------------------------- questions and settings

API cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
API cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
API cudaError_t cudaSetDevice(int device) { return device ? fail(cudaErrorInvalidDevice) : cudaSuccess; }
API cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
API cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }

API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
    if (device) return fail(cudaErrorInvalidDevice);
    *properties = {};
    strcpy(properties->name, shape().name);
    properties->major = major();
    properties->minor = minor();
    properties->totalGlobalMem = shape().memory;
    properties->multiProcessorCount = shape().multiprocessors;
    properties->l2CacheSize = static_cast<int>(shape().l2_cache);
    properties->sharedMemPerBlock = 48 << 10;
    properties->sharedMemPerBlockOptin = shape().shared_per_block;
    properties->sharedMemPerMultiprocessor = shape().shared_per_multiprocessor;
    properties->maxThreadsPerMultiProcessor = shape().threads_per_multiprocessor;
    properties->maxBlocksPerMultiProcessor = 24;
    properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
    properties->maxThreadsDim[2] = 64;
    properties->maxGridSize[0] = 2147483647;
    properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
    properties->totalConstMem = 65536;
    properties->memoryBusWidth = 384;
    properties->concurrentKernels = properties->unifiedAddressing = properties->memoryPoolsSupported = 1;
    properties->cooperativeLaunch = 1;
    return cudaSuccess;
}

API cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    cudaDeviceProp p;
    if (cudaError_t error = cudaGetDeviceProperties(&p, device)) return error;
    const std::map<cudaDeviceAttr, size_t> known = {
        {cudaDevAttrComputeCapabilityMajor, p.major},
        {cudaDevAttrComputeCapabilityMinor, p.minor},
        {cudaDevAttrMultiProcessorCount, p.multiProcessorCount},
        {cudaDevAttrMaxSharedMemoryPerBlock, p.sharedMemPerBlock},
        {cudaDevAttrMaxSharedMemoryPerBlockOptin, p.sharedMemPerBlockOptin},
        {cudaDevAttrMaxSharedMemoryPerMultiprocessor, p.sharedMemPerMultiprocessor},
        {cudaDevAttrMaxThreadsPerMultiProcessor, p.maxThreadsPerMultiProcessor},
        {cudaDevAttrMaxThreadsPerBlock, p.maxThreadsPerBlock},
        {cudaDevAttrWarpSize, p.warpSize},
        {cudaDevAttrMaxGridDimX, p.maxGridSize[0]},
        {cudaDevAttrMaxGridDimY, p.maxGridSize[1]},
        {cudaDevAttrMaxGridDimZ, p.maxGridSize[2]},
    };
    auto found = known.find(attribute);
    // Whatever else is asked is whether the device can do something.
    *value = found == known.end() ? 1 : static_cast<int>(found->second);
    return cudaSuccess;
}

API cudaError_t cudaGetLastError() {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}
API cudaError_t cudaPeekAtLastError() { return last_error; }
API const char* cudaGetErrorName(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "cudaSuccess";
        case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
        case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
        case cudaErrorStreamCaptureInvalidated: return "cudaErrorStreamCaptureInvalidated";
        default: return "an error of the fake device";
    }
}
API const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

/// ONNX Runtime asks for driver functions that describe tensors to Hopper's copy engine; any that succeeds will do.
API cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned, unsigned long long,
                                                 cudaDriverEntryPointQueryResult* result) {
    int (*succeeds)() = [] { return 0; };
    *function = reinterpret_cast<void*>(succeeds);
    if (result) *result = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}

API cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps*) {
    *pool = static_cast<cudaMemPool_t>(new_token());
    return cudaSuccess;
}
API cudaError_t cudaMemPoolDestroy(cudaMemPool_t) { return cudaSuccess; }
API cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }
API cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
API cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void* value) {
    *static_cast<size_t*>(value) = 0;
    return cudaSuccess;
}
