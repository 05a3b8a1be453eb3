"""Euler and Euler ancestral."""

import numpy as np

from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Plan, Sampler, State, Value, no_draws
from latentrt.runtime.samplers.schedules.betas import LINEAR_BETAS
from latentrt.runtime.samplers.schedules.euler import euler_schedule
from latentrt.runtime.samplers.schedules.sigma_spacing import SIGMA_FIELDS
from latentrt.runtime.samplers.schedules.timestep_spacing import SPACING_FIELDS
from latentrt.runtime.samplers.solvers.sigma_space import denoised, one_row_per_step


def euler(x: Value, x0: Value, sigma: float, sigma_next: float) -> Value:
    """The Euler step: x' = x + (sigma' - sigma) d with d = (x - x0) / sigma.

    Karras et al. 2022 (arXiv:2206.00364), algorithm 1 without its second-order correction.
    """
    slope = (x - x0) / sigma
    return x + (sigma_next - sigma) * slope


def ancestral(sigma: float, sigma_next: float) -> tuple[float, float]:
    """Split sigma' into sigma_down, where the step lands, and sigma_up, the fresh noise: the squares add up to sigma'².

    sigma_up² = sigma'² (sigma² - sigma'²) / sigma²: the ancestral sampling of Song et al. 2021 (arXiv:2011.13456),
    equation 47, as k-diffusion writes it.
    """
    sigma_up: float = sigma_next * np.sqrt(1 - (sigma_next / sigma) ** 2)
    return sigma_next**2 / sigma, sigma_up


def plan_euler(config: ScheduleConfig, steps: int, first: int) -> Plan:
    """The plan of diffusers' EulerDiscreteScheduler."""
    schedule = euler_schedule(config, steps)

    def advance(state: State, output: Value, noise: Value, row: int) -> State:
        (x,) = state
        sigma, sigma_next = schedule.sigmas[row : row + 2]
        return (euler(x, denoised(x, output, sigma, config), sigma, sigma_next),)

    return one_row_per_step(config, schedule, advance, no_draws(steps))


def plan_euler_ancestral(config: ScheduleConfig, steps: int, first: int) -> Plan:
    """The plan of diffusers' EulerAncestralDiscreteScheduler.

    It draws noise on every step, even on the last one, where sigma_up is zero.
    """
    schedule = euler_schedule(config, steps)

    def advance(state: State, output: Value, noise: Value, row: int) -> State:
        (x,) = state
        sigma, sigma_next = schedule.sigmas[row : row + 2]
        sigma_down, sigma_up = ancestral(sigma, sigma_next)
        return (euler(x, denoised(x, output, sigma, config), sigma, sigma_down) + sigma_up * noise,)

    return one_row_per_step(config, schedule, advance, ~no_draws(steps))


_DEFAULTS = {**LINEAR_BETAS, "timestep_spacing": "linspace"}

EULER = Sampler(
    scheduler="EulerDiscreteScheduler",
    plan=plan_euler,
    defaults=_DEFAULTS,
    reads=SPACING_FIELDS
    | SIGMA_FIELDS
    | {"final_sigmas_type", "interpolation_type", "rescale_betas_zero_snr", "timestep_type"},
)

EULER_ANCESTRAL = Sampler(
    scheduler="EulerAncestralDiscreteScheduler",
    plan=plan_euler_ancestral,
    defaults=_DEFAULTS,
    reads=SPACING_FIELDS | {"rescale_betas_zero_snr"},
)
