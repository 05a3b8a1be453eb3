"""A CUDA device, its streams and events, through cuda-python's runtime bindings, which are imported when needed.

Everything is enqueued on one `Stream` per backend. CUDA's current device belongs to a thread: to use a stream on a
thread other than the one that created it, call `Stream.activate` there first.
"""

import functools
import importlib
import weakref
from dataclasses import dataclass
from types import ModuleType
from typing import Any

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
        self._marks = self._reached = 0
        self._destroy = weakref.finalize(self, bindings().cudaStreamDestroy, self._stream)

    def activate(self) -> None:
        """Make this stream's device the calling thread's current one."""
        call("cudaSetDevice", self.device_index)

    def synchronize(self) -> None:
        """Wait for all enqueued work; after `close` there is none."""
        if not self._destroy.alive:
            return
        marks = self._marks
        call("cudaStreamSynchronize", self._stream)
        self._reached = max(self._reached, marks)

    def mark(self) -> "Event":
        """Mark the end of the work enqueued so far."""
        event = Event(self)
        event.record()
        return event

    def next_mark(self) -> int:
        """The number of a mark that is set now; the stream reaches them in their order."""
        self._marks += 1
        return self._marks

    def wait_for(self, mark: int, event: Any) -> None:
        """Wait for the mark that this event has set, unless a later one is known to be reached."""
        if mark > self._reached:
            call("cudaEventSynchronize", event)
            self._reached = max(self._reached, mark)

    def close(self) -> None:
        """Wait for all enqueued work and destroy the stream. Closing twice is allowed."""
        self.synchronize()
        self._destroy()


class Event:
    """A point in a stream's work, to wait for or to measure time between; see `base.Mark`."""

    def __init__(self, stream: Stream) -> None:
        self.event = call("cudaEventCreate")
        self._stream = stream
        self._mark = 0
        self._destroy = weakref.finalize(self, bindings().cudaEventDestroy, self.event)

    def record(self) -> None:
        """Mark the end of the work enqueued so far, in place of what was marked before."""
        call("cudaEventRecord", self.event, self._stream.handle)
        self._mark = self._stream.next_mark()

    def wait(self) -> None:
        """Wait until the marked work is done; an event that marks nothing is not waited for."""
        self._stream.wait_for(self._mark, self.event)

    def seconds_since(self, earlier: "Event") -> float:
        """Seconds on the device between two recorded and finished events."""
        return float(call("cudaEventElapsedTime", earlier.event, self.event)) / 1e3
