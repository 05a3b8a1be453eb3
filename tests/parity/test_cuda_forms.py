"""The forms of networks for ONNX Runtime's CUDA provider compute what the exported networks compute, on the CPU.

The demo's widths leave out the two operators that ONNX Runtime has on CUDA alone; the unit tests have them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from latentrt.engine.forms import FORMS
from latentrt.engine.passes import passes_for
from latentrt.runtime.arrays import relative_error
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.specs import ComponentSpec, Sizes

LARGEST_ERROR = 2e-6
"""Relative; group norms and sums of three are rounded in another order. Integers are equal."""

SIZES = [
    {"rows": 2, "latent_height": 12, "latent_width": 12, "tokens": 77, "texts": 1},
    {"rows": 3, "latent_height": 7, "latent_width": 18, "tokens": 154, "texts": 4},
]


def run(file: Path, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def inputs(spec: ComponentSpec, sizes: Sizes) -> dict[str, NDArray[Any]]:
    """Normal numbers; token ids that hold the end of a text twice, in another place in every row."""
    draw = np.random.default_rng(0)
    found: dict[str, NDArray[Any]] = {}
    for port in spec.inputs:
        shape = port.shape(sizes)
        if port.name == "input_ids":
            found[port.name] = draw.integers(0, 767, shape)
            for row, place in enumerate(draw.permutation(60)[: shape[0]]):
                found[port.name][row, place] = found[port.name][row, place + 9] = 767
        elif port.dtype == "int64":
            found[port.name] = draw.integers(0, 2, shape)
        else:
            found[port.name] = draw.standard_normal(shape).astype(port.numpy_dtype)
    return found


@pytest.mark.parametrize("name", ["unet", "vae_decoder", "vae_encoder", "text_encoder", "text_encoder_2"])
def test_forms_for_cuda_are_exact(demo_bundle: Path, tmp_path: Path, name: str) -> None:
    bundle = Bundle.open(demo_bundle)
    spec = bundle.manifest.specs()[name]
    form = FORMS["cuda"][0]
    assert form.passes[: len(passes_for("cuda-sm89")) - 1] == passes_for("cuda-sm89")[1:], "the U-Net has had others"
    file = form.write(bundle.onnx(name), tmp_path / "form")
    assert file is not None
    for sizes in SIZES:
        feeds = inputs(spec, {**spec.sizes("min"), **sizes})
        wanted, found = run(bundle.onnx(name), feeds), run(file, feeds)
        for port, one, other in zip(spec.outputs, wanted, found, strict=True):
            if port.dtype == "uint8":  # a number halfway between two levels may fall to either
                assert np.abs(one.astype(int) - other).max() <= 1
            else:
                assert relative_error(other, one) <= LARGEST_ERROR, (port.name, relative_error(other, one))
