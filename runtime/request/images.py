"""From the pictures and masks that a user gives to arrays."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from latentrt.runtime.arrays import Float32s
from latentrt.runtime.errors import LatentRTError, RequestError
from latentrt.runtime.request.kinds import one_or_more

log = logging.getLogger(__name__)

ImageLike = Image.Image | NDArray[Any]
"""A PIL image, or an array (height, width, 3) of bytes or of floats from 0 to 1."""

MaskLike = Image.Image | NDArray[Any]
"""A PIL image, or an array (height, width) of bytes, of 0 and 1, of floats from 0 to 1, or of booleans.

Light areas are redrawn.
"""

ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})

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
    images = [as_rgb(picture) for picture in one_or_more(pictures)]
    if not images:
        raise RequestError("image: an empty list; give one picture, or one per picture to draw")
    own = images[0].size
    size = (own[0] if width is None else width, own[1] if height is None else height)
    try:
        check_size(*size)
    except RequestError as error:
        if any(wanted is None and length % 8 for wanted, length in zip((width, height), own, strict=True)):
            raise RequestError(
                f"image: it has {own[0]} x {own[1]} pixels; {error}. Crop it, or give width= and height="
            ) from error
        raise
    pixels = _stacked(images, size)
    if pixels.max(initial=0) == 1:
        log.warning("image: its bytes are 0 and 1 of 255, a black picture; give floats if 1 is meant to be white")
    return np.ascontiguousarray((pixels / np.float32(255) * 2 - 1).transpose(0, 3, 1, 2))


def read_masks(
    masks: MaskLike | Sequence[MaskLike], pictures: ImageLike | Sequence[ImageLike], width: int, height: int
) -> Float32s:
    """Masks (masks, 1, height, width) of 0 and 1: 1 where the picture is redrawn.

    Raises:
        RequestError: not a mask, or one of another size than its picture.
    """
    images = [as_grey(mask) for mask in one_or_more(masks)]
    if not images:
        raise RequestError("mask: an empty list; give one mask, or one per picture to draw")
    wanted = as_rgb(one_or_more(pictures)[0]).size
    for image in images:
        if image.size != wanted:
            raise RequestError(
                f"mask: {image.width} x {image.height} pixels, the image has {wanted[0]} x {wanted[1]}. Make them the "
                "same"
            )
    levels = _stacked(images, (width, height))
    return (levels[:, None] >= np.float32(127.5)).astype(np.float32)


def latent_mask(mask: Float32s, scale: int) -> Float32s:
    """A mask at the latents' size (…, h, w): the upper left pixel of each cell, as in diffusers."""
    return mask[..., ::scale, ::scale]


def check_lit(masks: Float32s, scale: int) -> None:
    """Raise `RequestError` for a mask after which nothing would be drawn anew; `scale`: pixels per latent."""
    lit = latent_mask(masks, scale).any(axis=(1, 2, 3))
    if not lit.all():
        number = int(lit.argmin())
        which = f" {number + 1}" if len(masks) > 1 else ""
        found = f"no upper left pixel of an {scale} x {scale} cell is light" if masks[number].any() else "it is black"
        raise RequestError(
            f"mask{which}: {found}, so nothing would be drawn anew. Light areas (from half grey on) are redrawn; "
            "invert it, or make the area larger"
        )


def _stacked(images: list[Image.Image], size: tuple[int, int]) -> Float32s:
    """One array of all images, 0 to 255, resized to (width, height)."""
    resized = [image if image.size == size else image.resize(size, Image.Resampling.LANCZOS) for image in images]
    return np.stack([np.asarray(image, np.float32) for image in resized])


def as_rgb(picture: Any) -> Image.Image:
    """A picture as the model sees it: upright, as red, green and blue bytes.

    Raises:
        RequestError: not a picture, one with transparency, or of values whose range is not known.
    """
    if isinstance(picture, np.ndarray):
        if picture.ndim != 3 or picture.shape[2] != 3:
            raise RequestError(
                f"image: an array of shape {list(picture.shape)}; it must be (height, width, 3), red, green and blue. "
                "Several pictures are a list of such arrays"
            )
        return Image.fromarray(_bytes("image", picture))
    if not isinstance(picture, Image.Image):
        raise RequestError(f"image: a {type(picture).__name__}; it must be a PIL image or an array (height, width, 3)")
    if picture.mode in ALPHA_MODES or "transparency" in picture.info:
        raise RequestError(
            "image: it has an alpha channel. Put it on a background, or take its colours with image.convert('RGB')"
        )
    return _converted("image", picture, "RGB")


def as_grey(mask: Any) -> Image.Image:
    """A mask as bytes of grey, upright: 255 where it is lightest, also where it was given as 0 and 1.

    Raises:
        RequestError: not a mask, one with transparency, or of values whose range is not known.
    """
    if isinstance(mask, np.ndarray):
        if mask.ndim != 2:
            raise RequestError(
                f"mask: an array of shape {list(mask.shape)}; it must be (height, width). Several masks are a list"
            )
        if np.issubdtype(mask.dtype, np.integer) and _is_zero_or_one(mask):
            mask = mask > 0
        return Image.fromarray(_bytes("mask", mask))
    if not isinstance(mask, Image.Image):
        raise RequestError(f"mask: a {type(mask).__name__}; it must be a PIL image or an array (height, width)")
    if mask.mode in ALPHA_MODES or "transparency" in mask.info:
        raise RequestError("mask: it has an alpha channel; give the mask itself, light where the picture is redrawn")
    grey = _converted("mask", mask, "L")
    lightest = grey.getextrema()[1]
    return grey.point(lambda level: level * 255) if lightest == 1 else grey


def _is_zero_or_one(values: NDArray[Any]) -> bool:
    return bool(values.size) and values.min() >= 0 and values.max() <= 1


def _converted(name: str, image: Image.Image, mode: str) -> Image.Image:
    """An image with its EXIF orientation applied, in another mode; Pillow itself cuts wide grey values off at 255."""
    if not image.width or not image.height:
        raise RequestError(f"{name}: an image of {image.width} x {image.height}, which holds no pixels")
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "F" or upright.mode.startswith("I"):
            upright = Image.fromarray(_wide_bytes(name, upright))
        return upright.convert(mode)
    except LatentRTError:
        raise
    except Exception as error:  # Pillow's readers of damaged files raise many kinds
        raise RequestError(
            f"{name}: mode {image.mode}, not readable ({error}). Give the whole picture, as RGB or grey"
        ) from error


def _wide_bytes(name: str, image: Image.Image) -> NDArray[np.uint8]:
    """The grey bytes that an image of floats (F), of 16 or of 32 bits (I) means; which they are, their range says.

    Whole numbers up to 255 are bytes, as where Pillow widened them, and larger ones are of 16 bits; of floats, and of a
    mask, those up to 1 are shares.
    """
    values = np.asarray(image)
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    shares = image.mode == "F" or name == "mask"
    if shares and low >= 0 and high <= 1:
        return (values * np.float32(255)).round().astype(np.uint8)
    whole = image.mode != "F" or bool(np.all(values == np.floor(values)))
    if whole and low >= 0 and high <= 65535 and (image.mode != "F" or high <= 255):
        return (values / (257 if high > 255 else 1)).round().astype(np.uint8)
    allowed = "0 to 1, or whole numbers to 255" if image.mode == "F" else "0 to 255, or to 65535"
    raise RequestError(f"{name}: a PIL image of mode {image.mode} from {low} to {high}; it must hold {allowed}")


def _bytes(name: str, values: NDArray[Any]) -> NDArray[np.uint8]:
    if not values.size:
        raise RequestError(f"{name}: an array of shape {list(values.shape)}, which holds no pixels")
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind not in "fiu":
        raise RequestError(f"{name}: an array of {values.dtype}; it must hold bytes, or floats from 0 to 1")
    if not np.issubdtype(values.dtype, np.floating) or not (np.all(values >= 0) and np.all(values <= 1)):
        spread = f" from {values.min()} to {values.max()}"
        raise RequestError(f"{name}: an array of {values.dtype}{spread}; it must hold bytes, or floats from 0 to 1")
    return (values * 255).round().astype(np.uint8)
