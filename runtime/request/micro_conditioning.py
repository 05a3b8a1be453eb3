"""SDXL's micro-conditioning: numbers about an image that its U-Net was told while it was trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from latentrt.runtime.bundle.model import TimeId
from latentrt.runtime.errors import RequestError
from latentrt.runtime.request.values import is_number, is_whole

Size = tuple[int, int]
"""(height, width) in pixels, or (top, left) of a crop, in SDXL's own order."""


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
        pairs = {"original size": self.original or (0, 0), "crop": self.crop, "target size": self.target or (0, 0)}
        for name, pair in pairs.items():
            if not isinstance(pair, Sequence) or len(pair) != 2 or not all(is_whole(number, 0) for number in pair):
                raise RequestError(
                    f"{name} {pair!r}: must be two whole numbers of at least 0, (height, width) or (top, left)"
                )
        score = self.aesthetic_score
        if score is not None and not is_number(score):
            raise RequestError(f"aesthetic score {score!r}: must be a number, usually 1 to 10")

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
