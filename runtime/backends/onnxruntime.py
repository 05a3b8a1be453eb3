"""ONNX Runtime: engines with I/O bound to preallocated buffers, on the CPU or, by the same code, on CUDA."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from latentrt.runtime.backends.base import Block, Buffer, Mark, check_shared
from latentrt.runtime.backends.cuda import Stream, describe_device, device_index
from latentrt.runtime.backends.cuda_graph import Recorder
from latentrt.runtime.backends.cuda_memory import DeviceBlock, DeviceBuffer
from latentrt.runtime.backends.cuda_provider import fallback, preload, provider_options
from latentrt.runtime.backends.device_wide import device_wide
from latentrt.runtime.backends.host import HostBlock, HostBuffer, HostMark
from latentrt.runtime.backends.registry import CPU_PROVIDER, CUDA_PROVIDER, load_module
from latentrt.runtime.bundle.specs import ONNX_TYPES, ComponentSpec, Port
from latentrt.runtime.errors import BackendError, LatentRTError, StaleBuildError

LOG_ERRORS_ONLY = 3

STOP_SPINNING = ("session.force_spinning_stop", "1")
"""Each session has its own threads; spinning after a run, they would take the cores from the next component's."""

NOTE_PLACES = ("session.record_ep_graph_assignment_info", "1")
"""Has a session know which of its nodes run where."""

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
        self.recorder = None if self.stream is None else Recorder(self.stream)

    def activate(self) -> None:
        """Make the GPU the calling thread's current one; nothing to do on the CPU."""
        if self.stream is not None:
            self.stream.activate()

    def load(self, spec: ComponentSpec, path: Path, *, optimised: bool = False) -> "OnnxRuntimeEngine":
        """Start a session over an exported or an optimised ONNX file.

        Raises:
            BackendError: ONNX Runtime cannot load it, or not on this device.
        """
        if self.kind == "cpu" and spec.uses("bfloat16"):
            raise BackendError(f"{spec.name}: {NO_BF16}")
        self.activate()
        if self.kind == "cpu" or self.stream is None:
            return OnnxRuntimeEngine(self, spec, self._session(path, [CPU_PROVIDER], optimised))
        # A graph of ours holds the whole step; one of ONNX Runtime's would hold one session's part, per thread.
        own = {"user_compute_stream": str(self.stream.handle), "enable_cuda_graph": "0"}
        session = self._session(path, [(CUDA_PROVIDER, provider_options(self.index) | own), CPU_PROVIDER], optimised)
        if session.get_providers()[0] != CUDA_PROVIDER:
            raise BackendError(fallback(str(path)))
        return OnnxRuntimeEngine(self, spec, session)

    def _session(self, path: Path, providers: list[Any], optimised: bool) -> Any:
        options = self.library.SessionOptions()
        options.log_severity_level = LOG_ERRORS_ONLY
        options.add_session_config_entry(*STOP_SPINNING)
        if self.kind == "cuda":
            options.add_session_config_entry(*NOTE_PLACES)
            # A second run would lay out its memory in one block, allocated beside the first run's: in the capture.
            options.enable_mem_pattern = False
        elif usable_cores() < (os.cpu_count() or 1):
            options.intra_op_num_threads = usable_cores()
        if optimised:
            options.graph_optimization_level = self.library.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            with nullcontext() if self.kind == "cpu" else device_wide():
                return self.library.InferenceSession(path, options, providers=providers, enable_fallback=0)
        except Exception as error:  # ONNX Runtime's errors share no base class of their own
            raise BackendError(f"{path}: ONNX Runtime cannot load it: {error}") from error

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """The work as one CUDA graph, captured when it has run once; on the CPU the work unchanged."""
        return work if self.recorder is None else self.recorder.record(work)

    def mark(self) -> Mark:
        """An event on the stream; on the CPU, the present moment."""
        return HostMark() if self.stream is None else self.stream.mark()

    def allocate(self, port: Port, shape: tuple[int, ...]) -> Buffer:
        """Memory for one port on this device."""
        if self.stream is None:
            return HostBuffer(shape, port.numpy_dtype)
        return DeviceBuffer(shape, port.numpy_dtype, self.stream)

    def block(self, ports: Iterable[Port], sizes: Mapping[str, int]) -> Block:
        """Memory for several ports, written by one copy."""
        return HostBlock(ports, sizes) if self.stream is None else DeviceBlock(ports, sizes, self.stream)

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
    """One session."""

    def __init__(self, backend: OnnxRuntimeBackend, spec: ComponentSpec, session: Any):
        self.spec = spec
        self.backend = backend
        self.session = session
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
        return options

    def close(self) -> None:
        """Drop the session."""
        self.session = None
        if self.backend.recorder is not None:
            self.backend.recorder.moves += 1  # graphs would go on in memory that is given back


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
        if engine.backend.recorder is not None:
            engine.backend.recorder.ran(self)

    def obstacle(self) -> None:
        """ONNX Runtime does not say beforehand what can be captured."""

    def suspects(self) -> str | None:
        """The nodes that ONNX Runtime runs on the CPU; those that compute shapes do no harm."""
        engine = self._engine
        if engine.session is None or engine.backend.kind == "cpu":
            return None
        parts = engine.session.get_provider_graph_assignment_info()
        nodes = Counter(node.op_type for part in parts if part.ep_name == CPU_PROVIDER for node in part.get_nodes())
        if not nodes:
            return None
        named = ", ".join(f"{count} {kind}" for kind, count in nodes.most_common())
        return f"{engine.spec.name}: ONNX Runtime runs {nodes.total()} nodes on the CPU: {named}"
