"""What a backend provides: buffers on its device and engines that run one component each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.specs import ComponentSpec


class Buffer(Protocol):
    """Memory for one tensor on a backend's device, contiguous in C order, owned by the engine that allocated it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Axis lengths."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type; bfloat16 is held as raw uint16."""

    @property
    def pointer(self) -> int:
        """Address in the device's address space; it never changes during the buffer's life."""

    def write(self, values: NDArray[Any]) -> None:
        """Enqueue a copy of `values` (same shape, converted to the buffer's dtype) into the buffer.

        Into bfloat16 numbers are rounded to the nearest, ties to even; uint16 are taken as its bits.
        """

    def copy_from(self, other: "Buffer") -> None:
        """Enqueue a copy of another buffer of the same device, shape and dtype."""

    def numpy(self) -> NDArray[Any]:
        """A copy on the host, after all work enqueued so far; float32 where the buffer holds bfloat16."""

    def __dlpack__(self, **kwargs: Any) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...


class Engine(Protocol):
    """One component, ready to run. Buffers belong to the engine."""

    @property
    def spec(self) -> ComponentSpec:
        """The component's ports and the ranges that this engine serves."""

    def bind(self, sizes: Mapping[str, int], shared: Mapping[str, Buffer] = {}) -> Mapping[str, Buffer]:
        """Allocate (or keep) every buffer for these named sizes: dim name -> size.

        Same sizes and same `shared`: same buffers, so that a captured CUDA graph stays valid. `shared` gives buffers of
        other engines to use for some ports (port name -> buffer), so that nothing is copied between components.

        Raises:
            RequestError: a size lies outside the range of its dim.
        """

    def run(self) -> None:
        """Enqueue one inference on the backend's stream."""

    def close(self) -> None:
        """Give back the engine's memory; the engine cannot run again. Closing twice is allowed."""


class Backend(Protocol):
    """A device and a stream of one inference library, from which engines are loaded. One per thread of work."""

    @property
    def name(self) -> str:
        """Key of `BACKENDS`."""

    @property
    def device(self) -> str:
        """`cpu` or `cuda:<index>`."""

    def load(self, spec: ComponentSpec, path: Path) -> Engine:
        """Load one component from its engine file or ONNX file."""

    def synchronize(self) -> None:
        """Wait for all enqueued work."""

    def close(self) -> None:
        """Give back everything the backend holds. Engines must be closed before."""
