"""Code shared by the samplers whose latents are x0 + sigma * noise: Euler, Heun, KDPM2, LMS, k-diffusion's DPM++."""

import numpy as np

from latentrt.runtime.arrays import Float64s
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Advance, Flags, Plan, Value
from latentrt.runtime.samplers.schedules.euler import initial_scale
from latentrt.runtime.samplers.schedules.sigma_schedule import SigmaSchedule, preserving_alphas
from latentrt.runtime.samplers.solvers.prediction import predicted_x0


def denoised(x: Value, output: Value, sigma: float, config: ScheduleConfig) -> Value:
    """Clean latents that the model's output implies for x = x0 + sigma * noise."""
    alpha = 1 / np.sqrt(1 + sigma**2)
    return predicted_x0(alpha * x, output, alpha, alpha * sigma, config.prediction_type)


def one_row_per_step(
    config: ScheduleConfig, schedule: SigmaSchedule, advance: Advance, draws: Flags, state_count: int = 1
) -> Plan:
    """The plan of a sampler with one evaluation per step."""
    return Plan(
        timesteps=schedule.timesteps,
        input_scale=preserving_alphas(schedule.sigmas[:-1]),
        levels=schedule.levels,
        draws=draws,
        advance=advance,
        state_count=state_count,
        initial_scale=initial_scale(config, schedule),
    )


def twice(values: Float64s) -> Float64s:
    """Spread per-step values over the rows of a sampler with two evaluations per step: v0, v1, v1, v2, v2, ...

    The row that completes a step and the one that begins the next stand at the same sigma.
    """
    return np.repeat(values, 2)[1:]


def alternate(first: Float64s, second: Float64s) -> Float64s:
    """Interleave the values of S first and S - 1 second evaluations."""
    rows = np.empty(len(first) + len(second))
    rows[0::2], rows[1::2] = first, second
    return rows
