"""A stand-in for `cuda.bindings.runtime` whose device memory is host memory, so that code for CUDA runs without it."""

import ctypes
from collections.abc import Callable, Mapping
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from latentrt.runtime.backends import Buffer
from latentrt.runtime.backends.cuda import Stream, call
from latentrt.runtime.backends.cuda_graph import Recorder
from latentrt.runtime.backends.cuda_memory import DeviceBuffer
from latentrt.runtime.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeBinding, OnnxRuntimeEngine
from latentrt.runtime.bundle.specs import ComponentSpec, Port


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorInvalidDevice = 101
    cudaErrorStreamCaptureUnsupported = 900


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3
    cudaMemcpyDefault = 4


class cudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


class cudaGraphNodeType(IntEnum):
    cudaGraphNodeTypeKernel = 0
    cudaGraphNodeTypeMemcpy = 1
    cudaGraphNodeTypeHost = 3


class cudaMemoryType(IntEnum):
    cudaMemoryTypeUnregistered = 0
    cudaMemoryTypeDevice = 2


class StandInCuda:
    """One GPU. `memory` holds what is allocated, page-locked too; `calls` every function with its arguments.

    `limit` is in bytes. Captured work is kept in `graphs`. `counted` is what cudaGetDeviceCount answers.
    """

    cudaError_t, cudaMemcpyKind, cudaStreamNonBlocking = cudaError_t, cudaMemcpyKind, 1
    cudaStreamCaptureMode, cudaGraphNodeType = cudaStreamCaptureMode, cudaGraphNodeType
    cudaMemoryType = cudaMemoryType

    def __init__(self, capability: tuple[int, int] = (8, 9), limit: int = 1 << 30):
        self.capability, self.limit = capability, limit
        self.counted: tuple[Any, ...] = (1,)
        self.memory: dict[int, Any] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.captured: list[tuple[Any, ...]] | None = None
        self.graphs: dict[int, list[tuple[Any, ...]]] = {}

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda"):
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            if self.captured is not None and name != "cudaStreamEndCapture":
                return self._capture(name, *arguments)
            result = getattr(self, "_" + name, lambda *_: ())(*arguments)
            return result if result and isinstance(result[0], cudaError_t) else (cudaError_t.cudaSuccess, *result)

        return call

    def _capture(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        """Work is kept instead of done; what allocates or waits ends the capture, as in CUDA."""
        assert self.captured is not None
        if name == "cudaGetErrorString":
            return (cudaError_t.cudaSuccess, *self._cudaGetErrorString(*arguments))
        if name not in ("cudaMemcpyAsync", "cudaLaunchHostFunc"):
            return (cudaError_t.cudaErrorStreamCaptureUnsupported, None)
        self.captured.append((name, *arguments))
        return (cudaError_t.cudaSuccess,)

    def _cudaStreamBeginCapture(self, _stream: int, _mode: Any) -> tuple[()]:
        self.captured = []
        return ()

    def _cudaStreamEndCapture(self, _stream: int) -> tuple[Any]:
        captured, self.captured = self.captured, None
        return (captured,)

    def _cudaGraphInstantiate(self, graph: Any, _flags: int) -> tuple[int]:
        self.graphs[id(graph)] = graph
        return (id(graph),)

    def _cudaGraphGetNodes(self, graph: Any, count: int) -> tuple[Any, int]:
        return graph[:count], len(graph)

    def _cudaGraphNodeGetType(self, node: tuple[Any, ...]) -> tuple[cudaGraphNodeType]:
        """A function of the host stands for a kernel here."""
        kinds = cudaGraphNodeType
        return (kinds.cudaGraphNodeTypeMemcpy if node[0] == "cudaMemcpyAsync" else kinds.cudaGraphNodeTypeKernel,)

    def _cudaGraphMemcpyNodeGetParams(self, node: tuple[Any, ...]) -> tuple[Any]:
        _, target, source, _, kind, *_ = node
        return (SimpleNamespace(kind=kind, srcPtr=SimpleNamespace(ptr=source), dstPtr=SimpleNamespace(ptr=target)),)

    def _cudaPointerGetAttributes(self, pointer: int) -> tuple[Any]:
        kinds = cudaMemoryType
        known = pointer in self.memory
        return (SimpleNamespace(type=kinds.cudaMemoryTypeDevice if known else kinds.cudaMemoryTypeUnregistered),)

    def _cudaGraphLaunch(self, graph: int, _stream: int) -> tuple[()]:
        for name, *arguments in self.graphs[graph]:
            getattr(self, f"_{name}")(*arguments)
        return ()

    def _cudaLaunchHostFunc(self, _stream: int, work: Callable[[], None], _data: None) -> tuple[()]:
        work()
        return ()

    def _cudaGraphExecDestroy(self, graph: int) -> tuple[()]:
        del self.graphs[graph]
        return ()

    def _cudaMallocHost(self, size: int) -> tuple[Any, ...]:
        return self._cudaMalloc(size)

    def _cudaFreeHost(self, pointer: int) -> tuple[()]:
        return self._cudaFree(pointer)

    def _cudaGetErrorString(self, error: cudaError_t) -> tuple[bytes]:
        return (error.name.encode(),)

    def _cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return self.counted

    def _cudaGetDeviceProperties(self, _index: int) -> tuple[Any]:
        return (SimpleNamespace(name=b"NVIDIA GeForce RTX 4090", major=self.capability[0], minor=self.capability[1]),)

    def _cudaStreamCreateWithFlags(self, _flags: int) -> tuple[int]:
        return (7,)

    def _cudaEventCreate(self) -> tuple[int]:
        return (9,)

    def _cudaEventElapsedTime(self, _start: int, _end: int) -> tuple[float]:
        return (1500.0,)

    def _cudaMemGetInfo(self) -> tuple[int, int]:
        return (self.limit - sum(map(len, self.memory.values())), self.limit)

    def _cudaMalloc(self, size: int) -> tuple[Any, ...]:
        if size > self.limit:
            return (cudaError_t.cudaErrorMemoryAllocation, None)
        block = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(block)] = block
        return (ctypes.addressof(block),)

    def _cudaFree(self, pointer: int) -> tuple[()]:
        del self.memory[pointer]
        return ()

    def _cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Any, stream: int) -> tuple[()]:
        ctypes.memmove(target, source, size)
        return ()


class StandInBackend(OnnxRuntimeBackend):
    """ONNX Runtime on memory, a stream and graphs of the stand-in: all of the runtime's CUDA code but the kernels."""

    def __init__(self) -> None:
        super().__init__("onnxruntime", "cpu")
        self.stream = Stream(0)
        self.recorder = Recorder(self.stream)

    def load(self, spec: ComponentSpec, path: Path, *, optimised: bool = False) -> "StandInEngine":
        return StandInEngine(self, spec, super().load(spec, path, optimised=optimised).session)

    def allocate(self, port: Port, shape: tuple[int, ...]) -> DeviceBuffer:
        return DeviceBuffer(shape, port.numpy_dtype, self.stream)


class StandInEngine(OnnxRuntimeEngine):
    def bind(self, sizes: Mapping[str, int], shared: Mapping[str, Buffer] = {}) -> "StandInBinding":
        binding = super().bind(sizes, shared)
        return StandInBinding(self, binding.buffers, binding._options)


class StandInBinding(OnnxRuntimeBinding):
    """Its run is enqueued, and so captured."""

    def run(self) -> None:
        call("cudaLaunchHostFunc", self._engine.backend.stream.handle, super().run, None)
