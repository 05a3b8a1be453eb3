"""The training schedule: signal and noise at every training timestep, and the timestep of any sigma.

Rounded to float32 wherever diffusers holds values in float32: near t = 0, where 1 - alpha_bar is about 1e-3, that
rounding moves sigma by 1e-5 and more, so exact arithmetic would follow another trajectory.
"""

import numpy as np

from latentrt.runtime.arrays import Float32s, Float64s
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.schedules.betas import betas
from latentrt.runtime.samplers.schedules.torch_float32 import cumprod32

SMALLEST_ALPHA_BAR = np.float32(2**-24)
"""Replaces a terminal alpha_bar of zero where sigma must stay finite, as in diffusers: sigma is then 4096."""


def alpha_bars(config: ScheduleConfig) -> Float32s:
    """Squared signal rates (T,): the cumulative products of 1 - beta."""
    return cumprod32(np.float32(1) - betas(config))


def training_sigmas(config: ScheduleConfig) -> Float32s:
    """Sigma of every training timestep, (T,), rising; finite even with zero terminal signal."""
    signal = alpha_bars(config)
    if config.rescale_betas_zero_snr:
        signal[-1] = SMALLEST_ALPHA_BAR
    sigmas: Float32s = np.sqrt((np.float32(1) - signal) / signal)
    return sigmas


def timesteps_of(sigmas: Float64s, training: Float32s) -> Float64s:
    """Fractional training timesteps of any sigmas, interpolated in log sigma; `training` is (T,), rising.

    Differences between entries of `training` are taken in float32, as in diffusers, whose multistep solvers then cut
    off the fraction: another rounding at the ends of the table would give another integer.
    """
    logs = np.log(training)
    wanted = np.log(np.maximum(sigmas, 1e-10))
    low = np.clip(np.searchsorted(logs, wanted, side="right") - 1, 0, len(logs) - 2)
    share = np.clip((logs[low] - wanted) / (logs[low] - logs[low + 1]), 0, 1)
    return np.asarray((1 - share) * low + share * (low + 1))
