"""Inpainting: what a mask keeps of the original, in latents and in pixels."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from latentrt.runtime.arrays import Float32s
from latentrt.runtime.request.source import Source


def paste_back(images: list[Image.Image], source: Source | None) -> list[Image.Image]:
    """Put the source's own pixels back outside its mask, if the source asks for that."""
    if source is None or not source.paste_back or source.pixels is None or source.mask is None:
        return images
    originals = ((source.pixels.transpose(0, 2, 3, 1) + 1) * 127.5).round().astype(np.uint8)
    drawn = np.stack([np.asarray(image) for image in images])
    return [Image.fromarray(pixels) for pixels in np.where(source.mask.transpose(0, 2, 3, 1) > 0, drawn, originals)]


@dataclass(frozen=True, slots=True)
class Original:
    """What a picture keeps outside its mask.

    latents and noise (4, h, w). mask (1, h, w): 1 where the picture is redrawn. levels (S + 1, 2): after step s the
    kept latents are levels[s] · [latents, noise].
    """

    latents: Float32s
    noise: Float32s
    mask: Float32s
    levels: Float32s
