"""The protocol of a backend: buffers on its device, engines of one component each, and their bindings to sizes."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.bundle.specs import ComponentSpec, Port
from latentrt.runtime.errors import BackendError


class Mark(Protocol):
    """A point in a backend's work."""

    def wait(self) -> None:
        """Wait until the work before it is done."""

    def seconds_since(self, earlier: Any) -> float:
        """Seconds since an earlier mark of the same backend, by the device's clock; both must have been reached."""


class Buffer(Protocol):
    """Memory for one tensor on a backend's device, contiguous in C order, owned by the binding that allocated it."""

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

        For bfloat16, numbers are rounded to the nearest, ties to even, and uint16 values are taken as its bits.
        """

    def copy_from(self, other: "Buffer") -> None:
        """Enqueue a copy of another buffer of the same device, shape and dtype."""

    def fetch(self) -> Callable[[], NDArray[Any]]:
        """Enqueue a copy to the host. Calling what this returns, once, waits for the copy and gives the values.

        They are float32 where the buffer holds bfloat16.
        Between the two calls the host may enqueue other work, but no second `fetch` of the same buffer.
        """

    def numpy(self) -> NDArray[Any]:
        """A copy on the host, after all work enqueued so far; float32 where the buffer holds bfloat16."""

    def __dlpack__(self, **kwargs: Any) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...


class Block(Protocol):
    """Buffers that are written together, at the cost of one copy."""

    @property
    def buffers(self) -> Mapping[str, Buffer]:
        """Port name -> buffer."""

    def write(self, values: Mapping[str, NDArray[Any]]) -> None:
        """Enqueue copies of values by port; see `Buffer.write`. Ports that are not named stay as they are."""


class Binding(Protocol):
    """An engine's buffers for one set of sizes, ready to run.

    Buffers and their addresses stay the same for the binding's life, so that a captured CUDA graph stays valid. Memory
    is freed when nothing refers to the binding any more.
    """

    @property
    def buffers(self) -> Mapping[str, Buffer]:
        """Port name -> buffer."""

    def run(self) -> None:
        """Enqueue one inference on the backend's stream."""


class Engine(Protocol):
    """One loaded component. Its weights are shared by all its bindings."""

    @property
    def spec(self) -> ComponentSpec:
        """The component's ports and the ranges that this engine serves."""

    def bind(self, sizes: Mapping[str, int], shared: Mapping[str, Buffer] = {}) -> Binding:
        """Allocate every buffer for these sizes (dim name -> size; dims that the component lacks are ignored).

        `shared` holds buffers of other bindings to use for some ports (port name -> buffer), so that nothing is copied
        between components.

        Raises:
            RequestError: a size lies outside the range of its dim.
            BackendError: a shared buffer has another shape or dtype than its port.
        """

    def close(self) -> None:
        """Free the engine's memory; its bindings cannot run any more. Closing twice is allowed."""


class Backend(Protocol):
    """A device and a stream of one inference library, from which engines are loaded. One per thread of work."""

    @property
    def name(self) -> str:
        """Key of `BACKENDS`."""

    @property
    def device(self) -> str:
        """`cpu` or `cuda:<index>`."""

    def activate(self) -> None:
        """Make the backend's device the calling thread's current one."""

    def block(self, ports: Iterable[Port], sizes: Mapping[str, int]) -> Block:
        """Buffers for these ports and sizes, to be shared with bindings; neighbours are best written together."""

    def load(self, spec: ComponentSpec, path: Path, *, optimised: bool = False) -> Engine:
        """Load one component from its engine file or ONNX file; `optimised` marks a file that `build-engine` wrote."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """The same work as one call that costs the host as little as possible.

        `work` must only enqueue: runs of bindings and copies between their buffers, the same ones in every call.
        """

    def mark(self) -> Mark:
        """Mark the end of the work enqueued so far."""

    def synchronize(self) -> None:
        """Wait for all enqueued work."""

    def close(self) -> None:
        """Free everything that the backend holds. Engines must be closed before."""


def check_shared(spec: ComponentSpec, sizes: Mapping[str, int], shared: Mapping[str, Buffer]) -> None:
    """Raise `BackendError` for a shared buffer whose shape or dtype is not its port's."""
    for port in spec.ports:
        buffer, shape, dtype = shared.get(port.name), port.shape(sizes), port.numpy_dtype
        if buffer is not None and (buffer.shape, buffer.dtype) != (shape, dtype):
            raise BackendError(
                f"{spec.name}: {port.name} needs a buffer {dtype}{list(shape)}, the shared one is "
                f"{buffer.dtype}{list(buffer.shape)}"
            )
