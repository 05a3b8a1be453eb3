"""Where a request starts instead of pure noise: pictures or latents, a mask, and how much of them is kept."""

from dataclasses import dataclass

from latentrt.runtime.arrays import Float32s


@dataclass(frozen=True, eq=False, slots=True)
class Source:
    """Pictures or latents to start from; n is 1, or one per picture.

    strength: the share of the steps that are run; 0 keeps the picture and 1 forgets it. pixels (n, 3, height, width) in
    -1 … 1, or latents (n, 4, h, w) of the loop's scale. mask (n, 1, height, width): 1 where the picture is drawn anew;
    None: everywhere. paste_back: outside the mask the result gets the pixels of the source back.
    """

    strength: float
    pixels: Float32s | None = None
    latents: Float32s | None = None
    mask: Float32s | None = None
    paste_back: bool = False
