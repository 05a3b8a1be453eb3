"""What the solvers in log-SNR share (DPM-Solver++, DEIS, UniPC): S + 1 points without the lowest, order, prediction."""

import numpy as np

from latentrt.runtime.arrays import Float32s, Float64s
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.schedules.spacing import SigmaSchedule, respaced_sigmas, spaced_timesteps, timesteps_of
from latentrt.runtime.samplers.schedules.training import training_sigmas


def spaced_sigmas(
    config: ScheduleConfig, steps: int, training: Float32s, last: int | None = None
) -> tuple[Float64s, Float64s]:
    """Sigmas (S,) and whole timesteps (S,) in the config's spacing, the final sigma not yet appended."""
    timesteps = np.round(spaced_timesteps(config, steps, skip_zero=True, last=last))
    return np.interp(timesteps, np.arange(len(training)), training), timesteps


def respaced(
    config: ScheduleConfig, steps: int, training: Float32s, *, whole: bool
) -> tuple[Float64s, Float64s] | None:
    """Sigmas (S,) over the whole training range and their timesteps, where the config names a spacing of sigmas."""
    sigmas = respaced_sigmas(config, training[-1], training[0], steps)
    if sigmas is None:
        return None
    fractional = timesteps_of(sigmas, training)
    return sigmas, np.round(fractional) if whole else fractional


def closed(sigmas: Float64s, timesteps: Float64s, sigma_last: float) -> SigmaSchedule:
    """The finished schedule: the last sigma appended, sigmas rounded to float32 and timesteps cut to integers."""
    rounded = np.append(sigmas, sigma_last).astype(np.float32).astype(np.float64)
    return SigmaSchedule(rounded, np.trunc(timesteps))


def clipped_end(config: ScheduleConfig, training: Float32s) -> int:
    """One past the highest timestep whose lambda = log(alpha / sigma) is not below `lambda_min_clipped`."""
    return int(np.count_nonzero(-np.log(training) >= config.lambda_min_clipped))


def standard_schedule(config: ScheduleConfig, steps: int) -> SigmaSchedule:
    """The schedule of DPMSolverSinglestepScheduler, and of the multistep form but for its rounding of timesteps."""
    training = training_sigmas(config)
    named = respaced(config, steps, training, whole=config.use_karras_sigmas)
    sigmas, timesteps = named or spaced_sigmas(config, steps, training, clipped_end(config, training))
    return closed(sigmas, timesteps, training[0] if config.final_sigmas_type == "sigma_min" else 0.0)
