"""A schedule that the request itself gives, as timesteps or as sigmas."""

import numpy as np

from latentrt.runtime.arrays import Float32s, Float64s
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.schedules.training import timesteps_of

OWN_TIMESTEPS = frozenset({"timesteps"})
OWN_SCHEDULE = frozenset({"sigmas", "timesteps"})
"""Config fields that hold the schedule itself."""


def own_sigmas(config: ScheduleConfig) -> Float64s | None:
    """The config's sigmas (S,), without the zero that may stand at their end; None where it has none."""
    return None if config.sigmas is None else np.array([sigma for sigma in config.sigmas if sigma > 0])


def own_schedule(config: ScheduleConfig, training: Float32s) -> tuple[Float64s, Float64s] | None:
    """The config's own sigmas (S,) and timesteps (S,); None where it has none.

    Sigmas between two training timesteps are interpolated as diffusers does: linearly in the timestep, and timesteps in
    log sigma.
    """
    if config.timesteps is not None:
        timesteps = np.array(config.timesteps)
        return np.interp(timesteps, np.arange(len(training)), training), timesteps
    sigmas = own_sigmas(config)
    return None if sigmas is None else (sigmas, timesteps_of(sigmas, training))
