"""Device buffers, streams and DLPack capsules, on a stand-in whose device memory is host memory."""

import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cuda_stand_in import StandInCuda

from latentrt.runtime.backends import cuda, cuda_memory, dlpack, targets
from latentrt.runtime.backends.cuda_graph import ATTEMPTS, WARM_UPS, Graph, Recorder
from latentrt.runtime.backends.device_wide import capture_turn, device_wide
from latentrt.runtime.backends.registry import runnable_targets
from latentrt.runtime.bundle.specs import port
from latentrt.runtime.errors import BackendError


def test_values_go_in_and_out(gpu: StandInCuda) -> None:
    stream = cuda.Stream(0)
    values = np.arange(12.0).reshape(3, 4)
    buffer, other = (cuda_memory.DeviceBuffer((3, 4), "float16", stream) for _ in range(2))
    buffer.write(values)
    values += 1
    other.copy_from(buffer)
    np.testing.assert_array_equal(other.numpy(), (values - 1).astype("float16"))
    buffer.write(values.T.copy().T)
    np.testing.assert_array_equal(buffer.numpy(), values.astype("float16"))


def test_memory_is_given_back(gpu: StandInCuda) -> None:
    stream = cuda.Stream(0)
    buffer = cuda_memory.DeviceBuffer((2,), "int64", stream)
    buffer.close()
    buffer.close()
    assert not gpu.memory
    kept = cuda_memory.DeviceBuffer((2,), "int64", stream)
    assert list(gpu.memory) == [kept.pointer]
    del kept
    assert not gpu.memory
    stream.close()
    stream.close()
    assert [name for name, *_ in gpu.calls].count("cudaStreamDestroy") == 1


def test_the_image_is_fetched_without_stopping_the_host(gpu: StandInCuda) -> None:
    stream = cuda.Stream(0)
    buffer = cuda_memory.DeviceBuffer((2, 3), "uint8", stream)
    for number in (1, 2):
        buffer.write(np.full((2, 3), number))
        taken = buffer.fetch()
        gpu.calls.clear()
        values = taken()
        assert [name for name, *_ in gpu.calls] == ["cudaEventSynchronize", "cudaEventDestroy"][: len(gpu.calls)]
        np.testing.assert_array_equal(values, np.full((2, 3), number))
    del buffer, taken
    assert not gpu.memory


BLOCK = (
    port("sample", "float16", "rows", 3),
    port("timestep", "float32", "rows"),
    port("step", "int64", "images"),
    port("text", "bfloat16", "rows", 5),
)
VALUES = {
    "sample": np.arange(6.0).reshape(2, 3),
    "timestep": np.array([0.5, 1.5]),
    "step": np.array([7]),
    "text": np.arange(10.0).reshape(2, 5).T.copy().T,
}


@pytest.fixture
def block(gpu: StandInCuda) -> cuda_memory.DeviceBlock:
    return cuda_memory.DeviceBlock(BLOCK, {"rows": 2, "images": 1}, cuda.Stream(0))


def test_a_block_is_written_by_one_copy_from_page_locked_memory(
    gpu: StandInCuda, block: cuda_memory.DeviceBlock
) -> None:
    gpu.calls.clear()
    block.write(VALUES)
    ((_, target, source, nbytes, *_),) = [call for call in gpu.calls if call[0] == "cudaMemcpyAsync"]
    assert (target in gpu.memory, source in gpu.memory) == (True, True), "both ends were allocated through CUDA"
    assert nbytes == 3 * cuda_memory.ALIGNMENT + 20
    for name, buffer in block.buffers.items():
        assert (buffer.pointer - target) % cuda_memory.ALIGNMENT == 0
        np.testing.assert_array_equal(buffer.numpy(), VALUES[name])


def test_a_part_of_a_block_is_written_alone(gpu: StandInCuda, block: cuda_memory.DeviceBlock) -> None:
    block.write(VALUES)
    gpu.calls.clear()
    block.write({"text": np.ones((2, 5)), "sample": np.ones((2, 3)), "timestep": np.ones(2)})
    copied = [call[3] for call in gpu.calls if call[0] == "cudaMemcpyAsync"]
    assert copied == [cuda_memory.ALIGNMENT + 8, 20], "neighbours go together"
    found = {name: buffer.numpy().ravel().tolist() for name, buffer in block.buffers.items()}
    assert found == {"sample": [1.0] * 6, "timestep": [1.0] * 2, "step": [7], "text": [1.0] * 10}
    with pytest.raises(BackendError, match=r"a buffer of shape \[1\] cannot take values of shape \[2\]"):
        block.write({"step": np.ones(2)})


def test_page_locked_memory_is_filled_again_when_the_copy_is_done(
    gpu: StandInCuda, block: cuda_memory.DeviceBlock
) -> None:
    """The host waits for that only where it has not waited for later work since."""
    block.write(VALUES)
    gpu.calls.clear()
    block.write(VALUES)
    block.buffers["step"].numpy()
    assert [name for name, *_ in gpu.calls if "Synchronize" in name] == ["cudaEventSynchronize"] * 2
    gpu.calls.clear()
    block.write(VALUES)
    assert [name for name, *_ in gpu.calls if "Synchronize" in name] == []


def test_memory_of_a_block_is_given_back_with_its_last_buffer(gpu: StandInCuda) -> None:
    block = cuda_memory.DeviceBlock(BLOCK, {"rows": 2, "images": 1}, cuda.Stream(0))
    block.write(VALUES)
    step = block.buffers["step"]
    step.close()
    del block
    assert step.numpy().tolist() == [7]
    del step
    assert not gpu.memory


class Work:
    """Copies one buffer to another; `calls` counts, `also` is done first."""

    def __init__(self) -> None:
        self.stream = cuda.Stream(0)
        self.source, self.target = (cuda_memory.DeviceBuffer((2,), "int64", self.stream) for _ in range(2))
        self.calls = 0
        self.also: Callable[[], object] = lambda: None

    def __call__(self) -> None:
        self.calls += 1
        self.also()
        self.target.copy_from(self.source)


def count(gpu: StandInCuda, name: str) -> int:
    return [call for call, *_ in gpu.calls].count(name)


def test_work_is_captured_when_it_has_run_and_replayed_from_then_on(gpu: StandInCuda) -> None:
    work = Work()
    recording = Recorder(work.stream).record(work)
    for number in range(5):
        work.source.write(np.full(2, number))
        recording()
        assert work.target.numpy().tolist() == [number, number]
        assert (work.calls, count(gpu, "cudaGraphLaunch")) == (2, number)
        assert recording.is_captured
    assert len(gpu.graphs) == 1
    del recording
    assert not gpu.graphs


def test_work_is_not_captured_while_it_takes_memory(gpu: StandInCuda) -> None:
    """In a capture it could take none."""
    work, blocks = Work(), []

    def take() -> None:
        if len(blocks) < 2:
            blocks.append(cuda_memory.DeviceBuffer((8,), "uint8", work.stream))

    work.also = take
    recording = Recorder(work.stream).record(work)
    for _ in range(4):
        recording()
    assert work.calls == 3 + 1
    assert [count(gpu, name) for name in ("cudaStreamBeginCapture", "cudaGraphLaunch")] == [1, 1]


def test_others_that_take_memory_do_not_put_a_capture_off_for_ever(gpu: StandInCuda) -> None:
    work = Work()
    work.also = lambda: setattr(gpu, "limit", gpu.limit - 1)
    recording = Recorder(work.stream).record(work)
    for _ in range(WARM_UPS + 1):
        recording()
    assert (work.calls, count(gpu, "cudaGraphLaunch")) == (WARM_UPS + 1, 1)


def test_work_that_cannot_be_captured_is_enqueued_each_time(gpu: StandInCuda, caplog: pytest.LogCaptureFixture) -> None:
    work = Work()
    work.also = work.stream.synchronize
    recording = Recorder(work.stream).record(work)
    for _ in range(ATTEMPTS + 2):
        recording()
        assert not recording.is_captured
    assert work.calls == 2 * ATTEMPTS + 2
    assert [record.message for record in caplog.records] == [
        "this work cannot be captured as a CUDA graph, so every step costs the host more: cudaStreamSynchronize "
        "failed: cudaErrorStreamCaptureUnsupported, cudaErrorStreamCaptureUnsupported"
    ]
    assert not gpu.graphs
    assert count(gpu, "cudaGetLastError") == 2 * ATTEMPTS, "an error that is left is found by whoever asks next"


def test_a_capture_that_fails_once_is_tried_again(gpu: StandInCuda, caplog: pytest.LogCaptureFixture) -> None:
    work = Work()
    work.also = lambda: work.stream.synchronize() if work.calls == 2 else None
    recording = Recorder(work.stream).record(work)
    for _ in range(3):
        recording()
    assert (work.calls, count(gpu, "cudaGraphLaunch")) == (4, 1)
    assert not caplog.records


def test_memory_that_moved_is_captured_anew(gpu: StandInCuda) -> None:
    work = Work()
    recorder = Recorder(work.stream)
    recording = recorder.record(work)
    for _ in range(2):
        recording()
    recorder.moves += 1
    recording()
    assert (work.calls, count(gpu, "cudaGraphLaunch"), len(gpu.graphs)) == (4, 1, 1)


@pytest.mark.parametrize("kind", ["cudaMemcpyHostToDevice", "cudaMemcpyDefault"])
def test_a_graph_holds_no_copies_of_the_hosts_memory(gpu: StandInCuda, kind: str) -> None:
    """It would read the same address at every launch, whoever has that memory by then."""
    stream, host = cuda.Stream(0), np.arange(2)
    buffer, other = (cuda_memory.DeviceBuffer((2,), "int64", stream) for _ in range(2))

    def work() -> None:
        cuda_memory.copy(stream, buffer.pointer, host.ctypes.data, host.nbytes, kind)

    with pytest.raises(BackendError, match=r"^it makes 1 copies between host and device, and 0 calls of the host$"):
        Graph(stream, work)
    Graph(stream, work, allows_host_copies=True).launch()
    assert buffer.numpy().tolist() == [0, 1]
    Graph(stream, lambda: cuda_memory.copy(stream, other.pointer, buffer.pointer, host.nbytes, kind)).launch()
    assert other.numpy().tolist() == [0, 1]


def test_no_garbage_is_collected_during_a_capture(gpu: StandInCuda) -> None:
    """What dies may free device memory. Two threads may capture at once: the first to end does not switch it on."""
    stream = cuda.Stream(0)
    inside: list[bool] = []

    def work() -> None:
        with pytest.raises(BackendError, match="cudaStreamBeginCapture"):
            Graph(stream, lambda: None)
        inside.append(gc.isenabled())

    Graph(stream, work)
    assert (inside, gc.isenabled()) == ([False], True)
    gc.disable()
    try:
        Graph(stream, lambda: None)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_capture_is_put_off_while_an_engine_is_loaded(gpu: StandInCuda) -> None:
    """Loading synchronises the device, which CUDA refuses while any stream of it is captured."""
    work = Work()
    recording = Recorder(work.stream).record(work)
    with device_wide():
        recording()
    assert (work.calls, count(gpu, "cudaStreamBeginCapture")) == (1, 0)
    recording()
    recording()
    assert (work.calls, count(gpu, "cudaStreamBeginCapture"), count(gpu, "cudaGraphLaunch")) == (3, 1, 1)


def test_loading_waits_for_captures(gpu: StandInCuda) -> None:
    loaded = threading.Event()

    def load() -> None:
        with device_wide():
            loaded.set()

    with capture_turn() as allowed, capture_turn() as another:
        assert (allowed, another) == (True, True)
        thread = threading.Thread(target=load)
        thread.start()
        assert not loaded.wait(0.05)
        with capture_turn() as late:
            assert not late, "else a load might wait for ever"
    assert loaded.wait(10)
    thread.join()


def test_wrong_values_are_refused(gpu: StandInCuda) -> None:
    stream = cuda.Stream(0)
    buffer = cuda_memory.DeviceBuffer((2, 3), "float32", stream)
    with pytest.raises(BackendError, match=r"a buffer of shape \[2, 3\] cannot take values of shape \[3, 2\]"):
        buffer.write(np.zeros((3, 2)))
    with pytest.raises(BackendError, match=r"a buffer float32\[2, 3\] cannot take one of float16\[2, 3\]"):
        buffer.copy_from(cuda_memory.DeviceBuffer((2, 3), "float16", stream))


def test_too_little_memory_says_how_much_there_is(gpu: StandInCuda) -> None:
    gpu.limit = 10**9
    message = r"cuda:0: 4\.00 GB asked, 1\.00 of 1\.00 GB free \(cudaMalloc failed: cudaErrorMemoryAllocation"
    with pytest.raises(BackendError, match=message):
        cuda_memory.DeviceBuffer((10**9,), "float32", cuda.Stream(0))


def test_a_gpu_that_is_not_there(gpu: StandInCuda) -> None:
    with pytest.raises(BackendError, match="cuda:3: this process has 1 GPUs, cuda:0 to cuda:0"):
        cuda.describe_device(3)


def test_cuda_python_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda.bindings.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings.runtime", None)
    with pytest.raises(BackendError, match=r"cuda-python cannot be imported .*pip install 'latentrt\[cuda\]'"):
        cuda.Stream(0)
    assert cuda.device_count() == 0


@pytest.mark.parametrize(
    ("capability", "backend", "expected"),
    [
        ((8, 9), "tensorrt-rtx", ("sm89", "sm80+")),
        ((7, 5), "tensorrt-rtx", ("sm75",)),
        ((9, 0), "tensorrt-rtx", ()),
        ((9, 0), "tensorrt", ("sm90-linux-geforce-rtx-4090",)),
        ((8, 6), "onnxruntime", ("cuda-sm86",)),
    ],
)
def test_targets_of_a_gpu(
    gpu: StandInCuda,
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    backend: str,
    expected: tuple[str, ...],
) -> None:
    monkeypatch.setattr(targets.platform, "system", lambda: "Linux")
    gpu.capability = capability
    assert runnable_targets(backend, "cuda:0") == expected


class Lender:
    """Host memory that only DLPack hands out."""

    def __init__(self) -> None:
        self.values = np.arange(6, dtype="float32").reshape(2, 3)

    def __dlpack__(self, **_kwargs: Any) -> Any:
        values = self.values
        return dlpack.make_capsule(self, values.ctypes.data, values.shape, values.dtype, self.__dlpack_device__())

    def __dlpack_device__(self) -> tuple[int, int]:
        return (dlpack.HOST_DEVICE, 0)


def test_a_capsule_shares_memory_and_keeps_it_alive() -> None:
    lender = Lender()
    taken = np.from_dlpack(lender)
    lender.values[0, 0] = 9
    assert taken.tolist() == [[9, 1, 2], [3, 4, 5]]
    del lender
    gc.collect()
    assert taken.sum() == 24
    assert len(dlpack._lent) == 1
    del taken
    gc.collect()
    assert not dlpack._lent


def test_a_capsule_that_nobody_takes() -> None:
    capsule = Lender().__dlpack__()
    assert len(dlpack._lent) == 1
    del capsule
    gc.collect()
    assert not dlpack._lent


def test_a_device_buffer_names_its_device(gpu: StandInCuda) -> None:
    buffer = cuda_memory.DeviceBuffer((2, 3), "uint16", cuda.Stream(0))
    assert buffer.__dlpack_device__() == (dlpack.CUDA_DEVICE, 0)
    capsule = buffer.__dlpack__(stream=1)
    assert len(dlpack._lent) == 1
    del capsule
    assert not dlpack._lent
