"""What the model's output says about the latents, for its three kinds of prediction."""

import numpy as np

from latentrt.runtime.samplers.plan import Value


def predicted_x0(sample: Value, output: Value, alpha: float, sigma: float, prediction_type: str) -> Value:
    """Clean latents that the model's output implies, for sample = alpha * x0 + sigma * noise, alpha² + sigma² = 1.

    v = alpha * noise - sigma * x0: Salimans & Ho 2022 (arXiv:2202.00512), appendix D.
    """
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
    """Signal and noise rate of a squared signal rate: alpha and sigma of the functions above."""
    return np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
