"""Program: small captures on the fake device, each a part of the log; needs no onnxruntime.

Prints, as JSON, the name of the error with which each capture ended.
"""

import json
from collections.abc import Callable
from typing import Any

from fake_cuda import bindings

cuda = bindings.stand_in()
MODE = cuda.cudaStreamCaptureMode
HOST_TO_DEVICE = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
BYTES = 64


def result(name: str, *arguments: Any) -> Any:
    """The one result of a call that must succeed."""
    error, *values = getattr(cuda, name)(*arguments)
    assert error == cuda.cudaError_t.cudaSuccess, (name, error)
    return values[0] if values else None


stream = result("cudaStreamCreateWithFlags", cuda.cudaStreamNonBlocking)
other = result("cudaStreamCreateWithFlags", cuda.cudaStreamNonBlocking)
device, pinned = result("cudaMalloc", BYTES), result("cudaMallocHost", BYTES)
event = result("cudaEventCreate")


def copy(to: int) -> None:
    """Work to be recorded."""
    cuda.cudaMemcpyAsync(device, pinned, BYTES, HOST_TO_DEVICE, to)


def fork() -> None:
    """Work on a second stream, which joins the capture by waiting for the first one's event."""
    cuda.cudaEventRecord(event, stream)
    cuda.cudaStreamWaitEvent(other, event, 0)
    copy(other)


def replay() -> None:
    """A graph made outside, launched inside."""
    cuda.cudaGraphLaunch(executable, stream)


def capture(name: str, work: Callable[[], Any], mode: Any = MODE.cudaStreamCaptureModeThreadLocal) -> tuple[str, int]:
    """Capture one piece of work; the error with which the capture ended, and its graph."""
    bindings.mark(name)
    result("cudaStreamBeginCapture", stream, mode)
    work()
    error, graph = cuda.cudaStreamEndCapture(stream)
    return error.name, graph


ended = {}
ended["copy"], graph = capture("copy", lambda: copy(stream))
executable = result("cudaGraphInstantiate", graph, 0)
bindings.mark("launch twice")
replay()
replay()
for name, work in {
    "malloc": lambda: cuda.cudaMalloc(BYTES),
    "pinned malloc": lambda: cuda.cudaMallocHost(BYTES),
    "wait": lambda: cuda.cudaStreamSynchronize(stream),
    "device wait": cuda.cudaDeviceSynchronize,
    "waiting copy": lambda: cuda.cudaMemcpy(device, pinned, BYTES, HOST_TO_DEVICE),
    "fork": fork,
    "replay inside": replay,
}.items():
    ended[name], _ = capture(name, work)
ended["relaxed malloc"], _ = capture(
    "relaxed malloc", lambda: cuda.cudaMalloc(BYTES), MODE.cudaStreamCaptureModeRelaxed
)
print(json.dumps(ended))
