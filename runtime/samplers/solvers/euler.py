"""Euler, with churn if asked for, and Euler ancestral."""

import numpy as np

from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Plan, Sampler, State, Value
from latentrt.runtime.samplers.schedules.betas import LINEAR_BETAS
from latentrt.runtime.samplers.schedules.euler import euler_schedule
from latentrt.runtime.samplers.schedules.sigma_schedule import preserving_alphas
from latentrt.runtime.samplers.schedules.sigma_spacing import NAMED_FIELDS, SIGMA_FIELDS
from latentrt.runtime.samplers.schedules.timestep_spacing import SPACING_FIELDS
from latentrt.runtime.samplers.solvers.churn import CHURN_FIELDS, churn_of
from latentrt.runtime.samplers.solvers.sigma_space import denoised, one_row_per_step


def euler(x: Value, x0: Value, sigma: float, sigma_next: float) -> Value:
    """The Euler step: x' = x + (sigma' - sigma) d with d = (x - x0) / sigma.

    Karras et al. 2022 (arXiv:2206.00364), algorithm 2 without its second-order correction.
    """
    slope = (x - x0) / sigma
    return x + (sigma_next - sigma) * slope


def ancestral(sigma: float, sigma_next: float, eta: float = 1.0) -> tuple[float, float]:
    """Split sigma' into sigma_down, where the step lands, and sigma_up, the fresh noise: the squares add up to sigma'².

    sigma_up² = eta² sigma'² (sigma² - sigma'²) / sigma²: the ancestral sampling of Song et al. 2021 (arXiv:2011.13456),
    equation 47, as k-diffusion writes it (`get_ancestral_step`).
    """
    share = (sigma_next / sigma) ** 2
    sigma_up: float = eta * sigma_next * np.sqrt(1 - share)
    sigma_down: float = sigma_next * np.sqrt(1 - eta**2 + eta**2 * share)
    return sigma_down, sigma_up


def plan_euler(config: ScheduleConfig, steps: int, first: int) -> Plan:
    """The plan of diffusers' EulerDiscreteScheduler; with churn, that of k-diffusion's `sample_euler`."""
    schedule = euler_schedule(config, steps)
    churn = churn_of(config, schedule)

    def advance(state: State, output: Value, noise: Value, row: int) -> State:
        (x,) = state
        sigma, sigma_next = churn.sigmas[row], schedule.sigmas[row + 1]
        moved = euler(x, denoised(x, output, sigma, config), sigma, sigma_next)
        return (moved + churn.after[row] * noise if churn.after[row] else moved,)

    return Plan(
        timesteps=churn.timesteps,
        input_scale=preserving_alphas(churn.sigmas),
        levels=churn.levels,
        draws=churn.after > 0,
        advance=advance,
        initial_scale=churn.initial_scale,
    )


def plan_euler_ancestral(config: ScheduleConfig, steps: int, first: int) -> Plan:
    """The plan of diffusers' EulerAncestralDiscreteScheduler; `eta` and `s_noise` as in k-diffusion.

    It draws noise on every step, even on the last one, where sigma_up is zero.
    """
    schedule = euler_schedule(config, steps)
    eta = 1.0 if config.eta is None else config.eta

    def advance(state: State, output: Value, noise: Value, row: int) -> State:
        (x,) = state
        sigma, sigma_next = schedule.sigmas[row : row + 2]
        sigma_down, sigma_up = ancestral(sigma, sigma_next, eta)
        fresh = config.s_noise * sigma_up * noise
        return (euler(x, denoised(x, output, sigma, config), sigma, sigma_down) + fresh,)

    return one_row_per_step(config, schedule, advance, np.full(steps, eta > 0))


_DEFAULTS = {**LINEAR_BETAS, "timestep_spacing": "linspace"}

EULER = Sampler(
    scheduler="EulerDiscreteScheduler",
    plan=plan_euler,
    defaults=_DEFAULTS,
    reads=SPACING_FIELDS
    | SIGMA_FIELDS
    | CHURN_FIELDS
    | {"final_sigmas_type", "interpolation_type", "rescale_betas_zero_snr", "timestep_type"},
)

EULER_ANCESTRAL = Sampler(
    scheduler="EulerAncestralDiscreteScheduler",
    plan=plan_euler_ancestral,
    defaults=_DEFAULTS,
    reads=SPACING_FIELDS | NAMED_FIELDS | {"eta", "rescale_betas_zero_snr", "s_noise"},
)
