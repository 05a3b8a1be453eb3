"""The schedule of EDM models, which have sigmas from sigma_max to sigma_min instead of training timesteps."""

import numpy as np

from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.schedules.exponential_sigmas import exponential_sigmas
from latentrt.runtime.samplers.schedules.karras_sigmas import KARRAS_RHO, karras_sigmas
from latentrt.runtime.samplers.schedules.own_schedule import own_sigmas
from latentrt.runtime.samplers.schedules.sigma_schedule import SigmaSchedule


def edm_schedule(config: ScheduleConfig, steps: int) -> SigmaSchedule:
    """Karras or exponential sigmas, or the request's own.

    The model is told c_noise = log(sigma) / 4 in place of a timestep.
    """
    high, low = float(config.sigma_max or 0), float(config.sigma_min or 0)
    if (own := own_sigmas(config)) is not None:
        sigmas = own
    elif config.sigma_schedule == "karras":
        sigmas = karras_sigmas(high, low, steps, config.rho or KARRAS_RHO)
    else:
        sigmas = exponential_sigmas(low, high, steps)[::-1]  # a single one is the lowest, as in diffusers
    last = sigmas[-1] if config.final_sigmas_type == "sigma_min" else 0.0
    sigmas = np.append(sigmas, last).astype(np.float32).astype(np.float64)
    return SigmaSchedule(sigmas, 0.25 * np.log(sigmas[:-1]), preserving=False)


def edm_initial_scale(config: ScheduleConfig) -> float:
    """Standard deviation of the first latents."""
    high = config.sigma_max if config.sigmas is None else config.sigmas[0]
    return float(np.sqrt(float(high or 0) ** 2 + 1))
