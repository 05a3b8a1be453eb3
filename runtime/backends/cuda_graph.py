"""CUDA graphs: work that is enqueued the same way every time, captured once and launched with one call."""

import logging
import weakref
from collections.abc import Callable
from typing import Any

from latentrt.runtime.backends import cuda
from latentrt.runtime.errors import BackendError

logger = logging.getLogger(__name__)


def _no_obstacle() -> None:
    return None


def _never_moved() -> int:
    return 0


class Recording:
    """Work on one stream, as a callable: the first call runs it, the second captures it, later ones replay.

    The first call so warms up whatever allocates memory or chooses kernels, which a capture does not allow. Work that
    cannot be captured is enqueued piece by piece in every call, after one warning: slower for the host, otherwise the
    same.

    `obstacle` says, after the warm-up, why the work cannot be captured yet; it is asked again in every call. `moved`
    counts how often memory that the work uses was replaced: then it is warmed up and captured anew.
    """

    def __init__(
        self,
        stream: cuda.Stream,
        work: Callable[[], None],
        obstacle: Callable[[], str | None] = _no_obstacle,
        moved: Callable[[], int] = _never_moved,
    ):
        self._stream = stream
        self._work = work
        self._obstacle, self._moved = obstacle, moved
        self._warm_since: int | None = None
        self._launch: Callable[[], None] | None = None
        self._warned = False

    def __call__(self) -> None:
        """Enqueue the work."""
        if self._warm_since != self._moved():
            self._launch = None  # frees the graph of the old memory
            self._work()
            self._warm_since = self._moved()
            return
        if self._launch is None:
            self._launch = self._capture()
        (self._launch or self._work)()

    def _capture(self) -> Callable[[], None] | None:
        """The launch of the captured work; None where it cannot be captured yet."""
        if obstacle := self._obstacle():
            self._warn(obstacle)
            return None
        try:
            return Graph(self._stream, self._work).launch
        except BackendError as error:
            self._warn(str(error))
            return self._work

    def _warn(self, reason: str) -> None:
        if not self._warned:
            logger.warning(
                "this work cannot be captured as a CUDA graph, so every step costs the host more: %s", reason
            )
        self._warned = True


class Graph:
    """An instantiated CUDA graph. Everything that the captured work uses must outlive it.

    Raises:
        BackendError: the work fails while it is captured, or does what a graph cannot hold.
    """

    def __init__(self, stream: cuda.Stream, work: Callable[[], None]):
        self._stream = stream
        # Other threads may go on allocating while this one captures.
        cuda.call(
            "cudaStreamBeginCapture",
            stream.handle,
            cuda.bindings().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal,
        )
        try:
            work()
        except BaseException:
            # Otherwise the stream could not be used again.
            cuda.bindings().cudaStreamEndCapture(stream.handle)
            raise
        graph = cuda.call("cudaStreamEndCapture", stream.handle)
        try:
            self._graph: Any = cuda.call("cudaGraphInstantiate", graph, 0)
        finally:
            cuda.call("cudaGraphDestroy", graph)
        self._work = work  # its buffers are the graph's
        weakref.finalize(self, cuda.bindings().cudaGraphExecDestroy, self._graph)

    def launch(self) -> None:
        """Enqueue the whole graph."""
        cuda.call("cudaGraphLaunch", self._graph, self._stream.handle)
