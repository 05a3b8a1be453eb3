"""Runs TensorRT and TensorRT-RTX engines on CUDA memory: one code path for both modules.

A binding is an execution context whose shapes and addresses are set once; `run` only enqueues, and the loop's step is
captured as one CUDA graph. Activation memory is one block per backend, as its engines run one after the other on one
stream.

TensorRT's objects call the logger as they go, so contexts go before engines, these before the runtime, and all of them
before the logger, also where nobody closes the backend: `weakref.finalize` runs before modules are torn down, newest
first.
"""

import mmap
import re
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from latentrt.runtime.backends.base import Buffer, check_shared
from latentrt.runtime.backends.cuda import Event, Stream, describe_device, device_index
from latentrt.runtime.backends.cuda_graph import Recorder
from latentrt.runtime.backends.cuda_memory import DeviceBlock, DeviceBuffer
from latentrt.runtime.backends.device_wide import device_wide
from latentrt.runtime.backends.kernel_cache import KernelCache
from latentrt.runtime.backends.registry import load_module, runnable_targets
from latentrt.runtime.backends.tensorrt_log import first_error, tensorrt_log
from latentrt.runtime.bundle.specs import ComponentSpec, Port
from latentrt.runtime.errors import BackendError, LatentRTError, StaleBuildError, told_as

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
        self._runtime = [self.trt.Runtime(self.log)]
        self._drop_runtime = weakref.finalize(self, self._runtime.clear)
        self.kernels = KernelCache(self.trt, self.gpu) if name == "tensorrt-rtx" else None
        self.recorder = Recorder(self.stream, allows_host_copies=True)  # TensorRT says itself what can be captured
        self._workspace: DeviceBuffer | None = None
        self._bindings: weakref.WeakSet[TensorRTBinding] = weakref.WeakSet()
        self._engines: weakref.WeakSet[TensorRTEngine] = weakref.WeakSet()

    def load(self, spec: ComponentSpec, path: Path, *, optimised: bool = True) -> "TensorRTEngine":
        """Load an engine file, which is always optimised.

        Raises:
            StaleBuildError: the engine was built for another version or GPU.
            BackendError: TensorRT cannot load it for another reason.
        """
        self.stream.activate()
        self.log.errors.clear()
        # Mapped, not read: TensorRT copies the weights to the GPU, so the host need not hold them as well.
        with (
            told_as(BackendError, path, "read"),
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan,
            device_wide(),
        ):
            engine = self._runtime[0].deserialize_cuda_engine(plan)
        if engine is None:
            cause = first_error(self.log, "TensorRT gave no reason")
            remedy = f"Rebuild with: build-engine BUNDLE --backend {self.name}"
            kind = StaleBuildError if MISMATCH.search(cause) else BackendError
            raise kind(f"{spec.name}: {self.name} {self.trt.__version__} cannot load {path}: {cause}. {remedy}")
        if self.kernels is not None:
            self.kernels.keep_with(path.parent)
        loaded = TensorRTEngine(self, spec, engine)
        self._engines.add(loaded)
        return loaded

    def adopt(self, binding: "TensorRTBinding", size: int) -> None:
        """Give a binding at least `size` bytes of activation memory: one block, shared by all of this backend.

        Where a larger block is needed, it replaces the old one, and the other bindings move to it.
        """
        if self._workspace is None or self._workspace.nbytes < size:
            self._workspace = self._grow(size)
        binding.use_workspace(self._workspace)
        self._bindings.add(binding)

    def _grow(self, size: int) -> DeviceBuffer:
        """Replace the workspace; the old one is given back first, as the device may not hold both.

        Raises:
            BackendError: the device has no such block; one of the old size is back in place.
        """
        before, self._workspace = self._workspace, None
        self.stream.synchronize()
        if before is not None:
            before.close()
        try:
            return self._move_to(DeviceBuffer((size,), np.uint8, self.stream))
        except BackendError:
            if before is not None:
                self._workspace = self._move_to(DeviceBuffer(before.shape, np.uint8, self.stream))
            raise

    def _move_to(self, block: DeviceBuffer) -> DeviceBuffer:
        """Make every binding compute in this block."""
        self.recorder.moves += 1
        for binding in self._bindings:
            binding.use_workspace(block)
        return block

    def block(self, ports: Iterable[Port], sizes: Mapping[str, int]) -> DeviceBlock:
        """Memory for several ports, written by one copy."""
        return DeviceBlock(ports, sizes, self.stream)

    def activate(self) -> None:
        """Make the GPU the calling thread's current one."""
        self.stream.activate()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """The work as one CUDA graph, captured when it has run once."""
        return self.recorder.record(work)

    def ran(self, binding: "TensorRTBinding", first: bool) -> None:
        """Note that a binding ran; its first inference has compiled its kernels."""
        self.recorder.ran(binding)
        if first and self.kernels is not None:
            self.kernels.save()

    def mark(self) -> Event:
        """An event on the stream."""
        return self.stream.mark()

    def synchronize(self) -> None:
        """Wait for all enqueued work."""
        self.stream.synchronize()

    def close(self) -> None:
        """Save compiled kernels and free everything that the backend holds: contexts, engines, runtime, memory."""
        self.stream.synchronize()  # what still runs uses all of it
        if self.kernels is not None:
            self.kernels.save()
        for binding in self._bindings:
            binding.close()
        for engine in self._engines:
            engine.close()
        self._drop_runtime()
        self._workspace = None
        self.stream.close()


class TensorRTEngine:
    """One component's weights on the GPU; implements `Engine`."""

    def __init__(self, backend: TensorRTBackend, spec: ComponentSpec, engine: Any):
        self.backend = backend
        self.spec = spec
        self._engine = [engine]
        self._drop = weakref.finalize(self, self._engine.clear)

    def bind(self, sizes: Mapping[str, int], shared: Mapping[str, Buffer] = {}) -> "TensorRTBinding":
        """An execution context with every shape and address set for these sizes; see `Engine.bind`."""
        if not self._engine:
            raise LatentRTError(f"{self.spec.name}: the engine is closed")
        self.spec.check(sizes)
        check_shared(self.spec, sizes, shared)
        self.backend.log.errors.clear()
        (engine,) = self._engine
        return TensorRTBinding(self.backend, self.spec, engine, self._create_context(engine), sizes, shared)

    def _create_context(self, engine: Any) -> Any:
        """Create an execution context for which we provide activation memory and capture CUDA graphs."""
        trt = self.backend.trt
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.backend.kernels is None:
            context = engine.create_execution_context(strategy)
        else:
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
            self.backend.kernels.attach(config)
            context = engine.create_execution_context(config)
        if context is None:
            raise failure(self.backend, self.spec, "cannot be prepared")
        return context

    def close(self) -> None:
        """Release the weights; they leave the GPU with the last binding. Closing twice is allowed."""
        self._drop()


class TensorRTBinding:
    """One execution context and its buffers; implements `Binding`."""

    def __init__(
        self,
        backend: TensorRTBackend,
        spec: ComponentSpec,
        engine: Any,
        context: Any,
        sizes: Mapping[str, int],
        shared: Mapping[str, Buffer],
    ):
        self._backend = backend
        self._spec = spec
        self._held = [engine, context]
        self._first = True
        if len(spec.profiles) > 1:
            number = spec.profile_of(sizes)
            chosen = context.set_optimization_profile_async(number, backend.stream.handle)
            self._require(chosen, f"refuses its optimisation profile {number}")
        self._set_shapes(sizes)
        self.buffers = {
            port.name: shared.get(port.name) or DeviceBuffer(port.shape(sizes), port.numpy_dtype, backend.stream)
            for port in spec.ports
        }
        for name, buffer in self.buffers.items():
            self._require(context.set_tensor_address(name, buffer.pointer), f"cannot bind {name}")
        size = context.update_device_memory_size_for_shapes()
        # 0 is how it reports an error, and the truth for an engine that needs no such memory for any shape.
        self._require(size > 0 or engine.device_memory_size_v2 == 0, "does not say how much memory it needs")
        # Last, so that at the process's end the context goes before the buffers.
        self._drop = weakref.finalize(self, drop_newest_first, self._held)
        backend.adopt(self, size)

    @property
    def _context(self) -> Any:
        if not self._held:
            raise LatentRTError(f"{self._spec.name}: the engine is closed")
        return self._held[-1]

    def use_workspace(self, workspace: DeviceBuffer) -> None:
        """Compute in this block from now on."""
        if self._held:
            self._context.set_device_memory(workspace.pointer, workspace.nbytes)

    def obstacle(self) -> str | None:
        """Why this binding's work cannot be captured now; None where it can, or where the library does not say."""
        ask = getattr(self._context, "is_stream_capturable", None)
        if ask is None or ask(self._backend.stream.handle):
            return None
        return f"{self._spec.name}: {self._backend.name} says that it cannot be captured"

    def suspects(self) -> None:
        """TensorRT names no causes beyond its own errors."""

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
        self._backend.ran(self, self._first)
        self._first = False

    def close(self) -> None:
        """Release the context; the binding cannot run any more. Closing twice is allowed."""
        self._drop()

    def _require(self, done: bool, what: str) -> None:
        if not done:
            raise failure(self._backend, self._spec, what)


def drop_newest_first(held: list[Any]) -> None:
    """Let go of objects of which each needs the one before it."""
    while held:
        held.pop()


def failure(backend: TensorRTBackend, spec: ComponentSpec, what: str) -> BackendError:
    """The error for work that TensorRT refuses, with the first cause that it logged."""
    cause = first_error(backend.log, "TensorRT gave no reason")
    return BackendError(f"{spec.name}: {backend.name} {what}: {cause}")
