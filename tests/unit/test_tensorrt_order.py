"""The order of calls in a session with TensorRT and with TensorRT-RTX, as their documentation has it.

The runner works on stand-ins of the real classes and of CUDA, which write down every call. Sources, in NVIDIA's
documentation of both products: "How TensorRT Works" (object lifetimes, memory, threads), "Performing Inference" (shapes
before addresses, memory of one's own), "CUDA Graphs" (one inference after shapes were set, then the capture).
"""

import gc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cuda_stand_in import StandInCuda
from tensorrt_stand_ins import StandInModule

from latentrt.runtime.backends import tensorrt as runner_module
from latentrt.runtime.backends.tensorrt import TensorRTBackend
from latentrt.runtime.bundle.specs import ComponentSpec, Dim, port

BACKENDS = {"tensorrt_rtx": "tensorrt-rtx", "tensorrt_lean": "tensorrt"}
SPEC = ComponentSpec(
    "decoder",
    (port("latent", "float16", "images", 4),),
    (port("image", "float16", "images", 3),),
    {"images": Dim("images", 1, 1, 4)},
)
SIZES = {"images": 2}
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
BOUND = [
    # Inputs have shapes before outputs are asked for theirs, and before the memory for these shapes is.
    "IExecutionContext.set_input_shape",
    "IExecutionContext.get_tensor_shape",
    "cudaMalloc",
    "cudaMalloc",
    "IExecutionContext.set_tensor_address",
    "IExecutionContext.set_tensor_address",
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


@pytest.fixture(params=list(BACKENDS))
def module(request: pytest.FixtureRequest) -> ModuleType:
    return pytest.importorskip(request.param)


@pytest.fixture
def journal(gpu: StandInCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, ...]]:
    """Every call to TensorRT and CUDA."""
    monkeypatch.setenv("LATENTRT_HOME", str(tmp_path / "cache"))
    (tmp_path / "decoder.engine").write_bytes(b"plan")
    return gpu.calls


@pytest.fixture
def backend(module: ModuleType, journal: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> TensorRTBackend:
    answers = {
        "IExecutionContext.get_tensor_shape": lambda name: (SIZES["images"], 3),
        "IExecutionContext.update_device_memory_size_for_shapes": lambda: 1000,
        "IRuntimeCache.serialize": lambda: b"kernels",
    }
    stand_in = StandInModule(module, answers, journal)
    monkeypatch.setattr(runner_module, "load_module", lambda _name: stand_in)
    journal.clear()
    return TensorRTBackend(BACKENDS[module.__name__], "cuda:0")


def names(journal: list[tuple[Any, ...]]) -> list[str]:
    """What was called since the last time, but for questions, marks, and what may be done at any time."""
    found = [name for name, *_ in journal if name not in QUESTIONS and name != "cudaSetDevice"]
    journal.clear()
    return found


def test_a_session_from_the_plan_to_its_end(
    backend: TensorRTBackend, journal: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    engine = backend.load(SPEC, tmp_path / "decoder.engine")
    opened = names(journal)
    assert opened[-2:] == LOADED
    binding = engine.bind(SIZES)
    assert names(journal) == CONTEXT[backend.name] + BOUND
    step = backend.record(binding.run)
    step()
    assert names(journal) == WARM + SAVED[backend.name] + ASKED[backend.name] + CAPTURED
    for _ in range(STEPS):
        step()
    assert names(journal) == LAUNCHED * STEPS
    del step
    gc.collect()
    assert names(journal) == ["cudaGraphExecDestroy"], "before the memory and the context that it uses"
    engine.close()
    assert names(journal) == [], "the context needs the engine"
    backend.close()
    assert names(journal) == ["cudaStreamSynchronize", *SAVED[backend.name], *CLOSED]
    backend.close()
    assert "Destroy" not in "".join(names(journal))
    del binding
    gc.collect()
    assert [name for name in names(journal) if name != "~IRuntimeCache"] == ["cudaFree"] * 2


def test_an_engine_that_nobody_uses_goes_when_it_is_closed(
    backend: TensorRTBackend, journal: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    engine = backend.load(SPEC, tmp_path / "decoder.engine")
    binding = engine.bind(SIZES)
    names(journal)
    del binding
    gc.collect()
    assert names(journal) == ["~IExecutionContext", "cudaFree", "cudaFree"]
    engine.close()
    assert names(journal) == ["~ICudaEngine"]


def test_threads_share_no_object_but_the_logger(
    module: ModuleType, backend: TensorRTBackend, journal: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    """A context, and its runtime, is for one thread at a time: every backend has its own."""

    def work() -> TensorRTBackend:
        own = TensorRTBackend(backend.name, "cuda:0")
        step = own.record(own.load(SPEC, tmp_path / "decoder.engine").bind(SIZES).run)
        for _ in range(STEPS):
            step()
        return own

    names(journal)
    others = []
    for _ in range(2):  # one after the other, as the stand-in of CUDA holds one capture
        with ThreadPoolExecutor(1) as thread:
            others.append(thread.submit(work).result())
    called = Counter(names(journal))
    for name in ("Runtime", "Runtime.deserialize_cuda_engine", "ICudaEngine.create_execution_context"):
        assert called[name] == 2, name
    assert called["cudaGraphLaunch"] == 2 * (STEPS - 1)
    first, second = others
    assert first.stream is not second.stream
    assert first.log is second.log is backend.log
