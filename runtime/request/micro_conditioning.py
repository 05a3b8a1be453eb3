"""SDXL's micro-conditioning: numbers about an image that its U-Net was told while it was trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from latentrt.runtime.bundle.model import TimeId
from latentrt.runtime.request.kinds import Kind, number, pair

Size = tuple[int, int]
"""(height, width) in pixels, or (top, left) of a crop, in SDXL's own order."""


SCORE = number("a number, usually 1 to 10")
"""Kind of an aesthetic score."""


@dataclass(frozen=True, slots=True)
class MicroConditioning:
    """SDXL's time ids: the size an image had, where it was cropped, the size asked for (Podell et al. 2023, 2.2).

    `original` and `target` default to the request's own size. `aesthetic_score` is what SDXL's refiner takes in place
    of the target size; it defaults to 6.0, in the negative rows to 2.5, as in diffusers.

    Raises:
        RequestError: a size is not a pair of whole numbers, or the score not a number.
    """

    original: Size | None = None
    crop: Size = (0, 0)
    target: Size | None = None
    aesthetic_score: float | None = None

    def __post_init__(self) -> None:
        for name, spoken in (("original", "original size"), ("crop", "crop"), ("target", "target size")):
            value = getattr(self, name)
            if value is not None or name == "crop":
                object.__setattr__(self, name, pair().read(spoken, value))
        if self.aesthetic_score is not None:
            object.__setattr__(self, "aesthetic_score", SCORE.read("aesthetic score", self.aesthetic_score))

    def time_ids(self, names: Sequence[TimeId], height: int, width: int, score: float) -> tuple[float, ...]:
        """The named numbers for an image of this size; `score` stands in for an aesthetic score that is not given."""
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
