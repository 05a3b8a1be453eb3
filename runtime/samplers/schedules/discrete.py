"""What the samplers on whole training timesteps share (DDIM, DDPM, PNDM, LCM, TCD); latents preserve variance."""

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import Float64s
from latentrt.runtime.errors import CheckpointError, RequestError
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.schedules.spacing import spaced_timesteps

Timesteps = NDArray[np.int64]


def whole_timesteps(name: str, config: ScheduleConfig, steps: int) -> Timesteps:
    """Whole timesteps (S,) in the config's spacing, falling.

    Raises:
        RequestError: the offset pushes the first one beyond the training timesteps.
    """
    timesteps = np.round(spaced_timesteps(config, steps)).astype(np.int64)
    if timesteps.max() >= config.num_train_timesteps:
        raise RequestError(
            f"steps {steps}: {name} with steps_offset {config.steps_offset} would start at timestep {timesteps.max()}, "
            f"but the model was trained on 0 to {config.num_train_timesteps - 1}. Ask for fewer steps"
        )
    return timesteps


def distilled_timesteps(name: str, config: ScheduleConfig, steps: int) -> Timesteps:
    """S of the timesteps that the model was distilled on, evenly spaced, from the highest down.

    Raises:
        CheckpointError: `original_inference_steps` does not fit the training schedule.
        RequestError: more steps than the model was distilled on.
    """
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


def signal_at(signal: Float64s, timesteps: Timesteps, final: float) -> Float64s:
    """Squared signal rates at these timesteps; `final` below zero, where the training schedule has none."""
    return np.where(timesteps >= 0, signal[np.maximum(timesteps, 0)], final)


def preserving_levels(alpha_bar: Float64s) -> Float64s:
    """Signal and noise rates (S, 2) of squared signal rates (S,)."""
    return np.stack([np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)], axis=1)
