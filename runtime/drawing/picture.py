"""One picture on its way from noise to latents."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import Float32s
from latentrt.runtime.drawing.inpainting import Original
from latentrt.runtime.drawing.timing import Timeline
from latentrt.runtime.request.request import Request
from latentrt.runtime.samplers import SamplerTable


@dataclass(eq=False, slots=True)
class Picture:
    """One picture: everything the loop needs to draw it in S U-Net evaluations of r rows, and the step it is at.

    inputs: values (r, ...) by U-Net port that stay the same over all steps; the prompt's row comes last.
    guidance (S, r): the model output of step s is guidance[s] · rows; rows of weight zero are not computed.
    noise (draws, 4, h, w): one for each step that draws.
    state (k, 4, h, w): the sampler's state, up to date whenever no loop holds the picture.
    extra: the channels that an inpainting U-Net takes beside the latents.
    failed: the first step at which the state was not finite, or -1.
    """

    inputs: Mapping[str, NDArray[Any]]
    guidance: Float32s
    table: SamplerTable
    noise: Float32s
    state: Float32s
    rescale: float = 0.0
    original: Original | None = None
    extra: Float32s | None = None
    step: int = 0
    failed: int = -1

    @property
    def steps_left(self) -> int:
        """U-Net evaluations until the latents are finished."""
        return self.table.step_count - self.step

    @property
    def rows(self) -> NDArray[np.int64]:
        """Numbers of the rows that the next step computes."""
        return np.flatnonzero(self.guidance[self.step])

    @property
    def steady_steps(self) -> int:
        """Number of steps, from this one on, with the same guidance."""
        changes = (self.guidance[self.step :] != self.guidance[self.step]).any(axis=1)
        return int(np.argmax(changes)) if changes.any() else self.steps_left


@dataclass(eq=False, slots=True)
class Drawing:
    """One request on its way; all its pictures are at the same step."""

    request: Request
    pictures: list[Picture]
    timeline: Timeline = field(default_factory=Timeline)

    @property
    def steps_left(self) -> int:
        """U-Net evaluations until the pictures can be finished."""
        return self.pictures[0].steps_left
