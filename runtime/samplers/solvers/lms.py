"""LMS, linear multistep: Adams-Bashforth over unevenly spaced sigmas."""

from dataclasses import replace

import numpy as np

from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Plan, Sampler, State, Value, no_draws
from latentrt.runtime.samplers.schedules.betas import LINEAR_BETAS
from latentrt.runtime.samplers.schedules.euler import euler_schedule, initial_scale
from latentrt.runtime.samplers.schedules.sigma_schedule import preserving_alphas
from latentrt.runtime.samplers.schedules.sigma_spacing import SIGMA_FIELDS
from latentrt.runtime.samplers.schedules.timestep_spacing import SPACING_FIELDS
from latentrt.runtime.samplers.solvers.lagrange import interpolation_weights
from latentrt.runtime.samplers.solvers.sigma_space import denoised

ORDER = 4


def plan_lms(config: ScheduleConfig, steps: int, first: int) -> Plan:
    """The plan of diffusers' LMSDiscreteScheduler, order 4: x' = x + the integral of the interpolated slopes.

    State: the latents and the three latest slopes. k-diffusion's `sample_lms`; Hairer, Nørsett & Wanner, Solving
    Ordinary Differential Equations I, section III.1.
    """
    if config.use_karras_sigmas:  # this class alone ignores them there, in diffusers too
        config = replace(config, sigma_min=None, sigma_max=None)
    schedule = euler_schedule(config, steps)
    sigmas = schedule.sigmas

    def advance(state: State, output: Value, noise: Value, row: int) -> State:
        x, *history = state
        slope = (x - denoised(x, output, sigmas[row], config)) / sigmas[row]
        slopes = (slope, *history)
        order = min(row - first + 1, ORDER)
        nodes = sigmas[row - np.arange(order)] - sigmas[row]
        for weight, past in zip(interpolation_weights(nodes, sigmas[row + 1] - sigmas[row]), slopes, strict=False):
            x = x + weight * past
        return x, *slopes[: ORDER - 1]

    return Plan(
        timesteps=schedule.timesteps,
        input_scale=preserving_alphas(sigmas[:-1]),
        levels=schedule.levels,
        draws=no_draws(steps),
        advance=advance,
        state_count=ORDER,
        initial_scale=initial_scale(config, schedule),
    )


LMS = Sampler(
    scheduler="LMSDiscreteScheduler",
    plan=plan_lms,
    defaults={**LINEAR_BETAS, "timestep_spacing": "linspace"},
    reads=SPACING_FIELDS | SIGMA_FIELDS,
)
