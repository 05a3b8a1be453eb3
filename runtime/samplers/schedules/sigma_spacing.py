"""Sigma spacing: the sigmas of a config that asks for Karras, exponential or beta sigmas."""

import numpy as np

from latentrt.runtime.arrays import Float64s
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.schedules.beta_sigmas import beta_sigmas
from latentrt.runtime.samplers.schedules.exponential_sigmas import exponential_sigmas
from latentrt.runtime.samplers.schedules.karras_sigmas import karras_sigmas

NAMED_FIELDS = frozenset({"rho", "sigma_spacing", "sigmas"})
"""Config fields, beyond diffusers', of samplers whose sigmas may have any values."""

SIGMA_FIELDS = NAMED_FIELDS | {
    "sigma_max",
    "sigma_min",
    "use_beta_sigmas",
    "use_exponential_sigmas",
    "use_karras_sigmas",
}
"""Config fields that space the sigmas themselves, in place of the timesteps."""


def respaced_sigmas(config: ScheduleConfig, first: float, last: float, steps: int) -> Float64s | None:
    """S sigmas from first to last in the spacing that the config asks for; None where it asks for none.

    The config's sigma_max and sigma_min take precedence over first and last.
    """
    high = np.float64(first if config.sigma_max is None else config.sigma_max)
    low = np.float64(last if config.sigma_min is None else config.sigma_min)
    if config.use_karras_sigmas:
        return karras_sigmas(high, low, steps)
    if config.use_exponential_sigmas:
        return exponential_sigmas(high, low, steps)
    if config.use_beta_sigmas:
        return beta_sigmas(high, low, steps)
    return None
