"""Runs TensorRT and TensorRT-RTX engines on CUDA memory: one code path for both modules.

A binding is an execution context whose shapes and addresses are set once; `run` only enqueues, and the loop's step is
captured as one CUDA graph. Activation memory is one block per backend, as its engines run one after the other on one
stream.
"""

import mmap
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from latentrt.runtime.backends.base import Buffer, check_shared
from latentrt.runtime.backends.cuda import DeviceBuffer, Event, Stream, describe_device, device_index
from latentrt.runtime.backends.cuda_graph import Recording
from latentrt.runtime.backends.kernel_cache import KernelCache
from latentrt.runtime.backends.registry import load_module, runnable_targets
from latentrt.runtime.backends.tensorrt_log import first_error, tensorrt_log
from latentrt.runtime.bundle.specs import ComponentSpec
from latentrt.runtime.errors import BackendError, LatentRTError, StaleBuildError

MISMATCH = re.compile(r"version|compatib|compute capability|platform|magic|safety|serialization", re.IGNORECASE)
"""Words in TensorRT's errors about an engine that was built for another version or machine."""


class TensorRTBackend:
    """One GPU and one stream for engines of `tensorrt` or `tensorrt-rtx`; used by one thread of work.

    Raises:
        BackendError: the library, cuda-python, the driver or the GPU is missing, or TensorRT does not serve the GPU.
    """

    def __init__(self, name: str, device: str = "cuda:0"):
        self.name = name
        self.trt = load_module(name)
        index = device_index(device)
        self.device = f"cuda:{index}"
        self.gpu = describe_device(index)
        self.targets = runnable_targets(name, self.device)
        if not self.targets:
            raise BackendError(
                f"{self.device}: {name} does not serve the {self.gpu.name} (compute capability {self.gpu.major}."
                f"{self.gpu.minor}). Use another backend"
            )
        self.stream = Stream(index)
        self.log = tensorrt_log(self.trt)
        self.runtime = self.trt.Runtime(self.log)
        self.kernels = KernelCache(self.trt, self.gpu) if name == "tensorrt-rtx" else None
        self._workspace: DeviceBuffer | None = None

    def load(self, spec: ComponentSpec, path: Path, *, optimised: bool = True) -> "TensorRTEngine":
        """Load an engine file, which is always optimised.

        Raises:
            StaleBuildError: the engine was built for another version or GPU.
            BackendError: TensorRT cannot load it for another reason.
        """
        self.stream.activate()
        self.log.errors.clear()
        # Mapped, not read: TensorRT copies the weights to the GPU, so the host need not hold them as well.
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
            engine = self.runtime.deserialize_cuda_engine(plan)
        if engine is None:
            cause = first_error(self.log, "TensorRT gave no reason")
            remedy = f"Rebuild with: build-engine BUNDLE --backend {self.name}"
            kind = StaleBuildError if MISMATCH.search(cause) else BackendError
            raise kind(f"{spec.name}: {self.name} {self.trt.__version__} cannot load {path}: {cause}. {remedy}")
        return TensorRTEngine(self, spec, engine)

    def workspace(self, size: int) -> DeviceBuffer:
        """Activation memory of at least `size` bytes, shared by all engines of this backend.

        When it grows, the old block stays alive as long as a binding uses it.
        """
        if self._workspace is None or self._workspace.nbytes < size:
            self._workspace = DeviceBuffer((size,), np.uint8, self.stream)
        return self._workspace

    def activate(self) -> None:
        """Make the GPU the calling thread's current one."""
        self.stream.activate()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """The work as one CUDA graph, captured by its second call."""
        return Recording(self.stream, work)

    def mark(self) -> Event:
        """An event on the stream."""
        return self.stream.mark()

    def synchronize(self) -> None:
        """Wait for all enqueued work."""
        self.stream.synchronize()

    def close(self) -> None:
        """Save compiled kernels and free everything that the backend holds. Engines must be closed before."""
        if self.kernels is not None:
            self.kernels.save()
        self._workspace = None
        self.stream.close()


class TensorRTEngine:
    """One component's weights on the GPU; implements `Engine`."""

    def __init__(self, backend: TensorRTBackend, spec: ComponentSpec, engine: Any):
        self.backend = backend
        self.spec = spec
        self._engine = engine

    def bind(self, sizes: Mapping[str, int], shared: Mapping[str, Buffer] = {}) -> "TensorRTBinding":
        """An execution context with every shape and address set for these sizes; see `Engine.bind`."""
        if self._engine is None:
            raise LatentRTError(f"{self.spec.name}: the engine is closed")
        self.spec.check(sizes)
        check_shared(self.spec, sizes, shared)
        self.backend.log.errors.clear()
        return TensorRTBinding(self.backend, self.spec, self._create_context(), sizes, shared)

    def _create_context(self) -> Any:
        """Create an execution context for which we provide activation memory and capture CUDA graphs."""
        trt = self.backend.trt
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.backend.kernels is None:
            context = self._engine.create_execution_context(strategy)
        else:
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
            self.backend.kernels.attach(config)
            context = self._engine.create_execution_context(config)
        if context is None:
            raise failure(self.backend, self.spec, "cannot be prepared")
        return context

    def close(self) -> None:
        """Release the weights; they leave the GPU with the last binding. Closing twice is allowed."""
        self._engine = None


class TensorRTBinding:
    """One execution context and its buffers; implements `Binding`."""

    def __init__(
        self,
        backend: TensorRTBackend,
        spec: ComponentSpec,
        context: Any,
        sizes: Mapping[str, int],
        shared: Mapping[str, Buffer],
    ):
        self._backend = backend
        self._spec = spec
        self._context = context
        self._set_shapes(sizes)
        self.buffers = {
            port.name: shared.get(port.name) or DeviceBuffer(port.shape(sizes), port.numpy_dtype, backend.stream)
            for port in spec.ports
        }
        for name, buffer in self.buffers.items():
            self._require(context.set_tensor_address(name, buffer.pointer), f"cannot bind {name}")
        self._workspace = backend.workspace(context.update_device_memory_size_for_shapes())
        context.set_device_memory(self._workspace.pointer, self._workspace.nbytes)

    def _set_shapes(self, sizes: Mapping[str, int]) -> None:
        """Set the inputs' shapes and check that TensorRT computes the same shapes for the outputs as the spec."""
        for port in self._spec.inputs:
            shape = port.shape(sizes)
            self._require(self._context.set_input_shape(port.name, shape), f"refuses {port.name} {list(shape)}")
        for port in self._spec.outputs:
            found, shape = tuple(self._context.get_tensor_shape(port.name)), port.shape(sizes)
            self._require(found == shape, f"computes {port.name} {list(found)}, needed {list(shape)}")

    def run(self) -> None:
        """Enqueue one inference on the backend's stream."""
        self._require(self._context.execute_async_v3(self._backend.stream.handle), "did not run")

    def _require(self, done: bool, what: str) -> None:
        if not done:
            raise failure(self._backend, self._spec, what)


def failure(backend: TensorRTBackend, spec: ComponentSpec, what: str) -> BackendError:
    """The error for work that TensorRT refuses, with the first cause that it logged."""
    cause = first_error(backend.log, "TensorRT gave no reason")
    return BackendError(f"{spec.name}: {backend.name} {what}: {cause}")
