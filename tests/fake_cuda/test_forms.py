"""The forms of the demo's networks on the fake device: where their nodes run, and how many operations they are."""

from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from fake_cuda.count_forms import all_forms, by_kernel, run_form
from fake_cuda.device import FakeDevice

from latentrt.runtime.bundle import Bundle

pytestmark = pytest.mark.slow

MOST_OPERATIONS = {
    "text_encoder": 20,
    "text_encoder_2": 38,
    "unet_prologue": 36,
    "unet_body": 454,
    "vae_decoder": 154,
    "vae_encoder": 95,
    "sampler": 56,
}
"""Kernels, products and convolutions of one run of the first form. As exported, the U-Net was 1,137 of them."""


@pytest.fixture(scope="module")
def forms(demo_bundle_fp16: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Path]]]:
    """The files of each engine's forms, by engine and name of the form."""
    with all_forms(Bundle.open(demo_bundle_fp16), tmp_path_factory.mktemp("forms")) as found:
        yield found


@pytest.mark.parametrize("engine", MOST_OPERATIONS)
def test_the_forms_of_the_demo(
    fake_device: FakeDevice, demo_bundle_fp16: Path, forms: dict[str, dict[str, Path]], tmp_path: Path, engine: str
) -> None:
    for form, file in forms[engine].items():
        on_the_cpu, warm = run_form(fake_device, Bundle.open(demo_bundle_fp16), tmp_path / "log", file, form)
        assert on_the_cpu == [], form
        # The inputs and outputs of the session, which here lie in the host's memory, and nothing between them.
        graph = onnx.load(file, load_external_data=False).graph
        assert warm.executed.host_copies == len(graph.input) + len(graph.output), f"{form}: {warm.summary()}"
        kernels = by_kernel(warm.executed)
        assert sum(int(line.split()[0]) for line in kernels) == warm.executed.operations
        if "channels last" not in form:
            assert warm.executed.operations <= MOST_OPERATIONS[engine], "\n".join(kernels)
