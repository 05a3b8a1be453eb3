"""The schedule that the multistep solvers share (DPM-Solver++, UniPC): S + 1 points without the lowest."""

import numpy as np

from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Floats
from latentrt.runtime.samplers.schedule import Float32s, SigmaSchedule, spaced_timesteps

MULTISTEP_FIELDS = frozenset({"lower_order_final", "solver_order", "solver_type", "thresholding", "use_flow_sigmas"})
"""Config fields that both solvers read."""


def spaced_sigmas(
    config: ScheduleConfig, steps: int, training: Float32s, last: int | None = None
) -> tuple[Floats, Floats]:
    """Sigmas (S,) and whole timesteps (S,) in the config's spacing, the final sigma not yet appended."""
    timesteps = np.round(spaced_timesteps(config, steps, skip_zero=True, last=last))
    return np.interp(timesteps, np.arange(len(training)), training), timesteps


def closed(sigmas: Floats, timesteps: Floats, sigma_last: float) -> SigmaSchedule:
    """The finished schedule: the last sigma appended, sigmas rounded to float32 and timesteps cut to integers."""
    rounded = np.append(sigmas, sigma_last).astype(np.float32).astype(np.float64)
    return SigmaSchedule(rounded, np.trunc(timesteps))
