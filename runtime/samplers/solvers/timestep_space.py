"""Code shared by the samplers on whole training timesteps (DDIM, DDPM, PNDM, LCM, TCD); latents preserve variance."""

import numpy as np

from latentrt.runtime.arrays import Float64s
from latentrt.runtime.samplers.plan import Advance, Flags, Plan
from latentrt.runtime.samplers.schedules.timestep_spacing import Timesteps


def preserving_plan(
    timesteps: Timesteps, signal: Float64s, draws: Flags, advance: Advance, state_count: int = 1
) -> Plan:
    """The plan of a sampler at these timesteps (S,), whose squared signal rates (S,) are `signal`."""
    return Plan(
        timesteps=timesteps.astype(np.float64),
        input_scale=np.ones(len(timesteps)),
        levels=np.stack([np.sqrt(signal), np.sqrt(1 - signal)], axis=1),
        draws=draws,
        advance=advance,
        state_count=state_count,
    )


def signal_at(signal: Float64s, timesteps: Timesteps, final: float) -> Float64s:
    """Squared signal rates at these timesteps; `final` below zero, where the training schedule has none."""
    return np.where(timesteps >= 0, signal[np.maximum(timesteps, 0)], final)
