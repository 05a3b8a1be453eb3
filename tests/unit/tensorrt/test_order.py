"""The order of calls in a session with TensorRT and with TensorRT-RTX, as their documentation has it.

The runner works on stand-ins of the real classes and of CUDA, which write down every call. Sources, in NVIDIA's
documentation of both products: "How TensorRT Works" (object lifetimes, memory, threads), "Performing Inference" (shapes
before addresses, memory of one's own), "CUDA Graphs" (one inference after shapes were set, then the capture).
"""

import gc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from graph_bundles import LIMITS
from tensorrt_runner import SIZES, StandInTensorRT, decoder

from latentrt.runtime.backends.tensorrt import TensorRTBackend

STEPS = 3
QUESTIONS = ("cudaGetErrorString", "cudaMemGetInfo", "cudaGraphGetNodes", "cudaGraphNodeGetType")

LOADED = ["Runtime", "Runtime.deserialize_cuda_engine"]
CONTEXT = {
    "tensorrt": ["ICudaEngine.create_execution_context"],
    "tensorrt-rtx": [
        # All that a context is told comes before it is made.
        "ICudaEngine.create_runtime_config",
        "IRuntimeConfig.set_execution_context_allocation_strategy",
        "IRuntimeConfig.create_runtime_cache",
        "IRuntimeConfig.set_runtime_cache",
        "ICudaEngine.create_execution_context",
        "~IRuntimeConfig",
    ],
}
BUFFERS = 3
"""The decoder's latent, image and magnitude."""

PROFILE = ["IExecutionContext.set_optimization_profile_async"]
"""Only an engine of several is told, and before any shape is set."""

BOUND = [
    # Inputs have shapes before outputs are asked for theirs, and before the memory for these shapes is.
    "IExecutionContext.set_input_shape",
    *["IExecutionContext.get_tensor_shape"] * 2,
    *["cudaMalloc"] * BUFFERS,
    *["IExecutionContext.set_tensor_address"] * BUFFERS,
    "IExecutionContext.update_device_memory_size_for_shapes",
    "cudaStreamSynchronize",
    "cudaMalloc",
    "IExecutionContext.set_device_memory",
]
WARM = ["IExecutionContext.execute_async_v3"]
SAVED = {"tensorrt": [], "tensorrt-rtx": ["IRuntimeCache.serialize"]}
ASKED = {"tensorrt": [], "tensorrt-rtx": ["IExecutionContext.is_stream_capturable"]}
CAPTURED = [
    "cudaStreamBeginCapture",
    "IExecutionContext.execute_async_v3",
    "cudaStreamEndCapture",
    "cudaGraphInstantiate",
    "cudaGraphDestroy",
]
LAUNCHED = ["cudaGraphLaunch"]
CLOSED = ["~IExecutionContext", "~ICudaEngine", "~Runtime", "cudaFree", "cudaStreamSynchronize", "cudaStreamDestroy"]
"""Contexts, engine, runtime; then the workspace. The logger lives as long as the process."""


def names(tensorrt: StandInTensorRT) -> list[str]:
    """What was called since the last time, but for questions and the choice of a device, allowed at any time."""
    found = [name for name, *_ in tensorrt.gpu.calls if name not in QUESTIONS and name != "cudaSetDevice"]
    tensorrt.gpu.calls.clear()
    return found


@pytest.mark.parametrize("profiles", [1, 2])
def test_a_session_from_the_plan_to_its_end(tensorrt: StandInTensorRT, profiles: int) -> None:
    limits = LIMITS if profiles == 1 else LIMITS.replace(profiles=["64:128:192x64:128:192", "128x72"])
    engine = tensorrt.open(spec=decoder(limits))
    backend = tensorrt.backend
    assert names(tensorrt)[-2:] == LOADED
    binding = engine.bind(SIZES)
    assert names(tensorrt) == CONTEXT[backend.name] + PROFILE * (profiles - 1) + BOUND
    step = backend.record(binding.run)
    step()
    assert names(tensorrt) == WARM + SAVED[backend.name] + ASKED[backend.name] + CAPTURED
    for _ in range(STEPS):
        step()
    assert names(tensorrt) == LAUNCHED * STEPS
    del step
    gc.collect()
    assert names(tensorrt) == ["cudaGraphExecDestroy"], "before the memory and the context that it uses"
    engine.close()
    assert names(tensorrt) == [], "the context needs the engine"
    backend.close()
    assert names(tensorrt) == ["cudaStreamSynchronize", *SAVED[backend.name], *CLOSED]
    backend.close()
    assert "Destroy" not in "".join(names(tensorrt))
    del binding
    gc.collect()
    assert [name for name in names(tensorrt) if name != "~IRuntimeCache"] == ["cudaFree"] * BUFFERS


def test_an_engine_that_nobody_uses_goes_when_it_is_closed(tensorrt: StandInTensorRT) -> None:
    engine = tensorrt.open()
    binding = engine.bind(SIZES)
    names(tensorrt)
    del binding
    gc.collect()
    assert names(tensorrt) == ["~IExecutionContext", *["cudaFree"] * BUFFERS]
    engine.close()
    assert names(tensorrt) == ["~ICudaEngine"]


def test_threads_share_no_object_but_the_logger(tensorrt: StandInTensorRT, tmp_path: Path) -> None:
    """A context, and its runtime, is for one thread at a time: every backend has its own."""

    def work() -> TensorRTBackend:
        own = TensorRTBackend(tensorrt.name, "cuda:0")
        step = own.record(own.load(decoder(), tmp_path / "decoder.engine").bind(SIZES).run)
        for _ in range(STEPS):
            step()
        return own

    tensorrt.open()
    names(tensorrt)
    others = []
    for _ in range(2):  # one after the other, as the stand-in of CUDA holds one capture
        with ThreadPoolExecutor(1) as thread:
            others.append(thread.submit(work).result())
    called = Counter(names(tensorrt))
    for name in ("Runtime", "Runtime.deserialize_cuda_engine", "ICudaEngine.create_execution_context"):
        assert called[name] == 2, name
    assert called["cudaGraphLaunch"] == 2 * (STEPS - 1)
    first, second = others
    assert first.stream is not second.stream
    assert first.log is second.log is tensorrt.backend.log
