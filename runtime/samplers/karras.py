"""What the samplers in Karras' notation share (Euler, Heun, KDPM2, LMS): latents are x0 + sigma * noise."""

import numpy as np

from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Advance, Flags, Floats, Plan, Value
from latentrt.runtime.samplers.prediction import predicted_x0
from latentrt.runtime.samplers.schedule import (
    SigmaSchedule,
    preserving_alphas,
    respaced_sigmas,
    spaced_timesteps,
    timesteps_of,
)
from latentrt.runtime.samplers.training import linspace32, training_sigmas


def exploding_schedule(config: ScheduleConfig, steps: int) -> SigmaSchedule:
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
    return SigmaSchedule(sigmas, timesteps, preserving=False)


def denoised(x: Value, output: Value, sigma: float, config: ScheduleConfig) -> Value:
    """Clean latents that the model's output implies for x = x0 + sigma * noise."""
    alpha = 1 / np.sqrt(1 + sigma**2)
    return predicted_x0(alpha * x, output, alpha, alpha * sigma, config.prediction_type)


def initial_scale(config: ScheduleConfig, schedule: SigmaSchedule) -> float:
    """Spread of the first latents: sigma, or with the signal's own variance where the schedule keeps some signal."""
    sigma_max = schedule.sigmas.max()
    from_zero_signal = config.timestep_spacing in ("linspace", "trailing")
    return float(sigma_max if from_zero_signal else np.sqrt(sigma_max**2 + 1))


def one_row_per_step(config: ScheduleConfig, schedule: SigmaSchedule, advance: Advance, draws: Flags) -> Plan:
    """The plan of a stateless sampler with one evaluation per step."""
    return Plan(
        timesteps=schedule.timesteps,
        input_scale=preserving_alphas(schedule.sigmas[:-1]),
        levels=schedule.levels,
        draws=draws,
        advance=advance,
        initial_scale=initial_scale(config, schedule),
    )


def twice(values: Floats) -> Floats:
    """Per-step values as rows of a sampler with two evaluations per step: v0, v1, v1, v2, v2, ...

    A row's value is that of the step it completes; the first row of the next step stands at the same place.
    """
    return np.repeat(values, 2)[1:]


def alternate(first: Floats, second: Floats) -> Floats:
    """Rows of S first and S - 1 second evaluations, taken in turns."""
    rows = np.empty(len(first) + len(second))
    rows[0::2], rows[1::2] = first, second
    return rows
