"""Heun's method: an Euler step, then the mean of the slopes at both ends; with churn if asked for."""

import numpy as np

from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Plan, Sampler, State, Value
from latentrt.runtime.samplers.schedules.betas import LINEAR_LATENT_BETAS
from latentrt.runtime.samplers.schedules.euler import euler_schedule
from latentrt.runtime.samplers.schedules.sigma_schedule import preserving_alphas
from latentrt.runtime.samplers.schedules.sigma_spacing import SIGMA_FIELDS
from latentrt.runtime.samplers.schedules.timestep_spacing import SPACING_FIELDS
from latentrt.runtime.samplers.solvers.churn import CHURN_FIELDS, churn_of
from latentrt.runtime.samplers.solvers.sigma_space import alternate, denoised


def plan_heun(config: ScheduleConfig, steps: int, first: int) -> Plan:
    """The plan of diffusers' HeunDiscreteScheduler; with churn, that of k-diffusion's `sample_heun`.

    Karras et al. 2022 (arXiv:2206.00364), algorithms 1 and 2. Even rows predict the latents at sigma', odd rows correct
    them. The last step is Euler's, as there is no slope at sigma' = 0. State: the latents; those before the step; the
    slope there.
    """
    schedule = euler_schedule(config, steps)
    churn = churn_of(config, schedule)
    sigma_read = alternate(churn.sigmas, schedule.sigmas[1:-1])
    level = alternate(churn.levels[:, 1], schedule.sigmas[1:-1])
    after = alternate(np.zeros(steps), churn.after[:-1])

    def advance(state: State, output: Value, noise: Value, row: int) -> State:
        x, start, slope_start = state
        step = row // 2
        width = schedule.sigmas[step + 1] - churn.sigmas[step]
        slope = (x - denoised(x, output, sigma_read[row], config)) / sigma_read[row]
        if row % 2 == 0:
            return x + width * slope, x, slope
        moved = start + width * (slope_start + slope) / 2
        return moved + after[row] * noise if after[row] else moved, 0 * x, 0 * x

    return Plan(
        timesteps=alternate(churn.timesteps, schedule.timesteps[1:]),
        input_scale=preserving_alphas(sigma_read),
        levels=np.stack([np.ones_like(level), level], axis=1),
        draws=after > 0,
        advance=advance,
        state_count=3,
        initial_scale=churn.initial_scale,
        evaluations=2,
    )


HEUN = Sampler(
    scheduler="HeunDiscreteScheduler",
    plan=plan_heun,
    defaults={**LINEAR_LATENT_BETAS, "timestep_spacing": "linspace"},
    reads=SPACING_FIELDS | SIGMA_FIELDS | CHURN_FIELDS | {"clip_sample"},
)
