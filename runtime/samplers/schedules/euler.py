"""The schedule of Euler, Heun, KDPM2 and LMS, whose latents are x0 + sigma * noise (Karras' notation)."""

import numpy as np

from latentrt.runtime.arrays import Float32s, Float64s
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.schedules.named_sigmas import named_sigmas
from latentrt.runtime.samplers.schedules.own_schedule import own_schedule
from latentrt.runtime.samplers.schedules.sigma_schedule import SigmaSchedule
from latentrt.runtime.samplers.schedules.sigma_spacing import respaced_sigmas
from latentrt.runtime.samplers.schedules.timestep_spacing import spaced_timesteps
from latentrt.runtime.samplers.schedules.torch_float32 import linspace32
from latentrt.runtime.samplers.schedules.training import timesteps_of, training_sigmas


def euler_schedule(config: ScheduleConfig, steps: int) -> SigmaSchedule:
    """Sigmas and timesteps; log-linear interpolation ends at the lowest training sigma instead of zero."""
    training = training_sigmas(config)
    sigmas, timesteps = _levels(config, steps, training)
    sigma_last = training[0] if config.final_sigmas_type == "sigma_min" else 0.0
    sigmas = np.append(sigmas, sigma_last)[: steps + 1].astype(np.float32).astype(np.float64)
    if config.timestep_type == "continuous" and config.prediction_type == "v_prediction":
        timesteps = 0.25 * np.log(sigmas[:-1])
    return SigmaSchedule(sigmas, timesteps, preserving=False)


def _levels(config: ScheduleConfig, steps: int, training: Float32s) -> tuple[Float64s, Float64s]:
    """Sigmas (S,), or (S + 1,) where they are interpolated log-linearly, and timesteps (S,)."""
    if (own := own_schedule(config, training)) is not None:
        return own
    if config.sigma_spacing is not None:
        sigmas = named_sigmas(config, training, steps)
        return sigmas, timesteps_of(sigmas, training)
    timesteps = spaced_timesteps(config, steps).astype(np.float32).astype(np.float64)
    sigmas = np.interp(timesteps, np.arange(len(training)), training)
    if config.interpolation_type == "log_linear":
        ends = np.log(training[[-1, 0]])
        sigmas = np.exp(linspace32(ends[0], ends[1], steps + 1)).astype(np.float64)
    respaced = respaced_sigmas(config, sigmas[0], sigmas[-1], steps)
    if respaced is not None:
        return respaced, timesteps_of(respaced, training)
    return sigmas, timesteps


def initial_scale(config: ScheduleConfig, schedule: SigmaSchedule) -> float:
    """Standard deviation of the first latents: sigma, or sqrt(sigma² + 1) where the schedule's start keeps signal."""
    sigma_max = schedule.sigmas.max()
    from_zero_signal = config.timestep_spacing in ("linspace", "trailing")
    return float(sigma_max if from_zero_signal else np.sqrt(sigma_max**2 + 1))
