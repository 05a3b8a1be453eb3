"""One picture on its way from noise to latents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.arrays import Float32s
from latentrt.runtime.bundle.model import Model
from latentrt.runtime.drawing.inpainting import Original
from latentrt.runtime.drawing.timing import Timeline
from latentrt.runtime.errors import RequestError
from latentrt.runtime.lora.mix import Strengths
from latentrt.runtime.request.kinds import one_or_more
from latentrt.runtime.request.request import Request
from latentrt.runtime.samplers import SamplerTable

_changing_hands = Lock()
"""Held while pictures are taken or copied, so that no two loops take one picture."""


class Holder(Protocol):
    """Has the state of pictures on its device."""

    def give_back(self) -> None:
        """Bring its pictures up to date and let go of them, when it is this thread's turn."""


@dataclass(eq=False, slots=True)
class Picture:
    """One picture: everything the loop needs to draw it in S U-Net evaluations of r rows, and the step it is at.

    inputs: values (r, ...) by U-Net port that stay the same over all steps; the rows of the prompt come last.
    guidance (S, r): the model output of step s is guidance[s] · rows; rows of weight zero are not computed.
    noise (draws, 4, h, w): one for each step that draws.
    state (k, 4, h, w): the sampler's state, up to date whenever nobody holds the picture.
    loras: the LoRAs that change the U-Net for this picture, by which its rows of strengths are made.
    extra: the channels that an inpainting U-Net takes beside the latents.
    failed: the first step at which the state was not finite, or -1.
    holder: the loop that has the state on its device. Nobody else changes the picture; copies are brought up to date.
    """

    inputs: Mapping[str, NDArray[Any]]
    guidance: Float32s
    table: SamplerTable
    noise: Float32s
    state: Float32s
    rescale: float = 0.0
    original: Original | None = None
    extra: Float32s | None = None
    loras: Strengths = ()
    step: int = 0
    failed: int = -1
    holder: Holder | None = field(default=None, repr=False)

    @property
    def steps_left(self) -> int:
        """U-Net evaluations until the latents are finished."""
        return self.table.step_count - self.step

    @property
    def rows(self) -> NDArray[np.int64]:
        """Numbers of the rows that the next step computes."""
        return np.flatnonzero(self.guidance[self.step])

    @property
    def most_rows(self) -> int:
        """The largest number of rows that a step computes."""
        return int(np.count_nonzero(self.guidance, axis=1).max())

    @property
    def steady_steps(self) -> int:
        """Number of steps, from this one on, with the same guidance."""
        changes = (self.guidance[self.step :] != self.guidance[self.step]).any(axis=1)
        return int(np.argmax(changes)) if changes.any() else self.steps_left

    def __getstate__(self) -> tuple[None, dict[str, Any]]:
        (now,) = copies([self])
        return None, {field.name: getattr(now, field.name) for field in fields(now)}


@dataclass(eq=False, slots=True)
class Drawing:
    """One request on its way; all its pictures are at the same step.

    It may go on in any pipeline of its model, one at a time, and be copied or pickled between two steps.
    """

    request: Request
    model: Model
    pictures: list[Picture]
    timeline: Timeline = field(default_factory=Timeline)

    @property
    def steps_left(self) -> int:
        """U-Net evaluations until the pictures can be finished."""
        return self.pictures[0].steps_left

    def __getstate__(self) -> tuple[None, dict[str, Any]]:
        pictures = copies(self.pictures)
        timeline = Timeline(before=self.timeline.seconds())  # marks belong to one process
        return None, {"request": self.request, "model": self.model, "pictures": pictures, "timeline": timeline}


def read_drawings(drawings: Any) -> tuple[Drawing, ...]:
    """Drawings that were given as a list.

    Raises:
        RequestError: not a list of drawings.
    """
    given = one_or_more(drawings) if not isinstance(drawings, Drawing) else ()
    if isinstance(drawings, Drawing) or not all(isinstance(drawing, Drawing) for drawing in given):
        found = next((drawing for drawing in given if not isinstance(drawing, Drawing)), drawings)
        raise RequestError(f"drawings: a {type(found).__name__}; give a list of drawings, as `begin` returns them")
    return given


def hold(pictures: Sequence[Picture], holder: Holder) -> None:
    """Make this their holder.

    Raises:
        RequestError: somebody else holds one of them.
    """
    with _changing_hands:
        check_free(pictures, holder)
        for picture in pictures:
            picture.holder = holder


def check_free(pictures: Sequence[Picture], besides: Holder | None = None) -> None:
    """Raise `RequestError` if somebody else holds one of these pictures."""
    if any(picture.holder is not None and picture.holder is not besides for picture in pictures):
        raise RequestError(
            "this drawing is being advanced by another pipeline. Use a drawing in one pipeline at a time, or copy it "
            "first: copy.copy(drawing)"
        )


def call_back(pictures: Sequence[Picture], besides: Holder | None = None) -> None:
    """Have these pictures brought up to date by whoever else holds them; waits for their turns."""
    for picture in pictures:
        holder = picture.holder
        if holder is not None and holder is not besides:
            holder.give_back()


def copies(pictures: Sequence[Picture]) -> list[Picture]:
    """Copies of pictures, up to date, that nobody holds."""
    while True:
        call_back(pictures)
        with _changing_hands:
            if all(picture.holder is None for picture in pictures):
                return [replace(picture) for picture in pictures]
