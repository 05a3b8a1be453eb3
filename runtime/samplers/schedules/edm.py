"""The schedule of EDM models, which have sigmas from sigma_max to sigma_min instead of training timesteps."""

import numpy as np

from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.schedules.exponential_sigmas import exponential_sigmas
from latentrt.runtime.samplers.schedules.karras_sigmas import karras_sigmas
from latentrt.runtime.samplers.schedules.sigma_schedule import SigmaSchedule


def edm_schedule(config: ScheduleConfig, steps: int) -> SigmaSchedule:
    """Karras or exponential sigmas; the model is told c_noise = log(sigma) / 4 in place of a timestep."""
    high, low = float(config.sigma_max or 0), float(config.sigma_min or 0)
    if config.sigma_schedule == "karras":
        sigmas = karras_sigmas(high, low, steps, config.rho)
    else:
        sigmas = exponential_sigmas(low, high, steps)[::-1]  # a single one is the lowest, as in diffusers
    last = sigmas[-1] if config.final_sigmas_type == "sigma_min" else 0.0
    sigmas = np.append(sigmas, last).astype(np.float32).astype(np.float64)
    return SigmaSchedule(sigmas, 0.25 * np.log(sigmas[:-1]), preserving=False)


def edm_initial_scale(config: ScheduleConfig) -> float:
    """Standard deviation of the first latents."""
    return float(np.sqrt(float(config.sigma_max or 0) ** 2 + 1))
