"""The requests that a bundle or a build serves: images, sizes, tokens, guidance, images of the VAE."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

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


@dataclass(frozen=True, slots=True)
class SizeProfile:
    """A range of widths and one of heights, in pixels, that engines are optimised for; both are often one number."""

    width: Dim
    height: Dim

    @classmethod
    def parse(cls, text: Any) -> "SizeProfile":
        """A profile from `1024x1024`, or with ranges as in `512:768:1024x512:768:1024`.

        Raises:
            RequestError: the text is neither.
        """
        if isinstance(text, SizeProfile):
            return text
        width, x, height = str(text).partition("x")
        if not x:
            raise RequestError(f"profile {text}: a profile is WIDTHxHEIGHT, such as 832x1216; both may be min:opt:max")
        return cls(parse_range("width", width), parse_range("height", height))

    def __contains__(self, size: tuple[int, int]) -> bool:
        return size[0] in self.width and size[1] in self.height

    def __str__(self) -> str:
        return f"{self.width.brief}x{self.height.brief}"


Guidance = Literal["any", "on", "off"]
"""Whether requests are guided: either, always, or never. With guidance, the U-Net runs two rows per image."""


class Limits(Record):
    """The requests that a bundle or a build serves: images per request, pixels, tokens of a prompt (77 per chunk).

    `vae_images` is how many images the VAE takes at once; larger requests go through it in slices, which bounds its
    memory. With `profiles`, only their sizes are served, and `width` and `height` are the ranges around all of them.
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
    profiles: tuple[
        Annotated[SizeProfile, BeforeValidator(SizeProfile.parse), PlainSerializer(str, return_type=str)], ...
    ] = ()
    guidance: Guidance = "any"

    def model_post_init(self, _context: Any, /) -> None:
        """Raise `RequestError` where a bound is not a multiple of its step, or the profiles' ranges are not the whole.

        The ranges around profiles have the optimum of the first one.
        """
        for name, step in self.STEP.items():
            dims = [getattr(self, name), *(getattr(profile, name, getattr(self, name)) for profile in self.profiles)]
            if wrong := [dim for dim in dims if any(bound % step for bound in (dim.min, dim.opt, dim.max))]:
                raise RequestError(f"{name} {wrong[0]}: every bound must be a multiple of {step}")
        if self.profiles and (self.width, self.height) != _around(self.profiles):
            raise RequestError(f"width {self.width}, height {self.height}: are not the ranges around the profiles")
        if self.bounds("vae_images")[0] != 1:
            raise RequestError(f"vae_images {self.vae_images}: must begin at 1, for the last slice of a request")

    def bounds(self, name: str) -> tuple[int, int, int]:
        """(min, opt, max) of one range."""
        dim: Dim = getattr(self, name)
        return dim.min, dim.opt, dim.max

    def replace(
        self,
        *,
        profiles: Sequence[str | SizeProfile] | None = None,
        guidance: str | None = None,
        **ranges: str | Dim | None,
    ) -> "Limits":
        """These limits with some changed; None keeps what is there.

        New profiles take the place of width and height, and a new width or height that of profiles.

        Raises:
            RequestError: an unknown range or kind of guidance, or profiles together with a width or height.
        """
        if guidance not in (None, *get_args(Guidance)):
            raise RequestError(f"guidance {guidance}: must be one of {', '.join(get_args(Guidance))}")
        if unknown := ranges.keys() - self.STEP.keys():
            raise RequestError(f"{', '.join(sorted(unknown))}: no such range; the ranges are {', '.join(self.STEP)}")
        given: dict[str, Any] = {name: value for name, value in ranges.items() if value is not None}
        sized = sorted(given.keys() & {"width", "height"})
        if profiles and sized:
            raise RequestError(
                f"profiles and {' and '.join(sized)}: each says which sizes are served. Give one of them"
            )
        if profiles:
            chosen = tuple(dict.fromkeys(map(SizeProfile.parse, profiles)))
            width, height = _around(chosen)
            given |= {"profiles": chosen, "width": width, "height": height}
        elif sized or profiles is not None:
            given["profiles"] = ()
        if guidance is not None:
            given["guidance"] = guidance
        return Limits(**({name: getattr(self, name) for name in type(self).model_fields} | given))

    def serves_size(self, width: int, height: int) -> bool:
        """Whether pictures of this size are served; whether they are multiples of the step is not looked at."""
        if self.profiles:
            return any((width, height) in profile for profile in self.profiles)
        return width in self.width and height in self.height

    def options(self, besides: Self | None = None) -> dict[str, tuple[str, ...]]:
        """The options of `build-engine` that give these limits, without those that `besides` gives alone.

        Values by option, such as `--width` or the repeatable `--profile`.
        """
        sizes = ("profiles",) if self.profiles else ("width", "height")
        names = [name for name in self.STEP if name not in ("width", "height")]
        found = {}
        for name in (*sizes, *names, "guidance"):
            value = getattr(self, name)
            if besides is None or value != getattr(besides, name):
                option = "--" + name.removesuffix("s" if name == "profiles" else "").replace("_", "-")
                found[option] = tuple(map(str, value)) if name == "profiles" else (str(value),)
        return found

    @classmethod
    def around(cls, native_size: int) -> "Limits":
        """The default: half to one and a half times the native size, up to 4 images and 3 chunks of tokens."""
        half = native_size // 2 // PIXEL_STEP * PIXEL_STEP
        pixels = f"{half}:{native_size}:{native_size + half}"
        tokens = f"{TOKENS_PER_CHUNK}:{TOKENS_PER_CHUNK}:{3 * TOKENS_PER_CHUNK}"
        return cls(images="1:1:4", width=pixels, height=pixels, tokens=tokens, vae_images="1:1:1")


def _around(profiles: Sequence[SizeProfile]) -> tuple[Dim, Dim]:
    """The ranges of width and height around profiles, with the optimum of the first one."""

    def around(dims: list[Dim]) -> Dim:
        return Dim(dims[0].name, min(dim.min for dim in dims), dims[0].opt, max(dim.max for dim in dims))

    return around([profile.width for profile in profiles]), around([profile.height for profile in profiles])
