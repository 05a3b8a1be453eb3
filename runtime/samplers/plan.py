"""The two things that a sampler's file provides: a `Sampler`, and the `Plan` that binds its step to a schedule."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import Float64s
from latentrt.runtime.samplers.config import ScheduleConfig

Flags = NDArray[np.bool_]
Value = Float64s
"""One quantity of the loop (latents, model output, noise), of any shape: a tensor, or its coordinates on a basis."""

State = tuple[Value, ...]
"""The values that a sampler carries from row to row: the latents, then others that start at zero."""

Advance = Callable[[State, Value, Value, int], State]
"""(state, model output, noise, row) -> next state. Linear: sums of values times numbers, nothing else."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A sampler bound to one schedule of S U-Net evaluations, one row each.

    timesteps (S,)     what the U-Net is told
    input_scale (S,)   factor from the latents to the U-Net's input
    levels (S, 2)      signal and noise rates at which diffusers mixes an original into the latents that row s reads
    draws (S,)         rows that take one standard normal draw of the latents' shape
    advance            the step
    state_count        values in the state
    initial_scale      factor from standard normal noise to the first latents
    evaluations        U-Net evaluations per step; with two, every step has two rows but the last, which needs only one
    """

    timesteps: Float64s
    input_scale: Float64s
    levels: Float64s
    draws: Flags
    advance: Advance
    state_count: int = 1
    initial_scale: float = 1.0
    evaluations: int = 1

    @property
    def row_count(self) -> int:
        """S, the number of U-Net evaluations."""
        return len(self.timesteps)


Planner = Callable[[ScheduleConfig, int, int], Plan]
"""(config, steps, first) -> plan of the whole schedule; multistep solvers warm up at row `first`."""


@dataclass(frozen=True, slots=True)
class Sampler:
    """A sampler: the diffusers class that it equals, if there is one, its planner, and what it reads from a config.

    `defaults` holds the fields whose default differs between diffusers' classes. `reads` names the fields that it obeys
    beyond the training schedule and the prediction type; others are ignored, as in diffusers. Where two samplers share
    a class, `sde` marks the one for the config's `sde-` algorithm types.
    """

    scheduler: str | None
    plan: Planner
    defaults: Mapping[str, object] = field(default_factory=dict)
    reads: frozenset[str] = frozenset()
    sde: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "defaults", MappingProxyType(dict(self.defaults)))


def no_draws(rows: int) -> Flags:
    """The `draws` of a deterministic sampler."""
    return np.zeros(rows, dtype=np.bool_)
