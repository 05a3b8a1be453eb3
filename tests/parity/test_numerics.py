"""Values that are not finite are errors with a name, never black pictures."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from latentrt.runtime import NumericsError, Pipeline


def poison(bundle: Path, component: str, initializer: str) -> None:
    """Put one NaN into a weight; the file keeps its size."""
    file = bundle / "onnx" / "fp32" / f"{component}.onnx"
    model = onnx.load(file)
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == initializer)
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] = np.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(values, initializer))
    onnx.save(model, file)


@pytest.mark.parametrize(
    ("component", "initializer", "message"),
    [
        ("unet", "network.conv_out.bias", "unet: picture 1 holds NaN or infinity from step 1 of 2 on"),
        ("vae_decoder", "network.decoder.conv_out.bias", "vae_decoder: the image holds NaN or infinity"),
    ],
)
def test_a_nan_is_named(sdxl_bundle: Path, tmp_path: Path, component: str, initializer: str, message: str) -> None:
    bundle = shutil.copytree(sdxl_bundle, tmp_path / "bundle")
    poison(bundle, component, initializer)
    with Pipeline.load(bundle, "onnxruntime", "cpu") as pipe, pytest.raises(NumericsError, match=message):
        pipe.generate("a red circle", steps=2, seed=1)
