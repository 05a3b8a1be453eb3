"""The source of a request that does not start from pure noise: pictures or latents, a mask, and a strength."""

from dataclasses import dataclass

from latentrt.runtime.arrays import Float32s


@dataclass(frozen=True, eq=False, slots=True)
class Source:
    """Pictures or latents to start from; n is 1, or the number of pictures to draw.

    strength: share of the steps that are run; 0 keeps the picture, 1 replaces it.
    pixels: (n, 3, height, width) in -1 … 1; or else latents: (n, 4, h, w) in the loop's scale.
    mask: (n, 1, height, width), 1 where the picture is redrawn; None redraws all of it.
    paste_back: whether the result gets the source's own pixels outside the mask.
    """

    strength: float
    pixels: Float32s | None = None
    latents: Float32s | None = None
    mask: Float32s | None = None
    paste_back: bool = False
