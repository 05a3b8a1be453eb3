"""Runs TensorRT and TensorRT-RTX engines on CUDA memory: one code path for both modules.

Buffers and addresses are set when sizes change; `run` only enqueues. Activation memory is one block per backend, as its
engines run one after the other on one stream.
"""

import mmap
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from latentrt.runtime.backends.base import Buffer
from latentrt.runtime.backends.cuda import DeviceBuffer, Stream, describe_device
from latentrt.runtime.backends.kernel_cache import KernelCache
from latentrt.runtime.backends.targets import load_module, runnable_targets
from latentrt.runtime.backends.tensorrt_log import first_error, tensorrt_log
from latentrt.runtime.errors import BackendError, StaleBuildError
from latentrt.runtime.specs import ComponentSpec

MISMATCH = re.compile(r"version|compatib|compute capability|platform|magic|safety|serialization", re.IGNORECASE)
"""Words of the errors with which TensorRT refuses an engine that was built for something else."""


class TensorRTBackend:
    """One GPU and one stream for engines of `tensorrt` or `tensorrt-rtx`; used by one thread of work.

    Raises:
        BackendError: the library, cuda-python, the driver or the GPU is missing, or TensorRT does not serve the GPU.
    """

    def __init__(self, name: str, device: str = "cuda:0"):
        self.name = name
        self.trt = load_module(name)
        index = int(device.partition(":")[2] or 0)
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

    def load(self, spec: ComponentSpec, path: Path) -> "TensorRTEngine":
        """Load an engine file.

        Raises:
            StaleBuildError: the engine was built for another version or GPU.
            BackendError: TensorRT cannot load it for another reason.
        """
        self.stream.activate()
        self.log.errors.clear()
        # Mapped, not read: TensorRT copies the weights to the GPU, and the host need not hold them as well.
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

        When it grows, the block before it lives on until the last engine that uses it is bound anew.
        """
        if self._workspace is None or self._workspace.nbytes < size:
            self._workspace = DeviceBuffer((size,), np.uint8, self.stream)
        return self._workspace

    def synchronize(self) -> None:
        """Wait for all enqueued work."""
        self.stream.synchronize()

    def close(self) -> None:
        """Give back everything the backend holds; compiled kernels are saved. Engines must be closed before."""
        if self.kernels is not None:
            self.kernels.save()
        self._workspace = None
        self.stream.close()


class TensorRTEngine:
    """One component as an execution context with its buffers bound; see `latentrt.runtime.backends.base.Engine`."""

    def __init__(self, backend: TensorRTBackend, spec: ComponentSpec, engine: Any):
        self.backend = backend
        self.spec = spec
        self._engine = engine
        self._context = self._create_context()
        self._sizes: dict[str, int] = {}
        self._shared: dict[str, Buffer] = {}
        self._buffers: dict[str, Buffer] = {}
        self._workspace: DeviceBuffer | None = None

    def _create_context(self) -> Any:
        """An execution context whose activation memory we provide."""
        trt = self.backend.trt
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self.backend.log.errors.clear()
        if self.backend.kernels is None:
            context = self._engine.create_execution_context(strategy)
        else:
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            self.backend.kernels.attach(config)
            context = self._engine.create_execution_context(config)
        if context is None:
            raise self._failure("cannot be prepared")
        return context

    def bind(self, sizes: Mapping[str, int], shared: Mapping[str, Buffer] = {}) -> Mapping[str, Buffer]:
        """Set every shape and address for these sizes; see `Engine.bind`."""
        sizes = {name: sizes[name] for name in self.spec.dims if name in sizes}
        same = shared.keys() == self._shared.keys() and all(shared[name] is self._shared[name] for name in shared)
        if self._buffers and sizes == self._sizes and same:
            return self._buffers
        self.spec.check(sizes)
        # The old buffers go before the new ones come, so that both need not fit.
        self._buffers, self._sizes, self._shared = {}, {}, dict(shared)
        self.backend.log.errors.clear()
        self._set_shapes(sizes)
        buffers = self._allocate(sizes)
        for name, buffer in buffers.items():
            self._require(self._context.set_tensor_address(name, buffer.pointer), f"cannot bind {name}")
        size = self._context.update_device_memory_size_for_shapes()
        self._workspace = self.backend.workspace(size)
        self._context.set_device_memory(self._workspace.pointer, self._workspace.nbytes)
        self._buffers, self._sizes = buffers, sizes
        return self._buffers

    def _set_shapes(self, sizes: Mapping[str, int]) -> None:
        """Set the inputs' shapes and check that TensorRT computes the outputs' shapes as the spec does."""
        for port in self.spec.inputs:
            shape = port.shape(sizes)
            self._require(self._context.set_input_shape(port.name, shape), f"refuses {port.name} {list(shape)}")
        for port in self.spec.outputs:
            found, shape = tuple(self._context.get_tensor_shape(port.name)), port.shape(sizes)
            self._require(found == shape, f"computes {port.name} {list(found)}, needed {list(shape)}")

    def _allocate(self, sizes: Mapping[str, int]) -> dict[str, Buffer]:
        """The shared buffers where given, new ones for the other ports."""
        buffers: dict[str, Buffer] = {}
        for port in self.spec.ports:
            shape, dtype = port.shape(sizes), port.numpy_dtype
            buffer = self._shared.get(port.name)
            if buffer is not None and (buffer.shape, buffer.dtype) != (shape, dtype):
                raise BackendError(
                    f"{self.spec.name}: {port.name} needs a buffer {dtype}{list(shape)}, the shared one is "
                    f"{buffer.dtype}{list(buffer.shape)}"
                )
            buffers[port.name] = DeviceBuffer(shape, dtype, self.backend.stream) if buffer is None else buffer
        return buffers

    def run(self) -> None:
        """Enqueue one inference on the backend's stream."""
        if not self._context.execute_async_v3(self.backend.stream.handle):
            raise self._failure("did not run")

    def close(self) -> None:
        """Give back the engine's memory; it cannot run again. Closing twice is allowed."""
        self._buffers, self._shared, self._sizes, self._workspace = {}, {}, {}, None
        # In this order: the context refers to the engine.
        self._context = None
        self._engine = None

    def _require(self, done: bool, what: str) -> None:
        if not done:
            raise self._failure(what)

    def _failure(self, what: str) -> BackendError:
        cause = first_error(self.backend.log, "TensorRT gave no reason")
        return BackendError(f"{self.spec.name}: {self.backend.name} {what}: {cause}")
