"""The runner: what it asks of TensorRT, what it answers where TensorRT refuses, and its one block of memory."""

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_stand_in import StandInCuda
from graph_bundles import LIMITS
from tensorrt_runner import SIZES, StandInTensorRT, decoder

from latentrt.runtime.backends import cuda_memory
from latentrt.runtime.backends.tensorrt import TensorRTBackend
from latentrt.runtime.errors import BackendError, LatentRTError, RequestError, StaleBuildError


def test_runner(tensorrt: StandInTensorRT, gpu: StandInCuda, tmp_path: Path) -> None:
    engine = tensorrt.open()
    binding = engine.bind(SIZES)
    buffers = binding.buffers
    assert {name: buffer.shape for name, buffer in buffers.items()} == {
        "latent": (1, 4, 9, 16),
        "image": (1, 72, 128, 3),
        "magnitude": (1,),
    }
    values = np.random.default_rng(0).standard_normal((1, 4, 9, 16))
    buffers["latent"].write(values)
    binding.run()
    np.testing.assert_array_equal(buffers["latent"].numpy(), values.astype("float16"))
    np.testing.assert_array_equal(buffers["latent"].fetch()(), values.astype("float16"))
    assert engine.bind(SIZES).buffers["latent"] is not buffers["latent"]
    engine.close()
    engine.close()
    with pytest.raises(LatentRTError, match="vae_decoder: the engine is closed"):
        engine.bind(SIZES)
    del binding, buffers
    tensorrt.backend.close()
    assert not gpu.memory
    assert {"IExecutionContext.execute_async_v3", "IExecutionContext.set_device_memory"} <= tensorrt.stand_in.used
    kernels = list((tmp_path / "kernels").glob("*.cache"))
    assert [file.read_bytes() for file in kernels] == ([b"kernels"] if tensorrt.backend.name == "tensorrt-rtx" else [])


def test_runner_shares_buffers(tensorrt: StandInTensorRT) -> None:
    addresses: dict[str, int] = {}
    engine = tensorrt.open(
        IExecutionContext__set_tensor_address=lambda name, memory: addresses.update({name: memory}) or True,
    )
    latent = cuda_memory.DeviceBuffer((1, 4, 9, 16), np.float16, tensorrt.backend.stream)
    buffers = engine.bind(SIZES, {"latent": latent}).buffers
    assert buffers["latent"] is latent
    assert addresses == {name: buffer.pointer for name, buffer in buffers.items()}
    wrong = cuda_memory.DeviceBuffer((1, 4, 9, 16), np.float32, tensorrt.backend.stream)
    with pytest.raises(BackendError, match=r"latent needs a buffer float16\[1, 4, 9, 16\], the shared one is float32"):
        engine.bind(SIZES, {"latent": wrong})


@pytest.mark.parametrize(
    ("what", "answer", "message"),
    [
        ("IExecutionContext__set_input_shape", lambda name, shape: False, r"refuses latent \[1, 4, 9, 16\]"),
        ("IExecutionContext__get_tensor_shape", lambda name: (1,), r"computes image \[1\], needed \[1, 72, 128, 3\]"),
        ("IExecutionContext__set_tensor_address", lambda name, memory: False, "cannot bind latent"),
        (
            "IExecutionContext__update_device_memory_size_for_shapes",
            lambda: 0,
            "vae_decoder: .* does not say how much memory it needs",
        ),
        ("IExecutionContext__execute_async_v3", lambda stream: False, "vae_decoder: .* did not run"),
        ("ICudaEngine__create_execution_context", lambda _: None, "vae_decoder: .* cannot be prepared"),
        ("Runtime__deserialize_cuda_engine", lambda plan: None, "cannot load .*Rebuild with: build-engine"),
    ],
)
def test_runner_failures(tensorrt: StandInTensorRT, what: str, answer: Any, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        tensorrt.open(**{what: answer}).bind(SIZES).run()


def test_an_engine_without_activations_needs_no_memory(tensorrt: StandInTensorRT) -> None:
    engine = tensorrt.open(
        IExecutionContext__update_device_memory_size_for_shapes=lambda: 0,
        ICudaEngine__device_memory_size_v2=lambda _: 0,
    )
    engine.bind(SIZES).run()


def test_a_binding_uses_the_tightest_profile_and_an_engine_of_one_asks_for_none(tensorrt: StandInTensorRT) -> None:
    chosen: list[int] = []
    order: list[str] = []
    answers = {
        "IExecutionContext__set_optimization_profile_async": lambda number, stream: (
            chosen.append(number) or order.append("profile") or number < 2
        ),
        "IExecutionContext__set_input_shape": lambda name, shape: order.append("shape") or True,
        "IExecutionContext__set_tensor_address": lambda name, memory: order.append("address") or True,
        "IExecutionContext__update_device_memory_size_for_shapes": lambda: order.append("size") or 1,
        "IExecutionContext__set_device_memory": lambda memory, size: order.append("memory"),
        "IExecutionContext__execute_async_v3": lambda stream: order.append("run") or True,
    }
    limits = LIMITS.replace(profiles=["64:128:192x64:128:192", "128x72", "64x64"])
    for served, expected in ((limits, [1]), (LIMITS, [])):
        chosen.clear()
        order.clear()
        engine = tensorrt.open(spec=decoder(served), **answers)
        engine.bind(SIZES).run()
        assert chosen == expected
        assert order == [*["profile"] * len(expected), "shape", *["address"] * 3, "size", "memory", "run"]
        tensorrt.backend.close()
    engine = tensorrt.open(spec=decoder(limits), **answers)
    with pytest.raises(BackendError, match=r"^vae_decoder: \S+ refuses its optimisation profile 2: "):
        engine.bind({"vae_images": 1, "latent_height": 8, "latent_width": 8})


def test_a_step_is_captured_only_when_tensorrt_says_that_it_can_be(
    rtx: StandInTensorRT, gpu: StandInCuda, caplog: pytest.LogCaptureFixture
) -> None:
    ready: list[bool] = []
    engine = rtx.open(IExecutionContext__is_stream_capturable=lambda stream: bool(ready))
    binding, unused = engine.bind(SIZES), engine.bind(SIZES)
    step = rtx.backend.record(binding.run)
    for _ in range(3):
        step()
    assert "cudaStreamBeginCapture" not in [name for name, *_ in gpu.calls]
    (record,) = caplog.records
    assert "vae_decoder: tensorrt-rtx says that it cannot be captured" in record.message
    ready.append(True)
    for _ in range(3):
        step()
    assert [name for name, *_ in gpu.calls].count("cudaStreamBeginCapture") == 1
    assert [name for name, *_ in gpu.calls].count("cudaGraphLaunch") == 2
    assert unused.obstacle() is None


def test_there_is_one_workspace_and_graphs_follow_it(tensorrt: StandInTensorRT, gpu: StandInCuda) -> None:
    """A larger one takes the old one's place: no block is kept, every context moves, and graphs are captured anew."""
    sizes, given = [1000, 500, 9000], []
    engine = tensorrt.open(
        IExecutionContext__update_device_memory_size_for_shapes=lambda: sizes.pop(0),
        IExecutionContext__set_device_memory=lambda pointer, size: given.append((pointer, size)),
    )

    def blocks() -> list[tuple[int, int]]:
        return [(pointer, len(block)) for pointer, block in gpu.memory.items() if len(block) in (1000, 500, 9000)]

    def graphs() -> int:
        return [name for name, *_ in gpu.calls].count("cudaGraphInstantiate")

    first = engine.bind(SIZES)
    step = tensorrt.backend.record(first.run)
    for _ in range(3):
        step()
    second = engine.bind(SIZES)
    step()
    assert (given, graphs()) == (blocks() * 2, 1)
    third = engine.bind(SIZES)
    assert given[2:] == blocks() * 2 + blocks()
    assert [size for _, size in blocks()] == [9000]
    for _ in range(2):
        step()
        assert (graphs(), len(gpu.graphs)) == (2, 1)
    del second, third


def test_a_workspace_that_does_not_fit_leaves_the_old_one(tensorrt: StandInTensorRT, gpu: StandInCuda) -> None:
    sizes, given = [1000, 1 << 40], []
    engine = tensorrt.open(
        IExecutionContext__update_device_memory_size_for_shapes=lambda: sizes.pop(0),
        IExecutionContext__set_device_memory=lambda pointer, size: given.append((pointer, size)),
    )
    binding = engine.bind(SIZES)
    with pytest.raises(BackendError, match=r"cuda:0: 1099\.51 GB asked, .* Ask for fewer images"):
        engine.bind(SIZES)
    assert [size for _, size in given] == [1000, 1000]
    assert given[-1][0] in gpu.memory
    binding.run()


@pytest.mark.parametrize("closed", [True, False])
def test_contexts_go_before_engines_the_runtime_and_the_logger(tensorrt: StandInTensorRT, closed: bool) -> None:
    """By `close`, or by the finalizers that run at the process's end, newest first."""
    engine = tensorrt.open()
    binding = engine.bind(SIZES)
    held = ("IExecutionContext", "ICudaEngine", "Runtime")
    assert not set(held) & set(tensorrt.stand_in.gone)
    if closed:
        tensorrt.backend.close()
        with pytest.raises(LatentRTError, match="vae_decoder: the engine is closed"):
            binding.run()
    else:
        finalizers = [binding._drop, engine._drop, tensorrt.backend._drop_runtime]
        numbers = [weakref.finalize._registry[one].index for one in finalizers]  # type: ignore[attr-defined]
        assert numbers == sorted(numbers, reverse=True)
        assert all(one.atexit for one in finalizers)
        for one in finalizers:
            one()
    assert tuple(name for name in tensorrt.stand_in.gone if name in held) == held


def test_an_engine_of_another_version_is_stale(tensorrt: StandInTensorRT, tmp_path: Path) -> None:
    def refuse(_plan: Any) -> None:
        backend.log.log(tensorrt.module.ILogger.ERROR, "Version tag does not match: 238, 239")

    tensorrt.use(Runtime__deserialize_cuda_engine=refuse)
    backend = TensorRTBackend(tensorrt.name, "cuda:0")
    (tmp_path / "old.engine").write_bytes(b"plan")
    with pytest.raises(StaleBuildError, match=r"cannot load .*old.engine: Version tag does not match.*Rebuild with"):
        backend.load(decoder(), tmp_path / "old.engine")
    assert tensorrt.stand_in.used == {"Runtime.deserialize_cuda_engine"}


def test_sizes_are_checked_before_anything_is_set(tensorrt: StandInTensorRT) -> None:
    engine = tensorrt.open()
    with pytest.raises(RequestError, match="latent_width 99 is outside 8 to 24"):
        engine.bind({**SIZES, "latent_width": 99})


def test_a_gpu_that_tensorrt_rtx_does_not_serve(rtx: StandInTensorRT, gpu: StandInCuda) -> None:
    rtx.use()
    gpu.capability = (9, 0)
    with pytest.raises(BackendError, match=r"tensorrt-rtx does not serve the .* \(compute capability 9.0\)"):
        TensorRTBackend(rtx.name)
