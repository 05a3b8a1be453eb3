// libcublasLt.so.13: products whose stream is an argument. See cublas.cpp on the parameters.
#include <cstring>

#include "device.h"

#define API extern "C" __attribute__((visibility("default")))
#define ACCEPT(name) \
    API int name(...) { return 0; }
#define CREATE(name) \
    API int name(void** made, ...) { return *made = new_token(), 0; }

API int cublasLtMatmul(void*, void*, const void*, const void*, void*, const void*, void*, const void*, const void*,
                       void*, void*, void*, const void*, void*, size_t, void* stream) {
    return fake_enqueue(stream, "gemm", "call=cublasLtMatmul"), 0;
}
API int cublasLtMatrixTransform(void*, void*, const void*, const void*, void*, const void*, const void*, void*, void*,
                                void*, void* stream) {
    return fake_enqueue(stream, "blas", "call=cublasLtMatrixTransform"), 0;
}

/// One algorithm that needs no workspace: a result of that size, all zero, says so.
API int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void* results,
                                       int* count) {
    const size_t RESULT_BYTES = 96;  // a 64-byte algorithm, workspace size, status, waves, and four reserved integers
    memset(results, 0, RESULT_BYTES);
    return *count = 1, 0;
}

CREATE(cublasLtCreate)
CREATE(cublasLtMatmulDescCreate)
CREATE(cublasLtMatmulPreferenceCreate)
CREATE(cublasLtMatrixLayoutCreate)
CREATE(cublasLtMatrixTransformDescCreate)

ACCEPT(cublasLtDestroy)
ACCEPT(cublasLtMatmulAlgoConfigSetAttribute)
ACCEPT(cublasLtMatmulAlgoInit)
ACCEPT(cublasLtMatmulDescDestroy)
ACCEPT(cublasLtMatmulDescSetAttribute)
ACCEPT(cublasLtMatmulPreferenceDestroy)
ACCEPT(cublasLtMatmulPreferenceSetAttribute)
ACCEPT(cublasLtMatrixLayoutDestroy)
ACCEPT(cublasLtMatrixLayoutSetAttribute)
ACCEPT(cublasLtMatrixTransformDescDestroy)
