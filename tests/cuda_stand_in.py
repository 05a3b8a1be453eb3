"""A stand-in for `cuda.bindings.runtime` whose device memory is host memory, so that code for CUDA runs without it."""

import ctypes
from enum import IntEnum
from types import SimpleNamespace
from typing import Any


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInvalidDevice = 101


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class StandInCuda:
    """One GPU. `memory` holds what is allocated, `calls` every function with its arguments; `limit` is in bytes."""

    cudaError_t, cudaMemcpyKind, cudaStreamNonBlocking = cudaError_t, cudaMemcpyKind, 1

    def __init__(self, capability: tuple[int, int] = (8, 9), limit: int = 1 << 30):
        self.capability, self.limit = capability, limit
        self.memory: dict[int, Any] = {}
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda"):
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            result = getattr(self, "_" + name, lambda *_: ())(*arguments)
            return result if result and isinstance(result[0], cudaError_t) else (cudaError_t.cudaSuccess, *result)

        return call

    def _cudaGetErrorString(self, error: cudaError_t) -> tuple[bytes]:
        return (error.name.encode(),)

    def _cudaGetDeviceCount(self) -> tuple[int]:
        return (1,)

    def _cudaGetDeviceProperties(self, _index: int) -> tuple[Any]:
        return (SimpleNamespace(name=b"NVIDIA GeForce RTX 4090", major=self.capability[0], minor=self.capability[1]),)

    def _cudaStreamCreateWithFlags(self, _flags: int) -> tuple[int]:
        return (7,)

    def _cudaEventCreate(self) -> tuple[int]:
        return (9,)

    def _cudaEventElapsedTime(self, _start: int, _end: int) -> tuple[float]:
        return (1500.0,)

    def _cudaMemGetInfo(self) -> tuple[int, int]:
        return (self.limit, self.limit)

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
