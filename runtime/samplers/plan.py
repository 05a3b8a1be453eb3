"""What a sampler's file provides: its textbook step, bound to one schedule."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.samplers.config import ScheduleConfig

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Value = Floats
"""One quantity of the loop (latents, model output, noise). Any shape: a tensor, or its coordinates on a basis."""

State = tuple[Value, ...]
"""What a sampler carries from step to step; the first value is the latents, all others start at zero."""

Advance = Callable[[State, Value, Value, int], State]
"""(state, model output, noise, step) -> next state. Linear: sums of values times numbers, nothing else."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A sampler bound to one schedule of S U-Net evaluations.

    timesteps (S,) is what the U-Net is told, input_scale (S,) what the latents are multiplied by before it sees them,
    initial_scale what standard normal noise is multiplied by to become the first latents, and draws (S,) which steps
    take one standard normal draw of the latents' shape. A sampler with two evaluations per step fills two rows.
    """

    timesteps: Floats
    input_scale: Floats
    draws: Flags
    advance: Advance
    state_count: int = 1
    initial_scale: float = 1.0

    @property
    def step_count(self) -> int:
        """S, the number of U-Net evaluations."""
        return len(self.timesteps)


@dataclass(frozen=True, slots=True)
class Sampler:
    """A known sampler: the diffusers class it equals, how it is planned, and what it takes from a config.

    `defaults` fills the fields whose default differs between diffusers' classes. `reads` names the fields it obeys
    beyond the training schedule, prediction type, spacing and offset; the others do nothing, as in diffusers.
    """

    scheduler: str
    plan: Callable[[ScheduleConfig, int], Plan]
    defaults: Mapping[str, object] = field(default_factory=dict)
    reads: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "defaults", MappingProxyType(dict(self.defaults)))


def no_draws(steps: int) -> Flags:
    """The draws of a deterministic sampler."""
    return np.zeros(steps, dtype=np.bool_)
