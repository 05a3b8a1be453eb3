"""SDXL's micro-conditioning: numbers about a training image that its U-Net was given along with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from latentrt.runtime.bundle.model import TimeId
from latentrt.runtime.request.kinds import Kind, number, pair

Size = tuple[int, int]
"""(height, width) in pixels, or (top, left) of a crop, in SDXL's own order."""

AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5
"""Default aesthetic scores of SDXL's refiner, as in diffusers."""

SCORE = number("a number, usually 1 to 10")
"""Kind of value that an aesthetic score is."""


@dataclass(frozen=True, slots=True)
class MicroConditioning:
    """SDXL's time ids: an image's original size, crop corner and target size (Podell et al. 2023, section 2.2).

    `original` and `target` default to the request's own size. SDXL's refiner takes `aesthetic_score` in place of the
    target size; it defaults to 6.0, and to 2.5 in the negative rows, as in diffusers.

    Raises:
        RequestError: a size is not a pair of whole numbers, or the score not a number.
    """

    original: Size | None = None
    crop: Size = (0, 0)
    target: Size | None = None
    aesthetic_score: float | None = None

    def __post_init__(self) -> None:
        for name, words in (("original", "original size"), ("crop", "crop"), ("target", "target size")):
            value = getattr(self, name)
            if value is not None or name == "crop":
                object.__setattr__(self, name, pair().read(words, value))
        if self.aesthetic_score is not None:
            object.__setattr__(self, "aesthetic_score", SCORE.read("aesthetic score", self.aesthetic_score))

    def time_ids(self, names: Sequence[TimeId], height: int, width: int, score: float) -> tuple[float, ...]:
        """The time ids of these names for an image of this size; `score` is the default of the aesthetic score."""
        original, target = self.original or (height, width), self.target or (height, width)
        values: Mapping[TimeId, float] = {
            "original_height": original[0],
            "original_width": original[1],
            "crop_top": self.crop[0],
            "crop_left": self.crop[1],
            "target_height": target[0],
            "target_width": target[1],
            "aesthetic_score": score if self.aesthetic_score is None else self.aesthetic_score,
        }
        return tuple(values[name] for name in names)


CONDITIONING = Kind("a MicroConditioning", lambda value: isinstance(value, MicroConditioning))
"""Kind of value that `negative_conditioning` is."""
