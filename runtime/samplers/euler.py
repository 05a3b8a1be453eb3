"""Euler and Euler ancestral, the samplers of Karras' notation: latents are x0 + sigma * noise."""

import numpy as np

from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Advance, Flags, Plan, Sampler, State, Value, no_draws
from latentrt.runtime.samplers.schedule import (
    LINEAR_BETAS,
    SIGMA_FIELDS,
    SigmaSchedule,
    linspace32,
    predicted_x0,
    respaced_sigmas,
    spaced_timesteps,
    timesteps_of,
    training_sigmas,
)


def euler(x: Value, denoised: Value, sigma: float, sigma_next: float) -> Value:
    """Euler's step: x' = x + (sigma' - sigma) d with d = (x - denoised) / sigma.

    Karras et al. 2022 (arXiv:2206.00364), algorithm 1 without its second-order correction.
    """
    slope = (x - denoised) / sigma
    return x + (sigma_next - sigma) * slope


def euler_ancestral(x: Value, denoised: Value, noise: Value, sigma: float, sigma_next: float) -> Value:
    """An Euler step down to sigma_down, then fresh noise of sigma_up, with sigma_down² + sigma_up² = sigma'².

    sigma_up² = sigma'² (sigma² - sigma'²) / sigma²: the ancestral sampling of Song et al. 2021 (arXiv:2011.13456),
    equation 47, as k-diffusion's `sample_euler_ancestral` writes it.
    """
    sigma_down = sigma_next**2 / sigma
    sigma_up: float = sigma_next * np.sqrt(1 - (sigma_next / sigma) ** 2)
    return euler(x, denoised, sigma, sigma_down) + sigma_up * noise


def plan_euler(config: ScheduleConfig, steps: int) -> Plan:
    """The plan of diffusers' EulerDiscreteScheduler."""
    schedule = _schedule(config, steps)

    def advance(state: State, output: Value, noise: Value, step: int) -> State:
        (x,) = state
        sigma, sigma_next = schedule.sigmas[step : step + 2]
        return (euler(x, _denoised(x, output, sigma, config), sigma, sigma_next),)

    return _plan(config, schedule, advance, no_draws(steps))


def plan_euler_ancestral(config: ScheduleConfig, steps: int) -> Plan:
    """The plan of diffusers' EulerAncestralDiscreteScheduler, which draws noise on every step.

    Also on the last one, where sigma_up is zero.
    """
    schedule = _schedule(config, steps)

    def advance(state: State, output: Value, noise: Value, step: int) -> State:
        (x,) = state
        sigma, sigma_next = schedule.sigmas[step : step + 2]
        return (euler_ancestral(x, _denoised(x, output, sigma, config), noise, sigma, sigma_next),)

    return _plan(config, schedule, advance, ~no_draws(steps))


def _denoised(x: Value, output: Value, sigma: float, config: ScheduleConfig) -> Value:
    alpha = 1 / np.sqrt(1 + sigma**2)
    return predicted_x0(alpha * x, output, alpha, alpha * sigma, config.prediction_type)


def _schedule(config: ScheduleConfig, steps: int) -> SigmaSchedule:
    """Sigmas and timesteps; with log-linear interpolation the last sigma is the training schedule's first, not zero."""
    training = training_sigmas(config)
    timesteps = spaced_timesteps(config, steps).astype(np.float32).astype(np.float64)
    sigmas = np.interp(timesteps, np.arange(len(training)), training)
    if config.interpolation_type == "log_linear":
        ends = np.log(training[[-1, 0]])
        sigmas = np.exp(linspace32(ends[0], ends[1], steps + 1)).astype(np.float64)
    respaced = respaced_sigmas(config, sigmas[0], sigmas[-1], steps)
    if respaced is not None:
        sigmas, timesteps = respaced, timesteps_of(respaced, training)
    sigma_last = training[0] if config.final_sigmas_type == "sigma_min" else 0.0
    sigmas = np.append(sigmas, sigma_last)[: steps + 1].astype(np.float32).astype(np.float64)
    if config.timestep_type == "continuous" and config.prediction_type == "v_prediction":
        timesteps = 0.25 * np.log(sigmas[:-1])
    return SigmaSchedule(sigmas, timesteps)


def _plan(config: ScheduleConfig, schedule: SigmaSchedule, advance: Advance, draws: Flags) -> Plan:
    sigma_max = schedule.sigmas.max()
    from_zero_signal = config.timestep_spacing in ("linspace", "trailing")
    return Plan(
        timesteps=schedule.timesteps,
        input_scale=schedule.alphas[:-1],
        draws=draws,
        advance=advance,
        initial_scale=float(sigma_max if from_zero_signal else np.sqrt(sigma_max**2 + 1)),
    )


_DEFAULTS = {**LINEAR_BETAS, "timestep_spacing": "linspace"}

EULER = Sampler(
    scheduler="EulerDiscreteScheduler",
    plan=plan_euler,
    defaults=_DEFAULTS,
    reads=SIGMA_FIELDS | {"interpolation_type", "timestep_type"},
)

EULER_ANCESTRAL = Sampler(
    scheduler="EulerAncestralDiscreteScheduler",
    plan=plan_euler_ancestral,
    defaults=_DEFAULTS,
)
