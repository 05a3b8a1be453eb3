"""An fp16 bundle draws what fp32 draws, up to fp16's own error."""

from pathlib import Path

import numpy as np

from latentrt.runtime.pipeline import Pipeline

RELATIVE = 0.05
"""The tiny random U-Net amplifies a change of its input about eight times in ten steps; fp16 rounds at 5e-4."""


def test_fp16_latents_are_close_to_fp32(sdxl_bundle: Path, sdxl_bundle_fp16: Path) -> None:
    found = []
    for bundle in (sdxl_bundle, sdxl_bundle_fp16):
        with Pipeline.load(bundle, "onnxruntime", "cpu") as pipe:
            found.append(pipe.generate("a red circle", steps=6, seed=5, sampler="dpmpp_2m").latents)
    wanted, half = found
    error = np.sqrt(np.mean((half - wanted) ** 2) / np.mean(wanted**2))
    assert 0 < error < RELATIVE
