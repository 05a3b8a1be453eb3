"""Churn: noise that is added before a step, which then starts at a higher sigma (Euler and Heun).

Karras et al. 2022 (arXiv:2206.00364), algorithm 2, as k-diffusion writes it: the model reads the noisier latents. Row s
of a table therefore adds the noise of step s + 1, and that of the first step is part of the first latents' noise.
"""

from dataclasses import dataclass

import numpy as np

from latentrt.runtime.arrays import Float64s
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.schedules.euler import initial_scale
from latentrt.runtime.samplers.schedules.sigma_schedule import SigmaSchedule
from latentrt.runtime.samplers.schedules.training import timesteps_of, training_sigmas

CHURN_FIELDS = frozenset({"s_churn", "s_noise", "s_tmax", "s_tmin"})
"""Config fields of samplers with churn."""

LARGEST_GAMMA = 2**0.5 - 1
"""A step adds at most as much noise as is there."""


@dataclass(frozen=True, slots=True)
class Churn:
    """The steps of a schedule with their churn, all (S,).

    sigmas and timesteps: what the model is told. levels (S, 2): signal and noise rate of the latents that it reads,
    which differ from sigmas where `s_noise` is not 1. after: rate of the noise added after each step, for the next.
    """

    sigmas: Float64s
    timesteps: Float64s
    levels: Float64s
    after: Float64s
    initial_scale: float


def churn_of(config: ScheduleConfig, schedule: SigmaSchedule) -> Churn:
    """The churn that the config asks for on this schedule; none leaves the schedule as it is."""
    sigma = schedule.sigmas[:-1]
    inside = (sigma >= config.s_tmin) & (sigma <= config.s_tmax)
    gamma = np.where(inside, min(config.s_churn / len(sigma), LARGEST_GAMMA), 0.0)
    raised = sigma * (1 + gamma)
    added = config.s_noise * np.sqrt(raised**2 - sigma**2)
    timesteps = schedule.timesteps
    if gamma.any():
        between = timesteps_of(raised, training_sigmas(config))
        if config.timestep_type == "continuous" and config.prediction_type == "v_prediction":
            between = 0.25 * np.log(raised)
        timesteps = np.where(gamma > 0, between, timesteps)
    return Churn(
        sigmas=raised,
        timesteps=timesteps,
        levels=np.stack([np.ones_like(sigma), np.sqrt(sigma**2 + added**2)], axis=1),
        after=np.append(added[1:], 0.0),
        initial_scale=float(np.sqrt(initial_scale(config, schedule) ** 2 + added[0] ** 2)),
    )
