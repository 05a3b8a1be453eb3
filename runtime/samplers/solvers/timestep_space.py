"""What the samplers on whole training timesteps share (DDIM, DDPM, PNDM, LCM, TCD)."""

import numpy as np

from latentrt.runtime.arrays import Float64s
from latentrt.runtime.samplers.plan import Advance, Flags, Plan
from latentrt.runtime.samplers.schedules.discrete import Timesteps, preserving_levels


def preserving_plan(timesteps: Timesteps, signal: Float64s, draws: Flags, advance: Advance) -> Plan:
    """The plan of a sampler on these timesteps, whose squared signal rates (S,) are `signal`."""
    return Plan(
        timesteps=timesteps.astype(np.float64),
        input_scale=np.ones(len(timesteps)),
        levels=preserving_levels(signal),
        draws=draws,
        advance=advance,
    )
