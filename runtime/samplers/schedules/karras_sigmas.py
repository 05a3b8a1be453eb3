"""Karras sigmas."""

import numpy as np

from latentrt.runtime.arrays import Float64s

KARRAS_RHO = 7.0


def karras_sigmas(high: float, low: float, steps: int, rho: float = KARRAS_RHO) -> Float64s:
    """S sigmas from high to low, evenly spaced in sigma ** (1 / rho).

    Karras et al. 2022 (arXiv:2206.00364), equation 5.
    """
    return np.asarray(np.linspace(high ** (1 / rho), low ** (1 / rho), steps) ** rho)
