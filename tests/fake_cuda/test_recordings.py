"""Work that is captured, and work that cannot be, under the real ONNX Runtime."""

from pathlib import Path

import pytest
from fake_cuda.device import FakeDevice
from fake_cuda.record_graph import CALLS
from graph_bundles import write_onnx

from latentrt.runtime.backends.cuda_graph import ATTEMPTS

pytestmark = pytest.mark.slow

GRAPHS = {
    "on_the_gpu": """on_the_gpu (float16[2,8,4,4] x) => (float16[2,8,4,4] y)
        { shape = Shape(x)
          a = Relu(x)
          y = Reshape(a, shape) }""",
    "waits_for_the_cpu": """waits_for_the_cpu (float16[2,8,4,4] x) => (float16[2,8,4,4] y)
        <float16[8] SCALE, float16[8] BIAS>
        { a = Relu(x)
          n = InstanceNormalization(a, SCALE, BIAS)
          y = Relu(n) }""",
    # A shape is known to the host; as a factor it is copied to the device in every run.
    "copies_from_the_host": """copies_from_the_host (float16[rows,8,4,4] x) => (float16[rows,8,4,4] y)
        { shape = Shape(x)
          factors = Cast<to=10>(shape)
          y = Mul(x, factors) }""",
}
REASONS = {
    "waits_for_the_cpu": "waits_for_the_cpu: ONNX Runtime runs 1 nodes on the CPU: 1 InstanceNormalization",
    "copies_from_the_host": (
        "so every step costs the host more: it makes 1 copies between host and device, and 0 calls of the host; "
        "copies_from_the_host: ONNX Runtime runs 1 nodes on the CPU: 1 Cast"
    ),
}


def test_what_can_be_captured_is_and_the_rest_says_why(fake_device: FakeDevice, tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.onnx" for name in GRAPHS]
    for file in files:
        write_onnx(file, GRAPHS[file.stem], "fp16")
    said, parts = fake_device.run(tmp_path / "log", "record_graph", *files)
    for line, reason in zip(said.splitlines(), REASONS.values(), strict=True):
        assert line.startswith("this work cannot be captured as a CUDA graph")
        assert line.endswith(reason)
    launches = {
        name: [part.graph_launches for part in parts if part.name.rpartition(" ")[0] == name] for name in GRAPHS
    }
    assert launches == {"on_the_gpu": [0, 0, 1, 1, 1, 1], **dict.fromkeys(REASONS, [0] * CALLS)}
    for part in parts:
        if part.name.rpartition(" ")[0] in REASONS:
            assert part.executed.operations > 0, part.summary()
            # The last calls know that a capture is in vain.
            assert not part.illegal or int(part.name.rpartition(" ")[2]) <= ATTEMPTS
