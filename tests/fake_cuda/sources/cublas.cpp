// libcublas.so.13: every product is one line of the log. The wheel of the headers has none for cuBLAS, and C linkage
// carries no types: where an argument is logged or written, the leading parameters are spelled out as the documentation
// has them; everything else takes any.
#include "device.h"

#define API extern "C" __attribute__((visibility("default")))
#define WORK(name) \
    API int name(Handle* handle, ...) { return fake_enqueue(handle->stream, "gemm", "call=" #name), 0; }
#define HELPER_WORK(name) \
    API int name(Handle* handle, ...) { return fake_enqueue(handle->stream, "blas", "call=" #name), 0; }

namespace {

const int FLOAT32 = 0;  // CUDA_R_32F in the header library_types.h

int product(Handle* handle, const char* call, int rows, int columns, int depth, int type, int batch) {
    fake_enqueue(handle->stream, "gemm", "call=%s m=%d n=%d k=%d batch=%d type=%d math=%d", call, rows, columns, depth,
                 batch, type, handle->math_mode);
    return 0;
}

}  // namespace

API int cublasCreate_v2(Handle** handle) { return *handle = new Handle, 0; }
API int cublasDestroy_v2(Handle* handle) { return delete handle, 0; }
API int cublasSetStream_v2(Handle* handle, void* stream) { return handle->stream = stream, 0; }
API int cublasGetMathMode(Handle* handle, int* mode) { return *mode = handle->math_mode, 0; }
API int cublasSetMathMode(Handle* handle, int mode) { return handle->math_mode = mode, 0; }
API const char* cublasGetStatusName(int) { return "a status of the fake device"; }
API const char* cublasGetStatusString(int) { return "a status of the fake device"; }

API int cublasGemmEx(Handle* handle, int, int, int m, int n, int k, const void*, const void*, int type, ...) {
    return product(handle, __func__, m, n, k, type, 1);
}
API int cublasSgemm_v2(Handle* handle, int, int, int m, int n, int k, ...) {
    return product(handle, __func__, m, n, k, FLOAT32, 1);
}
// alpha, A, its type, its leading dimension and its stride come before B, and so on to the count of matrices.
API int cublasGemmStridedBatchedEx(Handle* handle, int, int, int m, int n, int k, const void*, const void*, int type,
                                   int, long long, const void*, int, int, long long, const void*, void*, int, int,
                                   long long, int batch, ...) {
    return product(handle, __func__, m, n, k, type, batch);
}
API int cublasSgemmStridedBatched(Handle* handle, int, int, int m, int n, int k, const void*, const void*, int,
                                  long long, const void*, int, long long, const void*, void*, int, long long,
                                  int batch) {
    return product(handle, __func__, m, n, k, FLOAT32, batch);
}

WORK(cublasDgemm_v2)
WORK(cublasDgemmBatched)
WORK(cublasDgemmStridedBatched)
WORK(cublasGemmBatchedEx)
WORK(cublasSgemmBatched)

HELPER_WORK(cublasDgeam)
HELPER_WORK(cublasDgetrfBatched)
HELPER_WORK(cublasDgetriBatched)
HELPER_WORK(cublasScopy_v2)
HELPER_WORK(cublasSgeam)
HELPER_WORK(cublasSgetrfBatched)
HELPER_WORK(cublasSgetriBatched)
HELPER_WORK(cublasSscal_v2)
