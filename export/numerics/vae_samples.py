"""Samples on which a VAE is measured: images of several kinds, their latents, and noise at the latents' scale."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from latentrt.export.modules import moments
from latentrt.runtime.errors import RequestError

PIXELS = 192
"""Largest width and height of the samples: ranges hardly grow with the size, but time does."""

MAX_FILES = 16
"""How many images of the user's folder are used."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def vae_samples(network: Any, component: str, native_size: int, folder: Path | None = None) -> list[Tensor]:
    """Make float32 inputs for one half of a VAE, one image each.

    Encoder: the synthetic images and those in `folder`, (1, 3, pixels, pixels) in -1 … 1. Decoder: the latents that
    this VAE's encoder makes of these images, and one tensor of normal noise divided by the scaling factor.

    Raises:
        RequestError: `folder` holds no image, or one that cannot be read.
    """
    pixels = min(PIXELS, native_size)
    images = [torch.from_numpy(image) for image in (*synthetic_images(pixels), *folder_images(folder, pixels))]
    if component == "vae_encoder":
        return images
    with torch.no_grad():
        latents = [moments(network, image).chunk(2, dim=1)[0] for image in images]
    noise = torch.randn(latents[0].shape, generator=torch.Generator().manual_seed(0))
    return [*latents, noise / network.config.scaling_factor]


def synthetic_images(pixels: int) -> list[NDArray[np.float32]]:
    """Draw shapes over gradients, a black-and-white checkerboard at two sizes, and noise; (1, 3, pixels, pixels)."""
    y, x = np.mgrid[0:pixels, 0:pixels] / pixels
    shapes = np.stack([x, y, 1 - (x + y) / 2])
    shapes[:, (x - 0.3) ** 2 + (y - 0.4) ** 2 < 0.04] = np.array([[1], [0], [0]])
    shapes[:, (abs(x - 0.7) < 0.15) & (abs(y - 0.7) < 0.2)] = 0
    cells = np.where(y < 0.5, 8, 32)
    board = np.broadcast_to((np.floor(x * cells) + np.floor(y * cells)) % 2, shapes.shape)
    noise = np.random.default_rng(0).uniform(0, 1, shapes.shape)
    return [(image[None] * 2 - 1).astype(np.float32) for image in (shapes, board, noise)]


def folder_images(folder: Path | None, pixels: int) -> list[NDArray[np.float32]]:
    """Read the first `MAX_FILES` images of a folder, cropped to squares and resized; (1, 3, pixels, pixels)."""
    if folder is None:
        return []
    if not folder.is_dir():
        raise RequestError(f"--samples {folder}: not a folder; name one with pictures")
    files = sorted(file for file in folder.glob("*") if file.suffix.lower() in SUFFIXES)[:MAX_FILES]
    if not files:
        raise RequestError(f"--samples {folder}: holds no image; it needs files ending in {', '.join(SUFFIXES)}")
    return [_read(file, pixels) for file in files]


def _read(file: Path, pixels: int) -> NDArray[np.float32]:
    try:
        with Image.open(file) as picture:
            side = min(picture.size)
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            square = picture.convert("RGB").resize((pixels, pixels), box=(left, top, left + side, top + side))
    except (OSError, UnidentifiedImageError) as error:
        raise RequestError(f"--samples: {file} is not a readable image ({error}). Remove it from the folder") from error
    return (np.asarray(square, dtype=np.float32) / 127.5 - 1).transpose(2, 0, 1)[None]
