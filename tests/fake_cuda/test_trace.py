"""The reader alone, on logs written by hand."""

from pathlib import Path

import pytest
from fake_cuda.trace import Part, read_trace

LOG = """
0 - (nil) cudaMalloc bytes=100
0 - (nil) mark step 0
0 - 0x10 kernel grid=1,1,1 block=32,1,1 name=add
0 - 0x10 cudaMemcpyAsync bytes=8 from=pageable to=device
0 - (nil) cudaStreamSynchronize of=0x10
0 - (nil) cudaStreamBeginCapture capture=1 mode=1
0 1 0x10 kernel grid=1,1,1 block=32,1,1 name=add
0 1 0x10 gemm call=cublasSgemm_v2 m=1 n=1 k=1 batch=1 type=0 math=3
0 1 0x10 cudaMemcpyAsync bytes=8 from=device to=device
0 - (nil) cudaStreamEndCapture capture=1 graph=0xa
0 - (nil) cudaGraphInstantiate graph=0xa executable=0xb
0 - (nil) mark step 1
0 - 0x10 cudaGraphLaunch executable=0xb
0 - 0x10 cudaGraphLaunch executable=0xb
0 - 0x10 dnn call=cudnnBackendExecute
0 - (nil) cudaFree bytes=60
0 - (nil) mark step 2
0 - (nil) cudaStreamBeginCapture capture=2 mode=1
1 illegal (nil) cudaMalloc capture=2
0 - (nil) cudaStreamEndCapture capture=2 graph=(nil)
"""


@pytest.fixture
def parts(tmp_path: Path) -> list[Part]:
    log = tmp_path / "log"
    log.write_text("".join("\t".join(line.split(" ", 4)) + "\n" for line in LOG.strip().splitlines()))
    return read_trace(log)


def test_marks_divide_the_log(parts: list[Part]) -> None:
    assert [part.name for part in parts] == ["start", "step 0", "step 1", "step 2"]


def test_work_is_enqueued_captured_or_replayed(parts: list[Part]) -> None:
    _, first, second, _ = parts
    assert (first.enqueued.kernels, first.enqueued.gemms) == ({"add": 1}, 0)
    assert (first.captured.kernels, first.captured.gemms, first.captures) == ({"add": 1}, 1, 1)
    assert (second.replayed.kernels, second.replayed.gemms, second.graph_launches) == ({"add": 2}, 2, 2)
    assert second.enqueued.library_calls == {"cudnnBackendExecute": 1}
    assert (first.executed.operations, second.executed.operations) == (1, 5)


def test_copies_waits_and_memory(parts: list[Part]) -> None:
    start, first, second, third = parts
    assert first.enqueued.copies == {("pageable", "device"): 1}
    assert (first.executed.host_copies, first.executed.pageable_copies) == (1, 1)
    assert second.executed.copies == {("device", "device"): 2}
    assert (second.executed.host_copies, second.executed.pageable_copies) == (0, 0)
    assert (first.waits, second.waits) == ({"cudaStreamSynchronize": 1}, {})
    assert [part.device_bytes for part in parts] == [100, 100, 40, 40]
    assert (start.allocations, second.frees, third.allocations) == (1, 1, 0)


def test_products_in_tf32(parts: list[Part]) -> None:
    assert [part.executed.tf32_gemms for part in parts] == [0, 0, 2, 0]


def test_what_a_capture_disallows(parts: list[Part]) -> None:
    assert [part.illegal for part in parts] == [[], [], [], ["cudaMalloc"]]


def test_a_summary_says_it_in_one_line(parts: list[Part]) -> None:
    assert parts[2].summary() == (
        "step 1: 2 graph launches, 5 operations (2 GEMMs, 1 library calls), of which 1 enqueued one by one; "
        "0 host waits; copies: device to device 2; 0 allocations; 0 illegal"
    )
