"""The forms of the demo's networks on the fake device: where their nodes run, and how many operations they are."""

import json
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from fake_cuda.device import FakeDevice
from fake_cuda.trace import Part

from latentrt.engine.forms import forms_of
from latentrt.engine.split_unet import GraphFiles
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.unet_parts import PARTS, WHOLE

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
    folder = tmp_path_factory.mktemp("forms")
    bundle = Bundle.open(demo_bundle_fp16)
    with GraphFiles(bundle, folder / "graphs", "cuda-sm89") as graphs:
        engines = [name for name in bundle.manifest.components if name != WHOLE]
        yield {
            name: {form.name: file for form, file in forms_of("cuda", graphs.file(name), folder / name)}
            for name in (*engines, *PARTS)
        }


def run(device: FakeDevice, bundle: Path, log: Path, file: Path, *options: str) -> tuple[list[str], Part]:
    """The operators that the CPU was given, and a warm run, at the bundle's usual sizes and two rows."""
    sizes: dict[str, int] = {}
    for spec in Bundle.open(bundle).manifest.specs().values():
        sizes |= spec.sizes("opt")
    lengths = [f"{name}={size}" for name, size in (sizes | {"rows": 2}).items()]
    printed, parts = device.run(log, "run_models", file, *lengths, *options)
    (placed,) = json.loads(printed).values()
    (warm,) = (part for part in parts if part.name.endswith("warm run"))
    return [operator for operator, _ in placed], warm


@pytest.mark.parametrize("engine", MOST_OPERATIONS)
def test_the_forms_of_the_demo(
    fake_device: FakeDevice, demo_bundle_fp16: Path, forms: dict[str, dict[str, Path]], tmp_path: Path, engine: str
) -> None:
    for form, file in forms[engine].items():
        options = ["--prefer_nhwc=1"] if "channels last" in form else []
        on_the_cpu, warm = run(fake_device, demo_bundle_fp16, tmp_path / "log", file, *options)
        assert on_the_cpu == [], form
        # The inputs and outputs of the session, which here lie in the host's memory, and nothing between them.
        graph = onnx.load(file, load_external_data=False).graph
        assert warm.executed.host_copies == len(graph.input) + len(graph.output), f"{form}: {warm.summary()}"
        if not options:
            assert warm.executed.operations <= MOST_OPERATIONS[engine], warm.summary()
