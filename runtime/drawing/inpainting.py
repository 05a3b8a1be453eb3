"""What a mask keeps: the original under it, in latents and in pixels."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from latentrt.runtime.arrays import Float32s
from latentrt.runtime.request.source import Source


def paste_back(images: list[Image.Image], source: Source | None) -> list[Image.Image]:
    """The images with the pixels of their source outside its mask, where the source asks for that."""
    if source is None or not source.paste_back or source.pixels is None or source.mask is None:
        return images
    originals = ((source.pixels.transpose(0, 2, 3, 1) + 1) * 127.5).round().astype(np.uint8)
    drawn = np.stack([np.asarray(image) for image in images])
    return [Image.fromarray(pixels) for pixels in np.where(source.mask.transpose(0, 2, 3, 1) > 0, drawn, originals)]


def latent_mask(mask: Float32s, scale: int) -> Float32s:
    """A mask at the latents' size, (…, h, w): of each cell its upper left pixel, as diffusers takes it."""
    return mask[..., ::scale, ::scale]


@dataclass(frozen=True, slots=True)
class Original:
    """What a picture keeps outside its mask. latents and noise (4, h, w); mask (1, h, w), 1 where it is drawn anew.

    levels (S + 1, 2): after step s the kept latents are levels[s] · [latents, noise].
    """

    latents: Float32s
    noise: Float32s
    mask: Float32s
    levels: Float32s
