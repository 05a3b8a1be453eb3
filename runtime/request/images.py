"""From the pictures and masks that a user gives to arrays."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from latentrt.runtime.arrays import Float32s
from latentrt.runtime.errors import RequestError
from latentrt.runtime.request.kinds import one_or_more

ImageLike = Image.Image | NDArray[Any]
"""A PIL image, or an array (height, width, 3) of bytes or of floats from 0 to 1."""

MaskLike = Image.Image | NDArray[Any]
"""A PIL image, or an array (height, width) of bytes, of floats from 0 to 1, or of booleans; light areas are redrawn."""

CheckSize = Callable[[int, int], None]
"""Raises `RequestError` for a width and height that are not served."""


def read_pictures(
    pictures: ImageLike | Sequence[ImageLike], width: int | None, height: int | None, check_size: CheckSize
) -> Float32s:
    """Pictures as the VAE's encoder takes them: (pictures, 3, height, width) in -1 … 1, resized (Lanczos) if need be.

    Width and height default to the first picture's own. They are checked before anything is resized.

    Raises:
        RequestError: not a picture, one with transparency, or of a size that is not served or no multiple of 8.
    """
    images = [_picture(picture) for picture in one_or_more(pictures)]
    if not images:
        raise RequestError("image: an empty list; give one picture, or one per picture to draw")
    size = (_length("width", width, images[0].width), _length("height", height, images[0].height))
    check_size(*size)
    pixels = _stacked(images, size)
    return np.ascontiguousarray((pixels / np.float32(255) * 2 - 1).transpose(0, 3, 1, 2))


def read_masks(
    masks: MaskLike | Sequence[MaskLike], pictures: ImageLike | Sequence[ImageLike], width: int, height: int
) -> Float32s:
    """Masks (masks, 1, height, width) of 0 and 1: 1 where the picture is redrawn.

    Raises:
        RequestError: not a mask, or one of another size than its picture.
    """
    images = [_mask(mask) for mask in one_or_more(masks)]
    wanted = _picture(one_or_more(pictures)[0]).size
    for image in images:
        if image.size != wanted:
            raise RequestError(
                f"mask: {image.width} x {image.height} pixels, the image has {wanted[0]} x {wanted[1]}. Make them the "
                "same"
            )
    levels = _stacked(images, (width, height))
    return (levels[:, None] >= np.float32(127.5)).astype(np.float32)


def _stacked(images: list[Image.Image], size: tuple[int, int]) -> Float32s:
    """One array of all images, 0 to 255, resized to (width, height)."""
    resized = [image if image.size == size else image.resize(size, Image.Resampling.LANCZOS) for image in images]
    return np.stack([np.asarray(image, np.float32) for image in resized])


def _length(name: str, wanted: int | None, own: int) -> int:
    """The width or height asked for, or the picture's own."""
    if wanted is None and own % 8:
        nearest = [length for length in (own // 8 * 8, own // 8 * 8 + 8) if length]
        resized = " or ".join(f"{name}={length}" for length in nearest)
        raise RequestError(
            f"image: its {name} of {own} pixels is not a multiple of 8. Crop it, or resize it by {resized}"
        )
    return own if wanted is None else wanted


def _picture(picture: Any) -> Image.Image:
    if isinstance(picture, np.ndarray):
        if picture.ndim != 3 or picture.shape[2] != 3:
            raise RequestError(
                f"image: an array of shape {list(picture.shape)}; it must be (height, width, 3), red, green and blue. "
                "Several pictures are a list of such arrays"
            )
        return Image.fromarray(_bytes("image", picture))
    if not isinstance(picture, Image.Image):
        raise RequestError(f"image: a {type(picture).__name__}; it must be a PIL image or an array (height, width, 3)")
    if "A" in picture.getbands() or "transparency" in picture.info:
        raise RequestError(
            "image: it has an alpha channel. Put it on a background, or take its colours with image.convert('RGB')"
        )
    return picture.convert("RGB")


def _mask(mask: Any) -> Image.Image:
    if isinstance(mask, np.ndarray):
        if mask.ndim != 2:
            raise RequestError(
                f"mask: an array of shape {list(mask.shape)}; it must be (height, width). Several masks are a list"
            )
        return Image.fromarray(_bytes("mask", mask))
    if not isinstance(mask, Image.Image):
        raise RequestError(f"mask: a {type(mask).__name__}; it must be a PIL image or an array (height, width)")
    if "A" in mask.getbands():
        raise RequestError("mask: it has an alpha channel; give the mask itself, light where the picture is redrawn")
    return mask.convert("L")


def _bytes(name: str, values: NDArray[Any]) -> NDArray[np.uint8]:
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if not np.issubdtype(values.dtype, np.floating) or not (np.all(values >= 0) and np.all(values <= 1)):
        spread = f" from {values.min()} to {values.max()}" if values.size else ""
        raise RequestError(f"{name}: an array of {values.dtype}{spread}; it must hold bytes, or floats from 0 to 1")
    return (values * 255).round().astype(np.uint8)
