"""ONNX Runtime: engines with I/O bound to preallocated buffers, on the CPU or, by the same code, on CUDA."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentrt.runtime.backends.base import Buffer
from latentrt.runtime.backends.host import HostBuffer
from latentrt.runtime.backends.targets import load_module
from latentrt.runtime.errors import BackendError, LatentRTError, StaleBuildError
from latentrt.runtime.specs import ComponentSpec, DType, Port

ELEMENT_TYPES: Mapping[DType, int] = {"float32": 1, "uint8": 2, "int64": 7, "float16": 10, "bfloat16": 16}
"""`TensorProto.DataType` of the ONNX specification: the one way to name bfloat16 to ONNX Runtime."""

LOG_ERRORS_ONLY = 3


class OnnxRuntimeBackend:
    """ONNX Runtime on one device. On CUDA all work goes to one stream of the backend's own."""

    name = "onnxruntime"

    def __init__(self, name: str, device: str):
        self.device = device
        self.kind, _, index = device.partition(":")
        self.index = int(index or 0)
        self.library = load_module(name)
        provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(self.kind)
        if provider not in self.library.get_available_providers():
            raise BackendError(
                f"device {device}: this onnxruntime runs on {', '.join(self.library.get_available_providers())}. "
                "For NVIDIA GPUs install latentrt[cuda] in place of latentrt[cpu]"
            )
        self.stream: Any = None
        if self.kind == "cuda":
            from latentrt.runtime.backends.cuda import Stream

            self.stream = Stream(self.index)

    def load(self, spec: ComponentSpec, path: Path) -> "OnnxRuntimeEngine":
        """Start a session over an exported or an optimised ONNX file."""
        options = self.library.SessionOptions()
        options.log_severity_level = LOG_ERRORS_ONLY
        if self.kind == "cpu" and usable_cores() < (os.cpu_count() or 1):
            options.intra_op_num_threads = usable_cores()
        if path.parent.parent.name == "builds":  # what build-engine wrote is optimised already
            options.graph_optimization_level = self.library.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            session = self.library.InferenceSession(path, options, providers=self._providers())
        except Exception as error:  # ONNX Runtime's errors share no base class of their own
            raise BackendError(f"{path}: ONNX Runtime cannot load it: {error}") from error
        if self.kind == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
            raise BackendError(f"{path}: ONNX Runtime fell back to the CPU. Run latentrt doctor to see why")
        return OnnxRuntimeEngine(self, spec, session)

    def _providers(self) -> list[Any]:
        if self.kind == "cpu":
            return ["CPUExecutionProvider"]
        own = {"device_id": str(self.index), "user_compute_stream": str(self.stream.handle)}
        return [("CUDAExecutionProvider", own), "CPUExecutionProvider"]

    def allocate(self, port: Port, shape: tuple[int, ...]) -> Buffer:
        """Memory for one port on this device."""
        if self.kind == "cpu":
            return HostBuffer(shape, port.numpy_dtype)
        from latentrt.runtime.backends.cuda import DeviceBuffer

        buffer: Buffer = DeviceBuffer(shape, port.numpy_dtype, self.stream)
        return buffer

    def synchronize(self) -> None:
        """Wait for the stream; on the CPU everything is done when a call returns."""
        if self.stream is not None:
            self.stream.synchronize()

    def close(self) -> None:
        """Destroy the stream."""
        if self.stream is not None:
            self.stream.close()
            self.stream = None


def usable_cores() -> int:
    """Cores that this process may use; ONNX Runtime counts all, and its threads then wait for each other."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class OnnxRuntimeEngine:
    """One session and the buffers bound to it."""

    def __init__(self, backend: OnnxRuntimeBackend, spec: ComponentSpec, session: Any):
        self.spec = spec
        self._backend = backend
        self._session = session
        self._binding: Any = None
        self._bound: tuple[dict[str, int], dict[str, int]] | None = None
        self._buffers: dict[str, Buffer] = {}
        self._options = backend.library.RunOptions()
        if backend.kind == "cuda":
            self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._check_ports()

    def _check_ports(self) -> None:
        """A session with other ports than the spec's would read wrong memory."""
        for kind, found, ports in (
            ("input", self._session.get_inputs(), self.spec.inputs),
            ("output", self._session.get_outputs(), self.spec.outputs),
        ):
            names, needed = [value.name for value in found], [port.name for port in ports]
            if names != needed:
                raise StaleBuildError(f"{self.spec.name}: the file's {kind}s are {names}, the manifest says {needed}")

    def bind(self, sizes: Mapping[str, int], shared: Mapping[str, Buffer] = {}) -> Mapping[str, Buffer]:
        """Buffers for these sizes; see `Engine.bind`."""
        self.spec.check(sizes)
        own = {name: sizes[name] for name in self.spec.dims}
        wanted = (own, {name: buffer.pointer for name, buffer in shared.items()})
        if wanted == self._bound:
            return self._buffers
        self._buffers = {}
        for port in self.spec.ports:
            shape = port.shape(own)
            self._buffers[port.name] = shared.get(port.name) or self._backend.allocate(port, shape)
        self._binding = self._bind_all()
        self._bound = wanted
        return self._buffers

    def _bind_all(self) -> Any:
        binding = self._session.io_binding()
        for ports, bind in ((self.spec.inputs, binding.bind_input), (self.spec.outputs, binding.bind_output)):
            for port in ports:
                buffer = self._buffers[port.name]
                place = (self._backend.kind, self._backend.index, ELEMENT_TYPES[port.dtype])
                bind(port.name, *place, buffer.shape, buffer.pointer)
        return binding

    def run(self) -> None:
        """One inference over the bound buffers."""
        if self._binding is None:
            raise LatentRTError(f"{self.spec.name}: run before bind")
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:  # ONNX Runtime's errors share no base class of their own
            raise BackendError(f"{self.spec.name}: ONNX Runtime failed: {error}") from error

    def close(self) -> None:
        """Drop the session and its buffers."""
        self._session = self._binding = self._bound = None
        self._buffers = {}
