"""Buffers in host memory and marks by the host's clock, for engines that run on the CPU."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.backends.base import Buffer
from latentrt.runtime.backends.bfloat16 import RAW, as_numbers, to_bits
from latentrt.runtime.bundle.specs import Port, Sizes


class HostMark:
    """A moment of the host's clock: on the CPU, work is done when the call that starts it returns."""

    def __init__(self) -> None:
        self._time = time.perf_counter()

    def wait(self) -> None:
        """Return at once: there is nothing to wait for."""

    def seconds_since(self, earlier: "HostMark") -> float:
        """Seconds since an earlier mark."""
        return self._time - earlier._time


class HostBuffer:
    """A numpy array with a fixed address."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]):
        self.array: NDArray[Any] = np.zeros(shape, dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Axis lengths."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type; bfloat16 is held as raw uint16."""
        return self.array.dtype

    @property
    def pointer(self) -> int:
        """Address of the first element."""
        return self.array.ctypes.data

    def write(self, values: NDArray[Any]) -> None:
        """Copy `values` in, converted to the buffer's dtype."""
        np.copyto(self.array, to_bits(values) if self.dtype == RAW else values, casting="same_kind")

    def copy_from(self, other: Buffer) -> None:
        """Copy another buffer in."""
        values = other.array if isinstance(other, HostBuffer) else np.from_dlpack(other)
        np.copyto(self.array, values, casting="no")

    def fetch(self) -> Callable[[], NDArray[Any]]:
        """Copy the values now; calling what this returns gives them."""
        values = self.numpy()
        return lambda: values

    def numpy(self) -> NDArray[Any]:
        """A copy; float32 where the buffer holds bfloat16."""
        return as_numbers(self.array.copy())

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.array.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


class HostBlock:
    """Buffers in host memory; implements `Block`."""

    def __init__(self, ports: Iterable[Port], sizes: Sizes):
        self.buffers: Mapping[str, HostBuffer] = {
            port.name: HostBuffer(port.shape(sizes), port.numpy_dtype) for port in ports
        }

    def write(self, values: Mapping[str, NDArray[Any]]) -> None:
        """Copy values in, by port."""
        for name, array in values.items():
            self.buffers[name].write(array)
