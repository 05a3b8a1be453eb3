"""Exponential sigmas."""

import numpy as np

from latentrt.runtime.arrays import Float64s


def exponential_sigmas(high: float, low: float, steps: int) -> Float64s:
    """S sigmas from high to low, evenly spaced in log sigma, which is uniform in log-SNR."""
    return np.exp(np.linspace(np.log(high), np.log(low), steps))
