"""Timestep spacing: which training timesteps the steps of a request stand at."""

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import Float64s
from latentrt.runtime.errors import CheckpointError, RequestError
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.schedules.own_schedule import OWN_TIMESTEPS

Timesteps = NDArray[np.int64]

SPACING_FIELDS = frozenset({"steps_offset", "timestep_spacing"}) | OWN_TIMESTEPS
"""Config fields that space the timesteps, or hold them."""


def spaced_timesteps(
    config: ScheduleConfig, steps: int, *, skip_zero: bool = False, last: int | None = None
) -> Float64s:
    """Timesteps (S,) in the spacing `leading`, `trailing` or `linspace`, falling, not yet rounded.

    Lin et al. 2023 (arXiv:2305.08891), table 2. `skip_zero` divides the range into S + 1 points and drops the lowest,
    as the multistep solvers do; `last` replaces the number of training timesteps as the upper end.
    """
    count = config.num_train_timesteps
    end = count if last is None else last
    points = steps + skip_zero
    if config.timestep_spacing == "linspace":
        return np.linspace(0, end - 1, points)[::-1][:steps]
    if config.timestep_spacing == "leading":
        return np.arange(points, dtype=np.float64)[::-1][:steps] * (end // points) + config.steps_offset
    # Rounding errors make arange one element too long for some S (61 of 1000, for one): S steps were asked for.
    return np.round(np.arange(end, 0, -count / steps)[:steps]) - 1


def whole_timesteps(name: str, config: ScheduleConfig, steps: int) -> Timesteps:
    """Timesteps (S,) in the config's spacing, falling, rounded to integers; `name` is the sampler's, for the error.

    Raises:
        RequestError: the offset pushes the first one beyond the training timesteps.
    """
    if config.timesteps is not None:
        return whole_own_timesteps(name, config.timesteps)
    timesteps = np.round(spaced_timesteps(config, steps)).astype(np.int64)
    if timesteps.max() >= config.num_train_timesteps:
        raise RequestError(
            f"steps {steps}: {name} with steps_offset {config.steps_offset} would start at timestep {timesteps.max()}, "
            f"but the model was trained on 0 to {config.num_train_timesteps - 1}. Ask for fewer steps"
        )
    return timesteps


def whole_own_timesteps(name: str, given: tuple[float, ...]) -> Timesteps:
    """The request's own timesteps (S,), for a sampler that stands on whole ones; `name` is the sampler's.

    Raises:
        RequestError: one of them has a fraction.
    """
    timesteps = np.array(given).astype(np.int64)
    if (timesteps != np.array(given)).any():
        raise RequestError(f"timesteps: {name} stands on whole training timesteps; give whole numbers")
    return timesteps


def distilled_timesteps(name: str, config: ScheduleConfig, steps: int) -> Timesteps:
    """The request's own timesteps, or S of those that the model was distilled on, evenly spaced, from the highest down.

    Raises:
        CheckpointError: `original_inference_steps` does not fit the training schedule.
        RequestError: more steps than the model was distilled on.
    """
    if config.timesteps is not None:
        return whole_own_timesteps(name, config.timesteps)
    distilled = config.original_inference_steps
    if not 1 <= distilled <= config.num_train_timesteps:
        raise CheckpointError(
            f"scheduler config: original_inference_steps {distilled}: it must lie between 1 and num_train_timesteps "
            f"({config.num_train_timesteps})"
        )
    if steps > distilled:
        raise RequestError(
            f"steps {steps}: {name} takes 1 to {distilled}, the timesteps that the model was distilled on"
        )
    origin = np.arange(distilled, 0, -1) * (config.num_train_timesteps // distilled) - 1
    return origin[np.floor(np.linspace(0, distilled, steps, endpoint=False)).astype(np.int64)]
