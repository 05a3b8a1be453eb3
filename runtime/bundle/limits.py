"""The ranges of requests that a bundle or a build serves: images, width, height, tokens, images of the VAE."""

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, PlainSerializer

from latentrt.runtime.bundle.base import Record
from latentrt.runtime.bundle.specs import TOKENS_PER_CHUNK, Dim
from latentrt.runtime.errors import RequestError

PIXEL_STEP = 8
"""Bounds of width and height are multiples of this, the pixels per latent of Stable Diffusion's VAEs."""


def parse_range(name: str, value: Any) -> Any:
    """A `Dim` from `min:opt:max`, `min:max` (opt = max) or one number (static).

    Raises:
        RequestError: the text is none of these.
    """
    if isinstance(value, Dim):
        return value
    try:
        parts = [int(part) for part in str(value).split(":")]
    except ValueError:
        parts = []
    if not 1 <= len(parts) <= 3:
        raise RequestError(f"{name} {value}: a range is written min:opt:max, min:max or one number")
    return Dim(name, parts[0], parts[1 if len(parts) > 1 else 0], parts[-1])


def _range(name: str) -> Any:
    return Annotated[
        Dim, BeforeValidator(lambda value: parse_range(name, value)), PlainSerializer(str, return_type=str)
    ]


class Limits(Record):
    """The requests that a bundle or a build serves: images per request, pixels, tokens of a prompt (77 per chunk).

    `vae_images` is how many images the VAE takes at once; larger requests go through it in slices, which bounds its
    memory.
    """

    STEP: ClassVar[dict[str, int]] = {
        "images": 1,
        "width": PIXEL_STEP,
        "height": PIXEL_STEP,
        "tokens": TOKENS_PER_CHUNK,
        "vae_images": 1,
    }

    images: _range("images")  # type: ignore[valid-type]
    width: _range("width")  # type: ignore[valid-type]
    height: _range("height")  # type: ignore[valid-type]
    tokens: _range("tokens")  # type: ignore[valid-type]
    vae_images: _range("vae_images")  # type: ignore[valid-type]

    def model_post_init(self, _context: Any, /) -> None:
        """Raise `RequestError` where a bound is not a multiple of its step."""
        for name, step in self.STEP.items():
            if any(bound % step for bound in self.bounds(name)):
                raise RequestError(f"{name} {getattr(self, name)}: every bound must be a multiple of {step}")
        if self.bounds("vae_images")[0] != 1:
            raise RequestError(f"vae_images {self.vae_images}: must begin at 1, for the last slice of a request")

    def bounds(self, name: str) -> tuple[int, int, int]:
        """(min, opt, max) of one range."""
        dim: Dim = getattr(self, name)
        return dim.min, dim.opt, dim.max

    def replace(self, **ranges: str | Dim | None) -> "Limits":
        """These limits with some ranges changed; None keeps a range."""
        if unknown := ranges.keys() - self.STEP.keys():
            raise RequestError(f"{', '.join(sorted(unknown))}: no such range; the ranges are {', '.join(self.STEP)}")
        given = {name: value for name, value in ranges.items() if value is not None}
        return Limits(**{name: given.get(name, getattr(self, name)) for name in self.STEP})

    @classmethod
    def around(cls, native_size: int) -> "Limits":
        """The default: half to one and a half times the native size, up to 4 images and 3 chunks of tokens."""
        half = native_size // 2 // PIXEL_STEP * PIXEL_STEP
        pixels = f"{half}:{native_size}:{native_size + half}"
        tokens = f"{TOKENS_PER_CHUNK}:{TOKENS_PER_CHUNK}:{3 * TOKENS_PER_CHUNK}"
        return cls(images="1:1:4", width=pixels, height=pixels, tokens=tokens, vae_images="1:1:1")
