"""From the model's output to clean latents or noise, for the prediction types epsilon, v_prediction and sample.

Latents are alpha * x0 + sigma * noise with alpha² + sigma² = 1. The velocity v = alpha * noise - sigma * x0 is that of
Salimans & Ho 2022 (arXiv:2202.00512), appendix D.
"""

from collections.abc import Callable

import numpy as np

from latentrt.runtime.samplers.plan import Value
from latentrt.runtime.samplers.schedules.sigma_schedule import SigmaSchedule

Convert = Callable[[Value, Value, int], Value]
"""(latents, model output, step) -> the quantity that a solver extrapolates: clean latents or noise."""


def predicted_x0(sample: Value, output: Value, alpha: float, sigma: float, prediction_type: str) -> Value:
    """Clean latents that the model's output implies."""
    if prediction_type == "epsilon":
        return (sample - sigma * output) / alpha
    if prediction_type == "v_prediction":
        return alpha * sample - sigma * output
    return output


def predicted_noise(sample: Value, output: Value, alpha: float, sigma: float, prediction_type: str) -> Value:
    """Noise that the model's output implies; the counterpart of `predicted_x0`."""
    if prediction_type == "epsilon":
        return output
    if prediction_type == "v_prediction":
        return alpha * output + sigma * sample
    return (sample - alpha * output) / sigma


def rates(alpha_bar: float) -> tuple[float, float]:
    """Signal and noise rate, alpha and sigma above, of a squared signal rate."""
    return np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)


def conversion(schedule: SigmaSchedule, prediction_type: str, *, to_x0: bool) -> Convert:
    """The function from outputs to clean latents, or to noise, at the steps of a variance-preserving schedule."""
    predicted = predicted_x0 if to_x0 else predicted_noise

    def convert(x: Value, output: Value, step: int) -> Value:
        alpha = schedule.alphas[step]
        return predicted(x, output, alpha, alpha * schedule.sigmas[step], prediction_type)

    return convert
