"""The fake device under the real ONNX Runtime: its log says what graphs whose answer is known make a GPU do."""

import json
from pathlib import Path

import pytest
from fake_cuda.device import CAPABILITIES, FakeDevice
from fake_cuda.trace import Part
from graph_bundles import GRAPHS, write_onnx

pytestmark = pytest.mark.slow

LENGTHS = ("rows=1", "texts=1", "images=1", "tokens=77", "h=8", "w=8", "height=64", "width=64")
INVALIDATED = "cudaErrorStreamCaptureInvalidated"
ON_THE_CPU = {"text_encoder": [], "unet": ["Concat", "Div"], "vae_decoder": [], "vae_encoder": []}
"""The operators that graph_bundles' components leave to the CPU. Both of the U-Net's compute shapes."""

NO_CUDA_KERNEL = {
    "instance_normalization": """instance_normalization (float16[rows,8,h,w] x) => (float16[rows,8,h,w] y)
        <float16[8] SCALE, float16[8] BIAS>
        { a = Relu(x)
          n = InstanceNormalization(a, SCALE, BIAS)
          y = Relu(n) }""",
    "arg_max": """arg_max (int64[rows,77] x) => (int64[rows,1] y)
        { one = Constant<value_int=1>()
          a = Add(x, one)
          m = ArgMax<axis=1>(a)
          y = Add(m, one) }""",
}


def by_name(parts: list[Part]) -> dict[str, Part]:
    return {part.name: part for part in parts}


def test_captures_end_as_cuda_ends_them(fake_device: FakeDevice, tmp_path: Path) -> None:
    printed, parts = fake_device.run(tmp_path / "log", "capture_rules")
    assert json.loads(printed) == {
        "copy": "cudaSuccess",
        "malloc": INVALIDATED,
        "pinned malloc": INVALIDATED,
        "wait": INVALIDATED,
        "device wait": INVALIDATED,
        "waiting copy": INVALIDATED,
        "fork": "cudaSuccess",
        "replay inside": "cudaSuccess",
        "relaxed malloc": "cudaSuccess",
    }
    illegal = {part.name: part.illegal for part in parts if part.illegal}
    assert illegal == {
        "malloc": ["cudaMalloc"],
        "pinned malloc": ["cudaMallocHost"],
        "wait": ["cudaStreamSynchronize"],
        "device wait": ["cudaDeviceSynchronize"],
        "waiting copy": ["cudaMemcpy"],
    }


def test_captured_work_runs_when_its_graph_is_launched(fake_device: FakeDevice, tmp_path: Path) -> None:
    _, parts = fake_device.run(tmp_path / "log", "capture_rules")
    named, one_copy = by_name(parts), {("pinned", "device"): 1}
    assert (named["copy"].captured.copies, named["copy"].executed.copies) == (one_copy, {})
    assert named["launch twice"].executed.copies == {("pinned", "device"): 2}
    assert (named["fork"].captured.copies, named["fork"].executed.copies) == (one_copy, {})


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("graphs")
    for name, text in {**GRAPHS, **NO_CUDA_KERNEL}.items():
        write_onnx(folder / f"{name}.onnx", text, "fp16")
    return {name: folder / f"{name}.onnx" for name in (*GRAPHS, *NO_CUDA_KERNEL)}


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_known_graphs(fake_device: FakeDevice, graphs: dict[str, Path], tmp_path: Path, capability: str) -> None:
    files = [graphs[name] for name in GRAPHS]
    printed, parts = fake_device.run(tmp_path / "log", "run_models", *files, *LENGTHS, capability=capability)
    placed = {Path(file).stem: sorted(op for op, _ in nodes) for file, nodes in json.loads(printed).items()}
    assert placed == ON_THE_CPU
    runs = {name: by_name(parts)[f"{name} warm run"] for name in GRAPHS}

    # Gather, Cast and Add; one product; two inputs go in and one output comes out.
    text = runs["text_encoder"].executed
    assert (text.kernels.total(), text.gemms, text.library_calls.total()) == (3, 1, 0)
    assert text.copies == {("pageable", "device"): 2, ("device", "pageable"): 1}

    # The product to keys, and two in attention; two convolutions.
    unet = runs["unet"].executed
    assert (unet.gemms, unet.library_calls) == (3, {"cudnnBackendExecute": 2})
    assert unet.copies == {("pageable", "device"): 3, ("device", "pageable"): 1}

    assert runs["vae_encoder"].executed.library_calls == {"cudnnBackendExecute": 2}
    assert [part.illegal for part in parts if part.illegal] == []
    assert all(run.allocations == 0 for run in runs.values())


def test_operators_without_a_cuda_kernel_cost_a_copy_each_way(
    fake_device: FakeDevice, graphs: dict[str, Path], tmp_path: Path
) -> None:
    printed, parts = fake_device.run(
        tmp_path / "log", "run_models", *(graphs[name] for name in NO_CUDA_KERNEL), *LENGTHS
    )
    placed = [[op for op, _ in nodes] for nodes in json.loads(printed).values()]
    assert placed == [["InstanceNormalization"], ["ArgMax"]]
    for name in NO_CUDA_KERNEL:
        run = by_name(parts)[f"{name} warm run"]
        # The input and the output of the graph, and those of the operator on the CPU.
        assert run.executed.host_copies == 4, run.summary()
        assert run.waits.total() >= 2
