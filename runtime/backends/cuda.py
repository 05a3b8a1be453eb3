"""Memory, streams and events of a CUDA device, through cuda-python's runtime bindings, which are imported when needed.

Everything is enqueued on one `Stream` per backend. CUDA's current device belongs to a thread: to use a stream on a
thread other than the one that created it, call `Stream.activate` there first.
"""

import ctypes
import functools
import importlib
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from latentrt.runtime.backends.base import Buffer
from latentrt.runtime.backends.bfloat16 import RAW, as_numbers, to_bits
from latentrt.runtime.backends.dlpack import CUDA_DEVICE, make_capsule
from latentrt.runtime.errors import BackendError

DRIVER_REMEDY = "Install an NVIDIA driver for CUDA 13 (580 or newer)"


@functools.cache
def bindings() -> ModuleType:
    """`cuda.bindings.runtime`.

    Raises:
        BackendError: cuda-python is not installed.
    """
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        remedy = "Install it with: pip install 'latentrt[cuda]'"
        raise BackendError(f"cuda-python cannot be imported ({error}). {remedy}") from error


def call(name: str, *arguments: Any) -> Any:
    """Call one function of the CUDA runtime and return its result: nothing, a value or a tuple.

    Raises:
        BackendError: the call failed; carries CUDA's own name for the error.
    """
    cuda = bindings()
    error, *results = getattr(cuda, name)(*arguments)
    if error != cuda.cudaError_t.cudaSuccess:
        _, text = cuda.cudaGetErrorString(error)
        cuda.cudaGetLastError()  # else whoever asks next takes it for an error of his own
        raise BackendError(f"{name} failed: {error.name}, {text.decode()}")
    return results[0] if len(results) == 1 else tuple(results) or None


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU: its index, its name and its compute capability, `major.minor`."""

    index: int
    name: str
    major: int
    minor: int


def device_count() -> int:
    """Number of GPUs that this process can use; 0 without cuda-python, a driver or a GPU."""
    try:
        return int(call("cudaGetDeviceCount"))
    except BackendError:
        return 0


def device_index(device: str) -> int:
    """The index in `cuda:<index>`; 0 where none is named."""
    return int(device.partition(":")[2] or 0)


def describe_device(index: int) -> Device:
    """Name and compute capability of a GPU.

    Raises:
        BackendError: cuda-python, a driver or that GPU is missing.
    """
    bindings()  # says itself how to install them
    try:
        count = call("cudaGetDeviceCount")
    except BackendError as error:
        raise BackendError(f"cuda:{index}: {error}. {DRIVER_REMEDY}") from error
    if not 0 <= index < count:
        raise BackendError(f"cuda:{index}: this process has {count} GPUs, cuda:0 to cuda:{count - 1}")
    found = call("cudaGetDeviceProperties", index)
    return Device(index, found.name.decode().rstrip(chr(0)), found.major, found.minor)


class Stream:
    """A CUDA stream on one device. `handle` is its `cudaStream_t` as a number."""

    def __init__(self, device_index: int = 0):
        self.device_index = device_index
        self.activate()
        self._stream = call("cudaStreamCreateWithFlags", bindings().cudaStreamNonBlocking)
        self.handle = int(self._stream)
        self._in_flight: list[Any] = []
        self._destroy = weakref.finalize(self, bindings().cudaStreamDestroy, self._stream)

    def activate(self) -> None:
        """Make this stream's device the calling thread's current one."""
        call("cudaSetDevice", self.device_index)

    def keep(self, thing: Any) -> None:
        """Keep host memory alive until the work enqueued so far is done."""
        self._in_flight.append(thing)

    def synchronize(self) -> None:
        """Wait for all enqueued work."""
        call("cudaStreamSynchronize", self._stream)
        self._in_flight.clear()

    def mark(self) -> "Event":
        """Mark the end of the work enqueued so far."""
        event = Event()
        event.record(self)
        return event

    def close(self) -> None:
        """Wait for all enqueued work and destroy the stream. Closing twice is allowed."""
        if self._destroy.alive:
            self.synchronize()
            self._destroy()


class Event:
    """A point in a stream's work, to wait for or to measure time between; see `base.Mark`."""

    def __init__(self) -> None:
        self.event = call("cudaEventCreate")
        self._destroy = weakref.finalize(self, bindings().cudaEventDestroy, self.event)

    def record(self, stream: Stream) -> None:
        """Mark the end of the work enqueued so far."""
        call("cudaEventRecord", self.event, stream.handle)

    def wait(self) -> None:
        """Wait until the marked work is done."""
        call("cudaEventSynchronize", self.event)

    def seconds_since(self, earlier: "Event") -> float:
        """Seconds on the device between two recorded and finished events."""
        return float(call("cudaEventElapsedTime", earlier.event, self.event)) / 1e3


class DeviceBuffer:
    """Device memory for one tensor, contiguous in C order; implements `latentrt.runtime.backends.base.Buffer`.

    The memory is uninitialised. It is given back by `close`, or when nothing refers to the buffer any more.
    """

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike, stream: Stream):
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.nbytes = self.dtype.itemsize * math.prod(shape)
        self.stream = stream
        stream.activate()
        try:
            self.pointer = int(call("cudaMalloc", max(self.nbytes, 1)))
        except BackendError as error:
            free, total = call("cudaMemGetInfo")
            raise BackendError(
                f"cuda:{stream.device_index}: {self.nbytes / 1e9:.2f} GB asked, {free / 1e9:.2f} of {total / 1e9:.2f} "
                f"GB free ({error}). Ask for fewer images or a smaller size, or close other pipelines"
            ) from error
        self._free = weakref.finalize(self, bindings().cudaFree, self.pointer)
        self._staging: NDArray[Any] | None = None

    def write(self, values: NDArray[Any]) -> None:
        """Enqueue a copy of `values`, converted to the buffer's dtype; the caller may change them afterwards.

        Raises:
            BackendError: another shape, or CUDA refuses the copy.
        """
        if values.shape != self.shape:
            raise BackendError(f"a buffer of shape {list(self.shape)} cannot take values of shape {list(values.shape)}")
        # CUDA has read pageable memory when the call returns; a private copy makes that true of pinned memory as well.
        converted = to_bits(values) if self.dtype == RAW else values
        source = np.array(converted, dtype=self.dtype, order="C", copy=True)
        self.stream.keep(source)
        self._copy(self.pointer, source.ctypes.data, "cudaMemcpyHostToDevice")

    def copy_from(self, other: Buffer) -> None:
        """Enqueue a copy of another buffer of the same device, shape and dtype."""
        if (other.shape, other.dtype) != (self.shape, self.dtype):
            raise BackendError(
                f"a buffer {self.dtype}{list(self.shape)} cannot take one of {other.dtype}{list(other.shape)}"
            )
        self._copy(self.pointer, other.pointer, "cudaMemcpyDeviceToDevice")

    def fetch(self) -> Callable[[], NDArray[Any]]:
        """Enqueue a copy to page-locked memory; calling what this returns waits for it and gives the values."""
        if self._staging is None:
            self._staging = page_locked(self.shape, self.dtype)
        staging = self._staging
        self._copy(staging.ctypes.data, self.pointer, "cudaMemcpyDeviceToHost")
        copied = self.stream.mark()

        def values() -> NDArray[Any]:
            copied.wait()
            return staging.copy()

        return values

    def numpy(self) -> NDArray[Any]:
        """A copy on the host, after all work enqueued so far; float32 where the buffer holds bfloat16."""
        values = np.empty(self.shape, self.dtype)
        self._copy(values.ctypes.data, self.pointer, "cudaMemcpyDeviceToHost")
        self.stream.synchronize()
        return as_numbers(values)

    def _copy(self, target: int, source: int, kind: str) -> None:
        kinds = bindings().cudaMemcpyKind
        call("cudaMemcpyAsync", target, source, self.nbytes, getattr(kinds, kind), self.stream.handle)

    def __dlpack__(self, **_kwargs: Any) -> Any:
        """A DLPack capsule, after all work enqueued so far. The consumer shares the memory and keeps it alive."""
        self.stream.synchronize()
        return make_capsule(self, self.pointer, self.shape, self.dtype, self.__dlpack_device__())

    def __dlpack_device__(self) -> tuple[int, int]:
        return (CUDA_DEVICE, self.stream.device_index)

    def close(self) -> None:
        """Give the memory back. Closing twice is allowed."""
        self._free()


def page_locked(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An uninitialised array that the device copies to without the host's help; freed with the last view of it."""
    nbytes = max(dtype.itemsize * math.prod(shape), 1)
    pointer = int(call("cudaMallocHost", nbytes))
    memory = (ctypes.c_byte * nbytes).from_address(pointer)
    weakref.finalize(memory, bindings().cudaFreeHost, pointer)
    return np.ndarray(shape, dtype, memoryview(memory))
