"""Beta sigmas, and the quantiles of the symmetric Beta distribution, so that the runtime needs no scipy."""

from math import gamma

import numpy as np

from latentrt.runtime.arrays import Float64s

BETA_SHAPE = 0.6

SERIES_TERMS = 60
"""For x <= 1/2 the terms fall at least like 2**-n, so 60 of them reach float64's precision."""

NEWTON_STEPS = 12


def beta_sigmas(high: float, low: float, steps: int) -> Float64s:
    """S sigmas from high to low at the quantiles of Beta(0.6, 0.6), which are denser at both ends.

    Lee et al. 2024 (arXiv:2407.12173).
    """
    return low + inverse_beta(1 - np.linspace(0, 1, steps), BETA_SHAPE) * (high - low)


def inverse_beta(probabilities: Float64s, shape: float) -> Float64s:
    """Quantiles of Beta(a, a): the x with I_x(a, a) = p, for a > 0 and p from 0 to 1.

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
    """The beta function B(a, a)."""
    return gamma(shape) ** 2 / gamma(2 * shape)
