"""Memory of a CUDA device: buffers, blocks of buffers that are written together, page-locked memory behind both.

Only page-locked memory is copied from and to: the host has no part in such a copy, and does not wait for it.
"""

import ctypes
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from latentrt.runtime.backends import cuda
from latentrt.runtime.backends.base import Buffer
from latentrt.runtime.backends.bfloat16 import RAW, as_numbers, to_bits
from latentrt.runtime.backends.cuda import Event, Stream
from latentrt.runtime.backends.dlpack import CUDA_DEVICE, make_capsule
from latentrt.runtime.bundle.specs import Port, Sizes
from latentrt.runtime.errors import BackendError

ALIGNMENT = 256
"""Bytes to which buffers are aligned, as `cudaMalloc` aligns and TensorRT demands."""


class DeviceBuffer:
    """Device memory for one tensor, contiguous in C order; implements `latentrt.runtime.backends.base.Buffer`.

    The memory is uninitialised. It is given back by `close`, or when nothing refers to the buffer any more. With
    `within`, a buffer of bytes and an offset, it lies in that buffer, which lives at least as long.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: DTypeLike,
        stream: Stream,
        within: tuple["DeviceBuffer", int] | None = None,
    ):
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.nbytes = self.dtype.itemsize * math.prod(shape)
        self.stream = stream
        if within is None:
            self.pointer = allocate(max(self.nbytes, 1), stream)
            self._free = weakref.finalize(self, cuda.bindings().cudaFree, self.pointer)
        else:
            self._block, offset = within
            self.pointer = self._block.pointer + offset
        self._outgoing: Outgoing | None = None
        self._incoming: NDArray[Any] | None = None

    def write(self, values: NDArray[Any]) -> None:
        """Enqueue a copy of `values`, converted to the buffer's dtype; the caller may change them afterwards.

        Raises:
            BackendError: another shape, or CUDA refuses the copy.
        """
        if self._outgoing is None:
            self._outgoing = Outgoing(self.nbytes, self.stream)
        self._outgoing.wait()
        fill(self._outgoing.view(0, self.shape, self.dtype), values)
        self._outgoing.send(self.pointer, [(0, self.nbytes)])

    def copy_from(self, other: Buffer) -> None:
        """Enqueue a copy of another buffer of the same device, shape and dtype."""
        if (other.shape, other.dtype) != (self.shape, self.dtype):
            raise BackendError(
                f"a buffer {self.dtype}{list(self.shape)} cannot take one of {other.dtype}{list(other.shape)}"
            )
        copy(self.stream, self.pointer, other.pointer, self.nbytes, "cudaMemcpyDeviceToDevice")

    def fetch(self) -> Callable[[], NDArray[Any]]:
        """Enqueue a copy to page-locked memory; calling what this returns waits for it and gives the values."""
        if self._incoming is None:
            self._incoming = as_array(page_locked(self.nbytes), self.shape, self.dtype)
        incoming = self._incoming
        copy(self.stream, incoming.ctypes.data, self.pointer, self.nbytes, "cudaMemcpyDeviceToHost")
        copied = self.stream.mark()

        def values() -> NDArray[Any]:
            copied.wait()
            return as_numbers(incoming.copy())

        return values

    def numpy(self) -> NDArray[Any]:
        """A copy on the host, after all work enqueued so far; float32 where the buffer holds bfloat16."""
        return self.fetch()()

    def __dlpack__(self, **_kwargs: Any) -> Any:
        """A DLPack capsule, after all work enqueued so far. The consumer shares the memory and keeps it alive."""
        self.stream.synchronize()
        return make_capsule(self, self.pointer, self.shape, self.dtype, self.__dlpack_device__())

    def __dlpack_device__(self) -> tuple[int, int]:
        return (CUDA_DEVICE, self.stream.device_index)

    def close(self) -> None:
        """Give the memory back, unless it is a part of another buffer. Closing twice is allowed."""
        if hasattr(self, "_free"):
            self._free()


class DeviceBlock:
    """Buffers one behind the other, so that one copy writes them all; implements `Block`."""

    def __init__(self, ports: Iterable[Port], sizes: Sizes, stream: Stream):
        self._spans: dict[str, tuple[int, int]] = {}
        end = 0
        shapes = {port.name: (port.shape(sizes), port.numpy_dtype) for port in ports}
        for name, (shape, dtype) in shapes.items():
            start = -(-end // ALIGNMENT) * ALIGNMENT
            end = start + dtype.itemsize * math.prod(shape)
            self._spans[name] = (start, end)
        self._memory = DeviceBuffer((end,), np.uint8, stream)
        self._outgoing = Outgoing(end, stream)
        self.buffers: Mapping[str, DeviceBuffer] = {
            name: DeviceBuffer(shape, dtype, stream, (self._memory, self._spans[name][0]))
            for name, (shape, dtype) in shapes.items()
        }

    def write(self, values: Mapping[str, NDArray[Any]]) -> None:
        """Enqueue copies of values by port, converted to the buffers' dtypes: one for ports that are neighbours."""
        self._outgoing.wait()
        for name, array in values.items():
            buffer = self.buffers[name]
            fill(self._outgoing.view(self._spans[name][0], buffer.shape, buffer.dtype), array)
        self._outgoing.send(self._memory.pointer, self._joined(values))

    def _joined(self, names: Iterable[str]) -> Iterator[tuple[int, int]]:
        """The spans of these ports, neighbours as one."""
        wanted, start, end = set(names), None, 0
        for name, span in self._spans.items():
            if name in wanted:
                start, end = span[0] if start is None else start, span[1]
            elif start is not None:
                yield start, end
                start = None
        if start is not None:
            yield start, end


class Outgoing:
    """Page-locked memory on its way to the device. Whoever fills it again waits until the last copy is done."""

    def __init__(self, nbytes: int, stream: Stream):
        self._bytes = page_locked(nbytes)
        self._stream = stream
        self._sent = Event(stream)

    def wait(self) -> None:
        """Wait until nothing is copied from here any more: mostly a later mark is known to be reached."""
        self._sent.wait()

    def view(self, start: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array in this memory."""
        return as_array(self._bytes[start : start + dtype.itemsize * math.prod(shape)], shape, dtype)

    def send(self, target: int, spans: Iterable[tuple[int, int]]) -> None:
        """Enqueue copies of these bytes, from start to end, to the same places behind `target`."""
        source = self._bytes.ctypes.data
        for start, end in spans:
            copy(self._stream, target + start, source + start, end - start, "cudaMemcpyHostToDevice")
        self._sent.record()


def fill(target: NDArray[Any], values: NDArray[Any]) -> None:
    """Copy values, converted to the target's dtype, which is bfloat16 where that is uint16.

    Raises:
        BackendError: another shape.
    """
    if values.shape != target.shape:
        raise BackendError(f"a buffer of shape {list(target.shape)} cannot take values of shape {list(values.shape)}")
    np.copyto(target, to_bits(values) if target.dtype == RAW else values, casting="unsafe")


def copy(stream: Stream, target: int, source: int, nbytes: int, kind: str) -> None:
    """Enqueue a copy; `kind` is a name in `cudaMemcpyKind`."""
    cuda.call("cudaMemcpyAsync", target, source, nbytes, getattr(cuda.bindings().cudaMemcpyKind, kind), stream.handle)


def allocate(nbytes: int, stream: Stream) -> int:
    """The address of new device memory.

    Raises:
        BackendError: the device has not as much; says what was asked and what is free.
    """
    stream.activate()
    try:
        return int(cuda.call("cudaMalloc", nbytes))
    except BackendError as error:
        free, total = cuda.call("cudaMemGetInfo")
        raise BackendError(
            f"cuda:{stream.device_index}: {nbytes / 1e9:.2f} GB asked, {free / 1e9:.2f} of {total / 1e9:.2f} "
            f"GB free ({error}). Ask for fewer images or a smaller size, or close other pipelines"
        ) from error


def as_array(memory: NDArray[np.uint8], shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Bytes as an array of this shape and dtype, in place."""
    return np.ndarray(shape, dtype, memory.data)


def page_locked(nbytes: int) -> NDArray[np.uint8]:
    """Uninitialised bytes that the device copies from and to by itself; freed with the last view of them."""
    pointer = int(cuda.call("cudaMallocHost", max(nbytes, 1)))
    memory = (ctypes.c_byte * nbytes).from_address(pointer)
    weakref.finalize(memory, cuda.bindings().cudaFreeHost, pointer)
    return np.ndarray(nbytes, np.uint8, memoryview(memory))
