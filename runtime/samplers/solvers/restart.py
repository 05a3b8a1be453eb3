"""Restart: Heun's method that goes back to noisier latents, several times, over a part of the schedule."""

from itertools import pairwise

import numpy as np

from latentrt.runtime.arrays import Float64s
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Plan, Sampler, State, Value
from latentrt.runtime.samplers.schedules.betas import LATENT_BETAS
from latentrt.runtime.samplers.schedules.euler import euler_schedule, initial_scale
from latentrt.runtime.samplers.schedules.karras_sigmas import karras_sigmas
from latentrt.runtime.samplers.schedules.own_schedule import OWN_SCHEDULE
from latentrt.runtime.samplers.schedules.sigma_schedule import preserving_alphas
from latentrt.runtime.samplers.schedules.sigma_spacing import SIGMA_FIELDS
from latentrt.runtime.samplers.schedules.timestep_spacing import SPACING_FIELDS
from latentrt.runtime.samplers.schedules.training import timesteps_of, training_sigmas
from latentrt.runtime.samplers.solvers.sigma_space import alternate, denoised

RESTART_FROM, RESTART_TO = 0.1, 2.0
"""Sigmas, or the nearest of the schedule but for its zero, between which the restarts go."""

FEWEST, MANY = 20, 36
"""Steps from which there is one restart, of nine steps, and from which there are two, each of a quarter of all."""


def restart_path(sigmas: Float64s) -> list[tuple[float, float]]:
    """The S steps from sigma to sigma' of a schedule (S + 1,), in order, restarts among them.

    Xu et al. 2023 (arXiv:2306.14878), algorithm 1, with the numbers of AUTOMATIC1111's web interface
    (modules/sd_samplers_extra.py): from 20 steps on, Karras' sigmas of the same ends.
    """
    steps = len(sigmas) - 1
    if steps < FEWEST:
        return list(pairwise(sigmas.tolist()))
    length, times = (steps // 4, 2) if steps >= MANY else (9, 1)
    main = np.append(karras_sigmas(sigmas[0], sigmas[-2], steps - length * times), 0.0)
    low, high = (int(np.abs(main[:-1] - sigma).argmin()) for sigma in (RESTART_FROM, RESTART_TO))
    again = list(pairwise(karras_sigmas(main[high], main[low], length + 1).tolist())) if high < low else []
    path = list(pairwise(main.tolist()))
    return path[:low] + again * times + path[low:]


def plan_restart(config: ScheduleConfig, steps: int, first: int) -> Plan:
    """The plan of the web interface's Restart. Rows and state are those of `heun`.

    The row that ends a step before a restart adds the noise that leads back up.
    """
    schedule = euler_schedule(config, steps)
    path = restart_path(schedule.sigmas)
    sigma, sigma_next = np.array(path).T
    raised = np.append(np.sqrt(np.maximum(sigma[1:] ** 2 - sigma_next[:-1] ** 2, 0)), 0.0)
    sigma_read = alternate(sigma, sigma_next[:-1])
    added = config.s_noise * alternate(np.zeros(len(path)), np.where(raised > 1e-6, raised, 0)[:-1])

    def advance(state: State, output: Value, noise: Value, row: int) -> State:
        x, start, slope_start = state
        step = row // 2
        width = sigma_next[step] - sigma[step]
        slope = (x - denoised(x, output, sigma_read[row], config)) / sigma_read[row]
        if row % 2 == 0:
            return x + width * slope, x, slope
        moved = start + width * (slope_start + slope) / 2
        return moved + added[row] * noise if added[row] else moved, 0 * x, 0 * x

    return Plan(
        timesteps=timesteps_of(sigma_read, training_sigmas(config)),
        input_scale=preserving_alphas(sigma_read),
        levels=np.stack([np.ones_like(sigma_read), sigma_read], axis=1),
        draws=added > 0,
        advance=advance,
        state_count=3,
        initial_scale=initial_scale(config, schedule),
        evaluations=2,
    )


RESTART = Sampler(
    scheduler=None,
    plan=plan_restart,
    defaults={**LATENT_BETAS, "timestep_spacing": "linspace"},
    reads=((SPACING_FIELDS | SIGMA_FIELDS) - OWN_SCHEDULE) | {"s_noise"},
)
