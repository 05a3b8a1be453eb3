"""Classifier-free guidance: the weights of the U-Net's rows at each step."""

import numpy as np

from latentrt.runtime.arrays import Float32s
from latentrt.runtime.request.request import Request
from latentrt.runtime.samplers import SamplerTable


def guidance_rows(request: Request, table: SamplerTable, scale: float) -> Float32s:
    """Weights (S, r) of a picture's U-Net rows at each step: model output = weights · rows.

    [1 - g, g] is classifier-free guidance at scale g (Ho & Salimans 2022, equation 6). Outside the request's guidance
    interval, and without guidance, only the prompt's row counts.
    """
    if not request.guided:
        return np.ones((table.step_count, 1), np.float32)
    step = (table.first + np.arange(table.step_count)) / table.whole
    low, high = request.settings["guidance_interval"]
    inside = (step >= low) & (step < high) & (scale > 1)
    return np.where(inside[:, None], [1 - scale, scale], [0, 1]).astype(np.float32)
