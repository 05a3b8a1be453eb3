"""Heun's method: an Euler step, then the mean of the slopes at both ends."""

import numpy as np

from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Plan, Sampler, State, Value, no_draws
from latentrt.runtime.samplers.schedules.betas import LINEAR_LATENT_BETAS
from latentrt.runtime.samplers.schedules.euler import euler_schedule, initial_scale
from latentrt.runtime.samplers.schedules.sigma_schedule import preserving_alphas
from latentrt.runtime.samplers.schedules.sigma_spacing import SIGMA_FIELDS
from latentrt.runtime.samplers.schedules.timestep_spacing import SPACING_FIELDS
from latentrt.runtime.samplers.solvers.sigma_space import denoised, twice


def plan_heun(config: ScheduleConfig, steps: int, first: int) -> Plan:
    """The plan of diffusers' HeunDiscreteScheduler: Karras et al. 2022 (arXiv:2206.00364), algorithm 1 without churn.

    Even rows predict the latents at sigma', odd rows correct them. The last step is Euler's, as there is no slope at
    sigma' = 0. State: the latents; those before the step; the slope there.
    """
    schedule = euler_schedule(config, steps)
    sigma_read = twice(schedule.sigmas[:-1])

    def advance(state: State, output: Value, noise: Value, row: int) -> State:
        x, start, slope_start = state
        step = row // 2
        width = schedule.sigmas[step + 1] - schedule.sigmas[step]
        slope = (x - denoised(x, output, sigma_read[row], config)) / sigma_read[row]
        if row % 2 == 0:
            return x + width * slope, x, slope
        return start + width * (slope_start + slope) / 2, 0 * x, 0 * x

    return Plan(
        timesteps=twice(schedule.timesteps),
        input_scale=preserving_alphas(sigma_read),
        levels=np.stack([np.ones_like(sigma_read), sigma_read], axis=1),
        draws=no_draws(len(sigma_read)),
        advance=advance,
        state_count=3,
        initial_scale=initial_scale(config, schedule),
        evaluations=2,
    )


HEUN = Sampler(
    scheduler="HeunDiscreteScheduler",
    plan=plan_heun,
    defaults={**LINEAR_LATENT_BETAS, "timestep_spacing": "linspace"},
    reads=SPACING_FIELDS | SIGMA_FIELDS | {"clip_sample"},
)
