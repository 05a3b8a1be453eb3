// libcudnn.so.9, which ONNX Runtime opens by name. Its convolutions are graphs of "backend descriptors": the program
// describes operations, asks for engines that can do them, and executes a plan. Here every graph has one engine, which
// needs no workspace.
#include <cstdint>
#include <cstring>

#include "device.h"

#define API extern "C" __attribute__((visibility("default")))
#define ACCEPT(name) \
    API int name(...) { return 0; }
#define CREATE(name) \
    API int name(void** made) { return *made = new_token(), 0; }
#define WORK(name) \
    API int name(Handle* handle, ...) { return fake_enqueue(handle->stream, "dnn", "call=" #name), 0; }
#define NO_BYTES(name) \
    API int name(void*, void*, void*, void*, size_t* bytes) { return *bytes = 0, 0; }

API int cudnnCreate(Handle** handle) { return *handle = new Handle, 0; }
API int cudnnDestroy(Handle* handle) { return delete handle, 0; }
API int cudnnSetStream(Handle* handle, void* stream) { return handle->stream = stream, 0; }
API int cudnnGetStream(Handle* handle, void** stream) { return *stream = handle->stream, 0; }
API size_t cudnnGetVersion() { return 91200; }
API size_t cudnnGetCudartVersion() { return 13000; }
API const char* cudnnGetErrorString(int) { return "a status of the fake device"; }
API void cudnnGetLastErrorString(char* text, size_t) { *text = 0; }

// ------------------------------------------------------------------------------------------------- backend descriptors

namespace {

// Numbers of cudnnBackendAttributeType_t and cudnnBackendAttributeName_t, from cuDNN's API reference.
const int TYPE_INT64 = 3, TYPE_DESCRIPTOR = 15;
const int ENGINEHEUR_RESULTS = 202, ENGINECFG_ENGINE = 300, EXECUTION_PLAN_WORKSPACE_SIZE = 402,
          OPERATIONGRAPH_ENGINE_GLOBAL_COUNT = 802, OPERATIONGRAPH_OTHER_COUNT = 803, ENGINE_GLOBAL_INDEX = 1301;

}  // namespace

API int cudnnBackendCreateDescriptor(int, void** descriptor) { return *descriptor = new_token(), 0; }
API int cudnnBackendExecute(Handle* handle, void*, void*) {
    return fake_enqueue(handle->stream, "dnn", "call=cudnnBackendExecute"), 0;
}

/// Descriptors exist already when they are asked for, so it is enough to say that there is one; numbers are zero.
API int cudnnBackendGetAttribute(void*, int attribute, int type, int64_t asked, int64_t* count, void* values) {
    bool descriptors = attribute == ENGINEHEUR_RESULTS || attribute == ENGINECFG_ENGINE;
    bool number = attribute == EXECUTION_PLAN_WORKSPACE_SIZE || attribute == ENGINE_GLOBAL_INDEX;
    bool how_many = attribute == OPERATIONGRAPH_ENGINE_GLOBAL_COUNT || attribute == OPERATIONGRAPH_OTHER_COUNT;
    bool single = asked == 1 && values;
    if (count) *count = descriptors || number || how_many || single;
    if (!values || descriptors || type == TYPE_DESCRIPTOR) return 0;
    if (number || how_many)
        *static_cast<int64_t*>(values) = how_many;
    else if (single)
        memset(values, 0, type == TYPE_INT64 ? sizeof(int64_t) : sizeof(int32_t));
    return 0;
}

ACCEPT(cudnnBackendDestroyDescriptor)
ACCEPT(cudnnBackendFinalize)
ACCEPT(cudnnBackendInitialize)
ACCEPT(cudnnBackendSetAttribute)

// ------------------------------------------------------------------------------------------------- the older functions

WORK(cudnnActivationForward)
WORK(cudnnAddTensor)
WORK(cudnnBatchNormalizationForwardInference)
WORK(cudnnBatchNormalizationForwardTraining)
WORK(cudnnConvolutionBiasActivationForward)
WORK(cudnnConvolutionForward)
WORK(cudnnFindConvolutionForwardAlgorithmEx)
WORK(cudnnLRNCrossChannelForward)
WORK(cudnnPoolingForward)
WORK(cudnnRNNForward)
WORK(cudnnReduceTensor)
WORK(cudnnSoftmaxForward)

NO_BYTES(cudnnGetReductionIndicesSize)
NO_BYTES(cudnnGetReductionWorkspaceSize)

CREATE(cudnnCreateActivationDescriptor)
CREATE(cudnnCreateConvolutionDescriptor)
CREATE(cudnnCreateDropoutDescriptor)
CREATE(cudnnCreateFilterDescriptor)
CREATE(cudnnCreateLRNDescriptor)
CREATE(cudnnCreatePoolingDescriptor)
CREATE(cudnnCreateRNNDataDescriptor)
CREATE(cudnnCreateRNNDescriptor)
CREATE(cudnnCreateReduceTensorDescriptor)
CREATE(cudnnCreateTensorDescriptor)

ACCEPT(cudnnDeriveBNTensorDescriptor)
ACCEPT(cudnnDestroyActivationDescriptor)
ACCEPT(cudnnDestroyConvolutionDescriptor)
ACCEPT(cudnnDestroyDropoutDescriptor)
ACCEPT(cudnnDestroyFilterDescriptor)
ACCEPT(cudnnDestroyLRNDescriptor)
ACCEPT(cudnnDestroyPoolingDescriptor)
ACCEPT(cudnnDestroyRNNDataDescriptor)
ACCEPT(cudnnDestroyRNNDescriptor)
ACCEPT(cudnnDestroyReduceTensorDescriptor)
ACCEPT(cudnnDestroyTensorDescriptor)
ACCEPT(cudnnDropoutGetStatesSize)
ACCEPT(cudnnGetConvolutionForwardAlgorithm_v7)
ACCEPT(cudnnGetConvolutionForwardWorkspaceSize)
ACCEPT(cudnnGetRNNTempSpaceSizes)
ACCEPT(cudnnGetRNNWeightParams)
ACCEPT(cudnnGetTensorNdDescriptor)
ACCEPT(cudnnSetActivationDescriptor)
ACCEPT(cudnnSetConvolutionGroupCount)
ACCEPT(cudnnSetConvolutionMathType)
ACCEPT(cudnnSetConvolutionNdDescriptor)
ACCEPT(cudnnSetDropoutDescriptor)
ACCEPT(cudnnSetFilter4dDescriptor)
ACCEPT(cudnnSetFilterNdDescriptor)
ACCEPT(cudnnSetLRNDescriptor)
ACCEPT(cudnnSetPoolingNdDescriptor)
ACCEPT(cudnnSetRNNDataDescriptor)
ACCEPT(cudnnSetRNNDescriptor_v8)
ACCEPT(cudnnSetReduceTensorDescriptor)
ACCEPT(cudnnSetTensor4dDescriptor)
ACCEPT(cudnnSetTensorNdDescriptor)
ACCEPT(cudnnSetTensorNdDescriptorEx)
