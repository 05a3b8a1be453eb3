"""CUDA graphs: work that is enqueued the same way every time, captured once and launched with one call."""

import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from latentrt.runtime.backends import cuda
from latentrt.runtime.backends.device_wide import capture_turn
from latentrt.runtime.errors import BackendError

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a capture is tried that fails."""

WARM_UPS = 5
"""After so many runs, a capture is tried though the device's free memory still changes: others may use it, too."""


class Capturable(Protocol):
    """A binding as recordings see it."""

    def obstacle(self) -> str | None:
        """Why this binding's work cannot be captured now; None where it can, or where the library does not say."""

    def suspects(self) -> str | None:
        """What in this binding may be to blame where a capture fails."""


class Recorder:
    """Makes the recordings of one stream, and knows which bindings each of them runs.

    `moves` counts how often memory was replaced that recordings use: then they are captured anew.
    """

    def __init__(self, stream: cuda.Stream, *, allows_host_copies: bool = False):
        self.moves = 0
        self.stream = stream
        self.allows_host_copies = allows_host_copies
        self._running: weakref.WeakSet[Capturable] | None = None

    def record(self, work: Callable[[], None]) -> "Recording":
        """The work as one call, captured once it has run."""
        return Recording(self, work)

    @contextmanager
    def noting(self, bindings: "weakref.WeakSet[Capturable]") -> Iterator[None]:
        """Add what runs in a `with` block to these bindings."""
        self._running = bindings
        try:
            yield
        finally:
            self._running = None

    def ran(self, binding: Capturable) -> None:
        """Note that a binding ran."""
        if self._running is not None:
            self._running.add(binding)


class Recording:
    """Work on one stream, as a callable: the first calls run it, and once it is warm, it is captured and replayed.

    A run warms up whatever allocates memory or chooses kernels, which a capture does not allow. It is warm when a run
    took no memory of the device; an arena may need another block in its second run, as it is in pieces by then. The
    capture follows the run in the same call: nothing has changed since, and the device is busy meanwhile.

    Work that cannot be captured is enqueued piece by piece in every call, after one warning: slower for the host,
    otherwise the same.
    """

    def __init__(self, recorder: Recorder, work: Callable[[], None]):
        self._recorder = recorder
        self._work = work
        self._used: weakref.WeakSet[Capturable] = weakref.WeakSet()
        self._moves = recorder.moves
        self._launch: Callable[[], None] | None = None
        self._runs = self._failures = 0
        self.refusal = ""
        """Why the work is not captured, where that is known."""

    def __call__(self) -> None:
        """Enqueue the work."""
        if self._moves != self._recorder.moves:
            self._moves = self._recorder.moves
            self._launch, self._runs = None, 0  # frees the graph of the old memory
        if self._launch is not None:
            self._launch()
        elif self._failures == ATTEMPTS:
            self._run()
        else:
            free = _free_bytes()
            self._run()
            self._runs += 1
            if self._runs >= WARM_UPS or _free_bytes() == free:
                self._launch = self._captured()

    @property
    def is_captured(self) -> bool:
        """Whether calls replay a graph by now."""
        return self._launch is not None

    def _run(self) -> None:
        with self._recorder.noting(self._used):
            self._work()

    def _captured(self) -> Callable[[], None] | None:
        """The launch of the captured work; None where it cannot be captured yet."""
        if obstacles := _joined(binding.obstacle() for binding in self._used):
            self._refuse(obstacles)
            return None
        try:
            with capture_turn() as allowed:
                recorder = self._recorder
                return Graph(recorder.stream, self._work, recorder.allows_host_copies).launch if allowed else None
        except BackendError as error:
            self._failures += 1
            if self._failures == ATTEMPTS:
                self._refuse(_joined([str(error), *(binding.suspects() for binding in self._used)]))
            return None

    def _refuse(self, reason: str) -> None:
        """Keep the reason, and warn of the first one."""
        first, self.refusal = not self.refusal, " ".join(reason.split())
        if first:
            logger.warning(
                "this work cannot be captured as a CUDA graph, so every step costs the host more: %s", self.refusal
            )


class Graph:
    """An instantiated CUDA graph. Everything that the captured work uses must outlive it.

    Raises:
        BackendError: the work fails while it is captured, or does what a graph cannot hold. Copies from or to the
            host's memory are among that unless `allows_host_copies`: a graph reads the same address at every launch,
            whoever has that memory by then.
    """

    def __init__(self, stream: cuda.Stream, work: Callable[[], None], allows_host_copies: bool = False):
        self._stream = stream
        graph = _capture(stream, work)
        try:
            if not allows_host_copies:
                _refuse_host_work(graph)
            self._graph: Any = cuda.call("cudaGraphInstantiate", graph, 0)
        finally:
            cuda.call("cudaGraphDestroy", graph)
        self._work = work  # its buffers are the graph's
        weakref.finalize(self, cuda.bindings().cudaGraphExecDestroy, self._graph)

    def launch(self) -> None:
        """Enqueue the whole graph."""
        cuda.call("cudaGraphLaunch", self._graph, self._stream.handle)


def _capture(stream: cuda.Stream, work: Callable[[], None]) -> Any:
    """The work as a `cudaGraph_t`. Other threads may go on allocating while this one captures."""
    mode = cuda.bindings().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    with _no_garbage_collection():
        cuda.call("cudaStreamBeginCapture", stream.handle, mode)
        try:
            work()
        except BaseException:
            # Otherwise the stream could not be used again, and the error would be found once more.
            cuda.bindings().cudaStreamEndCapture(stream.handle)
            cuda.bindings().cudaGetLastError()
            raise
        return cuda.call("cudaStreamEndCapture", stream.handle)


def _refuse_host_work(graph: Any) -> None:
    """Raise `BackendError` for a graph that copies from or to the host's memory, or calls a function of the host."""
    types = cuda.bindings().cudaGraphNodeType
    _, count = cuda.call("cudaGraphGetNodes", graph, 0)
    nodes, _ = cuda.call("cudaGraphGetNodes", graph, count)
    copies = calls = 0
    for node in nodes:
        kind = cuda.call("cudaGraphNodeGetType", node)
        calls += kind == types.cudaGraphNodeTypeHost
        copies += kind == types.cudaGraphNodeTypeMemcpy and not _stays_on_device(node)
    if copies or calls:
        raise BackendError(f"it makes {copies} copies between host and device, and {calls} calls of the host")


def _stays_on_device(node: Any) -> bool:
    """Whether a captured copy is from device to device, by its kind or, where that is left open, by its addresses."""
    found, places = cuda.call("cudaGraphMemcpyNodeGetParams", node), cuda.bindings().cudaMemoryType
    if found.kind == cuda.bindings().cudaMemcpyKind.cudaMemcpyDeviceToDevice:
        return True
    ends = [cuda.call("cudaPointerGetAttributes", end.ptr).type for end in (found.srcPtr, found.dstPtr)]
    return all(end == places.cudaMemoryTypeDevice for end in ends)


def _free_bytes() -> int:
    free, _ = cuda.call("cudaMemGetInfo")
    return int(free)


def _joined(texts: Iterable[str | None]) -> str:
    return "; ".join(filter(None, texts))


_lock = threading.Lock()
_holding = 0
_was_enabled = False


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """No garbage is collected in here, on any thread: what dies may free device memory, which ends a capture."""
    global _holding, _was_enabled
    with _lock:
        if not _holding:
            _was_enabled = gc.isenabled()
            gc.disable()
        _holding += 1
    try:
        yield
    finally:
        with _lock:
            _holding -= 1
            if not _holding and _was_enabled:
                gc.enable()
