"""Quantiles of the symmetric Beta distribution, which the runtime needs without scipy."""

from math import gamma

import numpy as np

from latentrt.runtime.arrays import Float64s

SERIES_TERMS = 60
"""On x <= 1/2 the terms fall at least like 2**-n, so 60 of them reach float64."""

NEWTON_STEPS = 12


def inverse_beta(probabilities: Float64s, shape: float) -> Float64s:
    """X with I_x(a, a) = p, for a > 0 and p from 0 to 1: the quantiles of Beta(a, a).

    Newton's method on log I against log x, nearly a straight line of slope a for small x. The distribution is
    symmetric, so only its lower half is inverted: I_x(a, a) = 1 - I_(1-x)(a, a), NIST DLMF 8.17.4.
    """
    lower = np.minimum(probabilities, 1 - probabilities)
    wanted = np.log(np.where(lower > 0, lower, 0.5))
    log_x = np.minimum((wanted + np.log(shape * _beta(shape))) / shape, np.log(0.5))
    for _ in range(NEWTON_STEPS):
        x = np.exp(log_x)
        share = lower_share(x, shape)
        slope = x**shape * (1 - x) ** (shape - 1) / (_beta(shape) * share)
        log_x = np.minimum(log_x - (np.log(share) - wanted) / slope, np.log(0.5))
    x = np.where(lower > 0, np.exp(log_x), 0.0)
    return np.where(probabilities <= 0.5, x, 1 - x)


def lower_share(x: Float64s, shape: float) -> Float64s:
    """The regularised incomplete beta function I_x(a, a) for 0 < x <= 1/2, by its power series, NIST DLMF 8.17.8."""
    term = x**shape * (1 - x) ** shape / (shape * _beta(shape))
    total = term
    for n in range(SERIES_TERMS):
        term = term * x * (2 * shape + n) / (shape + 1 + n)
        total = total + term
    return total


def _beta(shape: float) -> float:
    """B(a, a)."""
    return gamma(shape) ** 2 / gamma(2 * shape)
