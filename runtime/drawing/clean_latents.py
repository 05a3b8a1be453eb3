"""What a picture in the middle of its steps will look like, as far as its last step tells."""

from collections.abc import Sequence

import numpy as np

from latentrt.runtime.arrays import Float32s
from latentrt.runtime.drawing.picture import Picture
from latentrt.runtime.samplers.config import PredictionType
from latentrt.runtime.samplers.solvers.prediction import predicted_x0


def clean_latents(
    pictures: Sequence[Picture], latents: Float32s, outputs: Float32s, prediction: PredictionType
) -> Float32s:
    """The clean latents (n, 4, h, w) that pictures' latents and their last model outputs, both (n, 4, h, w), imply.

    Exact for samplers that move along the predicted noise alone (euler, ddim), close for others. Latents are signal *
    x0 + rate * noise; divided by the root of the sum of squares, they are the alpha and sigma of `predicted_x0`. EDM's
    outputs are preconditioned, and for them the latents alone, at that scale, have to do.
    """
    levels = np.array([picture.table.original_levels[picture.step] for picture in pictures], np.float32)
    signal, rate = (levels / np.linalg.norm(levels, axis=1, keepdims=True)).T[:, :, None, None, None]
    scaled = latents / np.linalg.norm(levels, axis=1)[:, None, None, None]
    clean = predicted_x0(scaled, outputs, np.maximum(signal, 1e-3), rate, prediction)  # type: ignore[arg-type]
    is_edm = np.array([picture.table.sampler.startswith("edm") for picture in pictures])[:, None, None, None]
    return np.where(is_edm, scaled, clean).astype(np.float32)
