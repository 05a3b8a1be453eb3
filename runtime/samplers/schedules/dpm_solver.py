"""The schedules of DPM-Solver, DPM-Solver++, DEIS and UniPC, whose latents preserve variance.

They divide the training timesteps into S + 1 points without the lowest, and tell the model whole timesteps; but for
schedules that diffusers' classes do not have.
"""

import numpy as np

from latentrt.runtime.arrays import Float32s, Float64s
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.schedules.named_sigmas import named_sigmas
from latentrt.runtime.samplers.schedules.own_schedule import own_schedule
from latentrt.runtime.samplers.schedules.sigma_schedule import SigmaSchedule
from latentrt.runtime.samplers.schedules.sigma_spacing import respaced_sigmas
from latentrt.runtime.samplers.schedules.timestep_spacing import spaced_timesteps
from latentrt.runtime.samplers.schedules.training import timesteps_of, training_sigmas


def dpm_solver_schedule(config: ScheduleConfig, steps: int, *, round_respaced: bool) -> SigmaSchedule:
    """The schedule of DPM-Solver and DPM-Solver++, whose training timesteps `lambda_min_clipped` may cut.

    `round_respaced` rounds the timesteps of Karras, exponential and beta sigmas; otherwise their fraction is cut off.
    """
    training = training_sigmas(config)
    sigma_last = training[0] if config.final_sigmas_type == "sigma_min" else 0.0
    if (free := _free(config, steps, training)) is not None:
        return _finished(*free, sigma_last)
    respaced = _respaced(config, steps, training, rounded=round_respaced)
    sigmas, timesteps = respaced or _spaced(config, steps, training, _clipped_end(config, training))
    return _finished(sigmas, np.trunc(timesteps), sigma_last)


def deis_schedule(config: ScheduleConfig, steps: int, *, to_zero: bool) -> SigmaSchedule:
    """The schedule of DEIS, which never reaches sigma zero, and of UniPC, which does with `to_zero`.

    Without it, Karras, exponential and beta sigmas stand still for the last step.
    """
    training = training_sigmas(config)
    if (free := _free(config, steps, training)) is not None:
        return _finished(*free, 0.0 if to_zero else min(training[0], free[0][-1]))
    respaced = _respaced(config, steps, training, rounded=config.use_karras_sigmas)
    sigmas, timesteps = respaced or _spaced(config, steps, training)
    sigma_last = sigmas[-1] if respaced else training[0]
    return _finished(sigmas, np.trunc(timesteps), 0.0 if to_zero else sigma_last)


def _free(config: ScheduleConfig, steps: int, training: Float32s) -> tuple[Float64s, Float64s] | None:
    """Sigmas (S,) and timesteps (S,) of a schedule that diffusers' classes do not have: the request's, or a named one.

    The model is told timesteps with their fraction.
    """
    if (own := own_schedule(config, training)) is not None:
        return own
    if config.sigma_spacing is None:
        return None
    sigmas = named_sigmas(config, training, steps)
    return sigmas, timesteps_of(sigmas, training)


def _spaced(
    config: ScheduleConfig, steps: int, training: Float32s, last: int | None = None
) -> tuple[Float64s, Float64s]:
    """Sigmas (S,) and whole timesteps (S,) in the config's timestep spacing."""
    timesteps = np.round(spaced_timesteps(config, steps, skip_zero=True, last=last))
    return np.interp(timesteps, np.arange(len(training)), training), timesteps


def _respaced(
    config: ScheduleConfig, steps: int, training: Float32s, *, rounded: bool
) -> tuple[Float64s, Float64s] | None:
    """Sigmas (S,) in the config's sigma spacing, over the whole training range, and their timesteps (S,)."""
    sigmas = respaced_sigmas(config, training[-1], training[0], steps)
    if sigmas is None:
        return None
    fractional = timesteps_of(sigmas, training)
    return sigmas, np.round(fractional) if rounded else fractional


def _clipped_end(config: ScheduleConfig, training: Float32s) -> int:
    """One past the highest timestep whose lambda = log(alpha / sigma) is not below `lambda_min_clipped`."""
    return int(np.count_nonzero(-np.log(training) >= config.lambda_min_clipped))


def _finished(sigmas: Float64s, timesteps: Float64s, sigma_last: float) -> SigmaSchedule:
    """The schedule with its last sigma, sigmas rounded to float32."""
    return SigmaSchedule(np.append(sigmas, sigma_last).astype(np.float32).astype(np.float64), timesteps)
