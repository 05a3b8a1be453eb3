"""ONNX Runtime: engines with I/O bound to preallocated buffers, on the CPU or, by the same code, on CUDA."""

import itertools
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from latentrt.runtime.backends.base import Buffer, Mark, check_shared
from latentrt.runtime.backends.cuda import DeviceBuffer, Stream, describe_device, device_index
from latentrt.runtime.backends.cuda_provider import fallback, preload, provider_options
from latentrt.runtime.backends.host import HostBuffer, HostMark
from latentrt.runtime.backends.registry import CPU_PROVIDER, CUDA_PROVIDER, load_module
from latentrt.runtime.bundle.specs import ONNX_TYPES, ComponentSpec, Port
from latentrt.runtime.errors import BackendError, LatentRTError, StaleBuildError

logger = logging.getLogger(__name__)

LOG_ERRORS_ONLY = 3

STOP_SPINNING = ("session.force_spinning_stop", "1")
"""Each session has its own threads; spinning after a run, they would take the cores from the next component's."""

CAPTURED_BINDINGS = 16
"""Number of bindings of one engine that get a CUDA graph: a session keeps its graphs until it ends."""

NO_GRAPH = -1
"""The graph number with which ONNX Runtime captures nothing."""

NO_BF16 = (
    "it is bf16, and ONNX Runtime has no bf16 convolution, matmul or attention for CPUs. Export with --precision fp32 "
    "or fp16, or build it for a GPU: build-engine BUNDLE --backend tensorrt"
)


class OnnxRuntimeBackend:
    """ONNX Runtime on one device. On CUDA, all work goes to one stream that belongs to the backend."""

    name = "onnxruntime"

    def __init__(self, name: str, device: str):
        self.device = device
        self.kind, self.index = device.partition(":")[0], device_index(device)
        self.library = load_module(name)
        provider = {"cpu": CPU_PROVIDER, "cuda": CUDA_PROVIDER}.get(self.kind)
        if provider not in self.library.get_available_providers():
            raise BackendError(
                f"device {device}: this onnxruntime runs on {', '.join(self.library.get_available_providers())}. "
                "For NVIDIA GPUs install latentrt[cuda] in place of latentrt[cpu]"
            )
        if self.kind == "cuda":
            preload(self.library)
            describe_device(self.index)
        self.stream = Stream(self.index) if self.kind == "cuda" else None

    def activate(self) -> None:
        """Make the GPU the calling thread's current one; nothing to do on the CPU."""
        if self.stream is not None:
            self.stream.activate()

    def load(self, spec: ComponentSpec, path: Path, *, optimised: bool = False) -> "OnnxRuntimeEngine":
        """Start a session over an exported or an optimised ONNX file; on CUDA one that captures graphs, if it can.

        Raises:
            BackendError: ONNX Runtime cannot load it, or not on this device.
        """
        if self.kind == "cpu" and spec.uses("bfloat16"):
            raise BackendError(f"{spec.name}: {NO_BF16}")
        self.activate()
        if self.kind == "cpu" or self.stream is None:
            return OnnxRuntimeEngine(self, spec, self._session(path, [CPU_PROVIDER], optimised))
        session, captures = self._cuda_session(self.stream, path, optimised)
        if session.get_providers()[0] != CUDA_PROVIDER:
            raise BackendError(fallback(str(path)))
        return OnnxRuntimeEngine(self, spec, session, captures)

    def _session(self, path: Path, providers: list[Any], optimised: bool) -> Any:
        options = self.library.SessionOptions()
        options.log_severity_level = LOG_ERRORS_ONLY
        options.add_session_config_entry(*STOP_SPINNING)
        if self.kind == "cpu" and usable_cores() < (os.cpu_count() or 1):
            options.intra_op_num_threads = usable_cores()
        if optimised:
            options.graph_optimization_level = self.library.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            return self.library.InferenceSession(path, options, providers=providers, enable_fallback=0)
        except Exception as error:  # ONNX Runtime's errors share no base class of their own
            raise BackendError(f"{path}: ONNX Runtime cannot load it: {error}") from error

    def _cuda_session(self, stream: Stream, path: Path, optimised: bool) -> tuple[Any, bool]:
        """A session, and whether it captures CUDA graphs: ONNX Runtime refuses that where it copies to the host."""

        def session(graphs: str) -> Any:
            own = {"user_compute_stream": str(stream.handle), "enable_cuda_graph": graphs}
            return self._session(path, [(CUDA_PROVIDER, provider_options(self.index) | own), CPU_PROVIDER], optimised)

        try:
            return session("1"), True
        except BackendError as error:
            if "graph" not in str(error).lower():
                raise
            logger.warning("%s: runs without CUDA graphs, so every step costs the host more: %s", path, error)
        return session("0"), False

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """The work unchanged: each session captures and replays its own graph."""
        return work

    def mark(self) -> Mark:
        """An event on the stream; on the CPU, the present moment."""
        return HostMark() if self.stream is None else self.stream.mark()

    def allocate(self, port: Port, shape: tuple[int, ...]) -> Buffer:
        """Memory for one port on this device."""
        if self.stream is None:
            return HostBuffer(shape, port.numpy_dtype)
        return DeviceBuffer(shape, port.numpy_dtype, self.stream)

    def synchronize(self) -> None:
        """Wait for the stream; on the CPU, everything is done when a call returns."""
        if self.stream is not None:
            self.stream.synchronize()

    def close(self) -> None:
        """Destroy the stream."""
        if self.stream is not None:
            self.stream.close()
            self.stream = None


def usable_cores() -> int:
    """Number of cores that this process may use. ONNX Runtime counts all, and its threads then wait for each other."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class OnnxRuntimeEngine:
    """One session. With `captures`, each of the first `CAPTURED_BINDINGS` bindings gets a CUDA graph."""

    def __init__(self, backend: OnnxRuntimeBackend, spec: ComponentSpec, session: Any, captures: bool = False):
        self.spec = spec
        self.backend = backend
        self.captures = captures
        self.session = session
        self._bound = itertools.count()
        self._check_ports()

    def _check_ports(self) -> None:
        """Refuse a session with other ports than the spec's: it would read wrong memory."""
        for kind, found, ports in (
            ("input", self.session.get_inputs(), self.spec.inputs),
            ("output", self.session.get_outputs(), self.spec.outputs),
        ):
            names, needed = [value.name for value in found], [port.name for port in ports]
            if names != needed:
                raise StaleBuildError(f"{self.spec.name}: the file's {kind}s are {names}, the manifest says {needed}")

    def bind(self, sizes: Mapping[str, int], shared: Mapping[str, Buffer] = {}) -> "OnnxRuntimeBinding":
        """Buffers for these sizes; see `Engine.bind`."""
        if self.session is None:
            raise LatentRTError(f"{self.spec.name}: the engine is closed")
        self.spec.check(sizes)
        check_shared(self.spec, sizes, shared)
        buffers = {
            port.name: shared.get(port.name) or self.backend.allocate(port, port.shape(sizes))
            for port in self.spec.ports
        }
        return OnnxRuntimeBinding(self, buffers, self._run_options())

    def _run_options(self) -> Any:
        options = self.backend.library.RunOptions()
        if self.backend.kind == "cuda":
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if self.captures:
            number = next(self._bound)
            options.add_run_config_entry("gpu_graph_id", str(number if number < CAPTURED_BINDINGS else NO_GRAPH))
        return options

    def close(self) -> None:
        """Drop the session."""
        self.session = None


class OnnxRuntimeBinding:
    """The buffers of one engine for one set of sizes; implements `Binding`."""

    def __init__(self, engine: OnnxRuntimeEngine, buffers: Mapping[str, Buffer], options: Any):
        self.buffers = buffers
        self._engine = engine
        self._options = options
        self._binding = engine.session.io_binding()
        for ports, bind in (
            (engine.spec.inputs, self._binding.bind_input),
            (engine.spec.outputs, self._binding.bind_output),
        ):
            for port in ports:
                # By number: numpy, whose dtypes ONNX Runtime takes as well, has no bfloat16.
                place = (engine.backend.kind, engine.backend.index, ONNX_TYPES[port.dtype])
                bind(port.name, *place, buffers[port.name].shape, buffers[port.name].pointer)

    def run(self) -> None:
        """One inference over the bound buffers."""
        engine = self._engine
        if engine.session is None:
            raise LatentRTError(f"{engine.spec.name}: the engine is closed")
        try:
            engine.session.run_with_iobinding(self._binding, self._options)
        except Exception as error:  # ONNX Runtime's errors share no base class of their own
            raise BackendError(f"{engine.spec.name}: ONNX Runtime failed: {error}") from error
