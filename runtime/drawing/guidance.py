"""Classifier-free guidance: the weights of the U-Net's rows at each step."""

import numpy as np

from latentrt.runtime.arrays import Float32s
from latentrt.runtime.request.request import Request
from latentrt.runtime.samplers import SamplerTable
from latentrt.runtime.text.prompt_plan import RequestPlan

ROUNDING = 1e-9
"""A negative weight below this is what rounding left of none, and its row need not run."""


def guidance_rows(request: Request, table: SamplerTable, plan: RequestPlan, prompt: int) -> Float32s:
    """Weights (S, r) of a picture's U-Net rows at each step: model output = weights · rows.

    [1 - g, g] is classifier-free guidance at scale g (Ho & Salimans 2022, equation 6). A prompt of several texts with
    weights w has [1 - g sum(w), g w]: composable diffusion, negative + sum g w (text - negative), Liu et al. 2022
    (arXiv:2206.01714), equation 12. Texts that do not count at a step have the weight 0, and outside the request's
    guidance interval g is 1. Without guidance, only the prompt's rows count.
    """
    row = table.first + np.arange(table.step_count)
    step = row * request.steps // table.whole
    texts = plan.prompts[prompt].weights[step]
    if not request.guided:
        return texts.astype(np.float32)
    scale = request.guidance[prompt]
    low, high = request.settings["guidance_interval"]
    inside = (row / table.whole >= low) & (row / table.whole < high) & (scale > 1)
    positive = np.where(inside, scale, 1.0)[:, None] * texts
    rest = 1 - positive.sum(axis=1, keepdims=True)
    negative = np.where(np.abs(rest) < ROUNDING, 0, rest) * plan.negatives[prompt].weights[step]
    return np.concatenate([negative, positive], axis=1).astype(np.float32)
